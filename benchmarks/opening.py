"""What writing and opening a population costs: CPU seconds and memory.

`python -m benchmarks.opening --clients 1000000` writes two short examples of each client with
`write_population`, and opens the folder in a new process, which holds one example of each client
out, reads a client and draws two cohorts of 64.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.populations import memory
from feddpa_jax import Example, load_federation, write_population
from feddpa_jax.training.participation import sample_participants
from feddpa_jax.types import client_id

COHORT = 64


def write(folder: Path, clients: int) -> dict[str, Any]:
    """Writes the population in this process."""

    def records() -> Iterator[tuple[str, Example]]:
        for c in range(clients):
            for n in range(2):
                yield f"user_{c:07d}", Example(f"Say {n + c}.", str(n + c), task=f"task_{c % 10}")

    begun = time.process_time()
    tests = [Example(f"Say {k}.", str(k), task=f"task_{k}") for k in range(10)]
    write_population(folder, records(), tests)
    return {"write_cpu_s": time.process_time() - begun, "resident_mb": memory("VmHWM")}


def open_it(folder: Path) -> dict[str, Any]:
    """Opens the population in this process."""
    begun, before = time.process_time(), memory("VmRSS")
    data = load_federation(str(folder), validation=1)
    opened, after = time.process_time(), memory("VmRSS")
    client = data.clients[len(data.clients) // 2]
    assert (len(client.train), len(client.validation)) == (1, 1)
    read = time.process_time()
    ids = tuple(client_id(name) for name in data.names)
    known = time.process_time()
    for number in range(2):
        sample_participants(ids, participation=1.0, cohort=COHORT, seed=0, round_number=number)
    return {
        "clients": len(data.clients),
        "open_cpu_s": opened - begun,
        "read_client_cpu_ms": 1e3 * (read - opened),
        "ids_cpu_s": known - read,
        "draw_cpu_s": (time.process_time() - known) / 2,
        "resident_before_mb": before,
        "resident_opened_mb": after,
        "resident_most_mb": memory("VmHWM"),
    }


def main() -> None:
    """Measures, and prints two lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="a population that is there, to open it alone")
    known = parser.parse_args()
    if known.folder:
        print(json.dumps(open_it(known.folder)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "people"
        print(json.dumps(write(folder, known.clients)), flush=True)
        command = [sys.executable, "-m", "benchmarks.opening", "--folder", str(folder)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
