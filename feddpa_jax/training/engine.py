"""Local training of many clients at once: the loop around the compiled client step."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.devices.mesh import CLIENTS, gather, put, single_mesh
from feddpa_jax.models.decoder import Model
from feddpa_jax.models.remat import Remat
from feddpa_jax.training.rows import BlockShape, Chunk, rows_like
from feddpa_jax.training.step import Frozen, Objective, Step, TrainState, Tree, make_step
from feddpa_jax.types import UserError


class Stopped(NamedTuple):
    """How a client's training ended.

    Attributes:
      epochs: passes over its data.
      best_epoch: the one whose parts it keeps, counted from 1; 0 where it keeps what it began with.
      validation: the loss on its held-out examples then, in nats per response token.
    """

    epochs: int
    best_epoch: int
    validation: float


@dataclasses.dataclass(frozen=True)
class PhaseMetrics:
    """What one phase of a round did.

    Attributes:
      losses: by client name, the loss of every update.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
      stopped: by client name, how its training ended, where held-out examples decided it.
    """

    losses: dict[str, list[float]]
    real_tokens: int
    computed_tokens: int
    stopped: dict[str, Stopped] = dataclasses.field(default_factory=dict)


class Engine(NamedTuple):
    """The compiled training.

    Attributes:
      train: `(objective, trained_C, frozen, chunk, *, key, learning_rate=None) -> (trained_C,
        PhaseMetrics)`; leaves of the chunk's slots, on the mesh. The learning rate is the engine's
        by default.
      start: `(objective, trained_C) -> TrainState`, and
      go_on: `(objective, state, frozen, chunk, *, key, learning_rate=None) -> (state,
        PhaseMetrics)`: `train` in several calls, each with some of the clients' next updates; the
        chunk's `total_C` is of all calls. The state is donated.
      loss: `(objective, trained_C, frozen, chunk) -> loss_C`: each slot's loss on a chunk, in nats
        per response token, without dropout and without a step.
      lower: `(objective, trained, frozen, slots, shape) -> jax.stages.Lowered`: the step's program
        for a client axis of `slots` places and a block shape. Takes shapes alone, those of one
        client, of the base too; what it compiles to is what `train` runs, without a second
        compilation.
      compilations: `() -> int`: how many programs of the step have been compiled.
      mesh: where the clients lie.
    """

    train: Callable[..., tuple[Tree, PhaseMetrics]]
    start: Callable[[Objective, Tree], TrainState]
    go_on: Callable[..., tuple[TrainState, PhaseMetrics]]
    loss: Callable[..., np.ndarray]
    lower: Callable[..., jax.stages.Lowered]
    compilations: Callable[[], int]
    mesh: Mesh


class NonFiniteError(UserError):
    """A client's loss or update is not finite."""

    def __init__(self, client: str, phase: str):
        """Args: the client's name, and the phase's."""
        super().__init__(
            f"client {client!r}, {phase} phase: the loss or an update is not finite; lower "
            "fed.learning_rate, or look for damaged examples"
        )


class _Losses:
    """Every slot's losses; they are read a block late, so that one block stays in flight."""

    def __init__(self, mesh: Mesh, slots: int):
        self._mesh = mesh
        self._curves: list[list[float]] = [[] for _ in range(slots)]
        self._waiting: collections.deque[tuple[jax.Array, np.ndarray]] = collections.deque()

    def add(self, loss_C: jax.Array, ends_C: np.ndarray) -> None:
        """Takes a block's losses; returns once those of the block before are there."""
        self._waiting.append((loss_C, ends_C))
        if len(self._waiting) > 1:
            # Progress counts what was computed.
            self._settle()

    def all(self) -> list[list[float]]:
        """By slot the loss of every update."""
        while self._waiting:
            self._settle()
        return self._curves

    def _settle(self) -> None:
        waiting_C, ends_C = self._waiting.popleft()
        loss_C = gather(waiting_C, self._mesh)
        for c in np.flatnonzero(ends_C):
            self._curves[c].append(float(loss_C[c]))


def make_engine(
    model: Model,
    *,
    mesh: Mesh | None = None,
    base_mode: str = "tensor",
    scale: float,
    dropout: float = 0.0,
    learning_rate: float,
    max_grad_norm: float = 1.0,
    remat: Remat = "none",
    on_block: Callable[[int, int], None] = lambda real, computed: None,
) -> Engine:
    """The engine of a run; it compiles once for each objective and block shape.

    Args:
      model: the frozen base, shared by all clients; on the mesh if there is one.
      mesh: of the axes `clients` and `model`; one device if None.
      base_mode: how the base is split over `model` (see `sharding`); if "full", a block's rows are
        split over `model` too, and layers are computed again in the backward pass.
      scale: LoRA scale, alpha / rank.
      dropout: LoRA dropout.
      learning_rate: at the first update; falls linearly to 0 over each client's training.
      max_grad_norm: each client's gradient is clipped to this norm.
      remat: what layers hold for the backward pass; the rest is computed again.
      on_block: called with (real, computed) tokens after every block.

    Returns:
      The engine.
    """
    mesh = single_mesh() if mesh is None else mesh
    make = functools.partial(
        make_step,
        mesh,
        base_mode=base_mode,
        scale=scale,
        dropout=dropout,
        max_grad_norm=max_grad_norm,
        remat=remat,
    )
    programs = _Programs(model, mesh, make, learning_rate, on_block)
    return Engine(
        programs.train,
        programs.start,
        programs.go_on,
        programs.loss,
        programs.lower,
        programs.compilations,
        mesh,
    )


