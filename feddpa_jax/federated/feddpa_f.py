"""FedDPA-F: global rounds first, then one local training per client.

Yang et al., *Dual-Personalizing Adapter for Federated Foundation Models*, arXiv 2403.19211,
Algorithm 1 (FedDPA-F): after the last global round every client fine-tunes a copy of the final
global adapter on its own data; the copy is its local adapter, and inference mixes the two.
"""

import dataclasses

from feddpa_jax.federated.fedit import fedit
from feddpa_jax.federated.method import METHODS, Lora, Method, Part, Phase


@METHODS.register(title="FedDPA-F", answers_with="instance", personalizes=True)
def feddpa_f(lora: Lora) -> Method:
    """FedDPA-F: FedIT, and a local adapter that starts from its final global one."""
    shared = fedit(lora)
    personalization = Phase(
        "personalization",
        train=("local",),
        start={"local": "global"},
        after=True,
    )
    return dataclasses.replace(
        shared,
        parts={**shared.parts, "local": Part("client", None)},
        phases=(*shared.phases, personalization),
    )
