"""Changed `adapter_config.json` files: refused in one line, or the logits of `peft`."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.adapters.mix import Term, branches_of
from feddpa_jax.hf import load_base
from feddpa_jax.hf.peft_format import read_adapter
from feddpa_jax.models.decoder import Model
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz
from tests.parity.families import random_hf_model, save
from tests.parity.test_peft import our_logits, their_logits, tokens

MODULES = ["q_proj", "v_proj", "k_proj", "o_proj", "down_proj", "lm_head", "embed_tokens"]
PATTERNS = [
    r".*\.(q|v)_proj",
    r"model\.layers\.[0-9]+\.self_attn\.[qv]_proj",
    "all-linear",
    "q_proj",
]
PATTERNS += [r".*", r"(a+)+$", "[", r".*(?<!k)_proj", r".*layers\.0.*[qv]_proj", "(?i).*Q_PROJ", ""]
LISTS = [["q_proj", "v_proj"], ["v_proj", "q_proj"], ["q_proj"], ["proj"], ["self_attn.q_proj"], []]
LISTS += [
    ["q_proj", "v_proj", "k_proj"],
    ["model.layers.0.self_attn.q_proj", "v_proj"],
    [1],
    [None],
]
INITS = ["pissa", "pissa_niter_4", "olora", "eva", "loftq", "corda", "lora_ga", "mica"]
VALUES: dict[str, list[Any]] = {
    "r": [3, 2, 4, 1, 0, -3, 10**12, 10**40, 3.0, "3", None, True],
    "lora_alpha": [5, 3, 5.0, 0.5, 181.019, 0, -5, 1e300, 10**12, "5", None, True],
    "use_rslora": [True, False, None, 1, "true"],
    "use_dora": [True, False, None, 0, ""],
    "target_modules": [*LISTS, *PATTERNS, None],
    "exclude_modules": [*LISTS, *PATTERNS, None],
    "modules_to_save": [*LISTS, "lm_head", None],
    "layers_to_transform": [0, 1, 2, [0, 1, 2], [0], [], [9], -1, "0", None, True, [0.0]],
    "layers_pattern": ["layers", ["layers"], "h", "", [], None, "(a+)+"],
    "rank_pattern": [{}, {"q_proj": 3}, {"q_proj": 2}, {".*": 3}, {"v_proj": 8}, {"[": 3}, None],
    "alpha_pattern": [
        {},
        {"q_proj": 5},
        {"q_proj": 7},
        {".*": 5.0},
        {"x": 1},
        None,
        {"q_proj": True},
    ],
    "init_lora_weights": [True, False, None, 1, "x", "gaussian", "orthogonal", *INITS],
    "bias": ["none", "all", "lora_only", None, "", False],
    "peft_type": ["LORA", "lora", "ADALORA", "IA3", None, "X"],
    "task_type": ["CAUSAL_LM", "SEQ_CLS", None, "X", "FEATURE_EXTRACTION"],
    "lora_dropout": [0.0, 0.5, 1, 1.5, -1, "0", None],
    "layer_replication": [None, [], [[0, 3]], [[0, 2], [1, 3]], [0, 3]],
    "trainable_token_indices": [None, [], {}, [1], {"embed_tokens": [1]}],
    "target_parameters": [None, [], ["self_attn.q_proj.weight"], "x"],
    "megatron_config": [None, {}, {"a": 1}],
    "runtime_config": [{"ephemeral_gpu_offload": False}, {}, None, {"x": 1}],
}
ANY = [None, True, False, 0, 1, -1, 0.5, "", "x", [], {}, [1], {"a": 1}, float("nan"), 10**30]
FIELDS = sorted(field.name for field in dataclasses.fields(LoraConfig))
NOBODYS = ["future_field", "enable_lora", "merge_weights", "fan_in_fan_out", "lora_r", "R"]
RANK, ALPHA, TARGETS = 3, 5, ["q_proj", "v_proj"]


class Base(NamedTuple):
    """A tiny base on both sides, and a folder with what `peft` wrote for it."""

    ours: Model
    theirs: torch.nn.Module
    folder: Path
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return "base"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("peft")
    place = save(random_hf_model("llama3"), folder / "base")
    theirs = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(theirs), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(str(folder / "adapter"))
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    return Base(load_base(place, "float32").model, theirs, folder / "adapter", settings)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields with other values; those with the value "REMOVED" are taken out."""
    often = st.sampled_from(sorted(VALUES))
    names = draw(
        st.lists(
            st.one_of(often, often, st.sampled_from([*FIELDS, *NOBODYS])), min_size=1, max_size=3
        )
    )
    usual = {name: draw(st.integers(0, 7)) for name in names}
    return {
        name: "REMOVED"
        if kind == 0
        else draw(st.sampled_from(ANY if kind == 1 else VALUES.get(name, ANY)))
        for name, kind in usual.items()
    }


@fuzz(25)
@given(changed=changes())
@example(changed={})
@example(changed={"init_lora_weights": "pissa"})
@example(changed={"r": 10**12})
@example(changed={"init_lora_weights": "orthogonal"})
@example(changed={"use_rslora": True})
@example(changed={"rank_pattern": {"[": 3}})
@example(changed={"target_modules": PATTERNS[0], "layers_to_transform": None})
@example(changed={"layers_to_transform": [0, 1, 2], "layers_pattern": "layers"})
@example(changed={"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}})
def test_changed_settings(base: Base, changed: dict[str, Any]):
    settings = {**base.settings, **changed}
    settings = {name: value for name, value in settings.items() if value != "REMOVED"}
    (base.folder / "adapter_config.json").write_text(json.dumps(settings))
    try:
        found = read_adapter(base.folder, base.ours.config)
    except UserError as error:
        assert str(base.folder) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 700
        return
    scaled = {
        target: {"a": pair["a"], "b": found.scales[target] * pair["b"]}
        for target, pair in found.adapter.items()
    }
    branches = branches_of([Term(bank_of(scaled))], jnp.zeros(2, jnp.int32), scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(copy.deepcopy(base.theirs), str(base.folder)).eval()
    ours, expected = our_logits(base.ours, tokens(), branches), their_logits(theirs, tokens())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
