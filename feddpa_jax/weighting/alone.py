"""Whether a rule sees one instance at a time, as a client does that answers one prompt.

A rule is called with many instances at once, for speed. If what it gives for one of them depends
on the others (it ranks them, or centres them by their mean), then an instance has one weight in an
evaluation, another in the laboratory and a third when it is asked alone. Such rules are called
*transductive* (Vapnik, *Statistical Learning Theory*, 1998, chapter 8).
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.weighting.evidence import (
    MIXTURES,
    OF_INSTANCES,
    TEXTS,
    Evidence,
    TrialMixture,
    trial,
)

# Relative to the largest value: far more than rounding, far less than a rank.
_SAME = 1e-3


def made_up() -> Evidence:
    """Evidence of random numbers, of the sizes of `trial`; likelihoods and lengths are positive.

    Prompts differ in how many tokens' likelihoods are known.
    """
    draw = np.random.default_rng(0)
    zeros = trial()
    known_BT = np.asarray(zeros.query_mask_BT)
    rows, tokens = known_BT.shape
    mask_BT = known_BT & (np.arange(tokens)[None] < tokens - np.arange(rows)[:, None])

    def filled(name: str, zeros: Any) -> Any:
        if name in MIXTURES or name in TEXTS:
            return zeros
        if name == "query_mask_BT":
            return mask_BT
        if name == "query_nll_BTA":
            known_BTA = 1.0 + np.abs(draw.normal(size=zeros.shape))
            return np.where(mask_BT[..., None], known_BTA, 0.0).astype(np.float32)
        if name == "length_B":
            return draw.integers(3, 40, zeros.shape).astype(np.int32)
        values = draw.normal(size=zeros.shape)
        positive = "nll" in name or "entropy" in name
        return (1.0 + np.abs(values) if positive else values).astype(np.float32)

    return Evidence(**{name: filled(name, getattr(zeros, name)) for name in Evidence._fields})


def row_of(evidence: Evidence, row: int) -> Evidence:
    """The same with one instance alone."""

    def one(name: str) -> Any:
        part = getattr(evidence, name)
        if name == "query_mixture":
            mixture = cast(TrialMixture, part)
            return TrialMixture(count=1, layers=mixture.layers, width=mixture.width)
        own = name in OF_INSTANCES or name == "support_BMD"
        if name in ("query_nll_BTA", "query_mask_BT"):
            # Alone it is padded to no longer prompt.
            mask_T = np.asarray(evidence.query_mask_BT)[row]
            return part[row : row + 1, : np.flatnonzero(mask_T)[-1] + 1]
        return part[row : row + 1] if own else part

    return Evidence(**{name: one(name) for name in Evidence._fields})


@functools.lru_cache(maxsize=256)
def looks_at_others(rule: Callable[..., Any], names: tuple[str, ...]) -> bool:
    """Whether what a rule gives for an instance depends on those beside it, on made-up evidence.

    Args:
      rule: the function.
      names: the fields of `Evidence` that it sees.
    """

    def given(evidence: Evidence) -> Any:
        found = rule(**evidence.pick(names))
        return None if isinstance(found, TokenGate) else np.asarray(jax.device_get(found))

    evidence = made_up()
    together = given(evidence)
    if together is None or not set(names) & set(OF_INSTANCES):
        return False
    alone = np.concatenate([given(row_of(evidence, row)) for row in range(evidence.rows())])
    scale = max(float(np.max(np.abs(together), initial=0.0, where=np.isfinite(together))), 1e-6)
    return not np.allclose(together / scale, alone / scale, rtol=0.0, atol=_SAME, equal_nan=True)
