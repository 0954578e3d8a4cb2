"""Early stopping: each client trains until its loss on its own held-out examples stops falling.

After every epoch a client's loss on its held-out examples is computed, without dropout. It keeps
the parts of its best epoch, and stops once `patience` epochs in a row were no better; the learning
rate falls as it does without early stopping. What it sends nobody it keeps as it was if no epoch
made the loss lower, so no phase ends with a higher loss than it began with; of what it sends the
server a method may expect that it has been trained. What a client does depends on itself alone.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.devices.mesh import CLIENTS, put
from feddpa_jax.training.engine import Engine, NonFiniteError, PhaseMetrics, Stopped
from feddpa_jax.training.rows import Chunk
from feddpa_jax.training.step import Frozen, Objective, Tree


class Stopping(NamedTuple):
    """Early stopping: what a chunk's trainings are made of, epoch by epoch.

    Attributes:
      patience: epochs without a better loss on held-out examples after which a client stops.
      epochs: of a whole training.
      epoch: `(chunk, number, going)`: one epoch of those members that have not stopped.
      held_out: `(chunk, going)`: all held-out examples of these as one update.
    """

    patience: int
    epochs: int
    epoch: Callable[[Chunk, int, Collection[int]], Chunk]
    held_out: Callable[[Chunk, Collection[int]], Chunk]


def train_until_best(
    engine: Engine,
    stopping: Stopping,
    objective: Objective,
    trained_C: Tree,
    frozen: Frozen,
    chunk: Chunk,
    *,
    sends: bool,
    **given: Any,
) -> tuple[Tree, PhaseMetrics]:
    """As `Engine.train`, with early stopping: each client's parts of its best epoch.

    Args:
      engine: trains, epoch by epoch.
      stopping: when clients stop, and their work by epoch.
      objective: of the phase.
      trained_C: leaves of the chunk's slots, on the mesh.
      frozen: the parts beside them.
      chunk: whose trainings they are; its blocks stay unused.
      sends: whether clients send of these parts; if not, what they begin with counts as an epoch.
      **given: the key and learning rate of `Engine.train`.

    Raises:
      NonFiniteError: a loss or an update is not finite.
    """
    best_C, state = trained_C, engine.start(objective, trained_C)
    losses: dict[str, list[float]] = {name: [] for name in chunk.names}
    real = computed = 0
    members = chunk.members.tolist()
    going = set(members)

    def validate(held_C: Tree) -> np.ndarray:
        """The loss of every slot on its client's held-out examples."""
        loss_C = engine.loss(objective, held_C, frozen, stopping.held_out(chunk, going))
        for name, client, slot in zip(chunk.names, members, chunk.slots, strict=True):
            if client in going and not np.isfinite(loss_C[slot]):
                raise NonFiniteError(name, chunk.phase)
        return loss_C

    slots = dict(zip(members, chunk.slots.tolist(), strict=True))
    loss_C = np.full(len(chunk.total_C), np.inf) if sends else validate(trained_C)
    found = {client: Stopped(0, 0, float(loss_C[slot])) for client, slot in slots.items()}
    for number in range(stopping.epochs):
        part = stopping.epoch(chunk, number, going)
        state, done = engine.go_on(objective, state, frozen, part, **given)
        losses = {name: [*curve, *done.losses[name]] for name, curve in losses.items()}
        real, computed = real + done.real_tokens, computed + done.computed_tokens
        loss_C = validate(state.trained_C)
        better_C = np.zeros(len(loss_C), bool)
        for client in going:
            slot = slots[client]
            found[client] = _judged(found[client], number + 1, float(loss_C[slot]))
            better_C[slot] = found[client].best_epoch == number + 1
        going = {c for c in going if found[c].epochs - found[c].best_epoch < stopping.patience}
        best_C = _better(put(better_C, engine.mesh, CLIENTS), state.trained_C, best_C)
        if not going:
            break
    stopped = {name: found[client] for name, client in zip(chunk.names, members, strict=True)}
    return best_C, PhaseMetrics(losses, real, computed, stopped)


def _judged(before: Stopped, epoch: int, loss: float) -> Stopped:
    """A client's training after one more epoch."""
    if loss < before.validation:
        return Stopped(epoch, epoch, loss)
    return before._replace(epochs=epoch)


@jax.jit
def _better(better_C: jax.Array, new_C: Tree, best_C: Tree) -> Tree:
    def one(new: jax.Array, best: jax.Array) -> jax.Array:
        return jnp.where(better_C.reshape(-1, *[1] * (new.ndim - 1)), new, best)

    return jax.tree.map(one, new_C, best_C)
