"""How far a comparison is: which run of how many, and all runs' tokens."""

import dataclasses
import logging
from collections.abc import Sequence

from feddpa_jax.progress import OnProgress, Progress

_log = logging.getLogger(__name__)
_ALL = "all runs"


class Pace:
    """Tells a callback about the work on each run, and about all of it together."""

    def __init__(self, runs: int, on_progress: OnProgress | None):
        """Args: the number of runs, and the callback, if any."""
        self._on_progress = on_progress
        self._names: list[str] = []
        self._runs = runs
        self._now = -1
        self._whole: Progress | None = None
        self._before = 0.0

    def of_next(self, name: str) -> OnProgress:
        """The callback of the next run; runs begin in the order in which they ask for it."""
        number = len(self._names)
        self._names.append(name)

        def told(event: Progress) -> None:
            if self._on_progress is None:
                return
            if event.task == "training" and self._whole is not None:
                self._tell(self._before + event.done, event.finished)
            task = f"run {number + 1} of {self._runs}, {name}: {event.task}"
            self._on_progress(dataclasses.replace(event, task=task))

        return told

    def begin(self, runs: Sequence[tuple[int, float]]) -> None:
        """Begins with all runs.

        Args:
          runs: tokens of each, and the share of it that is trained already.
        """
        total = sum(tokens * (1 - done) for tokens, done in runs)
        if total and self._runs > 1:
            self._whole = Progress(_ALL, 0.0, total, "tokens")
            self._tell(0.0)

    def next(self, what: str) -> None:
        """Goes on to the next run, and says what becomes of it."""
        self._now += 1
        _log.info(f"run {self._now + 1} of {self._runs}: {self._names[self._now]} {what}")

    def end(self) -> None:
        """All runs are done."""
        if self._whole is not None and self._on_progress is not None:
            self._on_progress(dataclasses.replace(self._whole, finished=True))

    def _tell(self, done: float, keep: bool = False) -> None:
        assert self._whole is not None
        if keep:
            self._before = done
        note = f"run {self._now + 1} of {self._runs}" if self._now >= 0 else ""
        self._whole = dataclasses.replace(self._whole, done=done, note=note)
        if self._on_progress is not None:
            self._on_progress(self._whole)
