"""The registry of weighting rules, and rules in files of one's own.

A rule is a pure function of fields of `Evidence`, by name, to one similarity a row:

    def gate(query_BD, support_BMD): ...          # [B, D], [B, M, D] -> [B]
    def apart(query_BLD, support_MLD): ...        # [B, L, D], [M, L, D] -> [B, L], a weight a layer

Adding one is writing it under `@register`, or in a file of one's own, which
`weighting.rule: my_rules.py:gate` names.
"""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp

from feddpa_jax.types import UserError
from feddpa_jax.weighting.evidence import Evidence, trial

Rule = Callable[..., jax.Array]

RULES: dict[str, Rule] = {}


def register(name: str) -> Callable[[Rule], Rule]:
    """Decorator: makes a rule known as `weighting.rule: name`."""

    def add(rule: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"a weighting rule named {name!r} exists already")
        RULES[name] = rule
        return rule

    return add


def sees(rule: Rule) -> tuple[str, ...]:
    """The fields of `Evidence` that a rule is a function of.

    Raises:
      UserError: it has a parameter that is none of them.
    """
    names = tuple(inspect.signature(rule).parameters)
    for name in names:
        if name not in Evidence._fields:
            raise UserError(
                f"weighting.rule: {getattr(rule, '__name__', rule)} asks for {name!r}; a rule's "
                f"parameters are among {', '.join(Evidence._fields)}"
            )
    return names


def find_rule(name: str) -> Rule:
    """A registered rule, or one of the user's own.

    Args:
      name: a name in `RULES`, or "FILE.py:FUNCTION" with a path from the working directory.

    Raises:
      UserError: there is none of that name, its file fails, it asks for what no rule may see, or it
        does not give a number a row.
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
    asked = trial().pick(sees(rule))
    try:
        given = jax.eval_shape(lambda seen: rule(**seen), asked)
    except Exception as error:
        raise _fails(name, error) from None
    shape = getattr(given, "shape", None)
    layered = shape == (3, 2) and any("L" in key.rpartition("_")[2] for key in asked)
    if not (shape == (3,) or layered) or not jnp.issubdtype(given.dtype, jnp.floating):
        shown = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", given)
        raise UserError(
            f"weighting.rule: {name} gave {shown} for "
            f"{', '.join(f'{key} {list(value.shape)}' for key, value in asked.items())}; a rule "
            "gives one floating-point similarity a row, here float32[3]"
        )
    return rule


def weighs_layers(name: str) -> bool:
    """Whether a rule looks into the layers, and so may give each its own weight."""
    return any("L" in field.rpartition("_")[2] for field in sees(find_rule(name)))


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
    return cast(Rule, rule)


def _fails(name: str, error: Exception) -> UserError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return UserError(f"weighting.rule: {name} fails with {type(error).__name__}: {reason}; mend it")
