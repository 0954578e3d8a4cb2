"""Training, both sides on the same work: checked without dropout, then timed in turns."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import memory
from benchmarks.agreement import Agreement, compare
from benchmarks.our_loop import Pass, compile_times, train_pass
from benchmarks.torch_loop import train_clients
from benchmarks.torch_model import TorchModel
from benchmarks.workload import first_part, fixed_updates, trainings
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.cli.console import Reporter
from feddpa_jax.config import Config
from feddpa_jax.devices.hardware import chip_of
from feddpa_jax.quantization.quantized import Quantized, dequantize
from feddpa_jax.run.beginning import make_federation, run_key
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.inputs import Prepared, make_lora, training_data
from feddpa_jax.training.engine import Engine
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape

# The check before timing: so many clients, and updates of each.
CHECKED_CLIENTS, CHECKED_UPDATES = 2, 3


class Training(NamedTuple):
    """One global phase, ready to be run.

    Attributes:
      config: the configuration.
      data: the work.
      shapes: the block shapes of a whole run of this configuration.
      engine: compiled as the run's is.
      global_: a fresh adapter, so that the first loss of each client is free of dropout (B is 0).
      key: of the dropout.
    """

    config: Config
    data: TrainingData
    shapes: Sequence[BlockShape]
    engine: Engine
    global_: Adapter
    key: jax.Array

    def ours(self) -> tuple[Pass, Adapter]:
        """One pass of ours, and the clients' trained adapters."""
        return train_pass(self.engine, self.data, self.shapes, self.global_, self.key)

    def theirs(self, model: TorchModel, *, dropout: bool = True) -> Pass:
        """One pass of the torch loop."""
        return train_clients(
            model,
            trainings(self.data),
            self.global_,
            learning_rate=self.config.fed.learning_rate,
            max_grad_norm=self.config.fed.max_grad_norm,
            dropout=dropout,
        )


class FirstPass(NamedTuple):
    """Our first pass: what it measured, and the adapters that the clients trained in it."""

    measured: dict[str, Any]
    trained_C: Adapter


def make_training(config: Config, prepared: Prepared, run: RunFolder, updates: int) -> Training:
    """The configured global phase with a fixed number of updates a client."""
    return Training(
        config=config,
        data=fixed_updates(config, prepared, updates),
        shapes=training_data(config, prepared).shapes(config.fed.rounds),
        engine=make_federation(config, prepared, run).engine,
        global_=make_lora(config, prepared).fresh(run_key(config)),
        key=run_key(config, 0),
    )


def first_pass(training: Training, held_before: int) -> FirstPass:
    """Our first pass, which compiles; before torch is loaded, so that memory is ours alone.

    Args:
      training: the work.
      held_before: bytes that the process held before the base was loaded.
    """
    with compile_times() as compiled:
        done, trained_C = training.ours()
    measured = {
        "first_pass_seconds": done.seconds,
        "compile_seconds": sum(compiled),
        "step_compilations": training.engine.compilations(),
        "peak_memory_bytes": memory.peak_bytes() - held_before,
        "device_peak_bytes": memory.device_peak_bytes(),
    }
    return FirstPass(measured, trained_C)


def check(training: Training, prepared: Prepared, run: RunFolder) -> Agreement:
    """A short run of both sides in float32 without dropout, whose losses must agree.

    In bfloat16 two right programs are some per cent apart after an update, as a wrong one would be.

    Raises:
      UserError: they do not.
    """
    config = dataclasses.replace(
        training.config,
        lora=dataclasses.replace(training.config.lora, dropout=0.0),
        model=dataclasses.replace(training.config.model, dtype="float32"),
    )

    def plain(leaf: Any) -> jax.Array:
        found = dequantize(leaf) if isinstance(leaf, Quantized) else leaf
        return found.astype(jnp.float32)

    whole = jax.tree.map(
        plain, prepared.base.model.params, is_leaf=lambda leaf: isinstance(leaf, Quantized)
    )
    # Fused kernels do not compute in float32.
    model = dataclasses.replace(prepared.base.model, params=whole, attention="explicit")
    prepared = prepared._replace(base=prepared.base._replace(model=model))
    data = first_part(training.data, clients=CHECKED_CLIENTS, updates=CHECKED_UPDATES)
    short = training._replace(
        config=config,
        data=data,
        shapes=data.shapes(1),
        engine=make_federation(config, prepared, run).engine,
    )
    ours, _ = short.ours()
    theirs = short.theirs(TorchModel(config, prepared.base), dropout=False)
    return compare(ours.losses, theirs.losses, config.model.dtype)


