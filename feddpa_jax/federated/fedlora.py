"""FedLoRA: FedDPA-F's training; at inference the personalized copy alone answers.

The baseline of that name in Yang et al., arXiv 2403.19211, section 4.
"""

from feddpa_jax.federated.feddpa_f import feddpa_f
from feddpa_jax.federated.method import METHODS, Lora, Method


@METHODS.register(title="FedLoRA", answers_with="local", personalizes=True)
def fedlora(lora: Lora) -> Method:
    """FedLoRA: FedDPA-F judged by its local adapters."""
    return feddpa_f(lora)
