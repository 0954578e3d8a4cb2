"""An experiment: from a base, a federation and a configuration to rounds, answers and exports."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from feddpa_jax.adapters.lora import take
from feddpa_jax.config import Config
from feddpa_jax.data.folders import check_made
from feddpa_jax.devices.processes import several, together
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.evaluate.prompt import Weight
from feddpa_jax.evaluate.results import Evaluation
from feddpa_jax.export.contents import Trained
from feddpa_jax.export.export_folder import check as check_export
from feddpa_jax.export.export_folder import check_target
from feddpa_jax.export.export_folder import export as write_export
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.files.lock import hold
from feddpa_jax.hf.load import Base
from feddpa_jax.inference.scorer import Adapters
from feddpa_jax.laboratory.options import Options
from feddpa_jax.laboratory.search import Laboratory, search
from feddpa_jax.methods.method import METHODS, FedState
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.answering import Answer, answer_prompt, place_of, weigh_prompt
from feddpa_jax.run.evaluating import check_metrics, check_rule, evaluate_config, weighs_instances
from feddpa_jax.run.folder import EVALUATION, LABORATORY, RunFolder
from feddpa_jax.run.inputs import Prepared, prepare, prepare_together, prepare_values
from feddpa_jax.run.loop import Start, begin, check_beginning, play, tell_data, total_rounds
from feddpa_jax.run.opening import (
    at_hand,
    check_named,
    checked,
    folder_of,
    named_adapters,
    reread,
    restored,
    settled,
    start_alone,
)
from feddpa_jax.run.round import Round
from feddpa_jax.run.session import Session
from feddpa_jax.run.trackers import check_installed, of_evaluation, of_round
from feddpa_jax.types import Federation
from feddpa_jax.weighting.rule import Rule, Value, named
from feddpa_jax.weighting.settings import WeightingSettings

_log = logging.getLogger(__name__)


class Experiment:
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
        if weighs_instances(config, possible):
            check_rule(config)
        if possible:
            check_metrics(config)
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
        on_progress: OnProgress | None = None,
    ) -> "Experiment":
        """The experiment of a run folder, with the adapters of one of its checkpoints.

        Args:
          run_dir: the run's folder.
          overrides: changes of `eval`, `weighting`, `mesh` and `data.max_test`, as on the command
            line: "--eval.beams", "2".
          step: "last", "best" (the lowest loss) or a round's number.
          only: load the data of this client alone, if no other one will be asked.
          on_progress: as of the class.

        Raises:
          UserError: there is no run, it is damaged, or an override touches its training.
        """
        run, config = reread(folder_at(run_dir), overrides)
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

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names."""
        return self.prepared.names

    @property
    def total_rounds(self) -> int:
        """Number of rounds of the whole training, including a personalization at its end."""
        return total_rounds(self.config)

    @property
    def state(self) -> FedState:
        """The state after the last round; before the first round, the method's fresh state."""
        if self._start is None:
            self._start = begin(self.config, self.prepared, self.run)
        return self._start.state

    @property
    def adapters(self) -> Adapters:
        """The adapters of all clients, in memory.

        Raises:
          UserError: the run folder has no such checkpoint, or it is damaged.
        """
        return self._adapters()[0]

    def _adapters(self) -> tuple[Adapters, int | None]:
        """The adapters, and the round that they come from."""
        if self._named is not None:
            return self._named, None
        if self._start is None and self.run is not None:
            if self._restored is None:
                self._restored = restored(self.config, self.prepared, self.run, self._step)
            return self._restored
        state = self.state
        assert self._start is not None
        return at_hand(self.config, state), self._start.rounds - 1

    def _of(self, client: str) -> Adapters:
        """The global adapter and a client's own, which has a leading axis of 1."""
        place = place_of(self.prepared, client)
        if self._only == client and self.run is not None:
            return restored(self.config, self.prepared, self.run, self._step, only=place)[0]
        adapters = self.adapters
        local = adapters.local_C and take(adapters.local_C, np.array([place]))
        return adapters._replace(local_C=local)

    def rounds(self) -> Iterator[Round]:
        """Trains the remaining rounds.

        You can leave the iterator after any round; the next call continues from there. With a run
        folder, each round is saved, and no other process can train there at the same time.

        Raises:
          UserError: a loss or update is not finite, or nothing can be written; the last good
            round is kept.
        """
        with self._session.open() as log:
            tell_data(self.config, self.prepared)
            if self._start is None or self.run is not None:
                self._start = begin(self.config, self.prepared, self.run)
            start = self._start
            for done in play(self.config, self.prepared, self.run, start, self.on_progress):
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

    def evaluate(
        self,
        *,
        rule: Rule | str | None = None,
        weighting: WeightingSettings | None = None,
        modes: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
    ) -> Evaluation:
        """Every client answers every test instance, in every inference mode.

        Args:
          rule: a weighting rule: a function, a registered name, or "FILE.py:FUNCTION".
          weighting: how instances are weighed; the configuration's if None.
          modes: of "base", "global", "local", "fixed" and "instance"; the configuration's if None.
          metrics: names of metrics; the configuration's if None.

        Returns:
          P and TTP with intervals by metric and mode, and every answer; with a run folder, they
          are also written to its `eval/`.

        Raises:
          UserError: there are no test instances, or a mode that the adapters do not allow.
        """
        config = self._changed(rule, weighting)
        changes = {"modes": modes, "metrics": metrics}
        changes = {name: tuple(value) for name, value in changes.items() if value is not None}
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes))
        adapters, number = self._adapters()
        possible = available_modes(adapters)
        answers_with = METHODS.find(config.fed.method).answers_with
        with contextlib.ExitStack() as held:
            if self._named is not None:
                assert self.run is not None
                start_alone(self.config, self.run, held)
            if self.run is not None:
                place = self.run.path / EVALUATION
                held.enter_context(hold(place, "wait for it, then use feddpa eval", _log.warning))
            found = evaluate_config(
                config,
                self.prepared,
                adapters,
                answers_with=answers_with if answers_with in possible else possible[-1],
                round_number=number,
                folder=self.run and self.run.evaluation,
                on_progress=self.on_progress,
            )
        return found

    def weigh(
        self,
        client: str,
        prompt: str,
        *,
        input: str = "",
        rule: Rule | str | None = None,
        weighting: WeightingSettings | None = None,
    ) -> Weight:
        """The weights of a client's adapters for one prompt.

        Args:
          client: whose adapters and training data.
          prompt: the instruction.
          input: its context, if any.
          rule: as of `evaluate`.
          weighting: as of `evaluate`.

        Raises:
          UserError: there is no such client, or there are no two adapters to mix.
        """
        config = self._changed(rule, weighting)
        return weigh_prompt(config, self.prepared, self._of(client), client, prompt, input)

    def generate(
        self,
        client: str,
        prompt: str,
        *,
        input: str = "",
        mode: str | None = None,
        rule: Rule | str | None = None,
        weighting: WeightingSettings | None = None,
    ) -> Answer:
        """A client's answer to one prompt.

        Args:
          client: whose adapters answer.
          prompt: the instruction.
          input: its context, if any.
          mode: how the adapters are mixed; None: as the method does.
          rule: as of `evaluate`, for the mode "instance".
          weighting: as of `evaluate`.

        Raises:
          UserError: there is no such client, or the adapters do not allow the mode.
        """
        config = self._changed(rule, weighting)
        return answer_prompt(config, self.prepared, self._of(client), client, prompt, input, mode)

    def laboratory(
        self,
        rules: Sequence[Rule | str] | None = None,
        *,
        scales: Sequence[float] = Options().scales,
        supports: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        by: Sequence[str] = ("nll",),
        exact: int = 2,
        fresh: bool = False,
        parameters: Mapping[str, Mapping[str, Sequence[Value]]] | None = None,
    ) -> Laboratory:
        """Tries thousands of weighting settings, chosen on held-out examples (`data.validation`).

        Args:
          rules: functions, names or "FILE.py:FUNCTION"; None for all registered ones.
          scales: factors of the similarities.
          supports: numbers of training prompts per client; None: the run's, and all.
          layers: after how many layers prompts are embedded; None: each quarter of the model.
          by: metrics that settings are chosen by: "nll", "exact_match", or ranks in both.
          exact: how many of the best rules, beside the paper's, are run again with answers.
          fresh: compute the evidence again, if the run folder has some.
          parameters: by rule, values to try of its hyperparameters by name; a rule that is not here
            is tried with the values of its registration, or its defaults.

        Raises:
          UserError: there are no two adapters, or nothing was held out.
        """
        options = Options(
            rules=None if rules is None else tuple(map(named, rules)),
            scales=tuple(scales),
            supports=None if supports is None else tuple(supports),
            layers=None if layers is None else tuple(layers),
            by=tuple(by),
            exact=exact,
            fresh=fresh,
            parameters={} if parameters is None else dict(parameters),
        )
        adapters, number = self._adapters()
        folder = None if self.run is None else self.run.path / LABORATORY
        with contextlib.ExitStack() as held:
            if folder is not None:
                held.enter_context(hold(folder, "wait for it", _log.warning))
            return search(
                self.config,
                self.prepared,
                adapters,
                options,
                round_number=number,
                folder=folder,
                on_progress=self.on_progress,
            )

    def export(
        self, out: Path | str, *, mixed: float | None = None, merged: str | None = None
    ) -> Path:
        """Writes the adapters as PEFT folders, reads them back, and compares.

        Args:
          out: the target; new, or empty.
          mixed: also write both adapters of every client, mixed at this local weight, as one
            adapter of twice the rank.
          merged: also write a full model: "global", "NAME" or "NAME:W" (a client, a local weight).

        Returns:
          The folder.

        Raises:
          UserError: the target is not empty or cannot be written, or an adapter is missing.
        """
        check_target(Path(out))
        write_export(self._trained(), Path(out), mixed=mixed, merged=merged)
        return Path(out)

    def check_export(self, out: Path | str) -> None:
        """Compares an export with the experiment, tensor by tensor.

        Raises:
          UserError: it is no export, or of another run or round, or differs.
        """
        check_export(self._trained(), Path(out))

    def _trained(self) -> Trained:
        adapters, number = self._adapters()
        summary = None if self.run is None else self.run.read_summary()
        if summary is not None and summary.get("round") != number:
            summary = None
        return Trained(self.config, self.prepared, adapters, number or 0, summary)

    def _changed(self, rule: Rule | str | None, weighting: WeightingSettings | None) -> Config:
        """The configuration with other weighting settings."""
        own = weighting or self.config.weighting
        if rule is not None:
            own = dataclasses.replace(own, rule=named(rule))
        return dataclasses.replace(self.config, weighting=own)
