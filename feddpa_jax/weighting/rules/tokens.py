"""Rules that give every token a weight of its own, in every layer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.inference.mixture import Mixture
from feddpa_jax.weighting.descent import adam, descend
from feddpa_jax.weighting.rule import RULES


@RULES.register
def tokenwise(support_MLD: Float[Array, "M L D"]) -> TokenGate:
    """The paper's rule for every token: mean cosine of what enters a layer with the support's.

        w_tl = scale * mean_s cos( x_tl, e_l(s) )

    x_tl is what enters layer l at token t, of prompt and answer alike, in the pass that answers; a
    weight per token and layer from the layer's own input is LoRA-Flow's (Wang et al., arXiv
    2402.11455), the similarity is that of arXiv 2403.19211. The mean of cosines is one product
    with the mean of the normalized support, so it depends on the client alone. With
    `weighting.pooling: mean` a support prompt stands for all of its tokens.

    Cost: one embedding of M prompts per client; then D products per token and layer.
    """
    size_ML1 = jnp.maximum(jnp.linalg.norm(support_MLD, axis=-1, keepdims=True), 1e-12)
    direction_LD = (support_MLD / size_ML1).mean(axis=0)
    L = direction_LD.shape[0]
    return TokenGate(direction_LD, jnp.zeros(L), jnp.zeros(L, bool))


@RULES.register(search={"steps": (10, 30)}, is_weight=True)
def token_gate(held_mixture: Mixture, *, rate: float = 0.05, steps: int = 30) -> TokenGate:
    """LoRA-Flow's fusion gate in every layer, trained on the client's held-out examples.

        w_tl = sigmoid( v_l . x_tl sqrt(D) / |x_tl| + c_l ),     min_vc  mean_h nll(answer_h)

    Wang et al., arXiv 2402.11455: a softmax over the adapters, of one linear map of the layer's
    input for each layer, learnt from some 200 examples with everything else frozen. Of two adapters
    it is a sigmoid. `steps` steps of Adam at `rate`, from 1/2 everywhere. It has L (D + 1) numbers:
    with a handful of held-out examples it is easily overfitted, so prefer few steps.

    Cost: `steps` forward and backward passes over the H held-out examples, in which every layer is
    computed once more, for each client and evaluation; then D products per token and layer.
    """
    L, D = held_mixture.layers, held_mixture.width

    def gate(learned: tuple[jax.Array, jax.Array]) -> TokenGate:
        v_LD, c_L = learned
        return TokenGate(v_LD * D**0.5, c_L, jnp.ones(L, bool))

    def loss(learned: tuple[jax.Array, jax.Array]) -> jax.Array:
        return held_mixture.loss(gate(learned)).mean()

    start = (jnp.zeros((L, D)), jnp.zeros(L))
    return gate(descend(loss, start, adam(rate), steps=steps))
