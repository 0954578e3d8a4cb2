"""All clients' examples as one client's, which are in memory together; how much that takes is said.

Bytes per example, and per example and epoch, were measured with Python 3.11: arrays that point at
an example's tokens, and the rows that a local training is packed into before it begins.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from feddpa_jax.data.token_file import TokenizedClients
from feddpa_jax.training.memory import in_words
from feddpa_jax.types import TokenizedExample

_PER_EXAMPLE, _PER_EPOCH, _PER_TOKEN = 400, 290, 5

_log = logging.getLogger(__name__)


def pooled_examples(
    training: Sequence[tuple[TokenizedExample, ...]], epochs: int
) -> tuple[TokenizedExample, ...]:
    """All clients' examples, client by client; those of opened data are read once.

    Before they are read it is said how much memory they take, in a warning if the machine has less.

    Args:
      training: each client's examples.
      epochs: passes over them in a local training, all of which is packed at once.

    Raises:
      UserError: the examples of a client are damaged.
    """
    if not isinstance(training, TokenizedClients):
        return tuple(example for own in training for example in own)
    if "pooled" not in vars(training):
        examples, tokens = int(training.counts_C.sum()), int(training.tokens_C.sum())
        size = bytes_of(examples, tokens, epochs)
        free = _free_memory()
        told = (
            f"centralized training has all {examples:,} examples of {len(training):,} clients in "
            f"memory: about {in_words(size)}"
        )
        if free is not None and free < size:
            _log.warning(
                f"{told}, and {in_words(free)} are free; lower data.max_train or fed.local_epochs"
            )
        else:
            _log.info(told)
    return training.pooled


def bytes_of(examples: int, tokens: int, epochs: int) -> int:
    """About how many bytes so many examples take, with the rows of all epochs.

    >>> bytes_of(1_000_000, 50_000_000, epochs=10)
    3550000000
    """
    return examples * (_PER_EXAMPLE + epochs * _PER_EPOCH) + tokens * _PER_TOKEN


def _free_memory() -> int | None:
    """The machine's memory that can be had; None where it does not say."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(told.split()[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
