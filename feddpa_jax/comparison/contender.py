"""A method in a comparison, with settings of its own: `ditto(strength=0.5, fed.rounds=4)`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feddpa_jax.config import Config, describe_fields
from feddpa_jax.federated.build import check_options
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.call_text import split_commas
from feddpa_jax.files.result_files import file_names
from feddpa_jax.files.strict_yaml import parse_yaml
from feddpa_jax.types import UserError

_FORM = "write name, or name(option=value, ...) as in ditto(strength=0.5)"
# Base, data and seeds are the same for all methods of a comparison.
_OWN_SECTIONS = ("fed", "lora", "weighting")


@dataclasses.dataclass(frozen=True)
class Contender:
    """A method and its own settings.

    Attributes:
      method: a registered name, or FILE.py:NAME.
      options: the method's options, for `fed.options`.
      fields: fields of the configuration that this method has otherwise, by dotted name.

    >>> Contender("ditto", {"strength": 0.5}).label
    'ditto(strength=0.5)'
    """

    method: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in tables, in one form whatever was typed."""
        own = [f"{name}={_text(value)}" for name, value in {**self.options, **self.fields}.items()]
        return f"{self.method}({', '.join(own)})" if own else self.method

    @property
    def folder(self) -> str:
        """The name of its folder.

        >>> Contender("my/own.py:gate", {"strength": 0.5}).folder
        'my_own.py_gate_strength_0.5'
        """
        return file_names([self.label.rstrip(")")])[0].strip("._")

    def config(self, config: Config, seed: int) -> Config:
        """A configuration with this method, its settings, and a seed.

        Raises:
          UserError: an unknown method, option or field, or a wrong value.
        """
        inherited = config.fed.options if self.method == config.fed.method else {}
        options = {**inherited, **self.options}
        sections: dict[str, dict[str, Any]] = {"fed": {"method": self.method, "options": options}}
        for name, value in self.fields.items():
            section, _, field = name.partition(".")
            sections.setdefault(section, {})[field] = value
        try:
            made = {
                section: dataclasses.replace(getattr(config, section), **fields)
                for section, fields in sections.items()
            }
            found = dataclasses.replace(config, seed=seed, **made)
            if METHODS.own_file(self.method) is None:  # Users' files are run later.
                check_options(self.method, self.options, vars(found.fed))
            return found
        except UserError as error:
            raise UserError(f"methods: {self.label}: {error}") from None


def contenders(methods: Any) -> tuple[Contender, ...]:
    """The methods of a comparison.

    Args:
      methods: a text as on the command line, "fedit,ditto(strength=0.5)", or a list of such texts,
        of methods that were registered, and of `Contender`s.

    Raises:
      UserError: a text is not of this form, a method is unknown, or one is there twice.
    """
    given = [methods] if isinstance(methods, str) or not isinstance(methods, Sequence) else methods
    found = [one for part in given for one in _each(part)]
    if not found:
        raise UserError(f"methods: names none; {_FORM}")
    for place, one in enumerate(found):
        for other in found[:place]:
            if one.label == other.label:
                raise UserError(f"methods: {one.label} is there twice; name each once")
            if one.folder.casefold() == other.folder.casefold():
                raise UserError(
                    f"methods: {other.label} and {one.label} would have one folder, {one.folder}; "
                    "rename one, or compare them in two comparisons"
                )
    return tuple(found)


def _each(given: Any) -> Iterator[Contender]:
    if isinstance(given, Contender):
        yield given
    elif isinstance(given, str):
        yield from map(_parse, split_commas(given, "methods", _FORM))
    else:
        name = METHODS.name_of(given)
        if name is None:
            raise UserError(f"methods: {given!r} is not registered; use fd.methods.register")
        yield Contender(name)


def _parse(text: str) -> Contender:
    name, bracket, rest = text.partition("(")
    name = name.strip()
    if not name or (bracket and not rest.endswith(")")) or (not bracket and ")" in name):
        raise UserError(f"methods: {text!r} is no method; {_FORM}")
    try:
        METHODS.check(name)
    except UserError as error:
        raise UserError(str(error).replace("fed.method", "methods", 1)) from None
    options: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for part in split_commas(rest[:-1], "methods", _FORM, whole=text) if bracket else ():
        key, equals, value = (side.strip() for side in part.partition("="))
        if not equals or not key or not value:
            raise UserError(f"methods: {name}: {part!r} is no option; {_FORM}")
        if key in options or key in fields:
            raise UserError(f"methods: {name}: {key} is there twice; give it once")
        if "." in key:
            _check_field(name, key)
        parsed = parse_yaml(value, f"methods: {name}: {key}")
        (fields if "." in key else options)[key] = parsed
    return Contender(name, options, fields)


def _check_field(method: str, name: str) -> None:
    section = name.partition(".")[0]
    known = {field for field, *_ in describe_fields()}
    if section not in _OWN_SECTIONS or name in ("fed.method", "fed.options"):
        sections = ", ".join(_OWN_SECTIONS)
        raise UserError(
            f"methods: {method}: {name} is the same for all methods; only fields of {sections} "
            "may be a method's own"
        )
    if name not in known:
        raise UserError(
            f"methods: {method}: unknown field {name!r}; feddpa fields lists all of them"
        )


def _text(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
