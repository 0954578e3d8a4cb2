"""The weight under which the model is surest of its answer."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from feddpa_jax.inference.mixture import Mixture
from feddpa_jax.weighting.descent import descend
from feddpa_jax.weighting.rule import RULES


@RULES.register(search={"rate": (1.0, 4.0)}, is_weight=True)
def least_entropy(
    query_mixture: Mixture, *, rate: float = 4.0, steps: int = 5
) -> Float[Array, "B"]:
    """The local weight that minimises the entropy of the answer's first token.

        min_u  - sum_v p(v | x, w) log p(v | x, w),    w = sigmoid(u)

    For each instance on its own, without its answer: Tent (Wang et al., arXiv 2006.10726) and, for
    single instances, MEMO (Zhang et al., arXiv 2110.09506) adapt a model by the entropy of its own
    predictions; AdaMerging (Yang et al., arXiv 2310.02575) so learns the coefficients of merged
    models. Here one number is trained by `steps` steps of gradient descent in u at `rate`, from
    w = 1/2, where it stays if the mix does not matter. Of the answer only the first token's
    distribution is used.

    Certain is not correct: an adapter that is overfitted is often the surest of all.

    Cost: `steps` forward and backward passes over each prompt, in which every layer is computed
    once more: some four times `steps` prompts. No data but the instance.
    """

    def total(u_B: jax.Array) -> jax.Array:
        return query_mixture.entropy(jax.nn.sigmoid(u_B)).sum()

    start_B = jnp.zeros(query_mixture.count)
    u_B = descend(total, start_B, optax.sgd(rate), steps=steps)
    return jax.nn.sigmoid(u_B)
