"""What comes of a federation: answers, weights, evaluations, exports."""

import abc
import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.devices.processes import several
from feddpa_jax.evaluate.groups import AT_ONCE
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.evaluate.prompt import Weight
from feddpa_jax.evaluate.results import Evaluation
from feddpa_jax.export.export_folder import check as check_export
from feddpa_jax.export.export_folder import check_target
from feddpa_jax.export.export_folder import export as write_export
from feddpa_jax.export.trained import Trained
from feddpa_jax.federated.leaves import sends_own_parts
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.lock import hold
from feddpa_jax.hyperparameters import Value
from feddpa_jax.laboratory.choosing import How
from feddpa_jax.laboratory.laboratory import Laboratory
from feddpa_jax.laboratory.options import Keep, Options
from feddpa_jax.laboratory.search import search
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.answering import Answer, answer_prompt, place_of, weigh_prompt
from feddpa_jax.run.evaluating import evaluate_config, evaluated_clients
from feddpa_jax.run.folder import EVALUATION, LABORATORY, RunFolder
from feddpa_jax.run.inputs import Prepared, make_method
from feddpa_jax.run.opening import check_modes
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import Rule, named
from feddpa_jax.weighting.settings import Model, WeightingSettings

_log = logging.getLogger(__name__)


def listed(value: Any) -> tuple[Any, ...]:
    """The values of an argument; one alone is a list of one.

    >>> listed("nll"), listed([0.5, 1])
    (('nll',), (0.5, 1))
    """
    alone = isinstance(value, str) or not isinstance(value, Iterable)
    return (value,) if alone else tuple(value)


