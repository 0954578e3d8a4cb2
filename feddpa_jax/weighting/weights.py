"""Weighting rules: how much of the local adapter an instance gets, from what its client knows.

Yang et al., arXiv 2403.19211, section 3.3 (instance-wise dynamic weighting):

    w_b = scale * mean over s of cos( e(x_b), e(x_s) )

for an instance b and M support examples s of the client's own training data. The cosine is one
rule of many; each is a pure function of fields of `Evidence` to one similarity a row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.hyperparameters import Value
from feddpa_jax.weighting.evidence import TEXTS, Evidence
from feddpa_jax.weighting.rule import (
    Rule,
    check_parameters,
    find_rule,
    gives_weights,
    of_clients,
    reads,
    sees,
)
from feddpa_jax.weighting.settings import WeightingSettings


class InstanceWeights(NamedTuple):
    """The rule's similarity and the local adapter's weight, each [B]; by layer, [B, L].

    Where each token has its own, they are gates, the same for all instances.
    """

    similarity_B: Any
    local_weight_B: Any


Weighting = Callable[[Evidence], InstanceWeights]


def make_weighting(
    rule: str | Rule,
    *,
    scale: float,
    scales: str,
    parameters: Mapping[str, Value] | Sequence[tuple[str, Value]] = (),
) -> Weighting:
    """The function from embeddings to weights, to be jitted by the caller.

    Args:
      rule: a registered name, "FILE.py:NAME", or a function.
      scale: what the similarity is multiplied by.
      scales: "local": scale * similarity is the local adapter's weight (the paper's idea);
        "global": it is the global adapter's, and the local one gets the rest (as the released
        inference script has it).
      parameters: values of the rule's hyperparameters, by name; the others keep their defaults.

    Returns:
      `Evidence -> InstanceWeights`, weights clipped to [0, 1]. Of a rule that gives weights (see
      `gives_weights`), similarity and weight are the same, and neither scale applies.

    Raises:
      UserError: an unknown rule, one that does not work (see `find_rule`), or a hyperparameter
        that it does not have.

    >>> weigh = make_weighting("cosine", scale=0.5, scales="local")
    >>> seen = Evidence(query_BD=jnp.ones((1, 2)), support_BMD=jnp.ones((1, 3, 2)))
    >>> weigh(seen).local_weight_B.round(2).tolist()
    [0.5]
    """
    function = find_rule(rule)
    chosen = check_parameters(rule, dict(parameters))
    names = sees(function)
    if gives_weights(rule):
        scale, scales = 1.0, "local"

    def weigh(evidence: Evidence) -> InstanceWeights:
        similarity_B = function(**evidence.pick(names), **chosen)
        if isinstance(similarity_B, TokenGate):
            gate = similarity_B.scaled(scale)
            return InstanceWeights(similarity_B, gate.rest() if scales == "global" else gate)
        if of_clients(function):
            shape = (evidence.rows(), *similarity_B.shape)
            similarity_B = jnp.broadcast_to(similarity_B[None], shape)
        chex.assert_rank(similarity_B, {1, 2})
        chex.assert_axis_dimension(similarity_B, 0, evidence.rows())
        chex.assert_type(similarity_B, float)
        # Paper: does not clip; a negative mean cosine would push an adapter away.
        return InstanceWeights(similarity_B, local_weight(similarity_B, scale, scales == "local"))

    return weigh


def compiled(settings: WeightingSettings) -> Weighting:
    """`make_weighting` of settings as one program; a rule that reads texts runs as it is.

    Raises:
      UserError: as of `make_weighting`.
    """
    weigh = make_weighting(
        settings.rule,
        scale=settings.scale,
        scales=settings.scales,
        parameters=settings.parameters,
    )
    if reads(settings.rule):
        return weigh
    program, no_texts = jax.jit(weigh), dict.fromkeys(TEXTS)
    return lambda evidence: program(evidence._replace(**no_texts))


def local_weight(
    similarity_B: jax.Array, scale: jax.Array | float, scales_local: jax.Array | bool
) -> jax.Array:
    """The local adapter's weight in [0, 1]: scale * similarity, or what that leaves."""
    scaled_B = jnp.clip(scale * similarity_B, 0.0, 1.0)
    return jnp.where(scales_local, scaled_B, 1.0 - scaled_B)
