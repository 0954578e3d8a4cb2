"""What a round leaves in a run's folder: a line of metrics, and a checkpoint."""

import contextlib
from collections.abc import Mapping
from typing import Any

from feddpa_jax.devices.processes import from_first
from feddpa_jax.federated.method import FedState
from feddpa_jax.run.checkpoint import prune
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.history import append_round, keep_rounds
from feddpa_jax.run.saver import Saver


def saving(run: RunFolder | None, *, keep: int) -> contextlib.AbstractContextManager[Saver | None]:
    """What writes a run's checkpoints while the context lasts; nothing for a run in memory.

    Args:
      run: its folder.
      keep: as of `Saver`.
    """
    return contextlib.nullcontext() if run is None else Saver(run.checkpoints, keep=keep)


def record(
    saver: Saver,
    known: Mapping[str, Any],
    run: RunFolder,
    number: int,
    state: FedState,
    line: Mapping[str, Any],
) -> None:
    """Writes a round's line of metrics and begins its checkpoint.

    A line without a checkpoint is removed on resuming, and its round is played again.

    Args:
      saver: of the run.
      known: the run's `identity`, which the checkpoint notes.
      run: its folder.
      number: the round.
      state: as the round left it.
      line: its line of metrics.

    Raises:
      UserError: this, or the checkpoint before, could not be written.
    """
    saver.wait()
    from_first(lambda: append_round(run.path, dict(line)))
    saver.save(
        number,
        state.server,
        {**known, "validation_loss": line.get("validation_loss"), "metrics": line},
        clients=state.clients.saved,
    )


def forget(run: RunFolder, count: int, keep: int) -> None:
    """Removes what belongs to no finished round, and what a kill kept from being removed.

    Args:
      run: its folder.
      count: how many rounds are behind it.
      keep: as of `Saver`.
    """
    keep_rounds(run.path, count)
    prune(run.checkpoints, count - 1, keep)