class _Programs:
    """The steps of an engine, of which each objective has one, and the loops around them."""

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        make: Callable[[Objective], Step],
        learning_rate: float,
        on_block: Callable[[int, int], None],
    ):
        self._model, self._mesh, self._make = model, mesh, make
        self._learning_rate, self._on_block = learning_rate, on_block
        self._steps: dict[Objective, Step] = {}

    def _step_of(self, objective: Objective) -> Step:
        if objective not in self._steps:
            self._steps[objective] = self._make(objective)
        return self._steps[objective]

    def _put(self, frozen: Frozen) -> Frozen:
        return Frozen(put(frozen.shared, self._mesh), put(frozen.own_C, self._mesh, CLIENTS))

    def compilations(self) -> int:
        """How many programs of the step have been compiled."""
        return sum(programs.step._cache_size() for programs in self._steps.values())

    def start(self, objective: Objective, trained_C: Tree) -> TrainState:
        """The state of trainings that begin."""
        return self._step_of(objective).start(trained_C)

    def go_on(
        self,
        objective: Objective,
        state: TrainState,
        frozen: Frozen,
        chunk: Chunk,
        *,
        key: jax.Array,
        learning_rate: float | None = None,
    ) -> tuple[TrainState, PhaseMetrics]:
        """Trains the leaves in a chunk's slots, each on its own client's data."""
        step, mesh = self._step_of(objective).step, self._mesh
        key_C2, total_C = put((_client_keys(key, chunk.id_C), chunk.total_C), mesh, CLIENTS)
        rate = self._learning_rate if learning_rate is None else learning_rate
        rate, frozen = put(np.float32(rate), mesh), self._put(frozen)
        losses = _Losses(mesh, len(chunk.total_C))
        real, computed = 0, 0
        for block in chunk.blocks:
            rows, ends_C = put((block.rows, block.ends_C), mesh, CLIENTS)
            state, loss_C = step(self._model, state, frozen, rows, key_C2, total_C, ends_C, rate)
            losses.add(loss_C, block.ends_C)
            real, computed = real + block.real_tokens, computed + block.computed_tokens
            self._on_block(block.real_tokens, block.computed_tokens)
        curves = losses.all()
        _check_finite(chunk, gather(state.finite_C, mesh))
        by_name = {n: curves[slot] for n, slot in zip(chunk.names, chunk.slots, strict=True)}
        return state, PhaseMetrics(by_name, real, computed)

    def train(
        self, objective: Objective, trained_C: Tree, frozen: Frozen, chunk: Chunk, **given: Any
    ) -> tuple[Tree, PhaseMetrics]:
        """A chunk's whole trainings."""
        state = self.start(objective, trained_C)
        state, metrics = self.go_on(objective, state, frozen, chunk, **given)
        return state.trained_C, metrics

    def loss(
        self, objective: Objective, trained_C: Tree, frozen: Frozen, chunk: Chunk
    ) -> np.ndarray:
        """Each slot's loss on a chunk."""
        frozen, total_C = self._put(frozen), np.zeros(len(chunk.total_C), np.float32)
        loss = self._step_of(objective).loss
        for block in chunk.blocks:
            rows = put(block.rows, self._mesh, CLIENTS)
            total_C += gather(loss(self._model, trained_C, frozen, rows), self._mesh)
        return total_C / np.maximum(chunk.total_C, 1)

    def lower(
        self, objective: Objective, trained: Tree, frozen: Frozen, slots: int, shape: BlockShape
    ) -> jax.stages.Lowered:
        """The step's program, of shapes alone."""
        return _lower(
            self._mesh, self._model, self._step_of(objective), trained, frozen, slots, shape
        )


def _client_keys(key: jax.Array, id_C: np.ndarray) -> np.ndarray:
    """Each client's key, as words."""
    return np.asarray(
        jax.random.key_data(jax.vmap(lambda ident: jax.random.fold_in(key, ident))(id_C))
    )


def _check_finite(chunk: Chunk, finite_C: np.ndarray) -> None:
    for name, slot in zip(chunk.names, chunk.slots, strict=True):
        if not finite_C[slot]:
            raise NonFiniteError(name, chunk.phase)


def _lower(
    mesh: Mesh,
    model: Model,
    programs: Step,
    trained: Tree,
    frozen: Frozen,
    slots: int,
    shape: BlockShape,
) -> jax.stages.Lowered:
    """As of `Engine.lower`."""

    def spread(tree: Any, *spec: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    def bank(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype), tree
        )

    state = jax.eval_shape(programs.start, bank(trained))
    # What every client has besides: key words, number of updates, whether one ends.
    own = [((slots, 2), np.uint32), ((slots,), np.int32), ((slots,), np.bool_)]
    return programs.step.lower(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            model,
        ),
        spread(state, CLIENTS),
        Frozen(spread(frozen.shared), spread(bank(frozen.own_C), CLIENTS)),
        spread(rows_like(shape, mesh.shape[CLIENTS]), CLIENTS),
        *(spread(jax.ShapeDtypeStruct(size, dtype), CLIENTS) for size, dtype in own),
        spread(jax.ShapeDtypeStruct((), np.float32)),
    )
