"""FedDPA-T: both adapters are trained in every round.

Yang, Long, Shen, Jiang, Blumenstein: *Dual-Personalizing Adapter for Federated Foundation Models*,
NeurIPS 2024, arXiv 2403.19211, Algorithm 1 (FedDPA-T). In round t each client c

    1. receives the global adapter,
    2. from round 1 on, trains its local adapter beside the frozen global one,
           y = x W + s * ((1 - a) x A_global B_global + a x A_local[c] B_local[c]),
    3. trains its copy of the global adapter alone,
    4. sends the copy; the server averages the copies,
           global = sum over c of share_c * copy_c.

The local adapter starts fresh, stays with its client, and goes on from round to round.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from feddpa_jax.adapters.mix import Parts, Term
from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="FedDPA-T", answers_with="instance")
def feddpa_t(
    lora: Lora, *, local_weight: float = 0.5, frozen_branch_gradient: str = "exact"
) -> Method:
    """FedDPA-T; `local_weight` is a, and the frozen branch's gradient may be "detached"."""
    a = jnp.float32(local_weight)
    detached = frozen_branch_gradient == "detached"

    def mixed(parts: Parts) -> Sequence[Term]:
        return [Term(parts["global"], 1.0 - a, detached), Term(parts["local"], a)]

    return Method(
        parts={"global": Part("server", lora.fresh), "local": Part("client", lora.fresh)},
        phases=(
            # 1. and 2. The local adapter beside the round's incoming global one.
            Phase(
                "local",
                train=("local",),
                mix=mixed,
                beside=("global",),
                when=lambda number: number > 0,
                stream=0,
            ),
            # 3. and 4. The copy of the global adapter, of which the server takes the mean.
            Phase("global", train=("global",), stream=1),
        ),
    )
