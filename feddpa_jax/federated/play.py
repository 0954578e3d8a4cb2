"""A round of any method: its phases, one after the other, and the server's step behind each."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.devices.mesh import CLIENTS, gather, put
from feddpa_jax.devices.processes import from_first
from feddpa_jax.federated.aggregate import shares, weighted_sum
from feddpa_jax.federated.clients import ClientParts, PartStore
from feddpa_jax.federated.leaves import by_part, pick, sends, sort_leaves, trains_own
from feddpa_jax.federated.method import FedState, Method, Metrics, Phase, Search
from feddpa_jax.federated.server import Moment, Uploads, replaced, take_mean
from feddpa_jax.federated.server_optimizer import follow
from feddpa_jax.training.engine import Engine, PhaseMetrics
from feddpa_jax.training.rounds import RoundData
from feddpa_jax.training.rows import Chunk
from feddpa_jax.training.step import Frozen
from feddpa_jax.training.stopping import train_until_best
from feddpa_jax.types import client_id

_log = logging.getLogger(__name__)


class Federation(NamedTuple):
    """What plays a method: the clients, and what trains them.

    Attributes:
      engine: trains many clients at once.
      names: the clients' names.
      id_C: a number for each client that follows from its name alone.
      store: where the clients' own parts lie.
      aggregation: the server's mean, "uniform" or by number of "examples".
    """

    engine: Engine
    names: tuple[str, ...]
    id_C: np.ndarray
    store: PartStore
    aggregation: Literal["uniform", "examples"] = "uniform"


def start(method: Method, federation: Federation, key: jax.Array) -> FedState:
    """The state before the first round."""
    server = {name: new() for name, new in _server_parts(method, key).items()}
    return FedState(server, fresh_clients(method, federation, key))


def _server_parts(method: Method, key: jax.Array) -> dict[str, Callable[[], Any]]:
    """What makes the server's parts before the first round."""
    server_key, _ = jax.random.split(key)
    found: dict[str, Callable[[], Any]] = {}
    for name, part in method.parts.items():
        if part.scope == "server":
            assert callable(part.new), "a server's part is made from a key"
            own_key = _named(server_key, name) if found else server_key
            found[name] = functools.partial(part.new, own_key)
    return found


def fresh_clients(method: Method, federation: Federation, key: jax.Array) -> ClientParts:
    """Clients that have not trained: their parts follow from the key and their names."""
    _, client_key = jax.random.split(key)
    own = {name: part for name, part in method.parts.items() if part.scope == "client"}
    fresh: dict[str, Callable[..., Any]] = {}
    for name, part in own.items():
        if isinstance(part.new, str):
            fresh[name] = _same_for_all(_server_parts(method, key)[part.new])
        elif part.new is not None:
            own_key = _named(client_key, name) if fresh else client_key
            fresh[name] = _fresh(part.new, federation.id_C, own_key)
    return ClientParts(federation.names, federation.store, tuple(own), fresh)


def _named(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, client_id(name))


def _fresh(new: Callable[..., Any], id_C: np.ndarray, key: jax.Array) -> Callable[..., Any]:
    make = jax.jit(jax.vmap(lambda ident: new(jax.random.fold_in(key, ident))))
    return lambda members: make(id_C[list(members)])


def _same_for_all(new: Callable[[], Any]) -> Callable[..., Any]:
    return lambda members: jax.tree.map(
        lambda leaf: jnp.repeat(leaf[None], len(members), axis=0), new()
    )


def play_phases(
    method: Method,
    federation: Federation,
    state: FedState,
    data: Callable[[bool], RoundData],
    phases: tuple[Phase, ...],
    *,
    key: jax.Array,
    learning_rate: float,
) -> tuple[FedState, Metrics]:
    """Plays the phases of a round.

    Args:
      method: whose they are.
      federation: the clients, and what trains them.
      state: before the round.
      data: the round's, of its participants or, from true, of all clients.
      phases: of this round, in their order.
      key: of everything random in the round.
      learning_rate: at each local training's first update.

    Returns:
      The state after the round, and by phase what it did.
    """
    metrics: Metrics = {}
    for phase in phases:
        own_key = key if phase.stream is None else jax.random.split(key, 2)[phase.stream]
        own_data = data(phase.everybody or phase.after)
        played = _Phase(method, federation, phase, own_data, own_key, learning_rate)
        state, metrics[phase.name] = played(state)
    return state, metrics


