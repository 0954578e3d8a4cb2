"""Our side of the training: one global phase through the engine, as a run goes through it."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp

from feddpa_jax.adapters.lora import Adapter, take
from feddpa_jax.adapters.mix import alone
from feddpa_jax.federated.play import copies, merge_metrics
from feddpa_jax.training.engine import Engine, PhaseMetrics
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.training.step import Frozen, Objective

_ALONE = Objective(alone("global"))
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Pass(NamedTuple):
    """What one pass over the work did.

    Attributes:
      losses: by client name, the loss of every update.
      real_tokens: tokens of examples.
      computed_tokens: tokens computed, padding included.
      seconds: of wall time.
    """

    losses: dict[str, list[float]]
    real_tokens: int
    computed_tokens: int
    seconds: float


def train_pass(
    engine: Engine,
    data: TrainingData,
    shapes: Sequence[BlockShape],
    global_: Adapter,
    key: jax.Array,
) -> tuple[Pass, Adapter]:
    """Every client trains its copy of the global adapter; the trained copies, [C, ...]."""
    start = time.perf_counter()
    done: list[PhaseMetrics] = []
    trained: list[Adapter] = []
    for chunk in data.chunks(data.participants(0), 0, "global", shapes):
        copies_C = copies({"global": global_}, len(chunk.total_C), engine.mesh)
        trained_C, metrics = engine.train(_ALONE, copies_C, Frozen({}, {}), chunk, key=key)
        trained.append(take(trained_C["global"], chunk.slots))
        done.append(metrics)
    trained_C = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trained)
    jax.block_until_ready(trained_C)
    seconds = time.perf_counter() - start
    whole = merge_metrics(done)
    return Pass(whole.losses, whole.real_tokens, whole.computed_tokens, seconds), trained_C


@contextlib.contextmanager
def compile_times() -> Iterator[list[float]]:
    """Collects the seconds of every compilation while it is entered."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
