"""A mixing weight that every token has of its own, from what enters each layer.

Wang et al., *LoRA-Flow: Dynamic LoRA Fusion for Large Language Models in Generative Tasks*, arXiv
2402.11455, gate the adapters of a layer by the layer's input x at each token:

    w = sigmoid( v . x / |x| + c )      or      w = v . x / |x| + c, clipped to [0, 1]

(their softmax over two adapters is the first form; here x is divided by its norm, since the
residual stream grows from layer to layer). What enters a layer at a token depends on no later
token, so the weights of a prompt and its answer are the same however they are computed: at once,
token by token, or by beams.
"""

from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class TokenGate:
    """How a token's weight follows from what enters a layer.

    Attributes:
      direction: v; [L, D] for a client's rows, [B, D] for the rows of one layer.
      bias: c; [L], or [B].
      soft: whether the weight is a sigmoid, or clipped; [L], or [B].

    >>> gate = TokenGate(jnp.array([[0.0, 0.5]]), jnp.array([0.25]), jnp.array([False]))
    >>> gate.weights(jnp.array([[[0.0, 3.0], [4.0, 0.0]]])).tolist()
    [[0.75, 0.25]]
    """

    direction: Any
    bias: Any
    soft: Any

    def weights(self, x_BTD: jax.Array) -> jax.Array:
        """The weight of every token, [B, T], in a layer that `x_BTD` enters; for gates [B, D]."""
        B, _, D = x_BTD.shape
        chex.assert_shape([self.direction, self.bias, self.soft], [(B, D), (B,), (B,)])
        size_BT1 = jnp.maximum(jnp.linalg.norm(x_BTD, axis=-1, keepdims=True), 1e-12)
        value_BT = (x_BTD / size_BT1 * self.direction[:, None]).sum(axis=-1) + self.bias[:, None]
        return jnp.where(self.soft[:, None], jax.nn.sigmoid(value_BT), jnp.clip(value_BT, 0.0, 1.0))

    def rest(self) -> "TokenGate":
        """The gate of what this one leaves: 1 - w."""
        xp = np if isinstance(self.bias, np.ndarray) else jnp
        bias = xp.where(self.soft, -self.bias, 1.0 - self.bias)
        return TokenGate(-self.direction, bias, self.soft)

    def scaled(self, scale: float) -> "TokenGate":
        """The gate of clipped weights, with what is clipped times `scale`."""
        return TokenGate(scale * self.direction, scale * self.bias, self.soft)

    def by_layer(self) -> tuple["TokenGate", ...]:
        """Each layer's, of leaves with a leading layer axis."""
        leaves = (list(leaf) for leaf in (self.direction, self.bias, self.soft))
        return tuple(TokenGate(*own) for own in zip(*leaves, strict=True))


# A mixing weight of a row: a number; each layer's, [L]; or each token's.
Weight = float | np.ndarray | TokenGate


def gates_of_rows(weights: Sequence[Weight], layers: int, width: int) -> TokenGate:
    """The gates of some rows in all layers, [L, B, ...]; a weight without a gate is constant."""
    direction_LBD = np.zeros((layers, len(weights), width), np.float32)
    bias_LB = np.zeros((layers, len(weights)), np.float32)
    soft_LB = np.zeros((layers, len(weights)), bool)
    for b, weight in enumerate(weights):
        if isinstance(weight, TokenGate):
            direction_LBD[:, b], bias_LB[:, b], soft_LB[:, b] = (
                np.asarray(leaf) for leaf in (weight.direction, weight.bias, weight.soft)
            )
        else:
            bias_LB[:, b] = weight
    return TokenGate(direction_LBD, bias_LB, soft_LB)


def rest_of(weight: Any) -> Any:
    """1 - w, of weights that may be gates or differ by layer."""

    def rest(own: Any) -> Any:
        return own.rest() if isinstance(own, TokenGate) else 1.0 - own

    return jax.tree.map(rest, weight, is_leaf=lambda own: isinstance(own, TokenGate))
