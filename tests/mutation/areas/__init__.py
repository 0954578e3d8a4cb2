"""The list of mutants by area, and what belongs to an area."""

from pathlib import Path
from typing import NamedTuple

from tests.mutation.areas import (
    adapters,
    checkpoint,
    data,
    evaluate,
    export,
    fed,
    generate,
    metrics,
    report,
    runs,
    weigh,
    weighting,
)
from tests.mutation.mutant import PACKAGE, Entry


class Area(NamedTuple):
    """A part of the package.

    Attributes:
      files: files and folders below `feddpa_jax/`.
      tests: files and folders below `tests/` that a mechanical mutant of it must fail.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]

    def all_files(self) -> list[str]:
        """The area's Python files."""
        paths: list[Path] = []
        for name in self.files:
            path = PACKAGE / name
            paths += sorted(path.rglob("*.py")) if path.is_dir() else [path]
        return [path.relative_to(PACKAGE).as_posix() for path in paths]


def _area(files: str, tests: str) -> Area:
    return Area(tuple(files.split()), tuple(tests.split()))


AREAS = {
    "fed": _area(
        "fed",
        "fed/test_participation.py fed/test_clients.py fed/test_step.py fed/test_methods.py "
        "fed/test_engine.py",
    ),
    "adapters": _area("adapters", "adapters"),
    "weighting": _area("weighting", "weighting"),
    "metrics": _area("metrics.py", "test_metrics.py"),
    "data": _area("data", "data"),
    "evaluate": _area("evaluate", "evaluate"),
    "weigh": _area("weigh", "weigh"),
    "report": _area("report", "report"),
    "checkpoint": _area("checkpoint.py", "test_checkpoint.py"),
    "export": _area("export hf/peft_format.py", "hf/test_peft_format.py export"),
    "generate": _area("generate", "generate"),
    "runs": _area(
        "prepare.py start.py train.py runs.py", "test_configured.py test_train.py test_start.py"
    ),
}

ENTRIES: dict[str, list[Entry]] = {
    "fed": fed.ENTRIES,
    "adapters": adapters.ENTRIES,
    "weighting": weighting.ENTRIES,
    "metrics": metrics.ENTRIES,
    "data": data.ENTRIES,
    "evaluate": evaluate.ENTRIES,
    "weigh": weigh.ENTRIES,
    "report": report.ENTRIES,
    "checkpoint": checkpoint.ENTRIES,
    "export": export.ENTRIES,
    "generate": generate.ENTRIES,
    "runs": runs.ENTRIES,
}
