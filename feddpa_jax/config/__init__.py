"""The configuration: typed YAML, every field with a default, a range and a description."""

from feddpa_jax.config.config import Config, describe_fields, dotted
from feddpa_jax.config.loading import difference, load_config, to_yaml

__all__ = ["Config", "describe_fields", "difference", "dotted", "load_config", "to_yaml"]
