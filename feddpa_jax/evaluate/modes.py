"""Inference modes: every client answers every test instance under each mix of the two adapters.

| mode     | g       | l   |
|----------|---------|-----|
| base     | 0       | 0   |
| global   | 1       | 0   |
| local    | 0       | 1   |
| fixed    | 1 - w   | w   |
| instance | 1 - w_b | w_b |

A method may have modes of its own, each with one adapter.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from feddpa_jax.adapters.dual import MODES, Adapters, is_shared
from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import make_weighting


def available_modes(adapters: Adapters) -> tuple[str, ...]:
    """The modes that these adapters can answer in."""
    needs = {
        "base": (),
        # An adapter of no targets is the bare base's place in a mix, and no mode of its own.
        "global": (adapters.global_C or None,),
        "local": (adapters.local_C,),
        "fixed": (adapters.global_C, adapters.local_C),
        "instance": (adapters.global_C, adapters.local_C),
    }
    dual = tuple(mode for mode in MODES if all(part is not None for part in needs[mode]))
    return (*dual, *adapters.others)


def adapters_in(mode: str, adapters: Adapters) -> Adapters:
    """The adapters that answer in a mode; those of a method's own mode stand as local ones."""
    other = adapters.others.get(mode)
    return adapters if other is None else Adapters(None, other, adapters.scale)


def same_for_all(mode: str, adapters: Adapters) -> bool:
    """Whether all clients give the same answers in a mode, so that one computes them for all."""
    if mode in adapters.others:
        return is_shared(adapters.others[mode])
    return mode == "base" or (mode == "global" and is_shared(adapters.global_C))


@dataclasses.dataclass(frozen=True)
class ModeWeights:
    """The mixing weights of a mode for every client and instance: [C, I], or [C, I, L] by layer.

    Attributes:
      global_CI: g.
      local_CI: l.
      similarity_CI: what the rule saw, for the mode "instance" alone.
    """

    global_CI: np.ndarray
    local_CI: np.ndarray
    similarity_CI: np.ndarray | None = None

    def at(self, client: int, instance: int) -> tuple[float | np.ndarray, float | np.ndarray]:
        """(g, l) of an answer: numbers, or [L]."""
        g, l = self.global_CI[client, instance], self.local_CI[client, instance]
        return (float(g), float(l)) if np.ndim(l) == 0 else (g, l)

    def means(self) -> "ModeWeights":
        """The same with layers averaged, [C, I]."""
        if self.local_CI.ndim == 2:
            return self
        similarity = None if self.similarity_CI is None else self.similarity_CI.mean(axis=-1)
        return ModeWeights(self.global_CI.mean(axis=-1), self.local_CI.mean(axis=-1), similarity)


def fixed_weights(mode: str, clients: int, instances: int, *, fixed: float) -> ModeWeights:
    """The weights of every mode but "instance"; a method's own modes have the whole adapter."""
    g, l = {
        "base": (0.0, 0.0),
        "global": (1.0, 0.0),
        "local": (0.0, 1.0),
        "fixed": (1.0 - fixed, fixed),
    }.get(mode, (0.0, 1.0))
    shape = (clients, instances)
    return ModeWeights(np.full(shape, g, np.float32), np.full(shape, l, np.float32))


def instance_weights(evidence: Sequence[Evidence], settings: WeightingSettings) -> ModeWeights:
    """The weights of the mode "instance" from every client's evidence.

    Raises:
      UserError: the rule gives something that is not finite.
    """
    weigh = jax.jit(
        make_weighting(
            settings.rule,
            scale=settings.scale,
            scales=settings.scales,
            parameters=settings.parameters,
        )
    )
    weights = [weigh(own) for own in evidence]
    local_CI = np.stack([np.asarray(weight.local_weight_B) for weight in weights])
    similarity_CI = np.stack([np.asarray(weight.similarity_B) for weight in weights])
    if not np.isfinite(similarity_CI).all():
        raise UserError(
            f"weighting.rule: {settings.rule} gives {(~np.isfinite(similarity_CI)).sum()} of "
            f"{similarity_CI.size} similarities that are not finite; fix it, or choose another"
        )
    return ModeWeights(1.0 - local_CI, local_CI, similarity_CI)
