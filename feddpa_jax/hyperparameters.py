"""Hyperparameters of a user's or the package's function: its parameters that have defaults."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from feddpa_jax.types import UserError

# A hyperparameter's value.
Value = bool | int | float | str

KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


class Values(dict[str, Value]):
    """Hyperparameters by name; they do not change, and have a hash as the settings that have them.

    >>> hash(Values(ridge=0.1)) == hash(Values(ridge=0.1))
    True
    """

    def __hash__(self) -> int:
        """Of the names and values."""
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


def defaults(parameters: Mapping[str, inspect.Parameter], field: str, what: str) -> dict[str, Any]:
    """The defaults of a function's hyperparameters.

    Args:
      parameters: those of its signature that are hyperparameters.
      field: of the configuration that sets them, for messages.
      what: the function, as "the rule cosine", for messages.

    Raises:
      UserError: a default is no number, truth value or text.
    """
    found = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, default in found.items():
        if type(default) not in KINDS:
            raise UserError(
                f"{field}: {name} of {what} has the default {default!r}; a "
                "hyperparameter is a number, true or false, or a text"
            )
    return found


def check_values(
    given: Mapping[str, Any], known: Mapping[str, Value], field: str, what: str
) -> dict[str, Value]:
    """The values given for hyperparameters, each of its default's type.

    Args:
      given: value by name.
      known: default by name.
      field: of the configuration that sets them, for messages.
      what: whose they are, as "the rule cosine", for messages.

    Raises:
      UserError: an unknown name, or a value of another type.

    >>> check_values({"ridge": 1}, {"ridge": 0.1}, "weighting.parameters", "the rule gate")
    {'ridge': 1.0}
    """
    checked: dict[str, Value] = {}
    for name, value in given.items():
        if name not in known:
            has = ", ".join(f"{known_name} ({value})" for known_name, value in known.items())
            raise UserError(f"{field}: {name!r} is unknown; {what} has {has or 'none'}")
        kind = type(known[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(
                f"{field}: {name} is {value!r}, not {KINDS[kind]} as its default "
                f"{known[name]!r} in {what}"
            )
        checked[name] = value
    return checked


def signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters by name."""
    return inspect.signature(function).parameters
