"""Adapters that we write, loaded by `peft` on every family: the same logits; and the way back."""

import json
import warnings
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from feddpa_jax.adapters.dual import dual_branches, mixed_adapter
from feddpa_jax.adapters.lora import TARGETS, Adapter, bank_of, init_adapter
from feddpa_jax.adapters.mix import Term, branches_of
from feddpa_jax.hf import load_base
from feddpa_jax.hf.peft_format import read_adapter, write_adapter
from feddpa_jax.models.decoder import Model, causal_mask
from feddpa_jax.types import UserError
from tests.parity.families import FAMILIES, ONE_EACH, SIZES, random_hf_model, save

RANK, ALPHA = 3, 5.0
SCALE = ALPHA / RANK


def random_adapter(model: Model, seed: int, targets=TARGETS, rank: int = RANK) -> Adapter:
    """An adapter whose B is not zero, so that it changes the logits a good deal."""
    sizes = {target: model.config.target_sizes()[target] for target in targets}
    adapter = init_adapter(jax.random.key(seed), sizes, layers=model.config.layers, rank=rank)
    for index, pair in enumerate(adapter.values()):
        key = jax.random.fold_in(jax.random.key(seed + 100), index)
        pair["b"] = 0.2 * jax.random.normal(key, pair["b"].shape)
    return adapter


@jax.jit
def _logits(model: Model, branches, tokens_BT):
    position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    mask_BTT = causal_mask(jnp.ones_like(tokens_BT))
    hidden_BTD, _ = model.hidden(tokens_BT, position_BT, mask_BTT, branches)
    return model.logits(hidden_BTD)


def our_logits(model: Model, tokens_BT: np.ndarray, branches=()) -> np.ndarray:
    return np.asarray(_logits(model, branches, tokens_BT))


def alone(adapter: Adapter):
    """Both rows under one adapter at full weight."""
    return branches_of([Term(bank_of(adapter))], jnp.zeros(2, jnp.int32), scale=SCALE)


def their_logits(model: torch.nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BT)).logits.float().numpy()


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 14))


