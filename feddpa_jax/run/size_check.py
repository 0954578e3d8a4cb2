"""Sizes that a configuration asks for and its base cannot have."""

from feddpa_jax.config import Config
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.types import UserError


def check_sizes(config: Config, model: ModelConfig) -> None:
    """Refuses sizes that the base cannot have, before arrays are made of them.

    Raises:
      UserError: names the field.
    """
    for problem in size_problems(config, model):
        raise UserError(problem)


def size_problems(config: Config, model: ModelConfig) -> list[str]:
    """What is wrong with sizes that the base cannot have, each with its field."""
    found = []
    for name, value in (
        ("data.max_length", config.data.max_length),
        ("eval.max_new_tokens", config.eval.max_new_tokens),
    ):
        if value > model.max_positions:
            found.append(
                f"{name}: {value} is more than the {model.max_positions} positions of "
                f"{config.model.path}; lower it"
            )
    sizes = model.target_sizes()
    widest = max(max(sizes[target]) for target in config.lora.targets)
    ranks = {"lora.rank": config.lora.rank, "lora.ranks": max(config.lora.ranks or (1,))}
    for name, rank in ranks.items():
        if rank > widest:
            found.append(
                f"{name}: {rank} is more than the {widest} rows of the widest adapted "
                f"map of {config.model.path}; lower it"
            )
    return found
