"""What is read of a `config.json`, and what is refused by name."""

import dataclasses
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from feddpa_jax.hf.config_fields import known_fields
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.models.model_config import Rope
from feddpa_jax.types import UserError

LLAMA = {
    "model_type": "llama",
    "vocab_size": 9,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}
QWEN3 = {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 4}
GEMMA = {**QWEN3, "model_type": "gemma3_text"}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_class_is_decided_about(family: str):
    """A field of a newer release fails here, until the tables say what it does to the logits."""
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])}
    assert {"hidden_size", "rope_parameters", "use_cache", "return_dict"} <= fields
    assert fields - known_fields(family) == set()


@pytest.mark.parametrize(
    ("raw", "rope"),
    [
        ({}, Rope(1e4)),
        ({"rope_theta": 50}, Rope(50.0)),
        ({"rope_theta": 50, "rope_parameters": {"rope_theta": 60.0}}, Rope(60.0)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 60.0}}, Rope(60.0)),
        ({"rope_theta": 50, "rope_parameters": LINEAR}, Rope(50.0, "linear", 2.0)),
        # rope_scaling replaces rope_parameters, its theta included; an empty one does not.
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 60.0}}, Rope(1e4, "linear", 2)),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 60.0}}, Rope(60.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, Rope(1e4, "linear", 4.0)),
        ({"rope_scaling": {**LINEAR, "type": "yarn"}}, Rope(1e4, "linear", 2.0)),
    ],
)
def test_rope(raw: dict[str, Any], rope: Rope):
    assert read_hf_config({**LLAMA, **raw}, "file").rope == rope


@pytest.mark.parametrize(
    ("raw", "ropes"),
    [
        ({}, (Rope(1e6), Rope(1e4))),
        ({"rope_theta": 50, "rope_local_base_freq": 7}, (Rope(50.0), Rope(7.0))),
        # Only the parts count; what is beside them does not.
        ({"rope_parameters": {"rope_theta": 60.0}}, (Rope(1e6), Rope(1e4))),
        ({"rope_parameters": {"full_attention": {"rope_theta": 60}}}, (Rope(60.0), Rope(1e4))),
        ({"rope_scaling": LINEAR}, (Rope(1e6, "linear", 2.0), Rope(1e4))),
        # The older name of rope_type comes too late here.
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, (Rope(1e6), Rope(1e4))),
    ],
)
def test_ropes_of_gemma(raw: dict[str, Any], ropes: tuple[Rope, Rope]):
    config = read_hf_config({**GEMMA, **raw}, "file")
    assert (config.rope, config.local_rope) == ropes


def test_a_family_reads_its_own_fields_alone():
    gemma = read_hf_config({**GEMMA, "hidden_act": "silu", "mlp_bias": True}, "file")
    assert (gemma.activation, gemma.biased) == ("gelu_tanh", ())
    qwen = read_hf_config({**QWEN3, "hidden_activation": "gelu", "logits_scaling": 3.0}, "file")
    assert qwen.activation == "silu"
    mistral = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2}
    assert read_hf_config({**mistral, "attention_bias": True}, "file").biased == ()
    assert read_hf_config({**LLAMA, "head_dim": None, "num_key_value_heads": None}, "file") == (
        read_hf_config(LLAMA, "file")
    )


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"quantization_config": {"bits": 4}}, r"quantization_config \{'bits': 4\} is not"),
        (
            LLAMA,
            {"is_causal": False},
            "is_causal false is not supported for llama; supported: true",
        ),
        (LLAMA, {"is_encoder_decoder": True}, "is_encoder_decoder true is not supported"),
        (LLAMA, {"per_layer_config": {"0": {}}}, "per_layer_config .* is not supported"),
        (LLAMA, {"text_config": {}}, "text_config {} .*supported: null; use a text model"),
        (LLAMA, {"transformers_weights": "b.safetensors"}, "transformers_weights .* not supported"),
        (LLAMA, {"sliding_window": 3}, "sliding_window 3 is not supported for llama"),
        (
            LLAMA,
            {"layer_types": ["sliding_attention"] * 2},
            "layer_types other than full_attention",
        ),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (
            LLAMA,
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not",
        ),
        (LLAMA, {"rope_parameters": {"full_attention": {}}}, "full_attention is not supported for"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not supported"),
        (LLAMA, {"rope_scaling": {"type": "dynamic"}}, "rope scaling 'dynamic' is not supported"),
        (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "factor is missing, which linear"),
        (LLAMA, {"rope_scaling": {"rope_type": None}}, "rope_type is null, not a text"),
        (LLAMA, {"rope_theta": "10000"}, "rope_theta is '10000', not an integer or a number"),
        (LLAMA, {"rope_theta": 10**400}, "rope_theta is .*, too large a number"),
        (LLAMA, {"rope_theta": float("nan")}, "rope_theta is nan, not a finite number"),
        (LLAMA, {"rms_norm_eps": 1}, "rms_norm_eps is 1, not a number with a decimal point"),
        (LLAMA, {"tie_word_embeddings": None}, "tie_word_embeddings is null, not true or false"),
        (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers is true, not an integer"),
        (LLAMA, {"head_dim": 0}, "head_dim is 0, not a positive integer"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        (QWEN3, {"layer_types": ["full_attention"]}, "names 1 layers, num_hidden_layers is 2"),
        (QWEN3, {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention' is not supported"),
        (QWEN3, {"layer_types": [[], []]}, r"layer_types: \[\] is not supported"),
        (QWEN3, {"head_dim": None}, "head_dim is null, not an integer"),
        (
            QWEN3,
            {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0},
            "window is 0, not a positive integer",
        ),
        (GEMMA, {"final_logit_softcapping": 0.0}, "final_logit_softcapping 0.0 is not supported"),
        (GEMMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention true is not"),
        (GEMMA, {"sliding_window_pattern": 0}, "sliding_window_pattern is 0, not a positive"),
        (GEMMA, {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar is -4, not a positive"),
        (GEMMA, {"rope_parameters": {}, "rope_scaling": LINEAR}, "rope_scaling stands beside"),
    ],
)
def test_refused_by_name(base: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=f"^file: .*{message}") as caught:
        read_hf_config({**base, **changes}, "file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
