"""Weighting rules: how much of the local adapter an instance gets, from what it resembles.

Yang et al., arXiv 2403.19211, section 3.3 (instance-wise dynamic weighting):

    w_b = scale * mean over s of cos( e(x_b), e(x_s) )

for an instance b and M support examples s of the client's own training data. A rule is a pure
function `(query_BD, support_BMD) -> similarity_B`; adding one is writing it under `@register`, or
in a file of one's own, which `weighting.rule: my_rules.py:gate` names.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from feddpa_jax.types import UserError

Rule = Callable[[jax.Array, jax.Array], jax.Array]

RULES: dict[str, Rule] = {}


class InstanceWeights(NamedTuple):
    """What a weighting gave: the rule's similarity and the local adapter's weight, each [B]."""

    similarity_B: jax.Array
    local_weight_B: jax.Array


Weighting = Callable[[jax.Array, jax.Array], InstanceWeights]


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator: makes a rule known as `weighting.rule: name`."""

    def add(rule: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"a weighting rule named {name!r} exists already")
        RULES[name] = rule
        return rule

    return add


def _cosines(query_BD: jax.Array, support_BMD: jax.Array) -> jax.Array:
    query_BD = query_BD / jnp.maximum(jnp.linalg.norm(query_BD, axis=-1, keepdims=True), 1e-12)
    norm_BM1 = jnp.maximum(jnp.linalg.norm(support_BMD, axis=-1, keepdims=True), 1e-12)
    return jnp.einsum("BD,BMD->BM", query_BD, support_BMD / norm_BM1)


@register("cosine")
def cosine(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """The paper's rule: mean cosine between the instance and the support, in [-1, 1].

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[1.0, 0.0]]), jnp.array([[[2.0, 0.0], [0.0, 3.0]]])).tolist()
    [0.5]
    """
    return _cosines(query_BD, support_BMD).mean(axis=-1)


@register("pearson")
def pearson(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """Mean Pearson correlation: the cosine after each embedding's own mean is taken off.

    The paper's ablation (arXiv 2403.19211, section 4).
    """
    return cosine(
        query_BD - query_BD.mean(axis=-1, keepdims=True),
        support_BMD - support_BMD.mean(axis=-1, keepdims=True),
    )


@register("l2")
def l2(query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]) -> Float[Array, "B"]:
    """Mean of 1 / (1 + d) with d the root-mean-square difference over features, in (0, 1].

    The paper's ablation names an L2 similarity without its formula; dividing by the number of
    features keeps its range independent of the model's width.
    """
    difference_BMD = support_BMD - query_BD[:, None, :]
    distance_BM = jnp.sqrt(jnp.mean(jnp.square(difference_BMD), axis=-1))
    return (1.0 / (1.0 + distance_BM)).mean(axis=-1)


@register("constant")
def constant(
    query_BD: Float[Array, "B D"], support_BMD: Float[Array, "B M D"]
) -> Float[Array, "B"]:
    """Similarity 1 for everything: a fixed mix at weight `scale`."""
    del support_BMD
    return jnp.ones(query_BD.shape[0], jnp.float32)


def find_rule(name: str) -> Rule:
    """A registered rule, or one of the user's own.

    Args:
      name: a name in `RULES`, or "FILE.py:FUNCTION" with a path from the working directory.

    Raises:
      UserError: there is none of that name, its file fails, or it does not give a number a row.
    """
    if name in RULES:
        return RULES[name]
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        known = ", ".join(sorted(RULES))
        raise UserError(
            f"weighting.rule: {name!r} is unknown; known: {known}; or FILE.py:FUNCTION of your own"
        )
    rule = _load(Path(file).expanduser(), function)
    query, support = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 4), (3, 2, 4)))
    try:
        given = jax.eval_shape(rule, query, support)
    except Exception as error:
        raise _fails(name, error) from None
    if getattr(given, "shape", None) != (3,) or not jnp.issubdtype(given.dtype, jnp.floating):
        shown = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", given)
        raise UserError(
            f"weighting.rule: {name} gave {shown} for query [3, 4] and support [3, 2, 4]; "
            "a rule gives one floating-point similarity a row, here float32[3]"
        )
    return rule


def _load(file: Path, function: str) -> Rule:
    """A function of a user's file."""
    if not file.is_file():
        raise UserError(f"weighting.rule: {file} does not exist; name a file as FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _fails(str(file), error) from None
    rule = getattr(module, function, None)
    if not callable(rule):
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and callable(value)
        ]
        has = ", ".join(own) or "none"
        raise UserError(f"weighting.rule: {file} has no function {function!r}; it has {has}")
    return rule


def _fails(name: str, error: Exception) -> UserError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return UserError(f"weighting.rule: {name} fails with {type(error).__name__}: {reason}; mend it")


def make_weighting(rule: str, *, scale: float, scales: str) -> Weighting:
    """The function from embeddings to weights, to be jitted by the caller.

    Args:
      rule: a name in `RULES`, or "FILE.py:FUNCTION".
      scale: what the similarity is multiplied by.
      scales: "local": scale * similarity is the local adapter's weight (the paper's idea);
        "global": it is the global adapter's, and the local one gets the rest (as the released
        inference script has it).

    Returns:
      `(query_BD, support_BMD) -> InstanceWeights`, weights clipped to [0, 1].

    Raises:
      UserError: an unknown rule, or one that does not work (see `find_rule`).
    """
    similarity = find_rule(rule)

    def weigh(query_BD: jax.Array, support_BMD: jax.Array) -> InstanceWeights:
        similarity_B = similarity(query_BD, support_BMD)
        # Paper: does not clip; a negative mean cosine would push an adapter away.
        scaled_B = jnp.clip(scale * similarity_B, 0.0, 1.0)
        return InstanceWeights(similarity_B, scaled_B if scales == "local" else 1.0 - scaled_B)

    return weigh
