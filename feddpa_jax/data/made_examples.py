"""Examples that were made in Python are held to what the records of files are held to."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from feddpa_jax.data.conversations import check_history
from feddpa_jax.data.records import to_example
from feddpa_jax.files.escape import short
from feddpa_jax.files.strict_json import is_text
from feddpa_jax.types import Example, UserError


def check_example(example: Any, what: str) -> None:
    """Refuses an example that none of our files could hold.

    Args:
      example: what was made.
      what: it is, for messages.

    Raises:
      UserError: it is no `Example`, or a field is empty, missing or no text.

    >>> check_example(Example("Say hi.", " "), "example 1")
    Traceback (most recent call last):
      ...
    feddpa_jax.types.UserError: example 1: field 'output' is empty; give it a text
    """
    if not isinstance(example, Example):
        raise UserError(f"{what} is {short(repr(example))}; make it with Example")
    if _is_plain(example):
        return
    check_history(example.history or (), what)
    found = to_example(dataclasses.asdict(example), what)
    kept = {"history": example.history, "available": example.available}
    if None in kept.values() or dataclasses.replace(found, **kept) != example:
        raise UserError(f"{what} has a field that is None; leave it out")


def check_tests(test: Iterable[Any], what: str) -> Iterator[Example]:
    """Test instances, each of which is looked at when it is asked for.

    Args:
      test: what was made.
      what: one is, for messages.

    Raises:
      UserError: as of `check_example`; or an instance has no task.
    """
    for number, example in enumerate(test, start=1):
        check_example(example, f"{what} {number}")
        if not example.task:
            raise UserError(f"{what} {number} has no task; name it")
        yield example


def _is_plain(example: Example) -> bool:
    """Whether all is well with an example without history, as with most; the check is quick."""
    own = (example.instruction, example.output, example.input, example.task, example.category)
    if example.history != () or example.available != "":
        return False
    texts = all(isinstance(text, str) for text in own) and all(map(is_text, own))
    return texts and bool(own[0].strip()) and bool(own[1].strip())
