"""A run among many clients: what starting, a round, a checkpoint and memory cost.

`python -m benchmarks.populations --clients 1000,100000` writes a flat file of so many clients with
30 examples each, reads it into the cache, and then trains FedDPA-T on the tiny model in new
processes, in turns: 64 clients a round, 20 rounds, one update of all 30 examples a phase.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES, COHORT, ROUNDS = 30, 64, 20
_WORDS = ("rain", "stone", "river", "paper", "green", "seven", "window", "letter", "small", "north")


def write_file(file: Path, clients: int, examples: int = EXAMPLES) -> None:
    """Writes JSON lines of so many clients, one after the other."""
    rng = np.random.default_rng(clients)
    with file.open("w") as text:
        for client in range(clients):
            words = rng.integers(len(_WORDS), size=(examples, 6))
            for row in words:
                said = " ".join(_WORDS[word] for word in row)
                record = {
                    "client": f"user_{client:07d}",
                    "instruction": f"Repeat: {said}.",
                    "output": said,
                    "task": f"task_{client % 10}",
                }
                text.write(json.dumps(record) + "\n")


def configured(
    file: Path,
    clients: int,
    cohort: int = COHORT,
    rounds: int = ROUNDS,
    examples: int = EXAMPLES,
) -> Any:
    """The configuration of the run."""
    from feddpa_jax import Config

    return Config(
        model={"path": "tiny"},
        data={"path": f"hf:{file}", "cache": "on", "max_length": 96},
        lora={"rank": 2},
        fed={
            "rounds": rounds,
            "local_epochs": 1,
            "batch_size": examples,
            "micro_batch_size": None,
            "participation": cohort / clients,
            "clients_per_step": 16,
        },
    )


def memory(field: str) -> float:
    """A field of this process's memory in MB.

    Args:
      field: "VmHWM" is the most that was resident, mapped files included; "RssAnon" what is now the
        process's own.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def one_run(file: Path, clients: int, out: Path, examples: int) -> dict[str, Any]:
    """Trains in this process; says what it cost."""
    begun = time.perf_counter()
    from feddpa_jax import Experiment

    imported = time.perf_counter()
    config = configured(file, clients, examples=examples)
    run = Experiment.from_config(config, run_dir=out / "run")
    prepared = time.perf_counter()
    seconds, ends = [], []
    for done in run.rounds():
        seconds.append(done.seconds)
        ends.append(time.perf_counter())
    whole = np.diff(ends)[4:]
    return {
        "clients": clients,
        "import_s": imported - begun,
        "start_s": prepared - imported,
        "first_round_s": ends[0] - prepared,
        "round_ms": 1e3 * float(np.median(seconds[5:])),
        "round_and_checkpoint_ms": 1e3 * float(np.median(whole)),
        "resident_mb": memory("VmHWM"),
        "own_mb": memory("RssAnon"),
    }


def main() -> None:
    """Measures, and prints a line of JSON for each number of clients and turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1000,100000")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each client")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps files and cache here")
    parser.add_argument("--one", nargs=3, metavar=("FILE", "CLIENTS", "OUT"))
    known = parser.parse_args()
    if known.one:
        file, clients, out = known.one
        print(json.dumps(one_run(Path(file), int(clients), Path(out), known.examples)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = known.folder or Path(made)
        folder.mkdir(exist_ok=True)
        numbers = [int(number) for number in known.clients.split(",")]
        for clients in numbers:
            prepare(folder, clients, known.examples)
        for turn in range(known.turns):
            for clients in numbers:
                out = folder / f"run_{clients}_{turn}"
                shutil.rmtree(out, ignore_errors=True)
                command = [sys.executable, "-m", "benchmarks.populations", "--one"]
                command += [str(file_of(folder, clients, known.examples)), str(clients), str(out)]
                command += ["--examples", str(known.examples)]
                print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def file_of(folder: Path, clients: int, examples: int) -> Path:
    """The flat file of so many clients."""
    return folder / f"{clients}x{examples}.jsonl"


def prepare(folder: Path, clients: int, examples: int) -> None:
    """Writes the file, and reads it into the cache; says how long the latter took."""
    from feddpa_jax.data.folders import load_federation
    from feddpa_jax.hf.load import load_base
    from feddpa_jax.run.inputs import prepare_values

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = file_of(folder, clients, examples)
    if not file.exists():
        write_file(file, clients, examples)
    config = configured(file, clients, examples=examples)
    begun = time.perf_counter()
    data = load_federation(config.data.path, cache="on")
    read = time.perf_counter()
    prepare_values(config, load_base("tiny"), data)
    tokenized = time.perf_counter()
    cost = {"clients": clients, "read_s": read - begun, "tokenize_s": tokenized - read}
    print(json.dumps({**cost, "resident_mb": memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
