"""Folders that `transformers` saved: the same logits here, in float32."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from feddpa_jax.hf import byte_tokenizer, load_model
from feddpa_jax.models.decoder import Model, causal_mask

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}


def random_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A model whose logits are far from uniform, with norms that are not 1."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def save(model: LlamaForCausalLM, folder: Path, **options) -> str:
    model.save_pretrained(folder, **options)
    byte_tokenizer().save(folder)
    return str(folder)


@jax.jit
def _logits(model: Model, tokens_BT, segment_BT, position_BT):
    hidden_BTD, _ = model.hidden(tokens_BT, position_BT, causal_mask(segment_BT))
    return model.logits(hidden_BTD)


def our_logits(model: Model, tokens_BT: np.ndarray, segment_BT=None, position_BT=None):
    if segment_BT is None:
        segment_BT = np.ones_like(tokens_BT)
    if position_BT is None:
        position_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    return np.asarray(_logits(model, tokens_BT, segment_BT, position_BT))


def their_logits(model: LlamaForCausalLM, tokens_BT: np.ndarray, attention_mask=None):
    mask = None if attention_mask is None else torch.tensor(attention_mask)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BT), attention_mask=mask).logits.numpy()


def random_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 14))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 6},
        {"head_dim": 12, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-2, "rope_theta": 1e4},
    ],
    ids=["grouped", "tied", "narrow_heads", "wide_heads_tied", "ungrouped"],
)
def test_logits(tmp_path: Path, changes: dict):
    theirs = random_llama(**changes)
    ours = load_model(save(theirs, tmp_path), "float32").model
    assert ours.config.tied == bool(changes.get("tie_word_embeddings"))
    tokens_BT = random_tokens()
    expected = their_logits(theirs, tokens_BT)
    assert expected.std() > 0.5  # logits that say something
    np.testing.assert_allclose(our_logits(ours, tokens_BT), expected, rtol=0, atol=3e-5)


def test_shards_are_one_model(tmp_path: Path):
    theirs = random_llama()
    whole = load_model(save(theirs, tmp_path / "whole"), "float32")
    parts = load_model(save(theirs, tmp_path / "parts", max_shard_size="20KB"), "float32")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert parts.fingerprint == whole.fingerprint
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(parts.model, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=3e-5,
    )


def test_rows_of_unequal_lengths(tmp_path: Path):
    theirs = random_llama()
    ours = load_model(save(theirs, tmp_path), "float32").model
    tokens_BT = random_tokens()
    real_BT = (np.arange(14)[None, :] < np.array([[5], [1]])).astype(np.int32)
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT, real_BT)[real_BT > 0],
        their_logits(theirs, tokens_BT, real_BT)[real_BT > 0],
        rtol=0,
        atol=3e-5,
    )


def test_packed_segments_equal_each_alone(tmp_path: Path):
    theirs = random_llama()
    ours = load_model(save(theirs, tmp_path), "float32").model
    tokens_BT = random_tokens()
    lengths_B = [[6, 1, 5], [3, 3, 8]]  # the first row ends in padding
    segment_BT = np.array([[1] * 6 + [2] + [3] * 5 + [0] * 2, [1] * 3 + [2] * 3 + [3] * 8])
    position_BT = np.array([[*range(6), 0, *range(5), 0, 1], [*range(3), *range(3), *range(8)]])
    packed_BTV = our_logits(ours, tokens_BT, segment_BT, position_BT)
    for row, lengths in enumerate(lengths_B):
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            own = slice(end - length, end)
            alone_1TV = their_logits(theirs, tokens_BT[row : row + 1, own])
            np.testing.assert_allclose(packed_BTV[row, own], alone_1TV[0], rtol=0, atol=3e-5)


def test_a_head_that_differs_from_the_embedding_is_kept(tmp_path: Path):
    """The configuration says tied, the file says otherwise: `transformers` believes the file."""
    theirs = random_llama()
    theirs.config.tie_word_embeddings = True
    folder = save(theirs, tmp_path)
    theirs = LlamaForCausalLM.from_pretrained(folder).eval()
    ours = load_model(folder, "float32").model
    assert not ours.config.tied
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=3e-5,
    )


def test_bfloat16_folder_in_float32(tmp_path: Path):
    folder = save(random_llama(tie_word_embeddings=True).bfloat16(), tmp_path)
    # Read anew: a model that is cast back keeps rope frequencies of bfloat16.
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder, "float32").model
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=3e-5,
    )
