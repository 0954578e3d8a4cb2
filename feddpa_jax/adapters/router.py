"""Routers: how a layer's own input is shared out among the experts of a routed adapter.

The leaf that holds the router's weights names the kind, so that an adapter says of itself how it is
routed: "gate" is a softmax over the K experts (Shazeer et al., arXiv 1701.06538, without noise).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from feddpa_jax.devices.contraction import contract


def of_rows(
    x_BTX: jax.Array, factor_CXY: jax.Array, client_B: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """x_b times each row's own matrix; one that all rows share (C = 1) needs no gather."""
    if factor_CXY.shape[0] == 1:
        return contract("BTX,XY->BTY", x_BTX, factor_CXY[0], dtype)
    return contract("BTX,BXY->BTY", x_BTX, factor_CXY[client_B], dtype)


# By the name of a router's leaf: its logits [B, T, S] to the experts' shares [B, T, K].
ROUTERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gate": lambda logits_BTK: jax.nn.softmax(logits_BTK, axis=-1),
}


# By the name of a router's leaf: its shares as an equation, for who applies it elsewhere.
EQUATIONS: dict[str, str] = {
    "gate": "share_k(x) = softmax over k of (G x)_k",
}


def router_of(leaves: Mapping[str, Any]) -> str | None:
    """The kind of an adapted map's router, which its leaf is named after; None if it has none.

    >>> router_of({"a": 0, "b": 0, "gate": 0}), router_of({"a": 0, "b": 0})
    ('gate', None)
    """
    return next((name for name in ROUTERS if name in leaves), None)


def expert_shares(
    x_BTD: Float[Array, "B T D"], leaves: Mapping[str, jax.Array], client_B: Int[Array, "B"]
) -> Float[Array, "B T K"] | None:
    """Each expert's share at each token, in float32; None of an adapter without a router.

    Args:
      x_BTD: input of the adapted map, without dropout.
      leaves: of the adapter at this map, of which a router's is [C, D, S].
      client_B: whose adapter each row uses.
    """
    kind = router_of(leaves)
    if kind is None:
        return None
    return ROUTERS[kind](of_rows(x_BTD, leaves[kind], client_B, jnp.float32))
