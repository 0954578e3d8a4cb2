"""A method as a configuration has it: its options, and the options of any method."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from feddpa_jax.federated.guard import check_method, guarded
from feddpa_jax.federated.leaves import by_part, pick, sends
from feddpa_jax.federated.method import METHODS, Entry, Lora, Method, Part, Phase
from feddpa_jax.federated.penalty import proximal
from feddpa_jax.federated.server_optimizer import PART, server_optimizer
from feddpa_jax.federated.shapes import part_shapes
from feddpa_jax.files.own_files import fails
from feddpa_jax.hyperparameters import Value, check_values, defaults, signature
from feddpa_jax.types import UserError


def options_of(entry: Entry, fields: Mapping[str, Any]) -> dict[str, Value]:
    """The options that are a method's own, and their defaults.

    Args:
      entry: the method.
      fields: of the configuration's `fed`, which a method may ask for by name.
    """
    found = dict(list(signature(entry.build).items())[1:])
    own = {name: parameter for name, parameter in found.items() if name not in fields}
    return defaults(own, "fed.options", f"the method {entry.title}")


def check_options(name: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuses options that a method does not have; the user's own file is run.

    Raises:
      UserError: an unknown name, or a value of another type.
    """
    if given:
        known = options_of(METHODS.find(name), fields)
        check_values(given, known, "fed.options", f"the method {name}")


def build(name: str, lora: Lora, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Method:
    """A method with its options, and with FedProx's pull if `fed.proximal` asks for it.

    Args:
      name: registered, or FILE.py:NAME.
      lora: what it knows of the adapters and the federation.
      fields: of the configuration's `fed`.
      given: its options.

    Raises:
      UserError: an option that it does not have, a method that does not fit together, or one
        without what `proximal` and `server_optimizer` act on.
    """
    entry = METHODS.find(name)
    asked = signature(entry.build)
    values = check_values(given, options_of(entry, fields), "fed.options", f"the method {name}")
    values |= {field: value for field, value in fields.items() if field in asked}
    theirs = inspect.getmodule(entry.build)
    own = theirs is None or not theirs.__name__.startswith("feddpa_jax.")
    try:
        method = entry.build(lora, **values)
        check_method(method, entry, name, lora)
    except UserError:
        raise
    except Exception as error:
        if not own:
            raise
        raise fails("fed.method", name, error) from None
    if own:
        method = guarded(method, lora, name)
    if fields["proximal"]:
        pulled = with_proximal(method, fields["proximal"])
        if pulled.phases == method.phases:
            raise UserError(
                f"fed.proximal: {name} trains no copy of a server's part that could be pulled; "
                "set it to 0, or use another fed.method"
            )
        method = pulled
    if fields["server_optimizer"] != "none":
        optimizer = server_optimizer(fields["server_optimizer"], fields["server_learning_rate"])
        method = with_server_optimizer(method, optimizer, name)
    return method


def with_proximal(method: Method, strength: float) -> Method:
    """A method whose clients' copies of the server's parts are pulled towards these (FedProx)."""

    def pulled(phase: Phase) -> Phase:
        parts = [p for p in by_part(phase.train) if method.parts[p].scope == "server"]
        if not parts:
            return phase
        pulls = [proximal(part, to=part, strength=strength) for part in parts]
        before = phase.penalty

        def penalty(trained: Any, frozen: Any) -> jax.Array:
            every = pulls if before is None else [*pulls, before]
            return jnp.stack([pull(trained, frozen) for pull in every]).sum()

        beside = tuple(dict.fromkeys([*phase.beside, *parts]))
        return dataclasses.replace(phase, penalty=penalty, beside=beside)

    return dataclasses.replace(method, phases=tuple(map(pulled, method.phases)))


def with_server_optimizer(
    method: Method, optimizer: optax.GradientTransformation, name: str
) -> Method:
    """A method whose server follows each plain mean with an optimizer.

    Args:
      method: has a phase whose server takes the mean.
      optimizer: as of `follow`.
      name: the method's, for messages.

    Raises:
      UserError: it has none.
    """

    def takes_mean(phase: Phase) -> bool:
        sent = by_part(sends(method, phase))
        own = any(method.parts[part].scope == "client" for part in sent if part in method.parts)
        # A mean of what clients hold becomes a server's part, and is no change of it.
        plain = phase.server is None and phase.upload is None and phase.reduce == "mean"
        return plain and bool(sent) and not own

    means = [phase for phase in method.phases if takes_mean(phase)]
    if not means:
        raise UserError(
            f"fed.server_optimizer: {name} has no mean that the server could follow; set it to "
            "none, or use another fed.method"
        )
    if PART in method.parts:
        raise UserError(f"fed.server_optimizer: {name} has a part named {PART}; rename it")
    shapes, sent = part_shapes(method), dict[str, dict[str, None]]()
    for phase in means:
        sent.setdefault(phase.name, {}).update(dict.fromkeys(sends(method, phase)))

    def new(key: jax.Array) -> dict[str, Any]:
        del key
        leaves = {phase: pick(shapes, tuple(names)) for phase, names in sent.items()}
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), leaves)
        return {phase: optimizer.init(tree) for phase, tree in zeros.items()}

    return dataclasses.replace(
        method,
        parts={**method.parts, PART: Part("server", new)},
        phases=tuple(
            dataclasses.replace(phase, optimizer=optimizer) if phase in means else phase
            for phase in method.phases
        ),
    )
