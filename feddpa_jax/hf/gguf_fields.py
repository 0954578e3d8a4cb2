"""Fields of a GGUF file's architecture: read, without effect on the logits, or refused.

The tables follow llama.cpp. A test compares them with the names that the `gguf` package knows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from feddpa_jax.hf.config_fields import shown
from feddpa_jax.types import UserError

_READ = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.type",
    }
)
_READ_BY_ARCHITECTURE = {
    "llama": frozenset({"attention.sliding_window"}),
    "gemma3": frozenset(
        {
            "attention.key_length_swa",
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "attention.value_length_swa",
            "rope.dimension_count_swa",
            "rope.freq_base_swa",
        }
    ),
}
# What embeddings are pooled with, what experts there would be, and what is in the tensors' shapes.
_NO_EFFECT = frozenset(
    {
        "attention.layer_norm_epsilon",
        "decoder_start_token_id",
        "pooling_type",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "tensor_data_layout",
        "vocab_size",
    }
)
# With these values a field says what holds without it. Every other field of the architecture is
# accepted where it says that there is none of its feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "embedding_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
}
_NONE = (0, False, None, "", [])


class Fields:
    """The fields of the file's architecture, by their names without its prefix."""

    def __init__(self, fields: Mapping[str, Any], source: str):
        """Args: all fields of the file, and its name for messages."""
        self.source = source
        self.architecture = fields.get("general.architecture")
        prefix = f"{self.architecture}."
        self._own = {
            name.removeprefix(prefix): value
            for name, value in fields.items()
            if name.startswith(prefix)
        }

    def get(self, name: str, default: Any = None) -> Any:
        """A field that need not be there."""
        return self._own.get(name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """A field that holds an integer; it must be there if there is no default.

        Raises:
          UserError: it is missing, or something else.
        """
        value = self._required(name, default)
        if type(value) is not int:
            raise UserError(
                f"{self.source}: field {self.architecture}.{name} is {shown(value)}, not an "
                "integer; use another file"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A field that holds a number: 1e-5 where float32 has 9.999999747378752e-06.

        Raises:
          UserError: it is missing, or something else.
        """
        value = self._required(name, default)
        if type(value) not in (int, float) or not np.isfinite(np.float32(value)):
            raise UserError(
                f"{self.source}: field {self.architecture}.{name} is {shown(value)}, not a finite "
                "number; use another file"
            )
        return decimal(value)

    def _required(self, name: str, default: Any) -> Any:
        value = self._own.get(name, default)
        if value is None:
            raise UserError(
                f"{self.source}: no field '{self.architecture}.{name}'; get the file again"
            )
        return value

    def check(self) -> None:
        """Refuses fields that would change the computation and that we do not compute with.

        Raises:
          UserError: the file has one.
        """
        for name, value in self._own.items():
            if name in known_fields(str(self.architecture)) - set(_NEUTRAL):
                continue
            if value not in _NEUTRAL.get(name, _NONE):
                raise UserError(
                    f"{self.source}: {name} {shown(value)} is not supported for "
                    f"{self.architecture}; use a model without it"
                )


def known_fields(architecture: str) -> frozenset[str]:
    """The fields that are read, have no effect, or have one with some values.

    >>> "attention.sliding_window" in known_fields("qwen2")
    False
    """
    own = _READ_BY_ARCHITECTURE.get(architecture, frozenset())
    return _READ | own | _NO_EFFECT | set(_NEUTRAL)


def decimal(value: float) -> float:
    """What a float32 field was before it was rounded.

    >>> decimal(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(value)))
