"""Tiny random models of every supported family, made by `transformers`."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from feddpa_jax.hf import byte_tokenizer

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# (model_type, what differs from SIZES): a case a feature.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4, "rope_theta": 1e4}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama_linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "rope_theta": 1e5, "head_dim": 12}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral_global": ("mistral", {"sliding_window": None, "head_dim": 6}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 10}),
    "qwen3_biased": (
        "qwen3",
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 6}
        | {"layer_types": _MIXED},
    ),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 5, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}
        | {"sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 5e3},
    ),
    "gemma3_linear": (
        "gemma3_text",
        {"sliding_window": 4, "layer_types": _MIXED, "num_key_value_heads": 1, "head_dim": 16}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": True},
    ),
}
# One case a family, for what is slow.
ONE_EACH = ("llama3", "smollm2", "mistral", "qwen2", "qwen3", "gemma3")


def random_hf_model(case: str, seed: int = 0, **changes: Any) -> Any:
    """A model whose logits are far from uniform; norms and biases are random too."""
    model_type, own = FAMILIES[case]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, **own, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    # Gemma's norms are stored less one.
    one = 0.0 if model_type == "gemma3_text" else 1.0
    deviation = 0.15 if model_type == "gemma3_text" else 0.3
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(one if "norm" in name else 0.0, deviation)
    return model


def save(model: PreTrainedModel, folder: Path, **options: Any) -> str:
    """Saves a model with the byte tokenizer; its path as text."""
    model.save_pretrained(folder, **options)
    byte_tokenizer().save(folder)
    return str(folder)
