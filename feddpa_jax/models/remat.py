"""What a layer holds for the backward pass, by name; the rest is computed again.

Chen et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from feddpa_jax.devices.storage import HELD

# none: whatever the backward pass reads. cheap: the layer's input and the outputs of its maps and
# of attention; norms, rotations and the activation are computed again. layer: the input alone.
Remat = Literal["none", "cheap", "layer"]


def checkpointed(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, which holds for its backward pass what `remat` says.

    Args:
      layer: from arrays to arrays; what `cheap` keeps are the values that it names by `held`.
      remat: see `Remat`.

    >>> checkpointed(len, "none") is len
    True
    """
    assert remat in get_args(Remat), remat
    if remat == "none":
        return layer
    if remat == "layer":
        return jax.checkpoint(layer)
    return jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(HELD))
