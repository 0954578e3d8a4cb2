"""Hugging Face's `config.json` of every supported family, read and written.

A family is a row of `_FAMILIES`: what its `transformers` configuration class assumes where the file
is silent, and a function that reads what only this family has.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from feddpa_jax.models.config import ModelConfig, Rope
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
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_Raw = Mapping[str, Any]


class _Family(NamedTuple):
    """Defaults of the file, and what the family has of its own."""

    architecture: str
    defaults: dict[str, Any]
    features: Callable[[_Raw], dict[str, Any]]


def _biased(raw: _Raw) -> tuple[str, ...]:
    attention = _ATTENTION if raw.get("attention_bias") else ()
    return (*attention, *(_MLP if raw.get("mlp_bias") else ()))


def _llama(raw: _Raw) -> dict[str, Any]:
    return {"biased": _biased(raw)}


def _mistral(raw: _Raw) -> dict[str, Any]:
    window = raw.get("sliding_window")
    return {
        "window": window,
        "local_layers": tuple(range(raw["num_hidden_layers"]) if window else ()),
    }


def _qwen_window(raw: _Raw) -> dict[str, Any]:
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    kinds = raw.get("layer_types") or [
        _LOCAL if window and layer >= raw["max_window_layers"] else _GLOBAL
        for layer in range(raw["num_hidden_layers"])
    ]
    return {"window": window, "local_layers": _local(kinds)}


def _qwen2(raw: _Raw) -> dict[str, Any]:
    return {**_qwen_window(raw), "biased": ("q_proj", "k_proj", "v_proj")}


def _qwen3(raw: _Raw) -> dict[str, Any]:
    return {**_qwen_window(raw), "qk_norm": True, "biased": _biased(raw)}


def _gemma3(raw: _Raw) -> dict[str, Any]:
    for name in (
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if raw.get(name):
            raise UserError(f"{name} is not supported for gemma3_text")
    period = raw.get("sliding_window_pattern") or 6
    kinds = raw.get("layer_types") or [
        _LOCAL if (layer + 1) % period else _GLOBAL for layer in range(raw["num_hidden_layers"])
    ]
    return {
        "window": raw["sliding_window"],
        "local_layers": _local(kinds),
        "local_rope": _rope(raw, _LOCAL, raw.get("rope_local_base_freq", 10000.0)),
        "norm_offset": 1.0,
        "post_norms": True,
        "qk_norm": True,
        "biased": _biased(raw),
        "query_scale": float(raw["query_pre_attn_scalar"]) ** -0.5,
        "embedding_scale": float(raw["hidden_size"]) ** 0.5,
    }


def _local(kinds: list[str]) -> tuple[int, ...]:
    unknown = set(kinds) - {_LOCAL, _GLOBAL}
    if unknown:
        raise UserError(f"layer_types: {sorted(unknown)[0]!r} is not supported")
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
            "rope_theta": 1e6,
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
    if model_type not in _FAMILIES:
        raise UserError(
            f"{source}: model_type {model_type!r} is not supported; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    missing = [name for name in _SIZES.values() if name not in raw]
    if missing:
        raise UserError(f"{source}: {', '.join(missing)} missing")
    family = _FAMILIES[model_type]
    try:
        return _read({**family.defaults, **raw}, family)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except KeyError as error:
        raise UserError(f"{source}: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source}: a value is not what it should be ({error})") from None


def _read(raw: _Raw, family: _Family) -> ModelConfig:
    sizes = {ours: raw[theirs] for ours, theirs in _SIZES.items()}
    name = "hidden_activation" if "hidden_activation" in raw else "hidden_act"
    activation = raw.get(name) or "silu"
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{name} {activation!r} is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    return ModelConfig(
        **sizes,
        kv_heads=raw.get("num_key_value_heads") or sizes["heads"],
        head_dim=raw.get("head_dim") or sizes["width"] // sizes["heads"],
        family=raw["model_type"],
        rope=_rope(raw, _GLOBAL, raw.get("rope_theta", 10000.0)),
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        activation=_ACTIVATIONS[activation],
        tied=bool(raw.get("tie_word_embeddings", False)),
        max_positions=raw["max_position_embeddings"],
        **family.features(raw),
    )


def _rope(raw: _Raw, kind: str, theta: Any) -> Rope:
    """The rotary positions of one kind of layers.

    `transformers` 5 writes `rope_parameters`, with a part for each kind where they differ; older
    releases write `rope_theta`, and `rope_scaling` for the global layers.
    """
    found = raw.get("rope_parameters") or {}
    if _GLOBAL in found or _LOCAL in found:
        found = found.get(kind) or {}
    elif not found and kind == _GLOBAL:
        found = raw.get("rope_scaling") or {}
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("partial_rotary_factor is not supported")
    scaling = found.get("rope_type", found.get("type")) or "default"
    rope = {"theta": float(found.get("rope_theta", theta)), "scaling": scaling}
    if scaling in ("linear", "llama3"):
        rope["factor"] = float(found["factor"])
    if scaling == "llama3":
        rope["low_frequency"] = float(found["low_freq_factor"])
        rope["high_frequency"] = float(found["high_freq_factor"])
        rope["original_positions"] = found["original_max_position_embeddings"]
    return Rope(**rope)


def write_hf_config(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that `read_hf_config` and `transformers` read as this decoder.

    >>> from feddpa_jax.models.config import ModelConfig
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
