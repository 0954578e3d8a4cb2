"""Federated methods: functions on a state, their inputs, and the two phases.

A method is a function of `Parts`, registered with what a run must know about it:

    @METHODS.register(answers_with="instance", phases={"local": True, "global": False})
    def feddpa_t(parts): ...
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.devices.mesh import CLIENTS, gather, put
from feddpa_jax.federated.aggregate import shares, weighted_sum
from feddpa_jax.federated.clients import AdapterStore, LocalAdapters
from feddpa_jax.registry import Registry
from feddpa_jax.training.engine import Engine, PhaseMetrics
from feddpa_jax.training.rounds import RoundData


class FedState(NamedTuple):
    """The state of a federation between rounds.

    Attributes:
      global_: the adapter that all clients share, or None if the method has none.
      local: every client's own adapter, or None if the method has none (yet).

    Example:
      ```
      state = run.train()
      own = state.local.take([0])  # {target: {"a": [1, L, D, R], "b": [1, L, R, E]}}
      ```
    """

    global_: Adapter | None
    local: LocalAdapters | None


Metrics = dict[str, PhaseMetrics]
Part = TypeVar("Part")


class Parts(NamedTuple):
    """What a method is built from.

    Attributes:
      engine: trains many clients' adapters at once.
      new_adapter: a fresh adapter from a key.
      aggregation: the server's mean, "uniform" or by number of "examples".
      names: the clients' names.
      id_C: a number for each client that follows from its name alone.
      store: where local adapters lie.
      local_weight: a, the local adapter's weight while it is trained beside the global one.
    """

    engine: Engine
    new_adapter: Callable[[jax.Array], Adapter]
    aggregation: str
    names: tuple[str, ...]
    id_C: np.ndarray
    store: AdapterStore
    local_weight: float = 0.5


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


class Entry(NamedTuple):
    """A registered method.

    Attributes:
      build: makes it from its parts.
      answers_with: the inference mode that it is judged by.
      personalizes: whether one personalization of all clients follows the last round.
      pooled: whether all clients' data are trained on as one client's.
      phases: the phases of a round; for each, whether a frozen adapter is beside the trained ones.
      title: its name in texts.
    """

    build: Callable[[Parts], Method]
    answers_with: str = "instance"
    personalizes: bool = False
    pooled: bool = False
    phases: Mapping[str, bool] = MappingProxyType({"global": False})
    title: str = ""


# The inference modes that a method may be judged by.
_MODES = ("global", "local", "fixed", "instance")


def _entry(build: Any, **known: Any) -> Entry:
    if isinstance(build, Entry):
        return build._replace(**known)
    if not callable(build):
        raise TypeError("a method is a function of Parts")
    title = known.pop("title", "") or getattr(build, "__name__", str(build))
    entry = Entry(cast(Any, build), **known, title=title)
    if entry.answers_with not in _MODES:
        modes = ", ".join(_MODES)
        raise ValueError(f"answers_with: {entry.answers_with!r} is no mode; there are {modes}")
    return entry


METHODS: Registry[Entry] = Registry(
    "method",
    "fed.method",
    group="feddpa_jax.methods",
    modules=("feddpa_jax.federated",),
    wrap=_entry,
)


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


class Copies(NamedTuple):
    """Trained copies of the global adapter, of some of a round's participants.

    Attributes:
      adapters_C: the copies; slots without a participant hold anything.
      share_C: each one's share in the round's average; 0 in slots without a participant.
      metrics: of their training.
    """

    adapters_C: Adapter
    share_C: jax.Array
    metrics: PhaseMetrics


def train_copies(
    parts: Parts, global_: Adapter, data: RoundData, *, key: jax.Array
) -> Iterator[Copies]:
    """Every participant trains its copy of the global adapter, as many at once as fit.

    Args:
      parts: engine and clients.
      global_: what they copy.
      data: the round's.
      key: of the dropout.
    """
    engine = parts.engine
    share = dict(
        zip(data.participants.tolist(), shares(data.examples, parts.aggregation), strict=True)
    )
    for chunk in data.chunks("global"):
        copies_C = copies(global_, len(chunk.total_C), engine.mesh)
        trained_C, metrics = engine.train(copies_C, chunk, key=key)
        share_C = np.zeros(len(chunk.total_C), np.float32)
        share_C[chunk.slots] = [share[c] for c in chunk.members.tolist()]
        yield Copies(trained_C, put(share_C, engine.mesh, CLIENTS), metrics)


def add(total: Adapter | None, part: Adapter) -> Adapter:
    """The sum of two adapters, of which the first may not be there yet."""
    return part if total is None else jax.tree.map(jnp.add, total, part)


def global_phase(
    parts: Parts, global_: Adapter, data: RoundData, *, key: jax.Array
) -> tuple[Adapter, PhaseMetrics]:
    """Every participant trains its copy of the global adapter; the server averages the copies."""
    average, done = None, []
    for copies in train_copies(parts, global_, data, key=key):
        average = add(average, weighted_sum(copies.adapters_C, copies.share_C))
        done.append(copies.metrics)
    return need(average), merge_metrics(done)


def local_phase(
    parts: Parts,
    local: LocalAdapters,
    data: RoundData,
    *,
    phase: str,
    key: jax.Array,
    frozen: Adapter | None = None,
    local_weight: float | None = None,
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
      local_weight: a, where one is: y = x W + s ((1 - a) frozen + a own); by default the parts'.
      start: what all participants start from; their own adapters if None.
    """
    engine = parts.engine
    weight = parts.local_weight if local_weight is None else local_weight
    done = []
    for chunk in data.chunks(phase):
        slots = len(chunk.total_C)
        if start is not None:
            own_C = copies(start, slots, engine.mesh)
        else:
            own_C = put(
                _in_slots(local.take(chunk.members), chunk.slots, slots), engine.mesh, CLIENTS
            )
        own_C, metrics = engine.train(own_C, chunk, key=key, frozen=frozen, local_weight=weight)
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
    """The metrics of all chunks of a phase together."""
    losses: Mapping[str, list[float]] = {
        name: curve for part in parts for name, curve in part.losses.items()
    }
    return PhaseMetrics(
        dict(losses),
        sum(part.real_tokens for part in parts),
        sum(part.computed_tokens for part in parts),
    )
