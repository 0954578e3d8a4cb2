"""A weight for every client and layer, trained on the client's own held-out examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.inference.mixture import Mixture
from feddpa_jax.weighting.descent import adam, descend
from feddpa_jax.weighting.rule import RULES


@RULES.register(search={"steps": (10, 30)}, is_weight=True)
def learned_layers(
    held_mixture: Mixture, *, rate: float = 0.1, steps: int = 30
) -> Float[Array, "L"]:
    """The client's local weight of every layer, w_l = sigmoid(u_l), by gradient descent.

        min_u  mean_h nll( answer_h | prompt_h, w ),    w_l = sigmoid(u_l)

    Base and both adapters are frozen. Layer-wise coefficients of what is merged are those of
    AdaMerging (Yang et al., arXiv 2310.02575), which trains them by Adam too, but on the entropy of
    unlabelled test data; that a client learns how much of its own model to mix in, by the loss on
    its own data, is APFL (Deng et al., arXiv 2003.13461). All instances of the client get the same
    weights. `steps` steps of Adam at `rate`, from 1/2 in every layer: few, since H may be a
    handful.

    Cost: `steps` forward and backward passes over the H held-out examples, in which every layer is
    computed once more, for each client and evaluation; nothing per instance.
    """
    shape = (held_mixture.count, held_mixture.layers)

    def loss(u_L: jax.Array) -> jax.Array:
        weight_HL = jnp.broadcast_to(jax.nn.sigmoid(u_L)[None], shape)
        return held_mixture.loss(weight_HL).mean()

    u_L = descend(loss, jnp.zeros(held_mixture.layers), adam(rate), steps=steps)
    return jax.nn.sigmoid(u_L)
