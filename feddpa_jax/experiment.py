"""An experiment: from a base, a federation and a configuration to rounds, answers and exports."""

import contextlib
import logging
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.data.folders import check_made
from feddpa_jax.devices.compilation_cache import keep_compiled_programs
from feddpa_jax.devices.processes import several, together
from feddpa_jax.evaluate.results import Evaluation
from feddpa_jax.federated.method import METHODS, FedState
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.hf.load import Base
from feddpa_jax.outcome import Outcome
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.answering import place_of
from feddpa_jax.run.beginning import Start, begin, check_beginning, last_or_fresh, total_rounds
from feddpa_jax.run.evaluating import check_evaluation
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.inputs import Prepared, prepare, prepare_together, prepare_values
from feddpa_jax.run.loop import play, tell_data
from feddpa_jax.run.opening import (
    at_hand,
    beside,
    check_modes,
    check_named,
    checked,
    folder_of,
    last_saved,
    named_adapters,
    reread,
    restored,
    settled,
    some_of,
    start_alone,
)
from feddpa_jax.run.round import Round
from feddpa_jax.run.session import Session
from feddpa_jax.run.trackers import check_installed, of_evaluation, of_round
from feddpa_jax.types import Federation, UserError

_log = logging.getLogger(__name__)


class Experiment(Outcome):
    """A federation that trains, answers, is evaluated and is exported.

    Without a run folder everything stays in memory, the clients' own adapters included. With one,
    the experiment writes and resumes what `feddpa train` does, and saves its other results there.

    Attributes:
      config: the configuration; "auto" values are replaced by what base, data and machine give.
      prepared: the base on the devices, the clients, the tokenized examples.
      run: the run's folder, or None.

    >>> from feddpa_jax import Config, load_base, load_federation
    >>> data = load_federation("sample", max_train=2, max_test=1)
    >>> config = Config(fed={"rounds": 2, "local_epochs": 1}, lora={"rank": 2})
    >>> experiment = Experiment(load_base("tiny"), data, config)
    >>> [done.number for done in experiment.rounds()]
    [0, 1]
    """

    def __init__(
        self,
        base: Base,
        data: Federation,
        config: Config | None = None,
        *,
        run_dir: Path | str | None = None,
        on_progress: OnProgress | None = None,
    ):
        """Makes an experiment from values.

        Args:
          base: model and tokenizer; many experiments may share it.
          data: clients and test instances.
          config: all settings; the defaults if None. `model.path`, `model.dtype` and the settings
            that `data` was loaded with are taken from `base` and `data`.
          run_dir: a new folder, or that of a run with the same settings, or gs://bucket/folder;
            None: memory alone.
          on_progress: called with a `Progress` during long work.

        Raises:
          UserError: base, data and settings do not fit together, or the folder is another run's.
        """
        for name, value, kind, remedy in (
            ("base", base, Base, "load_base"),
            ("data", data, Federation, "load_federation, or Federation(clients=..., test=...)"),
            ("config", config or Config(), Config, "Config(fed={...}), or load_config"),
        ):
            if not isinstance(value, kind):
                raise UserError(f"{name}: {type(value).__name__} is none; make one with {remedy}")
        config = checked(settled(config or Config(), base, data))
        if data.source is None:
            check_made(data)
        run = folder_of(run_dir, config)
        prepared = prepare_together(config, lambda config: prepare_values(config, base, data))
        self._set_up(config, prepared, run, on_progress)
        together(lambda: check_beginning(config, prepared, run))

    def _set_up(
        self,
        config: Config,
        prepared: Prepared,
        run: RunFolder | None,
        on_progress: OnProgress | None,
    ) -> None:
        keep_compiled_programs()
        self.config = config
        self.prepared = prepared
        self.run = run
        self.on_progress = on_progress
        self._start: Start | None = None
        self._step = "last"
        self._only: str | None = None
        self._session = Session(config, run)
        self._named: Adapters | None = None
        self._restored: tuple[Adapters, int] | None = None
        self._opened: Start | None = None
        self._rounds: Callable[[], Generator[Round] | None] = lambda: None

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        run_dir: Path | str | None = None,
        evaluates: bool = False,
        on_progress: OnProgress | None = None,
    ) -> "Experiment":
        """An experiment whose base and data are loaded as the configuration says.

        Args:
          config: names the base (`model.path`) and the data (`data.path`).
          run_dir: as of the class.
          evaluates: try the weighting rule now, to find an error in it before the training.
          on_progress: as of the class.

        Raises:
          UserError: something cannot be loaded or does not fit together.
        """
        config = checked(config)
        check_installed(config.track.to)
        possible = (
            [METHODS.find(config.fed.method).answers_with] if evaluates and not several() else []
        )
        check_evaluation(config, possible)
        run = folder_of(run_dir, config)
        prepared = prepare_together(config, prepare)
        made = cls.__new__(cls)
        made._set_up(config, prepared, run, on_progress)
        together(lambda: check_beginning(config, prepared, run))
        return made

    @classmethod
    def open(
        cls,
        run_dir: Path | str,
        overrides: Sequence[str] = (),
        *,
        step: str = "last",
        only: str | None = None,
        mode: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> "Experiment":
        """The experiment of a run folder, with the adapters of one of its checkpoints.

        Args:
          run_dir: the run's folder.
          overrides: changes of `eval`, `weighting`, `mesh` and `data.max_test`, as on the command
            line: "--eval.beams", "2".
          step: "last", "best" (the lowest loss on held-out examples) or a round's number.
          only: load the data of this client alone. Only `generate` and `weigh` of this client
            are possible then.
          mode: that `generate` will be asked for, refused early if the method has none of its name.
          on_progress: as of the class.

        Raises:
          UserError: there is no run, it is damaged, or an override touches its training.
        """
        run, config = reread(folder_at(run_dir), overrides)
        check_modes(config, mode)
        made = cls.__new__(cls)
        made._set_up(config, prepare(config, only=only), run, on_progress)
        made._step, made._only = step, only
        return made

    @classmethod
    def from_adapters(
        cls,
        config: Config,
        run_dir: Path | str,
        *,
        on_progress: OnProgress | None = None,
    ) -> "Experiment":
        """An experiment that evaluates the PEFT folders that `init` names, trained anywhere.

        Raises:
          UserError: `init` names none, one does not fit, or the folder has checkpoints of its own.
        """
        config, run = checked(config), RunFolder(folder_at(run_dir))
        check_named(config, run)
        made = cls.__new__(cls)
        made._set_up(config, prepare(config), run, on_progress)
        made._named = named_adapters(config, made.prepared)
        return made

    def sibling(
        self,
        config: Config,
        *,
        run_dir: Path | str | None = None,
        on_progress: OnProgress | None = None,
    ) -> "Experiment":
        """Another experiment on the same base and data; nothing is loaded or tokenized again.

        Args:
          config: its settings; those of `model`, `data`, `mesh` and the seed are this one's.
          run_dir: as of the class.
          on_progress: as of the class.

        Raises:
          UserError: `config` has another seed, model, data or mesh, or does not fit the base; or
            the folder is another run's.
        """
        config = checked(beside(self.config, config, self.prepared))
        run = folder_of(run_dir, config)
        made = type(self).__new__(type(self))
        made._set_up(config, self.prepared, run, on_progress)
        together(lambda: check_beginning(config, self.prepared, run))
        return made

    @property
    def total_rounds(self) -> int:
        """Number of rounds of the whole training, including a personalization at its end."""
        return total_rounds(self.config)

    @property
    def state(self) -> FedState:
        """The state after the last round; before the first round, the method's fresh state."""
        self._check_everyone()
        if self._start is None and self.run is None:
            self._start = begin(self.config, self.prepared, None)
        start = self._start or last_or_fresh(self.config, self.prepared, self.run)
        return start.state

    def _adapters(self, members: np.ndarray | None = None) -> tuple[Adapters, int | None]:
        """The adapters, and the round that they come from."""
        self._check_everyone()
        if self._named is not None:
            return self._named if members is None else self._named.of(members), None
        if self._start is None and self.run is not None:
            if members is not None:
                if self._opened is None:
                    self._opened = last_saved(self.config, self.prepared, self.run, self._step)
                return some_of(self.config, self.prepared, self.run, self._opened, members)
            if self._restored is None:
                self._restored = restored(self.config, self.prepared, self.run, self._step)
            return self._restored
        found = at_hand(self.config, self.prepared, self.state, members)
        assert self._start is not None
        rounds = self._start.rounds
        return found, rounds - 1 if rounds else None

    def _check_everyone(self) -> None:
        """Refuses what rests on clients that were not read."""
        if self._only is not None:
            raise UserError(
                f"only: this experiment was opened for {self._only!r} alone; open it without only"
            )

    def _of(self, client: str) -> Adapters:
        """The global adapter and a client's own; read alone, if the others' are not wanted."""
        place = place_of(self.prepared, client)
        if self._start is not None and self._named is None:
            return at_hand(self.config, self.prepared, self._start.state, place)
        if self._only != client or self.run is None:
            return super()._of(client)
        return restored(self.config, self.prepared, self.run, self._step, only=place)[0]

    def _folder_for_evaluation(self, held: contextlib.ExitStack) -> None:
        if self._named is not None:
            assert self.run is not None
            start_alone(self.config, self.run, held)

    def rounds(self) -> Generator[Round]:
        """Trains the remaining rounds.

        You can leave the iterator after any round; the next call continues from there, and ends an
        iterator that you kept. With a run folder, each round is saved, and until the iterator is
        left or closed nobody else can train there.

        Raises:
          UserError: a loss or update is not finite, or nothing can be written; the last good
            round is kept.
        """
        self._check_everyone()
        before = self._rounds()
        if before is not None:
            before.close()
        rounds = self._play()
        # No more than a reference: an iterator that is left ends, and gives the folder back.
        self._rounds = weakref.ref(rounds)
        return rounds

    def _play(self) -> Generator[Round]:
        with self._session.open() as log:
            tell_data(self.config, self.prepared)
            if self._start is None or self.run is not None:
                self._start = begin(self.config, self.prepared, self.run)
            start = self._start
            played = play(self.config, self.prepared, self.run, start, self.on_progress)
            with contextlib.closing(played) as rounds:  # What it still writes is waited for.
                for done in rounds:
                    self._start = start._replace(state=done.state, rounds=done.number + 1)
                    log(done.number, of_round(done.line))
                    yield done

    def train(self) -> FedState:
        """Trains all remaining rounds and returns the final state."""
        for _ in self.rounds():
            pass
        return self.state

    def train_and_evaluate(self) -> Evaluation | None:
        """Trains to the end and evaluates; None without test instances, or over several processes.

        Raises:
          UserError: as `rounds` and `evaluate` do.
        """
        with self._session.open() as log:
            self.train()
            if several():
                return None
            if not self.prepared.federation.test:
                _log.info("no test instances, so nothing to evaluate")
                return None
            found = self.evaluate()
            log(self.total_rounds - 1, of_evaluation(found.summary()))
            return found
