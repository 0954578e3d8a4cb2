"""Do nominal 95 % intervals hold the truth in 92 to 97 of 100 worlds?

Thousands of worlds are simulated at once, with the functions that `summarize` is made of; the first
test says that it makes the same of a world. What is drawn anew in each world is what a kind of
interval is over, and the truth is the expectation over such draws.
"""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from feddpa_jax.evaluate.estimating import Sample, estimate, shares
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.evaluate.spread import Spread, over_both

C = K = 8
WORLDS = 8000
OWN = np.eye(K, dtype=bool)
SHARES = shares(OWN)


def over_instances(scores_WCKI, share_CK) -> Spread:
    part_WKI = np.einsum("wcki,ck->wki", scores_WCKI, share_CK)
    spread = Spread.of(part_WKI)
    used_K = share_CK.any(axis=0)
    assert used_K.all()
    return Spread(*(np.sum(part, axis=-1) for part in vars(spread).values()))


def over_clients(scores_WCKI, share_CK) -> Spread:
    return Spread.of(C * (scores_WCKI.mean(axis=-1) * share_CK).sum(axis=-1))


def over_all(scores_WSCKI, share_CK) -> Spread:
    mean_WCKI = scores_WSCKI.mean(axis=1)
    both_W = (share_CK**2 * Spread.of(mean_WCKI).variance).sum(axis=(-2, -1))
    found = over_both(
        over_clients(mean_WCKI, share_CK), over_instances(mean_WCKI, share_CK), both_W
    )
    if scores_WSCKI.shape[1] == 1:
        return found
    seeds = Spread.of((scores_WSCKI.mean(axis=-1) * share_CK).sum(axis=(-2, -1)))
    return Spread.sum([found, Spread(seeds.variance, seeds.doubt, 0 * seeds.third)])


def value(scores_WCKI, share_CK) -> np.ndarray:
    return (scores_WCKI.mean(axis=-1) * share_CK).sum(axis=(-2, -1))


def covered(value_W, spread: Spread, true_W, least: float = 0.0) -> float:
    below_W, above_W = spread.reach(least)
    return float(np.mean((value_W - below_W <= true_W) & (true_W <= value_W + above_W)))


def floor(span: float | None, each: int) -> float:
    """The rule of three, for instances that count alike."""
    return 0.0 if span is None else 3 * span / (K * each)


