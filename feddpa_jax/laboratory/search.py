"""The laboratory on a run: collect, try all settings on validation, report the best on the test."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import chex
import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.evaluate.evaluation import Setting, evaluate
from feddpa_jax.evaluate.known_answers import can_match
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.modes import available_modes
from feddpa_jax.evaluate.personalization import Resamples, Summary, summarize
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.disk import to_json
from feddpa_jax.files.result_files import write_results
from feddpa_jax.inference.base_prompts import DREAMS, dream
from feddpa_jax.inference.scorer import Adapters, Scorer
from feddpa_jax.laboratory import candidates
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.collect import PARTS, Collected, Questions, collect, with_matches
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts
from feddpa_jax.laboratory.findings import (
    Finding,
    Split,
    flags,
    interpolation_error,
    judge,
    notes_on_rouge,
    summary_of,
    to_csv,
)
from feddpa_jax.laboratory.grid import CURVE_METRICS, Grid, make_curves, score_rule
from feddpa_jax.laboratory.laboratory import Laboratory
from feddpa_jax.laboratory.options import Options
from feddpa_jax.laboratory.origin import identify
from feddpa_jax.progress import OnProgress, follow
from feddpa_jax.run.evaluating import decoding, make_setting
from feddpa_jax.run.inputs import Prepared, encode
from feddpa_jax.types import Example, TokenizedExample, UserError, client_id
from feddpa_jax.weighting.gathering import prompt_alone
from feddpa_jax.weighting.rule import RULES, weighs_layers
from feddpa_jax.weighting.settings import WeightingSettings

_log = logging.getLogger(__name__)


def search(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    options: Options,
    *,
    round_number: int | None,
    folder: Path | None,
    on_progress: OnProgress | None = None,
) -> Laboratory:
    """Scores every rule on a run's adapters, and writes the findings.

    Args:
      config: the run's.
      prepared: base, clients, tokenized training examples.
      adapters: of the checkpoint in question.
      options: what was asked for.
      round_number: the checkpoint's.
      folder: where evidence and findings go; None to write none.
      on_progress: told of answers and rules.

    Raises:
      UserError: the run has no two adapters or held nothing out; the evidence there is another's.
    """
    if "instance" not in available_modes(adapters):
        if METHODS.find(config.fed.method).answers_with == "instance":
            raise UserError(
                f"--step: in the checkpoint of round {round_number} clients have no "
                "adapters of their own; use --step last, once training is at its end"
            )
        raise UserError(
            f"--run-dir: {config.fed.method} has no two adapters to mix; weigh a run of feddpa_t "
            "or feddpa_f"
        )
    rules = options.rules or tuple(rule for rule in RULES if not weighs_layers(rule))
    for rule in rules:
        if weighs_layers(rule):
            raise UserError(
                f"--rules: {rule} weighs every layer apart, and its scores lie on no curve; use "
                f"feddpa eval --weighting.rule {rule}"
            )
    files = RULES.sources(rules)
    layers = _layers(options.layers, prepared.base.model.config.layers)
    validation, validation_tokens = _validation(config, prepared)
    dreams = dream(
        prepared.base.model,
        prepared.base.tokenizer,
        TEMPLATES.find(config.data.template),
        count=DREAMS,
        seed=config.seed,
        max_length=config.data.max_length,
    )
    setting, _ = make_setting(config, prepared, dreams)
    questions = Questions(
        [client_id(client.name) for client in setting.clients],
        setting.training,
        [*validation_tokens, *setting.tokenized],
        dreams,
        layers,
    )
    collected = _collect(config, prepared, adapters, questions, options.fresh, folder, on_progress)
    can_J = can_match(
        [*validation, *setting.instances],
        questions.instances,
        prepared.base.tokenizer,
        config.eval.max_new_tokens,
    )
    collected = with_matches(collected, can_J)
    count = len(validation)
    splits = {
        name: _split(dataclasses.replace(setting, instances=instances), rows, config)
        for name, instances, rows in (
            ("validation", validation, slice(0, count)),
            ("test", setting.instances, slice(count, count + len(setting.instances))),
        )
    }
    paper = WeightingSettings(support=config.weighting.support, seed=config.seed)
    supports = options.supports or (paper.support, max(map(len, setting.training)))
    grid = Grid(options.scales, tuple(sorted(set(supports))), layers)
    best, notes, table = _try(
        rules, options.by, grid, collected, splits["validation"], config.seed, on_progress
    )
    chosen = [
        Candidate(label, settings, candidates.weigh(collected, settings))
        for label, settings in [*candidates.fixed_points(paper).items(), *best]
    ]
    chosen += candidates.bounds(
        collected,
        {name: split.tasks for name, split in splits.items()},
        {name: split.rows for name, split in splits.items()},
    )
    of_paper_CJ = next(c.weight_CJ for c in chosen if c.label == "paper")
    findings = [
        Finding(
            candidate,
            judge(collected, splits["validation"], candidate.weight_CJ),
            judge(collected, splits["test"], candidate.weight_CJ),
            judge(collected, splits["test"], candidate.weight_CJ, of_paper_CJ),
        )
        for candidate in chosen
    ]
    run_exactly = {"paper"} | {label for label, _ in best[: options.exact]}
    if options.exact:
        findings = [
            dataclasses.replace(
                finding,
                exact=_exact(
                    config, prepared, adapters, setting, splits["test"], finding, on_progress
                ),
            )
            if finding.candidate.label in run_exactly and finding.candidate.settings
            else finding
            for finding in findings
        ]
    errors = interpolation_error(collected, splits["test"])
    notes += _agreement(findings, errors)
    notes += notes_on_rouge(findings, [example.output for example in setting.instances])
    if folder is not None:
        run_dir = shlex.quote(str(folder.parent))
        notes.append(f"The best rule: feddpa eval --run-dir {run_dir} {flags(best[0][1])}")
    content = summary_of(
        collected,
        splits["test"],
        findings,
        about={
            "round": round_number,
            "chosen_by": list(options.by),
            "validation_instances": count,
            "test_instances": len(setting.instances),
            "interpolation_error": errors,
        },
    )
    if folder is not None:
        told = {"settings.csv": table, "summary.json": to_json(content)}
        write_results(folder, told, files)
    return Laboratory(tuple(findings), tuple(notes), tuple(best), content, table)


def _layers(wanted: tuple[int, ...] | None, most: int) -> tuple[int, ...]:
    layers = wanted or tuple(-(-most * quarter // 4) for quarter in range(1, 5))
    for layer in layers:
        if not 0 <= layer <= most:
            raise UserError(f"--layers: {layer} is not from 0 to {most}, the model's layers")
    # The last one is what rules embed with if they are not told.
    return tuple(sorted({*layers, most}))


def _validation(
    config: Config, prepared: Prepared
) -> tuple[tuple[Example, ...], tuple[TokenizedExample, ...]]:
    held = tuple(e for client in prepared.federation.clients for e in client.validation)
    if not held:
        raise UserError(
            "data.validation: this run held nothing out, so there is nothing to choose rules on; "
            "train one with --data.validation 16"
        )
    found = encode(config, prepared.base.tokenizer, held)
    if not found.examples:
        raise UserError("data.max_length: no held-out example is left; raise it")
    return tuple(held[i] for i in found.kept), found.examples


def _split(setting: Setting, rows: slice, config: Config) -> Split:
    tasks = setting.tasks()
    return Split(rows, tasks, Resamples.draw(tasks, config.eval.bootstrap, config.seed))


def _collect(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    questions: Questions,
    fresh: bool,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> Collected:
    if folder is None:
        cache = MemoryParts()
    else:
        cache = Cache(folder / "evidence", identify(config, prepared, adapters, questions))
        cache.open(fresh=fresh)
    examples = [*questions.instances, *questions.dreams]
    examples += [example for own in questions.training for example in own]
    total = questions.requests()
    scorer = Scorer.for_examples(
        prepared.base.model,
        adapters,
        [*examples, *map(prompt_alone, examples)],
        block_tokens=decoding(config, prepared).batch_tokens,
        times=total / (2 * len(examples)),
    )
    if isinstance(cache, Cache) and cache.holds(PARTS):
        _log.info(f"evidence: {cache.folder}, computed before")
        return collect(scorer, questions, cache)
    with follow("collecting", total, "answers", on_progress) as advance:
        return collect(scorer, questions, cache, advance)


def _try(
    rules: Sequence[str],
    by: Sequence[str],
    grid: Grid,
    collected: Collected,
    validation: Split,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[list[tuple[str, WeightingSettings]], list[str], str]:
    """The best setting of every rule, the best rule first; how long it took; all as CSV."""
    curves = make_curves(collected, validation.tasks, validation.rows)
    everything, scores = [], []
    start = time.perf_counter()
    with follow("trying", len(rules), "rules", on_progress) as advance:
        for rule in rules:
            settings = grid.settings(rule, seed)
            score_NXZ = score_rule(rule, grid, collected, curves, validation.rows, seed=seed)
            chex.assert_shape(score_NXZ, (len(settings), len(CURVE_METRICS), 2))
            everything += settings
            scores.append(score_NXZ)
            advance(1)
    seconds = time.perf_counter() - start
    score_NXZ = np.concatenate(scores)
    best = candidates.best_of_each(everything, score_NXZ, by)
    named = " and ".join(METRICS[name].short for name in by)
    note = (
        f"{len(everything):,} settings of {len(rules)} rules tried on validation in {seconds:.1f} "
        f"s; chosen by the mean of P and TTP there in {named}"
        f"{', by places' if len(by) > 1 else ''}; the best rule comes first."
    )
    labelled = [(f"best {settings.rule}", settings) for settings in best]
    return labelled, [note], to_csv(everything, score_NXZ)


def _exact(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    setting: Setting,
    test: Split,
    finding: Finding,
    on_progress: OnProgress | None,
) -> dict[str, Summary]:
    """The test scores from new forward passes, with answers where ROUGE-1 is wanted."""
    assert finding.candidate.settings is not None
    results = evaluate(
        prepared.base.model,
        adapters,
        setting,
        modes=["instance"],
        metrics=config.eval.metrics,
        weighting=finding.candidate.settings,
        fixed=config.weighting.fixed,
        decoding=decoding(config, prepared),
        on_progress=on_progress,
    )
    scores = results["instance"].scores_CI
    return {name: summarize(s, test.tasks, test.resamples) for name, s in scores.items()}


def _agreement(findings: Sequence[Finding], errors: dict[str, dict[str, float]]) -> list[str]:
    """How well interpolated and exact numbers agree, in a sentence."""
    notes = [
        "Brackets: 95 % bootstrap intervals over test instances. Bounds are no rules: they "
        "know what no client knows before it answers."
    ]
    told = []
    for name, stated in errors.items():
        digits = METRICS[name].fine_digits + 1
        text = f"{METRICS[name].short} {stated['P']:.{digits}f} and {stated['TTP']:.{digits}f}"
        pairs = [(f.exact[name], f.test[name]) for f in findings if f.exact and name in f.exact]
        if pairs:
            off_p, off_ttp = (
                max(abs(getattr(exact, z).value - getattr(test, z).value) for exact, test in pairs)
                for z in ("p", "ttp")
            )
            text += f" (seen, where run exactly: {off_p:.{digits}f} and {off_ttp:.{digits}f})"
        told.append(text)
    note = f"Interpolation is off by at most, estimated for P and TTP: {'; '.join(told)}"
    notes.append(f"{note}.")
    return notes
