"""Rules that ask whether an instance is as usual for the client as its own training prompts are."""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.weighting.evidence import MODELS
from feddpa_jax.weighting.rule import RULES

_GLOBAL, _LOCAL = MODELS.index("global"), MODELS.index("local")


def _mean_similarities(query_BD: jax.Array, support_MD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cosine with the support: of each instance, and of each support example with the rest."""
    chex.assert_rank([query_BD, support_MD], 2)
    chex.assert_equal_shape_suffix([query_BD, support_MD], 1)
    query_BD, support_MD = (
        x_XD / jnp.maximum(jnp.linalg.norm(x_XD, axis=-1, keepdims=True), 1e-12)
        for x_XD in (query_BD, support_MD)
    )
    M = support_MD.shape[0]
    total_D = support_MD.sum(axis=0)
    return query_BD @ total_D / M, (support_MD @ total_D - 1.0) / max(M - 1, 1)


def _share_below(value_B: jax.Array, own_M: jax.Array) -> jax.Array:
    """The share of own values that an instance's value reaches, [B]."""
    return (own_M[None, :] <= value_B[:, None]).mean(axis=1, dtype=jnp.float32)


@RULES.register
def calibrated(query_BD: Float[Array, "B D"], support_MD: Float[Array, "M D"]) -> Float[Array, "B"]:
    """Where an instance's mean cosine falls among the support's own leave-one-out ones.

    Twice the share of them that it reaches, at most 1: the p-value of a conformal test of "this is
    one of mine" (Vovk et al., Algorithmic Learning in a Random World, 2005), full from the median.
    """
    query_B, own_M = _mean_similarities(query_BD, support_MD)
    return jnp.minimum(1.0, 2.0 * _share_below(query_B, own_M))


def _least_support(level: float) -> int:
    """The fewest training prompts with which a conformal test can reject at `level`."""
    return 10_000 if level <= 1e-4 else math.ceil(1 / level - 1e-9) - 1


@RULES.register(least_support=_least_support)
def calibrated_hard(
    query_BD: Float[Array, "B D"], support_MD: Float[Array, "M D"], *, level: float = 0.05
) -> Float[Array, "B"]:
    """0 where a conformal test rejects "this is one of mine" at `level`, else 1.

    An instance's p-value is (1 + the number of own leave-one-out similarities that it reaches) / (M
    + 1) (Vovk et al., 2005). It is at least 1 / (M + 1), so that fewer than 1/level - 1 training
    prompts, 19 at 0.05, never reject: the default `weighting.support` of 5 is too small for it.

    >>> own = jnp.tile(jnp.array([[1.0, 0.0]]), (19, 1))
    >>> calibrated_hard(jnp.array([[1.0, 0.0], [0.0, 1.0]]), own).tolist()
    [1.0, 0.0]
    """
    query_B, own_M = _mean_similarities(query_BD, support_MD)
    reached_B = (own_M[None, :] <= query_B[:, None]).sum(axis=1)
    return (reached_B + 1 > level * (len(own_M) + 1) + 1e-6).astype(jnp.float32)


@RULES.register
def likelihood_ratio(query_nll_BA: Float[Array, "B A"]) -> Float[Array, "B"]:
    """p_local / (p_local + p_global), with p the prompt's likelihood per token under an adapter.

    The posterior of a two-component mixture of experts with equal priors (Jacobs et al., 1991).
    """
    return jax.nn.sigmoid(query_nll_BA[:, _GLOBAL] - query_nll_BA[:, _LOCAL])


@RULES.register
def calibrated_likelihood(
    query_nll_BA: Float[Array, "B A"], support_nll_MA: Float[Array, "M A"]
) -> Float[Array, "B"]:
    """`calibrated` with the log-likelihood ratio of local against global in the cosine's place."""
    query_B = query_nll_BA[:, _GLOBAL] - query_nll_BA[:, _LOCAL]
    own_M = support_nll_MA[:, _GLOBAL] - support_nll_MA[:, _LOCAL]
    return jnp.minimum(1.0, 2.0 * _share_below(query_B, own_M))


@RULES.register
def entropy(entropy_BA: Float[Array, "B A"]) -> Float[Array, "B"]:
    """H_global / (H_global + H_local) of the answer's first token: who is surer gets more.

    As test-time methods that trust low entropy (Wang et al., Tent, arXiv 2006.10726).
    """
    global_B, local_B = entropy_BA[:, _GLOBAL], entropy_BA[:, _LOCAL]
    return global_B / jnp.maximum(global_B + local_B, 1e-12)
