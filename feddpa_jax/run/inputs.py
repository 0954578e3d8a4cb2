"""From a configuration to what a command works on: base model, clients, tokenized examples."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.config import Config, to_yaml
from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.population import Population
from feddpa_jax.data.templates import TEMPLATES, bound
from feddpa_jax.data.token_file import TokenizedClients
from feddpa_jax.data.tokenize import TokenCounts, Tokenized, encode_examples
from feddpa_jax.devices.mesh import CLIENTS, make_mesh
from feddpa_jax.devices.processes import check_same, several, together
from feddpa_jax.federated.build import build
from feddpa_jax.federated.leaves import trains_own
from feddpa_jax.federated.method import METHODS, Lora, Method
from feddpa_jax.files.escape import some_names
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.run.backend import base_on
from feddpa_jax.run.pooled_examples import pooled_examples
from feddpa_jax.run.size_check import check_sizes
from feddpa_jax.run.taking_part import who_takes_part
from feddpa_jax.run.tokenizing import tokenize_clients
from feddpa_jax.training.costs import costs_on
from feddpa_jax.training.memory import tokens_at_once
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import Example, Federation, TokenizedExample, UserError

# Of so many clients what they hold out stays in memory.
HELD_IN_MEMORY = 1024


class Prepared(NamedTuple):
    """What training, evaluation and generation share.

    Attributes:
      base: model, tokenizer and fingerprint.
      federation: clients and test instances.
      training: each client's tokenized examples; none of clients that are not worked on.
      counts: truncated and dropped examples, by client or of all together.
      mesh: the devices; the base lies on them.
    """

    base: Base
    federation: Federation
    training: Sequence[tuple[TokenizedExample, ...]]
    counts: tuple[TokenCounts, ...]
    mesh: Mesh

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names."""
        return self.federation.names

    @property
    def tokens_at_once(self) -> int:
        """How many tokens each device computes at once, where the configuration does not say."""
        model = self.base.model
        return tokens_at_once(self.mesh.devices.flat[0], model.config, model.dtype)

    def of(self, members: Sequence[int] | np.ndarray) -> "Prepared":
        """The same with some of the clients alone, which are read into memory.

        Args:
          members: their indexes.
        """
        clients = tuple(self.federation.clients[int(c)] for c in members)
        training = tuple(self.training[int(c)] for c in members)
        federation = dataclasses.replace(self.federation, clients=clients)
        counts = self.counts
        if len(counts) == len(self.training):
            counts = tuple(counts[int(c)] for c in members)
        return self._replace(federation=federation, training=training, counts=counts)

    def data_digest(self) -> str:
        """A digest of everything that is trained on and tested on."""
        digest = hashlib.sha256(repr((self.names, self.federation.test)).encode())
        if isinstance(self.training, TokenizedClients):
            digest.update(self.training.digest.encode())
            return digest.hexdigest()
        for own in self.training:
            for tokens_T, prompt_length, trained_T in own:
                digest.update(f"{len(tokens_T)} {prompt_length} ".encode() + tokens_T.tobytes())
                digest.update(b"" if trained_T is None else trained_T.tobytes())
        return digest.hexdigest()


def prepare(
    config: Config,
    *,
    devices: Sequence[Any] | None = None,
    weights: bool = True,
    only: str | None = None,
) -> Prepared:
    """Loads data and model and tokenizes the training examples; data first, they fail faster.

    Args:
      config: the configuration.
      devices: of the mesh; all that there are if None.
      weights: if not, the base's parameters have shapes alone.
      only: the one client whose training examples are wanted; the others have none then.

    Raises:
      UserError: anything that is wrong with either, or no client is named `only`.
    """
    TEMPLATES.find(config.data.template)
    federation = load_data(config)
    names = federation.names
    if only is not None and only not in names:
        raise UserError(f"client: no {only!r} in this run; it has {some_names(names)}")
    base = load_base(config.model.path, config.model.dtype, config.model.quantize, weights=weights)
    return prepare_values(config, base, federation, devices=devices, only=only)


def prepare_values(
    config: Config,
    base: Base,
    federation: Federation,
    *,
    devices: Sequence[Any] | None = None,
    only: str | None = None,
) -> Prepared:
    """Tokenizes the training examples, and puts the base on the mesh.

    Args:
      config: the configuration.
      base: model and tokenizer.
      federation: clients and test instances.
      devices: of the mesh; all that there are if None.
      only: the one client whose training examples are wanted; the others have none then.

    Raises:
      UserError: a size that the base cannot have, or a client without an example.
    """
    check_sizes(config, base.model.config)
    # All that decodes later stops where the template ends its answers.
    base = base._replace(tokenizer=bound(config.data.template, base.tokenizer)[1])
    training, counts = tokenize_clients(
        config, base.tokenizer, federation, functools.partial(encode, config, base.tokenizer), only
    )
    mesh = make_mesh(config.mesh.clients, config.mesh.model, devices)
    model = base_on(mesh, config, base.model)
    return Prepared(base._replace(model=model), federation, training, counts, mesh)


