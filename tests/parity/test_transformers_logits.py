"""Folders that `transformers` saved, of every family: the same logits and answers, in float32."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from feddpa_jax.hf import load_base
from feddpa_jax.hf.families import read_hf_config, write_hf_config
from feddpa_jax.inference.decode import decode as greedy
from feddpa_jax.inference.decode import prefill
from feddpa_jax.models.decoder import Model, causal_mask
from tests.parity.families import FAMILIES, ONE_EACH, SIZES, random_hf_model, save


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


def their_logits(model: PreTrainedModel, tokens_BT: np.ndarray, attention_mask=None):
    mask = None if attention_mask is None else torch.tensor(attention_mask)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BT), attention_mask=mask).logits.numpy()


def random_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 14))


@pytest.mark.parametrize("case", FAMILIES)
def test_logits(tmp_path: Path, case: str):
    theirs = random_hf_model(case)
    ours = load_base(save(theirs, tmp_path), "float32").model
    assert ours.config.tied == theirs.config.tie_word_embeddings
    tokens_BT = random_tokens()
    expected = their_logits(theirs, tokens_BT)
    assert expected.std() > 0.5  # logits that say something
    np.testing.assert_allclose(our_logits(ours, tokens_BT), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_configuration_there_and_back(case: str):
    """What we write, `transformers` reads as the same model."""
    config = read_hf_config(random_hf_model(case).config.to_dict(), "test")
    raw = write_hf_config(config)
    assert read_hf_config(raw, "test") == config
    again = AutoConfig.for_model(raw.pop("model_type"), **raw)
    assert read_hf_config(again.to_dict(), "test") == config


@pytest.mark.parametrize("case", FAMILIES)
def test_packed_windows_equal_each_alone(tmp_path: Path, case: str):
    """Windows and ropes count positions of the own segment."""
    theirs = random_hf_model(case)
    ours = load_base(save(theirs, tmp_path), "float32").model
    tokens_BT = random_tokens()[:1]
    segment_BT = np.array([[1] * 4 + [2] * 10])
    position_BT = np.array([[*range(4), *range(10)]])
    packed_BTV = our_logits(ours, tokens_BT, segment_BT, position_BT)
    for own in (slice(0, 4), slice(4, 14)):
        alone_1TV = their_logits(theirs, tokens_BT[:, own])
        np.testing.assert_allclose(packed_BTV[:, own], alone_1TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ONE_EACH)
def test_greedy_answers_of_unequal_prompts(tmp_path: Path, case: str):
    """The same tokens as `generate`, for prompts of unequal length in one batch."""
    theirs = random_hf_model(case)
    ours = load_base(save(theirs, tmp_path), "float32").model
    tokens_BT, length_B, new = random_tokens(), np.array([9, 14]), 12
    expected = [
        theirs.generate(
            torch.tensor(row[None, :length]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=SIZES["vocab_size"] - 1,
            pad_token_id=0,
        )[0, length:].tolist()
        for row, length in zip(tokens_BT, length_B, strict=True)
    ]

    @jax.jit
    def answer(model: Model, tokens_BT, length_B):
        done = prefill(model, (), tokens_BT, length_B)
        ends = {"stop_ids": (SIZES["vocab_size"] - 1,), "pad_id": 0, "max_new_tokens": new}
        return greedy(model, (), done, length_B, **ends)

    decoded = answer(ours, jnp.asarray(tokens_BT), jnp.asarray(length_B))
    for row, (tokens_T, length) in enumerate(zip(*map(np.asarray, decoded), strict=True)):
        end = SIZES["vocab_size"] - 1
        wanted = [token for token in expected[row] if token != end]
        assert tokens_T[:length].tolist() == wanted
    assert len(set(map(tuple, expected))) == 2


def test_shards_are_one_model(tmp_path: Path):
    theirs = random_hf_model("llama3")
    whole = load_base(save(theirs, tmp_path / "whole"), "float32")
    parts = load_base(save(theirs, tmp_path / "parts", max_shard_size="20KB"), "float32")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert parts.fingerprint == whole.fingerprint
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(parts.model, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=1e-4,
    )


def test_a_single_file_beside_an_index(tmp_path: Path):
    """Both programs read the single file."""
    theirs = random_hf_model("llama3", seed=1)
    save(random_hf_model("llama3"), tmp_path, max_shard_size="20KB")
    theirs.save_pretrained(tmp_path / "other")
    (tmp_path / "other/model.safetensors").rename(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens_BT = random_tokens()
    expected = their_logits(theirs, tokens_BT)
    np.testing.assert_array_equal(their_logits(read, tokens_BT), expected)
    ours = our_logits(load_base(str(tmp_path), "float32").model, tokens_BT)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_rows_of_unequal_lengths(tmp_path: Path, case: str):
    theirs = random_hf_model(case)
    ours = load_base(save(theirs, tmp_path), "float32").model
    tokens_BT = random_tokens()
    real_BT = (np.arange(14)[None, :] < np.array([[9], [1]])).astype(np.int32)
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT, real_BT)[real_BT > 0],
        their_logits(theirs, tokens_BT, real_BT)[real_BT > 0],
        rtol=0,
        atol=1e-4,
    )


def test_packed_segments_equal_each_alone(tmp_path: Path):
    theirs = random_hf_model("llama3")
    ours = load_base(save(theirs, tmp_path), "float32").model
    tokens_BT = random_tokens()
    lengths_B = [[6, 1, 5], [3, 3, 8]]  # the first row ends in padding
    segment_BT = np.array([[1] * 6 + [2] + [3] * 5 + [0] * 2, [1] * 3 + [2] * 3 + [3] * 8])
    position_BT = np.array([[*range(6), 0, *range(5), 0, 1], [*range(3), *range(3), *range(8)]])
    packed_BTV = our_logits(ours, tokens_BT, segment_BT, position_BT)
    for row, lengths in enumerate(lengths_B):
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            own = slice(end - length, end)
            alone_1TV = their_logits(theirs, tokens_BT[row : row + 1, own])
            np.testing.assert_allclose(packed_BTV[row, own], alone_1TV[0], rtol=0, atol=1e-4)


def test_a_head_that_differs_from_the_embedding_is_kept(tmp_path: Path):
    """The configuration says tied, the file says otherwise: `transformers` believes the file."""
    theirs = random_hf_model("llama3")
    theirs.config.tie_word_embeddings = True
    folder = save(theirs, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = load_base(folder, "float32").model
    assert not ours.config.tied
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=1e-4,
    )


def test_bfloat16_folder_in_float32(tmp_path: Path):
    folder = save(random_hf_model("smollm2").bfloat16(), tmp_path)
    # Read anew: a model that is cast back keeps rope frequencies of bfloat16.
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_base(folder, "float32").model
    tokens_BT = random_tokens()
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT),
        their_logits(theirs, tokens_BT),
        rtol=0,
        atol=1e-4,
    )
