"""A partitioner with its settings as one text: `dirichlet(task, alpha=0.1)`."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.checked_settings import check_value
from feddpa_jax.files.call_text import parse_call
from feddpa_jax.files.own_files import fails
from feddpa_jax.files.strict_yaml import parse_yaml
from feddpa_jax.partitioning.partitioner import LEFT_OUT, PARTITIONERS, Assignment, Partitioner
from feddpa_jax.partitioning.pool import Pool
from feddpa_jax.types import UserError

# What a division is known by is shown at its default too.
_ALWAYS = ("alpha", "k")
_FORM = "write name(column, option=value), as in dirichlet(task, alpha=0.1)"


class Specification(NamedTuple):
    """A partitioner with its settings.

    Attributes:
      name: it is registered as, or FILE.py:NAME.
      partitioner: what divides.
      settings: its own parameters by name, those that are not given at their defaults.
    """

    name: str
    partitioner: Partitioner
    settings: Mapping[str, Any]

    @property
    def column(self) -> str | None:
        """The column that it divides by, if it has one."""
        column = self.settings.get("column")
        return column if isinstance(column, str) else None

    def __str__(self) -> str:
        """In one form, whatever was typed."""
        own = []
        for name, value in self.settings.items():
            default = self.partitioner.parameters[name].default
            if default is inspect.Parameter.empty:
                own.append(_text(value))
            elif value != default or name in _ALWAYS:
                own.append(f"{name}={_text(value)}")
        return f"{self.name}({', '.join(own)})" if own else self.name


def make_specification(given: Any, options: Mapping[str, Any]) -> Specification:
    """A partitioner of a text, with its settings checked.

    Args:
      given: `name`, `name(column, option=value)`, the same with FILE.py:NAME, whose file is run, or
        a partitioner itself.
      options: more settings, by name.

    Raises:
      UserError: an unknown name or setting, a value that is wrong, or none where one is needed.

    >>> str(make_specification("dirichlet( task,alpha = .1)", {"tries": 9}))
    'dirichlet(task, alpha=0.1, tries=9)'
    """
    values: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(given, str):
        call = parse_call(given, "partition", _FORM)
        name = call.name
        values = [parse_yaml(value, f"partition: {name}") for value in call.values]
        named = {
            key: parse_yaml(value, f"partition: {name}: {key}") for key, value in call.named.items()
        }
    else:
        name = PARTITIONERS.name_of(given) or getattr(given, "__name__", "own")
    found = PARTITIONERS.find(name if isinstance(given, str) else given)
    if twice := sorted(named.keys() & options.keys()):
        raise UserError(f"partition: {name}: {twice[0]} is there twice; give it once")
    return Specification(name, found, _settings(name, found, values, {**named, **options}))


def _settings(
    name: str, found: Partitioner, values: list[Any], named: dict[str, Any]
) -> dict[str, Any]:
    takes = ", ".join(found.parameters) or "nothing"
    by_place = [
        key
        for key, parameter in found.parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    if len(values) > len(by_place):
        extra = values[len(by_place)]
        raise UserError(f"partition: {name}: {extra!r} has no name; it takes {takes}; {_FORM}")
    for key, value in zip(by_place, values, strict=False):
        if key in named:
            raise UserError(f"partition: {name}: {key} is there twice; give it once")
        named[key] = value
    for key in named:
        if key not in found.parameters:
            raise UserError(f"partition: {name}: {key!r} is unknown; it takes {takes}")
    settings = {}
    for key, parameter in found.parameters.items():
        if key in named:
            kind = parameter.annotation
            if kind is inspect.Parameter.empty:
                has_default = parameter.default not in (inspect.Parameter.empty, None)
                kind = type(parameter.default) if has_default else Any
            settings[key] = check_value(f"partition: {name}: {key}", kind, named[key])
        elif parameter.default is inspect.Parameter.empty:
            example = f"{name}({'task' if key == 'column' else f'{key}=...'})"
            raise UserError(f"partition: {name}: needs {key}; write it as in {example}")
        else:
            settings[key] = parameter.default
    return settings


def assign(wanted: Specification, pool: Pool, rng: np.random.Generator) -> Assignment:
    """Each example's client, checked.

    Raises:
      UserError: what the partitioner says; or one of the user's own fails, gives no clients'
        numbers, or gives a client too few examples.
    """
    try:
        found = wanted.partitioner.assign(pool, rng, **wanted.settings)
    except UserError:
        raise
    except Exception as error:
        if not _is_own(wanted.partitioner.assign):
            raise
        raise fails("partition", wanted.name, error) from None
    client_I, names = found if isinstance(found, tuple) else (found, ())
    client_I = np.asarray(client_I)
    if client_I.shape != (pool.examples,) or client_I.dtype.kind not in "iu":
        raise UserError(
            f"partition: {wanted.name} gives {client_I.dtype} of shape {client_I.shape}, not a "
            f"client's number for each of {pool.examples} examples"
        )
    client_I = client_I.astype(np.int64)
    if client_I.min() < LEFT_OUT or client_I.max() < 0:
        raise UserError(
            f"partition: {wanted.name} gives {client_I.min()} as a client's number; clients are 0, "
            f"1, ..., and {LEFT_OUT} leaves an example out"
        )
    clients = len(names) or pool.clients or int(client_I.max()) + 1
    if client_I.max() >= clients:
        raise UserError(
            f"partition: {wanted.name} gives client {client_I.max()}, and there are {clients}"
        )
    sizes_C = np.bincount(client_I[client_I >= 0], minlength=clients)
    if sizes_C.min() < pool.minimum:
        raise UserError(
            f"partition: {wanted.name} gives client {sizes_C.argmin()} {sizes_C.min()} examples, "
            f"fewer than the minimum of {pool.minimum}; lower minimum or clients"
        )
    return Assignment(client_I, tuple(names) or _numbered(clients))


def _is_own(function: Callable[..., Any]) -> bool:
    return not getattr(function, "__module__", "").startswith("feddpa_jax.")


def _numbered(clients: int) -> tuple[str, ...]:
    """Names that sort as their numbers do."""
    digits = len(str(clients - 1))
    return tuple(f"client_{c:0{digits}d}" for c in range(clients))


def _text(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str) or _is_plain(value):
        return str(value)
    quoted = value.replace("'", "''")
    return f"'{quoted}'"


def _is_plain(text: str) -> bool:
    """Whether a text needs no quotes."""
    try:
        return re.fullmatch(r"[\w./:-]+", text) is not None and parse_yaml(text, "") == text
    except UserError:
        return False
