"""The built-in rules; importing this registers them."""

from feddpa_jax.weighting.rules import calibrated, gate, similarity  # noqa: F401
