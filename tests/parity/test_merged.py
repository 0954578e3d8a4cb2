"""Merged models of every family in `transformers`: the logits of base and adapters."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.export.contents import ModelOut
from feddpa_jax.hf import load_base
from feddpa_jax.hf.save import save_model
from tests.parity.families import FAMILIES, random_hf_model, save
from tests.parity.test_peft import SCALE, our_logits, random_adapter, their_logits, tokens


@pytest.mark.parametrize("case", FAMILIES)
def test_merged_model(tmp_path: Path, case: str):
    base = load_base(save(random_hf_model(case), tmp_path / "base"), "float32")
    global_, local = random_adapter(base.model, seed=1), random_adapter(base.model, seed=2)
    out = ModelOut([(global_, 0.25), (local, 0.75)], "both")
    save_model(tmp_path / "out", base, out.change(SCALE), shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens_BT = tokens()
    branches = dual_branches(
        *(bank_of(global_), bank_of(local), jnp.zeros(2, jnp.int32), jnp.full(2, 0.75)), scale=SCALE
    )
    ours = our_logits(base.model, tokens_BT, branches)
    np.testing.assert_allclose(their_logits(theirs, tokens_BT), ours, rtol=0, atol=1e-4)
    assert np.abs(ours - our_logits(base.model, tokens_BT)).max() > 0.1
    again = load_base(str(tmp_path / "out"), "float32").model
    np.testing.assert_allclose(our_logits(again, tokens_BT), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["llama3", "gemma3"])
def test_the_base_alone_is_the_base(tmp_path: Path, case: str):
    """In bfloat16 too, with its configuration and its tokenizer's own files."""
    folder = save(random_hf_model(case).bfloat16(), tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    base = load_base(folder, "bfloat16")
    save_model(tmp_path / "out", base, ModelOut((), "the base").change(1.0))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == torch.bfloat16
    for name, expected in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], expected), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("été").input_ids == base.tokenizer.encode("été")
    assert load_base(str(tmp_path / "out"), "bfloat16").fingerprint == base.fingerprint
