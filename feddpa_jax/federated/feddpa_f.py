"""FedDPA-F: global rounds first, then one local training per client.

Yang et al., *Dual-Personalizing Adapter for Federated Foundation Models*, arXiv 2403.19211,
Algorithm 1 (FedDPA-F): after the last global round every client fine-tunes a copy of the final
global adapter on its own data; the copy is its local adapter, and inference mixes the two.
"""

import jax
import numpy as np

from feddpa_jax.federated.clients import LocalAdapters
from feddpa_jax.federated.fedit import fedit
from feddpa_jax.federated.method import METHODS, FedState, Method, Metrics, Parts, local_phase, need
from feddpa_jax.training.rounds import RoundData


@METHODS.register(title="FedDPA-F", answers_with="instance", personalizes=True)
def feddpa_f(parts: Parts) -> Method:
    """FedDPA-F over the given engine, initialisation and average."""
    shared = fedit(parts)

    def personalize(
        state: FedState, data: RoundData, *, key: jax.Array
    ) -> tuple[FedState, Metrics]:
        assert np.array_equal(data.participants, np.arange(len(parts.names)))
        local, metrics = local_phase(
            parts,
            LocalAdapters(parts.names, parts.store, fresh=None),
            data,
            phase="personalization",
            key=key,
            start=need(state.global_),
        )
        return FedState(state.global_, local), {"personalization": metrics}

    return shared._replace(personalize=personalize)
