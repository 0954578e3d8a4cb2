"""One self-contained page: no script, nothing fetched."""

import dataclasses
import shlex
from collections.abc import Sequence

from feddpa_jax.evaluate.metrics import METRICS, without_words_note
from feddpa_jax.files.escape import html
from feddpa_jax.report import figures
from feddpa_jax.report.content import Run
from feddpa_jax.report.style import FIGURE_STYLE, PAGE_STYLE
from feddpa_jax.report.tables import Table

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


@dataclasses.dataclass
class Parts:
    """What the page consists of, kept by itself too as it is put in.

    Attributes:
      tables: in the page's order.
      figures: SVG by name, likewise.
    """

    tables: list[Table] = dataclasses.field(default_factory=list)
    figures: dict[str, str] = dataclasses.field(default_factory=dict)

    def table(self, made: Table) -> str:
        """A table as HTML."""
        self.tables.append(made)
        return made.to_html()

    def figure(self, name: str, svg: str, caption: str) -> str:
        """A plot with its caption as HTML."""
        self.figures[name] = svg
        return (
            f'<figure><div class="scroll" tabindex="0">{svg}</div>'
            f"<figcaption>{html(caption)}</figcaption></figure>"
        )


def make_page(runs: Sequence[Run]) -> tuple[str, Parts]:
    """The page of some runs, and its parts."""
    parts = Parts()
    sections = [
        ("scores", "Scores", _scores(runs, parts)),
        ("clients", "Clients and tasks", _clients(runs, parts)),
        ("weights", "Weights of the local adapter", _weights(runs, parts)),
        ("rules", "Weighting rules", _rules(runs, parts)),
        ("training", "Training", _training(runs, parts)),
        ("settings", "Settings", _settings(runs, parts)),
    ]
    names = ", ".join(run.label for run in runs)
    title = f"{'Run' if len(runs) == 1 else 'Runs'}: {names}"
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{content}</section>'
        for name, heading, content in sections
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="generator" content="feddpa report">'
        f"<title>{html(title)}</title><style>{FIGURE_STYLE}{PAGE_STYLE}</style></head><body>"
        f"<header><h1>{html(title)}</h1>{_lead(runs)}<nav>{links}</nav></header>"
        f"<main>{_cards(runs)}{body}</main></body></html>\n"
    )
    return page, parts


def _p(text: str, kind: str = "") -> str:
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{text}</p>"


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html(summary)}</summary>{content}</details>"


def _missing(what: str, command: str, runs: Sequence[Run]) -> str:
    named = ", ".join(run.label for run in runs)
    return _p(f"No {what} of {html(named)}: <code>{html(command)}</code> makes it.", "mute")


def _command(name: str, run: Run) -> str:
    return f"feddpa {name} --run-dir {shlex.quote(str(run.path))}"


def _lead(runs: Sequence[Run]) -> str:
    first = runs[0].config
    model, data = html(str(first.get("model.path"))), html(str(first.get("data.path")))
    clients = {len(run.summary.get("own_tasks", ())) for run in runs if run.summary}
    many = f"{count} clients, " if len(clients) == 1 and (count := clients.pop()) else ""
    same = all(
        run.config.get(name) == first.get(name)
        for run in runs
        for name in ("model.path", "data.path")
    )
    return _p(
        f"{many}{model} on {data}." if same else "Runs of several models or data.", "lead mute"
    )


