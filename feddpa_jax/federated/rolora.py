"""RoLoRA: B and A are trained and averaged in alternate rounds.

Chen, Guo, Ju, Dalal, Zhu, Khisti: *Robust Federated Finetuning of LLMs via Alternating Optimization
of LoRA*, NeurIPS 2025, arXiv 2502.01755, Algorithm 1. A_0 is drawn once, the same for all, and
B_0 = 0, so that B goes first: A's gradient is 0 while B is. Counting rounds from 0, in round

    0, 2, 4 ..  each client trains B from B_t with A_t frozen, and the server averages
                B_{t+1} = sum over c of share_c * B_c,      A_{t+1} = A_t;
    1, 3, 5 ..  each client trains A from A_t with B_t frozen, and the server averages
                A_{t+1} = sum over c of share_c * A_c,      B_{t+1} = B_t.

One factor is common in every round, so the mean of the products is exact. A client sends the factor
that it has trained and receives the one that the round before has changed: half the bytes (the
paper's count; a client that was absent needs both). The paper is silent about the optimizer's
state: it is new in each local training, as everywhere here.
"""

from feddpa_jax.adapters.mix import alone
from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="RoLoRA", answers_with="global")
def rolora(lora: Lora) -> Method:
    """RoLoRA: one adapter, of which B and A are trained in turn."""

    def trains(leaf: str, remainder: int) -> Phase:
        return Phase(
            "global",
            train=(f"global.{leaf}",),
            mix=alone("global"),
            when=lambda number: number % 2 == remainder,
            stream=1,
        )

    return Method(
        parts={"global": Part("server", lora.fresh)},
        phases=(trains("b", 0), trains("a", 1)),
    )
