"""`feddpa check`: all that is wrong with a run, and what it would work on, before it starts.

The base's weights are not read, and no training step is compiled, so this takes seconds. Every part
of the run is tried on its own: an error in one does not hide those of the others.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.evaluate.groups import check_evaluated
from feddpa_jax.evaluate.own_tests import without_own_tests
from feddpa_jax.federated.method import METHODS
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.preflight.expected_work import ExpectedWork, expect_work
from feddpa_jax.preflight.lengths import Lengths, measure_lengths
from feddpa_jax.preflight.shown_example import ShownExample, show_example
from feddpa_jax.preflight.some_data import (
    NOT_ALL_READ,
    NOT_COUNTED,
    knows_who_is_there,
    look_at,
    more_problems,
)
from feddpa_jax.run.evaluating import check_learning, check_metrics, check_rule, weighs_instances
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.loop import resolved
from feddpa_jax.run.opening import check_modes, folder_of
from feddpa_jax.run.own_code import OF_TRAINING, announce, check_names
from feddpa_jax.run.size_check import size_problems
from feddpa_jax.run.taking_part import check_availability, clients_there
from feddpa_jax.run.trackers import check_installed
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import Federation, UserError

_Found = TypeVar("_Found")


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a check has found; what could not be found is None.

    Attributes:
      problems: what must be fixed, each one line that names it and the remedy.
      remarks: what is allowed, and may not be meant.
      lengths: the examples' numbers of tokens.
      example: one training example as the model sees it.
      work: rounds, tokens, bytes, memory and time.
      there_N: how many clients are available in each of the first rounds; where that varies.
    """

    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    lengths: Lengths | None = None
    example: ShownExample | None = None
    work: ExpectedWork | None = None
    there_N: np.ndarray | None = None

    def __repr__(self) -> str:
        """In a few lines; see `short_repr`."""
        lines = [f"problem: {problem}" for problem in self.problems]
        lines += [f"remark: {remark}" for remark in self.remarks]
        return short_repr(
            self,
            *lines,
            problems=len(self.problems),
            remarks=len(self.remarks),
            clients=self.lengths and self.lengths.clients,
            rounds=self.work and self.work.rounds,
            tokens=self.work and self.work.tokens,
        )


