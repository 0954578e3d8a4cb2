"""Laws that the oracles of aggregation methods keep; a wrong oracle is worse than none."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.parity.reference_aggregation import (
    LoraLlama,
    Setting,
    product,
    run_fedex_lora,
    run_fedsa_lora,
    run_ffa_lora,
    run_flexlora,
    run_rolora,
    run_shared,
    truncated,
)
from tests.parity.reference_loop import run_feddpa_f
from tests.parity.tiny_federation import (
    ALPHA,
    COUNTS,
    PARTICIPANTS,
    TARGETS,
    dense_gap,
    gap,
    random_adapter,
    rounds_of,
    tiny_llama,
    work_of,
)

RATE, RANKS = 0.02, (2, 4, 3)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(tiny_llama(), alpha=ALPHA, learning_rate=RATE, examples=COUNTS)


@pytest.fixture(scope="module")
def rounds() -> list:
    return rounds_of(PARTICIPANTS)


def scaled(adapter: dict) -> dict:
    """s A B of every map."""
    rank = adapter[TARGETS[0]]["a"].shape[-1]
    return {target: ALPHA / rank * dense for target, dense in product(adapter).items()}


def shares_of(members: tuple[int, ...]) -> np.ndarray:
    counts = np.array([COUNTS[client] for client in members], float)
    return counts / counts.sum()


def ideal(trace, number: int, scales: list[float]) -> dict:
    """The mean of the participants' scaled products in a round."""
    uploads = trace.uploads[number]
    shares = shares_of(tuple(uploads))
    return {
        target: sum(
            share * scales[client] * np.einsum("LDR,LRE->LDE", pair["a"], pair["b"])
            for share, (client, pair) in zip(
                shares, ((c, each[target]) for c, each in uploads.items()), strict=True
            )
        )
        for target in TARGETS
    }


def test_all_leaves_and_equal_shares_are_fedavg_of_the_older_loop(setting, rounds):
    start = random_adapter(setting.model, 1)
    new = run_shared(dataclasses.replace(setting, examples=None), start, rounds[:1])
    old = run_feddpa_f(
        setting.model,
        start,
        [[{"global": updates} for updates in rounds[0].values()]],
        [],
        alpha=ALPHA,
        learning_rate=RATE,
    )
    assert list(new.losses[0].values()) == [each["global"] for each in old.losses[0]]
    assert gap(new.server[0], old.global_) < 1e-12
    assert gap(new.server[0], run_shared(setting, start, rounds[:1]).server[0]) > 1e-4


def test_ffa_moves_b_alone_and_its_mean_is_exact(setting, rounds):
    start = random_adapter(setting.model, 1)
    trace = run_ffa_lora(setting, start, rounds)
    for number, after in enumerate(trace.server):
        assert dense_gap(scaled(after), ideal(trace, number, 3 * [ALPHA / 4])) < 1e-12
        for target in TARGETS:
            assert np.array_equal(after[target]["a"], start[target]["a"])
            assert np.abs(after[target]["b"] - start[target]["b"]).max() > 1e-3
    both = run_shared(setting, start, rounds)
    assert dense_gap(scaled(both.server[0]), ideal(both, 0, 3 * [ALPHA / 4])) > 1e-3


def test_rolora_moves_b_then_a_then_b_and_its_mean_is_exact(setting, rounds):
    start = random_adapter(setting.model, 1)
    trace = run_rolora(setting, start, rounds)
    before = start
    for number, after in enumerate(trace.server):
        moved, still = ("b", "a") if number % 2 == 0 else ("a", "b")
        for target in TARGETS:
            assert np.array_equal(after[target][still], before[target][still])
            assert np.abs(after[target][moved] - before[target][moved]).max() > 1e-3
        assert dense_gap(scaled(after), ideal(trace, number, 3 * [ALPHA / 4])) < 1e-12
        before = after
    assert gap(trace.server[0], run_ffa_lora(setting, start, rounds[:1]).server[0]) == 0


@pytest.mark.parametrize(("shared", "kept"), [("a", "b"), ("b", "a")])
def test_fedsa_shares_one_leaf_and_keeps_the_other(setting, rounds, shared, kept):
    start = random_adapter(setting.model, 1)
    own = [random_adapter(setting.model, seed) for seed in (2, 3, 4)]
    trace = run_fedsa_lora(setting, start, own, rounds, shared)
    for number, members in enumerate(PARTICIPANTS):
        before = trace.clients[number - 1] if number else own
        for target in TARGETS:
            mean = sum(
                share * trace.uploads[number][client][target][shared]
                for share, client in zip(shares_of(members), members, strict=True)
            )
            for client in range(3):
                has = trace.clients[number][client][target]
                np.testing.assert_allclose(has[shared], mean, atol=1e-12)
                gained = np.abs(has[kept] - before[client][target][kept]).max()
                assert (gained > 1e-3) == (client in members)
    assert gap(trace.clients[-1][0], trace.clients[-1][1]) > 1e-1


