"""The configuration's sections: each field with a type, a default, a range and a description."""

import importlib
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, Field

from feddpa_jax.checked_settings import MOST, Count, Finite, Fraction, check, doc, settings
from feddpa_jax.config.column_map import ColumnMap, to_column_map
from feddpa_jax.hyperparameters import Values
from feddpa_jax.types import UserError


def check_known(made: Any, field: str, module: str, inner: str) -> None:
    """Refuses a name that a registry does not know; the user's own files are not run.

    The registry is imported only for names that are not the default.

    Args:
      made: the section.
      field: the field with a name, or several.
      module: where the registry is.
      inner: its name there.

    Raises:
      UserError: an unknown name.
    """
    value, default = getattr(made, field), getattr(type(made), field)
    names = {value} if isinstance(value, str) else set(value) - set(default)
    for name in sorted(names - {default} if isinstance(default, str) else names):
        getattr(importlib.import_module(module), inner).check(name)


def _remat_by_name(given: object) -> object:
    """Files of version 0.1.0 say whether layers are computed again."""
    return {True: "layer", False: "none"}[given] if isinstance(given, bool) else given


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@settings("model")
class ModelSection:
    """The frozen base model."""

    path: Annotated[
        str, doc("alias (smollm2-135m, gemma3-270m, tiny), folder, *.gguf, or hub id")
    ] = "smollm2-135m"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        doc("of products; auto: bfloat16 where the device computes it fast, else float32"),
    ] = "auto"
    quantize: Annotated[
        Literal["int8", "nf4"] | None,
        doc(
            "hold the layers' maps in 8 or 4 bits: less memory, less exact, slower; null: in dtype"
        ),
    ] = None
    attention: Annotated[
        Literal["auto", "explicit", "cudnn", "splash"],
        doc(
            "of training: the explicit form, or a fused kernel of NVIDIA (cudnn) or TPUs (splash); "
            "auto: what suits the device"
        ),
    ] = "auto"
    layers: Annotated[
        Literal["auto", "unrolled", "looped"],
        doc(
            "of training: one by one, or a loop, which compiles sooner and moves more bytes; auto: "
            "looped on TPUs where products take longer than memory traffic"
        ),
    ] = "auto"
    remat: Annotated[
        Literal["none", "cheap", "layer"],
        BeforeValidator(_remat_by_name),
        doc(
            "computed again in the backward pass, for less memory: nothing, what lies between "
            "products (cheap), or whole layers (layer: slower)"
        ),
    ] = "none"


@settings("data")
class DataSection:
    """The clients' data."""

    path: Annotated[str, doc("sample, a data folder, or hf:NAME?client_column=COLUMN")] = "sample"
    test_path: Annotated[
        str | None, doc("test instances in place of the data's own: a file, a folder, or hf:NAME")
    ] = None
    columns: Annotated[
        dict[str, str],
        AfterValidator(to_column_map),
        doc("the data's columns by what they are, as {instruction: question, output: answer}"),
    ] = ColumnMap()
    template: Annotated[str, doc("a registered prompt template, or your own as FILE.py:NAME")] = (
        "alpaca_short"
    )
    encoding: Annotated[
        Literal["separate", "joint"],
        doc(
            "separate: prompt and response each alone; joint: as one text, as in the released code"
        ),
    ] = "separate"
    cache: Annotated[
        Literal["auto", "on", "off"],
        doc("read data once into a cache of Arrow files and open them there; auto: large data"),
    ] = "auto"
    max_length: Annotated[Count, doc("maximum number of tokens of an example; the rest is cut")] = (
        512
    )
    shuffle: Annotated[bool, doc("a new order of the examples in every epoch")] = True
    max_train: Annotated[
        Count | None, doc("maximum number of training examples per client; null: all")
    ] = None
    validation: Annotated[
        int,
        Ge(0),
        Le(MOST),
        doc("training examples held out per client, for choosing weighting rules"),
    ] = 0
    max_test: Annotated[
        Count | None, doc("maximum number of test instances per task; null: all")
    ] = None

    def __post_init__(self) -> None:
        """Refuses values out of range, and templates that nobody knows."""
        check(self)
        check_known(self, "template", "feddpa_jax.data.templates", "TEMPLATES")


