"""The grid equals a loop over its settings; choosing and bounds by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.evaluate.estimating import summarize
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.laboratory.candidates import best_of_each, bounds, places, weigh
from feddpa_jax.laboratory.collect import WEIGHTS, with_matches
from feddpa_jax.laboratory.findings import Split, interpolated, interpolation_error, judge
from feddpa_jax.laboratory.grid import Grid, interpolate, make_curves, score_rule
from feddpa_jax.laboratory.reading import score_reading_rule
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import RULES
from feddpa_jax.weighting.settings import WeightingSettings

GRID = Grid(scales=(0.3, 1.0), supports=(3, 5), layers=(1, 2))


def split(laboratory) -> Split:
    return Split(laboratory.test, laboratory.tasks)


def test_interpolation_by_hand():
    score_BWX = jnp.stack([jnp.arange(9.0), 10 + jnp.arange(9.0) ** 2])[..., None]
    weight_B = jnp.array([0.3125, 0.0625])
    # Row 0: 2.5 steps on a line; row 1: half-way between 10 and 11.
    np.testing.assert_allclose(interpolate(score_BWX, weight_B)[:, 0], [2.5, 10.5])
    for w, weight in enumerate(WEIGHTS):
        at_B = jnp.full(2, weight)
        np.testing.assert_allclose(interpolate(score_BWX, at_B), score_BWX[:, w])


@pytest.mark.parametrize("rule", ["cosine", "constant", "calibrated", "likelihood_ratio", "gate"])
def test_grid_equals_a_loop(laboratory, rule):
    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    settings = GRID.settings(rule, seed=0)
    scores_NXZ = score_rule(rule, GRID, collected, curves, part.rows, seed=0).score_NXZ
    assert scores_NXZ.shape == (len(settings), 2, 2)
    for setting, score_XZ in list(zip(settings, scores_NXZ, strict=True))[::7]:
        one = judge(collected, part, weigh(collected, setting))
        expected = [[one[m].p.value, one[m].ttp.value] for m in ("nll", "exact_match")]
        np.testing.assert_allclose(score_XZ, expected, rtol=1e-4, atol=1e-4, err_msg=str(setting))


@pytest.mark.parametrize("rows", ["test", "validation"])
def test_a_rule_that_learns_in_the_grid(laboratory, rows):
    """Clients with two held-out examples and with one; on the test, and on these examples."""
    collected, part = laboratory.collected, split(laboratory)
    if rows == "validation":
        tasks = Tasks(("add", "twice"), np.array([0, 1, 0]), np.eye(2, dtype=bool))
        part = Split(slice(0, 3), tasks)
    curves = make_curves(collected, part.tasks, part.rows)
    grid = dataclasses.replace(GRID, parameters={"held_out_gate": {"ridge": [0.1, 1.0]}})
    settings = grid.settings("held_out_gate", seed=0)
    # 4 models x 2 poolings x 2 layers x 2 values; neither supports nor scales.
    assert len(settings) == 32 and {(s.scale, s.scales) for s in settings} == {(1.0, "local")}
    scores_NXZ = score_rule("held_out_gate", grid, collected, curves, part.rows, seed=0).score_NXZ
    for setting, score_XZ in list(zip(settings, scores_NXZ, strict=True))[::7]:
        one = judge(collected, part, weigh(collected, setting))
        expected = [[one[m].p.value, one[m].ttp.value] for m in ("nll", "exact_match")]
        np.testing.assert_allclose(score_XZ, expected, rtol=1e-4, atol=1e-4, err_msg=str(setting))


def test_what_instances_add_is_p_together(laboratory):
    """Of each setting, client and row, of rules that learn too; the scores stay what they are."""
    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    plain = score_rule("held_out_gate", GRID, collected, curves, part.rows, seed=0)
    assert plain.part_NXI.shape == (len(plain.score_NXZ), 2, 0)
    told = score_rule("held_out_gate", GRID, collected, curves, part.rows, seed=0, by_instance=True)
    np.testing.assert_allclose(told.score_NXZ, plain.score_NXZ, rtol=1e-5)
    np.testing.assert_allclose(told.part_NXI.sum(axis=-1), plain.score_NXZ[..., 0], rtol=1e-5)
    setting = GRID.settings("held_out_gate", seed=0)[5]
    scores_CI = interpolated(collected, part, weigh(collected, setting))["nll"]
    expected_I = np.einsum("ci,ci->i", scores_CI, curves.share_CIZ[..., 0])
    np.testing.assert_allclose(told.part_NXI[5, 0], expected_I, rtol=1e-4)


def test_a_rule_that_reads_texts_tells_instances_too(laboratory):
    @RULES.register
    def lettered(query_text, support_text):
        known = set("".join(support_text))
        return jnp.array([len(set(text) & known) / len(set(text)) for text in query_text])

    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    try:
        settings = GRID.settings("lettered", seed=0)
        told = score_reading_rule(
            *("lettered", GRID, collected, curves, part.rows), seed=0, by_instance=True
        )
        plain = score_reading_rule("lettered", GRID, collected, curves, part.rows, seed=0)
        expected = expected_of(laboratory, settings)
    finally:
        RULES.remove("lettered")
    np.testing.assert_allclose(told.score_NXZ, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(told.part_NXI.sum(axis=-1), told.score_NXZ[..., 0], rtol=1e-5)
    assert told.part_NXI.shape == (8, 2, 4) and plain.part_NXI.shape == (8, 2, 0)


def test_a_target_that_cannot_be_answered_is_no_exact_match(laboratory):
    collected, part = laboratory.collected, split(laboratory)
    collected = dataclasses.replace(collected, greedy_CJW=np.ones_like(collected.greedy_CJW))
    can_J = np.ones(collected.greedy_CJW.shape[1], bool)
    can_J[part.rows.start] = False
    found = with_matches(collected, can_J)
    score_CIW = make_curves(found, part.tasks, part.rows).score_CIWX[..., 1]
    assert (score_CIW[:, 0] == 0.0).all()
    assert (score_CIW[:, 1:] == 100.0).all()


def test_settings_that_a_rule_cannot_tell_apart_count_once():
    # 4 models x 2 poolings x 2 layers x 2 supports x 2 scales x 2 orientations.
    assert len(set(GRID.settings("cosine", 0))) == 4 * 2 * 2 * 2 * 2 * 2
    assert len(GRID.settings("constant", 0)) == 4
    assert len(GRID.settings("entropy", 0)) == 4
    assert len(GRID.settings("calibrated_likelihood", 0)) == 8


def test_one_compilation_a_rule(laboratory, caplog):
    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    many = Grid(scales=tuple(np.linspace(0, 2, 50).tolist()), supports=(3, 5), layers=(1, 2))
    with jax.log_compiles():
        scores = score_rule("nearest", many, collected, curves, part.rows, seed=0).score_NXZ
    assert len(scores) == 16 * 2 * 100
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    assert sum("jit(score)" in message for message in compiled) == 1, compiled


@pytest.fixture
def powered():
    """A rule with hyperparameters: one that may vary within a program, one that may not."""

    @RULES.register(search={"power": (0.5, 1.0, 2.0), "top": (1, 2)})
    def powered(query_BD, support_MD, power=1.0, top=1):
        apart_BMD = query_BD[:, None] - support_MD[None]
        near_BM = 1 / (1 + jax.numpy.abs(apart_BMD).mean(axis=-1))
        return jax.lax.top_k(near_BM, top)[0].mean(axis=1) ** power

    yield powered
    RULES.remove("powered")


def expected_of(laboratory, settings: list[WeightingSettings]) -> np.ndarray:
    """P and TTP of settings as evaluation has them, one by one."""
    collected, part = laboratory.collected, split(laboratory)
    found = [judge(collected, part, weigh(collected, setting)) for setting in settings]
    return np.array(
        [[[one[m].p.value, one[m].ttp.value] for m in ("nll", "exact_match")] for one in found]
    )


def test_hyperparameters_are_searched(laboratory, powered, caplog):
    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    few = Grid((0.5, 1.0), (3,), (2,), embed_with=("local",), poolings=("last",))
    settings = few.settings("powered", 0)
    tried = [dict(setting.parameters) for setting in settings[::4]]
    assert tried == [{"top": t, "power": p} for t in (1, 2) for p in (0.5, 1.0, 2.0)]
    with jax.log_compiles():
        scores = score_rule("powered", few, collected, curves, part.rows, seed=0).score_NXZ
    compiled = [r.message for r in caplog.records if "Compiling jit(score)" in r.message]
    assert len(compiled) == 1
    np.testing.assert_allclose(scores, expected_of(laboratory, settings), rtol=1e-4, atol=1e-4)
    assert len(np.unique(scores[:, 0, 0].round(5))) > 6  # The values do matter.


def test_a_hyperparameter_that_a_rule_decides_by(laboratory):
    """It cannot be traced: each of its values is a program's own."""

    @RULES.register
    def decides(query_BD, sign=1.0):
        return jax.nn.sigmoid(query_BD[:, 0] if sign > 0 else -query_BD[:, 0])

    collected, part = laboratory.collected, split(laboratory)
    curves = make_curves(collected, part.tasks, part.rows)
    few = Grid(
        (1.0,), (3,), (2,), ("local",), ("local",), ("last",), {"decides": {"sign": [1, -1]}}
    )
    settings = few.settings("decides", 0)
    assert [setting.parameters for setting in settings] == [{"sign": 1.0}, {"sign": -1.0}]
    try:
        scores = score_rule("decides", few, collected, curves, part.rows, seed=0).score_NXZ
        expected = expected_of(laboratory, settings)
    finally:
        RULES.remove("decides")
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_places_by_hand():
    # [settings, metric, P or TTP]: the means of NLL are 2, 1.5, 1.75, those of exact match 5, 9, 9.
    scores = np.array([[[1.0, 3.0], [4, 6]], [[2.0, 1.0], [9, 9]], [[0.5, 3.0], [10, 8]]])
    np.testing.assert_allclose(places(scores, ["nll"]), [2 / 3, 0, 1 / 3])
    np.testing.assert_allclose(places(scores, ["exact_match"]), [2 / 3, 0, 0])
    np.testing.assert_allclose(places(scores, ["nll", "exact_match"]), [2 / 3, 0, 1 / 6])
    scores[1, 1, 0] = np.nan
    np.testing.assert_allclose(places(scores, ["nll", "exact_match"]), [1 / 2, np.inf, 1 / 6])


