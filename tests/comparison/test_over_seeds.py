"""Differences to the global adapter over several runs, from numbers by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.evaluate.estimating import Sample, estimate, summarize
from feddpa_jax.evaluate.personalization import Tasks, shares
from feddpa_jax.laboratory.candidates import Candidate
from feddpa_jax.laboratory.findings import Finding
from feddpa_jax.laboratory.laboratory import Laboratory, Source

# Twelve instances of each task; half of the clients train on each.
TASKS = Tasks(("a", "b"), np.repeat([0, 1], 12), np.eye(2, dtype=bool)[[0, 1, 0, 1]])
METRICS = ("nll", "exact_match")


def differences(seed: int, span: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-span, span / 2, (4, 24))


def found(seed: int, first: str, name: str = "", **changes: Any) -> Laboratory:
    """Three findings, of which one was chosen; instances of its own by name."""
    unknown: Any = None
    made = {
        label: Finding(
            Candidate(label, None, np.zeros((4, 24))),
            *({}, {}, {}),
            minus_global_CI={metric: differences(seed + 10 * at, 1.0) for metric in METRICS},
        )
        for at, label in enumerate(("paper", "best gate", "best cosine"))
    }
    best = ((first, fd.WeightingSettings()),)
    asked = tuple(f"{name} {i}" for i in range(24))
    config = fd.Config(seed=seed, **changes)
    source = Source(config, tuple("wxyz"), asked, TASKS)
    return Laboratory(tuple(made.values()), (), best, {}, "", unknown, source)


def test_first_choices_may_differ():
    """Of runs 0, 1 and 2; each takes its own choice's differences, on instances of its own."""
    chosen = ("best gate", "best cosine", "best gate")
    minus = fd.over_seeds([found(s, first, f"run {s}") for s, first in enumerate(chosen)])
    assert minus.keys() == set(METRICS)
    own = [summarize(differences(at, 1.0), TASKS, paired=True) for at in (10, 21, 12)]
    for measure, values in (("P", [s.p.value for s in own]), ("TTP", [s.ttp.value for s in own])):
        ours = minus["nll"][measure]
        assert ours.by_seed == pytest.approx(values)
        assert ours.value == pytest.approx(np.mean(values))
        assert ours.over_seeds is not None and ours.over_seeds.known
        # Each run tests different instances, so that their variances add.
        share_CK = shares(TASKS.own_CK)[measure]
        samples = [Sample([differences(at, 1.0)], TASKS) for at in (10, 21, 12)]
        theirs = estimate(samples, [share_CK] * 3, paired=True)
        together = estimate([Sample([one.mean for one in samples], TASKS)], [share_CK], paired=True)
        assert ours.over_instances == theirs.over_instances != together.over_instances


def test_a_finding_by_label_on_the_same_instances():
    """Scores of runs that asked the same are averaged answer by answer."""
    runs = [found(seed, "best gate") for seed in (0, 1)]
    minus = fd.over_seeds(runs, "paper")
    mean_CI = (differences(0, 1.0) + differences(1, 1.0)) / 2
    theirs = summarize(mean_CI, TASKS, paired=True)
    for measure, expected in (("P", theirs.p), ("TTP", theirs.ttp)):
        assert minus["nll"][measure].value == pytest.approx(expected.value)
        for kind in ("over_instances", "over_clients"):
            ours, other = (getattr(one, kind) for one in (minus["nll"][measure], expected))
            assert (ours.low, ours.high) == pytest.approx((other.low, other.high))


def test_exact_match_knows_its_ends():
    """In %, no interval of a difference leaves -100 to 100, or is too short for few instances."""
    minus = fd.over_seeds([found(0, "paper")])
    wide, narrow = minus["exact_match"]["TTP"].over_instances, minus["nll"]["TTP"].over_instances
    assert wide.high - wide.low > narrow.high - narrow.low
    assert minus["exact_match"]["TTP"].over_seeds is None


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(fd.UserError, match="laboratories: names none"):
        fd.over_seeds([])
    one, other = found(0, "paper"), found(1, "paper")
    with pytest.raises(fd.UserError, match="run 0 has no finding 'cosine'; it has paper, best g"):
        fd.over_seeds([one, other], "cosine")
    none = dataclasses.replace(other, findings=())
    with pytest.raises(fd.UserError, match="run 1 has no finding 'paper'"):
        fd.over_seeds([one, none])
    with pytest.raises(fd.UserError, match="runs 0 and 2 both have the seed 0; give each"):
        fd.over_seeds([one, other, one])
    with pytest.raises(fd.UserError, match="run 1 has other settings in fed than run 0"):
        fd.over_seeds([one, found(1, "paper", fed={"rounds": 3})])
    strangers = dataclasses.replace(other.source, clients=tuple("zyxw"))
    with pytest.raises(fd.UserError, match="run 1 looked at other clients than run 0; give `cell"):
        fd.over_seeds([one, dataclasses.replace(other, source=strangers)])
    empty = dataclasses.replace(other.findings[0], minus_global_CI={})
    with pytest.raises(fd.UserError, match="run 1 has other metrics than run 0, or none"):
        fd.over_seeds([one, dataclasses.replace(other, findings=(empty,))])
