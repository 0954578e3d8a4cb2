"""The algebra of adapters: what a bank adds, and when it adds nothing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dropout import dropout
from feddpa_jax.adapters.dual import dual_branches, merge, mixed_adapter
from feddpa_jax.adapters.lora import (
    TARGETS,
    Branch,
    bank_delta,
    bank_of,
    delta,
    init_adapter,
    kernel_path,
    take,
)
from feddpa_jax.adapters.mix import Term, branches_of, factors, side_by_side
from feddpa_jax.models.decoder import causal_mask, from_parameters, random_model
from feddpa_jax.models.model_config import ModelConfig

CONFIG = ModelConfig(29, 12, 2, 4, 2, 4, 20)


@functools.partial(jax.jit, static_argnames=("targets", "zero_b"))
def adapter(seed: int, *, targets=TARGETS, zero_b=False) -> dict:
    sizes = {target: CONFIG.target_sizes()[target] for target in targets}
    fresh = init_adapter(jax.random.key(seed), sizes, layers=2, rank=3)
    if zero_b:
        return fresh
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(seed + 50), leaf.shape), fresh
    )


def bank(*seeds: int) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(adapter, seeds))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, jax.random.key(0))


@jax.jit
def logits(model, branches):
    tokens_BT = jax.random.randint(jax.random.key(4), (3, 7), 0, 29)
    position_BT = jnp.broadcast_to(jnp.arange(7), (3, 7))
    mask = causal_mask(jnp.ones((3, 7), jnp.int32))
    return model.logits(model.hidden(tokens_BT, position_BT, mask, branches)[0])


CLIENT_B = jnp.array([1, 0, 1])


def mixed(global_, local_C, weight_B, **extra):
    global_1 = global_ and bank_of(global_)
    return dual_branches(global_1, local_C, CLIENT_B, jnp.asarray(weight_B), scale=2.0, **extra)


def test_bank_delta_by_hand():
    # Row 0 uses client 1: x = [1, 2], A = [[3], [4]] -> 11; B = [[5, 6]] -> [55, 66]; times 0.5.
    a_CDR = jnp.array([[[0.0], [0.0]], [[3.0], [4.0]]])
    b_CRE = jnp.array([[[1.0, 1.0]], [[5.0, 6.0]]])
    x_BTD = jnp.array([[[1.0, 2.0]], [[1.0, 2.0]]])
    y = bank_delta(x_BTD, a_CDR, b_CRE, jnp.array([1, 0]), jnp.array([0.5, 1.0]))
    np.testing.assert_array_equal(y, [[[27.5, 33.0]], [[0.0, 0.0]]])


def test_token_weights_equal_row_weights():
    own = bank(1, 2)["q_proj"]
    x_BTD = jax.random.normal(jax.random.key(0), (3, 5, 12))
    weight_B = jnp.array([0.1, 0.7, 0.4])
    args = (x_BTD, own["a"][:, 0], own["b"][:, 0], CLIENT_B)
    by_token = bank_delta(*args, jnp.broadcast_to(weight_B[:, None], (3, 5)))
    np.testing.assert_array_equal(bank_delta(*args, weight_B), by_token)


def test_weight_0_and_1_are_exactly_global_and_local(model):
    global_, local_C = adapter(1), bank(2, 3)
    both_0 = logits(model, mixed(global_, local_C, [0.0, 0.0, 0.0]))
    both_1 = logits(model, mixed(global_, local_C, [1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(both_0, logits(model, mixed(global_, None, [0.0, 0.0, 0.0])))
    np.testing.assert_array_equal(both_1, logits(model, mixed(None, local_C, [1.0, 1.0, 1.0])))
    assert not np.allclose(both_0, both_1)


def test_zero_b_changes_nothing(model):
    fresh = adapter(1, zero_b=True)
    np.testing.assert_array_equal(
        logits(model, mixed(fresh, None, [0.0, 0.0, 0.0])), logits(model, ())
    )


def test_rows_of_different_clients_equal_each_alone(model):
    global_, local_C = adapter(1), bank(2, 3)
    together = logits(model, mixed(global_, local_C, [0.2, 0.5, 0.9]))
    for row, weight in enumerate([0.2, 0.5, 0.9]):
        own = jax.tree.map(lambda leaf, row=row: leaf[int(CLIENT_B[row])][None], local_C)
        first, weights = jnp.zeros(3, jnp.int32), jnp.full(3, weight)
        alone = dual_branches(bank_of(global_), own, first, weights, scale=2.0)
        np.testing.assert_allclose(together[row], logits(model, alone)[row], atol=2e-6)


def test_same_adapter_on_both_sides_needs_no_weight(model):
    """(1 - w) d + w d = d."""
    one = adapter(4)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), one)
    np.testing.assert_allclose(
        logits(model, mixed(one, twice, [0.3, 0.6, 0.8])),
        logits(model, mixed(one, None, [0.0, 0.0, 0.0])),
        atol=1e-5,
    )


def with_added(model, weighted, scale: float):
    """The model with adapters added to its kernels in numpy, and no branch left."""
    named = {
        ".".join(str(part.key) for part in path): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    for own, weight in weighted:
        for target, pair in own.items():
            for layer in range(2):
                product = np.asarray(pair["a"][layer]) @ np.asarray(pair["b"][layer])
                named[kernel_path(target, layer)] += scale * weight * product
    return from_parameters(CONFIG, named)


def test_a_mix_is_what_its_formula_says(model):
    """s = 2, l = 0.3, and g = 0.7 unless it is given; each row has its own client's adapter."""
    global_, local_C = adapter(1), bank(2, 3)
    owns = [jax.tree.map(lambda leaf, at=c: leaf[at], local_C) for c in (0, 1)]
    found = {
        None: logits(model, mixed(global_, local_C, [0.3, 0.3, 0.3])),
        0.2: logits(
            model, mixed(global_, local_C, [0.3, 0.3, 0.3], global_weight=jnp.full(3, 0.2))
        ),
    }
    for given, together in found.items():
        g = 0.7 if given is None else given
        for row, client in enumerate(CLIENT_B.tolist()):
            added = with_added(model, [(global_, g), (owns[client], 0.3)], 2.0)
            np.testing.assert_allclose(together[row], logits(added, ())[row], atol=2e-4, rtol=1e-4)
    alone = branches_of([Term(local_C)], CLIENT_B, scale=2.0)
    for row, client in enumerate(CLIENT_B.tolist()):
        expected = logits(with_added(model, [(owns[client], 1.0)], 2.0), ())
        np.testing.assert_allclose(logits(model, alone)[row], expected[row], atol=2e-4, rtol=1e-4)


