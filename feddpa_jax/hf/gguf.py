"""Llama-family models in GGUF files: configuration, tokenizer fields and tensors.

GGUF stores the query and key maps of Llama models with the two halves of every head interleaved
(the layout of llama.cpp's rope); here they are put back into Hugging Face's half-split order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.hf.names import GGUF, Place, check_shape, map_names, row_blocks
from feddpa_jax.models.config import ModelConfig, Rope
from feddpa_jax.models.decoder import parameter_shapes
from feddpa_jax.types import UserError


class GgufFile(NamedTuple):
    """An opened file: metadata by name, and its tensors (where they lie, not their values)."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Any]


def open_gguf(path: Path) -> GgufFile:
    """Opens a GGUF file.

    Raises:
      UserError: missing, not GGUF, or cut short.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: not a GGUF file (its first four bytes are not 'GGUF')")
    try:
        reader = _reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, LookupError, OverflowError, TypeError) as error:
        raise UserError(f"{path}: damaged or cut short ({error}); get the file again") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    size = path.stat().st_size
    for tensor in tensors.values():
        if tensor.data_offset + tensor.n_bytes > size:
            raise UserError(f"{path}: cut short within tensor {tensor.name!r}; get the file again")
    return GgufFile(path, fields, tensors)


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        """Slices a plain view of the mapped file: a `memmap` takes three times as long to slice."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return PlainReader(path)


def gguf_config(file: GgufFile) -> ModelConfig:
    """The decoder's sizes from the metadata.

    Raises:
      UserError: an architecture other than llama, a feature that is not supported, or a missing
        field.
    """
    architecture = file.fields.get("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{file.path}: architecture {architecture!r} is not supported; supported: llama"
        )

    def field(name: str) -> Any:
        if name not in file.fields:
            raise UserError(f"{file.path}: no field {name!r}; get the file again")
        return file.fields[name]

    heads, width = int(field("llama.attention.head_count")), int(field("llama.embedding_length"))
    head_dim = int(file.fields.get("llama.attention.key_length", width // max(1, heads)))
    _check_features(file, head_dim)
    return ModelConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        width=width,
        layers=int(field("llama.block_count")),
        heads=heads,
        kv_heads=int(file.fields.get("llama.attention.head_count_kv", heads)),
        head_dim=head_dim,
        ffn=int(field("llama.feed_forward_length")),
        rope=Rope(float(file.fields.get("llama.rope.freq_base", 10000.0))),
        # float32 in the file: 1e-5 comes back as 9.999999747378752e-06.
        rms_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        tied="output.weight" not in file.tensors,
        max_positions=int(field("llama.context_length")),
    )


def _check_features(file: GgufFile, head_dim: int) -> None:
    scaling = file.fields.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise UserError(f"{file.path}: rope scaling is not supported; use a model without it")
    if file.fields.get("llama.expert_count", 0):
        raise UserError(f"{file.path}: mixtures of experts are not supported; use a dense model")
    rotated = file.fields.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise UserError(
            f"{file.path}: rope over {rotated} of {head_dim} dimensions of a head is not supported"
        )


def read_gguf(file: GgufFile, config: ModelConfig, place: Place) -> dict[str, Any]:
    """All parameters by our dotted path: what `place` makes of their float32 rows.

    Raises:
      UserError: an unknown or missing tensor, a wrong shape, or an unknown quantization.
    """
    shapes = parameter_shapes(config)
    source = str(file.path)
    heads = {"q_proj.kernel": config.heads, "k_proj.kernel": config.kv_heads}
    parameters = {}
    for name, (path, transpose) in map_names(file.tensors, shapes, GGUF, source).items():
        found = tuple(int(size) for size in reversed(file.tensors[name].shape))
        expected = shapes[path][::-1] if transpose else shapes[path]
        check_shape(name, found, path, expected, source)
        blocks = _blocks(file, name)
        interleaved = next((heads[end] for end in heads if path.endswith(end)), None)
        if interleaved:
            blocks = [split_halves(np.concatenate(list(blocks)), interleaved)]
        parameters[path] = place(path, shapes[path], blocks, transpose)
    return parameters


def _blocks(file: GgufFile, name: str) -> Iterator[np.ndarray]:
    from gguf.quants import dequantize

    tensor = file.tensors[name]
    stored = tensor.data
    for rows in row_blocks(stored.shape):
        # Read from the file and not through the reader's map, whose pages would stay in memory.
        raw = np.fromfile(
            file.path,
            stored.dtype,
            count=stored[rows].size,
            offset=tensor.data_offset + rows.start * stored.strides[0],
        ).reshape(stored[rows].shape)
        try:
            yield dequantize(raw, tensor.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"{file.path}: tensor {name!r} is stored as {tensor.tensor_type.name}, "
                "which is not supported; use another quantization"
            ) from None


def split_halves(weight_ED: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs (0, H/2, 1, H/2 + 1, ...) to halves (0, 1, ...).

    >>> import numpy as np
    >>> split_halves(np.arange(4.0)[:, None], heads=1)[:, 0].tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    size_out, size_in = weight_ED.shape
    pairs = weight_ED.reshape(heads, size_out // heads // 2, 2, size_in)
    return pairs.swapaxes(1, 2).reshape(size_out, size_in)
