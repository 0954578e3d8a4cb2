"""Scores of rules that read texts, which no compiled program takes: they are called as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.laboratory.candidates import similarities
from feddpa_jax.laboratory.collect import Collected
from feddpa_jax.laboratory.grid import Grid, Scored, interpolate
from feddpa_jax.laboratory.parts import Curves
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import local_weight


def score_reading_rule(
    rule: str,
    grid: Grid,
    collected: Collected,
    curves: Curves,
    rows: slice,
    *,
    seed: int,
    by_instance: bool = False,
) -> Scored:
    """P and TTP of all settings of a rule; a client's texts are read once for all of its scales.

    Args and Returns: as of `score_rule`.
    """
    known: dict[WeightingSettings, np.ndarray] = {}
    score_CIWX, share_CIZ = map(jnp.asarray, curves)
    told = share_CIZ.shape[1] if by_instance else 0
    found, parts = [], []
    for setting in grid.settings(rule, seed):
        alike = dataclasses.replace(setting, scale=1.0, scales="local")
        if alike not in known:
            known[alike] = similarities(collected, alike)[:, rows]
        weight_CI = local_weight(
            jnp.asarray(known[alike]), setting.scale, setting.scales == "local"
        )
        score_CIX = jax.vmap(interpolate)(score_CIWX, weight_CI)
        found.append(np.asarray(jnp.einsum("CIX,CIZ->XZ", score_CIX, share_CIZ)))
        part_XI = jnp.einsum("CIX,CI->XI", score_CIX, share_CIZ[..., 0])
        parts.append(np.asarray(part_XI)[:, :told])
    return Scored(np.array(found), np.array(parts))
