"""What logits say of the tokens that followed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def likelihoods(
    logits_PV: Float[Array, "P V"], target_P: Int[Array, "P"]
) -> tuple[Float[Array, "P"], Bool[Array, "P"], Float[Array, "P"]]:
    """Negative log-likelihood and likeliness of targets, and how open each position is.

    Args:
      logits_PV: of P positions.
      target_P: the token that followed each.

    Returns:
      Negative log-likelihoods in nats, whether each target is the argmax, and the entropy of each
      position's distribution in nats; each [P].

    >>> import jax.numpy as jnp
    >>> nll_P, correct_P, entropy_P = likelihoods(jnp.zeros((1, 4)), jnp.array([0]))
    >>> round(float(nll_P[0]), 3), bool(correct_P[0]), round(float(entropy_P[0]), 3)
    (1.386, True, 1.386)
    """
    at_target_P = jnp.take_along_axis(logits_PV, target_P[:, None], axis=1)[:, 0]
    log_all_P = jax.nn.logsumexp(logits_PV, axis=1)
    mean_logit_P = jnp.sum(jnp.exp(logits_PV - log_all_P[:, None]) * logits_PV, axis=1)
    correct_P = jnp.argmax(logits_PV, axis=1) == target_P
    return log_all_P - at_target_P, correct_P, log_all_P - mean_logit_P
