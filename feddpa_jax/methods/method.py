"""What a federated method is: functions on a state, what they are given, and the two phases."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.devices.mesh import CLIENTS, gather, put
from feddpa_jax.methods.aggregate import shares, weighted_sum
from feddpa_jax.methods.clients import AdapterStore, LocalAdapters
from feddpa_jax.training.engine import Engine, PhaseMetrics
from feddpa_jax.training.rounds import RoundData


class FedState(NamedTuple):
    """What a federation carries from round to round.

    Attributes:
      global_: the adapter that all clients share, or None if the method has none.
      local: every client's own adapter, or None if the method has none (yet).
    """

    global_: Adapter | None
    local: LocalAdapters | None


Metrics = dict[str, PhaseMetrics]
Part = TypeVar("Part")


class Parts(NamedTuple):
    """What methods are built from.

    Attributes:
      engine: trains many clients' adapters at once.
      new_adapter: a fresh adapter from a key.
      aggregation: the server's mean, "uniform" or by number of "examples".
      names: the clients' names.
      id_C: a number for each client that follows from its name alone.
      store: where local adapters lie.
    """

    engine: Engine
    new_adapter: Callable[[jax.Array], Adapter]
    aggregation: str
    names: tuple[str, ...]
    id_C: np.ndarray
    store: AdapterStore


class Method(NamedTuple):
    """A federated method.

    Attributes:
      init: `key -> FedState`.
      round: `(state, data, *, key) -> (state, metrics)`.
      personalize: same signature; one extra round of all clients after the last, or None.
    """

    init: Callable[..., FedState]
    round: Callable[..., tuple[FedState, Metrics]]
    personalize: Callable[..., tuple[FedState, Metrics]] | None = None


def fresh_local(parts: Parts, key: jax.Array) -> LocalAdapters:
    """Local adapters of which each follows from the key and the client's number alone."""
    new = jax.jit(jax.vmap(lambda ident: parts.new_adapter(jax.random.fold_in(key, ident))))
    return LocalAdapters(parts.names, parts.store, lambda members: new(parts.id_C[list(members)]))


def need(part: Part | None) -> Part:
    """A part of the state that the method's own `init` or `personalize` has put there."""
    assert part is not None, "the state lacks an adapter that this method needs"
    return part


def copies(adapter: Adapter, count: int, mesh: Mesh) -> Adapter:
    """The same adapter for `count` clients, spread over the mesh."""
    return _spread(put(adapter, mesh), count, mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _spread(adapter: Adapter, count: int, mesh: Mesh) -> Adapter:
    sharding = NamedSharding(mesh, PartitionSpec(CLIENTS))
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            jnp.broadcast_to(leaf, (count, *leaf.shape)), sharding
        ),
        adapter,
    )


def global_phase(
    parts: Parts, global_: Adapter, data: RoundData, *, key: jax.Array
) -> tuple[Adapter, PhaseMetrics]:
    """Every participant trains its copy of the global adapter; the server averages the copies."""
    engine = parts.engine
    share = dict(
        zip(data.participants.tolist(), shares(data.examples, parts.aggregation), strict=True)
    )
    total: Adapter | None = None
    done = []
    for chunk in data.chunks("global"):
        copies_C = copies(global_, len(chunk.total_C), engine.mesh)
        trained_C, metrics = engine.train(copies_C, chunk, key=key)
        share_C = np.zeros(len(chunk.total_C), np.float32)
        share_C[chunk.slots] = [share[c] for c in chunk.members.tolist()]
        part = weighted_sum(trained_C, put(share_C, engine.mesh, CLIENTS))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
        done.append(metrics)
    return need(total), merge_metrics(done)


def local_phase(
    parts: Parts,
    local: LocalAdapters,
    data: RoundData,
    *,
    phase: str,
    key: jax.Array,
    frozen: Adapter | None = None,
    start: Adapter | None = None,
) -> tuple[LocalAdapters, PhaseMetrics]:
    """Every participant trains its own adapter, beside the frozen one if there is one.

    Args:
      parts: engine and clients.
      local: all clients' adapters.
      data: the round's.
      phase: its name.
      key: of the dropout.
      frozen: the global adapter that is mixed in, or None.
      start: what all participants start from; their own adapters if None.
    """
    engine = parts.engine
    done = []
    for chunk in data.chunks(phase):
        slots = len(chunk.total_C)
        if start is not None:
            own_C = copies(start, slots, engine.mesh)
        else:
            own_C = put(
                _in_slots(local.take(chunk.members), chunk.slots, slots), engine.mesh, CLIENTS
            )
        own_C, metrics = engine.train(own_C, chunk, key=key, frozen=frozen)
        host_C = jax.tree.map(lambda leaf, at=chunk.slots: leaf[at], gather(own_C, engine.mesh))
        local = local.put(chunk.members, host_C, data.number)
        done.append(metrics)
    return local, merge_metrics(done)


def _in_slots(adapters_C: Adapter, slots: np.ndarray, count: int) -> Adapter:
    def one(leaf: np.ndarray) -> np.ndarray:
        out = np.zeros((count, *leaf.shape[1:]), leaf.dtype)
        out[slots] = leaf
        return out

    return jax.tree.map(one, adapters_C)


def merge_metrics(parts: list[PhaseMetrics]) -> PhaseMetrics:
    """What the chunks of a phase did together."""
    losses: Mapping[str, list[float]] = {
        name: curve for part in parts for name, curve in part.losses.items()
    }
    return PhaseMetrics(
        dict(losses),
        sum(part.real_tokens for part in parts),
        sum(part.computed_tokens for part in parts),
    )
