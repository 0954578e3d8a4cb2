"""A gate that learns from the client's own held-out examples which mix answers them best."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.weighting.descent import adam, descend
from feddpa_jax.weighting.evidence import WEIGHTS
from feddpa_jax.weighting.rule import RULES


@RULES.register(search={"ridge": (0.01, 0.1, 1.0)}, is_weight=True)
def held_out_gate(
    query_BD: Float[Array, "B D"],
    held_HD: Float[Array, "H D"],
    held_nll_HW: Float[Array, "H W"],
    *,
    ridge: float = 0.1,
    rate: float = 0.05,
    steps: int = 200,
) -> Float[Array, "B"]:
    """The local weight sigmoid(v . z(x) + c), trained so that the held-out loss of the mix falls.

    A client's own gate over its local and the shared model, as in Listo Zec et al., Specialized
    federated learning using a mixture of experts, arXiv 2010.02056, here with both frozen:

        min_vc  mean_h nll_h( sigmoid(v . z_h + c) ) + ridge/2 |v|^2

    z are the standardized embeddings over sqrt(D), and nll_h is the loss of example h at a local
    weight, on the line between the two of `WEIGHTS` around it. `steps` steps of Adam (Kingma and
    Ba, arXiv 1412.6980) at `rate`, from weight 1/2 for everything.

    No example of another client tells the gate what a foreign prompt is: where the local adapter
    answers all held-out examples better, foreign prompts get much of it too, unless their
    embeddings lie apart. More `ridge` makes the weight the same for all prompts.

    Cost: nine scorings of the H held-out examples and one embedding, once per client and
    evaluation; then D products per instance.
    """
    H, D = held_HD.shape
    chex.assert_shape([query_BD, held_nll_HW], [(None, D), (H, len(WEIGHTS))])
    centre_D, variance_D = held_HD.mean(axis=0), held_HD.var(axis=0)
    # Each feature's variance is shrunk half-way to their mean, since H may be a handful.
    spread_D = jnp.sqrt(0.5 * (variance_D + jnp.maximum(variance_D.mean(), 1e-12)))
    grid_W = jnp.array(WEIGHTS)

    def gate(v_D: jax.Array, c: jax.Array, x_XD: jax.Array) -> jax.Array:
        z_XD = (x_XD - centre_D[None]) / spread_D[None] / D**0.5
        return jax.nn.sigmoid(z_XD @ v_D + c)

    def loss(learned: tuple[jax.Array, jax.Array]) -> jax.Array:
        v_D, c = learned
        weight_H = gate(v_D, c, held_HD)
        nll_H = jax.vmap(lambda weight, nll_W: jnp.interp(weight, grid_W, nll_W))(
            weight_H, held_nll_HW
        )
        return nll_H.mean() + 0.5 * ridge * jnp.square(v_D).sum()

    v_D, c = descend(loss, (jnp.zeros(D), jnp.zeros(())), adam(rate), steps=steps)
    return gate(v_D, c, query_BD)
