"""Scores of thousands of weighting settings, from curves instead of new forward passes.

An answer's NLL at a weight between two of the computed ones is interpolated on a line, so P and TTP
of a setting cost a rule's similarities, a look-up and two weighted sums. All settings of a rule are
one compiled function: `vmap` over scales and orientations, `lax.map` over embeddings and over
hyperparameters that are floats; other hyperparameters each add a part to it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.hyperparameters import Value, Values
from feddpa_jax.laboratory.choosing import shares_of
from feddpa_jax.laboratory.collect import POOLINGS, WEIGHTS, Collected
from feddpa_jax.laboratory.parts import Curves, Part, parts_of
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.looking import MIXES
from feddpa_jax.weighting.rule import (
    RULES,
    check_parameters,
    find_rule,
    gives_weights,
    learns,
    sees,
)
from feddpa_jax.weighting.settings import Model, Pooling, Side, WeightingSettings
from feddpa_jax.weighting.weights import local_weight

# How prompts are embedded: under which model, pooled how, after how many layers.
View = tuple[Model, Pooling, int]

# Bytes of evidence that a rule is given at once: of a few clients where there are many.
BLOCK = 256 * 2**20

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
      parameters: by rule, values to try of its hyperparameters by name; a rule that is not here is
        tried with those of its registration's `search`, or with its defaults.
      few: whether rules on no curve, which are run exactly, are tried with a few settings alone.
      embed_exactly: the models of `embed_with` that these are tried with.
      embed_weight: of every setting, the local weight of mixed embeddings.
    """

    scales: tuple[float, ...]
    supports: tuple[int, ...]
    layers: tuple[int, ...]
    orientations: tuple[Side, ...] = ("local", "global")
    embed_with: tuple[Model, ...] = tuple(MIXES)
    poolings: tuple[Pooling, ...] = POOLINGS
    parameters: Mapping[str, Mapping[str, Sequence[Value]]] = dataclasses.field(
        default_factory=dict
    )
    few: bool = False
    embed_exactly: tuple[Model, ...] = ("local",)
    embed_weight: float | None = None

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
                embed_weight=self.embed_weight,
                pooling=pooling,
                layer=layer,
                seed=seed,
                parameters=values,
            )
            for (model, pooling, layer), support, values, (scale, scales) in itertools.product(
                views,
                supports,
                self.combinations(rule),
                self.scalings(rule),
            )
        ]

    def scalings(self, rule: str) -> list[tuple[float, Side]]:
        """The scales and the adapters they go to; a rule that gives weights is not scaled."""
        if gives_weights(rule):
            return [(1.0, "local")]
        return list(itertools.product(self.scales, self.orientations))

    def combinations(self, rule: str) -> list[Values]:
        """The values of a rule's hyperparameters that are tried; floats vary the fastest.

        Raises:
          UserError: the rule has no such hyperparameter, or a value is of another type.
        """
        own = self.parameters.get(rule, RULES.options(rule).get("search") or {})
        checked = {
            name: [check_parameters(rule, {name: value})[name] for value in values]
            for name, values in own.items()
        }
        names = sorted(checked, key=lambda name: isinstance(checked[name][0], float))
        return [
            Values(zip(names, values, strict=True))
            for values in itertools.product(*(checked[name] for name in names))
        ]

    def _seen(self, rule: str) -> tuple[list[View], tuple[int, ...]]:
        names = sees(RULES.find(rule))
        views = list(itertools.product(self.embed_with, self.poolings, self.layers))
        embeds = rule != "constant" and any(name.endswith("D") for name in names)
        supported = any(name.startswith("support") for name in names)
        return views if embeds else views[:1], self.supports if supported else self.supports[:1]


def make_curves(collected: Collected, tasks: Tasks, rows: slice) -> Curves:
    """The curves of some instances, whose tasks are given, and their parts in P and TTP."""
    return curves_of(collected, rows, shares_of(tasks))


def curves_of(collected: Collected, rows: slice, share_CIZ: np.ndarray) -> Curves:
    """The curves of some instances, and their parts in two scores of any kind."""
    score_CIWX = np.stack(
        [collected.nll_CJW[:, rows], 100.0 * collected.greedy_CJW[:, rows]], axis=-1
    ).astype(np.float32)
    return Curves(score_CIWX, share_CIZ)


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


def _groups(
    combinations: Sequence[Mapping[str, Value]], *, traced: bool
) -> list[tuple[dict[str, Value], dict[str, jax.Array]]]:
    """Combinations by what is fixed in a program, and the floats of each that vary within it."""
    groups: dict[tuple[tuple[str, Value], ...], list[dict[str, Value]]] = {}
    for values in combinations:
        floats: dict[str, Value] = {
            name: v for name, v in values.items() if traced and isinstance(v, float)
        }
        fixed = tuple((name, v) for name, v in values.items() if name not in floats)
        groups.setdefault(fixed, []).append(floats)
    return [
        (dict(fixed), {name: jnp.array([own[name] for own in floats]) for name in floats[0]})
        for fixed, floats in groups.items()
    ]


