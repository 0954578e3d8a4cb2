"""The configuration: typed YAML, every field with a default, a range and a description."""

from feddpa_jax.config.loading import difference, dotted, load_config, to_yaml
from feddpa_jax.config.sections import Config, describe_fields

__all__ = ["Config", "describe_fields", "difference", "dotted", "load_config", "to_yaml"]
