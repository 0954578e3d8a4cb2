"""What becomes of a file's tensors: arrays in the model's dtype, or quantized maps.

With `model.quantize` the maps of the layers (q, k, v, o, gate, up, down) are quantized. Embedding,
head, norms and biases are not: a head's errors go into every logit, rows of an embedding are read
one by one, and of seven billion weights both together are 4 %.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.hf.gguf_blocks import STORED
from feddpa_jax.models.decoder import parameter_shapes
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.quantization.layout import CHOICES, LAYOUTS
from feddpa_jax.quantization.quantized import Quantized
from feddpa_jax.quantization.quantizing import Pieces, assemble, empty, quantize_rows
from feddpa_jax.types import UserError

_MAP = re.compile(r"layers\.\d+\.\w+\.\w+_proj\.kernel")


class Placer(NamedTuple):
    """Puts tensors where the model computes with them.

    Attributes:
      dtype: of kernels, biases and embedding.
      quantize: what the layers' maps are quantized to; None for nothing.
    """

    dtype: str
    quantize: str | None = None

    def __call__(
        self, path: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray], transpose: bool
    ) -> jax.Array | Quantized:
        """A parameter of rows in floating point.

        Args:
          path: ours.
          shape: ours.
          blocks: consecutive rows as the file has them.
          transpose: whether the file's rows are our columns.
        """
        layout = self.layout(path)
        if layout is None:
            return self._plain(path, shape, blocks, transpose)
        if not transpose:
            blocks = [np.concatenate(list(blocks)).T]
        return self.keep(shape, layout, (quantize_rows(block, layout) for block in blocks))

    def layout(self, path: str, stored: str = "") -> str | None:
        """What a parameter is laid out in; None for floating point.

        Blocks that a GGUF file stores are kept where they are as small as what is asked for.

        Args:
          path: the parameter's.
          stored: the type of the GGUF file's tensor.

        >>> place = Placer("bfloat16", "nf4")
        >>> path = "layers.0.mlp.up_proj.kernel"
        >>> [place.layout(path, stored) for stored in ("F16", "Q8_0", "Q4_K")]
        ['nf4', 'nf4', 'q4_k']
        """
        if self.quantize is None or not _MAP.fullmatch(path):
            return None
        kept = STORED.get(stored)
        fits = kept is not None and (LAYOUTS[kept].packed or not LAYOUTS[self.quantize].packed)
        return kept if fits else self.quantize

    def kept(self, path: str, stored: str) -> str | None:
        """The layout of a GGUF file's blocks that are taken as they are; None if not taken so.

        Args: as of `layout`.
        """
        layout = self.layout(path, stored)
        return layout if layout is not None and STORED.get(stored) == layout else None

    def layouts(self, config: ModelConfig) -> dict[str, str]:
        """By path, what the quantized maps of a model are laid out in, of files other than GGUF."""
        found = {path: self.layout(path) for path in parameter_shapes(config)}
        return {path: layout for path, layout in found.items() if layout is not None}

    def keep(self, shape: tuple[int, ...], layout: str, pieces: Iterable[Pieces]) -> Quantized:
        """A map of pieces that are quantized already."""
        return assemble(pieces, layout, (shape[0], shape[1]), self.dtype)

    def _plain(
        self, path: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray], transpose: bool
    ) -> jax.Array:
        # No tensor stands twice in memory: its rows are put in their final dtype as they are read.
        array = empty(
            shape, np.dtype(np.float32 if path.endswith("scale") else jnp.dtype(self.dtype))
        )
        rows, row = array.T if transpose else array, 0
        for block in blocks:
            rows[row : row + len(block)] = block
            row += len(block)
        return jax.device_put(array, may_alias=True)


def check_choice(quantize: str | None) -> None:
    """Refuses what maps cannot be quantized to.

    Raises:
      UserError: neither None nor one of them.
    """
    if quantize is not None and quantize not in CHOICES:
        raise UserError(
            f"model.quantize: {quantize!r} is not supported; supported: {', '.join(CHOICES)}, "
            "or leave it out"
        )


def layouts_of(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The layouts of a model's quantized maps, that of the most weights first."""
    weights: dict[str, int] = {}
    for leaf in parameters.values():
        if isinstance(leaf, Quantized):
            size = leaf.shape[0] * leaf.shape[1]
            weights[leaf.layout] = weights.get(leaf.layout, 0) + size
    return tuple(sorted(weights, key=lambda name: (-weights[name], name)))