class Outcome(abc.ABC):
    """Adapters of a federation, and what can be asked of them; `Experiment` is one.

    Attributes:
      config: the configuration.
      prepared: the base on the devices, the clients, the tokenized examples.
      run: the run's folder, or None.
      on_progress: told how far long work is, or None.
    """

    config: Config
    prepared: Prepared
    run: RunFolder | None
    on_progress: OnProgress | None

    @abc.abstractmethod
    def _adapters(self, members: np.ndarray | None = None) -> tuple[Adapters, int | None]:
        """The adapters of some clients, by index, in memory, and the round that they are from.

        Args:
          members: the clients; None: all.
        """

    @abc.abstractmethod
    def _folder_for_evaluation(self, held: contextlib.ExitStack) -> None:
        """Takes what an evaluation needs of the run's folder."""

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        run = self.run and str(self.run.path)
        return short_repr(self, method=self.config.fed.method, clients=len(self.clients), run=run)

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names."""
        return self.prepared.names

    @property
    def adapters(self) -> Adapters:
        """The adapters that answers are made with, all clients' in memory.

        Raises:
          UserError: the run folder has no such checkpoint, or it is damaged.
        """
        return self._adapters()[0]

    @property
    def answers_with(self) -> str:
        """The mode that the method is judged by; the last possible one if that is not possible."""
        few = np.arange(1) if len(self.prepared.names) > AT_ONCE else None
        possible = available_modes(self._adapters(few)[0])
        wanted = METHODS.find(self.config.fed.method).answers_with
        return wanted if wanted in possible else possible[-1]

    def _check_alone(self, what: str) -> None:
        """Refuses what one process does for all."""
        if several():
            raise UserError(
                f"{what}: works in one process; open the run's folder in one, with Experiment.open"
            )

    def _of(self, client: str) -> Adapters:
        """What a client answers with, with leading axes of 1."""
        place = place_of(self.prepared, client)
        if len(self.prepared.names) > AT_ONCE:
            return self._adapters(np.array([place]))[0]
        return self.adapters.of(place)

    def evaluate(
        self,
        *,
        rule: Rule | str | None = None,
        weighting: WeightingSettings | None = None,
        modes: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] | None = None,
    ) -> Evaluation:
        """Every client answers every test instance, in every inference mode.

        Args:
          rule: a weighting rule: a function, a registered name, or "FILE.py:FUNCTION".
          weighting: how instances are weighed; the configuration's if None.
          modes: "base", "global", "local", "fixed", "instance", a method's own; None: configured.
          metrics: names of metrics; the configuration's if None.

        Returns:
          P and TTP with intervals by metric and mode, and every answer; with a run folder, they
          are also written to its `eval/`.

        Raises:
          UserError: there are no test instances, or a mode that the adapters do not allow.
        """
        self._check_alone("evaluate")
        config = self._changed(rule, weighting)
        changes = {"modes": modes, "metrics": metrics}
        changes = {name: listed(value) for name, value in changes.items() if value is not None}
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes))
        check_modes(config)
        members = evaluated_clients(config, self.prepared.names)
        _, number = self._adapters(None if members is None else members[:1])
        answers_with = self.answers_with
        with contextlib.ExitStack() as held:
            self._folder_for_evaluation(held)
            if self.run is not None:
                place = self.run.path / EVALUATION
                held.enter_context(hold(place, "wait for it, then use feddpa eval", _log.warning))
            found = evaluate_config(
                config,
                self.prepared,
                lambda members: self._adapters(members)[0],
                members,
                answers_with=answers_with,
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
        self._check_alone("weigh")
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
        self._check_alone("generate")
        config = self._changed(rule, weighting)
        return answer_prompt(config, self.prepared, self._of(client), client, prompt, input, mode)

    def laboratory(
        self,
        rules: Rule | str | Sequence[Rule | str] | None = None,
        *,
        scales: float | Sequence[float] = Options().scales,
        supports: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        embed_with: Model | Sequence[Model] | None = None,
        by: str | Sequence[str] = ("nll",),
        choose: How = "client",
        foreign: str = Options().foreign,
        keep: Keep | None = None,
        exact: int = 2,
        cells: int = Options().cells,
        fresh: bool = False,
        parameters: Mapping[str, Mapping[str, Sequence[Value]]] | None = None,
    ) -> Laboratory:
        """Tries thousands of weighting settings, chosen on held-out examples (`data.validation`).

        Args:
          rules: functions, names or "FILE.py:FUNCTION"; None for all registered ones.
          scales: factors of the similarities.
          supports: numbers of training prompts per client; None: the run's, and all.
          layers: after how many layers prompts are embedded; None: each quarter of the model.
          embed_with: of "local", "global", "base" and "mixed", what embeds prompts; None: all.
          by: metrics that settings are chosen by: "nll", "exact_match", or ranks in both.
          choose: "client": settings are chosen on each client's own held-out examples, and on
            stand-ins for foreign prompts, where answers should agree with the shared adapter's;
            "pooled": on all clients' held-out examples, which no federation has.
          foreign: where the stand-ins are from: "sample", the built-in sample's prompts; "base",
            which makes them up; or a file of public examples, whose answers are not read.
          keep: "p": each rule's setting is the one with the best TTP (with "client": the best
            agreement) of those that lose nothing on P beyond the 95 % interval over instances
            against the setting with the best P; None: the one with the best mean of both.
          exact: how many of the best rules, beside the paper's, are run again with answers.
          cells: at most so many pairs of a client and an instance are looked at; where there are
            more, of clients, held-out examples and test instances that the seed draws.
          fresh: compute the evidence again, if the run folder has some.
          parameters: by rule, values to try of its hyperparameters by name; a rule that is not here
            is tried with the values of its registration, or its defaults.

        Raises:
          UserError: there are no two adapters, nothing was held out, or too little for `keep`.
        """
        self._check_alone("laboratory")
        options = Options(
            rules=None if rules is None else tuple(map(named, listed(rules))),
            scales=listed(scales),
            supports=None if supports is None else listed(supports),
            layers=None if layers is None else listed(layers),
            embed_with=None if embed_with is None else listed(embed_with),
            by=listed(by),
            choose=choose,
            foreign=foreign,
            keep=keep,
            exact=exact,
            cells=cells,
            fresh=fresh,
            parameters={} if parameters is None else dict(parameters),
        )
        members = evaluated_clients(self.config, self.prepared.names)
        _, number = self._adapters(None if members is None else members[:1])
        folder = None if self.run is None else self.run.path / LABORATORY
        with contextlib.ExitStack() as held:
            if folder is not None:
                held.enter_context(hold(folder, "wait for it", _log.warning))
            return search(
                self.config,
                self.prepared,
                lambda members: self._adapters(members)[0],
                options,
                members=members,
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
            adapter of the sum of their ranks.
          merged: also write a full model: "global", "NAME" or "NAME:W" (a client, a local weight),
            or with the adapter of another folder of `clients/` by its name.

        Returns:
          The folder.

        Raises:
          UserError: the target is not empty or cannot be written, or an adapter is missing.
        """
        self._check_alone("export")
        check_target(Path(out))
        write_export(self._trained(), Path(out), mixed=mixed, merged=merged)
        return Path(out)

    def check_export(self, out: Path | str) -> None:
        """Compares an export with the experiment, tensor by tensor.

        Raises:
          UserError: it is no export, or of another run or round, or differs.
        """
        self._check_alone("check_export")
        check_export(self._trained(), Path(out))

    def _trained(self) -> Trained:
        adapters, number = self._adapters()
        summary = None if self.run is None else self.run.read_summary()
        if summary is not None and summary.get("round") != number:
            summary = None
        uploads = sends_own_parts(make_method(self.config, self.prepared))
        return Trained(self.config, self.prepared, adapters, number or 0, summary, uploads)

    def _changed(self, rule: Rule | str | None, weighting: WeightingSettings | None) -> Config:
        """The configuration with other weighting settings."""
        own = weighting or self.config.weighting
        name = own.rule if rule is None else named(rule)
        if name != own.rule:
            # The configuration's hyperparameters are its own rule's.
            kept = {} if weighting is None else own.parameters
            own = dataclasses.replace(own, rule=name, parameters=kept)
        return dataclasses.replace(self.config, weighting=own)
