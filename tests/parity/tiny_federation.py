"""A tiny random Llama and an unequal federation, for oracles of federated methods."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.parity.reference_loop import BLOCKS, Adapter, Update

LAYERS, RANK, ALPHA, VOCABULARY, TARGETS = 2, 4, 8.0, 40, ("q_proj", "v_proj")
COUNTS = (3, 5, 4)
# Who takes part in each round: everybody, two of the three, and another two.
PARTICIPANTS = ((0, 1, 2), (0, 2), (1, 2))


def tiny_llama(*, tied: bool = False) -> LlamaForCausalLM:
    """A random Llama in float64, with weights large enough for gradients of norm above 1."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double()


def random_adapter(
    model: LlamaForCausalLM, seed: int, targets: Sequence[str] = TARGETS, *, rank: int = RANK
) -> Adapter:
    """An adapter whose A and B are both random."""
    draw = np.random.default_rng(seed)
    adapter = {}
    for target in targets:
        linear = model.get_submodule(f"model.layers.0.{BLOCKS[target]}.{target}")
        assert isinstance(linear, torch.nn.Linear)
        adapter[target] = {
            "a": 0.3 * draw.normal(size=(LAYERS, linear.in_features, rank)),
            "b": 0.3 * draw.normal(size=(LAYERS, rank, linear.out_features)),
        }
    return adapter


def work_of(count: int, seed: int) -> Sequence[Update]:
    """Two epochs of updates of two micro-batches of one example; the last ones may be smaller."""
    draw = np.random.default_rng(seed)
    examples = [
        (
            draw.integers(1, VOCABULARY, draw.integers(4, 10), dtype=np.int32),
            int(draw.integers(1, 4)),
        )
        for _ in range(count)
    ]
    micro = [[example] for example in examples]
    return 2 * [micro[at : at + 2] for at in range(0, count, 2)]


def rounds_of(participants: Sequence[Sequence[int]]) -> list[Mapping[int, Sequence[Update]]]:
    """`rounds[round][client]`, the same updates of a client in all rounds."""
    return [{c: work_of(COUNTS[c], seed=c) for c in members} for members in participants]


def gap(first: Mapping[str, Mapping], second: Mapping[str, Mapping]) -> float:
    """The largest difference of two adapters."""
    return max(np.abs(first[t][leaf] - second[t][leaf]).max() for t in first for leaf in "ab")


def dense_gap(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> float:
    """The largest difference of two dense updates."""
    return max(np.abs(first[target] - second[target]).max() for target in first)
