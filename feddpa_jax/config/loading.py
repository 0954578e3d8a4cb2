"""Configurations read from YAML and the command line, checked, written out, and compared."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from feddpa_jax.checked_settings import show, to_tree
from feddpa_jax.config.config import Config
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.files.strict_yaml import parse_yaml, write_yaml
from feddpa_jax.types import UserError

# Fields that older versions wrote into a run's config.yaml, and that mean nothing now.
REMOVED = (("eval", "bootstrap"),)
# What stands at the top: sections, and a field that is in none.
_TOP: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}


def _is_section(key: str) -> bool:
    return dataclasses.is_dataclass(_TOP.get(key))


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in value.items())
        else:
            yield key, value


def _build(tree: Mapping[str, Any], source: str) -> Config:
    try:
        return Config(**{str(name): value for name, value in tree.items()})
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _build_what_is_right(tree: Mapping[str, Any], source: str, problems: list[str]) -> Config:
    """The configuration without the values that are wrong, each of which is noted."""
    right: dict[str, Any] = {}
    for key, value in tree.items():
        own = value if isinstance(value, Mapping) and _is_section(key) else {None: value}
        for name, leaf in own.items():
            part = {key: leaf} if name is None else {key: {name: leaf}}
            # Hyperparameters are right or wrong for a rule, which stands beside them.
            if part.keys() != {"weighting"} or name != "parameters":
                try:
                    _build(part, source)
                except UserError as error:
                    problems.append(str(error))
                    continue
            right[key] = leaf if name is None else {**right.get(key, {}), name: leaf}
    try:
        return _build(right, source)
    except UserError as error:
        # Values that are right each for itself: one that does not go with the others is left out.
        problems.append(str(error))
    for name, _ in list(_leaves(right)):
        key, _, field = name.partition(".")
        fewer = (
            {**right, key: {n: v for n, v in right[key].items() if n != field}}
            if field
            else {n: v for n, v in right.items() if n != key}
        )
        try:
            return _build(fewer, source)
        except UserError:
            continue
    return Config()


def load_config(
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    of_run: bool = False,
    problems: list[str] | None = None,
) -> Config:
    """Reads a YAML file and applies command-line overrides.

    Args:
      path: the file; None for the defaults.
      overrides: "--fed.rounds", "3" or "--fed.rounds=3"; values are YAML.
      of_run: whether a run wrote the file, maybe of an older version: fields that are gone since
        are skipped.
      problems: where values that are wrong are noted, and left out, instead of raising the first.

    Raises:
      UserError: anything wrong in either, naming file or option, field and value.

    >>> load_config(overrides=["--fed.rounds", "3"]).fed.rounds
    3
    """
    tree: dict[str, Any] = {}
    source = "defaults"
    if path is not None:
        source = str(path)
        file = folder_at(path) if isinstance(path, str) else path
        try:
            text = file.read_text(encoding="utf-8-sig")
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
        if of_run:
            tree = _without_removed(tree)
        if problems is None:
            tree = to_tree(_build(tree, source))
        else:
            tree = to_tree(_build_what_is_right(tree, source, problems))
    of_rule = False
    for name, value in _pairs(overrides):
        option = f"--{name}"
        part: Any = _value(value, option)
        for key in reversed(name.split(".")):
            part = {key: part}
        # Hyperparameters are right or wrong for a rule, which another option may name.
        if name.startswith("weighting.parameters"):
            of_rule = True
        else:
            try:
                _build(part, "command line")
            except UserError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                continue
        (key, inner), *_ = part.items()
        tree[key] = _merged(tree.get(key, {}), inner, name)
    source = "command line" if of_rule else source
    if problems is None:
        return _build(tree, source)
    return _build_what_is_right(tree, source, problems)


def _without_removed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration without the fields that this version has no more."""
    return {
        key: {name: v for name, v in value.items() if (key, name) not in REMOVED}
        if isinstance(value, dict)
        else value
        for key, value in tree.items()
    }


def _merged(old: Any, new: Any, option: str) -> Any:
    """A section with an option's value; one member of a mapping leaves its others as they are."""
    if not isinstance(new, dict):
        return new
    if option.count(".") < 2:
        return {**old, **new}
    ((field, members),) = new.items()
    return {**old, field: {**old.get(field, {}), **members}}


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
            f"{option}: {show(text)} is YAML for {show(value)}; quote it inside the YAML, as in "
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
    return write_yaml(to_tree(config))


def difference(old: Config, new: Config) -> list[str]:
    """The fields in which two configurations differ, as "name: old -> new"."""
    pairs = zip(*(_leaves(dataclasses.asdict(config)) for config in (old, new)), strict=True)
    return [f"{name}: {a} -> {b}" for (name, a), (_, b) in pairs if a != b]
