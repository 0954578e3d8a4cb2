"""The benchmark on one accelerator, in parts that fit into ten minutes (launch/gpu.sh).

Each part is a process with a limit of its own, and saves its figures as they come; what is measured
is in OUT/gpu.json at any time. The same command goes on with the parts that are not done.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from feddpa_jax.files.strict_json import read_object

# Rows as of a short run, so that they have few lengths, each of which is a program to be compiled.
_STEP = [
    *("step", "--fed.batch_size", "64", "--fed.rounds", "1", "--fed.local_epochs", "1"),
    *("--model.dtype", "bfloat16", "--data.max_length", "512"),
]
_ANSWERS = ["answers", "--model.path", "smollm2-135m", "--model.dtype", "bfloat16"]
_TINY = [
    *("--model.path", "tiny", "--data.max_length", "256", "--model.dtype", "float32"),
    *("--mesh.clients", "1", "--lora.rank", "2", "--repeat", "1"),
]
# What a part that starts at all needs.
LEAST = 20.0


class Part(NamedTuple):
    """A part of the course.

    Attributes:
      limit: most seconds.
      options: of `benchmarks.card_parts`; None for the parity tests.
    """

    limit: float
    options: list[str] | None


COURSE: dict[str, Part] = {
    "smollm2-135m": Part(
        150, [*_STEP, "--model.path", "smollm2-135m", "--fed.micro_batch_size", "32"]
    ),
    "answers": Part(110, [*_ANSWERS, "--eval.max_new_tokens", "64"]),
    "llama-2-7b": Part(
        200,
        [
            *(*_STEP, "--model.path", "random:llama-2-7b", "--fed.micro_batch_size", "16"),
            *("--repeat", "2"),
        ],
    ),
    "parity": Part(120, None),
    "answers-beams": Part(
        110, [*_ANSWERS, "--eval.max_new_tokens", "64", "--beams", "4", "--alone", "4"]
    ),
    "llama-3.2-1b": Part(
        120,
        [
            *(*_STEP, "--model.path", "random:llama-3.2-1b", "--fed.micro_batch_size", "32"),
            *("--repeat", "2"),
        ],
    ),
}
TINY: dict[str, Part] = {
    "tiny": Part(
        300,
        [
            *("step", *_TINY, "--data.max_train", "8", "--fed.batch_size", "4"),
            *("--fed.micro_batch_size", "2"),
        ],
    ),
    "answers-beams": Part(
        300,
        [
            *("answers", *_TINY, "--eval.max_new_tokens", "4", "--prompts", "6"),
            *("--alone", "2", "--beams", "2"),
        ],
    ),
    "parity": Part(300, None),
}
PARITY = (
    *("tests/parity/test_transformers_logits.py", "tests/parity/test_feddpa_oracle.py"),
    "tests/models/test_attention.py",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the course; 0 if all its parts are done."""
    parser = argparse.ArgumentParser(prog="launch/gpu.sh", description=__doc__)
    parser.add_argument(
        "out", type=Path, help="folder of gpu.json; one that is there is gone on with"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model, as a test of the course")
    parser.add_argument("--data", default="sample", help="data.path of the benchmark")
    parser.add_argument("--seconds", type=float, default=570.0, help="for all parts (570)")
    parser.add_argument("--only", nargs="+", choices=list(COURSE), help="these parts of the course")
    known = parser.parse_args(arguments)
    if known.tiny and known.only:
        parser.error("--tiny has parts of its own; leave --only out")
    course = TINY if known.tiny else COURSE
    known.out.mkdir(parents=True, exist_ok=True)
    asked = {"tiny": known.tiny, "data": known.data}
    if (before := read(known.out / "course.json")) not in (None, asked):
        parser.error(f"{known.out} has the figures of {before}; name another folder")
    (known.out / "course.json").write_text(json.dumps(asked) + "\n")
    end = time.monotonic() + known.seconds
    for name in known.only or course:
        if (found := read(known.out / f"{name}.json")) and found["done"]:
            print(f"{name}: done before")
            continue
        limit = min(course[name].limit, end - time.monotonic())
        if limit < min(LEAST, known.seconds):
            print(f"{name}: no time is left; the same command goes on with it")
            continue
        print(f"{name}: at most {limit:.0f} s", flush=True)
        _run(name, course[name], known, limit)
        _keep(known.out, course)
    _keep(known.out, course)
    print(f"everything: {known.out / 'gpu.json'}")
    parts = [read(known.out / f"{name}.json") for name in known.only or course]
    return 0 if all(part and part["done"] for part in parts) else 1


def read(file: Path) -> dict[str, Any] | None:
    """The figures of a part so far; None if there are none."""
    return read_object(file, finite=False) if file.exists() else None


def _keep(out: Path, course: dict[str, Part]) -> None:
    """Puts the figures of all parts so far into one file."""
    parts = {name: read(out / f"{name}.json") for name in course}
    (out / "gpu.json").write_text(json.dumps({"parts": parts}, indent=1) + "\n")


def _run(name: str, part: Part, known: argparse.Namespace, limit: float) -> None:
    """Runs a part within its limit; what it found by then is in its file."""
    file = known.out / f"{name}.json"
    if part.options is None:
        _parity(file, known.tiny, limit)
        return
    kind, *options = part.options
    command = [sys.executable, "-m", "benchmarks.card_parts", kind, str(file), *options]
    code, _ = _within(limit, [*command, "--data.path", known.data])
    if code:
        how = "its time was up" if code == -signal.SIGKILL else f"exit code {code}"
        print(f"{name}: {how}; its figures so far are kept", flush=True)


def _parity(file: Path, tiny: bool, limit: float) -> None:
    """The tests against the oracles, on this device."""
    only = ["-k", "test_logits and smollm2"] if tiny else []
    several = [] if tiny or find_spec("xdist") is None else ["-n", "8"]
    start = time.perf_counter()
    # The tests take a CPU unless they are told otherwise.
    told = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", _platform())}
    command = [sys.executable, "-m", "pytest", *PARITY, *only, *several]
    code, text = _within(limit, command, env=os.environ | told, capture=True)
    summed = [line for line in text.splitlines() if " passed" in line or " failed" in line]
    last = summed[-1] if summed else "no test ended" if code else text.strip()[-200:]
    print(f"  {time.perf_counter() - start:6.1f} s  {last}", flush=True)
    found = {"done": code == 0, "returncode": code, "tests": last}
    file.write_text(json.dumps(found | {"seconds": time.perf_counter() - start}) + "\n")


def _within(
    seconds: float, command: list[str], env: Any = None, capture: bool = False
) -> tuple[int, str]:
    """The exit code and output of a command; it and what it started are ended when time is up."""
    with subprocess.Popen(
        command,
        env=env,
        text=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        start_new_session=True,
    ) as process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, text or ""


def _platform() -> str:
    """JAX's platform here, asked in a process of its own: a device's memory is for the parts."""
    ask = "import jax; print({'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend()))"
    return subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