@settings("init")
class InitSection:
    """What a run starts from."""

    global_adapter: Annotated[
        str | None, doc("PEFT folder that the global adapter starts from; null: fresh")
    ] = None
    local_adapter: Annotated[
        str | None,
        doc("PEFT folder of all clients' local adapters, or a folder with one per client"),
    ] = None


@settings("lora")
class LoraSection:
    """The adapters."""

    rank: Annotated[Count, doc("LoRA rank")] = 8
    ranks: Annotated[
        tuple[Count, ...] | None,
        Field(min_length=1),
        doc("each client's rank, in their order, for methods that allow it; null: all lora.rank"),
    ] = None
    alpha: Annotated[Finite, Gt(0), doc("LoRA alpha; the scale is alpha / rank")] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1), doc("dropout on the adapters' input")] = 0.05
    targets: Annotated[
        tuple[Target, ...],
        Field(min_length=1),
        doc("adapted maps: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    ] = ("q_proj", "v_proj")


@settings("fed")
class FedSection:
    """The federation."""

    method: Annotated[str, doc("a registered method, or your own as FILE.py:NAME")] = "feddpa_t"
    options: Annotated[
        dict[str, bool | int | Finite | str],
        AfterValidator(Values),
        doc("the method's own options by name, as {strength: 0.5}; the others keep their defaults"),
    ] = Values()
    rounds: Annotated[Count, Le(99_999), doc("communication rounds")] = 20
    participation: Annotated[float, Gt(0), Le(1), doc("fraction of clients in a round")] = 1.0
    cohort: Annotated[
        Count | None, doc("number of clients in a round, instead of fed.participation; null: none")
    ] = None
    availability: Annotated[
        Literal["always", "daily", "markov", "column"],
        doc(
            "when clients can take part; daily: in the same rounds of each day, every client in "
            "its own; markov: on and off by chance; column: as the data say, in the column that "
            "data.columns names as available"
        ),
    ] = "always"
    availability_share: Annotated[
        float,
        Gt(0),
        Le(1),
        doc("daily and markov: share of the rounds in which a client is available"),
    ] = 0.5
    availability_period: Annotated[
        Count,
        Le(10_000),
        doc(
            "daily and column: rounds in a day; markov: rounds between draws of a client's state, "
            "on average"
        ),
    ] = 24
    dropout: Annotated[
        float,
        Ge(0),
        Lt(1),
        doc("chance that a participant drops out: it returns nothing and keeps what it had"),
    ] = 0.0
    local_epochs: Annotated[Count, Le(10_000), doc("passes over a client's data in each phase")] = (
        10
    )
    batch_size: Annotated[Count, doc("examples of a client in one update")] = 64
    micro_batch_size: Annotated[
        Count | None,
        doc("the loss is a mean over the response tokens of each micro-batch; null: batch_size"),
    ] = 32
    early_stopping: Annotated[
        Count | None,
        doc(
            "epochs without a better loss on the client's data.validation after which training of "
            "its own parts stops; it keeps those of the best epoch, or, unless it sends them, what "
            "it began with if none was better; null: all epochs"
        ),
    ] = None
    learning_rate: Annotated[
        float, Gt(0), Le(1e3), doc("of AdamW; falls linearly to 0 in each phase")
    ] = 3e-4
    rate_over_rounds: Annotated[
        Literal["constant", "cosine"],
        doc("cosine: the learning rate falls from round to round besides, to 0 after the last"),
    ] = "constant"
    proximal: Annotated[
        Finite, Ge(0), doc("FedProx's mu: pulls each client's copy towards the incoming part")
    ] = 0.0
    server_optimizer: Annotated[
        Literal["none", "momentum", "adam", "yogi", "adagrad"],
        doc("how the server follows the mean change; none: it takes the mean"),
    ] = "none"
    server_learning_rate: Annotated[
        Annotated[float, Gt(0), Le(1e3)] | None,
        doc("of the server's optimizer; null: 1 of momentum, 0.001 of the others"),
    ] = None
    max_grad_norm: Annotated[
        Finite, Gt(0), doc("norm that each client's gradient is clipped to")
    ] = 1.0
    local_weight: Annotated[Fraction, doc("local adapter's weight in FedDPA-T's local phase")] = 0.5
    aggregation: Annotated[
        Literal["uniform", "examples"],
        doc("the server's mean: uniform, or weighted by number of examples"),
    ] = "uniform"
    frozen_branch_gradient: Annotated[
        Literal["exact", "detached"],
        doc("gradient through the frozen global adapter; detached: none, as in the released code"),
    ] = "exact"
    block_tokens: Annotated[
        Count | None, doc("maximum number of tokens computed at once; null: suited to the device")
    ] = None
    clients_per_step: Annotated[
        Count | None, doc("number of clients trained at once; null: all")
    ] = None
    clients_in_memory: Annotated[
        Count,
        doc("number of local adapters kept in memory; the others are read from disk when needed"),
    ] = 64
    keep_checkpoints: Annotated[
        Count,
        doc("number of last checkpoints to keep, besides the one with the lowest loss"),
    ] = 3

    def __post_init__(self) -> None:
        """Refuses values out of range, and methods that nobody knows."""
        check(self)
        check_known(self, "method", "feddpa_jax.federated.method", "METHODS")
        if self.cohort is not None and self.participation != 1.0:
            raise UserError(
                f"fed.cohort: {self.cohort} and fed.participation: {self.participation} both say "
                "how many clients take part; leave one of them out"
            )


@settings("eval")
class EvalSection:
    """Evaluation."""

    decoding: Annotated[Literal["greedy", "beam"], doc("how answers are generated")] = "greedy"
    beams: Annotated[Count, Le(256), doc("number of beams of beam search")] = 4
    max_new_tokens: Annotated[Count, doc("maximum number of tokens of an answer")] = 80
    metrics: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        doc("registered metrics, or your own as FILE.py:NAME; answers are generated if one asks"),
    ] = ("rouge1", "exact_match", "nll")
    modes: Annotated[
        tuple[str, ...] | None,
        Field(min_length=1),
        doc(
            "some of base, global, local, fixed, instance, and the method's own; null: all that "
            "there are"
        ),
    ] = None
    clients: Annotated[
        Count | None, doc("number of clients that are evaluated, drawn by the seed; null: all")
    ] = None
    batch_tokens: Annotated[
        Count | None, doc("maximum number of tokens computed at once; null: suited to the device")
    ] = None

    def __post_init__(self) -> None:
        """Refuses values out of range, and metrics that nobody knows."""
        check(self)
        check_known(self, "metrics", "feddpa_jax.evaluate.metrics", "METRICS")


@settings("mesh")
class MeshSection:
    """The devices."""

    clients: Annotated[
        Count | None, doc("number of devices that clients are spread over; null: all")
    ] = None
    model: Annotated[Count, doc("number of devices that share one copy of the base")] = 1
    base: Annotated[
        Literal["tensor", "full"],
        doc(
            "how they share it; tensor: each a part of every product; full: gathered layer by layer"
        ),
    ] = "tensor"


@settings("track")
class TrackSection:
    """Following a run elsewhere."""

    to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        doc("trackers that get the metrics too: tensorboard, wandb, trackio (optional installs)"),
    ] = ()
    project: Annotated[str, doc("the project's name in the tracker")] = "feddpa"
