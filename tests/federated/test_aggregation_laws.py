"""Laws of the methods that differ in the server's aggregation, and of server optimizers."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.federated.method import FedState
from feddpa_jax.federated.products import best, completed, summed
from feddpa_jax.federated.server_optimizer import server_optimizer
from feddpa_jax.run.inputs import training_data
from tests.federated.three_clients import (
    ALPHA,
    NAMES,
    TARGETS,
    bits,
    experiment,
    go_on_from,
    mean_product,
    product,
    round_from,
    spied,
)

pytestmark = pytest.mark.usefixtures("shared_steps")


def test_ffa_moves_b_alone_and_its_mean_of_products_is_exact():
    with spied("ffa_lora") as (name, seen):
        next(experiment(name).rounds())
    run = experiment("ffa_lora")
    start = run.state.server["global"]
    after = next(run.rounds()).state.server["global"]
    assert seen[0].parts_K["global"]["q_proj"].keys() == {"b"}
    for target in TARGETS:
        assert np.array_equal(after[target]["a"], start[target]["a"])
        assert np.abs(np.asarray(after[target]["b"])).max() > 1e-3
        a_KLDR = np.broadcast_to(after[target]["a"], (2, *after[target]["a"].shape))
        seen[0].parts_K["global"][target]["a"] = a_KLDR
        np.testing.assert_allclose(
            product(after[target]), mean_product(seen[0], target), atol=1e-7, rtol=1e-5
        )


def test_rolora_moves_b_and_a_in_turn():
    run = experiment("rolora")
    before = run.state.server["global"]
    for done in run.rounds():
        moved, still = ("b", "a") if done.number % 2 == 0 else ("a", "b")
        after = done.state.server["global"]
        for target in TARGETS:
            assert np.array_equal(after[target][still], before[target][still])
            assert np.abs(after[target][moved] - before[target][moved]).max() > 1e-3
        before = after


def test_flexlora_of_full_rank_is_the_exact_mean_of_the_scaled_products():
    ranks = (16, 32, 8)
    with spied("flexlora") as (name, seen):
        states = [done.state for done in experiment(name, lora={"ranks": ranks}).rounds()]
    assert len(states) == len(seen) == 3
    for state, sent in zip(states, seen, strict=True):
        scale_K = ALPHA / np.array([ranks[c] for c in sent.members])
        for target in TARGETS:
            mean = mean_product(sent, target, scale_K)
            assert np.abs(mean).max() > 1e-2
            ours = ALPHA / 32 * product(state.server["global"][target])
            np.testing.assert_allclose(ours, mean, atol=1e-5)


def test_flexlora_of_small_ranks_is_the_nearest_update_and_its_padding_stays_zero():
    ranks = (2, 4, 3)
    fed = {"proximal": 0.5, "learning_rate": 3e-2}
    with spied("flexlora") as (name, seen):
        run = experiment(name, lora={"ranks": ranks, "dropout": 0.1}, **fed)
        run.train()
        bank = run.adapters.global_C
    assert bank is not None
    for sent in seen:
        for place, client in enumerate(sent.members):
            for pair in sent.parts_K["global"].values():
                own = ranks[client]
                assert not pair["a"][place, ..., own:].any()
                assert not pair["b"][place, :, own:].any()
                assert pair["a"][place, ..., :own].any(axis=(0, 1)).all()
                assert pair["b"][place, :, :own].any(axis=(0, 2)).all()
    scale_K = ALPHA / np.array([ranks[c] for c in seen[-1].members])
    for target in TARGETS:
        u, s, v = np.linalg.svd(mean_product(seen[-1], target, scale_K), full_matrices=False)
        for client, rank in enumerate(ranks):
            pair = {leaf: np.asarray(own[client]) for leaf, own in bank[target].items()}
            nearest = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
            np.testing.assert_allclose(ALPHA / 4 * product(pair), nearest, atol=1e-6)
            assert not pair["a"][..., rank:].any() and not pair["b"][:, rank:].any()


def test_flexlora_clients_begin_with_an_a_of_their_own():
    run = experiment("flexlora")
    own = run.state.clients.take(range(3))["first"]["q_proj"]["a"]
    assert np.abs(own).max() < 32**-0.5 and not np.array_equal(own[0], own[1])
    with spied("flexlora") as (name, seen):
        next(experiment(name, learning_rate=1e-30).rounds())
    sent = seen[0].parts_K["global"]["q_proj"]
    assert np.array_equal(sent["a"], own[seen[0].members]) and np.abs(sent["b"]).max() < 1e-28


def test_completed_directions_can_be_trained():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 1, 2, 9, 2)), draw.normal(size=(2, 1, 2, 2, 7))
    # Factors of rank four whose product has rank two: the other singular values are rounding.
    found = best(*summed(a[[0, 0], 0], b[[0, 0], 0], np.full(2, 0.5)), 5)
    assert found[1][:, 2:].any()
    a_LDR, b_LRE = completed(*found, draw.normal(size=(2, 9, 5)).astype(np.float32))
    np.testing.assert_allclose(a_LDR @ b_LRE, a[0, 0] @ b[0, 0], atol=1e-5)
    np.testing.assert_allclose(a_LDR.mT @ a_LDR, np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-6)
    assert np.array_equal(a_LDR[..., :2], found[0][..., :2])
    assert b_LRE[:, :2].any(axis=-1).all() and not b_LRE[:, 2:].any()
    # More columns than rows: what is beyond them stays empty.
    wide = completed(*best(*summed(a[0], b[0], np.ones(1)), 11), draw.normal(size=(2, 9, 11)))
    assert wide[0].any(axis=1).sum() == 2 * 9


def test_fedex_is_the_exact_mean_of_the_products_in_every_round():
    with spied("fedex_lora") as (name, seen):
        run = experiment(name)
        before = run.state.server
        for done in run.rounds():
            after = done.state.server
            for target in TARGETS:
                mean = mean_product(seen[-1], target)
                exact = product(before["residual"][target]) + mean
                ours = product(after["residual"][target]) + product(after["global"][target])
                np.testing.assert_allclose(ours, exact, atol=1e-5)
                assert np.abs(mean - product(after["global"][target])).max() > 1e-4
            before = after


def test_fedex_capped_keeps_the_largest_singular_values():
    with spied("fedex_lora") as (name, seen):
        capped = experiment(name, options={"residual_rank": 3})
        first = next(capped.rounds()).state.server
    for target in TARGETS:
        missed = mean_product(seen[0], target) - product(first["global"][target])
        u, s, v = np.linalg.svd(missed, full_matrices=False)
        assert (s[:, 3] > 1e-3 * s[:, 0]).all()
        kept = (u[..., :3] * s[:, None, :3]) @ v[:, :3]
        np.testing.assert_allclose(product(first["residual"][target]), kept, atol=1e-6)


def test_fedex_answers_and_trains_without_dropout_on_the_residual():
    """Where the adapter does nothing (B = 0), dropout changes nothing of the first loss."""
    firsts = []
    for dropout in (0.0, 0.5):
        run = experiment("fedex_lora", lora={"dropout": dropout})
        server = dict(run.state.server)
        server["residual"] = jax.tree.map(lambda leaf: leaf + 0.1, server["residual"])
        go_on_from(run, FedState(server, run.state.clients))
        losses = next(run.rounds()).losses["global"]
        firsts.append([own["first"] for own in losses.values()])
    assert firsts[0] == pytest.approx(firsts[1], abs=1e-6)


def test_a_clients_private_b_reaches_nobody_else():
    run = experiment("fedsa_lora")
    rounds = run.rounds()
    state = next(rounds).state
    resting = next(c for c in range(3) if c not in participants(run, 1))
    poison = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), state.clients.take([resting]))
    poisoned = FedState(state.server, state.clients.put([resting], poison, 0))
    clean, dirty = (round_from(run, each, 1) for each in (state, poisoned))
    assert bits(clean.server) == bits(dirty.server)
    others = [c for c in range(3) if c != resting]
    assert bits(clean.clients.take(others)) == bits(dirty.clients.take(others))
    assert np.isnan(dirty.clients.take([resting])["local"]["q_proj"]["b"]).all()
    scores = []
    # Scores that are not finite are refused, so its answers are of another B.
    other = jax.tree.map(lambda leaf: np.full_like(leaf, 3.0), poison)
    for each in (clean, FedState(clean.server, clean.clients.put([resting], other, 1))):
        go_on_from(run, each)
        scores.append(run.evaluate(modes=["local"]).instances)
    kept = [[row for row in rows if row["client"] != NAMES[resting]] for rows in scores]
    assert len(kept[0]) == 4 and kept[0] == kept[1] and scores[0] != scores[1]


def participants(run: fd.Experiment, number: int) -> list[int]:
    return training_data(run.config, run.prepared).participants(number).tolist()


def test_fedsa_refuses_a_broken_client_and_sends_what_it_says():
    run = experiment("fedsa_lora", options={"sends": "b"})
    own = run.state.clients.take(range(3))["local"]["q_proj"]
    assert own.keys() == {"a"} and np.array_equal(own["a"][0], own["a"][2])
    shared = run.state.server["global"]["q_proj"]
    assert shared.keys() == {"b"}
    last = run.train()
    own = last.clients.take(range(3))["local"]["q_proj"]["a"]
    assert len({leaf.tobytes() for leaf in own}) == 3
    with pytest.raises(fd.UserError, match=r"fed.options: sends of fedsa_lora is 'c'; use a or b"):
        experiment("fedsa_lora", options={"sends": "c"})


def test_fedsa_answers_in_the_modes_that_it_has():
    run = experiment("fedsa_lora", participation=1.0)
    run.train()
    bank = run.adapters.local_C
    assert bank is not None and run.adapters.global_C == {}
    shared, own = run.state.server["global"], run.state.clients.all()["local"]
    for target in TARGETS:
        assert np.array_equal(bank[target]["a"][0], shared[target]["a"])
        assert np.array_equal(bank[target]["b"], own[target]["b"])
    found = run.evaluate()
    assert tuple(found.modes) == ("base", "local", "fixed", "instance")
    prompt = ("bert", "xab")
    weight = run.weigh(*prompt)
    assert weight.global_weight + weight.local_weight == pytest.approx(1.0)
    for mode in found.modes:
        assert run.generate(*prompt, mode=mode).mode == mode
    with pytest.raises(fd.UserError, match="has no 'global'"):
        run.generate(*prompt, mode="global")
    laboratory = run.laboratory(["cosine"], exact=1)
    assert laboratory is not None


def test_fixed_scales_the_own_adapter():
    """Half of A B is A (B / 2) alone."""
    run = experiment("fedsa_lora", participation=1.0, learning_rate=0.1)
    state = run.train()
    fixed = run.evaluate(modes=["fixed"]).instances
    own = jax.tree.map(lambda leaf: 0.5 * leaf, state.clients.all())
    halved = FedState(state.server, state.clients.put(range(3), own, 2))
    go_on_from(run, halved)
    local = run.evaluate(modes=["local"]).instances
    pairs = [[row["scores"]["nll"] for row in rows] for rows in (fixed, local)]
    np.testing.assert_allclose(*pairs, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes", "path"),
    [
        # m = 1, then 0.9 + 2 = 2.9, then 2.61 - 1 = 1.61; half of each is added.
        ("momentum", [1, 2, -1], [0.5, 1.95, 2.755]),
        # v = 0.99 * 0.25 + 0.01 * 4 = 0.2875, m = 0.2; v = 0.294625, m = 0.28.
        ("adam", [2, 1], [0.5 * 0.2 / (0.2875**0.5 + 0.5), 0.5 * 0.28 / (0.294625**0.5 + 0.5)]),
        # v = 0.25 < 4 grows by 0.04; then v = 0.29 > 0.25 falls by 0.0025.
        ("yogi", [2, 0.5], [0.5 * 0.2 / (0.29**0.5 + 0.5), 0.5 * 0.23 / (0.2875**0.5 + 0.5)]),
        # No momentum; v = 0.25 + 4, then + 1.
        ("adagrad", [2, 1], [0.5 * 2 / (4.25**0.5 + 0.5), 0.5 * 1 / (5.25**0.5 + 0.5)]),
    ],
)
def test_server_optimizers_by_hand(kind: Any, changes: list[float], path: list[float]):
    tx, at = server_optimizer(kind, 0.5, tau=0.5), jnp.zeros(())
    state, found = tx.init({"x": at}), []
    step: Any
    for change in changes:
        step, state = tx.update({"x": jnp.float32(change)}, state)
        at = at + step["x"]
        found.append(float(at))
    wanted = path if kind == "momentum" else np.cumsum(path)
    assert found == pytest.approx(list(wanted), rel=1e-5)
    # Without a rate: the mean as it is, or 1e-3.
    tx = server_optimizer(kind, tau=0.5)
    step, _ = tx.update({"x": jnp.float32(changes[0])}, tx.init({"x": at}))
    rate = 1.0 if kind == "momentum" else 1e-3
    assert float(step["x"]) == pytest.approx(rate * path[0] / 0.5, rel=1e-5)


def test_a_server_optimizer_follows_the_mean():
    plain, followed = (
        experiment("fedit", rounds=1, **given)
        for given in ({}, {"server_optimizer": "momentum", "server_learning_rate": 0.5})
    )
    start = plain.state.server["global"]["q_proj"]
    mean, half = (run.train().server["global"]["q_proj"] for run in (plain, followed))
    for leaf in "ab":
        change = mean[leaf] - start[leaf]
        assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(half[leaf] - start[leaf], 0.5 * change, atol=1e-6)
    state = followed.state.server["optimizer"]["global"]
    np.testing.assert_allclose(
        state["first"]["global"]["q_proj"]["b"], mean["b"] - start["b"], atol=1e-6
    )


RESUMED = [
    ("flexlora", {"lora": {"ranks": (2, 4, 3)}}),
    ("fedex_lora", {}),
    ("fedsa_lora", {"server_optimizer": "momentum"}),
    ("rolora", {"server_optimizer": "yogi"}),
    ("ffa_lora", {"server_optimizer": "adagrad"}),
    ("fedit", {"server_optimizer": "adam"}),
]


@pytest.mark.parametrize(("method", "given"), RESUMED)
def test_resume_after_the_first_round_is_bit_exact(method: str, given: Any, tmp_path: Path):
    whole = experiment(method, **given).train()
    stopped = experiment(method, **given, run_dir=tmp_path / "run")
    rounds = stopped.rounds()
    next(rounds)
    rounds.close()
    again = experiment(method, **given, run_dir=tmp_path / "run")
    assert [done.number for done in again.rounds()] == [1, 2]
    assert bits(again.state.server) == bits(whole.server)
    assert bits(again.state.clients.all()) == bits(whole.clients.all())


Q, V, R, L = (32, 32), (32, 16), 4, 2


def bytes_of(a: int, b: int) -> int:
    """Of so many columns of A, and so many rows of B, of both targets and all layers."""
    return 4 * L * (a * (Q[0] + V[0]) + b * (Q[1] + V[1]))


@pytest.mark.parametrize(
    ("method", "given", "received", "sent"),
    [
        ("fedit", {}, 3 * [(R, R)], 3 * [(R, R)]),
        ("ffa_lora", {"server_optimizer": "adam"}, 3 * [(0, R)], 3 * [(0, R)]),
        ("fedsa_lora", {}, 3 * [(R, 0)], 3 * [(R, 0)]),
        ("fedsa_lora", {"options": {"sends": "b"}}, 3 * [(0, R)], 3 * [(0, R)]),
        # The mean of the others' down, the change of the own adapter up; the gate stays.
        ("fedalt", {}, 3 * [(R, R)], 3 * [(R, R)]),
        # What the round before has changed: half of what FedIT receives.
        ("rolora", {}, [(0, R), (0, R), (R, 0)], [(0, R), (R, 0), (0, R)]),
        # Two participants leave a residual of rank (2 - 1) * R, after the first round.
        ("fedex_lora", {}, [(R, R), (2 * R, 2 * R), (2 * R, 2 * R)], 3 * [(R, R)]),
        (
            "fedex_lora",
            {"options": {"residual_rank": 3}},
            [(R, R), (R + 3, R + 3), (R + 3, R + 3)],
            3 * [(R, R)],
        ),
        (
            "flexlora",
            {"lora": {"ranks": (2, 3, 4)}, "participation": 1.0},
            3 * [(3, 3)],
            3 * [(3, 3)],
        ),
    ],
)
def test_bytes(method: str, given: Any, received: list, sent: list):
    run = experiment(method, **given)
    assert run.prepared.base.model.config.target_sizes()["v_proj"] == V
    moved = [done.client_bytes for done in run.rounds()]
    assert moved == [
        (bytes_of(*down), bytes_of(*up)) for down, up in zip(received, sent, strict=True)
    ]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("fedit", {"lora": {"ranks": (2, 4, 3)}}, "lora.ranks: all clients of fedit have the same"),
        ("flexlora", {"lora": {"ranks": (2, 4)}}, "lora.ranks: has 2 ranks for 3 clients"),
        ("flexlora", {"lora": {"ranks": (2, 4, 99)}}, "lora.ranks: 99 is more than the 32 rows"),
        (
            "flexlora",
            {"lora": {"ranks": (2, 4, 3)}, "init": {"global_adapter": "some"}},
            "init.global_adapter: has one rank",
        ),
        ("flexlora", {"server_optimizer": "adam"}, "fed.server_optimizer: flexlora has no mean"),
        ("fedex_lora", {"server_optimizer": "yogi"}, "fed.server_optimizer: fedex_lora has no"),
        ("local", {"server_optimizer": "momentum"}, "fed.server_optimizer: local has no mean"),
        ("fdlora", {"server_optimizer": "momentum"}, "fed.server_optimizer: fdlora has no mean"),
        ("local", {"proximal": 0.1}, "fed.proximal: local trains no copy of a part"),
        ("fedalt", {"proximal": 0.1}, "fed.proximal: fedalt trains no copy of a part"),
        ("fedex_lora", {"options": {"residual_rank": -1}}, "residual_rank is -1"),
        ("ffa_lora", {"options": {"sends": "a"}}, "'sends' is unknown; the method ffa_lora has"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, given: Any, message: str):
    with pytest.raises(fd.UserError, match=message) as refused:
        experiment(method, **given)
    assert "\n" not in str(refused.value)


def test_all_clients_of_one_rank_share_flexloras_adapter():
    run = experiment("flexlora", rounds=1)
    run.train()
    shared = bank_of(run.state.server["global"])
    assert bits(run.adapters.global_C) == bits(shared)
