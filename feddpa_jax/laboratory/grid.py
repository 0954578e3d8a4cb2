"""Scores of thousands of weighting settings, from curves instead of new forward passes.

An answer's NLL at a weight between two of the computed ones is interpolated on a line, so P and TTP
of a setting cost a rule's similarities, a look-up and two weighted sums. All settings of a rule are
one compiled function: `vmap` over scales and orientations, `lax.map` over embeddings and over
hyperparameters that are floats; other hyperparameters each add a part to it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.hyperparameters import Value, Values
from feddpa_jax.laboratory.choosing import shares_of
from feddpa_jax.laboratory.collect import POOLINGS, WEIGHTS, Collected, Questions
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


class Curves(NamedTuple):
    """Scores of every client's answers at `WEIGHTS`, and how they add up to P and TTP.

    Attributes:
      score_CIWX: by metric X of `CURVE_METRICS`.
      share_CIZ: each cell's part in P and in TTP, or in what else settings are chosen by.
    """

    score_CIWX: np.ndarray
    share_CIZ: np.ndarray


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
    part: "_Part",
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


class _Part(NamedTuple):
    """Clients that see evidence of the same shapes, and the rows that it weighs.

    Attributes:
      clients: their places.
      fold: the half of their held-out examples that is left out, and weighed; -1 for none, which
        weighs everything else.
    """

    clients: list[int]
    fold: int

    def curves_of(self, curves: Curves, fold_CI: np.ndarray | None) -> Curves:
        """The clients' curves, in which only the part's rows count; None if all are."""
        members = np.array(self.clients)
        score_CIWX, share_CIZ = (values[members] for values in curves)
        if fold_CI is not None:
            weighed_CI1 = (fold_CI[members] == self.fold)[..., None]
            share_CIZ = np.where(weighed_CI1, share_CIZ, 0.0).astype(np.float32)
        return Curves(score_CIWX, share_CIZ)


def _parts(rule: str, questions: Questions) -> list[_Part]:
    """All clients and rows, each once."""
    everyone = range(len(questions.ids))
    if not learns(rule):
        return [_Part(list(everyone), -1)]
    found: dict[tuple[int, int], list[int]] = {}
    for c, fold_J in enumerate(questions.folds()):
        for fold in np.unique(fold_J).tolist():
            found.setdefault((fold, len(questions.held_without(c, fold))), []).append(c)
    return [_Part(clients, fold) for (fold, _), clients in found.items()]


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
    return np.sum(
        [
            _score_part(rule, grid, collected, part, curves, rows, seed)
            for part in _parts(rule, collected.questions)
        ],
        axis=0,
    )


def _score_part(
    rule: str,
    grid: Grid,
    collected: Collected,
    part: _Part,
    curves: Curves,
    rows: slice,
    seed: int,
) -> np.ndarray:
    """What some clients and rows add to the scores of `score_rule`."""
    function = find_rule(rule)
    names = sees(function)
    views, supports = grid._seen(rule)
    inputs = _inputs(rule, names, views, supports, collected, part, rows, seed)
    curves = part.curves_of(curves, collected.questions.folds()[:, rows] if learns(rule) else None)
    scale_S, local_S = (
        jnp.array(values)
        for values in zip(
            *((scale, side == "local") for scale, side in grid.scalings(rule)), strict=True
        )
    )

    def score(
        inputs: list[dict[str, jax.Array]], curves: Curves, groups: Sequence[Any]
    ) -> list[jax.Array]:
        def of_client(own: tuple[Any, ...], values: Mapping[str, Any]) -> jax.Array:
            seen, score_IWX, share_IZ = own
            similarity_I = function(**Evidence(**seen).pick(names), **values)

            def at(scale, is_local):
                weight_I = local_weight(similarity_I, scale, is_local)
                return jnp.einsum("IX,IZ->XZ", interpolate(score_IWX, weight_I), share_IZ)

            return jax.vmap(at)(scale_S, local_S)

        def of_values(view: dict[str, jax.Array], values: Mapping[str, Any]) -> jax.Array:
            by_client = jax.lax.map(lambda own: of_client(own, values), (view, *curves))
            return by_client.sum(axis=0)

        def of_view(view: dict[str, jax.Array]) -> jax.Array:
            """[combinations, scales, X, Z]."""
            found = [
                jax.lax.map(lambda own, fixed=fixed: of_values(view, {**fixed, **own}), floats)
                if floats
                else of_values(view, fixed)[None]
                for fixed, floats in groups
            ]
            return jnp.concatenate(found)

        return [jax.lax.map(of_view, by_view) for by_view in inputs]

    # Floats of several combinations are traced, unless the rule decides by them.
    combinations = grid.combinations(rule)
    groups = _groups(combinations, traced=len(combinations) > 1)
    try:
        found = jax.jit(functools.partial(score, groups=groups))(inputs, curves)
    except jax.errors.ConcretizationTypeError:
        groups = _groups(combinations, traced=False)
        found = jax.jit(functools.partial(score, groups=groups))(inputs, curves)
    by_support = [np.asarray(values) for values in found]
    return np.stack(by_support, axis=1).reshape(-1, len(CURVE_METRICS), 2)
