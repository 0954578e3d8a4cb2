"""The list of mutants by area, and what belongs to an area."""

from pathlib import Path
from typing import NamedTuple

from tests.mutation.areas import (
    adapters,
    checkpoint,
    comparison,
    data,
    evaluate,
    export,
    inference,
    laboratory,
    library,
    methods,
    metrics,
    partitioning,
    report,
    run,
    training,
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
    "training": _area(
        "training",
        "training/test_participation.py federated/test_clients.py training/test_step.py "
        "federated/test_methods.py training/test_engine.py training",
    ),
    "methods": _area(
        "federated hyperparameters.py",
        "federated parity/test_aggregation_oracle.py parity/test_options_oracle.py "
        "parity/test_personal_oracle.py",
    ),
    "adapters": _area("adapters", "adapters"),
    "weighting": _area("weighting", "weighting"),
    "metrics": _area("evaluate/metrics.py evaluate/personalization.py", "evaluate/test_metrics.py"),
    "data": _area("data", "data"),
    "evaluate": _area("evaluate", "evaluate"),
    "laboratory": _area("laboratory", "laboratory"),
    "report": _area("report", "report"),
    "checkpoint": _area(
        "run/checkpoint.py run/saver.py run/round_state.py run/client_files.py",
        "federated/test_clients.py run/test_saver.py run/test_checkpoint.py "
        "run/test_killed_saves.py",
    ),
    "export": _area("export hf/peft_format.py", "hf/test_peft_format.py export"),
    "inference": _area("inference", "inference"),
    "run": _area(
        "run/inputs.py run/starting_adapters.py run/loop.py run/folder.py",
        "run/test_configured.py run/test_loop.py run/test_starting_adapters.py",
    ),
    "comparison": _area("comparison", "comparison"),
    "partitioning": _area("partitioning files/call_text.py", "partitioning"),
    "library": _area(
        "registry.py checked_settings.py experiment.py outcome.py run/session.py run/recording.py",
        "test_registry.py config/test_config.py test_experiment.py test_outcome.py "
        "test_stopped_experiment.py",
    ),
}

ENTRIES: dict[str, list[Entry]] = {
    "training": training.ENTRIES,
    "methods": methods.ENTRIES,
    "adapters": adapters.ENTRIES,
    "weighting": weighting.ENTRIES,
    "metrics": metrics.ENTRIES,
    "data": data.ENTRIES,
    "evaluate": evaluate.ENTRIES,
    "laboratory": laboratory.ENTRIES,
    "report": report.ENTRIES,
    "checkpoint": checkpoint.ENTRIES,
    "export": export.ENTRIES,
    "inference": inference.ENTRIES,
    "run": run.ENTRIES,
    "comparison": comparison.ENTRIES,
    "partitioning": partitioning.ENTRIES,
    "library": library.ENTRIES,
}
