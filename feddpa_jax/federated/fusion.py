"""AdaFusion: two adapters become one, by two weights that are found without gradients.

Huang, Liu, Lin, Pang, Du, Lin: *LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA
Composition*, arXiv 2307.13269, whose fusion FDLoRA (arXiv 2406.07925) takes for its own two:

    A = w_1 A_own + w_2 A_shared,      B = w_1 B_own + w_2 B_shared,
    w = argmin over [-1.5, 1.5]^2 of  loss(examples; A B) + 0.05 * (|w_1| + |w_2|) / 2.

The factors are added up, so A B has the products of one's A with the other's B as well, and is an
ordinary adapter of their rank.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter

BOUND, L1, STEP = 1.5, 0.05, 0.25
REFINEMENTS = 2


def even_weights(key: jax.Array) -> Any:
    """A part of two weights, each one half."""
    del key
    return {"all": {"weights": np.full(2, 0.5, np.float32)}}


def fused(own: Adapter, shared: Adapter, fusion: Any) -> Adapter:
    """One adapter of two, factor by factor.

    Args:
      own: {target: {leaf: [C, L, ...]}}.
      shared: the same; C may be 1.
      fusion: as `even_weights`, [C, 2].
    """
    weights_C2 = fusion["all"]["weights"]

    def add(own: jax.Array, shared: jax.Array) -> jax.Array:
        first, second = (weights_C2[:, i].reshape(-1, *[1] * (own.ndim - 1)) for i in (0, 1))
        return first * own + second * shared

    return jax.tree.map(add, own, shared)


def find_weights(losses: Callable[[Any], np.ndarray], start_C: Any) -> Any:
    """The best weights of a grid, refined around each client's best: no draws, so no seed.

    LoraHub's search draws its candidates (nevergrad); with two weights a grid is enough. It takes
    13 * 13 + 2 * 9 forward passes over the examples, all clients at once.

    Args:
      losses: of clients' weights, [C].
      start_C: {"fusion": {"all": {"weights": [C, 2]}}}.

    Returns:
      The same tree with, for each client, weights that are no worse.
    """
    best_C2 = np.array(start_C["fusion"]["all"]["weights"], np.float32)

    def tree(weights_C2: np.ndarray) -> Any:
        return {"fusion": {"all": {"weights": weights_C2}}}

    def objective(weights_C2: np.ndarray) -> np.ndarray:
        return losses(tree(weights_C2)) + L1 * np.abs(weights_C2).mean(axis=1)

    least_C = objective(best_C2)

    def try_(weights_C2: np.ndarray) -> None:
        nonlocal best_C2, least_C
        found_C = objective(weights_C2)
        better_C = found_C < least_C
        best_C2 = np.where(better_C[:, None], weights_C2, best_C2)
        least_C = np.where(better_C, found_C, least_C)

    axis = np.arange(-BOUND, BOUND + STEP / 2, STEP, dtype=np.float32)
    for pair in itertools.product(axis, repeat=2):
        try_(np.broadcast_to(np.array(pair, np.float32), best_C2.shape).copy())
    for halvings in range(1, REFINEMENTS + 1):
        centre_C2 = best_C2
        for shift in itertools.product((-1, 0, 1), repeat=2):
            moved_C2 = centre_C2 + np.array([shift], np.float32) * STEP / 2**halvings
            try_(np.clip(moved_C2, -BOUND, BOUND).astype(np.float32))
    return tree(best_C2)
