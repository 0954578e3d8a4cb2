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

import jax

from feddpa_jax.federated.aggregate import weighted_sum
from feddpa_jax.federated.method import (
    METHODS,
    FedState,
    Method,
    Metrics,
    Parts,
    add,
    fresh_local,
    local_phase,
    merge_metrics,
    need,
    train_copies,
)
from feddpa_jax.training.rounds import RoundData


@METHODS.register(
    title="FedDPA-T", answers_with="instance", phases={"local": True, "global": False}
)
def feddpa_t(parts: Parts) -> Method:
    """FedDPA-T over the given engine, initialisation and average."""

    def init(key: jax.Array) -> FedState:
        global_key, local_key = jax.random.split(key)
        return FedState(parts.new_adapter(global_key), fresh_local(parts, local_key))

    def round(state: FedState, data: RoundData, *, key: jax.Array) -> tuple[FedState, Metrics]:
        local_key, global_key = jax.random.split(key)
        metrics = {}
        # 1. Every client receives the global adapter.
        global_, local = need(state.global_), need(state.local)
        # 2. It trains its local adapter beside the frozen global one, mixed at weight a.
        if data.number > 0:
            local, metrics["local"] = local_phase(
                parts,
                local,
                data,
                phase="local",
                key=local_key,
                frozen=global_,
                local_weight=parts.local_weight,
            )
        average, done = None, []
        # 3. It trains its copy of the global adapter alone.
        for copies in train_copies(parts, global_, data, key=global_key):
            # 4. It sends the copy; the server averages: sum over c of share_c * copy_c.
            average = add(average, weighted_sum(copies.adapters_C, copies.share_C))
            done.append(copies.metrics)
        metrics["global"] = merge_metrics(done)
        return FedState(need(average), local), metrics

    return Method(init, round)
