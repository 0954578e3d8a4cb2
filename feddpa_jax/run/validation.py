"""The loss on held-out examples after a round: what tells which round's state answers best.

After a round some clients answer their own held-out examples (`data.validation`) with what their
method answers with, without dropout. The training loss says nothing of the kind: it goes on falling
where adapters begin to learn their examples by heart.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.dual import is_shared
from feddpa_jax.adapters.mix import Mix, Parts, Term
from feddpa_jax.config import Config
from feddpa_jax.devices.mesh import CLIENTS, put
from feddpa_jax.federated.method import METHODS, Answers, FedState, Method
from feddpa_jax.federated.play import Federation, copies, in_slots
from feddpa_jax.training.draws import uniform
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape, Chunk
from feddpa_jax.training.step import Frozen, Objective

# So many clients at most judge a round, the same in every round.
JUDGES = 32


def judges(data: TrainingData, seed: int) -> np.ndarray:
    """Which clients judge a run's rounds: a draw of those that held something out, by index.

    Each draws a number that depends on its own name and the seed alone.
    """
    if data.nothing_held:
        return np.zeros(0, np.int32)
    draws = uniform(seed, np.array(data.ids), 3)
    able = (client for client in np.argsort(draws, kind="stable") if data.held_out(int(client)))
    return np.sort(np.array(list(itertools.islice(able, JUDGES)), np.int32))


def validation_loss(
    config: Config,
    method: Method,
    federation: Federation,
    data: TrainingData,
    shapes: Sequence[BlockShape],
    members: np.ndarray,
    state: FedState,
) -> float | None:
    """The mean over clients of the mean loss of their held-out examples, in nats a response token.

    Args:
      config: names the method, and has the weight of its fixed mix, which stands for instance-wise
        mixing: the loss does not depend on a weighting rule.
      method: whose state it is.
      federation: the clients, and what computes losses.
      data: the clients' held-out examples.
      shapes: the run's block shapes.
      members: the clients that judge (see `judges`).
      state: after the round.

    Returns:
      None where no client held anything out.
    """
    if not len(members):
        return None
    most = max(len(data.held_out(client)) for client in members.tolist())
    losses: list[float] = []
    for chunk in data.few(members, most, shapes):
        loss_C = _losses(config, method, federation, chunk, state)
        losses += loss_C[chunk.slots].tolist()
    return float(np.mean(losses))


def _losses(
    config: Config, method: Method, federation: Federation, chunk: Chunk, state: FedState
) -> np.ndarray:
    """Each slot's loss, with what its client answers with."""
    engine, slots = federation.engine, len(chunk.total_C)
    own_C = state.clients.take(chunk.members) if state.clients.parts else {}
    found = method.answers(state.server, own_C, chunk.members)
    mode = _mode(found, METHODS.find(config.fed.method).answers_with)
    banks = {"global": found.global_C, "local": found.local_C, **found.others}
    banks_C: dict[str, Any] = {}
    for name in ("global", "local") if mode == "fixed" else (mode,):
        bank = banks[name]
        if not bank:  # The bare base stands on that side of the mix.
            continue
        if is_shared(bank):
            banks_C[name] = copies(jax.tree.map(lambda leaf: leaf[0], bank), slots, engine.mesh)
        else:
            own = in_slots(jax.device_get(bank), chunk.slots, slots)
            banks_C[name] = put(own, engine.mesh, CLIENTS)
    objective = _objective(mode, config.weighting.fixed)
    return engine.loss(objective, banks_C, Frozen({}, {}), chunk)


def _mode(found: Answers, answers_with: str) -> str:
    """The mode that clients answer with as things stand, without a rule."""
    if answers_with in found.others:
        return answers_with
    if found.global_C is not None and found.local_C is not None:
        return "fixed" if answers_with in ("fixed", "instance") else answers_with
    return "global" if found.local_C is None else "local"


@functools.lru_cache(maxsize=16)  # One program for all rounds.
def _objective(mode: str, local_weight: float) -> Objective:
    def fixed(parts: Parts) -> list[Term]:
        weights = {"global": 1.0 - local_weight, "local": local_weight}
        return [Term(parts[name], weight) for name, weight in weights.items() if name in parts]

    def alone(parts: Parts) -> list[Term]:
        return [Term(parts[mode])]

    mix: Mix = fixed if mode == "fixed" else alone
    return Objective(mix)
