"""FedEx-LoRA: the means of A and of B, and what they miss of the products in the frozen weight.

Singhal, Ponkshe, Vepakomma: *FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning
of Foundation Models*, ACL 2025, arXiv 2410.09432, eq. 12 to 16. In round t each client

    1. receives A_t, B_t and the residual,
    2. trains both factors on the weight with all residuals, which stays frozen,
                                                       y = x (W + s * Z_t) + s * x A_c B_c,
    3. sends A_c and B_c; the server averages,         A = sum of share_c A_c,
                                                       B = sum of share_c B_c,
       and adds what these miss of the products,       Z_{t+1} = Z_t + sum of share_c A_c B_c - A B.

So Z_{t+1} + A B = Z_t + sum of share_c A_c B_c, exactly. The residual is a covariance,

    sum of share_c A_c B_c - A B = sum of share_c (A_c - A) (B_c - B),

of rank (K - 1) R at most with K participants, and a round's download has factors of that rank.

Z is a server part by its factors. It has room for what all rounds can add, at most for the maps'
full rank, and is exact then. The option `residual_rank` caps its rank at q: after each round the q
largest singular values of Z stay, and the others, the part of the residuals that is least in the
Frobenius norm, are lost for good (eq. 17 cuts each round's residual in the same way).

Clients answer with the factors and Z side by side in one adapter. As Z belongs to the weight, no
dropout falls on its input.

# Paper: the authors' code adds the transpose of the residual to linear maps. The text's is taken.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.adapters.mix import Parts, Term, side_by_side
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase
from feddpa_jax.federated.products import best, stacked, summed
from feddpa_jax.federated.server import Moment, Uploads
from feddpa_jax.training.participation import how_many
from feddpa_jax.types import UserError


@METHODS.register(title="FedEx-LoRA", answers_with="global")
def fedex_lora(
    lora: Lora,
    *,
    rounds: int = 20,
    participation: float = 1.0,
    cohort: int | None = None,
    residual_rank: int = 0,
) -> Method:
    """FedEx-LoRA; `residual_rank` caps the residual's rank, 0 for as much as is exact.

    Raises:
      UserError: `residual_rank` is negative.
    """
    if residual_rank < 0:
        raise UserError(f"fed.options: residual_rank is {residual_rank}; use 0 (exact) or more")
    others = how_many(len(lora.names), participation, cohort) - 1
    cap = residual_rank or max(map(min, lora.sizes.values()))

    def mixed(parts: Parts) -> list[Term]:
        return [Term(parts["global"]), Term(parts["residual"], dropout=False)]

    def step(sent: Uploads, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        """3. The means, and the sum of all residuals."""
        del moment
        share_K = sent.share_K.astype(np.float64)
        share_K = share_K / share_K.sum()
        means, residual = {}, {}
        for target, pair in sent.parts_K["global"].items():
            whole = {leaf: own.astype(np.float64) for leaf, own in pair.items()}
            mean = {leaf: np.tensordot(share_K, own, 1) for leaf, own in whole.items()}
            gaps = summed(whole["a"] - mean["a"], whole["b"] - mean["b"], share_K)
            before = server["residual"][target]
            rank = before["a"].shape[-1]
            found = best(*stacked([(before["a"], before["b"]), gaps]), rank)
            residual[target] = dict(zip("ab", map(jnp.asarray, found), strict=True))
            means[target] = {leaf: jnp.float32(own) for leaf, own in mean.items()}
        return {"global": means, "residual": residual}

    def answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray):
        both = [bank_of(server["global"]), _widened(bank_of(server["residual"]))]
        return Answers(side_by_side(both), None)

    return Method(
        parts={
            "global": Part("server", lora.fresh),
            "residual": Part(
                "server",
                lambda key: _zeros(lora, min(cap, max(1, rounds * others * lora.rank))),
                change=lambda count: _zeros(lora, min(cap, max(0, count - 1) * lora.rank)),
            ),
        },
        phases=(
            Phase(
                "global",
                train=("global",),
                mix=mixed,
                beside=("residual",),
                reduce="stack",
                server=step,
                stream=1,
            ),
        ),
        answers=answers,
    )


def _widened(bank: Adapter) -> Adapter:
    """The same with 0 up to the largest rank of its targets."""
    rank = max(pair["a"].shape[-1] for pair in bank.values())

    def wide(leaf: jax.Array, axis: int) -> jax.Array:
        pads = [(0, 0)] * leaf.ndim
        pads[axis] = (0, rank - leaf.shape[axis])
        return jnp.pad(leaf, pads)

    return {
        target: {"a": wide(pair["a"], -1), "b": wide(pair["b"], -2)}
        for target, pair in bank.items()
    }


def _zeros(lora: Lora, rank: int) -> Adapter:
    """Factors of at most this rank, at most each map's own."""
    ranks = {target: min(rank, *both) for target, both in lora.sizes.items()}
    return {
        target: {
            "a": jnp.zeros((lora.layers, lora.sizes[target][0], rank)),
            "b": jnp.zeros((lora.layers, rank, lora.sizes[target][1])),
        }
        for target, rank in ranks.items()
    }
