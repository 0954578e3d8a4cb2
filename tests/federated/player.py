"""What the tests of methods play rounds with."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter, take
from feddpa_jax.config.sections import FedSection
from feddpa_jax.federated.build import build
from feddpa_jax.federated.method import FedState, Lora, Method, Metrics
from feddpa_jax.federated.play import Federation, play_phases, start
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.training.engine import Engine
from feddpa_jax.training.rounds import TrainingData


class Player(NamedTuple):
    """A method and what plays it, on some data."""

    method: Method
    federation: Federation
    data: TrainingData
    rounds: int

    def start(self, key: int = 0) -> FedState:
        """Before the first round."""
        return start(self.method, self.federation, jax.random.key(key))

    def round(
        self, state: FedState, number: int, *, key: int | None = None, rate: float = 1e-2
    ) -> tuple[FedState, Metrics]:
        """A round, by default with its number as its key; the last is what follows the others."""
        shapes = self.data.shapes(self.rounds)
        return play_phases(
            self.method,
            self.federation,
            state,
            lambda everybody: self.data.round(number, shapes, everybody=everybody),
            self.method.phases_of(number, self.rounds),
            key=jax.random.key(number if key is None else key),
            learning_rate=rate,
        )

    def play(self, rounds: int, key: int = 1) -> list[FedState]:
        """The states from the start on."""
        states = [self.start(key)]
        for number in range(rounds):
            states.append(self.round(states[-1], number)[0])
        return states


def lora_for(new_adapter: functools.partial, data: TrainingData) -> Lora:
    """What a method knows where adapters are made by `init_adapter` with these sizes."""
    known = new_adapter.keywords
    sizes, layers, rank = known["sizes"], known["layers"], known["rank"]
    return Lora(new_adapter, sizes, layers, rank, 2.0 * rank, data.names)


def player_for(
    name: str,
    engine: Engine,
    new_adapter: functools.partial,
    data: TrainingData,
    folder: Path,
    kind: Any = "uniform",
    *,
    options: dict[str, Any] | None = None,
    rounds: int = 9,
    **fields: Any,
) -> Player:
    """A method for the clients of some data, with client files below a folder."""
    section = FedSection(rounds=rounds, **fields)
    method = build(name, lora_for(new_adapter, data), vars(section), options or {})
    id_C = np.array(data.ids, np.uint32)
    files = ClientFiles(folder, cached=2)
    return Player(method, Federation(engine, data.names, id_C, files, kind), data, rounds)


def state_of(player: Player, server: dict[str, Any], local: Adapter | None = None) -> FedState:
    """A state with these parts of the server, and local adapters that start as a bank's."""
    clients = player.start().clients
    if local is not None:
        bank = local
        fresh = {"local": lambda members: take(bank, np.array(members))}
        clients = clients.__class__(clients.names, clients.store, clients.parts, fresh)
    return FedState(server, clients)
