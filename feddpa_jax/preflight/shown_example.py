"""A training example as the model sees it: its text, special tokens included, and what is trained.

The loss is on the trained tokens alone; the others are the prompt.
"""

import itertools
from typing import NamedTuple

import numpy as np

from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import TokenizedExample


class Span(NamedTuple):
    """Some tokens on end that are all trained on, or none of them; and their text."""

    text: str
    tokens: int
    trained: bool


class ShownExample(NamedTuple):
    """An example of a client, in spans.

    Attributes:
      client: its name.
      spans: the text from its first token to its last.
    """

    client: str
    spans: tuple[Span, ...]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(span.tokens for span in self.spans)

    @property
    def trained(self) -> int:
        """The tokens that are trained on."""
        return sum(span.tokens for span in self.spans if span.trained)

    def marked(self) -> str:
        """The text with the trained part in « and »."""
        return "".join(f"«{span.text}»" if span.trained else span.text for span in self.spans)


def trained_tokens(example: TokenizedExample) -> np.ndarray:
    """Which tokens of an example are trained on: bool [T]."""
    if example.trained_T is not None:
        return example.trained_T
    return np.arange(len(example.tokens_T)) >= example.prompt_length


def show_example(tokenizer: Tokenizer, client: str, example: TokenizedExample) -> ShownExample:
    """An example's text, special tokens included.

    Args:
      tokenizer: the model's.
      client: whose example it is.
      example: its tokens.

    >>> from feddpa_jax.hf.tokenizer import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> ids = np.array([*tokenizer.encode("2 + 2 ="), *tokenizer.encode(" 4"), tokenizer.eos_id])
    >>> show_example(tokenizer, "anna", TokenizedExample(ids, 7)).marked()
    '2 + 2 =« 4<|end|>»'
    """
    trained_T = trained_tokens(example).tolist()
    tokens_T = example.tokens_T.tolist()
    spans, first = [], 0
    for trained, group in itertools.groupby(trained_T):
        last = first + len(list(group))
        text = tokenizer.decode_whole(tokens_T[first:last], start=first == 0)
        spans.append(Span(text, last - first, trained))
        first = last
    return ShownExample(client, tuple(spans))
