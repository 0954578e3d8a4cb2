"""Hugging Face's `config.json` of every supported family, read and written.

A family is one registration in `FAMILIES`: what its `transformers` class assumes where the file is
silent, the fields and parameters that it has, and a function that reads its features.
"""

from collections.abc import Mapping
from types import NoneType
from typing import Any

from feddpa_jax.hf.config_fields import check_fields, shown
from feddpa_jax.hf.config_rope import GLOBAL as _GLOBAL
from feddpa_jax.hf.config_rope import LOCAL as _LOCAL
from feddpa_jax.hf.config_rope import read_gemma_ropes, read_rope
from feddpa_jax.hf.family import FAMILIES, Family, Types
from feddpa_jax.hf.names import GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3
from feddpa_jax.models.model_config import MOST, MOST_LAYERS, ModelConfig, Rope, check_size
from feddpa_jax.types import UserError

_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_Raw = Mapping[str, Any]


def _llama(raw: _Raw) -> dict[str, Any]:
    biased = (*_attention_bias(raw), *(_MLP if raw.get("mlp_bias") else ()))
    return {**_one_kind(raw, _GLOBAL), "rope": read_rope(raw), "biased": biased}


def _mistral(raw: _Raw) -> dict[str, Any]:
    window = raw.get("sliding_window")
    local = _one_kind(raw, _GLOBAL if window is None else _LOCAL)
    return {**local, "rope": read_rope(raw), "window": window}


def _qwen2(raw: _Raw) -> dict[str, Any]:
    return {**_qwen_window(raw), "rope": read_rope(raw), "biased": ("q_proj", "k_proj", "v_proj")}


def _qwen3(raw: _Raw) -> dict[str, Any]:
    own = {"rope": read_rope(raw), "qk_norm": True, "biased": _attention_bias(raw)}
    return {**_qwen_window(raw), **own}


def _gemma3(raw: _Raw) -> dict[str, Any]:
    kinds = raw.get("layer_types")
    if kinds is None:
        period = raw.get("sliding_window_pattern", 6)
        if type(period) is not int or period < 1:
            raise UserError(f"sliding_window_pattern is {shown(period)}, not a positive integer")
        kinds = [_LOCAL if (n + 1) % period else _GLOBAL for n in range(raw["num_hidden_layers"])]
    check_size("query_pre_attn_scalar", raw["query_pre_attn_scalar"])
    ropes = read_gemma_ropes(raw)
    return {
        "window": raw["sliding_window"],
        "local_layers": _local(kinds, raw),
        "rope": ropes[_GLOBAL],
        "local_rope": ropes[_LOCAL],
        "norm_offset": 1.0,
        "post_norms": True,
        "qk_norm": True,
        "biased": _attention_bias(raw),
        "query_scale": float(raw["query_pre_attn_scalar"]) ** -0.5,
        "embedding_scale": float(raw["hidden_size"]) ** 0.5,
    }


def _attention_bias(raw: _Raw) -> tuple[str, ...]:
    return _ATTENTION if raw.get("attention_bias") else ()


def _one_kind(raw: _Raw, kind: str) -> dict[str, Any]:
    """The local layers where all layers are alike; `layer_types` that say otherwise are refused.

    The models of these families do not read them, but the caches of `transformers` do.
    """
    kinds = raw.get("layer_types")
    if kinds is not None and kinds != [kind] * raw["num_hidden_layers"]:
        raise UserError(f"layer_types other than {kind} in every layer are not supported here")
    return {"local_layers": tuple(range(raw["num_hidden_layers"]) if kind == _LOCAL else ())}


def _qwen_window(raw: _Raw) -> dict[str, Any]:
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    kinds = raw.get("layer_types")
    if kinds is None:
        kinds = [
            _GLOBAL if window is None or layer < raw["max_window_layers"] else _LOCAL
            for layer in range(raw["num_hidden_layers"])
        ]
    return {"window": window, "local_layers": _local(kinds, raw)}


def _local(kinds: list[Any], raw: _Raw) -> tuple[int, ...]:
    unknown = [kind for kind in kinds if kind not in (_LOCAL, _GLOBAL)]
    if unknown:
        raise UserError(
            f"layer_types: {shown(unknown[0])} is not supported; supported: {_LOCAL}, {_GLOBAL}"
        )
    if len(kinds) != raw["num_hidden_layers"]:
        raise UserError(
            f"layer_types names {len(kinds)} layers, num_hidden_layers is "
            f"{raw['num_hidden_layers']}; correct one"
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == _LOCAL)


def _sliding(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.window}


def _kinds(config: ModelConfig) -> list[str]:
    return [_LOCAL if i in config.local_layers else _GLOBAL for i in range(config.layers)]


def _qwen_fields(config: ModelConfig) -> dict[str, Any]:
    uses = config.window is not None
    return {**_sliding(config), "use_sliding_window": uses, "layer_types": _kinds(config)}


def _gemma3_fields(config: ModelConfig) -> dict[str, Any]:
    return {
        **_sliding(config),
        "layer_types": _kinds(config),
        "query_pre_attn_scalar": round((config.query_scale or config.head_dim**-0.5) ** -2),
        "rope_parameters": {
            _GLOBAL: _write_rope(config.rope),
            _LOCAL: _write_rope(config.local_rope or config.rope),
        },
    }


