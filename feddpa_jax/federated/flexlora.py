"""FlexLoRA: clients of different ranks; the server averages their products A B.

Bai, Chen, Qian, Yao, Li: *Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources*, NeurIPS 2024, arXiv 2402.11505. Client c has the rank r_c (`lora.ranks`;
without it all have `lora.rank`) and the scale s_c = alpha / r_c. In round t each client

    1. receives the server's update W_t cut to its rank; before the first one, a random A of its own
       and B = 0,
    2. trains both factors,                            y = x W + s_c * x A_c B_c,
    3. sends them; the server averages the products,   W_{t+1} = sum over c of share_c s_c A_c B_c,
    4. decomposes it,                                  W_{t+1} = U S V^T,
       and cuts it to each rank: A = U[:, :r], B = S[:r] V[:, :r]^T / s_c, so that s_c A B is the
       best update of rank r. All of S is in B, and A is orthonormal.

W_{t+1} replaces W_t. The decomposition is exact (`products.py`), by the stacked factors. The server
keeps its R = max r_c largest singular values: a cut of a cut is the same, so clients lose nothing.
Where W has fewer, A has further orthonormal columns, drawn at random, and B is 0 there.

A client answers with W cut to its rank, which its mode "global" is.

# Paper: the authors' code evaluates the server with W itself, before the cut; no client has that.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.adapters.mix import Parts, Term
from feddpa_jax.federated.leaves import split
from feddpa_jax.federated.method import METHODS, Answers, Lora, Method, Part, Phase
from feddpa_jax.federated.products import best, completed, summed
from feddpa_jax.federated.server import Moment, Uploads


@METHODS.register(title="FlexLoRA", answers_with="global", ranks=True)
def flexlora(lora: Lora) -> Method:
    """FlexLoRA; the server's factors have the largest rank R and the scale alpha / R."""
    rank_C = np.array(lora.ranks or [lora.rank] * len(lora.names))
    equal = bool((rank_C == lora.rank).all())

    def empty(key: jax.Array) -> Adapter:
        return jax.tree.map(jnp.zeros_like, lora.fresh(key))

    def receive(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray):
        """1. The server's factors cut to each rank; s_R B_R = s_c B_c."""
        rank_c = rank_C[members]
        start_C = {}
        for target, pair in server["global"].items():
            begun = (pair["a"] != 0).any()
            a_CLDR = jnp.where(begun, pair["a"][None], own_C["first"][target]["a"])
            b_CLRE = pair["b"][None] * jnp.float32(rank_c / lora.rank)[:, None, None, None]
            start_C[target] = {"a": a_CLDR, "b": b_CLRE}
        return {
            "global": _cut(start_C, rank_c),
            "scale": {"all": {"by_rank": jnp.float32(lora.rank / rank_c)}},
        }

    def mixed(parts: Parts) -> list[Term]:
        """2. The engine's scale is alpha / R."""
        return [Term(parts["global"], parts["scale"]["all"]["by_rank"])]

    def average(sent: Uploads, server: Mapping[str, Any], moment: Moment) -> dict[str, Any]:
        """3. and 4. The mean of the scaled products, decomposed."""
        factor_K = sent.share_K.astype(np.float64) * lora.rank / rank_C[sent.members]
        draw = jax.device_get(lora.fresh(moment.key))
        found = {}
        for target, pair in sent.parts_K["global"].items():
            a_LDR, b_LRE = best(*summed(pair["a"], pair["b"], factor_K), lora.rank)
            a_LDR, b_LRE = completed(a_LDR, b_LRE, draw[target]["a"])
            found[target] = {"a": jnp.asarray(a_LDR), "b": jnp.asarray(b_LRE)}
        return {"global": found}

    def answers(server: Mapping[str, Any], own_C: Mapping[str, Any], members: np.ndarray):
        shared_1 = bank_of(server["global"])
        return Answers(shared_1 if equal else _cut(shared_1, rank_C[members]), None)

    return Method(
        parts={
            "global": Part("server", empty),
            "first": Part("client", lambda key: split(lora.fresh(key), ("a",))[0]),
        },
        phases=(
            Phase(
                "global",
                train=("global",),
                mix=mixed,
                receive=receive,
                reduce="stack",
                server=average,
                stream=1,
            ),
        ),
        answers=answers,
    )


def _cut(bank: Adapter, rank_c: np.ndarray) -> Adapter:
    """Each client's first r columns of A and rows of B; the others are 0, and stay it."""

    def one(pair: dict[str, jax.Array]) -> dict[str, jax.Array]:
        kept_c11R = (np.arange(pair["a"].shape[-1]) < rank_c[:, None])[:, None, None, :]
        return {"a": pair["a"] * kept_c11R, "b": pair["b"] * kept_c11R.swapaxes(2, 3)}

    return {target: one(pair) for target, pair in bank.items()}
