"""One tiny model for an `Experiment` and for the oracles, with three unequal clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import LlamaForCausalLM

import feddpa_jax as fd
from feddpa_jax.run.inputs import training_data
from feddpa_jax.run.opening import at_hand
from feddpa_jax.testing import tiny_config, write_tiny_hf_folder
from tests.parity.reference_aggregation import Dense, Setting
from tests.parity.reference_loop import Adapter, Update

ALPHA, RANK, RATE = 8.0, 4, 1e-3
TARGETS = ("q_proj", "v_proj", "up_proj")
COUNTS = (3, 7, 5)


class Pair:
    """The base and the federation of experiments, and the same base for the oracles.

    Attributes:
      base: for experiments.
      data: for experiments.
      model: for the oracles.
    """

    def __init__(self, folder: Path):
        """Args: where the model's files are written."""
        torch.set_num_threads(1)
        write_tiny_hf_folder(folder, tiny_config())
        self.base = fd.load_base(str(folder), dtype="float32")
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        draw = np.random.default_rng(0)
        letters = np.array(list("abcdefgh "))

        def words(most: int) -> str:
            return "x" + "".join(draw.choice(letters, int(draw.integers(2, most))))

        self.data = fd.Federation(
            clients=tuple(
                fd.Client(name, train=tuple(fd.Example(words(9), words(7)) for _ in range(count)))
                for name, count in zip(("anna", "bert", "carl"), COUNTS, strict=True)
            )
        )

    def experiment(self, method: str, rounds: int = 3, **fed: Any) -> fd.Experiment:
        """An experiment in memory without shuffles and dropout; two of the three take part."""
        lora = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": TARGETS}
        lora |= fed.pop("lora", {})
        common = {
            "method": method,
            "rounds": rounds,
            "participation": 0.7,
            "local_epochs": 2,
            "batch_size": 4,
            "micro_batch_size": 3,
            "learning_rate": RATE,
            "aggregation": "examples",
        }
        config = fd.Config(fed=common | fed, lora=lora, data={"shuffle": False})
        return fd.Experiment(self.base, self.data, config)

    def setting(self, aggregation: str = "examples", **changes: Any) -> Setting:
        """The oracles' setting of the same experiments."""
        counts = COUNTS if aggregation == "examples" else None
        return Setting(self.model, alpha=ALPHA, learning_rate=RATE, examples=counts, **changes)


def rounds_of(
    experiment: fd.Experiment, phase: str = "global"
) -> list[Mapping[int, Sequence[Update]]]:
    """`rounds[round][client]`: the updates that the experiment's clients go through."""
    data = training_data(experiment.config, experiment.prepared)

    def updates(client: int, number: int) -> Sequence[Update]:
        examples = data.examples[client]
        return [
            [[tuple(examples[i][:2]) for i in micro] for micro in update]
            for update in data.updates_of(client, number, phase)
        ]

    return [
        {int(client): updates(int(client), number) for client in data.participants(number)}
        for number in range(experiment.config.fed.rounds)
    ]


def adapter_of(state: fd.FedState, client: int | None = None) -> Adapter:
    """The two factors of the state's adapter, whichever parts they are in.

    Args:
      state: of a method with one adapter.
      client: whose; None: there is none of the clients' own.
    """
    own = {} if client is None else state.clients.take([client])
    # What the clients' own factors started as, and what an optimizer keeps, is no adapter's.
    parts = [part for name, part in state.server.items() if name not in ("first", "optimizer")]
    parts += [jax.tree.map(lambda leaf: leaf[0], part) for part in own.values()]
    found: Adapter = {target: {} for target in TARGETS}
    for part in parts:
        for target in TARGETS:
            for leaf, array in part[target].items():
                assert leaf not in found[target], f"two parts have {target}.{leaf}"
                found[target][leaf] = np.asarray(array)
    return found


def effective(experiment: fd.Experiment, state: fd.FedState) -> list[Dense]:
    """What each client's shared adapter adds to the base: `[client][target]`, [L, D, E]."""
    adapters = at_hand(experiment.config, experiment.prepared, state)
    assert adapters.global_C is not None

    def added(pair: Mapping[str, Any], client: int) -> np.ndarray:
        a_LDR, b_LRE = (
            np.asarray(pair[leaf], np.float64)[client if len(pair[leaf]) > 1 else 0]
            for leaf in "ab"
        )
        return adapters.scale * a_LDR @ b_LRE

    banks = adapters.global_C.items()
    return [{t: added(pair, client) for t, pair in banks} for client in range(len(COUNTS))]


def assert_losses(done: fd.Round, losses: Mapping[int, Sequence[float]]) -> None:
    """The first, mean and last loss of every participant in a round are the oracle's."""
    (phase,) = done.losses
    names = ("anna", "bert", "carl")
    theirs = {names[client]: curve for client, curve in losses.items()}
    assert done.losses[phase].keys() == theirs.keys()
    for name, curve in theirs.items():
        ours = done.losses[phase][name]
        wanted = np.array([curve[0], np.mean(curve), curve[-1]])
        values = [ours["first"], ours["mean"], ours["last"]]
        np.testing.assert_allclose(values, wanted, atol=1e-4)


def assert_adapter(ours: Mapping[str, Mapping], theirs: Mapping[str, Mapping]) -> None:
    """Every factor of an adapter is the oracle's."""
    assert ours.keys() == theirs.keys()
    for target, pair in theirs.items():
        for leaf in "ab":
            name = f"{target}.{leaf}"
            np.testing.assert_allclose(ours[target][leaf], pair[leaf], atol=1e-4, err_msg=name)