def test_fedsa_does_not_carry_a_private_leaf_to_others(setting, rounds):
    start = random_adapter(setting.model, 1)
    own = [random_adapter(setting.model, seed) for seed in (2, 3, 4)]
    changed = [own[0], random_adapter(setting.model, 9), own[2]]
    first, second = (run_fedsa_lora(setting, start, each, rounds[1:2]) for each in (own, changed))
    assert first.losses == second.losses
    for client in (0, 2):
        assert gap(first.clients[0][client], second.clients[0][client]) == 0


def test_flexlora_at_full_rank_is_the_exact_mean_of_the_scaled_products(setting, rounds):
    starts = [random_adapter(setting.model, seed, rank=rank) for seed, rank in enumerate(RANKS)]
    scales = [ALPHA / rank for rank in RANKS]
    trace = run_flexlora(setting, starts, rounds)
    for number in range(len(rounds)):
        best = ideal(trace, number, scales)
        assert dense_gap(trace.dense[number], best) < 1e-12
        full = truncated(best, sum(RANKS), ALPHA / sum(RANKS))
        assert dense_gap(scaled(full), best) < 1e-5
        assert dense_gap(scaled(trace.clients[number][1]), best) > 1e-3


def test_flexlora_gives_each_client_the_nearest_update_of_its_rank(setting, rounds):
    starts = [random_adapter(setting.model, seed, rank=rank) for seed, rank in enumerate(RANKS)]
    trace = run_flexlora(setting, starts, rounds)
    for client, rank in enumerate(RANKS):
        held = trace.clients[-1][client]
        missed = {t: trace.dense[-1][t] - dense for t, dense in scaled(held).items()}
        for target in TARGETS:
            a_LDR = held[target]["a"]
            assert a_LDR.shape[-1] == rank
            unit_LRR = np.broadcast_to(np.eye(rank), (len(a_LDR), rank, rank))
            np.testing.assert_allclose(a_LDR.mT @ a_LDR, unit_LRR, atol=1e-6)
            values_LK = np.linalg.svd(trace.dense[-1][target], compute_uv=False)
            tail_L = np.sqrt((values_LK[:, rank:] ** 2).sum(1))
            norm_L = np.sqrt((missed[target] ** 2).sum((1, 2)))
            np.testing.assert_allclose(norm_L, tail_L, atol=1e-9)


def test_flexlora_does_not_depend_on_the_signs_of_singular_vectors(setting, rounds):
    start = random_adapter(setting.model, 1)
    turned = copy.deepcopy(start)
    for pair in turned.values():
        pair["a"][..., 0] *= -1
        pair["b"][:, 0] *= -1
    one, other = (run_flexlora(setting, 3 * [each], rounds) for each in (start, turned))
    assert dense_gap(one.dense[-1], other.dense[-1]) < 1e-9
    assert one.losses[-1][1] == pytest.approx(other.losses[-1][1], abs=1e-9)


def test_fedex_is_the_exact_mean_of_the_products(setting, rounds):
    start = random_adapter(setting.model, 1)
    trace = run_fedex_lora(setting, start, rounds)
    before = {target: np.zeros_like(dense) for target, dense in product(start).items()}
    for number in range(len(rounds)):
        best, has = ideal(trace, number, 3 * [ALPHA / 4]), scaled(trace.server[number])
        exact = {target: before[target] + best[target] for target in TARGETS}
        sum_ = {target: trace.dense[number][target] + has[target] for target in TARGETS}
        assert dense_gap(sum_, exact) < 1e-5
        assert dense_gap(trace.dense[number], before) > 1e-3
        before = trace.dense[number]


def test_clients_of_fedex_train_on_the_base_with_its_residual(setting, rounds):
    """The first loss of a round is that of the base under the mean of the products alone."""
    start = random_adapter(setting.model, 1)
    trace = run_fedex_lora(setting, start, rounds)
    merged = LoraLlama(setting.model, start, ALPHA)
    merged.load("global", start)
    merged.start("global", global_weight=0.0, local_weight=0.0)
    merged.add_to_base(ideal(trace, 0, 3 * [ALPHA / 4]))
    first = rounds[1][2][0]
    with torch.no_grad():
        loss = np.mean([merged.loss(micro_batch).item() for micro_batch in first])
    assert trace.losses[1][2][0] == pytest.approx(loss, abs=1e-9)
    averaged = run_shared(setting, start, rounds)
    assert averaged.losses[0] == trace.losses[0]
    assert averaged.losses[1][2][0] != pytest.approx(loss, abs=1e-4)


def test_with_one_client_methods_of_both_leaves_are_local_training(setting):
    start, rounds = random_adapter(setting.model, 1), 2 * [{0: work_of(COUNTS[0], 0)}]
    plain = run_shared(setting, start, rounds)
    fedex = run_fedex_lora(setting, start, rounds)
    fedsa = run_fedsa_lora(setting, start, [start], rounds)
    assert fedex.losses == plain.losses == fedsa.losses
    assert gap(fedex.server[-1], plain.server[-1]) < 1e-12
    assert gap(fedsa.clients[-1][0], plain.server[-1]) < 1e-12
    assert (
        dense_gap(run_flexlora(setting, [start], rounds[:1]).dense[0], scaled(plain.server[0]))
        < 1e-12
    )
