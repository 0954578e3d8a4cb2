"""The built-in rules; importing this registers them."""

from feddpa_jax.weighting.rules import (  # noqa: F401
    calibrated,
    gate,
    held_out_gate,
    learned_layers,
    least_entropy,
    similarity,
    tokens,
)
