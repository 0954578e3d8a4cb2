"""The paper's schedule on both data sets, in pieces of some minutes (launch/paper_gpu.sh).

Every piece goes on where the last one stopped, also on another machine: OUT holds an archive a run,
under 64 MiB together. Evaluated runs are kept without checkpoints, which `feddpa compare` reads as
well; the adapters of the most important ones are kept besides, as far as they fit.
"""

import argparse
import itertools
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from feddpa_jax.files.disk import writing

ROOT = Path(__file__).resolve().parents[1]
# The four that RESULTS.md is about come first, and have three seeds.
FIRST = ("feddpa_t", "feddpa_f", "fedit", "local")
OTHERS = (
    *("fedlora", "ditto", "fedalt", "fdlora", "fedlease", "fedsa_lora"),
    *("ffa_lora", "rolora", "flexlora", "fedex_lora", "centralized"),
)
# What could keep FedDPA-T's local adapter from overfitting, each beside training as it is; what is
# held out is for choosing weighting rules, and for stopping.
HELD_OUT = ("--data.validation", "30")
CURES = {
    "as_it_is": HELD_OUT,
    "stopped": (*HELD_OUT, "--fed.early_stopping", "2"),
    "one_epoch": (*HELD_OUT, "--fed.local_epochs", "1"),
}
GREEDY = ("--eval.decoding", "greedy", "--eval.metrics", "[nll, exact_match]")
MOST = 60 * 2**20
# What a stopped command may take to save its round.
GRACE = 20.0


class Case(NamedTuple):
    """One `feddpa compare`.

    Attributes:
      name: of its folder.
      config: the configuration, and overrides.
      methods: in the order in which they run.
      seeds: of every method.
    """

    name: str
    config: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def runs(self) -> Iterator[str]:
        """The folders of its runs, in the order in which they run."""
        for seed, method in itertools.product(self.seeds, self.methods):
            yield f"{self.name}/{method}/seed_{seed}"

    def command(self, work: Path) -> list[str]:
        """The command that makes them."""
        program = [sys.executable, "-m", "feddpa_jax", "compare"]
        methods, seeds = ",".join(self.methods), ",".join(map(str, self.seeds))
        chosen = ["--methods", methods, "--seeds", seeds, "--modes", "all"]
        return [*program, "--config", *self.config, *chosen, "--out", str(work / self.name)]


def paper_plan() -> tuple[Case, ...]:
    """The four first methods, FedDPA-T with each cure, more seeds of the four, then the others."""

    def case(
        data: str, methods: tuple[str, ...], seeds: tuple[int, ...], cure: str | None = None
    ) -> Case:
        own = () if cure is None else CURES[cure]
        name = data if cure is None else f"{data}_{cure}"
        return Case(name, (f"configs/paper/{data}_fedit.yaml", *GREEDY, *own), methods, seeds)

    data = ("dataset1", "dataset2")
    return (
        *(case(name, FIRST, (0,)) for name in data),
        *(case(name, ("feddpa_t",), (0,), cure) for name in data for cure in CURES),
        *(case(name, FIRST, (0, 1, 2)) for name in data),
        *(case(name, (*FIRST, *OTHERS), (0,)) for name in data),
    )


def tiny_plan() -> tuple[Case, ...]:
    """The same course with a tiny model, in seconds on a CPU."""
    small = ("--data.max_train", "2", "--data.max_test", "1", "--fed.rounds", "1")
    config = ("configs/tiny.yaml", *small, "--eval.metrics", "[nll]")
    return (Case("tiny", config, ("fedit", "local"), (0,)),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Works for a while; 0 once nothing is left."""
    parser = argparse.ArgumentParser(prog="launch/paper_gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of what the next piece needs")
    parser.add_argument("--seconds", type=float, default=540, help="when to stop (540)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/paper", help="folder of the runs")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, as a test of the course")
    known = parser.parse_args(arguments)
    end = time.monotonic() + known.seconds
    plan = tiny_plan() if known.tiny else paper_plan()
    unpack(known.out, known.work)
    for case in plan:
        _run(case, known.work, end)
    runs = list(dict.fromkeys(name for case in plan for name in case.runs()))
    pack(known.work, runs, known.out)
    left = [name for name in runs if not _is_evaluated(known.work / name)]
    for name in left:
        print(f"left: {name}, {_rounds(known.work / name)} rounds done")
    print(f"{len(runs) - len(left)} of {len(runs)} runs are evaluated; kept in {known.out}")
    return 1 if left else 0


def _run(case: Case, work: Path, end: float) -> None:
    """Works on a case until it is done or the time is up."""
    left = end - time.monotonic()
    if left <= 0 or all(_is_evaluated(work / name) for name in case.runs()):
        return
    process = subprocess.Popen(case.command(work), cwd=ROOT)
    try:
        process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_evaluated(run: Path) -> bool:
    return (run / "eval" / "summary.json").exists()


def _rounds(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def pack(work: Path, runs: Sequence[str], out: Path, most: int = MOST) -> None:
    """Keeps what the next piece needs: an archive a run, and adapters as far as they fit.

    Args:
      work: where the runs are.
      runs: their folders there, the most important ones first.
      out: where the archives go.
      most: bytes of all archives together.

    Raises:
      UserError: something cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in runs:
            run, kept = work / name, out / f"{name.replace('/', '__')}.tar.xz"
            adapters = kept.with_name(kept.name.replace(".tar.xz", ".adapters.tar.xz"))
            adapters.unlink(missing_ok=True)
            if not (run / "config.yaml").exists() or (kept.exists() and _is_whole(kept)):
                continue
            _archive(kept, work, name, checkpoints=not _is_evaluated(run))
        for name in runs:
            if not _is_evaluated(work / name) or not (work / name / "checkpoints").exists():
                continue
            used = sum(file.stat().st_size for file in out.glob("*.tar.xz"))
            size = sum(f.stat().st_size for f in (work / name / "checkpoints").rglob("*"))
            if used + size <= most:
                place = out / f"{name.replace('/', '__')}.adapters.tar.xz"
                _archive(place, work, f"{name}/checkpoints")


def _is_whole(archive: Path) -> bool:
    """Whether an archive has the run's evaluation."""
    with tarfile.open(archive) as file:
        return any(name.endswith("eval/summary.json") for name in file.getnames())


def _archive(place: Path, work: Path, name: str, *, checkpoints: bool = True) -> None:
    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return member if checkpoints or "checkpoints" not in Path(member.name).parts else None

    aside = place.with_name(place.name + ".part")
    with tarfile.open(aside, "w:xz", preset=1) as file:
        file.add(work / name, name, filter=chosen)
    aside.replace(place)


def unpack(out: Path, work: Path) -> None:
    """Brings back the runs that are not there.

    Args:
      out: where `pack` put them.
      work: where they go.

    Raises:
      UserError: something cannot be written.
    """
    there = {path.parent for path in work.glob("*/*/*/config.yaml")}
    with writing(work):
        for archive in sorted(out.glob("*.tar.xz")):
            with tarfile.open(archive) as file:
                run = Path(*Path(file.getnames()[0]).parts[:3])
                if work / run not in there:
                    file.extractall(work, filter="data")


if __name__ == "__main__":
    sys.exit(main())
