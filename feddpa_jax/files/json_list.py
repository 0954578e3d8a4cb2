"""The values of a file with one JSON list, one by one: it is never in memory whole."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from feddpa_jax.files.strict_json import check_value, read_json, strict_decoder
from feddpa_jax.types import UserError

# Bytes that are read at a time; a value may be longer.
_AT_ONCE = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = json.JSONDecoder()


class _BrokenError(ValueError):
    """The file holds no JSON list."""


def stream_list(file: Path) -> Iterator[Any]:
    """The values of a list, as `read_json` finds them.

    Raises:
      UserError: the file is broken; the whole of it is read to say where. Values before that are
        given first.
    """
    try:
        for value, text in _values(file, strict_decoder()):
            check_value(value, text, str(file))
            yield value
    except (_BrokenError, UnicodeDecodeError, UserError):
        # This knows the line.
        read_json(file, finite=False)
        raise UserError(f"{file}: changed while it was read; start again") from None


def glance_at_list(file: Path) -> Iterator[tuple[Any, str]]:
    """The values of a list with their texts, of which little is checked.

    Raises:
      ValueError: the file holds no JSON list.
    """
    return _values(file, _PLAIN)


def _values(file: Path, decoder: json.JSONDecoder) -> Iterator[tuple[Any, str]]:
    scan = decoder.raw_decode
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    with file.open("rb") as raw:
        text, at, more = "", 0, True

        def fill() -> bool:
            nonlocal text, at, more
            read = raw.read(max(_AT_ONCE, len(text) - at))
            more = bool(read)
            text, at = text[at:] + utf8.decode(read, not more), 0
            return more

        def next_mark() -> str:
            nonlocal at
            while True:
                space = _SPACE.match(text, at)
                at = at if space is None else space.end()
                if at < len(text) or not fill():
                    return text[at : at + 1]

        if next_mark() != "[":
            raise _BrokenError
        at += 1
        if next_mark() == "]":
            at += 1
        else:
            while True:
                next_mark()
                value, end = _scanned(scan, text, at)
                # A value that ends where the text does may go on behind it.
                while (end < 0 or end == len(text)) and fill():
                    value, end = _scanned(scan, text, at)
                if end < 0:
                    raise _BrokenError
                yield value, text[at:end]
                at = end
                mark = next_mark()
                at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise _BrokenError
        if next_mark():
            raise _BrokenError


def _scanned(scan: Callable[[str, int], tuple[Any, int]], text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends; -1 if it is not whole."""
    try:
        return scan(text, at)
    except json.JSONDecodeError:
        return None, -1
    except (ValueError, RecursionError):  # What the reader of whole files says in its own words.
        raise _BrokenError from None
