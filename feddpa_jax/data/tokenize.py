"""Examples to token ids: a prompt and its response, cut on the right."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from feddpa_jax.data.chat import ChatTemplate
from feddpa_jax.data.prompts import encode_answers, encode_prompts
from feddpa_jax.data.templates import Template
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example, TokenizedExample, UserError

Encoding = Literal["separate", "joint"]


class TokenCounts(NamedTuple):
    """Numbers of examples, of those that were cut, and of those that were dropped.

    An example is dropped when no response token is left after the cut. `other_prompt` counts those
    whose prompt has other ids before its response than alone, as at inference; 0 with the encoding
    "separate".
    """

    examples: int = 0
    truncated: int = 0
    dropped: int = 0
    other_prompt: int = 0


def other_prompt_note(counts: Sequence[TokenCounts]) -> str:
    """A sentence on prompts that training sees differently from inference; empty if there are none.

    >>> other_prompt_note([TokenCounts(3, other_prompt=1), TokenCounts(2)])
    '1 of 5 prompts have other tokens here than at inference; use data.encoding: separate'
    """
    other = sum(own.other_prompt for own in counts)
    if not other:
        return ""
    return (
        f"{other} of {sum(own.examples for own in counts)} prompts have other tokens here than at "
        "inference; use data.encoding: separate"
    )


class Tokenized(NamedTuple):
    """The examples that are left, their indexes in what was given, and the counts."""

    examples: tuple[TokenizedExample, ...]
    kept: tuple[int, ...]
    counts: TokenCounts


def encode_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: Template,
    max_length: int,
    encoding: Encoding = "separate",
) -> Tokenized:
    """Tokenizes examples for training or scoring.

    With the encoding "separate" the prompt has the ids that `encode_prompt` gives at inference, and
    the response follows as a continuation. With "joint" the whole text is encoded at once, and the
    response starts after as many tokens as the prompt has alone. The end token is appended where
    there is room. Of a conversation the last answer is the response; earlier ones are in its
    prompt, and trained on too.

    Args:
      examples: at least one.
      tokenizer: the model's.
      template: makes prompts.
      max_length: most tokens, prompt, response and end token together.
      encoding: "separate" or "joint"; chat templates know the first alone.

    Raises:
      UserError: the template refuses an example, or a chat template is to be encoded jointly.
    """
    prompts = encode_prompts(examples, tokenizer, template)
    if encoding == "joint":
        if isinstance(template, ChatTemplate):
            raise UserError(
                f"data.encoding: joint is not for data.template: {template.name}, in which texts "
                "and special tokens are apart; use separate"
            )
        # Reference: Alpaca-LoRA. A token may reach over the boundary; the mask then starts late.
        full_ids = tokenizer.encode_batch([template(e) + e.output for e in examples])
    else:
        answers = encode_answers(examples, tokenizer, template)
        full_ids = [p.ids + a for p, a in zip(prompts, answers, strict=True)]
    tokenized, kept, truncated, other = [], [], 0, 0
    for index, (prompt, own_full) in enumerate(zip(prompts, full_ids, strict=True)):
        own_prompt = prompt.ids
        start = len(own_prompt)
        tokens = own_full[:max_length]
        # Reference: a cut text gets no end token.
        if len(tokens) < max_length and tokens[start:][-1:] != [tokenizer.eos_id]:
            tokens = [*tokens, tokenizer.eos_id]
        truncated += len(own_full) > max_length
        other += own_full[:start] != own_prompt
        if len(tokens) > start:
            trained_T = None
            if prompt.trained is not None:
                trained_T = np.array([*prompt.trained, *[True] * (len(tokens) - start)])
            tokenized.append(TokenizedExample(np.array(tokens, np.int32), start, trained_T))
            kept.append(index)
    counts = TokenCounts(len(examples), truncated, len(examples) - len(kept), other)
    return Tokenized(tuple(tokenized), tuple(kept), counts)


def encode_prompt(
    example: Example, tokenizer: Tokenizer, template: Template, max_length: int
) -> np.ndarray:
    """A prompt's token ids for inference, int32 [T].

    Raises:
      UserError: the prompt is longer than `max_length`.
    """
    ((tokens, _),) = encode_prompts([example], tokenizer, template)
    if len(tokens) > max_length:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, more than data.max_length = {max_length}; "
            "shorten it or raise data.max_length"
        )
    return np.array(tokens, np.int32)