def prepare_together(config: Config, make: Callable[[Config], Prepared] = prepare) -> Prepared:
    """`prepare` on every process of a run; none goes on if another cannot, or has other files.

    Args:
      config: the configuration.
      make: what makes it, if not `prepare`.

    Raises:
      UserError: anything that is wrong on any process.
    """
    prepared = together(lambda: make(config))
    if several():
        check_same(
            {
                "configuration": to_yaml(config),
                "base model": prepared.base.fingerprint,
                "data": prepared.data_digest(),
            }
        )
    return prepared


def encode(config: Config, tokenizer: Tokenizer, examples: Sequence[Example]) -> Tokenized:
    """`encode_examples` as the configuration has it.

    Raises:
      UserError: an unknown template, or one that this tokenizer or an example cannot have.
    """
    template, tokenizer = bound(config.data.template, tokenizer)
    return encode_examples(
        examples,
        tokenizer,
        template,
        config.data.max_length,
        config.data.encoding,
    )


def load_data(config: Config) -> Federation:
    """The configured clients and test instances.

    Raises:
      UserError: anything that is wrong with them.
    """
    return load_federation(
        config.data.path,
        seed=config.seed,
        max_train=config.data.max_train,
        validation=config.data.validation,
        max_test=config.data.max_test,
        cache=config.data.cache,
        columns=config.data.columns,
        test_path=config.data.test_path,
    )


def training_data(config: Config, prepared: Prepared) -> TrainingData:
    """The clients' trainings; of a centralized method, one client with everybody's examples.

    Raises:
      UserError: early stopping is asked for, and a client has no held-out example; or as of
        `who_takes_part`.
    """
    names, examples = prepared.names, prepared.training
    clients = prepared.federation.clients
    opened = isinstance(clients, Population) and config.data.validation > 0
    pooled = METHODS.find(config.fed.method).pooled
    if pooled:
        names, examples = ("pooled",), (pooled_examples(examples, config.fed.local_epochs),)
    fed = config.fed

    # A federation that was made in memory says itself what is held out.
    any_held = config.data.validation > 0 or prepared.federation.source is None

    @functools.lru_cache(maxsize=HELD_IN_MEMORY)
    def held_out(client: int) -> tuple[TokenizedExample, ...]:
        if not any_held:
            return ()
        some = clients if pooled else [clients[client]]
        held = [example for own in some for example in own.validation]
        return encode(config, prepared.base.tokenizer, held).examples

    # Of a population it is known that each client holds something out.
    asked = names if fed.early_stopping is not None and not opened else ()
    for client, name in enumerate(asked):
        if not held_out(client):
            raise UserError(
                f"fed.early_stopping: client {name!r} has no held-out example; set data.validation"
            )
    return TrainingData(
        names=names,
        examples=examples,
        seed=config.seed,
        epochs=fed.local_epochs,
        batch_size=fed.batch_size,
        micro_batch_size=fed.micro_batch_size or fed.batch_size,
        shuffle=config.data.shuffle,
        **who_takes_part(config, clients),
        clients_per_step=fed.clients_per_step,
        block_tokens=fed.block_tokens or prepared.tokens_at_once,
        shards=prepared.mesh.shape[CLIENTS],
        costs=costs_on(prepared.mesh.devices.flat[0].platform, prepared.base.model.config),
        patience=fed.early_stopping,
        held_out=held_out,
        nothing_held=not any_held,
    )


def make_lora(config: Config, prepared: Prepared) -> Lora:
    """What a method knows of the adapters and of the federation.

    Raises:
      UserError: `lora.ranks` does not fit the method or the clients.
    """
    sizes = prepared.base.model.config.target_sizes()
    layers = prepared.base.model.config.layers
    adapted = {target: sizes[target] for target in config.lora.targets}
    entry = METHODS.find(config.fed.method)
    names = ("pooled",) if entry.pooled else prepared.names
    ranks = config.lora.ranks
    if ranks is not None and not entry.ranks:
        able = " or ".join(name for name in METHODS if METHODS.find(name).ranks)
        raise UserError(
            f"lora.ranks: all clients of {config.fed.method} have the same rank; use lora.rank, "
            f"or fed.method {able}"
        )
    if ranks is not None and len(ranks) != len(names):
        raise UserError(
            f"lora.ranks: has {len(ranks)} ranks for {len(names)} clients; give each client one"
        )
    rank = max(ranks) if ranks else config.lora.rank
    fresh = functools.partial(init_adapter, sizes=adapted, layers=layers, rank=rank)
    return Lora(fresh, adapted, layers, rank, config.lora.alpha, names, ranks)


def make_method(config: Config, prepared: Prepared) -> Method:
    """The configured method, with its options.

    Raises:
      UserError: an option that it does not have, a method that does not fit together, or early
        stopping of one without parts of the clients' own.
    """
    fed = config.fed
    method = build(fed.method, make_lora(config, prepared), vars(fed), fed.options)
    stops = fed.early_stopping is not None
    if stops and not any(trains_own(method, phase) for phase in method.phases):
        raise UserError(
            f"fed.early_stopping: {fed.method} trains no part of the clients' own; leave it null, "
            "or use another fed.method"
        )
    return method
