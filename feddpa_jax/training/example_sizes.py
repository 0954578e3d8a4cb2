"""How much clients have, known without reading what they have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.types import TokenizedExample


class Sizes(NamedTuple):
    """How much the clients have.

    Attributes:
      counts_C: each client's number of examples, int64 [C].
      tokens_C: each client's tokens, of all its examples, int64 [C].
      longest: most tokens of an example.
    """

    counts_C: np.ndarray
    tokens_C: np.ndarray
    longest: int


def sizes_of(examples: Sequence[Sequence[TokenizedExample]]) -> Sizes:
    """The sizes of clients' examples; a sequence that knows them is not read.

    Args:
      examples: each client's; with the attributes `counts_C`, `tokens_C` and `longest` if it knows.

    >>> own = (TokenizedExample(np.arange(5), 2), TokenizedExample(np.arange(3), 1))
    >>> sizes_of([own, own[:1]])
    Sizes(counts_C=array([2, 1]), tokens_C=array([8, 5]), longest=5)
    """
    known: Any = examples
    if hasattr(known, "tokens_C"):
        return Sizes(known.counts_C, known.tokens_C, known.longest)
    lengths = [[len(example.tokens_T) for example in own] for own in examples]
    return Sizes(
        np.array([len(own) for own in lengths], np.int64),
        np.array([sum(own) for own in lengths], np.int64),
        max((length for own in lengths for length in own), default=0),
    )
