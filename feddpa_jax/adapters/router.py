"""Routers: how a layer's own input is shared out among the experts of a routed adapter.

The leaf that holds the router's weights names the kind, so that an adapter says of itself how it is
routed: "gate" is a softmax over the K experts (Shazeer et al., arXiv 1701.06538, without noise);
"top" and "top_of_one" are FedLEASE's (arXiv 2509.15087). A leaf "bias" is added to the logits.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


# The bias of a slot that is not there.
NO_SLOT = -1e30


def top_slots(logits_BTS: Float[Array, "B T S"], *, of_one: bool) -> Float[Array, "B T K"]:
    """The shares of K experts from 2 K - 1 slots, of which the K first all lead to the first one.

    Of the softmax over the slots the K largest are kept, the first of equal ones, and those of the
    first expert are added up. The choice itself has no gradient. With `NO_SLOT` as the bias of
    others, there may be 2 M - 1 slots, the M first and M - 1 of the others, and M are kept.

    Args:
      logits_BTS: the router's, biased.
      of_one: the kept ones are divided by their sum.
    """
    count = (logits_BTS.shape[-1] + 1) // 2
    weight_BTS = jax.nn.softmax(logits_BTS, axis=-1)
    kept_BT1 = ((logits_BTS > NO_SLOT / 2).sum(axis=-1, keepdims=True) + 1) // 2
    order_S = jnp.arange(logits_BTS.shape[-1])
    own, other = weight_BTS[..., :, None], weight_BTS[..., None, :]
    earlier_SS = (order_S[None, :] < order_S[:, None])[None, None]
    rank_BTS = ((other > own) | ((other == own) & earlier_SS)).sum(axis=-1)
    weight_BTS = jnp.where(rank_BTS < kept_BT1, weight_BTS, 0.0)
    if of_one:
        weight_BTS = weight_BTS / weight_BTS.sum(axis=-1, keepdims=True)
    first_BT1 = weight_BTS[..., :count].sum(axis=-1, keepdims=True)
    return jnp.concatenate([first_BT1, weight_BTS[..., count:]], axis=-1)


# By the name of a router's leaf: its logits [B, T, S] to the experts' shares [B, T, K].
ROUTERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gate": lambda logits_BTK: jax.nn.softmax(logits_BTK, axis=-1),
    "top": functools.partial(top_slots, of_one=False),
    "top_of_one": functools.partial(top_slots, of_one=True),
}


_TOP = """w(x) = softmax(G x), over 2 K - 1 slots for K experts;
       the first K slots lead to expert 0, the others to the experts 1 .. K - 1, one to each;
       the K largest w stay, the others become 0{also}
share_k(x) = the sum of w over the slots that lead to expert k"""

# By the name of a router's leaf: its shares as an equation, for who applies it elsewhere.
EQUATIONS: dict[str, str] = {
    "gate": "share_k(x) = softmax over k of (G x)_k",
    "top": _TOP.format(also=""),
    "top_of_one": _TOP.format(also=", and all are divided by their sum"),
}


def present(kind: str, bias_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which slots of a router there are, bool [S], and which experts these lead to, bool [K].

    >>> present("top", np.array([0.0, 0.0, NO_SLOT, 0.0, NO_SLOT]))[1].tolist()
    [True, True, False]
    """
    there_S = bias_S > NO_SLOT / 2
    if kind == "gate":
        return there_S, there_S
    return there_S, np.concatenate([[True], there_S[(len(bias_S) + 1) // 2 :]])


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
      leaves: of the adapter at this map, of which a router's is [C, D, S], and its bias [C, S].
      client_B: whose adapter each row uses.
    """
    kind = router_of(leaves)
    if kind is None:
        return None
    logits_BTS = of_rows(x_BTD, leaves[kind], client_B, jnp.float32)
    if "bias" in leaves:
        bias_CS = leaves["bias"]
        own_BS = bias_CS if bias_CS.shape[0] == 1 else bias_CS[client_B]
        logits_BTS = logits_BTS + own_BS[:, None]
    return ROUTERS[kind](logits_BTS)
