"""What a layer holds for the backward pass, by name; the rest is computed again.

Chen et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from feddpa_jax.devices.storage import HELD, SCORES

# none: whatever the backward pass reads. cheap: the layer's input and the outputs of its maps and
# of attention; norms, rotations and the activation are computed again. layer: the input alone.
Remat = Literal["none", "cheap", "layer"]


def holds_by_name(remat: Remat, looped: bool) -> bool:
    """Whether a layer names the values that are held.

    A loop's layers always do, but with "layer": whatever the backward pass reads would be written
    to memory as it is computed, in float32.
    """
    return remat == "cheap" or (looped and remat == "none")


def checkpointed(
    layer: Callable[..., Any], remat: Remat, looped: bool = False
) -> Callable[..., Any]:
    """The same function, which holds for its backward pass what `remat` says.

    Args:
      layer: from arrays to arrays; what `cheap` keeps are the values that it names by `held`.
      remat: see `Remat`; "none" is "cheap" in a loop.
      looped: whether it is the body of a loop. There scores are not held: to compute them again
        from queries and keys takes less time than to write and read them.

    >>> checkpointed(len, "none") is len
    True
    """
    assert remat in get_args(Remat), remat
    if remat == "none" and not looped:
        return layer
    policy = None
    if remat != "layer":
        names = (HELD,) if looped else (HELD, SCORES)
        policy = jax.checkpoint_policies.save_only_these_names(*names)
    # Within a loop nothing of the backward pass can be found to be the forward pass's.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not looped)
