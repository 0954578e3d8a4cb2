"""The parts of launch/gpu.sh that measure: each a process, whose figures are saved as they come.

`python -m benchmarks.card_parts step OUT.json --model.path NAME` trains the same real rows with our
step and with torch + peft, in turns; `answers` answers prompts with ours in batches and with torch
one at a time.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import memory
from benchmarks.our_loop import compile_times
from benchmarks.torch_answers import answer_one
from benchmarks.torch_model import TorchModel, missing_packages
from benchmarks.training import first_losses, first_pass, flops_rate, make_training, summary
from benchmarks.workload import asked, first_part, test_instances
from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.config import Config, load_config
from feddpa_jax.files.disk import to_json, write_whole
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.plan.topology import quiet_compiler
from feddpa_jax.run.beginning import run_key
from feddpa_jax.run.folder import RunFolder, describe_environment
from feddpa_jax.run.inputs import Prepared, make_lora, prepare
from feddpa_jax.run.opening import checked
from feddpa_jax.types import TokenizedExample

# Torch's weights are ours up to so many parameters; larger models share sizes alone.
HANDED_OVER = 1_000_000_000


class Figures:
    """Figures in a JSON file that is written anew with each of them."""

    def __init__(self, file: Path):
        """Args: the file."""
        self.file = file
        self.found: dict[str, Any] = {"done": False}
        self._start = time.perf_counter()

    def add(self, text: str = "", **figures: Any) -> None:
        """Saves some more, and says so."""
        self.found |= figures | {"seconds": time.perf_counter() - self._start}
        write_whole(self.file, to_json(self.found))
        if text:
            print(f"  {self.found['seconds']:6.1f} s  {text}", flush=True)

    def done(self) -> None:
        """Everything was measured."""
        self.add(done=True)


def step(config: Config, figures: Figures, *, updates: int, repeat: int) -> None:
    """Passes of one global phase by both sides, in turns."""
    prepared = prepare(config)
    with tempfile.TemporaryDirectory(prefix="feddpa-card-") as scratch:
        training = make_training(config, prepared, RunFolder(Path(scratch)), updates)
    figures.add("base and data are loaded", **_about(prepared))
    first = first_pass(training, memory.resident_bytes())
    compiled = first.measured["compile_seconds"]
    shapes = [[shape.rows, shape.length] for shape in training.shapes]
    figures.add(
        f"ours compiled in {compiled:.0f} s, rows {shapes}", shapes=shapes, **first.measured
    )
    passes: dict[str, list[Any]] = {"ours": [], "torch": []}
    model = None
    for number in range(repeat):
        done, _ = training.ours()
        passes["ours"].append(done)
        ours = summary(passes["ours"])
        ours |= flops_rate(training, prepared, ours["median_seconds"])
        share = "" if ours["peak_share"] is None else f", {ours['peak_share']:.0%} of the peak"
        figures.add(f"ours {ours['tokens_per_second']:,.0f} real tokens/s{share}", ours=ours)
        if number == 0:
            model = _torch(config, prepared, figures)
            if model is not None:
                # What torch does once.
                warm = training._replace(data=first_part(training.data, clients=1, updates=1))
                warm.theirs(model)
        if model is not None:
            passes["torch"].append(training.theirs(model))
            theirs = summary(passes["torch"])
            ratio = theirs["median_seconds"] / ours["median_seconds"]
            figures.add(
                f"torch {theirs['tokens_per_second']:,.0f} real tokens/s: ours {ratio:.2f} times",
                torch=theirs,
                ratio=ratio,
                torch_peak_bytes=_torch_peak(),
            )
    if model is not None and _small(prepared):
        agree = first_losses(passes, str(prepared.base.model.dtype))._asdict()
        figures.add("first losses agree", first_losses=agree)


def answers(
    config: Config, figures: Figures, *, prompts: int, alone: int, beams: int, repeat: int
) -> None:
    """Answers in batches by ours, and some of them one at a time by torch."""
    prepared = prepare(config)
    base = prepared.base
    figures.add("base and data are loaded", beams=beams, prompts=prompts, **_about(prepared))
    chosen = [
        asked(example, base.tokenizer.eos_id)
        for example in test_instances(config, prepared, prompts)
    ]
    most = config.eval.max_new_tokens
    adapter = make_lora(config, prepared).fresh(run_key(config))
    answerer = Answerer(
        base.model,
        Adapters(bank_of(adapter), bank_of(adapter), config.lora.alpha / config.lora.rank),
        stop_ids=base.tokenizer.stop_ids,
        pad_id=base.tokenizer.pad_id,
        beams=beams,
        max_new_tokens=most,
        batch_tokens=prepared.tokens_at_once,
    )
    given = [Prompt(0, e.tokens_T[: e.prompt_length], 0.5, 0.5) for e in chosen]
    with compile_times() as compiled:
        answerer(given)
    figures.add(f"ours compiled in {sum(compiled):.0f} s", compile_seconds=sum(compiled))
    seconds: list[float] = []
    found: list[Any] = []
    for _ in range(repeat):
        start = time.perf_counter()
        found = answerer(given)
        seconds.append(time.perf_counter() - start)
        middle = sorted(seconds)[len(seconds) // 2]
        rate = prompts / middle
        lengths = sorted(len(own) for own in found)
        figures.add(
            f"ours {rate:,.1f} answers/s of {sum(lengths) / prompts:.0f} tokens",
            ours={"seconds": seconds, "answers_per_second": rate, "lengths": lengths},
            device_peak_bytes=memory.device_peak_bytes(),
        )
    model = _torch(config, prepared, figures)
    if model is None:
        return
    model.load("global", adapter)
    model.load("local", adapter)
    model.use(["global", "local"], trains=False)
    model.mix(0.5, 0.5)
    answer_one(model, chosen[0], 2, beams)
    _alone(model, chosen[:alone], found, sum(lengths) / middle, config, beams, figures)


def _alone(
    model: TorchModel,
    chosen: Sequence[TokenizedExample],
    found: Sequence[Any],
    rate: float,
    config: Config,
    beams: int,
    figures: Figures,
) -> None:
    """Answers one at a time by torch, beside our answers and our tokens a second."""
    start, same, told = time.perf_counter(), 0, 0
    for count, example in enumerate(chosen, start=1):
        own = answer_one(model, example, config.eval.max_new_tokens, beams)
        same += own.tolist() == found[count - 1].tolist()
        took = time.perf_counter() - start
        told += len(own)
        # By tokens, as these answers may be longer or shorter than all.
        ratio = rate / (max(told, 1) / took)
        figures.add(
            f"torch {count / took:.2f} answers/s: ours has {ratio:.1f} times the tokens a second"
            if count in (1, len(chosen))
            else "",
            torch={
                "answers": count,
                "answers_per_second": count / took,
                "tokens_per_second": told / took,
                "identical": same,
            },
            ratio=ratio,
        )


def _about(prepared: Prepared) -> dict[str, Any]:
    return {
        "device": describe_environment()["devices"],
        "dtype": str(prepared.base.model.dtype),
        "attention": prepared.base.model.attention,
    }


def _small(prepared: Prepared) -> bool:
    return sum(leaf.size for leaf in prepared.base.model.parameters().values()) < HANDED_OVER


def _torch(config: Config, prepared: Prepared, figures: Figures) -> TorchModel | None:
    missing = missing_packages()
    if missing:
        figures.add(f"no torch: {missing}", without_torch=missing)
        return None
    model = TorchModel(config, prepared.base, same_weights=_small(prepared))
    figures.add("torch has the model")
    return model


def _torch_peak() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def main(arguments: list[str] | None = None) -> int:
    """Measures one part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card_parts", description=__doc__)
    parser.add_argument("part", choices=["step", "answers"])
    parser.add_argument("out", type=Path, help="the JSON file of its figures")
    parser.add_argument("--updates", type=int, default=1, help="of each client in a pass")
    parser.add_argument("--repeat", type=int, default=3, help="passes of each side")
    parser.add_argument("--prompts", type=int, default=256, help="that ours answers")
    parser.add_argument("--alone", type=int, default=8, help="those of them that torch answers")
    parser.add_argument("--beams", type=int, default=1)
    known, overrides = parser.parse_known_args(arguments)
    quiet_compiler()
    config, figures = checked(load_config(None, overrides)), Figures(known.out)
    if known.part == "step":
        step(config, figures, updates=known.updates, repeat=known.repeat)
    else:
        counts = {name: getattr(known, name) for name in ("prompts", "alone", "beams", "repeat")}
        answers(config, figures, **counts)
    figures.done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
