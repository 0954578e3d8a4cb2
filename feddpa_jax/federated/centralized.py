"""Centralized fine-tuning: one adapter on all clients' data pooled, the bound without privacy."""

from feddpa_jax.federated.fedit import fedit
from feddpa_jax.federated.method import METHODS, Lora, Method


@METHODS.register(
    title="centralized training on the pooled data", answers_with="global", pooled=True
)
def centralized(lora: Lora) -> Method:
    """Centralized training: FedIT with a single client that holds everybody's data."""
    return fedit(lora)
