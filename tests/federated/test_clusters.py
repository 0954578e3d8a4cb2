"""Clusters of clients by hand, and the routers of their experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.router import NO_SLOT, ROUTERS, expert_shares
from feddpa_jax.federated.clusters import allocate, distances, means_by_cluster, silhouette
from feddpa_jax.types import UserError


def test_distances_by_hand():
    """One map in line, the other at right angles: (0 + 1) / 2; opposite in both: 2."""
    b_CLRE = np.array([[[[1, 0]], [[1, 0]]], [[[2, 0]], [[0, 1]]], [[[-1, 0]], [[-1, 0]]]])
    distance_CC = distances({"q_proj": {"a": np.zeros((3, 2, 1, 1)), "b": b_CLRE}})
    np.testing.assert_allclose(distance_CC, [[0, 0.5, 2], [0.5, 0, 1.5], [2, 1.5, 0]], atol=1e-12)


def pairs_apart() -> np.ndarray:
    """Clients 0 and 2 are near each other, 1 and 3 too."""
    distance_CC = np.full((4, 4), 1.0)
    distance_CC[0, 2] = distance_CC[2, 0] = 0.1
    distance_CC[1, 3] = distance_CC[3, 1] = 0.2
    np.fill_diagonal(distance_CC, 0.0)
    return distance_CC


def test_silhouette_by_hand():
    of_C = np.array([0, 1, 0, 1])
    # (1 - 0.1) / 1 twice, and (1 - 0.2) / 1 twice.
    assert silhouette(pairs_apart(), of_C) == pytest.approx(0.85)
    # A client alone counts 0: (0.9 + 0 + 0.9 + 0) / 4.
    assert silhouette(pairs_apart(), np.array([0, 1, 0, 2])) == pytest.approx(0.45)


def test_clusters_come_in_the_order_of_their_first_clients():
    assert allocate(pairs_apart(), count=0, most=3).tolist() == [0, 1, 0, 1]
    assert allocate(pairs_apart(), count=3, most=3).tolist() == [0, 1, 0, 2]
    assert allocate(pairs_apart(), count=1, most=1).tolist() == [0, 0, 0, 0]
    assert allocate(pairs_apart(), count=4, most=4).tolist() == [0, 1, 2, 3]
    assert allocate(pairs_apart(), count=0, most=2).tolist() == [0, 1, 0, 1]
    draw = np.random.default_rng(0)
    for _ in range(20):
        distance_CC = draw.random((7, 7))
        of_C = allocate(
            distance_CC + distance_CC.T - np.diag(np.diag(2 * distance_CC)), count=4, most=4
        )
        assert list(dict.fromkeys(of_C.tolist())) == [0, 1, 2, 3]


def test_linkage_is_by_the_mean_distance():
    """0 and 1 are one; 2 joins them at the mean of its distances, if 3 is not nearer to it."""
    # (2 + 6) / 2 > 3, though 2 < 3; and (2 + 4) / 2 < 3.5, though 4 > 3.5.
    for far, near, expected in ((6.0, 3.0, [0, 0, 1, 1]), (4.0, 3.5, [0, 0, 0, 1])):
        distance_CC = np.full((4, 4), 9.0)
        for (i, j), apart in {(0, 1): 1.0, (0, 2): 2.0, (1, 2): far, (2, 3): near}.items():
            distance_CC[i, j] = distance_CC[j, i] = apart
        np.fill_diagonal(distance_CC, 0.0)
        assert allocate(distance_CC, count=2, most=2).tolist() == expected


def test_clients_that_are_all_alike_make_no_two_clusters():
    for count in (2, 0):
        with pytest.raises(UserError, match="one would be empty"):
            allocate(np.zeros((4, 4)), count=count, most=3)


def test_means_by_cluster_count_shares_within_it():
    tree_K = {"q_proj": {"b": np.array([[1.0], [3.0], [7.0]], np.float32)}}
    old_M = {"q_proj": {"b": np.array([[-1.0], [-2.0], [-3.0]], np.float32)}}
    # Cluster 0: (0.1 * 1 + 0.3 * 3) / 0.4; cluster 1 has nobody; cluster 2: 7.
    found = means_by_cluster(tree_K, np.array([0.1, 0.3, 0.6]), np.array([0, 0, 2]), old_M)
    np.testing.assert_allclose(found["q_proj"]["b"], [[2.5], [-2.0], [7.0]], rtol=1e-6)
    # Who is in another cluster cannot spoil a mean, whatever it sent.
    tree_K["q_proj"]["b"][2] = np.nan
    again = means_by_cluster(tree_K, np.array([0.1, 0.3, 0.6]), np.array([0, 0, 2]), old_M)
    np.testing.assert_allclose(again["q_proj"]["b"][:2], [[2.5], [-2.0]], rtol=1e-6)


def test_the_largest_slots_by_hand():
    """Three experts, five slots: the two first and the last are kept, the first expert's add up."""
    share_S = np.array([0.3, 0.25, 0.1, 0.15, 0.2], np.float32)
    logits_BTS = jnp.log(share_S)[None, None]
    kept = np.asarray(ROUTERS["top"](logits_BTS))[0, 0]
    np.testing.assert_allclose(kept, [0.55, 0.0, 0.2], atol=1e-6)
    of_one = np.asarray(ROUTERS["top_of_one"](logits_BTS))[0, 0]
    np.testing.assert_allclose(of_one, [0.55 / 0.75, 0.0, 0.2 / 0.75], atol=1e-6)
    # Equal slots: the first ones.
    np.testing.assert_allclose(ROUTERS["top"](jnp.zeros((1, 1, 5)))[0, 0], [0.6, 0, 0], atol=1e-6)


def test_slots_that_are_not_there_are_as_a_smaller_router():
    """Two experts of four that there might be: slots 0, 1 and 4 of seven."""
    draw = np.random.default_rng(0)
    x_BTD, router_DS = draw.normal(size=(2, 3, 4)), draw.normal(size=(4, 7))
    bias_S = np.full(7, NO_SLOT)
    bias_S[[0, 1, 4]] = 0.0
    client_B = jnp.zeros(2, jnp.int32)
    wide = {"top": jnp.float32(router_DS)[None], "bias": jnp.float32(bias_S)[None]}
    small = {"top": jnp.float32(router_DS[:, [0, 1, 4]])[None]}
    wide_BTK = expert_shares(jnp.float32(x_BTD), wide, client_B)
    small_BTK = expert_shares(jnp.float32(x_BTD), small, client_B)
    assert wide_BTK is not None and small_BTK is not None
    np.testing.assert_allclose(wide_BTK[..., :2], small_BTK, atol=1e-6)
    assert not np.any(wide_BTK[..., 2:])

    def total(router_1DS: jax.Array) -> jax.Array:
        shares = expert_shares(jnp.float32(x_BTD), {**wide, "top": router_1DS}, client_B)
        assert shares is not None
        return shares.sum()

    assert np.isfinite(jax.grad(total)(wide["top"])).all()
