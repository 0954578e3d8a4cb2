"""Answers that are known from the scores of a target, without decoding."""

from collections.abc import Sequence

import numpy as np

from feddpa_jax.evaluate.metrics import exact_match
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example, TokenizedExample


def known_answer(example: TokenizedExample, tokenizer: Tokenizer, most: int) -> str | None:
    """The greedy answer's text where the argmax is the target at every response position.

    Decoding stops at the first of the tokens that end an answer, or after `most` tokens. Where the
    target was cut before either, the answer goes on and is not known: None.
    """
    target_T, length = _answered(example, tokenizer, most)
    return tokenizer.decode_continuation(target_T[:length]) if length <= len(target_T) else None


def can_match(
    instances: Sequence[Example],
    tokenized: Sequence[TokenizedExample],
    tokenizer: Tokenizer,
    most: int,
) -> np.ndarray:
    """Whether the answer that gives every target token is also the target's text, bool [I].

    It is not where the target was cut, is longer than `most` tokens, or changes when it is encoded.
    """
    answers = [known_answer(example, tokenizer, most) for example in tokenized]
    return np.array(
        [
            answer is not None and exact_match(answer, instance.output) > 0
            for answer, instance in zip(answers, instances, strict=True)
        ]
    )


def needs_no_end(example: TokenizedExample, tokenizer: Tokenizer, most: int) -> bool:
    """Whether decoding stops for want of room where the target has its end token, or before.

    Such an answer may be the target's text although the end token is not the argmax.
    """
    target_T, length = _answered(example, tokenizer, most)
    return length == most <= len(target_T)


def _answered(example: TokenizedExample, tokenizer: Tokenizer, most: int) -> tuple[np.ndarray, int]:
    """The target's tokens, and how many of them a greedy answer that follows them has."""
    target_T = example.tokens_T[example.prompt_length :]
    ends = np.flatnonzero(np.isin(target_T, tokenizer.stop_ids))
    return target_T, min([most, *ends.tolist()])
