"""Local fine-tuning: each client trains an adapter of its own, and nothing is shared."""

import jax

from feddpa_jax.adapters.lora import take
from feddpa_jax.fed.method import (
    FedState,
    Method,
    Metrics,
    Parts,
    RoundData,
    need,
    new_adapters,
    put,
)


def local(parts: Parts) -> Method:
    """Local training over the given engine and initialisation."""

    def init(key: jax.Array, id_C: jax.Array) -> FedState:
        return FedState(
            global_=None,
            local_C=new_adapters(parts.new_adapter, jax.random.split(key)[1], id_C),
        )

    def round(state: FedState, data: RoundData, *, key: jax.Array) -> tuple[FedState, Metrics]:
        own_C = take(need(state.local_C), data.participants)
        own_C, metrics = parts.engine.train(own_C, data.chunks("local"), key=key)
        return FedState(None, put(need(state.local_C), data.participants, own_C)), {
            "local": metrics
        }

    return Method(init, round)
