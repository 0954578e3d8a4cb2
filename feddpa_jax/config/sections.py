"""The configuration's fields: each with a type, a default, a range and a one-line description."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Mode = Literal["base", "global", "local", "fixed", "instance"]
Fraction = Annotated[float, Ge(0), Le(1)]
# What the arithmetic on the devices can count: 32 bits.
MOST = 2**31 - 1
Count = Annotated[int, Ge(1), Le(MOST)]
# Beyond it 32-bit floats overflow, and infinity times 0 is NaN.
Finite = Annotated[float, Le(1e30)]

_strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _is(description: str) -> Any:
    return Field(description=description)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The frozen base model."""

    __pydantic_config__ = _strict
    path: Annotated[
        str, _is("alias (smollm2-135m, tiny, random:llama-2-7b), folder, *.gguf, or hub id")
    ] = "smollm2-135m"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        _is("of its products; auto: bfloat16 where the device is fast at it, else float32"),
    ] = "auto"
    remat: Annotated[
        bool, _is("compute layers again in the backward pass: less memory, slower")
    ] = False


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The clients' data."""

    __pydantic_config__ = _strict
    path: Annotated[str, _is("sample, a data folder, or hf:NAME?client_column=COLUMN")] = "sample"
    template: Annotated[str, _is("a registered prompt template, or your own as FILE.py:NAME")] = (
        "alpaca_short"
    )
    encoding: Annotated[
        Literal["separate", "joint"],
        _is("of prompt and response; joint: as one text, as in the released code"),
    ] = "separate"
    max_length: Annotated[Count, _is("most tokens of an example; the rest is cut")] = 512
    shuffle: Annotated[bool, _is("a new order of the examples in every epoch")] = True
    max_train: Annotated[Count | None, _is("most training examples a client; null: all")] = None
    validation: Annotated[
        int,
        Ge(0),
        Le(MOST),
        _is("training examples a client holds out, for choosing weighting rules"),
    ] = 0
    max_test: Annotated[Count | None, _is("most test instances a task; null: all")] = None


@dataclasses.dataclass(frozen=True)
class InitSection:
    """What a run starts from."""

    __pydantic_config__ = _strict
    global_adapter: Annotated[
        str | None, _is("PEFT folder that the global adapter starts from; null: fresh")
    ] = None
    local_adapter: Annotated[
        str | None,
        _is("PEFT folder for every client's local adapter, or a folder with one a client"),
    ] = None


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """The adapters."""

    __pydantic_config__ = _strict
    rank: Annotated[Count, _is("LoRA rank")] = 8
    alpha: Annotated[Finite, Gt(0), _is("LoRA alpha; the scale is alpha / rank")] = 16.0
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
    method: Annotated[str, _is("a registered method, or your own as FILE.py:NAME")] = "feddpa_t"
    rounds: Annotated[Count, Le(99_999), _is("communication rounds")] = 20
    participation: Annotated[float, Gt(0), Le(1), _is("fraction of clients in a round")] = 1.0
    local_epochs: Annotated[Count, Le(10_000), _is("passes over a client's data in each phase")] = (
        10
    )
    batch_size: Annotated[Count, _is("examples of a client in one update")] = 64
    micro_batch_size: Annotated[
        Count | None,
        _is("the loss is a mean over each micro-batch's response tokens; null: batch_size"),
    ] = 32
    learning_rate: Annotated[
        float, Gt(0), Le(1e3), _is("AdamW, falling linearly to 0 in each phase")
    ] = 3e-4
    max_grad_norm: Annotated[Finite, Gt(0), _is("each client's gradient is clipped to it")] = 1.0
    local_weight: Annotated[Fraction, _is("local adapter's weight in FedDPA-T's local phase")] = 0.5
    aggregation: Annotated[
        Literal["uniform", "examples"], _is("server's mean: uniform, or by number of examples")
    ] = "uniform"
    frozen_branch_gradient: Annotated[
        Literal["exact", "detached"],
        _is("through the frozen global branch; detached as in the released code"),
    ] = "exact"
    block_tokens: Annotated[
        Count | None, _is("most tokens computed at once; null: as many as suit the device")
    ] = None
    clients_per_step: Annotated[Count | None, _is("clients trained at once; null: all")] = None
    clients_in_memory: Annotated[
        Count, _is("local adapters kept in memory; the others are read from disk when needed")
    ] = 64
    keep_checkpoints: Annotated[
        Count, _is("how many of the last rounds' checkpoints stay, beside that of the lowest loss")
    ] = 3


