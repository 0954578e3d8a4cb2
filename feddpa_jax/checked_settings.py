"""Settings: frozen dataclasses whose values are checked whenever one is made.

Python, YAML and the command line all make them, so all are refused in the same words.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import numpy as np
import pydantic
from annotated_types import Ge, Le
from pydantic import Field

from feddpa_jax.files.escape import short
from feddpa_jax.types import UserError

# What the arithmetic on the devices can count: 32 bits.
MOST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(MOST)]
Fraction = Annotated[float, Ge(0), Le(1)]
# Beyond it 32-bit floats overflow, and infinity times 0 is NaN.
Finite = Annotated[float, Le(1e30)]

_STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
# By pydantic's type of error, where its message alone does not tell what to type.
_REMEDIES = {
    "string_type": "; quote it inside the YAML, as in '\"12\"'",
    "tuple_type": ", as in [a, b]",
    "bool_type": "; write true or false",
}
_NAME = "__settings_name__"
_Class = TypeVar("_Class", bound=type)


def doc(description: str) -> Any:
    """What a field is, as an annotation of its type."""
    return Field(description=description)


@dataclass_transform(frozen_default=True)
def settings(name: str) -> Callable[[_Class], _Class]:
    """Decorator: makes a class a frozen dataclass that refuses values of the wrong type or range.

    Args:
      name: what its fields are below, such as "fed" for "fed.rounds"; empty for none.

    Returns:
      The decorator. Making such a class raises UserError, naming field and value.

    >>> @settings("fed")
    ... class Fed:
    ...     rounds: Annotated[Count, doc("communication rounds")] = 20
    >>> Fed(rounds=-3)
    Traceback (most recent call last):
      ...
    feddpa_jax.types.UserError: fed.rounds: -3: input should be greater than or equal to 1
    """

    def add(cls: _Class) -> _Class:
        if "__post_init__" not in vars(cls):
            cls.__post_init__ = check
        setattr(cls, _NAME, name)
        return dataclasses.dataclass(frozen=True)(cls)

    return add


def section_of(cls: type) -> str:
    """The name that a class of settings is known by."""
    return getattr(cls, _NAME)


def show(value: Any) -> str:
    """A value inside a message, shortened."""
    return short(repr(value) if isinstance(value, str | float) else json.dumps(value))


def check(made: Any) -> None:
    """Checks the fields of settings, and gives them their types: tuples for lists.

    Raises:
      UserError: a value of the wrong type or range.
    """
    section = section_of(type(made))
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if value is field.default or dataclasses.is_dataclass(field.default):
            continue
        name = f"{section}.{field.name}" if section else field.name
        object.__setattr__(made, field.name, check_value(name, field.type, value))


def check_value(name: str, kind: Any, value: Any) -> Any:
    """A value as a field has it.

    Args:
      name: the field's dotted name, for the message.
      kind: its annotated type.
      value: what was given; a tuple and a list are the same, and so are a path and its text, and
        a number or array of NumPy's and Python's own.

    Raises:
      UserError: it is of another type, out of range, or a list that names something twice.
    """
    try:
        text = json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        what = f"{show(str(value))} is no number, text or list; quote text inside the YAML"
        raise UserError(f"{name}: {what}") from None
    try:
        found = _adapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        # Of a type of several kinds, the one that the value is nearest to.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        message = first["msg"][0].lower() + first["msg"][1:]
        message = message.replace("array", "list").replace("tuple", "list")
        message += _REMEDIES.get(first["type"], "")
        plain = get_args(kind)[0] if get_args(kind) else kind
        if first["type"] == "value_error":  # A check of the field's own says what is wrong.
            message = message.removeprefix("value error, ")
        elif get_origin(plain) is dict and get_args(plain)[1] is str:
            message = "give names with a text each, as {instruction: question}"
        elif get_origin(plain) is dict:
            message = "give names with a number, true or false, or a text each, as {ridge: 0.1}"
        raise UserError(f"{name}: {show(first['input'])}: {message}") from None
    # Numbers may be the same, as clients' ranks are.
    named = [own for own in found if isinstance(own, str)] if isinstance(found, tuple) else []
    if len(set(named)) != len(named):
        raise UserError(f"{name}: {list(found)} names one twice; name each once")
    return found


def _plain(value: Any) -> Any:
    """What JSON does not know: a path as its text, NumPy's numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind, config=_STRICT)


def to_tree(made: Any) -> dict[str, Any]:
    """Settings as JSON has them: lists for tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(made))
