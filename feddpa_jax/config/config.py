"""A run's configuration, checked whenever one is made."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from annotated_types import Ge, Le

from feddpa_jax.checked_settings import check, doc, settings, show
from feddpa_jax.config.sections import (
    DataSection,
    EvalSection,
    FedSection,
    InitSection,
    LoraSection,
    MeshSection,
    ModelSection,
    TrackSection,
)
from feddpa_jax.files.problems import check_fields
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import RULES, check_parameters
from feddpa_jax.weighting.settings import WeightingSettings


@settings("")
class Config:
    """A run's configuration; `load_config` reads one from YAML and the command line.

    A section may be given as a mapping of its fields.

    Attributes:
      seed: of everything random in a run.
      model: the frozen base model.
      data: the clients' data.
      init: what a run starts from.
      lora: the adapters.
      fed: the federation: method, rounds, local training.
      weighting: how instances are weighed.
      eval: evaluation.
      mesh: the devices.
      track: following a run elsewhere.

    Raises:
      UserError: an unknown field, or a value of the wrong type or range.

    >>> Config(fed={"rounds": 3}).fed.rounds
    3
    >>> Config(fed={"ronds": 3})
    Traceback (most recent call last):
      ...
    feddpa_jax.types.UserError: unknown key 'fed.ronds'; did you mean 'fed.rounds'?
    """

    # jax.random.key drops the bits above 32 in silence.
    seed: Annotated[int, Ge(0), Le(2**32 - 1), doc("seed of everything random in a run")] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    init: InitSection = InitSection()
    lora: LoraSection = LoraSection()
    fed: FedSection = FedSection()
    weighting: WeightingSettings = WeightingSettings()
    eval: EvalSection = EvalSection()
    mesh: MeshSection = MeshSection()
    track: TrackSection = TrackSection()

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Refuses unknown names in the words of a file's."""
        top = {field.name for field in dataclasses.fields(cls)}
        for name in named:
            if name not in top:
                raise unknown(name)
        return super().__new__(cls)

    if TYPE_CHECKING:

        def __init__(self, *, seed: int = 0, **sections: Any) -> None: ...

    def __post_init__(self) -> None:
        """Makes sections of mappings, and checks what is in none."""
        for field in dataclasses.fields(self):
            if dataclasses.is_dataclass(field.default):
                value = _section(field.name, type(field.default), getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        check(self)
        check_fields(dotted(self))
        rule = self.weighting.rule
        if rule in RULES:  # One of a file is tried where it is needed.
            check_parameters(rule, self.weighting.parameters)


def dotted(config: "Config") -> dict[str, Any]:
    """The values of all fields, by dotted name."""
    found: dict[str, Any] = {}
    for outer in dataclasses.fields(config):
        value = getattr(config, outer.name)
        if dataclasses.is_dataclass(value):
            found |= {
                f"{outer.name}.{n.name}": getattr(value, n.name) for n in dataclasses.fields(value)
            }
        else:
            found[outer.name] = value
    return found


def _section(name: str, kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is a section; write its fields below it")
    known = {field.name for field in dataclasses.fields(kind)}
    for inner in value:
        if inner not in known:
            raise unknown(f"{name}.{inner}")
    return kind(**value)


def unknown(name: str) -> UserError:
    """The error of a field that there is not, with the nearest that there is."""
    section, dot, field = name.partition(".")
    like = name.strip().lower()
    if not dot and like in {known.name for known in dataclasses.fields(Config)}:
        return UserError(f"unknown key {show(name)}; did you mean {like!r}?")
    if dot and name in {known for known, *_ in describe_fields()}:
        return UserError(f"{name}: write {field} below {section}:, on a line of its own")
    return UserError(f"unknown key {show(name)}; did you mean {_nearest(name)!r}?")


def _nearest(dotted: str) -> str:
    names = [name for name, *_ in describe_fields()]
    leaf = dotted.split(".")[-1]
    same_leaf = [name for name in names if name.split(".")[-1] == leaf]
    leaves = {name.split(".")[-1]: name for name in names}
    close = same_leaf or difflib.get_close_matches(dotted, names, 1, 0.6)
    close = close or [leaves[m] for m in difflib.get_close_matches(leaf, list(leaves), 1, 0.5)]
    close = close or difflib.get_close_matches(dotted, names, 1, 0.0)
    return close[0]


def describe_fields() -> list[tuple[str, str, str, str]]:
    """Every field: dotted name, type, default, description."""
    rows = []
    for outer in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(outer.default):
            rows.append((outer.name, *_describe(outer)))
            continue
        for inner in dataclasses.fields(outer.default):
            rows.append((f"{outer.name}.{inner.name}", *_describe(inner)))
    return rows


def _describe(field: dataclasses.Field) -> tuple[str, str, str]:
    annotation, *extras = get_args(field.type)
    notes = [extra.description for extra in extras if getattr(extra, "description", None)]
    return _type_name(annotation), json.dumps(field.default, default=list), notes[-1]


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if get_args(annotation):
        return "|".join(map(_type_name, get_args(annotation)))
    return "null" if annotation is type(None) else annotation.__name__