def test_the_best_of_each_rule():
    settings = [WeightingSettings(rule, scale=s) for rule in ("l2", "gate") for s in (0.1, 0.2)]
    nll_N, exact_N = np.array([4.0, 3, 2, 1]), np.array([0.0, 0, 9, 1])
    scores = np.stack([nll_N, exact_N], axis=-1)[..., None].repeat(2, axis=-1)
    assert best_of_each(settings, scores, ["nll"]) == [settings[3], settings[1]]
    assert best_of_each(settings, scores, ["exact_match"]) == [settings[2], settings[0]]
    # The gate's two stand the same by both metrics: the first of equals.
    assert best_of_each(settings, scores, ["nll", "exact_match"]) == [settings[2], settings[1]]
    # What other rules there are does not matter to the best of one.
    alone = best_of_each(settings[:2], scores[:2], ["nll", "exact_match"])
    assert alone == [settings[1]]
    scores[:2] = np.nan
    with pytest.raises(UserError, match="rules: l2 gives similarities that are not finite"):
        best_of_each(settings, scores, ["nll"])


def test_bounds_are_no_worse_than_any_weight(laboratory):
    collected, part = laboratory.collected, split(laboratory)
    both = {"validation": part.rows, "test": part.rows}
    task, answer = bounds(collected, {name: part.tasks for name in both}, both)
    assert task.is_bound
    assert answer.is_bound
    answers = interpolated(collected, part, answer.weight_CJ)["nll"]
    np.testing.assert_allclose(answers, collected.nll_CJW[:, part.rows].min(axis=-1), rtol=1e-5)
    for members_I in part.tasks.members():
        # One weight for a client's cells of a task, the best of them.
        cost_CW = collected.nll_CJW[:, part.rows][:, members_I].mean(axis=1)
        expected_C = np.array(WEIGHTS)[cost_CW.argmin(axis=-1)]
        found_CI = task.weight_CJ[:, part.rows][:, members_I]
        np.testing.assert_array_equal(found_CI, expected_C[:, None].repeat(len(members_I), axis=1))


