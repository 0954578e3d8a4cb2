"""Every known field of a `config.json`: read, without effect on the logits, or refused.

The tables follow the configuration classes of `transformers` 5.23 and what its models read of them.
A field that is in no table is one that `transformers` does not know either: it has no effect there,
and none here. A test compares the tables with the installed classes, so that a field that a future
release adds is noticed.
"""

import math
import reprlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

from feddpa_jax.hf.family import FAMILIES, Types
from feddpa_jax.types import UserError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60

_INT: Types = (int,)
_BOOL: Types = (bool,)
_NUMBER: Types = (int, float)
_MAYBE_DICT: Types = (dict, NoneType)
_KINDS = {
    int: "an integer",
    float: "a number with a decimal point",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}

# Read, with the types that `transformers` accepts.
_READ: dict[str, Types] = {
    "model_type": (str,),
    "vocab_size": _INT,
    "hidden_size": _INT,
    "intermediate_size": _INT,
    "num_hidden_layers": _INT,
    "num_attention_heads": _INT,
    "max_position_embeddings": _INT,
    "rms_norm_eps": (float,),
    "tie_word_embeddings": _BOOL,
    "rope_parameters": _MAYBE_DICT,
    "rope_scaling": _MAYBE_DICT,
    # Null where rope_parameters have their own.
    "rope_theta": (*_NUMBER, NoneType),
}
# They would change the logits, or which weights are loaded; accepted with these values alone.
_ONLY: dict[str, tuple[Any, ...]] = {
    "attention_chunk_size": (None,),
    "attribute_map": (None,),
    "decoder": (None,),
    "fusion_config": (None,),
    "generator": (None,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "kv_sharing_modes": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "per_layer_config": (None,),
    "quantization_config": (None,),
    "text_config": (None,),
    "text_encoder": (None,),
    "transformers_weights": (None,),
}
# Token ids, training, classification, bookkeeping, and how results are returned.
NO_EFFECT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_REMEDIES = {
    "quantization_config": "use the model without quantization",
    "text_config": "use a text model",
}


def known_fields(family: str) -> frozenset[str]:
    """The fields about which the tables say something.

    >>> "mlp_bias" in known_fields("llama"), "mlp_bias" in known_fields("qwen3")
    (True, False)
    """
    read = {**_READ, **FAMILIES[family].reads}
    only = {**_ONLY, **FAMILIES[family].only}
    return NO_EFFECT | set(read) | set(only)


def check_fields(raw: Mapping[str, Any], family: str) -> None:
    """Refuses values that would change the computation and that we do not compute with.

    Args:
      raw: a parsed `config.json`.
      family: its model type.

    Raises:
      UserError: a field has the wrong type, or a value that is not supported.

    >>> check_fields({"hidden_size": 4, "use_cache": None, "of_nobody": 1}, "llama")
    """
    for name, types in {**_READ, **FAMILIES[family].reads}.items():
        if name in raw:
            check_type(name, raw[name], types)
    for name, values in {**_ONLY, **FAMILIES[family].only}.items():
        if name in raw and not any(_same(raw[name], value) for value in values):
            allowed = " or ".join(dict.fromkeys(shown(value) for value in values))
            remedy = _REMEDIES.get(name, "use another model")
            raise UserError(
                f"{name} {shown(raw[name])} is not supported for {family}; "
                f"supported: {allowed}; {remedy}"
            )


def check_type(name: str, value: Any, types: Types) -> None:
    """Refuses a value of another type, and numbers that are not finite.

    Raises:
      UserError: it is none of them; true and false are no integers.
    """
    if type(value) not in types:
        kinds = " or ".join(_KINDS[kind] for kind in types)
        raise UserError(f"{name} is {shown(value)}, not {kinds}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}, not a finite number")


def check_number(name: str, value: Any) -> float:
    """A finite number as a float.

    Raises:
      UserError: it is none, or an integer beyond what a float holds.
    """
    check_type(name, value, _NUMBER)
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{name} is {shown(value)}, too large a number") from None


def _same(value: Any, allowed: Any) -> bool:
    return type(value) is type(allowed) and value == allowed


def shown(value: Any) -> str:
    """A value as a message shows it: short, and as JSON spells true, false and null.

    >>> shown([None, "x"]), shown(None)
    ("[None, 'x']", 'null')
    """
    names = {True: "true", False: "false", None: "null"}
    return names[value] if isinstance(value, bool | NoneType) else _SHORT.repr(value)