def time_training(
    training: Training,
    prepared: Prepared,
    first: FirstPass,
    model: TorchModel | None,
    repeat: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Passes of both sides in turns.

    Args:
      training: the work.
      prepared: base and devices.
      first: our first pass.
      model: the torch side, checked; None measures ours alone.
      repeat: passes of each side.
      reporter: gets a message for every pass.

    Raises:
      UserError: the first losses of the timed passes differ.
    """
    sides: dict[str, Callable[[], Pass]] = {"ours": lambda: training.ours()[0]}
    if model is not None:
        sides["torch"] = lambda: training.theirs(model)
    passes: dict[str, list[Pass]] = {side: [] for side in sides}
    for number in range(repeat):
        for side, run in sides.items():
            done = run()
            passes[side].append(done)
            rate = done.real_tokens / done.seconds
            reporter.say(f"training, pass {number + 1} of {repeat}: {side} {rate:,.0f} tokens/s")
    adapter_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(training.global_))
    result: dict[str, Any] = {
        "clients": len(training.data.names),
        "updates_per_client": len(training.data.updates_of(0, 0, "global")),
        "block_shapes": [[shape.rows, shape.length] for shape in training.shapes],
        "client_bytes_received": adapter_bytes,
        "client_bytes_sent": adapter_bytes,
        "ours": summary(passes["ours"]) | first.measured,
        "torch": None,
        "ratio": None,
    }
    result["ours"] |= flops_rate(training, prepared, result["ours"]["median_seconds"])
    now = training.engine.compilations()
    result["ours"]["later_compilations"] = now - first.measured["step_compilations"]
    if model is not None:
        result["torch"] = summary(passes["torch"])
        result["first_losses"] = first_losses(passes, training.config.model.dtype)._asdict()
        seconds = {side: result[side]["median_seconds"] for side in sides}
        result["ratio"] = seconds["torch"] / seconds["ours"]
    return result


def flops_rate(training: Training, prepared: Prepared, seconds: float) -> dict[str, float | None]:
    """The model's FLOPs a second, and their share of the devices' peak if that is known.

    Of real tokens: the products of frozen maps forward and of their inputs' gradients backward, and
    of the head where there is a response. Attention and adapters are left out.
    """
    config = prepared.base.model.config
    tokens = positions = 0
    for updates in trainings(training.data).values():
        for example in (e for update in updates for micro in update for e in micro):
            tokens += len(example.tokens_T)
            positions += len(example.tokens_T) - example.prompt_length
    head_flops = 4 * config.width * config.vocab_size
    rate = (config.frozen_flops * tokens + head_flops * positions) / seconds
    chip = chip_of(prepared.mesh.devices.flat[0])
    peak = None if chip is None else rate / (chip.flops * prepared.mesh.size)
    return {"model_flops_per_second": rate, "peak_share": peak}


def first_losses(passes: dict[str, list[Pass]], dtype: str) -> Agreement:
    """The timed passes' first losses, on which dropout has no effect: all clients saw the same."""
    ours, theirs = (passes[side][0] for side in ("ours", "torch"))
    assert ours.real_tokens == theirs.real_tokens
    first, other = (
        {name: curve[:1] for name, curve in one.losses.items()} for one in (ours, theirs)
    )
    return compare(first, other, dtype)


def summary(passes: Sequence[Pass]) -> dict[str, Any]:
    """The seconds of some passes over the same work, their median, and what follows from it."""
    seconds = [done.seconds for done in passes]
    real, computed = passes[0].real_tokens, passes[0].computed_tokens
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "real_tokens": real,
        "computed_tokens": computed,
        "real_share": real / computed,
        "tokens_per_second": real / statistics.median(seconds),
    }