_MAYBE_INT: Types = (int, NoneType)
_MAYBE_LIST: Types = (list, NoneType)
_WINDOW: dict[str, Types] = {
    "use_sliding_window": (bool,),
    "sliding_window": _MAYBE_INT,
    "max_window_layers": (int,),
    "layer_types": _MAYBE_LIST,
    "hidden_act": (str,),
    "num_key_value_heads": _MAYBE_INT,
    # Of Qwen2 not a field of the class, but its model reads it; null there is an error.
    "head_dim": (int,),
}
_GLOBAL_ONLY: dict[str, Types] = {
    "hidden_act": (str,),
    "layer_types": _MAYBE_LIST,
    "head_dim": _MAYBE_INT,
}
_QWEN_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

FAMILIES.register(
    "llama",
    Family(
        "LlamaForCausalLM",
        _llama,
        LLAMA,
        reads={
            **_GLOBAL_ONLY,
            "num_key_value_heads": _MAYBE_INT,
            "attention_bias": (bool,),
            "mlp_bias": (bool,),
        },
        only={"sliding_window": (None,)},
        defaults={"max_position_embeddings": 2048},
        writes=lambda config: {"mlp_bias": set(_MLP) <= set(config.biased)},
        whole_heads=True,
    ),
)
FAMILIES.register(
    "mistral",
    Family(
        "MistralForCausalLM",
        _mistral,
        MISTRAL,
        reads={**_GLOBAL_ONLY, "num_key_value_heads": (int,), "sliding_window": _MAYBE_INT},
        defaults={"max_position_embeddings": 131072}
        | {"num_key_value_heads": 8, "sliding_window": 4096},
        writes=_sliding,
    ),
)
FAMILIES.register(
    "qwen2",
    Family(
        "Qwen2ForCausalLM",
        _qwen2,
        QWEN2,
        reads=_WINDOW,
        defaults=_QWEN_DEFAULTS,
        writes=_qwen_fields,
    ),
)
FAMILIES.register(
    "qwen3",
    Family(
        "Qwen3ForCausalLM",
        _qwen3,
        QWEN3,
        reads={**_WINDOW, "attention_bias": (bool,)},
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        writes=_qwen_fields,
    ),
)
FAMILIES.register(
    "gemma3_text",
    Family(
        "Gemma3ForCausalLM",
        _gemma3,
        GEMMA3,
        reads={
            "hidden_activation": (str,),
            "num_key_value_heads": (int,),
            "head_dim": (int,),
            "attention_bias": (bool,),
            "query_pre_attn_scalar": (int,),
            "sliding_window": _MAYBE_INT,
            # Of any type where layer_types are given.
            "sliding_window_pattern": (int, float, bool, str, list, dict, NoneType),
            "layer_types": _MAYBE_LIST,
            "rope_local_base_freq": (int, float, NoneType),
        },
        only={
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (None, False),
        },
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
        writes=_gemma3_fields,
        activation="hidden_activation",
        whole_heads=True,
    ),
)


def read_hf_config(raw: _Raw, source: str) -> ModelConfig:
    """The decoder that a parsed `config.json` describes.

    Args:
      raw: the file's content.
      source: its name, for messages.

    Raises:
      UserError: an unsupported model type or feature, or a missing or senseless value.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{source}: model_type {shown(model_type)} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    missing = [name for name in _SIZES.values() if name not in raw]
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} missing")
    family = FAMILIES[model_type]
    try:
        check_fields(raw, model_type)
        return _read({**family.defaults, **raw}, family)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _read(raw: _Raw, family: Family) -> ModelConfig:
    sizes = {ours: raw[theirs] for ours, theirs in _SIZES.items()}
    for name in _SIZES.values():
        check_size(name, raw[name], MOST_LAYERS if name == "num_hidden_layers" else MOST)
    activation = raw.get(family.activation, "silu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{family.activation} {shown(activation)} is not supported; "
            f"supported: {', '.join(_ACTIVATIONS)}"
        )
    kv_heads, head_dim = raw.get("num_key_value_heads"), raw.get("head_dim")
    config = ModelConfig(
        **sizes,
        kv_heads=sizes["heads"] if kv_heads is None else kv_heads,
        head_dim=sizes["width"] // sizes["heads"] if head_dim is None else head_dim,
        family=raw["model_type"],
        rms_eps=raw.get("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[activation],
        tied=raw.get("tie_word_embeddings", False),
        max_positions=raw["max_position_embeddings"],
        **family.features(raw),
    )
    if family.whole_heads and config.width % config.heads:
        # As `transformers` does, although head_dim says what a head has.
        raise UserError(
            f"hidden_size {config.width} is not a multiple of num_attention_heads {config.heads}"
        )
    return config


def write_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that `read_hf_config` and `transformers` read as this decoder.

    >>> from feddpa_jax.models.model_config import ModelConfig
    >>> config = ModelConfig(7, 4, 1, 2, 1, 2, 8, tied=True)
    >>> read_hf_config(write_hf_config(config), "test") == config
    True
    """
    family = FAMILIES[config.family]
    names = {name: theirs for theirs, name in reversed(_ACTIVATIONS.items())}
    return {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        family.activation: names[config.activation],
        "rope_parameters": _write_rope(config.rope),
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_positions,
        "attention_bias": set(_ATTENTION) <= set(config.biased),
        **family.writes(config),
    }


def _write_rope(rope: Rope) -> dict[str, Any]:
    raw: dict[str, Any] = {"rope_type": rope.scaling, "rope_theta": rope.theta}
    if rope.scaling != "default":
        raw["factor"] = rope.factor
    if rope.scaling == "llama3":
        raw |= {
            "low_freq_factor": rope.low_frequency,
            "high_freq_factor": rope.high_frequency,
            "original_max_position_embeddings": rope.original_positions,
        }
    return raw
