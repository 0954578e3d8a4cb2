"""The configuration: typed YAML, every field with a default, a range and a one-line description."""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

from feddpa_jax.strict_yaml import parse_yaml
from feddpa_jax.types import UserError

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MethodName = Literal["feddpa_t", "feddpa_f", "fedit", "fedlora", "local", "centralized"]
Mode = Literal["base", "global", "local", "fixed", "instance"]
Metric = Literal["rouge1", "exact_match", "nll"]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]

_strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _is(description: str) -> Any:
    return Field(description=description)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The frozen base model."""

    __pydantic_config__ = _strict
    path: Annotated[str, _is("alias (smollm2-135m, tiny), folder, *.gguf, or hub id")] = (
        "smollm2-135m"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        _is("of its products; auto: bfloat16 where the device is fast at it, else float32"),
    ] = "auto"


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The clients' data."""

    __pydantic_config__ = _strict
    path: Annotated[str, _is("sample, a data folder, or hf:NAME?client_column=COLUMN")] = "sample"
    template: Annotated[str, _is("prompt template")] = "alpaca_short"
    max_length: Annotated[Count, _is("most tokens of an example; the rest is cut")] = 512
    shuffle: Annotated[bool, _is("a new order of the examples in every epoch")] = True
    max_train: Annotated[Count | None, _is("most training examples a client; null: all")] = None
    max_test: Annotated[Count | None, _is("most test instances a task; null: all")] = None


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """The adapters."""

    __pydantic_config__ = _strict
    rank: Annotated[Count, _is("LoRA rank")] = 8
    alpha: Annotated[float, Gt(0), _is("LoRA alpha; the scale is alpha / rank")] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1), _is("dropout on the adapters' input")] = 0.05
    targets: Annotated[
        tuple[Target, ...],
        Field(min_length=1),
        _is("adapted maps: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    ] = ("q_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class FedSection:
    """The federation."""

    __pydantic_config__ = _strict
    method: Annotated[
        MethodName, _is("feddpa_t, feddpa_f, fedit, fedlora, local or centralized")
    ] = "feddpa_t"
    rounds: Annotated[Count, _is("communication rounds")] = 20
    participation: Annotated[float, Gt(0), Le(1), _is("fraction of clients in a round")] = 1.0
    local_epochs: Annotated[Count, _is("passes over a client's data in each phase")] = 10
    batch_size: Annotated[Count, _is("examples of a client in one update")] = 64
    micro_batch_size: Annotated[
        Count | None,
        _is("the loss is a mean over each micro-batch's response tokens; null: batch_size"),
    ] = 32
    learning_rate: Annotated[float, Gt(0), _is("AdamW, falling linearly to 0 in each phase")] = 3e-4
    max_grad_norm: Annotated[float, Gt(0), _is("each client's gradient is clipped to it")] = 1.0
    local_weight: Annotated[Fraction, _is("local adapter's weight in FedDPA-T's local phase")] = 0.5
    aggregation: Annotated[
        Literal["uniform", "examples"], _is("server's mean: uniform, or by number of examples")
    ] = "uniform"
    frozen_branch_gradient: Annotated[
        Literal["exact", "detached"],
        _is("through the frozen global branch; detached as in the released code"),
    ] = "exact"
    block_tokens: Annotated[Count, _is("most tokens computed at once; lower it to save memory")] = (
        4096
    )
    clients_per_step: Annotated[Count | None, _is("clients trained at once; null: all")] = None
    keep_checkpoints: Annotated[Count, _is("how many of the last rounds' checkpoints stay")] = 3


@dataclasses.dataclass(frozen=True)
class WeightingSection:
    """Instance-wise weighting."""

    __pydantic_config__ = _strict
    rule: Annotated[str, _is("cosine, pearson, l2, constant, or a registered rule")] = "cosine"
    scale: Annotated[float, Ge(0), _is("what the similarity is multiplied by")] = 0.5
    support: Annotated[Count, _is("training prompts that stand for a client's data")] = 5
    scales: Annotated[
        Literal["local", "global"],
        _is("the adapter that scale * similarity goes to; global as in the released code"),
    ] = "local"
    embed_with: Annotated[
        Literal["local", "global", "base"], _is("the adapter under which prompts are embedded")
    ] = "local"
    pooling: Annotated[Literal["last", "mean"], _is("last prompt token, or mean over it")] = "last"
    resample: Annotated[bool, _is("draw the support anew for every instance")] = False
    fixed: Annotated[Fraction, _is("local weight of the fixed mix")] = 0.5


@dataclasses.dataclass(frozen=True)
class EvalSection:
    """Evaluation."""

    __pydantic_config__ = _strict
    decoding: Annotated[Literal["greedy", "beam"], _is("how answers are generated")] = "greedy"
    beams: Annotated[Count, _is("beams of beam search")] = 4
    max_new_tokens: Annotated[Count, _is("most tokens of an answer")] = 80
    metrics: Annotated[
        tuple[Metric, ...],
        Field(min_length=1),
        _is("rouge1, exact_match, nll; without rouge1 nothing is generated"),
    ] = ("rouge1", "exact_match", "nll")
    modes: Annotated[
        tuple[Mode, ...] | None,
        Field(min_length=1),
        _is("of base, global, local, fixed, instance; null: all that the method has"),
    ] = None
    bootstrap: Annotated[Count, _is("resamples behind the 95 % intervals")] = 1000
    batch_tokens: Annotated[Count, _is("most tokens computed at once")] = 4096


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's configuration; `load_config` reads one."""

    __pydantic_config__ = _strict
    # jax.random.key drops the bits above 32 in silence.
    seed: Annotated[int, Ge(0), Le(2**32 - 1), _is("of everything random in a run")] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    fed: FedSection = FedSection()
    weighting: WeightingSection = WeightingSection()
    eval: EvalSection = EvalSection()


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
    return UserError(f"{source}: unknown key {name!r}; did you mean {_nearest(name)!r}?")


def _check_names(tree: Mapping[str, Any], source: str) -> None:
    sections: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Config)}
    for key, value in tree.items():
        if key not in sections:
            raise _unknown(str(key), source)
        if not dataclasses.is_dataclass(sections[key]):
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"{source}: {key} is a section; write its fields below it")
        known = {f.name for f in dataclasses.fields(sections[key])}
        for inner in value:
            if inner not in known:
                raise _unknown(f"{key}.{inner}", source)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in value.items())
        else:
            yield key, value


