"""FFA-LoRA: A stays as it was drawn, and B alone is trained and sent.

Sun, Li, Li, Ding: *Improving LoRA in Privacy-preserving Federated Learning*, ICLR 2024, arXiv
2403.12313. A_0 is drawn once, the same for all, and B_0 = 0. In round t each client

    1. receives B_t,
    2. trains B alone from B_t, with A_0 frozen,       y = x W + s * x A_0 B,
    3. sends its B_c; the server averages,             B_{t+1} = sum over c of share_c * B_c.

The mean of the products is exact: sum of share_c * A_0 B_c = A_0 B_{t+1}. Clipping and AdamW see
B's gradient alone. A_0 follows from the seed and never travels, so a round moves half the bytes.
"""

from feddpa_jax.adapters.mix import alone
from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="FFA-LoRA", answers_with="global")
def ffa_lora(lora: Lora) -> Method:
    """FFA-LoRA: one adapter, whose B alone is trained."""
    return Method(
        parts={"global": Part("server", lora.fresh)},
        phases=(Phase("global", train=("global.b",), mix=alone("global"), stream=1),),
    )
