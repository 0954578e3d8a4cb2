"""What the scores of a target say of the greedy answer, and when only decoding tells."""

import numpy as np
import pytest
from tokenizers import normalizers

from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.data.tokenize import encode_examples
from feddpa_jax.evaluate.known_answers import can_match, known_answer, needs_no_end
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.types import Example

TOKENIZER = byte_tokenizer()
PROMPT = 36  # bytes of "### Instruction:\nSay\n\n### Response:\n"


@pytest.mark.parametrize(
    ("output", "most", "max_length", "known", "matches", "endless"),
    [
        (" hey", 9, 99, " hey", True, False),
        # Decoding stops after so many tokens; " hey" has 4, its end token is a fifth.
        (" hey", 4, 99, " hey", True, True),
        (" hey", 3, 99, " he", False, True),
        ("hey\n", 3, 99, "hey", True, True),
        # Cut at max_length: how the answer goes on is not known, unless decoding stops first.
        (" hey", 9, PROMPT + 3, None, False, False),
        (" hey", 3, PROMPT + 3, " he", False, True),
        (" hey", 9, PROMPT + 4, None, False, False),  # Whole, but without its end token.
        # The target has an end token in it, and decoding stops there.
        ("a<|end|>b", 9, 99, "a", False, False),
        ("a<|end|>", 9, 99, "a", False, False),
    ],
)
def test_answers_that_follow_a_target(
    output: str, most: int, max_length: int, known: str | None, matches: bool, endless: bool
):
    examples = [Example("Say", output)]
    tokenized = encode_examples(examples, TOKENIZER, alpaca_short, max_length).examples
    assert known_answer(tokenized[0], TOKENIZER, most) == known
    assert can_match(examples, tokenized, TOKENIZER, most).tolist() == [matches]
    assert needs_no_end(tokenized[0], TOKENIZER, most) == endless


def test_any_of_several_end_tokens_ends_an_answer():
    line_feed = TOKENIZER.encode("\n")
    several = Tokenizer(byte_tokenizer().backend, eos_id=256, pad_id=256, stop_ids=line_feed)
    examples = [Example("Say", "a\nb")]
    tokenized = encode_examples(examples, several, alpaca_short, 99).examples
    assert known_answer(tokenized[0], several, 9) == "a"
    assert can_match(examples, tokenized, several, 9).tolist() == [False]


def test_a_target_that_changes_when_it_is_encoded_cannot_match():
    backend = byte_tokenizer().backend
    backend.normalizer = normalizers.NFC()
    composing = Tokenizer(backend, eos_id=256, pad_id=256)
    examples = [Example("Say", "e\u0301"), Example("Say", "\u00e9")]
    tokenized = encode_examples(examples, composing, alpaca_short, 99).examples
    assert [known_answer(e, composing, 9) for e in tokenized] == ["\u00e9"] * 2
    np.testing.assert_array_equal(can_match(examples, tokenized, composing, 9), [False, True])