class _Phase(NamedTuple):
    """A phase of one round."""

    method: Method
    federation: Federation
    phase: Phase
    data: RoundData
    key: jax.Array
    learning_rate: float

    def __call__(self, state: FedState) -> tuple[FedState, PhaseMetrics]:
        """Trains chunk by chunk, and takes the server's step."""
        data, phase = self.data, self.phase
        share_K = shares(data.examples, self.federation.aggregation)
        share = dict(zip(data.participants.tolist(), share_K.tolist(), strict=True))
        clients, total, stack, done = state.clients, None, [], []
        searched = phase.search
        chunks = data.chunks(phase.name) if searched is None else data.few(searched.examples)
        for chunk in chunks:
            own_C = clients.take(chunk.members) if self._reads_clients() else {}
            trained_C, metrics = self._train(state.server, own_C, chunk)
            done.append(metrics)
            sent_C = self._sent(trained_C, own_C, chunk)
            if sent_C and phase.reduce == "stack":
                stack.append(_at(gather(sent_C, self.federation.engine.mesh), chunk.slots))
            elif sent_C:
                total = _add(total, weighted_sum(sent_C, self._weights(share, chunk)))
            clients = self._keep(clients, own_C, trained_C, chunk)
        sent = total
        if stack:
            parts_K = jax.tree.map(lambda *leaves: np.concatenate(leaves), *stack)
            sent = Uploads(parts_K, share_K, data.participants)
        server = state.server if sent is None else self._step(state.server, sent)
        return FedState(server, clients), merge_metrics(done)

    def _reads_clients(self) -> bool:
        """Whether the phase looks at what the clients hold."""
        phase = self.phase
        named = [name for name in by_part(phase.train) if name not in phase.start]
        own = [n for n in [*named, *phase.beside] if n in self.method.parts]
        sees = any(self.method.parts[name].scope == "client" for name in own)
        return sees or phase.receive is not None or phase.upload is not None or bool(phase.keep)

    def _train(
        self, server: Mapping[str, Any], own_C: Mapping[str, Any], chunk: Chunk
    ) -> tuple[Any, PhaseMetrics]:
        """Trains a chunk's clients; the trained leaves, by slot."""
        mesh, slots = self.federation.engine.mesh, len(chunk.total_C)
        received: Mapping[str, Any] = {}
        if self.phase.receive is not None:
            received = jax.device_get(self.phase.receive(server, own_C, chunk.members))
        found = sort_leaves(self.method, self.phase, server, own_C, received)

        def on_mesh(bank: Any) -> Any:
            return put(in_slots(bank, chunk.slots, slots), mesh, CLIENTS)

        copied_C = copies(found.copied, slots, mesh) if found.copied else {}
        trained_C = {**copied_C, **on_mesh(found.banked)}
        frozen = Frozen(put(found.shared, mesh), on_mesh(found.beside))
        if self.phase.search is not None:
            return self._search(self.phase.search, trained_C, frozen, chunk)
        engine, stopping = self.federation.engine, self.data.stopping
        train = engine.train
        if stopping is not None and trains_own(self.method, self.phase):
            sent = bool(self.phase.upload or sends(self.method, self.phase))
            train = functools.partial(train_until_best, engine, stopping, sends=sent)
        return train(
            self.phase.objective,
            trained_C,
            frozen,
            chunk,
            key=self.key,
            learning_rate=self.learning_rate,
        )

    def _search(
        self, search: Search, start_C: Any, frozen: Frozen, chunk: Chunk
    ) -> tuple[Any, PhaseMetrics]:
        """Finds a chunk's parts without gradients; told are the losses before and after."""
        engine, mesh = self.federation.engine, self.federation.engine.mesh
        chunk = chunk._replace(blocks=tuple(chunk.blocks))
        # It trains on nothing, so the bar of trained tokens stands still meanwhile.
        _log.info(
            f"{self.phase.name}: searches without gradients, {len(chunk.members)} clients with at "
            f"most {search.examples} examples each; this may take minutes"
        )

        def losses(values_C: Any) -> np.ndarray:
            on_mesh = put(values_C, mesh, CLIENTS)
            return engine.loss(self.phase.objective, on_mesh, frozen, chunk)

        host_C = gather(start_C, mesh)
        found_C = search.find(losses, host_C)
        told_C = np.stack([losses(host_C), losses(found_C)], axis=1)
        curves = {
            name: told_C[slot].tolist() for name, slot in zip(chunk.names, chunk.slots, strict=True)
        }
        return put(found_C, mesh, CLIENTS), PhaseMetrics(curves, 0, 0)

    def _sent(self, trained_C: Any, own_C: Any, chunk: Chunk) -> Any:
        """What a chunk's slots send to the server."""
        phase, mesh, slots = self.phase, self.federation.engine.mesh, len(chunk.total_C)
        if phase.upload is not None:
            before_C = put(in_slots(own_C, chunk.slots, slots), mesh, CLIENTS)
            return _upload(phase.upload, trained_C, before_C)
        return pick(trained_C, sends(self.method, phase))

    def _weights(self, share: Mapping[int, float], chunk: Chunk) -> jax.Array:
        """Each slot's weight in the sum; 0 in slots without a participant."""
        weight_C = np.zeros(len(chunk.total_C), np.float32)
        summed = self.phase.reduce == "sum"
        weight_C[chunk.slots] = [1.0 if summed else share[c] for c in chunk.members.tolist()]
        return put(weight_C, self.federation.engine.mesh, CLIENTS)

    def _keep(
        self, clients: ClientParts, own_C: Mapping[str, Any], trained_C: Any, chunk: Chunk
    ) -> ClientParts:
        """The clients' own trained parts, each in its client's place."""
        mesh, keep = self.federation.engine.mesh, self.phase.keep
        own = {n: t for n, t in trained_C.items() if self.method.parts[n].scope == "client"}
        host_C = _at(gather(own if keep is None else trained_C, mesh), chunk.slots)
        if keep is not None:
            host_C = keep(host_C, dict(own_C), self.data.number)
        if not host_C:
            return clients
        whole_C = {
            name: replaced(own_C[name], tree) if name in own_C else tree
            for name, tree in host_C.items()
        }
        return clients.put(chunk.members, whole_C, self.data.number)

    def _step(self, server: dict[str, Any], sent: Any) -> dict[str, Any]:
        """The server's parts after its step."""
        moment = Moment(
            self.data.number, _named(self.key, f"server {self.phase.name}"), self.data.participants
        )
        optimizer, mesh = self.phase.optimizer, self.federation.engine.mesh
        if optimizer is not None:
            names, name = sends(self.method, self.phase), self.phase.name
            return {**server, **_follow(optimizer, name, names, sent, put(server, mesh))}
        step = take_mean if self.phase.server is None else self.phase.server
        if self.phase.reduce == "stack":
            # On the host, where another machine may round a decomposition, or cluster, otherwise.
            return {**server, **from_first(lambda: step(sent, server, moment))}
        return {**server, **step(sent, server, moment)}


