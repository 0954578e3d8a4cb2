"""Mutation testing by one command: which small changes of the code do the tests not notice?

.venv/bin/python -m tests.mutation                     # the whole list
.venv/bin/python -m tests.mutation --only training,data     # areas of it
.venv/bin/python -m tests.mutation --sample 60 --seed 1    # changes made mechanically instead
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutation.areas import AREAS, ENTRIES
from tests.mutation.mutant import PACKAGE, Mutant
from tests.mutation.operators import mutations
from tests.mutation.overlay import Overlay, import_heavy, sessions


def listed(areas: Sequence[str]) -> list[Mutant]:
    """The mutants of the list."""
    return [entry.mutant(area) for area in areas for entry in ENTRIES[area]]


def sampled(areas: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Mechanical mutants drawn from all that there are, with the tests of their area."""
    found = [
        Mutant(area, file, name, source, AREAS[area].tests)
        for area in areas
        for file in AREAS[area].all_files()
        for name, source in mutations((PACKAGE / file).read_text(encoding="utf-8"))
    ]
    print(f"{len(found)} mechanical mutants, of which {min(count, len(found))} are tried")
    return random.Random(seed).sample(found, min(count, len(found)))


def tried(mutants: Sequence[Mutant], jobs: int, trust: bool) -> Iterator[tuple[Mutant, str, float]]:
    """Every mutant with "killed", "survived" or what is wrong with its tests, and the seconds."""
    import_heavy()
    with tempfile.TemporaryDirectory(prefix="feddpa-mutants-") as folder:
        place = Path(folder)
        overlays = [Overlay(place / str(job), place / "compiled") for job in range(jobs)]
        # Tests that fail without a mutant would kill every one.
        baselines: dict[tuple[str, ...], tuple[str, float]] = {}
        distinct = list(dict.fromkeys(mutant.tests for mutant in mutants))
        if trust:
            baselines, distinct = {tests: ("", 120.0) for tests in distinct}, []
        for tests, code, seconds in sessions(
            overlays, [(None, tests, 900.0) for tests in distinct]
        ):
            wrong = "" if code == 0 else f"its tests fail without it (exit code {code})"
            baselines[tests] = wrong, seconds
            print(f"  {seconds:5.1f} s  {wrong or 'passed'}  {' '.join(tests)}", flush=True)
        work = []
        for mutant in mutants:
            wrong, seconds = baselines[mutant.tests]
            if wrong:
                yield mutant, wrong, 0.0
            else:
                work.append((mutant, mutant.tests, 60 + 5 * seconds))
        for mutant, code, seconds in sessions(overlays, work):
            # 1: a test failed; 2: the tests could not be imported; None: they took too long.
            outcome = {0: "survived", 1: "killed", 2: "killed", None: "killed"}.get(code)
            yield mutant, outcome or f"not tried (exit code {code})", seconds


def main() -> int:
    """Exit code 0 if no mutant survives without a reason, else 1."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", metavar="AREA,...", help=f"of {', '.join(AREAS)}")
    parser.add_argument(
        "--grep", metavar="TEXT", action="append", help="only those whose file or name has a TEXT"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one of N of the list")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--sample", type=int, metavar="N", help="N mechanical mutants instead")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="test sessions at a time")
    parser.add_argument(
        "--trust", action="store_true", help="without a run of the tests without a mutant first"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    args = parser.parse_args()
    areas = args.only.split(",") if args.only else list(AREAS)
    if unknown := set(areas) - AREAS.keys():
        parser.error(f"--only: no area {sorted(unknown)[0]!r}; there are {', '.join(AREAS)}")
    mutants = sampled(areas, args.sample, args.seed) if args.sample else listed(areas)
    if args.grep:
        mutants = [m for m in mutants if any(text in f"{m.file}: {m.name}" for text in args.grep)]
    mutants = mutants[:: args.every]
    if args.list:
        for mutant in mutants:
            print(f"{mutant.area:10} {mutant.file}: {mutant.name}  [{' '.join(mutant.tests)}]")
        return 0
    results = []
    began = time.monotonic()
    for mutant, outcome, seconds in tried(mutants, args.jobs, args.trust):
        results.append((mutant, outcome))
        shown = outcome if outcome == "killed" or not mutant.survives else f"{outcome}, explained"
        print(f"  {seconds:5.1f} s  {shown:9}  {mutant.file}: {mutant.name}", flush=True)
    return summarize(results, time.monotonic() - began, args.json)


def summarize(results: Sequence[tuple[Mutant, str]], seconds: float, out: Path | None) -> int:
    """Prints the table and the survivors; 1 if one has no reason."""
    counts = {area: Counter(o for m, o in results if m.area == area) for area in AREAS}
    rows = [(area, c.total(), c["killed"]) for area, c in counts.items() if c]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    print(f"\n{'area':12} {'mutants':>8} {'killed':>8} {'%':>7}")
    for area, total, killed in rows:
        print(f"{area:12} {total:8} {killed:8} {100 * killed / max(1, total):7.1f}")
    print(f"{seconds:.0f} s")
    unexplained = 0
    for mutant, outcome in results:
        if outcome == "killed":
            if mutant.survives:
                print(f"killed although it has a reason to survive: {mutant.file}: {mutant.name}")
            continue
        unexplained += not mutant.survives
        print(f"{outcome}: {mutant.file}: {mutant.name}: {mutant.survives or 'NO REASON'}")
    if out is not None:
        keys = ("area", "file", "name", "tests", "survives")
        told = [{**{k: getattr(m, k) for k in keys}, "outcome": o} for m, o in results]
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
