"""What the layers of a decoder see."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Int

from feddpa_jax.models.model_config import ModelConfig


class Sight(NamedTuple):
    """What a layer's attention needs besides its input.

    Attributes:
      rotary: cosine and sine of every position's rotations, each [B, T, 1, H/2].
      mask_BTS: what each query sees.
      segment_BT: packed rows' segments; None: the mask is all that is known.
    """

    rotary: tuple[jax.Array, jax.Array]
    mask_BTS: jax.Array
    segment_BT: jax.Array | None


class Sights(NamedTuple):
    """The sight of layers that attend to everything, and of those that attend to a window."""

    everything: Sight
    window: Sight

    def of_layer(self, layer: int, config: ModelConfig) -> Sight:
        """The sight of a layer."""
        return self.window if layer in config.local_layers else self.everything


def window_mask(
    position_BT: Int[Array, "B T"], other_BS: Int[Array, "B S"], window: int | None
) -> Bool[Array, "B T S"]:
    """Tokens see the `window` last positions, their own among them.

    Args:
      position_BT: positions of the tokens that see.
      other_BS: positions of the tokens that are seen: the same, or those in a cache.
      window: how many.
    """
    assert window is not None
    return position_BT[:, :, None] - other_BS[:, None, :] < window