def _cards(runs: Sequence[Run]) -> str:
    """The main numbers: of a run what it answers with, of several the best."""
    cards = []
    for metric in figures.metrics_of(runs):
        for measure in ("P", "TTP"):
            found = [
                (span, run)
                for run in runs
                if (mode := run.answers_with())
                and (span := figures.to_span(run.value(mode, metric, measure)))
            ]
            if not found:
                continue
            pick = min if METRICS[metric].lower_is_better else max
            span, run = pick(found, key=lambda one: one[0][0])
            digits = METRICS[metric].digits
            whose = f"{run.answers_with()} mode" if len(runs) == 1 else f"best: {run.label}"
            cards.append(
                f'<div class="card"><span>{measure}, {html(METRICS[metric].title)}</span>'
                f"<b>{span[0]:.{digits}f}</b>"
                f"<span>{span[1]:.{digits}f} to {span[2]:.{digits}f}; {html(whose)}</span></div>"
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _scores(runs: Sequence[Run], parts: Parts) -> str:
    evaluated = [run for run in runs if run.modes()]
    shown = [
        _p(
            "<b>P</b>, personalization, is the mean over clients of the score on a client’s own "
            "task. <b>TTP</b>, test-time personalization, is the mean over all tasks: what a "
            "client gets that is asked something it has not trained on. In bold and in blue: "
            "what a method answers with."
        )
    ]
    for metric in figures.metrics_of(evaluated):
        having = [r for r in evaluated if any(metric in r.metrics(m) for m in r.modes())]
        better = "Left" if METRICS[metric].lower_is_better else "Right"
        shown.append(f"<h3>{html(METRICS[metric].heading)}</h3>")
        shown.append(
            parts.figure(
                f"scores_{metric}",
                figures.score_plot(having, metric),
                f"{better} is better. Bars: 95 % bootstrap intervals over test instances. The "
                "bare model is in the table alone.",
            )
        )
        shown.append(parts.table(figures.score_table(having, metric)))
        if metric == "rouge1":
            shown += [_wordless(run) for run in having]
    if evaluated:
        shown.append(_instance_counts(evaluated))
        shown += map(_older_round, evaluated)
    against, apart = figures.paired_table(evaluated, figures.metrics_of(evaluated))
    if len(evaluated) > 1:
        shown.append("<h3>Differences between runs</h3>")
    if against is not None:
        shown.append(parts.table(against))
    if apart:
        named = html(", ".join(run.label for run in apart))
        shown.append(
            _p(
                f"Not set against {html(evaluated[0].label)}: {named}. A difference needs the "
                "same clients, tasks and test instances (data, seed, <code>data.max_test</code>), "
                "and both evaluated in the mode that their method answers with.",
                "mute",
            )
        )
    missing = [run for run in runs if not run.modes()]
    if missing:
        shown.append(_missing("evaluation", _command("eval", missing[0]), missing))
    return "".join(shown)


def _wordless(run: Run) -> str:
    summary = run.summary or {}
    note = without_words_note(summary.get("targets_without_words", 0))
    return _p(f"{html(run.label)}: {note}", "mute") if note else ""


def _instance_counts(runs: Sequence[Run]) -> str:
    counts = [len({index for _, index in run.answers}) for run in runs]
    if len(set(counts)) == 1:
        return _p(f"Evaluated on {counts[0]} test instances.", "mute")
    named = ", ".join(f"{html(run.label)} {n}" for run, n in zip(runs, counts, strict=True))
    return _p(
        f"Evaluated on unequal numbers of test instances, so compare with care: {named}.", "mute"
    )


def _older_round(run: Run) -> str:
    """What is to be known of scores of a checkpoint before the last round."""
    scored = None if run.summary is None else run.summary.get("round")
    last = run.rounds[-1]["round"] if run.rounds else None
    if scored is None or last is None or scored == last:
        return ""
    return _p(
        f"{html(run.label)}: scores are of round {scored}, the run is at round {last} (from 0); "
        f"<code>{html(_command('eval', run))}</code> evaluates that.",
        "mute",
    )


def _clients(runs: Sequence[Run], parts: Parts) -> str:
    shown = []
    for run in runs:
        mode = run.answers_with()
        if mode is None or run.summary is None:
            continue
        metrics = [m for m in METRICS if m in run.metrics(mode)]
        main = "nll" if "nll" in metrics else metrics[0]
        caption = (
            f"{METRICS[main].heading}, {run.label}, mode {mode}. The darker, the better in its "
            "column; framed: a client’s own task."
        )
        name = f"clients_{run.label}_{mode}_{main}"
        shown.append(parts.figure(name, figures.heat(run, mode, main), caption))
        others = [(m, k) for m in run.modes() for k in metrics if (m, k) != (mode, main)]
        folded = "".join(
            parts.figure(
                f"clients_{run.label}_{m}_{k}",
                figures.heat(run, m, k),
                f"{METRICS[k].heading}, {run.label}, mode {m}.",
            )
            for m, k in others
        )
        if folded:
            shown.append(_folded(f"{run.label}: other modes and metrics", folded))
    return "".join(shown) or _missing("evaluation", _command("eval", runs[0]), runs)


def _weights(runs: Sequence[Run], parts: Parts) -> str:
    rows = [(run.label, run.weights) for run in runs if run.weights]
    if not rows:
        return _missing(
            "instance-wise weights", "feddpa eval on a run of feddpa_t or feddpa_f", runs
        )
    return _p(
        "Instance-wise mixing earns its name where own and foreign instances get different weights."
    ) + parts.figure(
        "weights",
        figures.weight_plot(rows),
        "Boxes: the middle half of all instances; whiskers: 90 % of them; gap: the median.",
    )


def _rules(runs: Sequence[Run], parts: Parts) -> str:
    shown = []
    for run in runs:
        if run.laboratory is None:
            continue
        shown.append(f"<h3>{html(run.label)}</h3>")
        for metric in run.laboratory["curves"]:
            shown.append(
                parts.figure(
                    f"curves_{run.label}_{metric}",
                    figures.curve_plot(run.laboratory, metric),
                    f"{METRICS[metric].heading} of all answers at one mixing weight: 0 is the "
                    "global adapter, 1 the local one. A good rule finds each side’s best weight.",
                )
            )
        shown.append(
            parts.figure(
                f"rules_{run.label}",
                figures.rule_plot(run),
                "NLL of every rule at the setting that was best on held-out examples; left is "
                "better. Blue: run again exactly. Bounds know what no client knows beforehand.",
            )
        )
        shown.append(parts.table(figures.rule_table(run)))
        off = run.laboratory["interpolation_error"]
        errors = "; ".join(
            f"{METRICS[name].short} {own['P']:.{METRICS[name].fine_digits}f} in P and "
            f"{own['TTP']:.{METRICS[name].fine_digits}f} in TTP"
            for name, own in off.items()
        )
        by = " and ".join(METRICS[name].short for name in run.laboratory["chosen_by"])
        shown.append(
            _p(
                f"Chosen by {by} on {_shown(run, 'validation_instances')} held-out examples, "
                f"reported on {_shown(run, 'test_instances')} test instances by interpolation. "
                f"By estimate that is off by at most: {errors}.",
                "mute",
            )
        )
        rows = [(figures.rule_name(rule), rule["weights"]) for rule in run.laboratory["rules"]]
        shown.append(
            _folded(
                f"{run.label}: weights of own against foreign instances, by rule",
                parts.figure(
                    f"weights_by_rule_{run.label}", figures.weight_plot(rows), "Quantiles as above."
                ),
            )
        )
    if shown:
        return "".join(shown)
    if any(run.config.get("data.validation") for run in runs):
        return _missing("comparison of rules", _command("weigh", runs[0]), runs)
    return _p(
        "No comparison of rules: it needs held-out examples; train with <code>--data.validation "
        "16</code>, then use <code>feddpa weigh</code>.",
        "mute",
    )


def _shown(run: Run, field: str) -> str:
    assert run.laboratory is not None
    return html(str(run.laboratory[field]))


def _training(runs: Sequence[Run], parts: Parts) -> str:
    trained = [run for run in runs if run.rounds]
    shown = [parts.table(figures.cost_table(trained))] if trained else []
    for run in trained:
        for phase, svg in figures.training(run):
            caption = (
                f"{run.label}, {phase} phase: thin lines are clients, the thick one their mean."
            )
            shown.append(parts.figure(f"training_{run.label}_{phase}", svg, caption))
    return "".join(shown) or _p("No round is done yet.", "mute")


def _settings(runs: Sequence[Run], parts: Parts) -> str:
    shown = []
    if len(runs) > 1:
        shown.append(parts.table(figures.difference_table(runs)))
    for run in runs:
        shown.append(
            _folded(
                f"{run.label}: the whole configuration",
                figures.fields_table(run, run.config, "configuration").to_html(),
            )
        )
        shown.append(
            _folded(
                f"{run.label}: the environment",
                figures.fields_table(run, run.environment, "environment").to_html(),
            )
        )
    return "".join(shown)
