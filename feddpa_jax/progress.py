"""Progress of long work: one callback, called with values.

Messages in words go to `logging`, to the loggers below `feddpa_jax`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a task.

    Attributes:
      task: its name: "training", "scoring", "answering", "collecting", "trying", or, of weighting
        rules that lie on no curve, "trying exactly" and "running exactly".
      done: what is done, in `unit`.
      total: the whole.
      unit: "tokens", "answers" or "rules".
      note: a remark, such as the last loss.
      finished: whether this is the last call for the task.

    >>> Progress("training", 50.0, 200.0, "tokens").done
    50.0
    """

    task: str
    done: float
    total: float
    unit: str
    note: str = ""
    finished: bool = False


OnProgress = Callable[[Progress], None]


class Advance(Protocol):
    """The function that a task calls to report progress."""

    def __call__(self, amount: float, note: str = "") -> None:
        """`amount` more is done; `note` is a remark."""
        ...


@contextmanager
def follow(
    task: str, total: float, unit: str, on_progress: OnProgress | None = None
) -> Iterator[Advance]:
    """Follows a task of `total` units; yields the function that reports progress.

    Args:
      task: its name.
      total: the whole.
      unit: what is counted.
      on_progress: called at the start, with every step, and at the end unless the task fails.

    >>> seen = []
    >>> with follow("training", 2, "tokens", seen.append) as advance:
    ...     advance(2, "loss 0.5")
    >>> [(event.done, event.note, event.finished) for event in seen]
    [(0.0, '', False), (2.0, 'loss 0.5', False), (2.0, 'loss 0.5', True)]
    """
    tell = on_progress or (lambda event: None)
    now = Progress(task, 0.0, total, unit)
    tell(now)

    def advance(amount: float, note: str = "") -> None:
        nonlocal now
        now = dataclasses.replace(now, done=now.done + amount, note=note)
        tell(now)

    yield advance
    tell(dataclasses.replace(now, finished=True))
