"""AdaFusion by hand: the fused adapter, and the weights that a search finds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.federated.fusion import even_weights, find_weights, fused


def weights(*pairs: tuple[float, float]) -> Any:
    return {"all": {"weights": np.array(pairs, np.float32)}}


def test_factors_are_added_up_by_their_weights():
    own = {"q_proj": {"a": jnp.array([[[1.0]], [[2.0]]]), "b": jnp.array([[[3.0]], [[4.0]]])}}
    shared = {"q_proj": {"a": jnp.array([[[10.0]]]), "b": jnp.array([[[20.0]]])}}
    found = fused(own, shared, weights((0.5, -1.0), (2.0, 0.25)))
    # 0.5 * 1 - 10 and 2 * 2 + 10 / 4; 0.5 * 3 - 20 and 2 * 4 + 20 / 4.
    assert found["q_proj"]["a"][:, 0, 0].tolist() == [-9.5, 6.5]
    assert found["q_proj"]["b"][:, 0, 0].tolist() == [-18.5, 13.0]
    assert even_weights(jax.random.key(0))["all"]["weights"].tolist() == [0.5, 0.5]


def test_every_client_finds_its_own_weights():
    """Each client's loss has its least value elsewhere; the grid's steps are 1/4, 1/8 and 1/16."""

    def losses(tree: Any) -> np.ndarray:
        first_C, second_C = tree["fusion"]["all"]["weights"].T.astype(float)
        return np.array(
            [
                # 0.5 and 0.25, then 0.625 and 0.25, then 0.625 and 0.1875.
                100 * ((first_C[0] - 0.6) ** 2 + (second_C[0] - 0.2) ** 2),
                # Beyond the bounds.
                100 * ((first_C[1] - 9) ** 2 + (second_C[1] + 9) ** 2),
                # Nothing but the penalty.
                0.0,
                # 0.03 outweighs the penalty, 0.05 / 2 for each weight.
                -0.03 * first_C[3],
                # Nothing is better than the start, which is not of the grid.
                10.0 * (abs(first_C[4] - 0.3) + abs(second_C[4] - 0.7) > 1e-6),
            ]
        )

    start = {"fusion": weights(*[(0.5, 0.5)] * 4, (0.3, 0.7))}
    found = find_weights(losses, start)["fusion"]["all"]["weights"]
    assert found[:4].tolist() == [[0.625, 0.1875], [1.5, -1.5], [0.0, 0.0], [1.5, 0.0]]
    np.testing.assert_allclose(found[4], [0.3, 0.7], rtol=1e-6)
    assert start["fusion"]["all"]["weights"].tolist()[0] == [0.5, 0.5]
