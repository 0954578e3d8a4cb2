"""Changed `config.json` files: refused in one line, or the logits of `transformers`.

A case is one of the parity tests' configurations with some fields set, changed or removed: fields
that the class of `transformers` has, older names of them, and a few of nobody.
"""

import copy
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from feddpa_jax.hf.config_fields import NO_EFFECT
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.hf.family import FAMILIES as KNOWN
from feddpa_jax.hf.names import map_names
from feddpa_jax.models.decoder import causal_mask, from_parameters, parameter_shapes
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz
from tests.parity.families import FAMILIES, SIZES

# Names that the classes have no field for, but read; and some that they do not know.
OLDER = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
OLDER += ("partial_rotary_factor", "torch_dtype", "num_labels", "layer_types", "head_dim")
NOBODYS = ("logits_scaling", "residual_multiplier", "num_local_experts", "hidden_activation")
NOBODYS += ("hidden_act", "mlp_bias", "attention_bias", "unsloth_version", "is_decoder")
EFFECTIVE = ("is_causal", "attention_chunk_size", "text_config", "quantization_config")
EFFECTIVE += ("original_max_position_embeddings", "per_layer_config", "sliding_window")

ROPES = [
    {"rope_theta": 50.0},
    {"rope_type": "default", "rope_theta": 20},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 30.0},
    {"type": "linear", "factor": 4},
    {"rope_type": "default", "type": "linear", "factor": 4},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": "2"},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "rope_theta": 1e2, "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"full_attention": {"rope_theta": 40.0, "rope_type": "default"}},
    {"sliding_attention": {"type": "linear", "factor": 2.0}, "full_attention": None},
    {"full_attention": {"rope_theta": 60.0}, "sliding_attention": {"rope_theta": 7.0}},
    {},
]
THETAS = [50, 70.0, "80.0", None, -1, float("inf")]
ACTIVATIONS = ["silu", "swish", "gelu", "relu", "gelu_pytorch_tanh"]
VALUES: dict[str, list[Any]] = {
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
    "rope_theta": THETAS,
    "rope_local_base_freq": THETAS,
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "head_dim": [2, 8, 16, 5, 0, None],
    "num_key_value_heads": [1, 2, 4, 3, 0, None],
    "num_attention_heads": [2, 4, 8, 3, -4],
    "num_hidden_layers": [1, 2, 10**9, 0],
    "hidden_size": [8, 32, 30, 10**12],
    "vocab_size": [16, 10**12, -1],
    "layer_types": [
        ["full_attention"] * 3,
        ["sliding_attention"] * 3,
        ["sliding_attention", "full_attention"],
        ["full_attention", "sliding_attention", "full_attention"],
        ["attention"] * 3,
        ["chunked_attention"] * 3,
        [["full_attention"]] * 3,
    ],
    "sliding_window": [1, 3, 0, -2, None, 10**30],
    "sliding_window_pattern": [1, 2, 0, None],
    "max_window_layers": [0, 2, -1],
    "query_pre_attn_scalar": [1, 64, 0, -4, 2.5],
    "rms_norm_eps": [0.1, 0.0, 1, -1.0, float("nan")],
}
ANY = [None, True, False, 0, 1, -1, 3, 10**12, 0.5, float("nan"), "", "x", [], {}, [1], {"a": 1}]


def _case(name: str) -> dict[str, Any]:
    model_type, own = FAMILIES[name]
    sizes = SIZES | {"vocab_size": 32, "hidden_size": 16, "head_dim": 4, "intermediate_size": 8}
    return copy.deepcopy({"model_type": model_type, **sizes, **own})


def _class(model_type: str) -> Any:
    return CONFIG_MAPPING[model_type]


def _fields(model_type: str) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(_class(model_type)))


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], frozenset[str]]:
    """A configuration, and the fields that were changed."""
    raw = _case(draw(st.sampled_from(sorted(FAMILIES))))
    often = [*VALUES, "tie_word_embeddings", "use_sliding_window", "attention_bias"]
    names = [*often, *_fields(raw["model_type"]), *OLDER, *NOBODYS, *EFFECTIVE]
    changed = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    for name in changed:
        if draw(st.integers(0, 7)) == 0:
            raw.pop(name, None)
        else:
            usual = draw(st.integers(0, 7)) > 0
            raw[name] = copy.deepcopy(
                draw(st.sampled_from(VALUES.get(name, ANY) if usual else ANY))
            )
    return raw, frozenset(changed)


def _theirs(raw: dict[str, Any]) -> Any:
    own = copy.deepcopy({name: value for name, value in raw.items() if name != "model_type"})
    config = _class(raw["model_type"])(**own)
    with torch.device("meta"):  # No memory for what ours does not expect.
        shapes = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    assert sum(tensor.numel() for tensor in shapes.values()) < 1e6
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.4)
    return model


def _our_logits(config: ModelConfig, state: dict[str, Any], tokens_BT: np.ndarray) -> np.ndarray:
    tensors = {name: tensor.numpy() for name, tensor in state.items()}
    mapped = map_names(tensors, parameter_shapes(config), KNOWN[config.family].names, "theirs")
    parameters = {
        path: tensors[name].T if transpose else tensors[name]
        for name, (path, transpose) in mapped.items()
    }
    model = from_parameters(config, parameters)
    position_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    mask_BTT = causal_mask(jnp.ones(tokens_BT.shape, jnp.int32))
    hidden_BTD, _ = model.hidden(jnp.asarray(tokens_BT), jnp.asarray(position_BT), mask_BTT)
    return np.asarray(model.logits(hidden_BTD))


def outcome(raw: dict[str, Any], changed: frozenset[str]) -> str:
    """What became of a configuration; fails where we read it and `transformers` differs."""
    try:
        config = read_hf_config(copy.deepcopy(raw), "config.json")
    except UserError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error)
        return "refused"
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (1, 9))
    try:
        theirs = _theirs(raw)
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor(tokens_BT), return_dict=True).logits.numpy()
    except AssertionError:
        raise
    except Exception:
        # They check values that have no effect, and so need not we.
        assert changed & (NO_EFFECT | {"num_labels"}), "we read what transformers refuses"
        return "refused by transformers"
    ours = _our_logits(config, theirs.state_dict(), tokens_BT)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
    return "equal"


_seen: list[str] = []


@given(configurations())
@fuzz(25)
@example(({**_case("llama2"), "rope_scaling": ROPES[2], "rope_parameters": ROPES[0]}, frozenset()))
@example(({**_case("gemma3"), "rope_parameters": ROPES[1]}, frozenset()))
@example(({**_case("gemma3_linear"), "rope_scaling": ROPES[3]}, frozenset()))
@example(({**_case("gemma3"), "hidden_act": "silu"}, frozenset()))
@example(({**_case("qwen3"), "hidden_activation": "gelu", "mlp_bias": True}, frozenset()))
@example(({**_case("mistral"), "attention_bias": True}, frozenset()))
def test_refused_or_equal(case: tuple[dict[str, Any], frozenset[str]]):
    """Never a traceback, never other logits."""
    _seen.append(outcome(*case))


def test_enough_is_read():
    """The fuzzer above compared logits, and not refusals alone."""
    assert _seen.count("equal") > 0.25 * len(_seen) and _seen.count("refused") > 10