@pytest.mark.parametrize("span", [None, 100.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_world_is_summarized_as_it_is_simulated(span, seeds):
    rng, each = np.random.default_rng(0), 5
    scores_SCKI = 100 * rng.beta(0.3, 0.8, (seeds, C, K, each))
    tasks = Tasks(tuple("abcdefgh"), np.repeat(np.arange(K), each), OWN)
    flat = [scores_CKI.reshape(C, K * each) for scores_CKI in scores_SCKI]
    mean_1CKI = scores_SCKI.mean(axis=0, keepdims=True)
    for share_CK in SHARES.values():
        found = estimate([Sample(flat, tasks)], [share_CK], span=span)
        nearest = floor(span, each)
        for kind, spread, least in (
            ("over_instances", over_instances(mean_1CKI, share_CK), nearest),
            ("over_clients", over_clients(mean_1CKI, share_CK), 0.0),
            ("over_all", over_all(scores_SCKI[None], share_CK), nearest),
        ):
            below, above = spread.reach(least)
            at = value(mean_1CKI, share_CK)
            span_found = getattr(found, kind)
            np.testing.assert_allclose(
                [span_found.value, span_found.low, span_found.high],
                np.concatenate([at, at - below, at + above]),
                rtol=1e-9,
            )


# Over instances. Clients' expected scores are fixed in a world, and may be any.


def nll(rng, each):
    """As of trained adapters: a coefficient of variation of 1.1, a skewness of 2.5."""
    mean_WCK = np.exp(
        rng.normal(0, 0.15, (WORLDS, C, 1))
        + rng.normal(0, 0.6, (WORLDS, 1, K))
        + rng.normal(0, 0.2, (WORLDS, C, K))
    )
    easy, own = (WORLDS, 1, K, each), (WORLDS, C, K, each)
    drawn = rng.gamma(1.5, 1 / 1.5, easy) * rng.gamma(4, 1 / 4, own)
    return mean_WCK[..., None] * drawn, mean_WCK


def long_tailed_nll(rng, each):
    """Log-normal, with a skewness of 6."""
    _, mean_WCK = nll(rng, each)
    easy, own = (WORLDS, 1, K, each), (WORLDS, C, K, each)
    drawn = np.exp(rng.normal(0, 0.8, easy) - 0.32 + rng.normal(0, 0.4, own) - 0.08)
    return mean_WCK[..., None] * drawn, mean_WCK


def nll_difference(rng, each):
    scores, mean_WCK = nll(rng, each)
    return scores * (1.05 * rng.gamma(10, 1 / 10, scores.shape) - 1), 0.05 * mean_WCK


def exact_match(rng, each, right_K=None):
    """Each task's own probability of a match, .05 to .95; clients' answers go together."""
    if right_K is None:
        right_K = rng.uniform(0.05, 0.95, (WORLDS, 1, K))
    right_WCK = np.broadcast_to(right_K, (WORLDS, C, K))
    hard = np.sqrt(0.7) * rng.normal(size=(WORLDS, 1, K, each))
    hard = hard + np.sqrt(0.3) * rng.normal(size=(WORLDS, C, K, each))
    return 100.0 * (hard < ndtri(right_WCK)[..., None]), 100 * right_WCK


def graded_match(rng, each):
    return exact_match(rng, each, np.linspace(0.05, 0.95, K))


def difference(rng, each, up, down):
    """Of two models, one of which alone is right in so many answers."""
    alike = rng.random((WORLDS, 1, K, each)) < 0.6
    shared, own = rng.random((WORLDS, 1, K, each)), rng.random((WORLDS, C, K, each))
    drawn = np.where(alike, shared, own)
    scores = 100.0 * (drawn < up) - 100.0 * (drawn > 1 - down)
    return scores, np.full((WORLDS, C, K), 100 * (up - down))


def match_difference(rng, each):
    return difference(rng, each, 0.15, 0.1)


def rare_difference(rng, each):
    return difference(rng, each, 0.04, 0.0)


def instances_covered(make, span, each) -> list[float]:
    scores, mean_WCK = make(np.random.default_rng(each), each)
    return [
        covered(
            value(scores, share_CK),
            over_instances(scores, share_CK),
            (mean_WCK * share_CK).sum(axis=(-2, -1)),
            floor(span, each),
        )
        for share_CK in SHARES.values()
    ]


@pytest.mark.parametrize("each", [4, 6, 15])
@pytest.mark.parametrize(
    ("make", "span"),
    [
        (nll, None),
        (long_tailed_nll, None),
        (nll_difference, None),
        (exact_match, 100.0),
        (graded_match, 100.0),
        (match_difference, 100.0),
    ],
)
def test_over_instances(make, span, each):
    shares = instances_covered(make, span, each)
    # Of 8,000 worlds a share is known to .003.
    assert all(0.92 <= share <= 0.975 for share in shares), shares


@pytest.mark.parametrize("each", [4, 6])
def test_over_instances_where_hardly_an_answer_differs(each):
    """No interval covers a rare event in just 95 worlds; it must not be fewer."""
    shares = instances_covered(rare_difference, 100.0, each)
    assert min(shares) >= 0.92, shares
    # By variance alone, without the rule of three.
    assert min(instances_covered(rare_difference, None, each)) < 0.88


def test_plain_t_covers_less_of_skewed_scores(monkeypatch):
    repaired = instances_covered(long_tailed_nll, None, 4)
    whole = Spread.reach
    monkeypatch.setattr(
        Spread,
        "reach",
        lambda self, least=0.0: whole(Spread(self.variance, self.doubt, 0 * self.third), least),
    )
    plain = instances_covered(long_tailed_nll, None, 4)
    assert all(a < 0.92 and b > a + 0.01 for a, b in zip(plain, repaired, strict=True))


# Over clients, and over all: effects of clients, instances and seeds add up, on a scale of which
# the score is a function with a known mean.

FUNCTIONS = {
    "linear": (lambda x: x, lambda mean, sd: mean),
    "match": (lambda x: 100.0 * (x > 0), lambda mean, sd: 100 * ndtr(mean / sd)),
    "difference": (
        lambda x: 100.0 * (x > 1.2) - 100.0 * (x < -1.4),
        lambda mean, sd: 100 * (ndtr((mean - 1.2) / sd) - ndtr((-1.4 - mean) / sd)),
    ),
}
OF_TASK_K = np.linspace(-0.6, 0.8, K)


def world(rng, each, seeds, *, client, instance, seed):
    """Scores before the function, [W, S, C, K, I]; clients have an effect on each task too."""

    def effect(sd, *axes):
        sizes = (WORLDS // 4, seeds, C, K, each)
        return sd * rng.normal(size=[n if a in axes else 1 for a, n in enumerate(sizes)])

    return (
        OF_TASK_K[:, None]
        + effect(client, 0, 2)
        + effect(client, 0, 2, 3)
        + effect(instance, 0, 3, 4)
        + effect(seed, 0, 1)
        + effect(seed, 0, 1, 2)
        + effect(0.6, 0, 1, 2, 3, 4)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("client", "each"), [(0.1, 4), (0.5, 4), (0.5, 20)])
def test_over_clients(name, client, each):
    """Instances are the same in all worlds, and clients others: of one task, as P has them."""
    rng = np.random.default_rng(each)
    score, _ = FUNCTIONS[name]
    shared_KI = OF_TASK_K[:, None] + rng.normal(0, 0.6, (K, each))
    sizes = (WORLDS, C, K, each)
    scores = score(
        shared_KI
        + rng.normal(0, client, (WORLDS, C, 1, 1))
        + rng.normal(0, client, (WORLDS, C, K, 1))
        + rng.normal(0, 0.6, sizes)
    )
    own_WC = rng.integers(K, size=(WORLDS, C))
    mean_WCK = scores.mean(axis=-1)
    values = {
        "P": np.take_along_axis(mean_WCK, own_WC[..., None], axis=-1)[..., 0],
        "TTP": mean_WCK.mean(axis=-1),
    }
    expected = {"P": mean_WCK.mean(), "TTP": mean_WCK.mean()}
    for measure, value_WC in values.items():
        share = covered(value_WC.mean(axis=-1), Spread.of(value_WC), expected[measure])
        assert 0.92 <= share <= 0.975, (measure, share)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("seeds", "effects"),
    [
        (1, {"client": 0.3, "instance": 0.6, "seed": 0.0}),
        (3, {"client": 0.3, "instance": 0.6, "seed": 0.1}),
        (3, {"client": 0.1, "instance": 0.6, "seed": 0.3}),
        (5, {"client": 0.3, "instance": 0.3, "seed": 0.3}),
    ],
)
def test_over_all(name, seeds, effects):
    rng = np.random.default_rng(seeds)
    score, mean_of = FUNCTIONS[name]
    sd = np.sqrt(2 * effects["client"] ** 2 + effects["instance"] ** 2 + 0.36)
    sd = np.hypot(sd, np.sqrt(2) * effects["seed"])
    scores = score(world(rng, 6, seeds, **effects))
    # Every task counts alike in TTP; in P too, but clients differ by their tasks: see below.
    share_CK = SHARES["TTP"]
    share = covered(
        value(scores.mean(axis=1), share_CK),
        over_all(scores, share_CK),
        float(np.mean(mean_of(OF_TASK_K, sd))),
    )
    assert 0.92 <= share <= 0.975, share


def test_over_all_of_p_is_over_clients_whose_tasks_differ():
    """Where each client has a task of its own, its instances are drawn with it."""
    rng = np.random.default_rng(0)
    scores = world(rng, 6, 1, client=0.3, instance=0.6, seed=0.0)
    whole, clients = over_all(scores, SHARES["P"]), over_clients(scores[:, 0], SHARES["P"])
    np.testing.assert_allclose(whole.variance, np.maximum(whole.variance, clients.variance))
    assert np.median(whole.variance / clients.variance) == pytest.approx(1)
