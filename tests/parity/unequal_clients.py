"""A random Llama and three unequal clients for the oracles of federated methods, without torch."""

from collections.abc import Mapping, Sequence

import numpy as np

LAYERS, RANK, ALPHA, RATE, VOCABULARY = 2, 3, 6.0, 3e-3, 40
TARGETS = ("q_proj", "v_proj", "up_proj")
SIZES = {"q_proj": (16, 32), "v_proj": (16, 16), "up_proj": (16, 24)}
COUNTS = (4, 7, 2)
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
Examples = Sequence[tuple[np.ndarray, int]]


def pair(seed: int, *, size: float = 0.3) -> dict:
    """An adapter whose A and B are both random."""
    draw = np.random.default_rng(seed)
    return {
        target: {
            "a": draw.normal(0, size, (LAYERS, SIZES[target][0], RANK)).astype(np.float32),
            "b": draw.normal(0, size, (LAYERS, RANK, SIZES[target][1])).astype(np.float32),
        }
        for target in TARGETS
    }


def gate(seed: int, slots: int, *, size: float = 0.3) -> dict:
    """A router with so many outputs; the size 0 gives zeros."""
    draw = np.random.default_rng(seed)
    return {
        target: {
            "gate": (size * draw.normal(0, 1, (LAYERS, SIZES[target][0], slots))).astype(np.float32)
        }
        for target in TARGETS
    }


def examples_of(client: int) -> Examples:
    """A client's examples: (tokens, prompt length)."""
    draw = np.random.default_rng(100 + client)
    made = []
    for _ in range(COUNTS[client]):
        length = int(draw.integers(5, 12))
        tokens_T = draw.integers(1, VOCABULARY, length).astype(np.int32)
        made.append((tokens_T, int(draw.integers(1, length - 1))))
    return made


def updates_of(client: int, *, batch: int = 3, epochs: int = 2) -> list[list[Examples]]:
    """A client's updates in the order of its examples, one micro-batch each."""
    examples = examples_of(client)
    return epochs * [[examples[at : at + batch]] for at in range(0, len(examples), batch)]


def rounds_of(
    phases: Sequence[str], participants: Sequence[Sequence[int]]
) -> list[Mapping[int, Mapping[str, list]]]:
    """The participants of each round, with the same updates in every phase."""
    return [
        {client: {phase: updates_of(client) for phase in phases} for client in members}
        for members in participants
    ]


def gap(one: Mapping, other: Mapping) -> float:
    """The largest difference of two parts."""
    assert one.keys() == other.keys()
    return max(
        float(np.abs(one[target][leaf] - other[target][leaf]).max())
        for target in one
        for leaf in one[target]
    )


def filled(part: Mapping, value: float) -> dict:
    """A part of the same shapes, filled with a number."""
    return {
        target: {leaf: np.full_like(array, value) for leaf, array in leaves.items()}
        for target, leaves in part.items()
    }
