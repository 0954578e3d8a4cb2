"""One run on one machine that measures ours against torch + peft."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import memory
from benchmarks.generation import time_generation
from benchmarks.questions import make_questions
from benchmarks.scaling import time_scaling
from benchmarks.tables import render
from benchmarks.torch_model import TorchModel, missing_packages
from benchmarks.training import check, first_pass, make_training, time_training
from feddpa_jax.cli.console import Reporter
from feddpa_jax.config import Config, to_yaml
from feddpa_jax.files.disk import make_folder, to_json, write_whole, writing
from feddpa_jax.run.evaluating import check_rule, decoding
from feddpa_jax.run.folder import RunFolder, describe_environment
from feddpa_jax.run.inputs import prepare
from feddpa_jax.types import UserError

# More would not make a measurement better, and might never end.
MOST_CLIENTS, MOST_UPDATES, MOST_INSTANCES = 4_096, 10_000, 1_000_000


class Options(NamedTuple):
    """What is measured.

    Attributes:
      out: the folder of bench.json; None for a new one below runs/.
      updates: of each client in a pass.
      clients: numbers of clients for the cost per client; empty for none.
      instances: test instances that every client answers; 0 for none.
      repeat: passes of each side.
      torch: whether the torch side is measured, if its packages are there.
    """

    out: Path | None
    updates: int
    clients: tuple[int, ...]
    instances: int
    repeat: int
    torch: bool


def read_counts(text: str) -> tuple[int, ...]:
    """Numbers of clients from "1,2,4"; none from "".

    Raises:
      UserError: something else.
    """
    try:
        counts = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        counts = (0,)
    if not all(1 <= count <= MOST_CLIENTS for count in counts):
        raise UserError(
            f"--clients: {text[:80]!r} is no list of numbers from 1 to {MOST_CLIENTS}; write 1,2,4"
        )
    return counts


def measure(config: Config, options: Options, reporter: Reporter) -> dict[str, Any]:
    """Measures, prints tables and writes bench.json.

    Args:
      config: resolved.
      options: what is measured.
      reporter: gets a message for every pass, and shows the tables.

    Raises:
      UserError: an option makes no sense, or the two sides do different work.
    """
    for name, least, most in (
        ("updates", 1, MOST_UPDATES),
        ("repeat", 1, MOST_UPDATES),
        ("instances", 0, MOST_INSTANCES),
    ):
        value = getattr(options, name)
        if not least <= value <= most:
            raise UserError(f"--{name}: {value} is not a number from {least} to {most:,}")
    out = options.out or Path("runs") / time.strftime("bench-%Y%m%d-%H%M%S")
    if (out / "bench.json").exists():
        raise UserError(f"--out: {out} holds a bench.json already; name another folder")
    if options.instances:
        check_rule(config)
    memory.reset_peak()
    held = memory.resident_bytes()
    with tempfile.TemporaryDirectory(prefix="feddpa-bench-") as scratch:
        results = _measure(config, options, RunFolder(Path(scratch)), held, reporter)
    reporter.show(render(results))
    with writing(out):
        make_folder(out)
        write_whole(out / "bench.json", to_json(results))
    reporter.say(f"everything: {out / 'bench.json'}")
    return results


def _measure(
    config: Config, options: Options, run: RunFolder, held: int, reporter: Reporter
) -> dict[str, Any]:
    prepared = prepare(config)
    training = make_training(config, prepared, run, options.updates)
    reporter.say(f"{config.model.path} in {config.model.dtype}: our first pass, which compiles")
    first = first_pass(training, held)
    missing = missing_packages() if options.torch else "left out by --no-torch"
    agreement, model = None, None
    if not missing:
        reporter.say("both sides in float32 for a few updates, which must agree")
        agreement = check(training, prepared, run)._asdict()
        model = TorchModel(config, prepared.base)
    results: dict[str, Any] = {
        "command": ["bash", "launch/bench.sh", *sys.argv[1:]],
        "environment": describe_environment(),
        "config": to_yaml(config),
        "options": {**options._asdict(), "out": None},
        "without_torch": missing,
        "check": agreement,
        "training": time_training(training, prepared, first, model, options.repeat, reporter),
        "scaling": [],
        "generation": None,
    }
    if options.clients:
        results["scaling"] = time_scaling(
            training, options.clients, options.updates, options.repeat, reporter
        )
    if options.instances:
        questions = make_questions(
            config, prepared, training.data, first.trained_C, options.instances
        )
        results["generation"] = time_generation(
            prepared,
            questions,
            model,
            batch_tokens=decoding(config, prepared).batch_tokens,
            repeat=options.repeat,
            reporter=reporter,
        )
    return results
