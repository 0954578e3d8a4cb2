"""The laboratory on a run: collect, try all settings on validation, report the best on the test."""

import dataclasses
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.evaluate.evaluation import evaluate
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.evaluate.results import digest
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.disk import to_json
from feddpa_jax.files.result_files import write_results
from feddpa_jax.laboratory import candidates
from feddpa_jax.laboratory.agreement import remarks
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.cells import Drawn, draw, part_of
from feddpa_jax.laboratory.findings import (
    Finding,
    Split,
    Summaries,
    flags,
    interpolated,
    interpolation_error,
    judge,
    summarize_all,
    summary_of,
)
from feddpa_jax.laboratory.given_up import (
    References,
    find_references,
    given_up,
)
from feddpa_jax.laboratory.grid import CURVE_METRICS, Grid
from feddpa_jax.laboratory.laboratory import Laboratory, Source
from feddpa_jax.laboratory.material import Material, find_material
from feddpa_jax.laboratory.off_curve import find_exactly
from feddpa_jax.laboratory.options import Options
from feddpa_jax.laboratory.questions import Questions
from feddpa_jax.laboratory.separation import separate
from feddpa_jax.laboratory.trying import try_all
from feddpa_jax.progress import OnProgress
from feddpa_jax.run.evaluating import decoding, weighting_settings
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.training.example_sizes import sizes_of
from feddpa_jax.types import SomeClients, UserError
from feddpa_jax.weighting.looking import MIXES
from feddpa_jax.weighting.rule import RULES, learns, on_curve, sees
from feddpa_jax.weighting.settings import WeightingSettings

_log = logging.getLogger(__name__)


def search(
    config: Config,
    prepared: Prepared,
    adapters: Callable[[np.ndarray | None], Adapters],
    options: Options,
    *,
    members: np.ndarray | None = None,
    round_number: int | None,
    folder: Path | None,
    on_progress: OnProgress | None = None,
) -> Laboratory:
    """Scores every rule on a run's adapters, and writes the findings.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      adapters: gives those of some clients, by index, or from None of all.
      options: what was asked for.
      members: the clients that are looked at, by index, as far as there are cells; None: all.
      round_number: the checkpoint's.
      folder: where evidence and findings go; None to write none.
      on_progress: called as answers and rules are done.

    Raises:
      UserError: the run has no two adapters or held nothing out; the evidence there is another's.
    """
    _check_adapters(config, adapters(None if members is None else members[:1]), round_number)
    rules = _rules(options.rules)
    files = RULES.sources(rules)
    layers = _layers(options.layers, prepared.base.model.config.layers)
    prepared, own, drawn = _drawn(prepared, adapters, members, options.cells, config.seed)
    given = find_material(
        *(config, prepared, own, layers),
        fields=frozenset(name for rule in rules for name in sees(RULES.find(rule))),
        options=options,
        folder=folder,
        told=on_progress,
    )
    paper = _paper(config)
    _check_parameters(options, rules)
    grid = _grid(options, given, layers, paper)
    _check_held(rules, given.collected.questions, prepared.names)
    tried = try_all(rules, options.by, grid, given, paper, options.keep, on_progress)
    best, exactly = tried.best, _run_exactly(tried.best, options.exact)
    references = find_references(given.collected, given.choosing, options.by)
    findings = [
        _exact(config, prepared, own, given, found, on_progress)
        if found.candidate.settings and found.candidate.label in exactly
        else found
        for found in _judge_all(given, paper, best, references, on_progress)
    ]
    errors = interpolation_error(given.collected, given.test)
    notes = [] if drawn is None else [drawn.words()]
    first = next(found for found in findings if found.candidate.label == best[0][0])
    notes += [*tried.notes, *remarks(given, findings, first, errors, references)]
    if folder is not None:
        run_dir = shlex.quote(str(folder.parent))
        notes.append(f"The best rule: feddpa eval --run-dir {run_dir} {flags(best[0][1])}")
    about = {
        "round": round_number,
        "chosen_by": list(options.by),
        "keep": tried.kept and tried.kept.to_json(),
        "references": references.to_json(),
        "drawn": drawn and drawn.to_json(),
        "interpolation_error": errors,
    }
    content = _content(given, findings, about)
    if folder is not None:
        tables = {"settings.csv": tried.table, "summary.json": to_json(content)}
        write_results(folder, tables, files)
    source = _source(config, given)
    found = (content, tried.table, references, source)
    return Laboratory(tuple(findings), tuple(notes), tuple(best), *found)