class Problems:
    """The problems found so far, each once."""

    def __init__(self) -> None:
        """There are none yet."""
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Notes a problem."""
        if problem not in self.found:
            self.found.append(problem)

    def tried(self, step: Callable[[], _Found]) -> _Found | None:
        """What a step gives; None if it raises a UserError, which is noted."""
        try:
            return step()
        except UserError as error:
            self.add(str(error))
            return None


def check(config: Config, *, run_dir: Path | str | None = None) -> Preflight:
    """Everything that is wrong with a run, and what it would work on.

    Args:
      config: the run's.
      run_dir: the folder that it is meant for; if a run has begun there, its pace is used.

    Returns:
      Problems instead of an exception; nothing is written.

    >>> config = Config(model={"path": "tiny"}, data={"max_length": 99_999}, lora={"rank": 99})
    >>> for problem in check(config).problems:
    ...     print(problem)
    data.max_length: 99999 is more than the 4096 positions of tiny; lower it
    lora.rank: 99 is more than the 32 rows of the widest adapted map of tiny; lower it
    """
    problems = Problems()
    _check_names(config, problems)
    dtype = problems.tried(lambda: resolved(config))
    config = config if dtype is None else dtype
    run = problems.tried(lambda: folder_of(run_dir, config))
    found = problems.tried(lambda: look_at(config))
    if found is None:
        for problem in more_problems(config):
            problems.add(problem)
    federation, part = (None, False) if found is None else found
    model = config.model
    base = problems.tried(lambda: load_base(model.path, model.dtype, model.quantize, weights=False))
    sizes = [] if base is None else size_problems(config, base.model.config)
    for problem in sizes:
        problems.add(problem)
    there_N, counted = None, True
    if federation is not None and (counted := knows_who_is_there(config, federation)):
        there_N = problems.tried(lambda: clients_there(config, federation.clients))
    if federation is not None:
        problems.tried(lambda: check_evaluated(config.eval.clients, len(federation.clients)))
    if federation is None or base is None:
        return Preflight(tuple(problems.found), there_N=there_N)
    lengths = problems.tried(lambda: measure_lengths(config, base.tokenizer, federation))
    if lengths is None:
        return Preflight(tuple(problems.found), there_N=there_N)
    if lengths.empty:
        problems.add(lengths.nothing_left(config.data.max_length))
    remarks = lengths.remarks(config.data.max_length) + own_tests(federation, lengths)
    remarks += ((NOT_ALL_READ,) if part else ()) + (() if counted else (NOT_COUNTED,))
    shown, work = None, None
    if lengths.training:
        name = federation.clients[lengths.measured[0]].name
        shown = show_example(base.tokenizer, name, lengths.training[0][0])
        fitting = config
        for problem in sizes:
            fitting = without(fitting, problem) or fitting
        said_N = there_N if config.fed.availability == "column" else None
        work = _work(fitting, base, federation, lengths, run, problems, said_N)
        work = None if sizes else work
    return Preflight(tuple(problems.found), remarks, lengths, shown, work, there_N)


def own_tests(federation: Federation, lengths: Lengths) -> tuple[str, ...]:
    """The remark that P will be empty, if it will be."""
    some = (federation.clients[place] for place in lengths.measured)
    who = "none of the clients that were looked at" if lengths.sampled else "no client"
    note = without_own_tests(some, federation.test, who)
    return () if note is None else (note,)


def without(config: Config, problem: str) -> Config | None:
    """The configuration with the default of the field, or section, that a problem names first.

    Returns:
      None if it names none, or one that has its default.

    >>> without(Config(fed={"rounds": 3}), "fed.rounds: 3 is not enough").fed.rounds
    20
    """
    name, _, field = problem.partition(":")[0].partition(".")
    if name not in {own.name for own in dataclasses.fields(config)}:
        return None
    section = getattr(config, name)
    default: Any = getattr(Config(), name)
    if field:
        if field not in {own.name for own in dataclasses.fields(section)}:
            return None
        default = dataclasses.replace(section, **{field: getattr(default, field)})
    fewer = dataclasses.replace(config, **{name: default})
    return None if fewer == config else fewer


def _work(
    config: Config,
    base: Base,
    federation: Federation,
    lengths: Lengths,
    run: RunFolder | None,
    problems: Problems,
    there_N: np.ndarray | None,
) -> ExpectedWork | None:
    """The expected work; None where something is wrong, of which all is noted.

    A field that is wrong is tried again with its default: what else is wrong shows then.
    """
    tried: Config | None = config
    while tried is not None:
        try:
            work = expect_work(tried, base, federation, lengths, run, there_N)
        except UserError as error:
            problems.add(str(error))
            tried = without(tried, str(error))
        else:
            return work if tried is config else None
    return None


def _check_learning(config: Config) -> None:
    """As `check_learning`, where the method answers with instance weights."""
    if weighs_instances(config, [METHODS.find(config.fed.method).answers_with]):
        check_learning(config)


def _check_names(config: Config, problems: Problems) -> None:
    """Notes what registries refuse; the user's own files are run, and that is said."""
    problems.tried(lambda: check_names(config))
    announce(config, OF_TRAINING)
    problems.tried(lambda: TEMPLATES.find(config.data.template))
    if problems.tried(lambda: METHODS.find(config.fed.method)) is not None:
        problems.tried(lambda: check_modes(config))
    problems.tried(lambda: check_rule(config))
    problems.tried(lambda: _check_learning(config))
    problems.tried(lambda: check_metrics(config))
    problems.tried(lambda: check_availability(config))
    problems.tried(lambda: check_installed(config.track.to))
