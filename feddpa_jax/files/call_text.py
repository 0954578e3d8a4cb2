"""Texts that call something by its name: `dirichlet(task, alpha=0.1)`, `ditto(strength=0.5)`."""

from typing import NamedTuple

from feddpa_jax.types import UserError

_PAIRS = {"(": ")", "[": "]", "{": "}"}


class Call(NamedTuple):
    """A call, with its values as they were typed.

    Attributes:
      name: what is called.
      values: those without a name, in their order.
      named: the others by name.
    """

    name: str
    values: tuple[str, ...]
    named: dict[str, str]


def parse_call(text: str, field: str, form: str) -> Call:
    """The parts of `name` or `name(value, option=value, ...)`.

    Args:
      text: what was typed.
      field: of the configuration or the option, for messages.
      form: what to write, for messages.

    Raises:
      UserError: the text has another form, or an option is there twice.

    >>> parse_call("dirichlet(task, alpha=0.1)", "partition", "write name(column, option=value)")
    Call(name='dirichlet', values=('task',), named={'alpha': '0.1'})
    """
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if not name or (bracket and not rest.endswith(")")) or (not bracket and ")" in name):
        raise UserError(f"{field}: {text!r} is no name with options; {form}")
    values: list[str] = []
    named: dict[str, str] = {}
    for part in split_commas(rest[:-1], field, form, whole=text) if bracket else ():
        key, equals, value = (side.strip() for side in part.partition("="))
        if not equals or key[:1] in ("'", '"', "[", "{"):
            if named:
                raise UserError(f"{field}: {name}: {part!r} follows a named option; {form}")
            values.append(part)
        elif not key or not value:
            raise UserError(f"{field}: {name}: {part!r} is no option; {form}")
        elif key in named:
            raise UserError(f"{field}: {name}: {key} is there twice; give it once")
        else:
            named[key] = value
    return Call(name, tuple(values), named)


def split_commas(text: str, field: str, form: str, *, whole: str = "") -> list[str]:
    """The parts between commas that are in no bracket and no quotes.

    Args:
      text: what was typed.
      field: of the configuration or the option, for messages.
      form: what to write, for messages.
      whole: what the text is the inside of, for messages; if empty, quotes count in brackets alone:
        a file's name may have one.

    Raises:
      UserError: a bracket or a quote is not closed.

    >>> split_commas("a,b(c=[1, 2], d='x,y'),e", "methods", "write name")
    ['a', "b(c=[1, 2], d='x,y')", 'e']
    """
    parts, start, closing, quote = [], 0, [], ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (whole or closing):
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append(text[start:place])
            start = place + 1
    if closing:
        raise UserError(
            f"{field}: {(whole or text)!r} lacks a closing {(quote or closing[-1])!r}; {form}"
        )
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
