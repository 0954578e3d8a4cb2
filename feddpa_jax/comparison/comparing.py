"""A comparison of methods: trains and evaluates what is missing, run by run."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from feddpa_jax.comparison.compared import Comparison
from feddpa_jax.comparison.contender import Contender, contenders
from feddpa_jax.comparison.evaluated import asked_instances, saved_scores
from feddpa_jax.comparison.finished import FinishedRun, read_scores
from feddpa_jax.comparison.pace import Pace
from feddpa_jax.comparison.work import Work, with_tokens, work_of
from feddpa_jax.config import Config
from feddpa_jax.devices.processes import several
from feddpa_jax.experiment import Experiment
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.checkpoint import rounds_saved
from feddpa_jax.run.history import read_history
from feddpa_jax.run.inputs import load_data
from feddpa_jax.types import Federation, UserError

Equal = Literal["updates", "tokens"]
Modes = Literal["answer", "all"]
MOST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run of the comparison that has been checked, and perhaps trained."""

    contender: Contender
    experiment: Experiment
    work: Work
    instances: tuple[str, ...]

    @property
    def saved(self) -> int:
        """How many rounds are saved."""
        run = self.experiment.run
        saved = [] if run is None else rounds_saved(run.checkpoints)
        return saved[-1] + 1 if saved else 0

    @property
    def done(self) -> int:
        """The same, or how many there were before an evaluated run's checkpoints were removed."""
        run = self.experiment.run
        if self.saved or run is None or not (run.evaluation / "summary.json").exists():
            return self.saved
        return len(read_history(run.path))


