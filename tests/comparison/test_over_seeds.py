"""Gains over several runs, from differences by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.evaluate.estimating import Sample, estimate, summarize
from feddpa_jax.evaluate.evaluation import Asked
from feddpa_jax.evaluate.personalization import shares
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.findings import Finding
from feddpa_jax.laboratory.laboratory import Laboratory

CLIENTS = [fd.Client(f"c{i}", (fd.Example("x", "y", task="ab"[i % 2]),)) for i in range(4)]
METRICS = ("nll", "exact_match")


def instances(name: str) -> tuple[fd.Example, ...]:
    """Twelve of each task."""
    return tuple(fd.Example(f"{name} {i}", str(i), task="ab"[i // 12]) for i in range(24))


def gains(seed: int, span: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-span, span / 2, (4, 24))


def found(seed: int, first: str, name: str = "") -> Laboratory:
    """Two findings, of which one was chosen; instances of its own by name."""
    unknown: Any = None
    made = {
        label: Finding(
            Candidate(label, None, np.zeros((4, 24))),
            *({}, {}, {}),
            gain_CI={metric: gains(seed + 10 * at, 1.0) for metric in METRICS},
        )
        for at, label in enumerate(("paper", "best gate", "best cosine"))
    }
    best = ((first, fd.WeightingSettings()),)
    asked = Asked(CLIENTS, instances(name))
    return Laboratory(tuple(made.values()), (), best, {}, "", unknown, asked)


def test_first_choices_may_differ():
    """Of runs 0, 1 and 2; each takes its own choice's differences, on instances of its own."""
    chosen = ("best gate", "best cosine", "best gate")
    gain = fd.over_seeds([found(s, first, f"run {s}") for s, first in enumerate(chosen)])
    assert gain.keys() == set(METRICS)
    tasks = Asked(CLIENTS, instances("")).tasks()
    own = [summarize(gains(at, 1.0), tasks, paired=True) for at in (10, 21, 12)]
    for measure, values in (("P", [s.p.value for s in own]), ("TTP", [s.ttp.value for s in own])):
        ours = gain["nll"][measure]
        assert ours.by_seed == pytest.approx(values)
        assert ours.value == pytest.approx(np.mean(values))
        assert ours.over_seeds is not None and ours.over_seeds.known
        # Each run's instances are others, so that their variances add.
        share_CK = shares(tasks.own_CK)[measure]
        samples = [Sample([gains(at, 1.0)], tasks) for at in (10, 21, 12)]
        theirs = estimate(samples, [share_CK] * 3, paired=True)
        together = estimate([Sample([one.mean for one in samples], tasks)], [share_CK], paired=True)
        assert ours.over_instances == theirs.over_instances != together.over_instances


def test_a_finding_by_label_on_the_same_instances():
    """Scores of runs that asked the same are averaged answer by answer."""
    runs = [found(seed, "best gate") for seed in (0, 1)]
    gain = fd.over_seeds(runs, "paper")
    mean_CI = (gains(0, 1.0) + gains(1, 1.0)) / 2
    theirs = summarize(mean_CI, runs[0].asked.tasks(), paired=True)
    for measure, expected in (("P", theirs.p), ("TTP", theirs.ttp)):
        assert gain["nll"][measure].value == pytest.approx(expected.value)
        for kind in ("over_instances", "over_clients"):
            ours, other = (getattr(one, kind) for one in (gain["nll"][measure], expected))
            assert (ours.low, ours.high) == pytest.approx((other.low, other.high))


def test_exact_match_knows_its_ends():
    """In %, no interval of a difference leaves -100 to 100, or is too short for few instances."""
    gain = fd.over_seeds([found(0, "paper")])
    wide, narrow = gain["exact_match"]["TTP"].over_instances, gain["nll"]["TTP"].over_instances
    assert wide.high - wide.low > narrow.high - narrow.low
    assert gain["exact_match"]["TTP"].over_seeds is None


def test_what_is_not_there_is_told():
    with pytest.raises(fd.UserError, match="names no laboratory"):
        fd.over_seeds([])
    runs = [found(0, "paper"), dataclasses.replace(found(1, "paper"), findings=())]
    with pytest.raises(fd.UserError, match="run 0 has no finding 'cosine'; it has paper, best g"):
        fd.over_seeds(runs, "cosine")
    with pytest.raises(fd.UserError, match="run 1 has no finding 'paper'"):
        fd.over_seeds(runs)
