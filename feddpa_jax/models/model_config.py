"""The shape of a decoder: sizes, and the few things in which the families differ."""

import dataclasses
import math
import reprlib

import numpy as np

from feddpa_jax.types import UserError

ACTIVATIONS = ("silu", "gelu_tanh")
ROPE_SCALINGS = ("default", "linear", "llama3")
# Beyond these no model is, and shapes could not be computed with.
MOST_LAYERS = 1024
MOST = 2**31 - 1


def check_size(name: str, value: object, most: int = MOST) -> None:
    """Refuses values that cannot be an array's size.

    Raises:
      UserError: it is not an integer from 1 to `most`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UserError(f"{name} is {reprlib.repr(value)}, not a positive integer up to {most}")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
      theta: base of the frequencies.
      scaling: "default"; "linear": all frequencies are divided by `factor`; "llama3": those whose
        wavelength is long against `original_positions` are, and between `low_frequency` and
        `high_frequency` turns in `original_positions` partly (Llama 3.1).
      factor: see `scaling`.
      low_frequency: see `scaling`.
      high_frequency: see `scaling`.
      original_positions: see `scaling`.
    """

    theta: float = 10000.0
    scaling: str = "default"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_positions: int = 8192

    def __post_init__(self):
        """Refuses what gives no frequencies."""
        if self.scaling not in ROPE_SCALINGS:
            raise UserError(
                f"rope scaling {self.scaling!r} is not supported; "
                f"supported: {', '.join(ROPE_SCALINGS)}"
            )
        for name in ("theta", "factor", "low_frequency", "original_positions"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"rope: {name} is {getattr(self, name)!r}, not a positive number")
        if not self.low_frequency < self.high_frequency < math.inf:
            raise UserError(
                f"rope: the high frequency factor {self.high_frequency!r} is not above the low one "
                f"{self.low_frequency!r}"
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position of each pair, float32 [H/2].

        >>> Rope(theta=100.0).frequencies(4).round(3).tolist()
        [1.0, 0.10000000149011612]
        """
        half = head_dim // 2
        plain_F = np.float32(self.theta) ** (-np.arange(half, dtype=np.float32) / half)
        if self.scaling == "default":
            return plain_F
        if self.scaling == "linear":
            return plain_F / np.float32(self.factor)
        turns_F = self.original_positions * plain_F / (2 * math.pi)
        share_F = (turns_F - self.low_frequency) / (self.high_frequency - self.low_frequency)
        share_F = np.clip(share_F, 0.0, 1.0)
        return ((1 - share_F) * plain_F / self.factor + share_F * plain_F).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder.

    Attributes:
      vocab_size: V.
      width: D.
      layers: L.
      heads: N, query heads.
      kv_heads: K, key/value heads; N is a multiple of it.
      head_dim: H; N * H need not be D.
      ffn: F.
      family: Hugging Face's model_type.
      rope: rotary positions; of the global layers, if there are local ones.
      local_rope: rotary positions of the local layers; None for the same.
      window: how many tokens the local layers see, the current one among them.
      local_layers: the layers that see a window; the others see everything.
      rms_eps: epsilon of the RMS norms.
      norm_offset: what is added to the norms' scales (1 in Gemma).
      post_norms: norms behind attention and MLP too (Gemma).
      qk_norm: norms on each head's query and key, before rotation (Qwen3, Gemma 3).
      biased: the maps that have a bias.
      activation: of the MLP's gate, "silu" or "gelu_tanh".
      query_scale: what queries are multiplied by; None for H ** -0.5.
      embedding_scale: what embeddings are multiplied by, in the weights' dtype (Gemma).
      tied: whether the head is the embedding.
      max_positions: longest sequence that the model supports.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    family: str = "llama"
    rope: Rope = Rope()
    local_rope: Rope | None = None
    window: int | None = None
    local_layers: tuple[int, ...] = ()
    rms_eps: float = 1e-5
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    biased: tuple[str, ...] = ()
    activation: str = "silu"
    query_scale: float | None = None
    embedding_scale: float = 1.0
    tied: bool = False
    max_positions: int = 2048

    def __post_init__(self):
        """Refuses shapes that no decoder has."""
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn")
        for name in (*sizes, "max_positions", *(("window",) if self.local_layers else ())):
            most = MOST_LAYERS if name == "layers" else MOST
            check_size(f"model configuration: {name}", getattr(self, name), most)
        if not 0 < self.rms_eps < math.inf:
            raise UserError(f"model configuration: rms_eps is {self.rms_eps!r}, not positive")
        if self.query_scale is not None and not 0 < self.query_scale < math.inf:
            raise UserError(
                f"model configuration: query_scale is {self.query_scale!r}, not positive"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"model configuration: {self.heads} query heads are not a multiple of "
                f"{self.kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise UserError(
                f"model configuration: head_dim {self.head_dim} is odd; rope needs pairs"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {self.activation!r} is not supported; "
                f"supported: {', '.join(ACTIVATIONS)}"
            )
        assert all(0 <= layer < self.layers for layer in self.local_layers)
        assert set(self.biased) <= set(self.target_sizes())

    @property
    def frozen_flops(self) -> int:
        """Training FLOPs per token: the products of the layers' maps, forward and backward."""
        return 4 * self.layers * sum(a * b for a, b in self.target_sizes().values())

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
