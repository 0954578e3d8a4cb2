"""FedIT: one global adapter, trained by all clients and averaged (FedAvg on LoRA).

Zhang et al., *Towards Building the Federated GPT: Federated Instruction Tuning*, arXiv 2305.05644.
"""

import jax

from feddpa_jax.federated.method import (
    METHODS,
    FedState,
    Method,
    Metrics,
    Parts,
    global_phase,
    need,
)
from feddpa_jax.training.rounds import RoundData


@METHODS.register(title="FedIT", answers_with="global")
def fedit(parts: Parts) -> Method:
    """FedIT over the given engine, initialisation and average."""

    def init(key: jax.Array) -> FedState:
        return FedState(parts.new_adapter(jax.random.split(key)[0]), None)

    def round(state: FedState, data: RoundData, *, key: jax.Array) -> tuple[FedState, Metrics]:
        _, global_key = jax.random.split(key)
        global_, metrics = global_phase(parts, need(state.global_), data, key=global_key)
        return FedState(global_, None), {"global": metrics}

    return Method(init, round)
