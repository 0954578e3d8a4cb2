"""A learned gate: a classifier of the client's own prompts against base prompts."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.weighting.rule import RULES

_STEPS = 8


@RULES.register
def gate(
    query_BD: Float[Array, "B D"],
    support_MD: Float[Array, "M D"],
    dream_ND: Float[Array, "N D"],
    *,
    ridge: float = 1e-2,
) -> Float[Array, "B"]:
    """The probability that an instance is the client's own, by logistic regression.

    Trained on the support (1) against base prompts (0), both sides with the same total weight, so
    it needs no data but the client's. Features are standardized; with more of
    them than examples the fit is done on the examples' inner products:

        min_a  sum_i c_i log(1 + exp(-y_i f_i)) + ridge/2 a^T K a,   f = K a,   K = Z Z^T / D

    by iteratively reweighted least squares (Hastie et al., The Elements of Statistical Learning,
    sections 4.4.1 and 18.3.5).
    """
    M, N = support_MD.shape[0], dream_ND.shape[0]
    chex.assert_rank([query_BD, support_MD, dream_ND], 2)
    chex.assert_equal_shape_suffix([query_BD, support_MD, dream_ND], 1)
    both_XD = jnp.concatenate([support_MD, dream_ND])
    centre_D = 0.5 * (support_MD.mean(axis=0) + dream_ND.mean(axis=0))
    spread_D = jnp.maximum(both_XD.std(axis=0), 1e-6)

    def features(x_XD: jax.Array) -> jax.Array:
        z_XD = (x_XD - centre_D[None]) / spread_D[None]
        return jnp.concatenate([z_XD, jnp.ones_like(z_XD[:, :1])], axis=1) / z_XD.shape[1] ** 0.5

    z_XD = features(both_XD)
    kernel_XX = z_XD @ z_XD.T
    label_X = jnp.concatenate([jnp.ones(M), jnp.zeros(N)])
    weight_X = jnp.concatenate([jnp.full(M, 0.5 / M), jnp.full(N, 0.5 / N)])

    def improve(_: int, a_X: jax.Array) -> jax.Array:
        f_X = kernel_XX @ a_X
        p_X = jax.nn.sigmoid(f_X)
        curvature_X = jnp.maximum(weight_X * p_X * (1.0 - p_X), 1e-6)
        target_X = f_X + weight_X * (label_X - p_X) / curvature_X
        return jnp.linalg.solve(kernel_XX + jnp.diag(ridge / curvature_X), target_X)

    a_X = jax.lax.fori_loop(0, _STEPS, improve, jnp.zeros(M + N))
    return jax.nn.sigmoid(features(query_BD) @ (z_XD.T @ a_X))