def _drawn(
    prepared: Prepared,
    adapters: Callable[[np.ndarray | None], Adapters],
    members: np.ndarray | None,
    cells: int,
    seed: int,
) -> tuple[Prepared, Adapters, Drawn | None]:
    """The part of a run that is looked at, its clients' adapters, and what was drawn of it.

    Of all clients, or of these members; no others are read than those drawn.
    """
    federation, prompts_C = prepared.federation, sizes_of(prepared.training).counts_C
    if members is not None:
        some = SomeClients(federation.clients, members)
        federation = dataclasses.replace(federation, clients=some)
        prompts_C = prompts_C[members]
    drawn = draw(federation, prompts_C.tolist(), most=cells, seed=seed)
    if drawn is None:
        return prepared if members is None else prepared.of(members), adapters(members), None
    _log.info(drawn.words())
    chosen = np.array(drawn.clients) if members is None else members[drawn.clients]
    return part_of(prepared, drawn, chosen.tolist(), seed=seed), adapters(chosen), drawn


def _content(
    given: Material, findings: Sequence[Finding], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of summary.json."""
    counts = {
        "chosen_on": given.choosing.how,
        "stand_ins": given.choosing.stand_ins,
        "validation_instances": len(given.validation.tasks.task_I),
        "test_instances": len(given.setting.instances),
    }
    return summary_of(given.collected, given.test, findings, about={**about, **counts})


def _source(config: Config, given: Material) -> Source:
    """Which run, clients and instances it is about."""
    instances = tuple(map(digest, given.setting.instances))
    return Source(config, given.setting.names, instances, given.test.tasks)


def _paper(config: Config) -> WeightingSettings:
    """The paper's rule, with the run's support and seed."""
    return WeightingSettings(
        support=config.weighting.support,
        seed=config.seed,
        embed_weight=weighting_settings(config).embed_weight,
    )


def _grid(
    options: Options, given: Material, layers: tuple[int, ...], paper: WeightingSettings
) -> Grid:
    """What rules are tried with."""
    supports = options.supports or (paper.support, max(map(len, given.setting.training)))
    return Grid(
        options.scales,
        tuple(sorted(set(supports))),
        layers,
        parameters=options.parameters,
        few=options.rules is None,
        embed_with=options.embed_with or tuple(MIXES),
        embed_exactly=options.embed_with or ("local",),
        embed_weight=paper.embed_weight,
    )


def _check_parameters(options: Options, rules: Sequence[str]) -> None:
    """Refuses values of hyperparameters of rules that are not tried."""
    unused = [name for name in options.parameters if name not in rules]
    if unused:
        raise UserError(f"parameters: the rule {unused[0]!r} is not tried; name it in rules too")


def _run_exactly(best: Sequence[tuple[str, WeightingSettings]], count: int) -> set[str]:
    """The labels of what is run exactly: the best ones, and the paper's rule beside them."""
    return {"paper", *(label for label, _ in best[:count])} if count else set()


def _check_adapters(config: Config, adapters: Adapters, round_number: int | None) -> None:
    """Refuses adapters of which no two can be mixed."""
    if "instance" in available_modes(adapters):
        return
    if METHODS.find(config.fed.method).answers_with == "instance":
        raise UserError(
            f"step: in the checkpoint of round {round_number} clients have no "
            "adapters of their own; use --step last, once training is at its end"
        )
    raise UserError(
        f"run_dir: {config.fed.method} has no two adapters to mix; weigh a run of feddpa_t "
        "or feddpa_f"
    )


def _rules(wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The rules to try."""
    rules = wanted or tuple(RULES)
    for file in filter(None, map(RULES.own_file, rules)):
        if file.is_file():
            _log.info(f"rules: running the code in {file}")
    return rules


def _check_held(rules: Sequence[str], questions: Questions, names: Sequence[str]) -> None:
    """Refuses rules that learn from held-out examples where a client has none."""
    for rule in filter(learns, rules):
        for name, held_H in zip(names, questions.held, strict=True):
            if not len(held_H):
                raise UserError(
                    f"rules: {rule} learns from held-out examples, and client {name!r} has none; "
                    "leave the rule out, or train with --data.validation 16"
                )


def _layers(wanted: tuple[int, ...] | None, most: int) -> tuple[int, ...]:
    layers = wanted or tuple(-(-most * quarter // 4) for quarter in range(1, 5))
    for layer in layers:
        if not 0 <= layer <= most:
            raise UserError(f"layers: {layer} is not from 0 to {most}, the model's layers")
    # The last one is what rules embed with if they are not told.
    return tuple(sorted({*layers, most}))


def _judge_all(
    given: Material,
    paper: WeightingSettings,
    best: Sequence[tuple[str, WeightingSettings]],
    references: References,
    on_progress: OnProgress | None,
) -> list[Finding]:
    """The scores of the fixed points, of every rule at its best, and of the bounds."""
    collected, splits = given.collected, {"validation": given.validation, "test": given.test}
    of_paper_CJ = candidates.weigh(collected, paper)
    own_CI = given.test.own_cells()

    def judged(candidate: Candidate, split: Split, minus_CJ: np.ndarray | None = None) -> Summaries:
        if candidate.by_metric is None:
            return judge(collected, split, candidate.weight_CJ, minus_CJ)
        return {
            name: judge(collected, split, weight_CJ, minus_CJ)[name]
            for name, weight_CJ in candidate.by_metric.items()
        }

    def on_test(candidate: Candidate) -> dict[str, np.ndarray]:
        by_metric = candidate.by_metric or dict.fromkeys(CURVE_METRICS, candidate.weight_CJ)
        return {
            name: interpolated(collected, given.test, weight_CJ)[name]
            for name, weight_CJ in by_metric.items()
        }

    alone = interpolated(collected, given.test, np.zeros_like(of_paper_CJ))

    def found_of(candidate: Candidate) -> Finding:
        scores_CI = on_test(candidate)
        minus_global_CI = {name: scores_CI[name] - alone[name] for name in scores_CI}
        return Finding(
            candidate,
            judged(candidate, splits["validation"]),
            judged(candidate, splits["test"]),
            judged(candidate, splits["test"], of_paper_CJ),
            given_up=given_up(scores_CI, collected, given.test, references),
            minus_global_CI=minus_global_CI,
            minus_global=summarize_all(minus_global_CI, given.test, paired=True),
            separation=separate(candidate.weight_CJ[:, given.test.rows], own_CI),
        )

    exactly = [(label, settings) for label, settings in best if not on_curve(settings.rule)]
    exact = {
        finding.candidate.label: finding
        for finding in find_exactly(given, exactly, paper, references, on_progress)
    }
    found = [
        exact.get(label)
        or found_of(Candidate(label, settings, candidates.weigh(collected, settings)))
        for label, settings in [*candidates.fixed_points(paper).items(), *best]
    ]
    bounds = candidates.bounds(
        collected,
        {name: split.tasks for name, split in splits.items()},
        {name: split.rows for name, split in splits.items()},
    )
    return [*found, *map(found_of, bounds)]


def _exact(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    given: Material,
    finding: Finding,
    on_progress: OnProgress | None,
) -> Finding:
    """A finding with test scores from new forward passes, and answers where ROUGE-1 is wanted."""
    assert finding.candidate.settings is not None
    results = evaluate(
        prepared.base.model,
        adapters,
        given.setting,
        modes=["instance"],
        metrics=config.eval.metrics,
        weighting=finding.candidate.settings,
        fixed=config.weighting.fixed,
        decoding=decoding(config, prepared),
        on_progress=on_progress,
    )
    exact = summarize_all(results["instance"].scores_CI, given.test)
    return dataclasses.replace(finding, exact=exact)
