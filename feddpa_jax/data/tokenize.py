"""Examples to token ids: the prompt and its response as one text, cut on the right."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.data.templates import Template
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example, TokenizedExample, UserError


class TokenCounts(NamedTuple):
    """What became of some examples: how many, how many were cut, and how many had to go.

    An example is dropped when no response token is left after the cut.
    """

    examples: int = 0
    truncated: int = 0
    dropped: int = 0


class Tokenized(NamedTuple):
    """The examples that are left, their indexes in what was given, and the counts."""

    examples: tuple[TokenizedExample, ...]
    kept: tuple[int, ...]
    counts: TokenCounts


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, template: Template, max_length: int
) -> Tokenized:
    """Tokenizes examples for training or scoring.

    The whole text is encoded at once and the response starts after as many tokens as the prompt has
    alone, as in Alpaca-LoRA; the end token is appended where there is room.

    Args:
      examples: at least one.
      tokenizer: the model's.
      template: makes prompts.
      max_length: most tokens, prompt, response and end token together.
    """
    prompts = [template(example) for example in examples]
    prompt_ids = tokenizer.encode_batch(prompts)
    full_ids = tokenizer.encode_batch(
        [prompt + example.output for prompt, example in zip(prompts, examples, strict=True)]
    )
    tokenized, kept, truncated = [], [], 0
    for index, (own_prompt, own_full) in enumerate(zip(prompt_ids, full_ids, strict=True)):
        tokens = own_full[:max_length]
        # Reference: a cut text gets no end token.
        if len(tokens) < max_length and tokens[-1] != tokenizer.eos_id:
            tokens = [*tokens, tokenizer.eos_id]
        truncated += len(own_full) > max_length
        if len(tokens) > len(own_prompt):
            tokenized.append(TokenizedExample(np.array(tokens, np.int32), len(own_prompt)))
            kept.append(index)
    counts = TokenCounts(len(examples), truncated, len(examples) - len(kept))
    return Tokenized(tuple(tokenized), tuple(kept), counts)


def encode_prompt(
    example: Example, tokenizer: Tokenizer, template: Template, max_length: int
) -> np.ndarray:
    """A prompt's token ids for inference, int32 [T].

    Raises:
      UserError: the prompt is longer than `max_length`.
    """
    tokens = tokenizer.encode(template(example))
    if len(tokens) > max_length:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, more than data.max_length = {max_length}; "
            "shorten it or raise data.max_length"
        )
    return np.array(tokens, np.int32)
