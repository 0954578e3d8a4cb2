"""Which settings of `peft` are plain LoRA: its own classes say which there are, and on what."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddpa_jax.hf.peft_settings import KNOWN_FIELDS, module_names, read_settings
from feddpa_jax.testing import tiny_config
from feddpa_jax.types import UserError

PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def refused(message: str, **values: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_settings({**PLAIN, **values}, "here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_every_field_of_peft_is_known():
    """A field that a later peft adds fails here, and is refused until it has a place."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - KNOWN_FIELDS == set()


def test_what_peft_writes_by_default_is_plain(tmp_path: Path):
    peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    found = read_settings(saved, "here")
    assert (found.rank, found.alpha, found.base) == (2, 4.0, "")


# A value for every field that makes an adapter more than LoRA, or that peft never writes there.
OTHERWISE: dict[str, list[Any]] = {
    "peft_type": ["ADALORA", None, ["LORA"]],
    "task_type": ["SEQ_CLS", 3],
    "auto_mapping": ["yes"],
    "base_model_name_or_path": [["a"]],
    "revision": [7],
    "peft_version": [0.21],
    "inference_mode": ["true"],
    "r": [0, -1, True, 8.0, "8", 2**31, 10**400, [8], None],
    "lora_alpha": [0, -1.0, True, "8", float("nan"), float("inf"), 10**400, {"a": 1}],
    "use_rslora": [1, "yes"],
    "target_modules": [None, [], [["q_proj"]], {"q_proj": 1}, "(q_proj", "(?:q_proj){e<=1}"],
    "exclude_modules": [3, [3]],
    "layers_to_transform": ["0", [0.0], True],
    "layers_pattern": [1, "layers"],
    "rank_pattern": [None, ["q_proj"], {"q_proj": 0}, {"q_proj": "2"}],
    "alpha_pattern": [{"q_proj": -3}, {"q_proj": None}],
    "lora_dropout": [-0.1, 1.5, "0.1", float("nan")],
    "init_lora_weights": [
        *("pissa", "pissa_niter_4", "PISSA", "olora", "OLoRA", "corda", "loftq", "lora_ga"),
        *("Gaussian", 1, "new", ["gaussian"]),
    ],
    "loftq_config": [4],
    "eva_config": [[]],
    "corda_config": ["a"],
    "lora_ga_config": [True],
    "megatron_config": [{}],
    "megatron_core": [1],
    "qalora_group_size": ["16"],
    "runtime_config": [1],
    "ensure_weight_tying": ["no"],
    "bias": ["all", "lora_only", None],
    "fan_in_fan_out": [True, 0],
    "modules_to_save": [["lm_head"], "lm_head"],
    "trainable_token_indices": [[1], {"embed_tokens": [1]}],
    "target_parameters": [["mlp.weight"]],
    "layer_replication": [[[0, 2]]],
    "use_dora": [True, 1],
    "lora_bias": [True],
    "use_qalora": [True],
    "use_bdlora": [False, {"nblocks": 2}],
    "alora_invocation_tokens": [[1, 2]],
    "velora_config": [{"num_groups": 64}],
    "monteclora_config": [{}],
    "arrow_config": [{"top_k": 3}],
    "kasa_config": [{}],
    "enable_lora": [[True, False]],
    "merge_weights": [True],
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_value_is_refused_by_name(name: str):
    for value in OTHERWISE[name]:
        refused(f"here: {name} ", **{name: value})


def test_every_known_field_has_a_value_that_is_refused():
    assert set(OTHERWISE) == KNOWN_FIELDS


def test_the_remedy_for_a_changed_base_is_peft_s():
    refused(
        "path_initial_model_for_weight_conversion=.*merge_and_unload", init_lora_weights="olora"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
OTHER_NAME = st.text(max_size=20).filter(lambda name: name not in KNOWN_FIELDS)


@given(name=OTHER_NAME, value=JSON)
def test_an_unknown_field_is_refused_by_name_whatever_it_says(name: str, value: Any):
    with pytest.raises(UserError) as caught:
        read_settings({**PLAIN, name: value}, "here")
    message = str(caught.value)
    assert name in message or json.dumps(name)[:77] in message
    assert message.isprintable()


@given(name=st.sampled_from(sorted(KNOWN_FIELDS)), value=JSON)
def test_any_value_of_a_known_field_is_read_or_refused_by_name(name: str, value: Any):
    try:
        found = read_settings({**PLAIN, name: value}, "here")
    except UserError as error:
        assert name in str(error) and str(error).isprintable()
    else:
        assert found.rank > 0 and 0 < found.alpha < float("inf")


def test_a_pattern_that_never_ends_is_stopped():
    found = read_settings({**PLAIN, "target_modules": r"[a-z.0]*((a|a)*b?)*[xy]"}, "here")
    with pytest.raises(UserError, match=r"target_modules .* takes too long to match"):
        found.selects("model.layers.0." + "a" * 60)


SELECTIONS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "self_attn.v_proj"]},
    {"target_modules": ["proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": r".*layers\.\d+\.(self_attn|mlp)\.(q|up)_proj"},
    {"target_modules": "q_proj"},
    {"target_modules": ".*"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["model.layers.1.mlp.up_proj", "q_proj"], "layers_to_transform": [0]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["0.self_attn.k_proj"]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"},
    {"target_modules": ["norm", "lm_head", "q_norm"]},
]


@pytest.mark.parametrize("values", SELECTIONS, ids=lambda values: str(list(values.values())))
def test_selects_what_peft_selects(values: dict[str, Any]):
    from peft.tuners.tuners_utils import check_target_module_exists

    config = tiny_config(family="qwen3", qk_norm=True)
    theirs = peft.LoraConfig(**values)
    if values["target_modules"] == "all-linear":  # Which peft replaces by the names.
        leaves = r"[qkvo]_proj|(gate|up|down)_proj"
        theirs = peft.LoraConfig(target_modules=rf".*\.({leaves})")
    selects = read_settings({**PLAIN, **values}, "here").selects
    for module in module_names(config):
        expected = check_target_module_exists(theirs, module)
        assert selects(module) == (bool(expected) and type(expected).__name__ != "_ExcludedModule")
