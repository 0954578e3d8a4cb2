"""Local fine-tuning: each client trains an adapter of its own, and nothing is shared."""

import jax

from feddpa_jax.federated.method import (
    METHODS,
    FedState,
    Method,
    Metrics,
    Parts,
    fresh_local,
    local_phase,
    need,
)
from feddpa_jax.training.rounds import RoundData


@METHODS.register(
    title="local training without a server", answers_with="local", phases={"local": False}
)
def local(parts: Parts) -> Method:
    """Local training over the given engine and initialisation."""

    def init(key: jax.Array) -> FedState:
        return FedState(None, fresh_local(parts, jax.random.split(key)[1]))

    def round(state: FedState, data: RoundData, *, key: jax.Array) -> tuple[FedState, Metrics]:
        own, metrics = local_phase(parts, need(state.local), data, phase="local", key=key)
        return FedState(None, own), {"local": metrics}

    return Method(init, round)