def test_differences_are_paired(laboratory):
    collected, part = laboratory.collected, split(laboratory)
    one, other = (weigh(collected, WeightingSettings("constant", scale=s)) for s in (0.25, 0.75))
    found = judge(collected, part, one, other)["nll"]
    score_CI = (
        interpolated(collected, part, one)["nll"] - interpolated(collected, part, other)["nll"]
    )
    assert found.ttp == summarize(score_CI, part.tasks, paired=True).ttp
    assert found.ttp.value != 0


def test_interpolation_error_bounds_what_finer_weights_show(laboratory):
    collected, part = laboratory.collected, split(laboratory)
    error = interpolation_error(collected, part)
    assert error["nll"]["P"] > 0 and 0 < error["nll"]["TTP"] < 0.5
    # At weights half-way between computed ones, the truth is nearer than the stated error.
    from feddpa_jax.inference.scorer import Request

    weight = (WEIGHTS[3] + WEIGHTS[4]) / 2
    asked = laboratory.questions
    true_CI = np.stack(
        [
            laboratory.scorer(
                [Request(c, e, 1 - weight, weight) for e in asked.instances[part.rows]]
            ).nll_I
            for c in range(2)
        ]
    )
    guess = judge(collected, part, np.full((2, len(asked.instances)), weight))["nll"].ttp.value
    truth = summarize(true_CI, part.tasks).ttp.value
    assert abs(guess - truth) <= error["nll"]["TTP"]


def test_interpolation_errors_do_not_cancel(laboratory):
    part = split(laboratory)
    instances = laboratory.collected.nll_CJW[:, part.rows].shape[1]
    up = np.zeros(len(WEIGHTS))
    up[3] = 1.0  # left out when interpolating over twice the distance: off by one
    nll_CJW = np.zeros_like(laboratory.collected.nll_CJW)
    sign_I = np.where(np.arange(instances) % 2, 1.0, -1.0)
    nll_CJW[:, part.rows] = sign_I[None, :, None] * up
    collected = dataclasses.replace(laboratory.collected, nll_CJW=nll_CJW)
    error = interpolation_error(collected, part)["nll"]
    assert error == {"P": pytest.approx(1.0), "TTP": pytest.approx(1.0)}
