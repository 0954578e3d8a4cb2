"""Sizes of well-known models, for plans and measurements without their weights."""

from feddpa_jax.models.model_config import ModelConfig, Rope
from feddpa_jax.types import UserError

# As in the models' config.json.
_LLAMA_3_ROPE = Rope(
    theta=500000.0,
    scaling="llama3",
    factor=32.0,
    low_frequency=1.0,
    high_frequency=4.0,
    original_positions=8192,
)
SIZES: dict[str, ModelConfig] = {
    "smollm2-135m": ModelConfig(
        49152, 576, 30, 9, 3, 64, 1536, rope=Rope(theta=1e5), tied=True, max_positions=8192
    ),
    "llama-3.2-1b": ModelConfig(
        128256, 2048, 16, 32, 8, 64, 8192, rope=_LLAMA_3_ROPE, tied=True, max_positions=131072
    ),
    "llama-2-7b": ModelConfig(32000, 4096, 32, 32, 32, 128, 11008, max_positions=4096),
}


def known_sizes(name: str) -> ModelConfig:
    """The sizes of a model by its name.

    Raises:
      UserError: there is no such name.

    >>> known_sizes("llama-2-7b").layers
    32
    """
    if name not in SIZES:
        raise UserError(f"model.path: random:{name} is not known; known: {', '.join(SIZES)}")
    return SIZES[name]
