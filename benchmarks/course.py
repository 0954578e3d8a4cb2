"""The benchmark on one accelerator: parity, then several models, one JSON (launch/gpu.sh)."""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from feddpa_jax.files.strict_json import read_object

# Training with the paper's batch sizes; no answers, which a sequential loop takes long to give, and
# no loop beside the largest model.
_PAPER = [
    *("--fed.batch_size", "64", "--fed.micro_batch_size", "32", "--model.dtype", "bfloat16"),
    *("--data.max_length", "512", "--clients", "", "--instances", "0", "--repeat", "2"),
]
CASES: dict[str, list[str]] = {
    "smollm2-135m": [*_PAPER, "--updates", "5"],
    "random:llama-3.2-1b": [*_PAPER, "--updates", "1"],
    # Rows as of a short run: those of a long one have six lengths, each a program to be compiled.
    "random:llama-2-7b": [
        *(*_PAPER, "--updates", "1", "--no-torch"),
        *("--fed.rounds", "1", "--fed.local_epochs", "1"),
    ],
}
TINY: dict[str, list[str]] = {
    "tiny": [
        *("--data.max_length", "256", "--data.max_train", "8", "--fed.batch_size", "4"),
        *("--fed.micro_batch_size", "2", "--model.dtype", "float32", "--lora.rank", "2"),
        *("--updates", "1", "--repeat", "1", "--clients", "", "--instances", "0"),
        *("--mesh.clients", "1"),
    ]
}
PARITY = (
    *("tests/parity/test_transformers_logits.py", "tests/parity/test_feddpa_oracle.py"),
    "tests/models/test_attention.py",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the course; 0 if everything in it succeeded."""
    parser = argparse.ArgumentParser(prog="launch/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="new folder of gpu.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, as a test of the course")
    parser.add_argument("--data", default="sample", help="data.path of the benchmark")
    parser.add_argument(
        "--only", nargs="+", choices=["parity", *CASES], help="these parts of the course"
    )
    known = parser.parse_args(arguments)
    if known.tiny and known.only:
        parser.error("--tiny has one model and no parts; leave --only out")
    cases = TINY if known.tiny else CASES
    parts = known.only or ["parity", *cases]
    known.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"parity": None, "cases": {}}

    def keep() -> None:
        (known.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")

    if "parity" in parts:
        results["parity"] = _parity(known.tiny)
        keep()
    for model in [name for name in cases if name in parts]:
        results["cases"][model] = _case(
            model, known.out, [*cases[model], "--data.path", known.data]
        )
        keep()
    print(f"everything: {known.out / 'gpu.json'}")
    done = [*results["cases"].values(), *([results["parity"]] if results["parity"] else [])]
    return 1 if any(part["returncode"] for part in done) else 0


def _parity(tiny: bool) -> dict[str, Any]:
    """The tests against the oracles, on this device."""
    only = ["-k", "test_logits and smollm2"] if tiny else []
    several = [] if tiny or find_spec("xdist") is None else ["-n", "8"]
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *PARITY, *only, *several],
        # The tests take a CPU unless they are told otherwise.
        env=os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", _platform())},
        capture_output=True,
        text=True,
    )
    last = (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1]
    print(f"parity: {last}")
    seconds = time.perf_counter() - start
    return {"returncode": ran.returncode, "seconds": seconds, "last_line": last}


def _platform() -> str:
    """JAX's platform here, asked in a process of its own: a device's memory is for the cases."""
    ask = "import jax; print({'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend()))"
    return subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True
    ).stdout.strip()


def _case(model: str, out: Path, options: list[str]) -> dict[str, Any]:
    """A benchmark in a process of its own, so that its memory is its own."""
    folder = out / model.replace(":", "-")
    command = [sys.executable, "-m", "benchmarks", "--model.path", model]
    ran = subprocess.run([*command, *options, "--out", str(folder)])
    if ran.returncode:
        return {"returncode": ran.returncode}
    whole = read_object(folder / "bench.json", finite=False)
    training = whole["training"]
    ours = training["ours"]
    return {
        "returncode": 0,
        "command": ["bash", "launch/bench.sh", "--model.path", model, *options],
        "device": whole["environment"]["devices"],
        "tokens_per_second": ours["tokens_per_second"],
        "torch_tokens_per_second": training["torch"] and training["torch"]["tokens_per_second"],
        "ratio": training["ratio"],
        "real_share": ours["real_share"],
        "model_flops_per_second": ours["model_flops_per_second"],
        "peak_share": ours["peak_share"],
        "device_peak_bytes": ours["device_peak_bytes"],
        "peak_memory_bytes": ours["peak_memory_bytes"],
        "compile_seconds": ours["compile_seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
