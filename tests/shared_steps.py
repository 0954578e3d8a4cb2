"""Training steps that experiments of a test file share: the same phase is traced once, not anew."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feddpa_jax.training import engine
from feddpa_jax.training.step import Objective


def likeness(value: Any) -> Any:
    """What a function does: its code and what it encloses; experiments make it anew.

    Numbers and texts are like their equals; anything else is like itself alone.
    """
    if isinstance(value, Objective):
        return likeness((value.mix, value.penalty))
    if isinstance(value, tuple):
        return type(value), *map(likeness, value)
    if isinstance(value, functools.partial):
        return likeness((value.func, value.args, *sorted(value.keywords.items())))
    if isinstance(value, types.FunctionType):
        enclosed = (cell.cell_contents for cell in value.__closure__ or ())
        given = (value.__defaults__, *sorted((value.__kwdefaults__ or {}).items()))
        return value.__code__, likeness(given), *map(likeness, enclosed)
    if value is None or isinstance(value, str | int | float):
        return type(value), value
    return id(value)


def remembered(function: Callable, key: Callable[..., Any]) -> Callable:
    """A pure function that computes each value once."""
    values: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        at = key(*arguments, **named)
        if at not in values:
            # What was given stays alive, as keys may have its address.
            values[at] = (function(*arguments, **named), arguments, named)
        return values[at][0]

    return call


@contextlib.contextmanager
def sharing_steps() -> Iterator[None]:
    """Engines under one objective and with the same settings have the same step.

    A step is a pure function, of which jax keeps a program for every shape. Not for tests that
    count programs, or change what a step is made of.
    """

    def key(mesh: Any, objective: Objective, **settings: Any) -> Any:
        return mesh, likeness(objective), likeness(tuple(sorted(settings.items())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "make_step", remembered(engine.make_step, key))
        yield
