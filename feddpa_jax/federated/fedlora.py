"""FedLoRA: FedDPA-F's training; at inference the personalized copy alone answers.

The baseline of that name in Yang et al., arXiv 2403.19211, section 4.
"""

from feddpa_jax.federated.feddpa_f import feddpa_f
from feddpa_jax.federated.method import METHODS, Method, Parts


@METHODS.register(title="FedLoRA", answers_with="local", personalizes=True)
def fedlora(parts: Parts) -> Method:
    """FedLoRA over the given engine, initialisation and average."""
    return feddpa_f(parts)
