"""Examples of random tokens for the oracle in PyTorch, and their order in micro-batches."""

from collections.abc import Sequence

import numpy as np
import torch

from tests.parity.reference_loop import (
    MicroBatch,
    Update,
)
from tests.parity.tiny_federation import VOCABULARY


def random_examples(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """Token sequences of 4 to 9 tokens, with prompts of 1 to 3."""
    draw = np.random.default_rng(seed)
    return [
        (
            draw.integers(1, VOCABULARY, draw.integers(4, 10), dtype=np.int32),
            int(draw.integers(1, 4)),
        )
        for _ in range(count)
    ]


def updates_of(
    examples: Sequence[tuple[np.ndarray, int]], *, micro: int, accumulate: int, epochs: int = 1
) -> Sequence[Update]:
    """Micro-batches in order, and so many of them to an update; the last ones may be smaller."""
    parts = [list(examples[start : start + micro]) for start in range(0, len(examples), micro)]
    return epochs * [
        parts[start : start + accumulate] for start in range(0, len(parts), accumulate)
    ]


def collate(micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
    """A right-padded batch with labels, as `transformers` takes it."""
    length = max(len(tokens) for tokens, _ in micro_batch)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for tokens, prompt_length in micro_batch:
        padding = length - len(tokens)
        response = tokens[prompt_length:].tolist()
        batch["input_ids"].append(tokens.tolist() + [0] * padding)
        batch["attention_mask"].append([1] * len(tokens) + [0] * padding)
        batch["labels"].append([-100] * prompt_length + response + [-100] * padding)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


def seven_examples(*, epochs: int) -> Sequence[Update]:
    """Micro-batches of 2, 2, 2 and 1 examples, which are two updates an epoch."""
    return updates_of(random_examples(7, 3), micro=2, accumulate=2, epochs=epochs)
