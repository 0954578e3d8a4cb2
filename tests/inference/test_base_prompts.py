"""Made-up prompts: of the template, reproducible, within their length, of no client's making."""

import numpy as np

from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.hf.load import load_base
from feddpa_jax.inference.base_prompts import dream

BASE = load_base("tiny", "float32")


def made(seed: int = 0, count: int = 6, max_length: int = 200):
    return dream(
        BASE.model, BASE.tokenizer, alpaca_short, count=count, seed=seed, max_length=max_length
    )


def test_prompts_in_the_template_with_an_end_token_for_an_answer():
    prompts = made()
    assert len(prompts) == 6
    for tokens_T, prompt_length, _ in prompts:
        assert prompt_length == len(tokens_T) - 1
        assert tokens_T[-1] == BASE.tokenizer.eos_id
        text = BASE.tokenizer.decode(tokens_T[:prompt_length])
        assert text.startswith("### Instruction:\n")
        assert text.endswith("\n\n### Response:\n")


def test_drawn_from_the_seed():
    first, again, other = made(), made(), made(seed=1)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens_T, two.tokens_T)
    texts = [tuple(e.tokens_T.tolist()) for e in [*first, *other]]
    assert len(set(texts)) > 8


def test_no_longer_than_examples_may_be():
    assert all(len(e.tokens_T) <= 60 for e in made(max_length=60))