def _inputs(
    rule: str,
    names: Sequence[str],
    views: Sequence[View],
    supports: Sequence[int],
    collected: Collected,
    part: Part,
    rows: slice,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    """What a rule sees, by support, as they differ in shape: every field [views, clients, ...]."""
    clients = part.clients
    # A support for each instance is made inside, from the shared one.
    wanted = {name.replace("support_BMD", "support_MD") for name in names}

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
        found = collected.evidence(client, settings, rows, part.fold)._asdict()
        return {name: value for name, value in found.items() if name in wanted}

    return [
        jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(len(views), len(clients), *leaves[0].shape),
            *(seen(view, support, client) for view in views for client in clients),
        )
        for support in supports
    ]


def bytes_of_client(rule: str, grid: Grid, collected: Collected, rows: slice) -> int:
    """About how much of a client's evidence a rule is given at once, in all its settings."""
    views, supports = grid._seen(rule)
    own = collected.questions
    width = max((query.shape[-1] for [(query, *_), *_] in collected.embeddings.values()), default=1)
    held = max(map(len, own.held), default=0)
    prompts = (rows.stop - rows.start) + held + len(own.dreams) + max(supports)
    seen = set(sees(RULES.find(rule))) & collected.asked.keys()
    asked = sum(collected.asked[name][0].nbytes for name in seen)
    return len(views) * len(supports) * (4 * prompts * width + asked)


class Scored(NamedTuple):
    """The scores of settings.

    Attributes:
      score_NXZ: by metric of `CURVE_METRICS`; P and TTP.
      part_NXI: by metric, what each instance adds to P; of no instance where it was not asked for.
    """

    score_NXZ: np.ndarray
    part_NXI: np.ndarray


def score_rule(
    rule: str,
    grid: Grid,
    collected: Collected,
    curves: Curves,
    rows: slice,
    *,
    seed: int,
    by_instance: bool = False,
) -> Scored:
    """P and TTP of all settings of a rule.

    Args:
      rule: its name.
      grid: what it is tried with.
      collected: the evidence and the scores.
      curves: those of the instances in question.
      rows: which instances these are.
      seed: of the supports' draws.
      by_instance: tell what each instance adds to P.
    """
    at_once = max(1, BLOCK // bytes_of_client(rule, grid, collected, rows))
    found = [
        _score_part(rule, grid, collected, part, curves, rows, seed, by_instance)
        for part in parts_of(rule, collected.questions, at_once)
    ]
    return Scored(*(np.sum(values, axis=0) for values in zip(*found, strict=True)))


def _scalings(rule: str, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """A rule's scales, and whether they are of the local adapter's weight, each [S]."""
    pairs = ((scale, side == "local") for scale, side in grid.scalings(rule))
    scale_S, local_S = (jnp.array(values) for values in zip(*pairs, strict=True))
    return scale_S, local_S


def _score_part(
    rule: str,
    grid: Grid,
    collected: Collected,
    part: Part,
    curves: Curves,
    rows: slice,
    seed: int,
    by_instance: bool,
) -> Scored:
    """What some clients and rows add to the scores of `score_rule`."""
    function = find_rule(rule)
    names = sees(function)
    views, supports = grid._seen(rule)
    inputs = _inputs(rule, names, views, supports, collected, part, rows, seed)
    curves = part.curves_of(curves, collected.questions.folds()[:, rows] if learns(rule) else None)
    scale_S, local_S = _scalings(rule, grid)
    told = curves.share_CIZ.shape[1] if by_instance else 0

    def score(
        inputs: list[dict[str, jax.Array]], curves: Curves, groups: Sequence[Any]
    ) -> list[tuple[jax.Array, jax.Array]]:
        def of_client(own: tuple[Any, ...], values: Mapping[str, Any]):
            seen, score_IWX, share_IZ = own
            similarity_I = function(**Evidence(**seen).pick(names), **values)

            def at(scale, is_local):
                weight_I = local_weight(similarity_I, scale, is_local)
                score_IX = interpolate(score_IWX, weight_I)
                part_XI = (score_IX * share_IZ[:, :1])[:told].T
                return jnp.einsum("IX,IZ->XZ", score_IX, share_IZ), part_XI

            return jax.vmap(at)(scale_S, local_S)

        def of_values(view: dict[str, jax.Array], values: Mapping[str, Any]):
            by_client = jax.lax.map(lambda own: of_client(own, values), (view, *curves))
            return jax.tree.map(lambda own: own.sum(axis=0), by_client)

        def of_view(view: dict[str, jax.Array]):
            """[combinations, scales, X, Z] and [combinations, scales, X, I]."""
            found = [
                jax.lax.map(lambda own, fixed=fixed: of_values(view, {**fixed, **own}), floats)
                if floats
                else jax.tree.map(lambda own: own[None], of_values(view, fixed))
                for fixed, floats in groups
            ]
            return jax.tree.map(lambda *own: jnp.concatenate(own), *found)

        return [jax.lax.map(of_view, by_view) for by_view in inputs]

    # Floats of several combinations are traced, unless the rule decides by them.
    combinations = grid.combinations(rule)
    groups = _groups(combinations, traced=len(combinations) > 1)
    try:
        found = jax.jit(functools.partial(score, groups=groups))(inputs, curves)
    except jax.errors.ConcretizationTypeError:
        groups = _groups(combinations, traced=False)
        found = jax.jit(functools.partial(score, groups=groups))(inputs, curves)
    by_support = (np.stack(list(map(np.asarray, own)), axis=1) for own in zip(*found, strict=True))
    return Scored(*(own.reshape(math.prod(own.shape[:-2]), *own.shape[-2:]) for own in by_support))