@dataclasses.dataclass(frozen=True)
class WeightingSection:
    """Instance-wise weighting."""

    __pydantic_config__ = _strict
    rule: Annotated[str, _is("a registered rule, or your own as FILE.py:NAME")] = "cosine"
    scale: Annotated[float, Ge(0), Le(1e6), _is("what the similarity is multiplied by")] = 0.5
    support: Annotated[
        Count, Le(10_000), _is("training prompts that stand for a client's data")
    ] = 5
    scales: Annotated[
        Literal["local", "global"],
        _is("the adapter that scale * similarity goes to; global as in the released code"),
    ] = "local"
    embed_with: Annotated[
        Literal["local", "global", "base", "mixed"],
        _is("the model under which prompts are embedded; mixed: half of each adapter"),
    ] = "local"
    pooling: Annotated[Literal["last", "mean"], _is("last prompt token, or mean over it")] = "last"
    layer: Annotated[
        Annotated[int, Ge(0), Le(MOST)] | None,
        _is("prompts are embedded after so many; null: after all"),
    ] = None
    resample: Annotated[bool, _is("draw the support anew for every instance")] = False
    fixed: Annotated[Fraction, _is("local weight of the fixed mix")] = 0.5
    parameters: Annotated[
        Mapping[str, bool | int | Finite | str],
        _is("the rule's hyperparameters by name, as {ridge: 0.1}; the others keep their defaults"),
    ] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvalSection:
    """Evaluation."""

    __pydantic_config__ = _strict
    decoding: Annotated[Literal["greedy", "beam"], _is("how answers are generated")] = "greedy"
    beams: Annotated[Count, Le(256), _is("beams of beam search")] = 4
    max_new_tokens: Annotated[Count, _is("most tokens of an answer")] = 80
    metrics: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        _is("registered metrics, or your own as FILE.py:NAME; answers are generated if one asks"),
    ] = ("rouge1", "exact_match", "nll")
    modes: Annotated[
        tuple[Mode, ...] | None,
        Field(min_length=1),
        _is("of base, global, local, fixed, instance; null: all that the method has"),
    ] = None
    bootstrap: Annotated[Count, Le(100_000), _is("resamples behind the 95 % intervals")] = 1000
    batch_tokens: Annotated[
        Count | None, _is("most tokens computed at once; null: as many as suit the device")
    ] = None


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """The devices."""

    __pydantic_config__ = _strict
    clients: Annotated[Count | None, _is("devices that clients are spread over; null: all")] = None
    model: Annotated[Count, _is("devices that share each copy of the base")] = 1
    base: Annotated[
        Literal["tensor", "full"],
        _is(
            "how they share it: tensor: each a part of every product; full: gathered layer by layer"
        ),
    ] = "tensor"


@dataclasses.dataclass(frozen=True)
class TrackSection:
    """Following a run elsewhere."""

    __pydantic_config__ = _strict
    to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        _is("where metrics go beside metrics.jsonl; each is an optional install"),
    ] = ()
    project: Annotated[str, _is("the project's name there")] = "feddpa"


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's configuration; `load_config` reads one."""

    __pydantic_config__ = _strict
    # jax.random.key drops the bits above 32 in silence.
    seed: Annotated[int, Ge(0), Le(2**32 - 1), _is("of everything random in a run")] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    init: InitSection = InitSection()
    lora: LoraSection = LoraSection()
    fed: FedSection = FedSection()
    weighting: WeightingSection = WeightingSection()
    eval: EvalSection = EvalSection()
    mesh: MeshSection = MeshSection()
    track: TrackSection = TrackSection()


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
    default = field.default
    if default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        default = field.default_factory()
    return _type_name(annotation), json.dumps(default, default=list), notes[-1]


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if get_origin(annotation) is Mapping:
        return "mapping"
    if get_args(annotation):
        return "|".join(map(_type_name, get_args(annotation)))
    return "null" if annotation is type(None) else annotation.__name__
