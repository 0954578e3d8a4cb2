"""Hugging Face's `config.json` of every supported family, read and written.

A family is a row of `_FAMILIES`: what its `transformers` configuration class assumes where the file
is silent, and a function that reads what only this family has.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from feddpa_jax.hf.config_fields import check_fields, shown
from feddpa_jax.hf.config_rope import GLOBAL as _GLOBAL
from feddpa_jax.hf.config_rope import LOCAL as _LOCAL
from feddpa_jax.hf.config_rope import read_gemma_ropes, read_rope
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


class _Family(NamedTuple):
    """Defaults of the file, and what the family has of its own."""

    architecture: str
    defaults: dict[str, Any]
    features: Callable[[_Raw], dict[str, Any]]


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


# What `transformers` assumes where a file is silent.
_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", {"max_position_embeddings": 2048}, _llama),
    "mistral": _Family(
        "MistralForCausalLM",
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        _mistral,
    ),
    "qwen2": _Family(
        "Qwen2ForCausalLM",
        {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        _qwen2,
    ),
    "qwen3": _Family(
        "Qwen3ForCausalLM",
        {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        _qwen3,
    ),
    "gemma3_text": _Family(
        "Gemma3ForCausalLM",
        {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
        _gemma3,
    ),
}
SUPPORTED = tuple(_FAMILIES)


def read_hf_config(raw: _Raw, source: str) -> ModelConfig:
    """The decoder that a parsed `config.json` describes.

    Args:
      raw: the file's content.
      source: its name, for messages.

    Raises:
      UserError: an unsupported model type or feature, or a missing or senseless value.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise UserError(
            f"{source}: model_type {shown(model_type)} is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    missing = [name for name in _SIZES.values() if name not in raw]
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} missing")
    family = _FAMILIES[model_type]
    try:
        check_fields(raw, model_type)
        return _read({**family.defaults, **raw}, family)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _read(raw: _Raw, family: _Family) -> ModelConfig:
    sizes = {ours: raw[theirs] for ours, theirs in _SIZES.items()}
    for name in _SIZES.values():
        check_size(name, raw[name], MOST_LAYERS if name == "num_hidden_layers" else MOST)
    name = "hidden_activation" if raw["model_type"] == "gemma3_text" else "hidden_act"
    activation = raw.get(name, "silu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{name} {shown(activation)} is not supported; supported: {', '.join(_ACTIVATIONS)}"
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
    if config.family in ("llama", "gemma3_text") and config.width % config.heads:
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
    kinds = [_LOCAL if i in config.local_layers else _GLOBAL for i in range(config.layers)]
    raw = {
        "architectures": [_FAMILIES[config.family].architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_parameters": _write_rope(config.rope),
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_positions,
        "attention_bias": set(_ATTENTION) <= set(config.biased),
    }
    if config.family == "llama":
        raw["mlp_bias"] = set(_MLP) <= set(config.biased)
    else:
        raw["sliding_window"] = config.window
    if config.family in ("qwen2", "qwen3"):
        raw |= {"use_sliding_window": config.window is not None, "layer_types": kinds}
    if config.family == "gemma3_text":
        del raw["hidden_act"]
        raw |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds,
            "query_pre_attn_scalar": round((config.query_scale or config.head_dim**-0.5) ** -2),
            "rope_parameters": {
                _GLOBAL: _write_rope(config.rope),
                _LOCAL: _write_rope(config.local_rope or config.rope),
            },
        }
    return raw


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