# One program, so that all processes of a run compute the same.
_follow = jax.jit(follow, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=0)
def _upload(upload: Callable[..., Any], trained_C: Any, before_C: Any) -> Any:
    return upload(trained_C, before_C)


def copies(tree: Any, count: int, mesh: Mesh) -> Any:
    """The same part for `count` clients, spread over the mesh."""
    return _spread(put(tree, mesh), count, mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _spread(tree: Any, count: int, mesh: Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec(CLIENTS))
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(
            jnp.broadcast_to(leaf, (count, *leaf.shape)), sharding
        ),
        tree,
    )


def _add(total: Any, part: Any) -> Any:
    return part if total is None else jax.tree.map(jnp.add, total, part)


def _at(tree: Any, slots: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[slots], tree)


def in_slots(bank: Any, slots: np.ndarray, count: int) -> Any:
    """Clients' leaves at their slots, on the host; 0 in the others."""

    def one(leaf: np.ndarray) -> np.ndarray:
        out = np.zeros((count, *leaf.shape[1:]), leaf.dtype)
        out[slots] = leaf
        return out

    return jax.tree.map(one, bank)


def merge_metrics(parts: list[PhaseMetrics]) -> PhaseMetrics:
    """The metrics of all chunks of a phase together."""
    losses: Mapping[str, list[float]] = {
        name: curve for part in parts for name, curve in part.losses.items()
    }
    return PhaseMetrics(
        dict(losses),
        sum(part.real_tokens for part in parts),
        sum(part.computed_tokens for part in parts),
        {name: stopped for part in parts for name, stopped in part.stopped.items()},
    )
