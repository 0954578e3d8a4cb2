"""Experiments in memory whose parts, losses and updates an oracle in PyTorch can follow."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import LlamaForCausalLM

import feddpa_jax as fd
from feddpa_jax.run.inputs import encode, training_data
from feddpa_jax.testing import tiny_config, write_tiny_hf_folder
from tests.parity.reference_loop import Update

TARGETS = ("q_proj", "v_proj", "up_proj")
ALPHA, RATE, TOLERANCE = 6.0, 5e-3, 1e-4
NAMES = ("anna", "ben", "carl", "dora")
WORDS = ["river", "lamp", "seven", "green", "under", "stone", "paper", "cloud", "honey", "winter"]


@functools.cache
def models(folder: Path) -> tuple[fd.Base, LlamaForCausalLM]:
    """The same random Llama as a base of ours and as `transformers`'."""
    torch.set_num_threads(1)
    written = write_tiny_hf_folder(folder / "tiny", tiny_config(width=16, ffn=24, heads=4))
    model = LlamaForCausalLM.from_pretrained(written, dtype=torch.float32)
    return fd.load_base(str(written), dtype="float32"), model


def federation(validation: int = 0) -> fd.Federation:
    """Four clients with 4, 7, 2 and 5 examples; the last ones are held out if asked for."""
    draw = np.random.default_rng(0)

    def example() -> fd.Example:
        said = [str(word) for word in draw.choice(WORDS, 4)]
        return fd.Example(f"{said[0]} {said[1]}?", " ".join(said[2:]), task="words")

    clients = []
    for name, count in zip(NAMES, (4, 7, 2, 5), strict=True):
        held = tuple(example() for _ in range(validation))
        clients.append(fd.Client(name, tuple(example() for _ in range(count)), held))
    return fd.Federation(clients=tuple(clients), test=(example(),))


@dataclasses.dataclass(frozen=True)
class Followed:
    """An experiment, and what happened in it.

    Attributes:
      experiment: of which all rounds are done.
      model: its base, in PyTorch.
      start: the parts before the first round: the server's, and each client's.
      rounds: by round the parts after it, likewise.
      losses: by round, phase and client the first, mean and last loss of an update.
    """

    experiment: fd.Experiment
    model: LlamaForCausalLM
    start: tuple[Mapping[str, Any], list[Mapping[str, Any]]]
    rounds: list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]
    losses: list[Mapping[str, Mapping[str, Mapping[str, float]]]]

    def updates(self, client: int, number: int, phase: str) -> list[Update]:
        """The updates of a client in a phase, as the oracles take them."""
        data = training_data(self.experiment.config, self.experiment.prepared)
        examples = data.examples[client]
        return [
            [[tuple(examples[i][:2]) for i in micro] for micro in update]
            for update in data.updates_of(client, number, phase)
        ]

    def held_out(self, client: int) -> list[tuple[np.ndarray, int]]:
        """The tokenized examples that a client does not train on."""
        prepared = self.experiment.prepared
        owner = prepared.federation.clients[client]
        held = encode(self.experiment.config, prepared.base.tokenizer, owner.validation)
        return [(example.tokens_T, example.prompt_length) for example in held.examples]

    def batches(
        self, phases: Mapping[str, str], numbers: Sequence[int]
    ) -> list[dict[int, dict[str, list[Update]]]]:
        """By round and participant, the updates of the oracle's phases.

        Args:
          phases: by the oracle's name of a phase, ours.
          numbers: the rounds.
        """
        found = []
        for number in numbers:
            present = set.intersection(*(set(self.losses[number][own]) for own in phases.values()))
            found.append(
                {
                    client: {
                        theirs: self.updates(client, number, ours)
                        for theirs, ours in phases.items()
                    }
                    for client, name in enumerate(NAMES)
                    if name in present
                }
            )
        return found


def follow(folder: Path, method: str, *, validation: int = 0, **fed: Any) -> Followed:
    """Plays all rounds of an experiment with a method and settings of `fed`."""
    base, model = models(folder)
    experiment = fd.Experiment(
        base,
        federation(validation),
        fd.Config(
            lora={"rank": 3, "alpha": ALPHA, "dropout": 0.0, "targets": TARGETS},
            data={"shuffle": False},
            fed={
                "method": method,
                "rounds": 3,
                "local_epochs": 2,
                "batch_size": 3,
                "micro_batch_size": 2,
                "learning_rate": RATE,
                **fed,
            },
        ),
    )
    start = parts_of(experiment.state)
    rounds, losses = [], []
    for done in experiment.rounds():
        rounds.append(parts_of(done.state))
        losses.append(done.losses)
    return Followed(experiment, model, start, rounds, losses)


def parts_of(state: Any) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The server's parts and each client's, as numpy arrays."""
    own = [
        jax.tree.map(lambda leaf: np.asarray(leaf[0]), state.clients.take([client]))
        for client in range(len(NAMES))
    ]
    return jax.tree.map(np.asarray, dict(state.server)), own


def check_losses(
    ours: Mapping[str, Mapping[str, float]],
    theirs: Mapping[int, Mapping[str, list[float]]],
    phase: str,
) -> None:
    """The told losses of a phase are those of the oracle's phase of this name."""
    assert set(ours) == {NAMES[client] for client in theirs}
    for client, phases in theirs.items():
        curve, told = phases[phase], ours[NAMES[client]]
        expected = {"first": curve[0], "mean": np.mean(curve), "last": curve[-1]}
        for name, value in expected.items():
            assert abs(told[name] - value) < TOLERANCE, f"{phase}, client {client}, {name}"


def check_part(ours: Any, theirs: Any, what: str) -> None:
    """Two parts have the same leaves, and these the same values."""
    for target, leaves in theirs.items():
        assert set(ours[target]) == set(leaves), f"{what} {target}: {sorted(ours[target])}"
        for leaf, array in leaves.items():
            apart = float(np.abs(ours[target][leaf] - array).max())
            assert apart < TOLERANCE, f"{what} {target}.{leaf}: {apart}"


def moved(start: Any, end: Any) -> Iterator[float]:
    """How far each leaf is from where it was."""
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True):
        yield float(np.abs(before - after).max())
