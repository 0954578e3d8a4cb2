"""The registry of weighting rules: what a rule sees, its hyperparameters, and its mistakes told.

A rule is a pure function of fields of `Evidence`, by name, to one similarity per row:

    def gate(query_BD, support_BMD, *, ridge=0.01): ...   # [B, D], [B, M, D] -> [B]
    def apart(query_BLD, support_MLD): ...                # [B, L, D], [M, L, D] -> [B, L]

A rule that sees no instance, but every layer, gives one number per layer for all of a client's:

    def learned(held_mixture): ...                        # H examples -> [L]

or a `TokenGate`, by which every token has a weight of its own.

Other parameters are hyperparameters: numbers, true or false, or texts, each with a default. They
are set by `weighting.parameters` and may be searched by the laboratory. A rule that is registered
with `is_weight=True` gives the local adapter's weight itself, which is not scaled. Rules are called
with many instances and see each alone; one whose rows depend on each other is refused, unless it is
registered with `transductive=True`, and then it is labelled wherever it is named.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.files.own_files import fails
from feddpa_jax.hyperparameters import Value, check_values, defaults
from feddpa_jax.registry import Registry
from feddpa_jax.types import UserError
from feddpa_jax.weighting.alone import looks_at_others
from feddpa_jax.weighting.evidence import (
    MIXTURES,
    OF_HELD_OUT,
    OF_INSTANCES,
    OF_LAYERS,
    TEXTS,
    Evidence,
    trial,
)

Rule = Callable[..., Any]


def _rule(
    function: Rule,
    *,
    search: Mapping[str, Sequence[Value]] | None = None,
    is_weight: bool = False,
    transductive: bool = False,
    least_support: Callable[..., int] | None = None,
) -> Rule:
    """A rule as it is registered.

    Args:
      function: the rule.
      search: values of hyperparameters that the laboratory tries.
      is_weight: what the rule gives is the local adapter's weight: `weighting.scale` and
        `weighting.scales` do not apply.
      transductive: an instance's similarity depends on the instances beside it.
      least_support: from the hyperparameters to the fewest support examples that it works with.

    Raises:
      TypeError: it is no function.
      ValueError: `search` has a name that is no hyperparameter of the rule, or no values.
    """
    del transductive, least_support  # The registry keeps them.
    if not callable(function):
        raise TypeError("a rule is a function")
    for name, values in (search or {}).items():
        if name not in parameters(function):
            raise ValueError(f"search: {_called(function)} has no hyperparameter {name!r}")
        if isinstance(values, str) or not len(values):
            raise ValueError(f"search: {name} needs a list of values, as (0.5, 1.0)")
    return function


RULES: Registry[Rule] = Registry(
    "weighting rule",
    "weighting.rule",
    group="feddpa_jax.rules",
    modules=("feddpa_jax.weighting.rules",),
    wrap=_rule,
)


def _called(rule: Rule) -> str:
    return getattr(rule, "__name__", None) or str(rule)


def _signature(rule: Rule) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(rule).parameters
    except (TypeError, ValueError) as error:
        raise fails("weighting.rule", _called(rule), error) from None


def sees(rule: Rule) -> tuple[str, ...]:
    """The fields of `Evidence` that a rule is a function of.

    Raises:
      UserError: it has a parameter that is none of them and has no default, or none that is an
        instance's own.
    """
    found = _signature(rule)
    names = tuple(name for name in found if name in Evidence._fields)
    for name, parameter in found.items():
        if name not in names and parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"weighting.rule: {_called(rule)} asks for {name!r}; a rule's parameters are among "
                f"{', '.join(Evidence._fields)}, or have a default"
            )
    if not set(names) & {*OF_INSTANCES, *OF_LAYERS}:
        raise UserError(
            f"weighting.rule: {_called(rule)} does not look at the instance; one of its parameters "
            f"must be among {', '.join(OF_INSTANCES)}"
        )
    return names


def parameters(rule: Rule) -> dict[str, Value]:
    """The hyperparameters of a rule and their defaults.

    >>> parameters(lambda query_BD, temperature=2.0: query_BD[:, 0])
    {'temperature': 2.0}

    Raises:
      UserError: a default is no number, truth value or text.
    """
    own = {name: found for name, found in _signature(rule).items() if name not in Evidence._fields}
    return defaults(own, "weighting.parameters", f"the rule {_called(rule)}")


def check_parameters(rule: str | Rule, given: Mapping[str, Any]) -> dict[str, Value]:
    """The values of hyperparameters, each of its default's type.

    Args:
      rule: as of `find_rule`; the user's own file is run.
      given: value by name.

    Raises:
      UserError: the rule has no such hyperparameter, or the value is of another type.
    """
    if not given:
        return {}
    function = RULES.find(rule)
    called = rule if isinstance(rule, str) else _called(function)
    what = f"the rule {called}"
    return check_values(given, parameters(function), "weighting.parameters", what)


def find_rule(rule: str | Rule) -> Rule:
    """A rule by its name, from the user's own file, or given as a function.

    Args:
      rule: a name in `RULES`, "FILE.py:NAME" with a path from the working directory, or a function.

    Returns:
      The rule; one that is not the package's raises UserError wherever it fails or gives something
      else than a number per row.

    Raises:
      UserError: there is none of that name, its file fails, it asks for what no rule may see, it
        fails on a trial, or it looks at several instances at once without saying so.
    """
    function = RULES.find(rule)
    sees(function)
    parameters(function)
    if (getattr(function, "__module__", None) or "").startswith("feddpa_jax.weighting.rules."):
        return function
    guarded = _guarded(rule if isinstance(rule, str) else _called(function), function)
    _trial(guarded)
    if not is_transductive(rule) and _looks_at_others(function):
        raise UserError(
            f"weighting.rule: {_called(function)} gives an instance another similarity when other "
            "instances are beside it, but a client answers one prompt at a time; look at each row "
            "alone, or register the rule with transductive=True, and it is labelled as such"
        )
    return guarded


def _looks_at_others(rule: Rule) -> bool:
    try:
        return looks_at_others(rule, sees(rule))
    except Exception as error:
        raise fails("weighting.rule", _called(rule), error) from None


def weighs_layers(rule: str | Rule) -> bool:
    """Whether a rule gives each layer, or each token in it, its own weight."""
    function = find_rule(rule)
    return of_clients(function) or len(_trial(function).shape) == 2


def of_clients(rule: Rule) -> bool:
    """Whether a rule gives the same for all instances of a client, since it sees none."""
    return not set(sees(rule)) & set(OF_INSTANCES)


def _trial(rule: Rule) -> Any:
    """What a rule gives for made-up evidence, without computing it if it can be compiled."""
    seen = trial().pick(sees(rule))
    return (
        rule(**seen) if set(seen) & set(TEXTS) else jax.eval_shape(lambda seen: rule(**seen), seen)
    )


def _letters(field: str) -> str:
    """The dimensions of a field of the evidence."""
    others = {"query_mixture": "BL", "held_mixture": "HL", **TEXTS}
    return others.get(field) or field.rpartition("_")[2]


def _sizes(part: Any) -> tuple[int, ...]:
    """Their sizes."""
    if isinstance(part, list | tuple):
        return (len(part),)
    return part.shape if hasattr(part, "shape") else (part.count, part.layers)


def _guarded(name: str, rule: Rule) -> Rule:
    """A rule of the user's own whose mistakes are told as such."""

    @functools.wraps(rule)
    def guarded(**given: Any) -> jax.Array | TokenGate:
        try:
            result = rule(**given)
        except (UserError, jax.errors.ConcretizationTypeError):
            raise
        except Exception as error:
            raise fails("weighting.rule", name, error) from None
        seen = {key: part for key, part in given.items() if key in Evidence._fields}
        sizes = {
            letter: size
            for key, part in seen.items()
            for letter, size in zip(_letters(key), _sizes(part), strict=True)
        }
        if isinstance(result, TokenGate) and of_clients(rule):
            return result
        layers = (sizes["L"],) if "L" in sizes else ()
        allowed = [layers] if of_clients(rule) else [(sizes["B"],), (sizes["B"], *layers)]
        dtype = getattr(result, "dtype", None)
        if (
            getattr(result, "shape", None) in allowed
            and dtype is not None
            and jnp.issubdtype(dtype, jnp.floating)
        ):
            return result
        shown = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", result)
        raise UserError(
            f"weighting.rule: {name} gave {shown} for "
            f"{', '.join(f'{key} {list(_sizes(part))}' for key, part in seen.items())}; "
            "a rule gives one floating-point similarity per "
            f"{'layer' if of_clients(rule) else 'row'}, here float32{list(allowed[0])}"
        )

    return guarded


