"""A thousand clients for every method: memory over the rounds, and seconds per trained token.

.venv/bin/python launch/methods_at_scale.py [METHOD ...]

1,024 clients of the tiny model, 5 % in a round, 20 rounds, private parts on disk. For each method:
resident memory and bytes on the device after rounds 5 and 20, and the median over rounds 6 to 20 of
the seconds per 1,000 trained tokens, which is also given as a ratio to FedDPA-T's in the same run.
"""

import gc
import re
import statistics
import sys
import tempfile
from pathlib import Path

import jax

import feddpa_jax as fd

CLIENTS, ROUNDS = 1024, 20


def federation() -> fd.Federation:
    """The sample's examples in turn, four for each client."""
    source = fd.load_federation("sample", max_train=32, max_test=1)
    examples = [example for client in source.clients for example in client.train]
    clients = [
        fd.Client(f"client_{c}", tuple(examples[(4 * c + i) % len(examples)] for i in range(4)))
        for c in range(CLIENTS)
    ]
    return fd.Federation(tuple(clients), source.test)


def resident() -> int:
    """Bytes of this process in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(base: fd.Base, data: fd.Federation, method: str) -> dict[str, float]:
    """One method's run."""
    fed = {"method": method, "rounds": ROUNDS, "participation": 0.05, "local_epochs": 1}
    fed |= {"batch_size": 4, "micro_batch_size": None, "clients_per_step": 8}
    found: dict[str, float] = {}
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = fd.Experiment(base, data, fd.Config(fed=fed), run_dir=Path(folder, "run"))
        for done in run.rounds():
            if done.number in (5, ROUNDS - 1):
                gc.collect()
                found[f"resident {done.number}"] = resident() / 1e6
                found[f"device {done.number}"] = (
                    sum(array.nbytes for array in jax.live_arrays()) / 1e6
                )
            if done.number > 5:
                rates.append(1000 * done.seconds / max(1, done.real_tokens))
            if done.number == ROUNDS - 1:
                break  # Phases of all clients that follow the last round are not measured.
    return {**found, "rate": statistics.median(rates)}


def main(methods: list[str]) -> None:
    """Measures the methods, FedDPA-T first and last."""
    base, data = fd.load_base("tiny", "float32"), federation()
    results: list[tuple[str, dict[str, float]]] = []
    print("method | MB resident, 5 and 20 | MB on the device | s per 1,000 tokens | of FedDPA-T's")
    for method in ["feddpa_t", *methods, "feddpa_t"]:
        found = measure(base, data, method)
        results.append((method, found))
        print(
            f"{method} | {found['resident 5']:.0f}, {found[f'resident {ROUNDS - 1}']:.0f} | "
            f"{found['device 5']:.2f}, {found[f'device {ROUNDS - 1}']:.2f} | {found['rate']:.3f} | "
            f"{found['rate'] / results[0][1]['rate']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in fd.methods if name not in ("feddpa_t", "centralized")])