def _build(tree: Mapping[str, Any], source: str) -> Config:
    _check_names(tree, source)
    for name, value in _leaves(tree):
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            what = f"{_show(str(value))} is no number, text or list; quote text inside the YAML"
            raise UserError(f"{source}: {name}: {what}") from None
    try:
        config = pydantic.TypeAdapter(Config).validate_json(json.dumps(tree))
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
}


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str | float) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"{path}: cannot be read: {reason}") from None
        loaded = parse_yaml(text, source)
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{source}: holds no mapping of sections")
        tree = loaded or {}
        tree = dataclasses.asdict(_build(tree, source))
    for name, value in _pairs(overrides):
        option = f"--{name}"
        part: Any = parse_yaml(value, option)
        for key in reversed(name.split(".")):
            part = {key: part}
        _build(part, "command line")
        (key, inner), *_ = part.items()
        tree[key] = {**tree.get(key, {}), **inner} if isinstance(inner, dict) else inner
    return _build(tree, source)


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


class _Dumper(yaml.SafeDumper):
    """YAML whose text `parse_yaml` reads as text: a folder may be named 1e3."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _represent_text)


def to_yaml(config: Config) -> str:
    """The resolved configuration, every field written out; loads back equal."""
    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def difference(old: Config, new: Config) -> list[str]:
    """The fields in which two configurations differ, as "name: old -> new"."""
    pairs = zip(*(_leaves(dataclasses.asdict(config)) for config in (old, new)), strict=True)
    return [f"{name}: {a} -> {b}" for (name, a), (_, b) in pairs if a != b]
