"""What a run holds while it works: its folder, for itself, and its followers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from feddpa_jax.config import Config, dotted
from feddpa_jax.devices.processes import from_first, is_first
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.opening import start_alone
from feddpa_jax.run.trackers import tracking

Log = Callable[[int, Mapping[str, float]], None]


class Session:
    """Work on a run; within one that is open, another is the same."""

    def __init__(self, config: Config, run: RunFolder | None):
        """Args: the run's configuration, resolved, and its folder, or None."""
        self._config = config
        self._run = run
        self._log: Log | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Log]:
        """Keeps the folder and the followers (`track.to`) for everything within.

        Yields:
          A function that gives a step's numbers to the followers.

        Raises:
          UserError: another process works on the run, or a follower cannot be opened.
        """
        if self._log is not None:
            yield self._log
            return
        with contextlib.ExitStack() as held:
            self._log = self._begin(held)
            try:
                yield self._log
            finally:
                self._log = None

    def _begin(self, held: contextlib.ExitStack) -> Log:
        config, run = self._config, self._run
        if run is None:
            return lambda step, values: None
        from_first(lambda: start_alone(config, run, held))
        # The first process alone follows the run.
        names = config.track.to if is_first() else ()
        project = config.track.project
        return held.enter_context(tracking(names, run.path, project=project, config=dotted(config)))
