"""Local training of many clients at once: the loop around the compiled client step."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.devices.mesh import CLIENTS, gather, put, single_mesh
from feddpa_jax.models.decoder import Model
from feddpa_jax.training.rows import BlockShape, Chunk, rows_like
from feddpa_jax.training.step import Step, make_step
from feddpa_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class PhaseMetrics:
    """What one phase of a round did.

    Attributes:
      losses: by client name, the loss of every update.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
    """

    losses: dict[str, list[float]]
    real_tokens: int
    computed_tokens: int


class Engine(NamedTuple):
    """The compiled training.

    Attributes:
      train: `(adapters_C, chunk, *, key, frozen=None, local_weight=None) -> (adapters_C,
        PhaseMetrics)`; adapters of the chunk's slots, on the mesh. Beside a frozen adapter they are
        mixed at `local_weight`; by default the engine's.
      lower: `(adapter, slots, shape, *, frozen) -> jax.stages.Lowered`: the step's program for a
        client axis of `slots` places and a block shape, with or without a frozen adapter beside
        the trained ones. Takes shapes alone, of the base too; what it compiles to is what `train`
        runs, without a second compilation.
      step: the compiled step itself.
      mesh: where the clients lie.
    """

    train: Callable[..., tuple[Adapter, PhaseMetrics]]
    lower: Callable[..., jax.stages.Lowered]
    step: Any
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
    local_weight: float = 0.5,
    detach: bool = False,
    remat: bool = False,
    on_block: Callable[[int, int], None] = lambda real, computed: None,
) -> Engine:
    """The engine of a run; it compiles once for each kind of phase and block shape.

    Args:
      model: the frozen base, shared by all clients; on the mesh if there is one.
      mesh: of the axes `clients` and `model`; one device if None.
      base_mode: how the base is split over `model` (see `sharding`); if "full", a block's rows are
        split over `model` too, and layers are computed again in the backward pass.
      scale: LoRA scale, alpha / rank.
      dropout: LoRA dropout.
      learning_rate: at the first update; falls linearly to 0 over each client's training.
      max_grad_norm: each client's gradient is clipped to this norm.
      local_weight: a, the local adapter's weight while it is trained beside the frozen global one,
        where `train` is given no other.
      detach: no gradient through the frozen branch (the released code); exact otherwise.
      remat: layers are computed again in the backward pass, which saves their activations.
      on_block: called with (real, computed) tokens after every block.

    Returns:
      The engine.
    """
    mesh = single_mesh() if mesh is None else mesh

    @functools.cache
    def step_at(weight: float) -> Step:
        return make_step(
            mesh,
            base_mode=base_mode,
            scale=scale,
            dropout=dropout,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            local_weight=weight,
            detach=detach,
            remat=remat,
        )

    programs = step_at(local_weight)

    def train(
        adapters_C: Adapter,
        chunk: Chunk,
        *,
        key: jax.Array,
        frozen: Adapter | None = None,
        local_weight: float = local_weight,
    ) -> tuple[Adapter, PhaseMetrics]:
        """Trains the adapters in a chunk's slots, each on its own client's data."""
        step = step_at(local_weight).step
        key_C2, total_C = put((_client_keys(key, chunk.id_C), chunk.total_C), mesh, CLIENTS)
        state = programs.start(adapters_C)
        frozen = None if frozen is None else put(frozen, mesh)
        losses = _Losses(mesh, len(chunk.total_C))
        real, computed = 0, 0
        for block in chunk.blocks:
            rows, ends_C = put((block.rows, block.ends_C), mesh, CLIENTS)
            state, loss_C = step(model, state, frozen, rows, key_C2, total_C, ends_C)
            losses.add(loss_C, block.ends_C)
            real, computed = real + block.real_tokens, computed + block.computed_tokens
            on_block(block.real_tokens, block.computed_tokens)
        curves = losses.all()
        _check_finite(chunk, gather(state.finite_C, mesh))
        by_name = {n: curves[slot] for n, slot in zip(chunk.names, chunk.slots, strict=True)}
        return state.adapters_C, PhaseMetrics(by_name, real, computed)

    lower = functools.partial(_lower, mesh, model, programs)
    return Engine(train, lower, programs.step, mesh)


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
    adapter: Adapter,
    slots: int,
    shape: BlockShape,
    *,
    frozen: bool,
) -> jax.stages.Lowered:
    """As of `Engine.lower`."""

    def spread(tree: Any, *spec: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    bank_C = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype), adapter
    )
    state = jax.eval_shape(programs.start, bank_C)
    # What every client has besides: key words, number of updates, whether one ends.
    own = [((slots, 2), np.uint32), ((slots,), np.int32), ((slots,), np.bool_)]
    return programs.step.lower(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            model,
        ),
        spread(state, CLIENTS),
        spread(adapter) if frozen else None,
        spread(rows_like(shape, mesh.shape[CLIENTS]), CLIENTS),
        *(spread(jax.ShapeDtypeStruct(size, dtype), CLIENTS) for size, dtype in own),
    )
