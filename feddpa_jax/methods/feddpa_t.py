"""FedDPA-T: both adapters are trained in every round.

Yang, Long, Shen, Jiang, Blumenstein: *Dual-Personalizing Adapter for Federated Foundation Models*,
NeurIPS 2024, arXiv 2403.19211, Algorithm 1 (FedDPA-T). In round t each client c

    1. receives the global adapter,
    2. from round 1 on, trains its local adapter beside the frozen global one,
           y = x W + s * ((1 - a) x A_global B_global + a x A_local[c] B_local[c]),
    3. trains its copy of the global adapter alone,
    4. sends the copy; the server averages the copies.

The local adapter starts fresh, stays with its client, and goes on from round to round.
"""

import jax

from feddpa_jax.methods.method import (
    FedState,
    Method,
    Metrics,
    Parts,
    fresh_local,
    global_phase,
    local_phase,
    need,
)
from feddpa_jax.training.rounds import RoundData


def feddpa_t(parts: Parts) -> Method:
    """FedDPA-T over the given engine, initialisation and average."""

    def init(key: jax.Array) -> FedState:
        global_key, local_key = jax.random.split(key)
        return FedState(parts.new_adapter(global_key), fresh_local(parts, local_key))

    def round(state: FedState, data: RoundData, *, key: jax.Array) -> tuple[FedState, Metrics]:
        local_key, global_key = jax.random.split(key)
        global_, local, metrics = need(state.global_), need(state.local), {}
        if data.number > 0:
            local, metrics["local"] = local_phase(
                parts, local, data, phase="local", key=local_key, frozen=global_
            )
        global_, metrics["global"] = global_phase(parts, global_, data, key=global_key)
        return FedState(global_, local), metrics

    return Method(init, round)
