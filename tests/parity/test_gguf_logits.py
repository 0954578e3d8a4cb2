"""GGUF files of every family: the logits of `transformers`, in float32.

Two oracles: the same parameters in a Hugging Face folder, and `transformers`' own reading of the
GGUF file, which checks what we write, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from feddpa_jax.hf import load_base
from feddpa_jax.hf.families import read_hf_config
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.testing import write_tiny_gguf, write_tiny_hf_folder
from tests.parity.families import random_hf_model
from tests.parity.test_transformers_logits import our_logits, random_tokens, their_logits

# What the file cannot say: Gemma's queries are scaled by their size.
_SCALED = {"query_pre_attn_scalar": 8}
CASES: dict[str, dict[str, Any]] = {
    "llama2": {},
    "llama_biased": {},
    "llama3": {},
    "llama_linear": {},
    "smollm2": {},
    "mistral": {},
    "mistral_global": {},
    "qwen2": {},
    "qwen3": {},
    "gemma3": _SCALED,
    "gemma3_linear": {"query_pre_attn_scalar": 16},
}


def config_of(case: str, **changes: Any) -> ModelConfig:
    return read_hf_config(random_hf_model(case, **changes).config.to_dict(), case)


def as_stored(model: PreTrainedModel) -> PreTrainedModel:
    """Rounds what the GGUF file holds in float16."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_same_parameters(tmp_path: Path, case: str):
    config = config_of(case, **CASES[case])
    folder = write_tiny_hf_folder(tmp_path / "folder", config, seed=3)
    theirs = as_stored(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    ours = load_base(str(write_tiny_gguf(tmp_path / "a.gguf", config, seed=3)), "float32").model
    tokens_BT = random_tokens()
    expected = their_logits(theirs, tokens_BT)
    assert expected.std() > 0.5  # logits that say something
    np.testing.assert_allclose(our_logits(ours, tokens_BT), expected, rtol=0, atol=1e-4)


# What `transformers` does not read: Gemma's scale, and the size of a head everywhere.
@pytest.mark.parametrize(
    ("case", "changes", "unread"),
    [
        ("llama2", {}, {}),
        ("smollm2", {}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {}, {"head_dim": 10}),
        (
            "gemma3",
            {"num_hidden_layers": 7, "sliding_window_pattern": 6, "rope_local_base_freq": 1e4}
            | _SCALED,
            _SCALED,
        ),
    ],
)
def test_logits_of_the_same_file(
    tmp_path: Path, case: str, changes: dict[str, Any], unread: dict[str, Any]
):
    config = config_of(case, **changes)
    file = write_tiny_gguf(tmp_path / "a.gguf", config, seed=3)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, **unread
    ).eval()
    assert theirs.config.model_type == config.family
    ours = load_base(str(file), "float32").model
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT), their_logits(theirs, tokens_BT), rtol=0, atol=1e-4
    )