def test_every_layer_may_have_its_own_weight(model):
    """Layer 0 takes the global adapter alone, layer 1 the local one alone."""
    global_, local = adapter(1), adapter(2)
    two = bank_of(local)
    weights = (jnp.zeros(3), jnp.ones(3))
    branches = dual_branches(bank_of(global_), two, jnp.zeros(3, jnp.int32), weights, scale=2.0)
    chosen = {
        target: {part: jnp.stack([pair[part][0], local[target][part][1]]) for part in ("a", "b")}
        for target, pair in global_.items()
    }
    expected = logits(with_added(model, [(chosen, 1.0)], 2.0), ())
    np.testing.assert_allclose(logits(model, branches), expected, atol=2e-4, rtol=1e-4)


def test_one_adapter_of_twice_the_rank_is_the_mix():
    """At l = 0.3: A_g B_g at 0.7 and A_l B_l at 0.3; A is as it was."""
    global_, local = adapter(1), adapter(2)
    both = mixed_adapter(global_, local, 0.3)
    for target in TARGETS:
        one, other, pair = global_[target], local[target], both[target]
        assert pair["a"].shape[2] == pair["b"].shape[1] == 6
        np.testing.assert_array_equal(pair["a"][:, :, :3], one["a"])
        product = np.asarray(pair["a"][1]) @ np.asarray(pair["b"][1])
        expected = 0.7 * np.asarray(one["a"][1]) @ np.asarray(one["b"][1])
        expected += 0.3 * np.asarray(other["a"][1]) @ np.asarray(other["b"][1])
        np.testing.assert_allclose(product, expected, atol=1e-5)


