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
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.dual import MODES, Adapters, is_shared
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.weights import compiled


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
      gate_CI: the local weight's gates where every token has its own weight; then the others are
        means over the prompt's tokens, NaN until these are known (see `seen`).
    """

    global_CI: np.ndarray
    local_CI: np.ndarray
    similarity_CI: np.ndarray | None = None
    gate_CI: np.ndarray | None = None

    def at(self, client: int, instance: int) -> tuple[Any, Any]:
        """(g, l) of an answer: numbers, or [L], or gates."""
        if self.gate_CI is not None:
            gate = self.gate_CI[client, instance]
            return gate.rest(), gate
        g, l = self.global_CI[client, instance], self.local_CI[client, instance]
        return (float(g), float(l)) if np.ndim(l) == 0 else (g, l)

    def where(self, chosen_CI: np.ndarray, others: "ModeWeights") -> "ModeWeights":
        """These weights where they are chosen, elsewhere the others."""

        def pick(own: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.where(chosen_CI.reshape(*chosen_CI.shape, *[1] * (own.ndim - 2)), own, other)

        similarity = None
        if self.similarity_CI is not None and others.similarity_CI is not None:
            similarity = pick(self.similarity_CI, others.similarity_CI)
        gates = None
        if self.gate_CI is not None and others.gate_CI is not None:
            gates = pick(self.gate_CI, others.gate_CI)
        return ModeWeights(
            pick(self.global_CI, others.global_CI),
            pick(self.local_CI, others.local_CI),
            similarity,
            gates,
        )

    def seen(self, gated_IL: np.ndarray | None) -> "ModeWeights":
        """With the means of gates over each prompt's tokens, of all clients' instances in order."""
        if self.gate_CI is None or gated_IL is None:
            return self
        mean_CIL = gated_IL.reshape(*self.gate_CI.shape, -1)
        return ModeWeights(1.0 - mean_CIL, mean_CIL, mean_CIL, self.gate_CI)

    def means(self) -> "ModeWeights":
        """The same with layers averaged, [C, I]."""
        if self.local_CI.ndim == 2:
            return self
        similarity = self.similarity_CI
        if similarity is not None and similarity.ndim == 3:
            similarity = similarity.mean(axis=-1)
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
    weigh = compiled(settings)
    weights = [jax.device_get(weigh(own)) for own in evidence]
    if all(isinstance(weight.local_weight_B, TokenGate) for weight in weights):
        return _gated([weight.local_weight_B for weight in weights], evidence[0].rows(), settings)
    local_CI = np.stack([np.asarray(weight.local_weight_B) for weight in weights])
    similarity_CI = np.stack([np.asarray(weight.similarity_B) for weight in weights])
    _check_finite(similarity_CI, settings)
    return ModeWeights(1.0 - local_CI, local_CI, similarity_CI)


def _gated(gates: Sequence[TokenGate], instances: int, settings: WeightingSettings) -> ModeWeights:
    """Each client's gate for all of its instances."""
    gate_CI = np.empty((len(gates), instances), object)
    for c, gate in enumerate(gates):
        for leaf in (gate.direction, gate.bias):
            _check_finite(leaf, settings)
        gate_CI[c] = [gate] * instances
    unknown_CI = np.full(gate_CI.shape, np.nan, np.float32)
    return ModeWeights(unknown_CI, unknown_CI, unknown_CI, gate_CI)


def _check_finite(found: np.ndarray, settings: WeightingSettings) -> None:
    if not np.isfinite(found).all():
        raise UserError(
            f"weighting.rule: {settings.rule} gives {(~np.isfinite(found)).sum()} of "
            f"{found.size} similarities that are not finite; fix it, or choose another"
        )
