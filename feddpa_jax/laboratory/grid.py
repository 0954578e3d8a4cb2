"""Scores of thousands of weighting settings, from curves instead of new forward passes.

An answer's NLL at a weight between two of the computed ones is interpolated on a line, so P and TTP
of a setting cost a rule's similarities, a look-up and two weighted sums. All settings of a rule are
one compiled function: `vmap` over scales and orientations, `lax.map` over embeddings.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from feddpa_jax.evaluate.metrics import Tasks
from feddpa_jax.laboratory.collect import POOLINGS, WEIGHTS, Collected
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.gathering import MIXES
from feddpa_jax.weighting.rule import find_rule, sees
from feddpa_jax.weighting.settings import Model, Pooling, Side, WeightingSettings
from feddpa_jax.weighting.weights import local_weight

# How prompts are embedded: under which model, pooled how, after how many layers.
View = tuple[Model, Pooling, int]

CURVE_METRICS = ("nll", "exact_match")


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings that every rule is tried with; those that a rule cannot see count once.

    Attributes:
      scales: what the similarity is multiplied by.
      orientations: the adapters that it goes to.
      supports: M.
      embed_with: models of `MIXES`.
      poolings: of the prompt's tokens.
      layers: after how many layers.
    """

    scales: tuple[float, ...]
    supports: tuple[int, ...]
    layers: tuple[int, ...]
    orientations: tuple[Side, ...] = ("local", "global")
    embed_with: tuple[Model, ...] = tuple(MIXES)
    poolings: tuple[Pooling, ...] = POOLINGS

    def settings(self, rule: str, seed: int) -> list[WeightingSettings]:
        """All settings of a rule, in the order of `score_rule`'s results."""
        views, supports = self._seen(rule)
        return [
            WeightingSettings(
                rule=rule,
                scale=scale,
                support=support,
                scales=scales,
                embed_with=model,
                pooling=pooling,
                layer=layer,
                seed=seed,
            )
            for (model, pooling, layer), support, (scale, scales) in itertools.product(
                views, supports, itertools.product(self.scales, self.orientations)
            )
        ]

    def _seen(self, rule: str) -> tuple[list[View], tuple[int, ...]]:
        names = sees(find_rule(rule))
        views = list(itertools.product(self.embed_with, self.poolings, self.layers))
        embeds = rule != "constant" and any(name.endswith("D") for name in names)
        supported = any(name.startswith("support") for name in names)
        return views if embeds else views[:1], self.supports if supported else self.supports[:1]


class Curves(NamedTuple):
    """Scores of every client's answers at `WEIGHTS`, and how they add up to P and TTP.

    Attributes:
      score_CIWX: by metric X of `CURVE_METRICS`.
      share_CIZ: each cell's part in P and in TTP.
    """

    score_CIWX: np.ndarray
    share_CIZ: np.ndarray


def make_curves(collected: Collected, tasks: Tasks, rows: slice) -> Curves:
    """The curves of some instances, whose tasks are given."""
    score_CIWX = np.stack(
        [collected.nll_CJW[:, rows], 100.0 * collected.greedy_CJW[:, rows]], axis=-1
    ).astype(np.float32)
    own_CK = tasks.own_CK.astype(float)
    size_K = tasks.sizes()
    C, K = own_CK.shape
    has_C = own_CK.any(axis=1)
    of_own_CK = own_CK / np.maximum(own_CK.sum(axis=1, keepdims=True), 1) / max(has_C.sum(), 1)
    share_CKZ = np.stack([of_own_CK, np.full((C, K), 1 / (C * K))], axis=-1) / size_K[:, None]
    return Curves(score_CIWX, share_CKZ[:, tasks.task_I].astype(np.float32))


def interpolate(
    score_BWX: Float[Array, "B W X"], weight_B: Float[Array, "B"]
) -> Float[Array, "B X"]:
    """Each row's scores at its own weight, on the line between the two of `WEIGHTS` around it.

    >>> import jax.numpy as jnp
    >>> interpolate(jnp.arange(9.0).reshape(1, 9, 1), jnp.array([0.3])).tolist()
    [[2.4000000953674316]]
    """
    steps = len(WEIGHTS) - 1
    low_B = jnp.clip(jnp.floor(weight_B * steps), 0, steps - 1).astype(jnp.int32)
    part_B = weight_B * steps - low_B

    def at(index_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(score_BWX, index_B[:, None, None], axis=1)[:, 0]

    return at(low_B) + part_B[:, None] * (at(low_B + 1) - at(low_B))


def score_rule(
    rule: str, grid: Grid, collected: Collected, curves: Curves, rows: slice, *, seed: int
) -> np.ndarray:
    """P and TTP of all settings of a rule.

    Args:
      rule: its name.
      grid: what it is tried with.
      collected: the evidence and the scores.
      curves: those of the instances in question.
      rows: which instances these are.
      seed: of the supports' draws.

    Returns:
      [settings, X, Z]: by metric of `CURVE_METRICS`; P and TTP.
    """
    function = find_rule(rule)
    names = sees(function)
    views, supports = grid._seen(rule)
    clients = range(len(collected.questions.ids))

    def seen(view: View, support: int, client: int) -> dict[str, np.ndarray]:
        model, pooling, layer = view
        settings = WeightingSettings(
            rule=rule,
            support=support,
            embed_with=model,
            pooling=pooling,
            layer=layer,
            seed=seed,
        )
        found = collected.evidence(client, settings, rows)._asdict()
        # A support for each instance is made inside, from the shared one.
        wanted = {name.replace("support_BMD", "support_MD") for name in names}
        return {name: value for name, value in found.items() if name in wanted}

    # By support, as they differ in shape: every field [views, C, ...].
    inputs = [
        jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(len(views), len(clients), *leaves[0].shape),
            *(seen(view, support, client) for view in views for client in clients),
        )
        for support in supports
    ]
    scale_S, local_S = (
        jnp.array(values)
        for values in zip(
            *((scale, side == "local") for scale in grid.scales for side in grid.orientations),
            strict=True,
        )
    )

    @jax.jit
    def score(inputs: list[dict[str, jax.Array]], curves: Curves) -> list[jax.Array]:
        def of_client(own: dict[str, jax.Array], score_IWX, share_IZ) -> jax.Array:
            similarity_I = function(**Evidence(**own).pick(names))

            def at(scale, is_local):
                weight_I = local_weight(similarity_I, scale, is_local)
                return jnp.einsum("IX,IZ->XZ", interpolate(score_IWX, weight_I), share_IZ)

            return jax.vmap(at)(scale_S, local_S)

        def of_view(view: dict[str, jax.Array]) -> jax.Array:
            by_client = jax.lax.map(lambda own: of_client(*own), (view, *curves))
            return by_client.sum(axis=0)

        return [jax.lax.map(of_view, by_view) for by_view in inputs]

    by_support = [np.asarray(values) for values in score(inputs, curves)]
    return np.stack(by_support, axis=1).reshape(-1, len(CURVE_METRICS), 2)
