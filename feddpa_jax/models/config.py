"""The shape of a decoder, read from a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from feddpa_jax.types import UserError

SUPPORTED = ("llama",)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Llama-style decoder.

    Attributes:
      vocab_size: V.
      width: D.
      layers: L.
      heads: N, query heads.
      kv_heads: K, key/value heads; N is a multiple of it.
      head_dim: H; N * H need not be D.
      ffn: F.
      rope_theta: base of the rotary frequencies.
      rms_eps: epsilon of the RMS norms.
      tied: whether the head is the embedding.
      max_positions: longest sequence that the model was made for.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = False
    max_positions: int = 2048

    def __post_init__(self):
        """Refuses shapes that no decoder has."""
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model configuration: {name} is {value!r}, not a positive integer")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model configuration: {self.heads} query heads are not a multiple of "
                f"{self.kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise UserError(
                f"model configuration: head_dim {self.head_dim} is odd; rope needs pairs"
            )

    def target_sizes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every map that an adapter can be put on."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.width, query),
            "k_proj": (self.width, key),
            "v_proj": (self.width, key),
            "o_proj": (query, self.width),
            "gate_proj": (self.width, self.ffn),
            "up_proj": (self.width, self.ffn),
            "down_proj": (self.ffn, self.width),
        }

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str) -> "ModelConfig":
        """Reads a parsed `config.json`.

        Args:
          raw: the file's content.
          source: its name, for messages.

        Raises:
          UserError: an unsupported model type or feature, or a missing size.
        """
        model_type = raw.get("model_type")
        if model_type not in SUPPORTED:
            raise UserError(
                f"{source}: model_type {model_type!r} is not supported; "
                f"supported: {', '.join(SUPPORTED)}"
            )
        # transformers 5 writes `rope_parameters`, older releases `rope_scaling` and `rope_theta`.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise UserError(f"{source}: rope scaling {rope_type!r} is not supported; use 'default'")
        for switch in ("attention_bias", "mlp_bias"):
            if raw.get(switch):
                raise UserError(f"{source}: {switch} is not supported for {model_type}")
        if raw.get("hidden_act", "silu") != "silu":
            raise UserError(
                f"{source}: hidden_act {raw['hidden_act']!r} is not supported; use 'silu'"
            )
        required = {
            "vocab_size": "vocab_size",
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "ffn": "intermediate_size",
        }
        missing = [name for name in required.values() if name not in raw]
        if missing:
            raise UserError(f"{source}: {', '.join(missing)} missing")
        sizes = {ours: raw[theirs] for ours, theirs in required.items()}
        return cls(
            **sizes,
            kv_heads=raw.get("num_key_value_heads") or sizes["heads"],
            head_dim=raw.get("head_dim") or sizes["width"] // sizes["heads"],
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            max_positions=int(raw.get("max_position_embeddings", 2048)),
        )
