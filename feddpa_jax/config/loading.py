"""Configurations read from YAML and the command line, checked, written out, and compared."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from feddpa_jax.config.sections import Config, describe_fields
from feddpa_jax.files.escape import short
from feddpa_jax.files.problems import check_fields
from feddpa_jax.files.strict_yaml import parse_yaml, write_yaml
from feddpa_jax.types import UserError


def _nearest(dotted: str) -> str:
    names = [name for name, *_ in describe_fields()]
    leaf = dotted.split(".")[-1]
    same_leaf = [name for name in names if name.split(".")[-1] == leaf]
    leaves = {name.split(".")[-1]: name for name in names}
    close = same_leaf or difflib.get_close_matches(dotted, names, 1, 0.6)
    close = close or [leaves[m] for m in difflib.get_close_matches(leaf, list(leaves), 1, 0.5)]
    close = close or difflib.get_close_matches(dotted, names, 1, 0.0)
    return close[0]


def _unknown(name: str, source: str) -> UserError:
    section, dot, field = name.partition(".")
    if dot and name in {known for known, *_ in describe_fields()}:
        return UserError(f"{source}: {name}: write {field} below {section}:, on a line of its own")
    return UserError(f"{source}: unknown key {_show(name)}; did you mean {_nearest(name)!r}?")


# What stands at the top: sections, and a field that is in none.
_TOP: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}


def _is_section(key: str) -> bool:
    return dataclasses.is_dataclass(_TOP.get(key))


def _check_names(tree: Mapping[str, Any], source: str) -> None:
    for key, value in tree.items():
        if key not in _TOP:
            like = str(key).strip().lower()
            if _is_section(like):
                raise UserError(f"{source}: unknown key {_show(key)}; did you mean {like!r}?")
            raise _unknown(str(key), source)
        if not _is_section(key):
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"{source}: {key} is a section; write its fields below it")
        known = {f.name for f in dataclasses.fields(_TOP[key])}
        for inner in value:
            if inner not in known:
                raise _unknown(f"{key}.{inner}", source)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in value.items())
        else:
            yield key, value


@functools.cache
def _validator() -> pydantic.TypeAdapter[Config]:
    """Takes longer to make than to use."""
    return pydantic.TypeAdapter(Config)


def _build(tree: Mapping[str, Any], source: str) -> Config:
    _check_names(tree, source)
    for name, value in _leaves(tree):
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            what = f"{_show(str(value))} is no number, text or list; quote text inside the YAML"
            raise UserError(f"{source}: {name}: {what}") from None
    try:
        config = _validator().validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        words = {word for name, *_ in describe_fields() for word in name.split(".")}
        name = ".".join(part for part in map(str, first["loc"]) if part in words)
        message = first["msg"][0].lower() + first["msg"][1:]
        message = message.replace("array", "list").replace("tuple", "list")
        message += _REMEDIES.get(first["type"], "")
        raise UserError(f"{source}: {name}: {_show(first['input'])}: {message}") from None
    _check_together(config, source)
    return config


# By pydantic's type of error, where its message alone does not tell what to type.
_REMEDIES = {
    "string_type": "; quote it inside the YAML, as in '\"12\"'",
    "tuple_type": ", as in [a, b]",
    "bool_type": "; write true or false",
}


def _show(value: Any) -> str:
    return short(repr(value) if isinstance(value, str | float) else json.dumps(value))


def _check_together(config: Config, source: str) -> None:
    for name, values in (
        ("lora.targets", config.lora.targets),
        ("eval.metrics", config.eval.metrics),
        ("eval.modes", config.eval.modes or ()),
    ):
        if len(set(values)) != len(values):
            raise UserError(f"{source}: {name}: {list(values)} names one twice; name each once")


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies command-line overrides.

    Args:
      path: the file; None for the defaults.
      overrides: "--fed.rounds", "3" or "--fed.rounds=3"; values are YAML.

    Raises:
      UserError: anything wrong in either, naming file or option, field and value.
    """
    tree: dict[str, Any] = {}
    source = "defaults"
    if path is not None:
        source = str(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"{path}: cannot be read: {reason}") from None
        loaded = parse_yaml(text, source)
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{source}: holds no mapping of sections")
        # A section may be empty, as when every line of it is a comment.
        tree = {
            key: {} if value is None and _is_section(key) else value
            for key, value in (loaded or {}).items()
        }
        tree = dataclasses.asdict(_build(tree, source))
    for name, value in _pairs(overrides):
        option = f"--{name}"
        part: Any = _value(value, option)
        for key in reversed(name.split(".")):
            part = {key: part}
        _build(part, "command line")
        (key, inner), *_ = part.items()
        tree[key] = {**tree.get(key, {}), **inner} if isinstance(inner, dict) else inner
    config = _build(tree, source)
    check_fields(dotted(config))
    return config


def _value(text: str, option: str) -> Any:
    """The YAML value of an option; never another text than what was typed."""
    if not text.strip():
        raise UserError(f"{option}: is empty; write null for no value, or '\"\"' for an empty text")
    value = parse_yaml(text, option)
    quoted = text.lstrip()[0] in "\"'|>"
    if (isinstance(value, str) and not quoted and value != text.strip()) or (
        value is None and text.strip().lower() not in ("~", "null")
    ):
        raise UserError(
            f"{option}: {_show(text)} is YAML for {_show(value)}; quote it inside the YAML, as in "
            "'\"a #b\"'"
        )
    return value


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, waiting = [], list(overrides)
    while waiting:
        option = waiting.pop(0)
        name, equals, value = option[2:].partition("=")
        if not option.startswith("--") or not name:
            raise UserError(f"command line: {option!r} is not expected; fields are --section.field")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"command line: --{name} needs a value; write --{name} VALUE")
            value = waiting.pop(0)
        pairs.append((name, value))
    return pairs


def to_yaml(config: Config) -> str:
    """The resolved configuration, every field written out; loads back equal."""
    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    return write_yaml(tree)


def difference(old: Config, new: Config) -> list[str]:
    """The fields in which two configurations differ, as "name: old -> new"."""
    pairs = zip(*(_leaves(dataclasses.asdict(config)) for config in (old, new)), strict=True)
    return [f"{name}: {a} -> {b}" for (name, a), (_, b) in pairs if a != b]


def dotted(config: Config) -> dict[str, Any]:
    """The values of all fields, by dotted name."""
    return dict(_leaves(dataclasses.asdict(config)))
