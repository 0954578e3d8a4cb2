"""The programs of a round, compiled from shapes alone, and what the compiler says of them."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from feddpa_jax.devices.hardware import Chip
from feddpa_jax.devices.mesh import CLIENTS
from feddpa_jax.federated.aggregate import weighted_sum
from feddpa_jax.federated.leaves import pick, sends
from feddpa_jax.federated.method import Method, Phase
from feddpa_jax.federated.shapes import phase_shapes
from feddpa_jax.models.decoder import Model
from feddpa_jax.plan.collectives import Collectives, find_collectives
from feddpa_jax.plan.loops import cost_of
from feddpa_jax.training.engine import Engine
from feddpa_jax.training.memory import MemoryPlan, plan_memory
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import UserError


class Program(NamedTuple):
    """A compiled program on one device.

    Attributes:
      phase: its name, or "average" for the server's mean.
      shape: rows and tokens of a block on each shard; None for the average.
      flops: of one call.
      bytes_accessed: memory traffic of one call, as the compiler counts it.
      main_bytes_accessed: of these, bytes of the device's main memory (HBM); the others stay in a
        TPU's fast memory (VMEM). An estimate (see `Cost`).
      seconds: of one call at best; None if the device's rates are not known either.
      estimate: whose that is: "compiler", or "roofline": the longer of FLOPs by the peak rate and
        main memory's traffic by its bandwidth, where the compiler makes none or an impossible one
        (it counts -1 s for operations that it knows nothing of).
      collectives: what one call sends, by kind.
      memory: while it runs; None for the average.
      compile_seconds: how long compiling took.
    """

    phase: str
    shape: BlockShape | None
    flops: float
    bytes_accessed: float
    main_bytes_accessed: float
    seconds: float | None
    estimate: str | None
    collectives: dict[str, Collectives]
    memory: MemoryPlan | None
    compile_seconds: float


def compile_steps(
    engine: Engine,
    model: Model,
    method: Method,
    phases: Sequence[Phase],
    *,
    slots: int,
    shapes: tuple[BlockShape, ...],
    limit: int | None,
    chip: Chip | None,
) -> Iterator[Program]:
    """Compiles the client step for every phase and block shape.

    Args:
      engine: whose step it is.
      model: the base, or its shapes, on the mesh.
      method: whose phases they are.
      phases: of a round.
      slots: places on the client axis, all shards' together.
      shapes: the block shapes.
      limit: bytes that the device has.
      chip: its rates; None if they are not known.

    Raises:
      UserError: a program finds no room on the device.
    """
    for phase in phases:
        trained, frozen = phase_shapes(method, phase)
        for shape in shapes:
            start = time.perf_counter()
            try:
                compiled = engine.lower(phase.objective, trained, frozen, slots, shape).compile()
            except jax.errors.JaxRuntimeError as error:
                raise _no_room(error, phase.name, shape) from None
            memory = plan_memory(
                compiled,
                model,
                trained,
                frozen,
                slots=slots // engine.mesh.shape[CLIENTS],
                limit=limit,
            )
            seconds = time.perf_counter() - start
            yield _program(phase.name, shape, compiled, memory, chip, seconds)


def compile_averages(
    engine: Engine,
    method: Method,
    phases: Sequence[Phase],
    slots: int,
    chip: Chip | None = None,
) -> Iterator[Program]:
    """Compiles the server's average, or sum, of what the clients send in each phase."""
    split = NamedSharding(engine.mesh, PartitionSpec(CLIENTS))
    for phase in phases:
        sent = pick(phase_shapes(method, phase)[0], sends(method, phase))
        if not sent or phase.reduce == "stack":
            continue
        start = time.perf_counter()
        bank = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype, sharding=split),
            sent,
        )
        share_C = jax.ShapeDtypeStruct((slots,), jnp.float32, sharding=split)
        compiled = weighted_sum.lower(bank, share_C).compile()
        yield _program("average", None, compiled, None, chip, time.perf_counter() - start)


def _program(
    phase: str,
    shape: BlockShape | None,
    compiled: jax.stages.Compiled,
    memory: MemoryPlan | None,
    chip: Chip | None,
    compile_seconds: float,
) -> Program:
    flops, traffic, main_traffic, told = cost_of(compiled)
    seconds, estimate = told or None, "compiler"
    if chip is not None and (seconds is None or seconds < flops / chip.flops):
        seconds, estimate = max(flops / chip.flops, main_traffic / chip.bandwidth), "roofline"
    return Program(
        phase=phase,
        shape=shape,
        flops=flops,
        bytes_accessed=traffic,
        main_bytes_accessed=main_traffic,
        seconds=seconds,
        estimate=None if seconds is None else estimate,
        collectives=find_collectives(compiled.as_text() or ""),
        memory=memory,
        compile_seconds=compile_seconds,
    )


def _no_room(error: Exception, phase: str, shape: BlockShape) -> Exception:
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        return error
    said = next(
        (line.strip() for line in message.splitlines() if "Used " in line or "hbm" in line), message
    )
    return UserError(
        f"plan: the {phase} phase finds no room for blocks of {shape.rows} x {shape.length} "
        f"({said[:160]}); lower fed.block_tokens or fed.clients_per_step, set model.remat to "
        "layer, or raise mesh.model"
    )
