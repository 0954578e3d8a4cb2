"""Run folders as the other commands leave them, with names that would break a careless page."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.path import Path as MatplotlibPath

from feddpa_jax.evaluate.interval import Estimate, Interval

HOSTILE = ('<script>alert("x")</script>', "R&D's_team 50%", "Grüße_日本")
TASKS = ("a<b", "c&d", "e")


def estimate(value: float) -> Estimate:
    """No interval is symmetric, and no end of one is another's value."""
    return Estimate(
        Interval(value, value - 0.125, value + 0.375, 30.0),
        Interval(value, value - 0.25, value + 0.75, 7.0),
        Interval.none(value, "too few of all"),
    )


def interval(value: float) -> dict[str, Any]:
    return estimate(value).to_json()


def scores(start: float) -> dict:
    matrix = {
        client: {task: start + c + 0.1 * t for t, task in enumerate(TASKS)}
        for c, client in enumerate(HOSTILE)
    }
    return {"P": interval(start), "TTP": interval(start + 0.5), "matrix": matrix}


def summary() -> dict:
    modes = {
        mode: {
            "rouge1": scores(30.0 + place),
            "exact_match": scores(20.0 + 2 * place),
            "nll": scores(1.0 + place),
        }
        for place, mode in enumerate(("base", "global", "local", "instance"))
    }
    return {
        "method": "feddpa_f",
        "answers_with": "instance",
        "round": 2,
        "tasks": list(TASKS),
        "own_tasks": {client: [task] for client, task in zip(HOSTILE, TASKS, strict=True)},
        "modes": modes,
    }


def laboratory() -> dict:
    """Every kind of score has values of its own, in every rule."""
    setting = {"rule": "cosine", "scale": 0.5, "scales": "local", "support": 5}
    setting |= {"embed_with": "local", "pooling": "last", "layer": None}
    rules = [
        {"name": "cosine", "label": "paper", "bound": False, "setting": setting},
        {
            "name": "constant",
            "label": "global alone",
            "bound": False,
            "setting": setting | {"rule": "constant", "scale": 0.0},
        },
        {"name": "<b>", "label": "bound: <b>", "bound": True, "setting": None},
    ]
    for place, rule in enumerate(rules):
        rule |= {
            "words": "" if rule["bound"] else f"0.5 to local {place}",
            "validation": {"nll": scores(7.0 + place), "exact_match": scores(70.0 + place)},
            "test": {"nll": scores(1.25 + place), "exact_match": scores(20.0 + place)},
            "minus_paper": {"nll": scores(-3.0 - place), "exact_match": scores(-30.0 - place)},
            "exact": {
                "nll": scores(4.0),
                "exact_match": scores(40.0),
                "rouge1": scores(50.0),
            }
            if place == 0
            else None,
            "weights": {
                "own": [w + 0.05 * place for w in (0.1, 0.2, 0.3, 0.4, 0.5)],
                "foreign": [0, 0.05, 0.15, 0.25, 1],
            },
        }
    curve = [interval(1.0 + w / 8) for w in range(9)]
    other = [interval(4.0 - w / 8) for w in range(9)]
    return {
        "round": 2,
        "chosen_by": ["nll", "exact_match"],
        "validation_instances": 16,
        "test_instances": 12,
        "interpolation_error": {
            "nll": {"P": 0.02, "TTP": 0.01},
            "exact_match": {"P": 3.5, "TTP": 2.5},
        },
        "mix_weights": [w / 8 for w in range(9)],
        "curves": {
            "nll": {"own": curve, "foreign": other},
            "exact_match": {"own": other, "foreign": curve},
        },
        "rules": rules,
    }


def weight_of(mode: str, own: bool, index: int) -> float:
    """Own instances of the mode "instance" weigh 0.8 and more, foreign ones 0.2 and less."""
    if mode != "instance":
        return 1.0
    return 0.8 + 0.02 * index if own else 0.2 - 0.02 * index


def write_run(
    root: Path,
    name: str,
    *,
    method: str = "feddpa_f",
    evaluated: bool = True,
    weighed: bool = True,
    nll: float = 1.0,
    each: int = 2,
) -> Path:
    """Writes a run folder with so many instances of each task; parts can be left out."""
    folder = root / name
    (folder / "eval").mkdir(parents=True)
    (folder / "weigh").mkdir()
    (folder / "config.yaml").write_text(
        f"seed: 0\nmodel: {{path: '<i>tiny</i>'}}\ndata: {{path: sample}}\n"
        f"fed: {{method: {method}, rounds: 3}}\nlora: {{targets: [q_proj, v_proj]}}\n"
    )
    (folder / "environment.json").write_text(json.dumps({"packages": {"jax": "<1>"}, "cpus": 2}))
    lines = [
        {
            "round": r,
            "phases": {
                phase: {client: {"mean": start - r + c / 8} for c, client in enumerate(HOSTILE)}
                for phase, start in (("global", 3.0), ("local", 5.0))
                if phase == "global" or r
            },
            **{"real_tokens": 1000 + 10 * r, "computed_tokens": 1250 + r, "seconds": 2.0 + r},
            **{"client_bytes_received": 500_000 * (r + 1), "client_bytes_sent": 250_000 + r},
        }
        for r in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        (folder / "eval" / "summary.json").write_text(json.dumps(summary()))
        instances = [
            {
                "mode": mode,
                "client": client,
                "task": task,
                "index": index,
                "instance": f"{index:016x}",
                "local_weight": weight_of(mode, own, index),
                "scores": {
                    "nll": nll + 0.1 * index + own + 5 * (mode == "local"),
                    "exact_match": 100.0 * own,
                },
            }
            for mode in ("instance", "local")
            for client, mine in zip(HOSTILE, TASKS, strict=True)
            for index, task in enumerate(TASKS * each)
            for own in [task == mine]
        ]
        (folder / "eval" / "instances.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in instances)
        )
    if weighed:
        (folder / "weigh" / "summary.json").write_text(json.dumps(laboratory()))
    return folder


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """`write_run` into the test's own folder."""
    return functools.partial(write_run, tmp_path)


def xs(line: Line2D) -> list[float]:
    """Where a line's points are across."""
    return np.asarray(line.get_xdata(), float).tolist()


def ys(line: Line2D) -> list[float]:
    """Where a line's points are up."""
    return np.asarray(line.get_ydata(), float).tolist()


def corners(path: MatplotlibPath) -> list[list[float]]:
    """The x and y of a shape's corners."""
    return np.asarray(path.vertices, float).tolist()


@pytest.fixture
def small_run(make_run) -> Path:
    """A run of one mode and one metric."""
    folder = make_run("small", weighed=False)
    file = folder / "eval" / "summary.json"
    content = json.loads(file.read_text())
    content["modes"] = {"instance": {"nll": content["modes"]["instance"]["nll"]}}
    file.write_text(json.dumps(content))
    return folder
