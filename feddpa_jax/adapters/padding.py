"""Adapters of unequal ranks in one bank: the smaller ones are padded with zeros."""

from typing import Any

import numpy as np

from feddpa_jax.adapters.lora import Adapter


def without_padding(adapter: Adapter) -> Adapter:
    """An adapter without the last ranks that add nothing: where A's column and B's row are zero.

    Ranks may differ by target then. A map whose factors are all zero keeps its rank.

    Args:
      adapter: {target: {"a": [L, D, R], "b": [L, R, E]}}.

    >>> a, b = np.ones((1, 4, 3)), np.ones((1, 3, 4))
    >>> a[..., 2] = b[:, 2] = 0.0
    >>> without_padding({"q_proj": {"a": a, "b": b}})["q_proj"]["a"].shape
    (1, 4, 2)
    """
    return {target: _cut(pair["a"], pair["b"]) for target, pair in adapter.items()}


def _cut(a_LDR: Any, b_LRE: Any) -> dict[str, Any]:
    used_R = np.any(np.asarray(a_LDR) != 0, axis=(0, 1)) | np.any(
        np.asarray(b_LRE) != 0, axis=(0, 2)
    )
    rank = int(np.flatnonzero(used_R)[-1]) + 1 if used_R.any() else len(used_R)
    return {"a": a_LDR[..., :rank], "b": b_LRE[:, :rank]}