def gives_weights(rule: str | Rule) -> bool:
    """Whether a rule gives the local adapter's weight itself, which is not scaled.

    >>> gives_weights("held_out_gate"), gives_weights("cosine")
    (True, False)
    """
    return bool(RULES.options(rule).get("is_weight"))


def is_transductive(rule: str | Rule) -> bool:
    """Whether a rule is registered as one that looks at several instances at once."""
    return bool(RULES.options(rule).get("transductive"))


def least_support(rule: str | Rule, given: Mapping[str, Any]) -> int:
    """The fewest support examples that a rule works with, given its hyperparameters.

    >>> least_support("calibrated_hard", {"level": 0.1}), least_support("cosine", {})
    (9, 1)
    """
    least = RULES.options(rule).get("least_support")
    if least is None:
        return 1
    return least(**{**parameters(RULES.find(rule)), **check_parameters(rule, given)})


def told(rule: str) -> str:
    """A rule's name, with what is to be known of it.

    >>> told("cosine")
    'cosine'
    """
    return f"{rule} (transductive)" if is_transductive(rule) else rule


def runs_model(rule: str | Rule) -> bool:
    """Whether a rule computes with the model itself."""
    return bool(set(sees(RULES.find(rule))) & set(MIXTURES))


def on_curve(rule: str | Rule) -> bool:
    """Whether a rule's weights follow from arrays, one per instance: the laboratory interpolates.

    >>> on_curve("cosine"), on_curve("layerwise"), on_curve("least_entropy")
    (True, False, False)
    """
    return not runs_model(rule) and not weighs_layers(rule)


def learns(rule: str | Rule) -> bool:
    """Whether a rule looks at examples that the client held out."""
    return bool(set(sees(RULES.find(rule))) & set(OF_HELD_OUT))


def reads(rule: str | Rule) -> bool:
    """Whether a rule looks at texts, which no compiled program takes."""
    return bool(set(sees(RULES.find(rule))) & set(TEXTS))


def named(rule: Rule | str) -> str:
    """The name of a rule; a function of a notebook is registered under its own.

    A function with the name of a built-in rule, which stays what it is, is registered as `my_NAME`.

    Raises:
      UserError: a function without a name.
    """
    if isinstance(rule, str):
        return rule
    known = RULES.name_of(rule)
    if known is not None:
        return known
    name = getattr(rule, "__name__", "")
    theirs = (getattr(RULES.get(name), "__module__", None) or "").startswith("feddpa_jax.")
    if not name.isidentifier():
        raise UserError(f"weighting.rule: {name or rule!r} is not a name; use a named function")
    name = f"my_{name}" if theirs else name
    sees(rule)
    RULES.register(name, rule)
    return name
