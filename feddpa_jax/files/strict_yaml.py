"""YAML 1.2 (core schema) without the features that a configuration does not need.

`yes` is text, `010` is refused (version 1.1 reads eight, 1.2 ten), `1_000` and `1:30` are text,
dates are text, and a key stands once. Tags, anchors and aliases are refused: tags run code
elsewhere, aliases can expand to more than memory holds.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from feddpa_jax.files.strict_json import DIGITS, is_text
from feddpa_jax.types import UserError

# A larger file is not a configuration, and would take minutes to parse.
LARGEST = 1_000_000
DEPTH = 20

_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
# Line ends in version 1.1, plain text in 1.2.
_SEPARATORS = "\x85\u2028\u2029"


class _Loader(yaml.SafeLoader):
    """Composes nodes without tags and anchors, and gives scalars the types of the core schema."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        what = ""
        if self.depth > DEPTH:
            what = f"it is nested more than {DEPTH} deep"
        if isinstance(event, yaml.AliasEvent):
            what = f"alias *{event.anchor} is not supported; write the value out"
        elif getattr(event, "anchor", None):
            what = f"anchor &{event.anchor} is not supported; leave it out"
        elif getattr(event, "tag", None):
            what = (
                f"tag {event.tag} is not supported; leave it out, and quote what is meant as text"
            )
        if what:
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def integer(self, node: yaml.ScalarNode) -> int:
        """An integer of the core schema, without a leading zero."""
        digits = node.value.lstrip("+-")
        problem = ""
        if len(digits) > DIGITS:
            problem = f"number {digits[:20]}... is too large"
        elif re.fullmatch(r"0[0-9]+", digits):
            problem = (
                f"{node.value} starts with a zero, which some programs read as octal; write "
                f"{int(digits)}, or quote it if it is text"
            )
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
        return int(node.value, base)


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


def _constructor(of: Callable[[_Loader, yaml.ScalarNode], Any]) -> Callable[[Any, Any], Any]:
    return lambda loader, node: of(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _constructor(_Loader.integer))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", _constructor(lambda _, node: float(_plain(node.value)))
)
_Loader.add_constructor(
    "tag:yaml.org,2002:bool", _constructor(lambda _, node: node.value.lower() == "true")
)


def _plain(number: str) -> str:
    """A float of the core schema as Python writes it: .inf has no point there."""
    return number.replace(".", "", 1) if number[-1] in "fFnN" else number


def parse_yaml(text: str, source: str) -> Any:
    """Parses one YAML document of plain data.

    Args:
      text: the document.
      source: its name, for messages.

    Raises:
      UserError: it is not valid YAML, with the line, or holds what the head of this file lists.

    >>> parse_yaml("{rate: 3e-4, path: yes, seed: 0x10}", "here")
    {'rate': 0.0003, 'path': 'yes', 'seed': 16}
    """
    if len(text) > LARGEST:
        raise UserError(
            f"{source}: {len(text):,} characters are too many for a configuration; name a YAML "
            f"file of at most {LARGEST:,}"
        )
    if separator := re.search(f"[{_SEPARATORS}]", text):
        raise UserError(
            f"{_at(source, text, separator.start())}: not valid YAML: "
            f"U+{ord(separator[0]):04X} must be written as \\u{ord(separator[0]):04x} in double "
            "quotes"
        )
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        where = _at(source, text, error.position)
        raise UserError(
            f"{where}: not valid YAML: character U+{ord(text[error.position]):04X} is not allowed; "
            "take it out"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        if r"'\t'" in problem:
            problem += "; indent and part with blanks, not tabs"
        raise UserError(f"{source}{line}: not valid YAML: {problem}") from None
    except (ValueError, OverflowError) as error:
        # An escape beyond the last character, as in "\UFFFFFFFF".
        raise UserError(f"{source}: not valid YAML: {error}") from None
    _check_text(value, source)
    return value


def _at(source: str, text: str, place: int) -> str:
    return f"{source}, line {text.count(chr(10), 0, place) + 1}"


def _check_text(value: Any, source: str) -> None:
    """Refuses what escapes can make and no path or name can be: half a surrogate pair, NUL."""
    if isinstance(value, str):
        if "\0" in value:
            raise UserError(f"{source}: {value[:40]!r} holds the character U+0000; take it out")
        if not is_text(value):
            raise UserError(f"{source}: {value[:40]!r} holds half of a surrogate pair, no text")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, source)
            _check_text(inner, source)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, source)


class _Dumper(yaml.SafeDumper):
    """YAML that versions 1.1 and 1.2 read alike: a folder may be named 1e3, yes or 010."""


_RESOLVER = _Loader("")


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = "tag:yaml.org,2002:str"
    if _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) == plain:
        return dumper.represent_str(text)
    return dumper.represent_scalar(plain, text, style="'")


_Dumper.add_representer(str, _represent_text)


def write_yaml(tree: dict[str, Any]) -> str:
    """A YAML document of plain data, which `parse_yaml` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)
