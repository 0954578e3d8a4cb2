"""Values with intervals, as text and as JSON; and which of many differences stand."""

import math
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from feddpa_jax.evaluate.holm import holm, holm_note, standing
from feddpa_jax.evaluate.interval import KINDS, OLDER, Estimate, Interval, missing_notes
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.evaluate.spread import MANY

SPAN, CLIENTS = Interval(0.54321, 0.25, 1.75, 7.0), Interval(0.54321, -0.5, 1.5, 3.0)
FOUND = Estimate(SPAN, CLIENTS, Interval.none(0.54321, "two clients"))
NOTHING = Estimate.none(math.nan, "no client has an own task in the tests")


def test_text():
    assert SPAN.text(2) == "0.54 [0.25, 1.75]" and Interval.none(1.5, "").text(1) == "1.5 [–]"
    assert FOUND.text(2) == "0.54 [0.25, 1.75] (-0.50, 1.50)"
    assert Estimate.none(1.5, "why").text(1) == "1.5 [–] (–)"
    assert NOTHING.text(2) == Interval.none(math.nan, "").text(2) == "–"
    assert METRICS["nll"].cell(FOUND, fine=True) == "0.543 [0.250, 1.750] (-0.500, 1.500)"
    assert METRICS["exact_match"].cell(SPAN) == "0.5 [0.2, 1.8]"


def test_json():
    told = FOUND.to_json()
    assert told == {
        "value": 0.54321,
        "over_instances": {"low": 0.25, "high": 1.75, "freedom": 7.0},
        "over_clients": {"low": -0.5, "high": 1.5, "freedom": 3.0},
        "over_all": {"low": None, "high": None, "freedom": None, "why": "two clients"},
    }
    again = Estimate.from_json(told)
    assert (again.over_instances, again.over_clients) == (SPAN, CLIENTS)
    assert again.over_all.why == "two clients" and not again.over_all.bounded
    nothing = Estimate.from_json(NOTHING.to_json())
    assert NOTHING.to_json()["value"] is None and not nothing.known and FOUND.known
    for damaged in ({"value": 1.0}, {**told, "over_clients": {}}):
        with pytest.raises(LookupError):
            Estimate.from_json(damaged)
    with pytest.raises(ValueError, match="low"):
        Estimate.from_json({**told, "over_clients": {**told["over_clients"], "low": "low"}})


def test_an_older_version_s_interval_is_not_shown():
    """It was a bootstrap's, too narrow at small numbers; its value is the same."""
    found = Estimate.from_json({"value": 2.0, "low": 1.0, "high": 3.0})
    assert found.value == 2.0 and not found.over_instances.bounded
    assert missing_notes([found]) == [f"No interval over instances and over clients: {OLDER}."]


def test_columns():
    columns = FOUND.columns("P")
    assert list(columns) == ["P", *(f"P_{kind}_{end}" for kind in KINDS for end in ("low", "high"))]
    assert columns["P_over_clients_low"] == -0.5 and math.isnan(columns["P_over_all_high"])


def test_notes_say_once_what_is_missing():
    few = "3 clients count, 4 are needed"
    missing = Estimate(SPAN, Interval.none(1.0, few), Interval.none(1.0, few))
    assert missing_notes([missing, missing]) == [f"No interval over clients: {few}."]
    assert missing_notes([FOUND, NOTHING]) == []


def test_p_is_that_of_the_t_test():
    values = [1.0, 2.0, 4.0, 5.0]  # No skewness: the ends are t's.
    test: Any = ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    assert Interval(3.0, low, high, 3).p == pytest.approx(test.pvalue)
    assert Interval(-3.0, -high, -low, 3).p == pytest.approx(test.pvalue)


@pytest.mark.parametrize("low", [-0.001, 0.001])
def test_p_is_below_5_percent_exactly_where_0_is_left_out(low):
    for freedom in (1.0, 7.3, MANY):
        assert (Interval(2.0, low, 9.0, freedom).p < 0.05) == (low > 0)
        assert (Interval(-2.0, -9.0, -low, freedom).p < 0.05) == (low > 0)
    assert Interval(0.0, 0.0, 0.0).p == 1 and math.isnan(Interval.none(1.0, "").p)


def test_holm_by_hand():
    # Of four, 0.05 / 4, / 3, / 2 and / 1: .0125, .0167, .025, .05.
    assert holm([0.02, 0.01, 0.04, 0.016]) == [True, True, True, True]
    assert holm([0.02, 0.013, 0.04, 0.016]) == [False] * 4
    assert holm([0.03, 0.01, 0.04, 0.016]) == [False, True, False, True]
    assert holm([math.nan, 0.001, 0.02]) == [False, True, True]
    assert holm([]) == []


def test_holm_keeps_its_promise():
    """Of ten true hypotheses, one is rejected in at most 5 of 100 worlds; uncorrected, in 40."""
    import numpy as np

    p_values = np.random.default_rng(0).random((4000, 10))
    assert np.mean([any(holm(list(own))) for own in p_values]) == pytest.approx(0.05, abs=0.012)
    assert np.mean((p_values < 0.05).any(axis=1)) > 0.35


def test_standing_of_each_kind_apart():
    def found(over_instances: float, over_clients: float) -> Estimate:
        a, b = (Interval(1.0, low, 2 - low, 50) for low in (over_instances, over_clients))
        return Estimate(a, b, a)

    sure, just, not_ = found(0.9, 0.9), found(0.01, -1.0), found(-1.0, -1.0)
    assert standing([sure]) == ["instances, clients"]
    # Alone it stands; among three it does not.
    assert standing([just]) == ["instances"]
    assert standing([just, not_, not_]) == ["–", "–", "–"]
    assert standing([just, sure, not_]) == ["–", "instances, clients", "–"]
    assert "12 differences" in holm_note(12) and "Holm" in holm_note(1)
