"""One function that reads JSON: any error is one line that names the file.

Beyond what `json` refuses: a key that appears twice, NaN and Infinity (unless they are allowed),
numbers that no float holds, halves of surrogate pairs, and nesting beyond `DEPTH`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from feddpa_jax.files.escape import short
from feddpa_jax.types import UserError

# Deep enough for every real file; far below what Python's own recursion bears, `repr` included.
DEPTH = 100
# An integer with more digits is beyond a float's range.
DIGITS = 300
_NESTED = (dict, list)
_DEEP = f"is nested more than {DEPTH} deep; correct the file"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte-order mark.

    Raises:
      UserError: it is missing, not a file, not UTF-8, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is a {_kind(path)}, not a file; put the file there")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        remedy = "put the file there" if is_gone else "make it readable"
        raise UserError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None


def parse_json(text: str, source: str, *, line: int | None = None, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      text: the JSON.
      source: the file's name, for messages.
      line: the number of the one line that `text` is; None for a whole file.
      finite: refuse NaN and Infinity; files of ours may hold them, and fields of others' records.

    Raises:
      UserError: broken JSON, or what the head of this file lists, with the line where it is known.

    >>> parse_json('{"a": [1, 2.5, null]}', "here")
    {'a': [1, 2.5, None]}
    """
    where = f"{source}, line {line}" if line else source
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=_integer,
            **({"parse_constant": _constant, "parse_float": _float} if finite else {}),
        )
    except json.JSONDecodeError as error:
        where = f"{source}, line {line or error.lineno}"
        raise UserError(f"{where}: broken JSON: {error.msg}; correct the file") from None
    except ValueError as error:
        raise UserError(f"{where}: broken JSON: {error}; correct the file") from None
    except RecursionError:
        raise UserError(f"{where}: {_DEEP}") from None
    check_value(value, text, where)
    return value


def strict_decoder() -> json.JSONDecoder:
    """What `parse_json` decodes with, NaN and Infinity allowed; `check_value` is the rest of it."""
    return json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer)


def check_value(value: Any, text: str, where: str) -> None:
    """Refuses what decoding allows: deep nesting and halves of surrogate pairs.

    Args:
      value: what was decoded.
      text: of what.
      where: for messages.

    Raises:
      UserError: as of `parse_json`.
    """
    _check_depth(value, where)
    if _SURROGATE.search(text):
        for place, found in _texts(value):
            if not is_text(found):
                raise UserError(
                    f"{where}: {place or 'its text'} holds half of a surrogate pair, which is no "
                    "text; correct the file"
                )


def read_json(path: Path, *, finite: bool = True) -> Any:
    """The value of a JSON file.

    Raises:
      UserError: it cannot be read, or see `parse_json`.
    """
    return parse_json(read_text(path), str(path), finite=finite)


def read_object(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      UserError: it holds something else, or see `read_json`.
    """
    value = read_json(path, finite=finite)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; get the file again")
    return value


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "special file"


def _check_depth(value: Any, where: str) -> None:
    level = [value] if isinstance(value, _NESTED) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise UserError(f"{where}: {_DEEP}")
        level = [inner for outer in level for inner in _inner(outer) if isinstance(inner, _NESTED)]


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, names included, and where it is, as in [0].instruction."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"a name in {place}" if place else "a name", name
            yield from _texts(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half of a surrogate pair stands in it alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"key {_shown(twice)} appears twice")
    return content


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number {_shown(digits)} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"number {_shown(digits)} is too large")
    return int(digits)


def _shown(text: str) -> str:
    return repr(short(text, 40))