def load_in_peft(base: str, folder: Path) -> torch.nn.Module:
    """The adapter on the base, without a warning of any kind about its keys."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return PeftModel.from_pretrained(model, str(folder)).eval()


@pytest.mark.parametrize(
    ("case", "targets"),
    [(case, TARGETS) for case in FAMILIES] + [(case, ("q_proj", "v_proj")) for case in ONE_EACH],
    ids=[*FAMILIES, *(f"{case}-q_v" for case in ONE_EACH)],
)
def test_our_adapter_in_peft(tmp_path: Path, case: str, targets: tuple[str, ...]):
    base = save(random_hf_model(case), tmp_path / "base")
    model = load_base(base, "float32").model
    adapter = random_adapter(model, seed=1, targets=targets)
    write_adapter(tmp_path / "out", adapter, model.config, alpha=ALPHA, dropout=0.1, base=base)
    tokens_BT = tokens()
    ours = our_logits(model, tokens_BT, alone(adapter))
    theirs = their_logits(load_in_peft(base, tmp_path / "out"), tokens_BT)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
    assert np.abs(ours - our_logits(model, tokens_BT)).max() > 0.1  # it does something
    again = read_adapter(tmp_path / "out", model.config)
    assert (again.rank, again.alpha, again.base) == (RANK, ALPHA, base)
    chex.assert_trees_all_equal(again.adapter, adapter)


@pytest.mark.parametrize("case", ONE_EACH)
def test_their_adapter_here(tmp_path: Path, case: str):
    """Made, filled and saved by `peft`: read, and the same logits."""
    base = save(random_hf_model(case), tmp_path / "base")
    torch.manual_seed(3)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=RANK, lora_alpha=7, target_modules=["k_proj", "o_proj", "down_proj"]),
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = load_base(base, "float32").model
    found = read_adapter(tmp_path / "theirs", model.config)
    assert found.targets == ("k_proj", "o_proj", "down_proj") and found.alpha == 7
    tokens_BT = tokens()
    branches = branches_of(
        [Term(bank_of(found.adapter))], jnp.zeros(2, jnp.int32), scale=found.alpha / found.rank
    )
    expected = their_logits(theirs, tokens_BT)
    np.testing.assert_allclose(our_logits(model, tokens_BT, branches), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - our_logits(model, tokens_BT)).max() > 0.1


# Values that `read_settings` takes for plain LoRA beside the defaults: so does peft.
PLAIN: list[dict[str, Any]] = [
    *({"init_lora_weights": init} for init in (True, False, None, "gaussian", "eva", "mica")),
    {"init_lora_weights": "orthogonal", "r": 4},
    {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    {"loftq_config": {"loftq_bits": 4}, "corda_config": {}, "lora_ga_config": {}},
    {"use_rslora": True, "lora_dropout": 0.5, "lora_alpha": 2.5},
    {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {".*proj": 7, "nothing": 7}},
    {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": None, "inference_mode": None},
    {"layers_to_transform": [2, 1, 0, 9], "layers_pattern": "layers"},
    {"layers_to_transform": [], "exclude_modules": ["lm_head", "k_proj"], "layers_pattern": []},
    {"target_modules": r"model\.layers\.[0-9]+\..*(q|down)_proj"},
    {"modules_to_save": [], "target_parameters": [], "layer_replication": []},
    {"use_dora": None, "lora_bias": None, "use_qalora": None, "fan_in_fan_out": None},
    {"qalora_group_size": 8, "ensure_weight_tying": True, "use_bdlora": None},
    {"megatron_core": None, "runtime_config": {"ephemeral_gpu_offload": True}},
    {"auto_mapping": {"base_model_class": "X"}, "revision": "abc", "peft_version": "9.0"},
    {"task_type": None, "merge_weights": False, "enable_lora": None},
]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory) -> str:
    return save(random_hf_model("llama3"), tmp_path_factory.mktemp("plain") / "base")


@pytest.mark.parametrize("values", PLAIN, ids=lambda values: " ".join(values))
def test_what_is_read_as_plain_is_plain_in_peft(tmp_path: Path, llama3: str, values: dict):
    model = load_base(llama3, "float32").model
    rank = values.get("r", RANK)
    adapter = random_adapter(model, seed=4, targets=("q_proj", "down_proj"), rank=rank)
    write_adapter(tmp_path, adapter, model.config, alpha=7, dropout=0.0, base=None)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    found = read_adapter(tmp_path, model.config)
    base = AutoModelForCausalLM.from_pretrained(llama3, dtype=torch.float32).eval()
    torch.manual_seed(0)
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    branches = branches_of(
        [Term(bank_of(found.adapter))], jnp.zeros(2, jnp.int32), scale=found.alpha / found.rank
    )
    ours, expected = our_logits(model, tokens(), branches), their_logits(theirs, tokens())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    with theirs.disable_adapter():
        alone = their_logits(theirs, tokens())
    np.testing.assert_allclose(our_logits(model, tokens()), alone, rtol=0, atol=1e-4)
    assert np.abs(ours - alone).max() > 0.1


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_an_adapter_that_changes_its_base_is_refused(tmp_path: Path, llama3: str, init: Any):
    """What peft computes with it is not the base and the tensors."""
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama3, dtype=torch.float32),
        LoraConfig(r=RANK, target_modules=["q_proj"], init_lora_weights=init),
    )
    theirs.save_pretrained(str(tmp_path))
    model = load_base(llama3, "float32").model
    with pytest.raises(UserError, match=f"init_lora_weights is .{init}., which is not supported"):
        read_adapter(tmp_path, model.config)
    with theirs.eval().disable_adapter():
        changed = their_logits(theirs, tokens())
    assert np.abs(changed - our_logits(model, tokens())).max() > 0.1


def test_rank_stabilized_scale(tmp_path: Path):
    base = save(random_hf_model("qwen2"), tmp_path / "base")
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], use_rslora=True),
    ).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    found = read_adapter(tmp_path / "theirs", load_base(base, "float32").model.config)
    assert found.alpha / found.rank == pytest.approx(6 / 4**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adapters(tmp_path: Path, dtype: torch.dtype):
    base = save(random_hf_model("llama3"), tmp_path / "base")
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=4, target_modules=["q_proj"]),
    ).to(dtype)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    found = read_adapter(tmp_path / "theirs", load_base(base, "float32").model.config)
    a_RD = dict(theirs.named_parameters())[
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight"
    ]
    np.testing.assert_array_equal(
        np.asarray(found.adapter["q_proj"]["a"][1]), a_RD.detach().float().numpy().T
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", ["qwen2", "gemma3"])
def test_a_mix_is_one_adapter(tmp_path: Path, case: str, weight: float):
    base = save(random_hf_model(case), tmp_path / "base")
    model = load_base(base, "float32").model
    global_, local = random_adapter(model, seed=1), random_adapter(model, seed=2)
    both = mixed_adapter(global_, local, weight)
    write_adapter(tmp_path / "out", both, model.config, alpha=2 * ALPHA, dropout=0.0, base=base)
    tokens_BT = tokens()
    branches = dual_branches(
        bank_of(global_),
        bank_of(local),
        jnp.zeros(2, jnp.int32),
        jnp.full(2, weight),
        scale=SCALE,
    )
    ours = our_logits(model, tokens_BT, branches)
    theirs = their_logits(load_in_peft(base, tmp_path / "out"), tokens_BT)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