def compare(
    config: Config,
    methods: Any,
    *,
    seeds: Sequence[int] | int | None = None,
    out: Path | str | None = None,
    against: str | None = None,
    equal: Equal = "updates",
    modes: Modes = "answer",
    base: Base | None = None,
    data: Federation | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Trains and evaluates methods on the same base, data and seeds, and compares them.

    With a folder, every run is an ordinary run folder, `out/METHOD/seed_N`. What is there already
    is not trained or evaluated again, and a run that was interrupted is resumed. You may call it
    again with more methods or seeds.

    Args:
      config: the settings of all runs; `fed.method` and `seed` do not matter.
      methods: names, "FILE.py:NAME", registered functions; each may have options of its own and
        fields of `fed`, `lora` and `weighting`: "ditto(strength=0.5)", "fedit(fed.rounds=4)".
      seeds: of the runs; the configuration's own if None.
      out: the folder; None: everything stays in memory.
      against: the method that the others are set against; the first if None.
      equal: "updates": each method as it is configured, with the same rounds, epochs and batch
        size; "tokens": each has the number of rounds that brings its trained tokens nearest to
        those of the first method.
      modes: "answer": evaluate what each method answers with; "all": all modes (those of
        `eval.modes`, if it is set).
      base: model and tokenizer; loaded as the configuration says if None.
      data: clients and test instances of all seeds; if None, loaded for each seed as the
        configuration says.
      on_progress: called with a `Progress` during long work.

    Returns:
      P and TTP of every method with intervals over instances and over seeds, paired differences,
      bytes, seconds and tokens.

    Raises:
      UserError: an unknown method or option; a folder holds a run of other settings; there are no
        test instances; or a run fails.

    Example:
      ```
      config = fd.load_config("configs/quickstart.yaml")
      found = fd.compare(config, ["fedit", "feddpa_t", "local"], seeds=[0, 1, 2], out="runs/three")
      print(found.to_pandas())
      ```
    """
    if several():
        raise UserError("compare: works in one process; train runs over several with feddpa train")
    chosen = contenders(methods)
    numbers = _seeds(config.seed if seeds is None else seeds)
    named = _against(against, chosen)
    _choose("equal", equal, ("updates", "tokens"))
    _choose("modes", modes, ("answer", "all"))
    folder = None if out is None else folder_at(out)
    for contender in chosen:  # What is wrong with one is said before anything is loaded.
        contender.config(config, numbers[0])
    base = base or load_base(config.model.path, config.model.dtype, config.model.quantize)
    pace = Pace(len(chosen) * len(numbers), on_progress)

    def place(contender: Contender, seed: int) -> Path | None:
        return None if folder is None else folder / contender.folder / f"seed_{seed}"

    runs = list(_set_up(config, chosen, numbers, place, equal, base, data, pace))
    pace.begin([(run.work.tokens, run.done / run.experiment.total_rounds) for run in runs])
    finished = []
    while runs:
        finished.append(_finish(runs.pop(0), modes, pace))
    pace.end()
    return Comparison(tuple(finished), against=named, equal=equal)


def _seeds(given: Sequence[int] | int) -> tuple[int, ...]:
    seeds = (given,) if isinstance(given, int) else tuple(given)
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
            raise UserError(f"seeds: {seed!r} is none; give whole numbers from 0 to {MOST_SEED}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: {list(seeds)}; name at least one, and each once")
    return seeds


def _against(given: str | None, chosen: Sequence[Contender]) -> str:
    if given is None:
        return chosen[0].label
    for found in (
        [one.label for one in chosen if given.replace(" ", "") == one.label.replace(" ", "")],
        [one.label for one in chosen if one.method == given],
    ):
        if len(found) == 1:
            return found[0]
    labels = ", ".join(one.label for one in chosen)
    raise UserError(f"against: {given!r} is none of the methods; name one of {labels}")


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name}: {value!r} is unknown; give {' or '.join(known)}")


def _set_up(
    config: Config,
    chosen: Sequence[Contender],
    seeds: Sequence[int],
    place: Callable[[Contender, int], Path | None],
    equal: str,
    base: Base,
    data: Federation | None,
    pace: Pace,
) -> Iterator[_Run]:
    """Every run, checked before the first one is trained."""
    for seed in seeds:
        own = data or load_data(dataclasses.replace(config, seed=seed))
        if not own.test:
            raise UserError(f"data.path: {config.data.path} has no test instance to compare on")
        first: Experiment | None = None
        target, instances = 0, ()
        for contender in chosen:
            made = contender.config(config, seed)
            if first is not None and equal == "tokens":
                made = with_tokens(made, first.prepared, target)
            given: dict[str, Any] = {
                "run_dir": place(contender, seed),
                "on_progress": pace.of_next(f"{contender.label}, seed {seed}"),
            }
            with _named_out():
                if first is None:
                    experiment = first = Experiment(base, own, made, **given)
                    target = work_of(first.config, first.prepared).tokens
                    instances = asked_instances(first.config, first.prepared)
                else:
                    experiment = first.sibling(made, **given)
            work = work_of(experiment.config, experiment.prepared)
            yield _Run(contender, experiment, work, instances)


@contextlib.contextmanager
def _named_out() -> Iterator[None]:
    """Errors about a run's folder name `out`, which it is in."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--run-dir", "--out")
        raise UserError(re.sub("^run_dir: ", "out: ", text)) from None


def _finish(run: _Run, modes: Modes, pace: Pace) -> FinishedRun:
    """Trains and evaluates what is missing of a run."""
    experiment = run.experiment
    last = experiment.total_rounds - 1
    scores = None
    if experiment.run is not None and run.done > last:
        scores = saved_scores(
            experiment.run,
            experiment.config,
            last=last,
            every=modes == "all",
            instances=run.instances,
        )
    pace.next("is done" if scores else "is trained" if run.saved > last else "trains")
    lines: Sequence[Mapping[str, Any]] = ()
    if scores is None:
        # Of a trained run there is no round left, but perhaps leftovers of a killed run.
        lines = [done.line for done in experiment.rounds()]
        found = experiment.evaluate(modes=None if modes == "all" else [experiment.answers_with])
        scores = read_scores(found.summary(), found.instances)
    folder = None if experiment.run is None else experiment.run.path
    if folder is not None:
        lines = read_history(folder)
    return FinishedRun(run.contender, experiment.config, scores, run.work, lines, folder)
