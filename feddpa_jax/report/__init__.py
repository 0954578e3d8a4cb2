"""Runs as one page that people look at, its figures and its tables; figures of scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feddpa_jax.report.page_files import Written
    from feddpa_jax.report.plot_style import Plot


def write_report(runs: Sequence[Path], out: Path, *, figures: Path | None = None) -> "Written":
    """Writes one page about some runs; beside it, its tables and its figures.

    Args:
      runs: folders of runs.
      out: the page, `*.html`; the tables go to `*_tables/` as CSV, Markdown and LaTeX.
      figures: a folder for the figures as SVG and PDF, as wide as a page of paper; if None, they go
        to `*_figures/` beside the page as SVG, as the page has them.

    Returns:
      Where everything is, and what is to be known about it.

    Raises:
      UserError: a folder is no run, a file in the only one is damaged, or `out` cannot be written.

    Example:
      ```
      written = write_report([Path("runs/t"), Path("runs/f")], Path("report.html"))
      print(written.page, *written.warnings)
      ```
    """
    from feddpa_jax.files.bucket import folder_at
    from feddpa_jax.report.page_files import write_page

    return write_page([folder_at(run) for run in runs], Path(out), figures)


def plot_scores(
    *scores: Any, metric: str | None = None, names: Sequence[str] = (), width: float = 680
) -> "Plot":
    """P against TTP: a point for each evaluation and mode, with its 95 % intervals.

    Args:
      *scores: evaluations, each with `summaries`, or what that is: by mode and metric, `p` and
        `ttp` as `Estimate`; their intervals over test instances are drawn.
      metric: a name, as "exact_match" or "nll"; the first one that was evaluated if None.
      names: of the evaluations, where they are several; their methods if left out.
      width: of the figure in pixels, of which an inch has 96.

    Returns:
      A `matplotlib.figure.Figure`, which a notebook shows; `savefig` writes it.

    Raises:
      ValueError: no such metric was evaluated, or there is no P, or names are too few or too many.

    Example:
      ```
      figure = plot_scores(scores_t, scores_f, metric="nll", names=["FedDPA-T", "FedDPA-F"])
      figure.savefig("scores.pdf")
      ```
    """
    from feddpa_jax.evaluate.metrics import METRICS, in_order
    from feddpa_jax.report.scatter import Point, p_against_ttp

    summaries: list[Mapping[str, Mapping[str, Any]]]
    summaries = [getattr(one, "summaries", one) for one in scores]
    told = [getattr(one, "settings", {}) for one in scores]
    known = in_order(dict.fromkeys(m for one in summaries for own in one.values() for m in own))
    if metric is None and known:
        metric = known[0]
    if metric is None or metric not in known:
        raise ValueError(f"metric: {metric!r} was not evaluated, but {', '.join(known) or 'none'}")
    if names and len(names) != len(scores):
        raise ValueError(f"names: {len(names)} names for {len(scores)} evaluations")
    names = names or [str(own.get("method", n)) for n, own in enumerate(told, start=1)]
    points = []
    for number, (one, own, name) in enumerate(zip(summaries, told, names, strict=True)):
        modes = sorted(one, key=lambda mode, own=own: mode != own.get("answers_with", "instance"))
        for mode, by_metric in one.items():
            if metric in by_metric:
                points.append(
                    Point(
                        name=mode if len(scores) == 1 else f"{name} {mode}",
                        mode=mode,
                        group=modes.index(mode) if len(scores) == 1 else number,
                        stands_out=mode == own.get("answers_with", "instance"),
                        p=by_metric[metric].p.over_instances,
                        ttp=by_metric[metric].ttp.over_instances,
                    )
                )
    return p_against_ttp(points, METRICS.find(metric), width)