def test_merge_by_hand():
    # W = [[1, 2]]; A B = [[2]] [[3, 4]] = [[6, 8]]; and [[1]] [[1, 0]]. Scale 0.5, weights 0.25, 2:
    # 1 + 0.5 * (0.25 * 6 + 2) = 2.75 and 2 + 0.5 * (0.25 * 8 + 0) = 3.
    pairs = [
        (jnp.array([[2.0]]), jnp.array([[3.0, 4.0]]), 0.25),
        (jnp.array([[1.0]]), jnp.array([[1.0, 0.0]]), 2.0),
    ]
    for dtype in (jnp.float32, jnp.bfloat16):
        merged = merge(jnp.array([[1.0, 2.0]], dtype), pairs, scale=0.5)
        assert merged.dtype == dtype
        assert merged.tolist() == [[2.75, 3.0]]


def test_what_is_detached_has_no_gradient(model):
    """The global branch if it is told so; the local one never."""
    global_, local_C = adapter(1), bank(2, 3)

    def gradients(detach: bool):
        def loss(global_, local_C):
            branches = mixed(global_, local_C, [0.3, 0.3, 0.3], detach_global=detach)
            return jnp.square(logits(model, branches)).sum()

        return jax.grad(loss, argnums=(0, 1))(global_, local_C)

    for detach in (False, True):
        of_global, of_local = gradients(detach)
        assert all(bool(jnp.any(leaf)) != detach for leaf in jax.tree.leaves(of_global))
        assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(of_local))


def test_branches_add_up_and_other_targets_are_left_alone():
    pair = {"a": jnp.ones((1, 2, 1)), "b": jnp.ones((1, 1, 3))}
    branches = [
        Branch({"q_proj": pair}, jnp.zeros(1, int), jnp.array([weight]), scale=10.0)
        for weight in (0.25, 2.0)
    ]
    x_BTD = jnp.array([[[1.0, 2.0]]])
    # (1 + 2) * 10 * (0.25 + 2) = 67.5.
    found = delta(branches, "q_proj", x_BTD, layer=0, dtype=jnp.float32)
    np.testing.assert_allclose(found, np.full((1, 1, 3), 67.5))
    assert delta(branches, "k_proj", x_BTD, layer=0, dtype=jnp.float32) == 0.0


def test_every_target_and_layer_of_a_fresh_adapter_is_its_own():
    """Of maps of one shape too; another key gives another adapter, the same key the same."""
    same, other = adapter(0, zero_b=True), adapter(1, zero_b=True)
    again = adapter(0, zero_b=True)
    parts = [x for fresh in (same, other) for pair in fresh.values() for x in pair["a"]]
    flat = {np.asarray(x).ravel()[:12].tobytes() for x in parts}
    assert len(flat) == 2 * len(TARGETS) * 2
    chex.assert_trees_all_equal(same, again)
    for target, pair in same.items():
        size_in, size_out = CONFIG.target_sizes()[target]
        chex.assert_shape([pair["a"], pair["b"]], [(2, size_in, 3), (2, 3, size_out)])
        assert not pair["b"].any()
        bound = size_in**-0.5
        assert -bound <= pair["a"].min() < -0.7 * bound and 0.7 * bound < pair["a"].max() <= bound


def test_take_keeps_the_order_it_is_asked_for():
    own = bank(2, 3, 4)
    taken = take(own, np.array([2, 0]))
    for at, client in enumerate((2, 0)):
        np.testing.assert_array_equal(taken["q_proj"]["a"][at], own["q_proj"]["a"][client])


def test_kernel_paths():
    assert [kernel_path(target, 2).split(".")[2] for target in TARGETS] == [
        *["attention"] * 4,
        *["mlp"] * 3,
    ]


def test_fresh_adapter_is_uniform_within_its_bound():
    a_LDR = adapter(0, zero_b=True)["down_proj"]["a"]
    bound = CONFIG.ffn**-0.5
    assert np.abs(a_LDR).max() <= bound
    assert np.abs(a_LDR).max() > 0.95 * bound
    # A uniform variable on +-b has deviation b / sqrt(3).
    np.testing.assert_allclose(np.std(a_LDR), bound / np.sqrt(3), rtol=0.15)


@pytest.mark.parametrize("wrong", ["client_B", "weight", "key_B2"])
def test_one_row_does_not_stand_for_all(wrong: str):
    """Arrays of one row or client, which JAX would repeat for the others, are refused."""
    given = {
        "a_CDR": jnp.ones((2, 4, 2)),
        "b_CRE": jnp.ones((2, 2, 5)),
        "client_B": jnp.array([0, 1, 0]),
        "weight": jnp.ones(3),
        "key_B2": jnp.ones((3, 2), jnp.uint32),
    }
    x_BTD = jnp.ones((3, 6, 4))

    def apply(given: dict[str, jax.Array]) -> jax.Array:
        key_B2, bank = given["key_B2"], {k: v for k, v in given.items() if k != "key_B2"}
        return bank_delta(dropout(x_BTD, key_B2, site=0, rate=0.5), **bank)

    assert apply(given).shape == (3, 6, 5)
    with pytest.raises(AssertionError, match=r"assert_(shape|axis_dimension) failed"):
        apply(given | {wrong: given[wrong][:1]})


def test_factors_of_different_parts_make_one_adapter(model):
    """A shared A, B of each client's own: the bank of both."""
    shared = bank_of(adapter(1))
    own_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter(2), adapter(3))
    mixed_leaves = factors({"a": shared, "b": own_C})
    whole = {
        target: {"a": jnp.repeat(shared[target]["a"], 2, axis=0), "b": own_C[target]["b"]}
        for target in own_C
    }
    np.testing.assert_allclose(
        logits(model, branches_of([Term(mixed_leaves)], CLIENT_B, scale=2.0)),
        logits(model, branches_of([Term(whole)], CLIENT_B, scale=2.0)),
        atol=2e-6,
    )


def test_adapters_side_by_side_add_up(model):
    """One of both ranks, with a shared half, equals two branches."""
    shared = bank_of(adapter(1))
    own_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter(2), adapter(3))
    wide = branches_of([Term(side_by_side([shared, own_C]))], CLIENT_B, scale=2.0)
    two = branches_of([Term(shared), Term(own_C)], CLIENT_B, scale=2.0)
    np.testing.assert_allclose(logits(model, wide), logits(model, two), atol=1e-5)


def test_weights_of_terms_are_numbers_clients_and_layers(model):
    own_C = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter(2), adapter(3))

    def scored(weight):
        return logits(model, branches_of([Term(own_C, weight)], CLIENT_B, scale=2.0))

    by_client, by_layer = jnp.array([0.25, 0.75]), jnp.array([[0.2, 0.6], [1.0, 0.0]])
    found, layered = scored(by_client), scored(by_layer)
    for row, client in enumerate(CLIENT_B.tolist()):
        np.testing.assert_allclose(found[row], scored(float(by_client[client]))[row], atol=2e-6)
        alone = scored(by_layer[client][None])
        np.testing.assert_allclose(layered[row], alone[row], atol=2e-6)
    assert not np.allclose(scored(0.2), scored(0.25), atol=1e-4)


def test_a_routed_adapter_shares_each_token_out_among_its_experts():
    """y = sum over k of softmax(x G)_k x A_k B_k by hand; the router sees x without dropout."""
    draw = np.random.default_rng(0)
    x_BTD = draw.normal(size=(2, 3, 4)).astype(np.float32)
    gate_CDK = draw.normal(size=(2, 4, 2)).astype(np.float32)
    a_CDR, b_CRE = (draw.normal(size=s).astype(np.float32) for s in ((2, 4, 6), (2, 6, 5)))
    client_B = np.array([1, 0])
    bank = {"q_proj": {"a": a_CDR, "b": b_CRE, "gate": gate_CDK}}
    branch = Branch(jax.tree.map(jnp.asarray, bank), jnp.asarray(client_B), jnp.ones(2), scale=2.0)
    key_B2 = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    dropped = dataclasses.replace(branch, key_B2=key_B2, rate=0.5)
    left_BTD = np.asarray(dropout(jnp.asarray(x_BTD), key_B2, site=0, rate=0.5))
    for one, seen_BTD in ((branch, x_BTD), (dropped, left_BTD)):
        found = delta([one], "q_proj", jnp.asarray(x_BTD), layer=0, dtype=jnp.float32)
        for row, c in enumerate(client_B):
            logits_TK = x_BTD[row] @ gate_CDK[c]
            share_TK = np.exp(logits_TK) / np.exp(logits_TK).sum(axis=1, keepdims=True)
            first = seen_BTD[row] @ a_CDR[c][:, :3] @ b_CRE[c][:3]
            second = seen_BTD[row] @ a_CDR[c][:, 3:] @ b_CRE[c][3:]
            expected = 2.0 * (share_TK[:, :1] * first + share_TK[:, 1:] * second)
            np.testing.assert_allclose(np.asarray(found)[row], expected, atol=1e-4)
