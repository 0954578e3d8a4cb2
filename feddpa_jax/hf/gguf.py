"""Models in GGUF files: configuration, tokenizer fields and tensors.

What a file means is what llama.cpp and its converter make of it. The query and key maps of its
architecture "llama" have the two halves of every head interleaved (the layout of llama.cpp's rope);
here they are put back into Hugging Face's half-split order. The norms of Gemma are stored with
their offset added; here it is taken off again.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.files.problems import reason
from feddpa_jax.hf.config_fields import shown
from feddpa_jax.hf.gguf_blocks import float_blocks, raw_blocks, split_blocks
from feddpa_jax.hf.gguf_fields import Fields, decimal
from feddpa_jax.hf.names import GGUF, check_shape, map_names
from feddpa_jax.hf.placing import Placer
from feddpa_jax.models.decoder import parameter_shapes
from feddpa_jax.models.model_config import ModelConfig, Rope
from feddpa_jax.quantization.quantizing import Pieces
from feddpa_jax.types import UserError

# What each of Llama 3's rope frequencies is divided by.
_ROPE_DIVISORS = "rope_freqs.weight"
_QKV = ("q_proj", "k_proj", "v_proj")
# The tensor of a layer with each map's bias.
_BIASES = {
    path.split(".")[-2]: name.removeprefix("blk.*.")
    for name, path, _ in GGUF
    if path is not None and path.endswith(".bias")
}
# The biases that a Llama can have, and the family that has them: Llama's attention has a fourth
# one, and a Llama with three is Qwen2 by another name.
_ATTENTION, _MLP = (*_QKV, "o_proj"), ("gate_proj", "up_proj", "down_proj")
_BIASED_FAMILIES = {
    (): "llama",
    _QKV: "qwen2",
    _ATTENTION: "llama",
    _MLP: "llama",
    (*_ATTENTION, *_MLP): "llama",
}


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
    except (ValueError, LookupError, ArithmeticError, TypeError, RecursionError, OSError) as error:
        raise UserError(
            f"{path}: damaged or cut short ({reason(error)}); get the file again"
        ) from None
    _check_places(path, reader)
    return GgufFile(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def stored_types(file: GgufFile) -> str:
    """The tensors' types, that of the most weights first, as "Q4_1, Q8_0, F32"."""
    weights: dict[str, int] = {}
    for tensor in file.tensors.values():
        name = tensor.tensor_type.name
        weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    return ", ".join(sorted(weights, key=lambda name: (-weights[name], name)))


def _check_places(path: Path, reader: Any) -> None:
    """Refuses tensors that do not follow each other without gaps, as llama.cpp does."""
    expected, size = reader.data_offset, path.stat().st_size
    for tensor in reader.tensors:
        if tensor.data_offset != expected:
            raise UserError(
                f"{path}: damaged: tensor {tensor.name!r} is at byte {tensor.data_offset} instead "
                f"of {expected}; get the file again"
            )
        if tensor.data_offset + tensor.n_bytes > size:
            raise UserError(f"{path}: cut short within tensor {tensor.name!r}; get the file again")
        expected += -(-int(tensor.n_bytes) // int(reader.alignment)) * int(reader.alignment)


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        """Slices a plain view of the mapped file: a `memmap` takes three times as long to slice.

        Past the file's end a slice would be empty, and a damaged count would be counted to its end.
        """

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            start, order = int(offset), override_order or self.byte_order
            end = start + np.dtype(dtype).itemsize * int(count)
            if not 0 <= start <= end <= len(self.data):
                raise ValueError(f"the file ends before byte {end}")
            found = self.data[start:end].view(dtype)
            # As the library does, in half its time: a tokenizer has a hundred thousand strings.
            return found if order == "I" else found.view(found.dtype.newbyteorder(order))

    with np.errstate(over="raise"):
        return PlainReader(path)


def gguf_config(file: GgufFile) -> ModelConfig:
    """The decoder that the metadata and the tensors' names describe.

    Raises:
      UserError: an architecture or a feature that is not supported, or a missing field.
    """
    fields = Fields(file.fields, str(file.path))
    if not isinstance(fields.architecture, str) or fields.architecture not in _FEATURES:
        raise UserError(
            f"{file.path}: architecture {shown(fields.architecture)} is not supported; "
            f"supported: {', '.join(_FEATURES)}"
        )
    fields.check()
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise UserError(f"{file.path}: no field 'tokenizer.ggml.tokens'; get the file again")
    heads, width = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", width // max(1, heads))
    _check_heads(fields, head_dim)
    config = ModelConfig(
        vocab_size=len(tokens),
        width=width,
        layers=fields.integer("block_count"),
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=fields.integer("feed_forward_length"),
        rope=_rope(fields, file, head_dim),
        rms_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in file.tensors,
        max_positions=fields.integer("context_length"),
    )
    return dataclasses.replace(config, **_FEATURES[fields.architecture](fields, file, config))


def _check_heads(fields: Fields, head_dim: int) -> None:
    for name, what in (
        ("attention.value_length", "values"),
        ("attention.key_length_swa", "local keys"),
        ("attention.value_length_swa", "local values"),
        ("rope.dimension_count", "rope"),
        ("rope.dimension_count_swa", "local rope"),
    ):
        size = fields.get(name, head_dim)
        if size != head_dim:
            raise UserError(
                f"{fields.source}: {what} over {shown(size)} of {head_dim} dimensions of a head is "
                "not supported; use another model"
            )


def _llama(fields: Fields, file: GgufFile, config: ModelConfig) -> dict[str, Any]:
    tensors = file.tensors
    biased = tuple(target for target, name in _BIASES.items() if f"blk.0.{name}" in tensors)
    # llama.cpp's converter stores no window of Mistral's, and llama.cpp reads none.
    window = fields.integer("attention.sliding_window", 0)
    if biased not in _BIASED_FAMILIES or (window and biased):
        raise UserError(
            f"{fields.source}: biases of {', '.join(biased)} are not supported in this "
            "combination; use a model without biases"
        )
    if window:
        layers = tuple(range(config.layers))
        return {"family": "mistral", "window": window, "local_layers": layers}
    return {"family": _BIASED_FAMILIES[biased], "biased": biased}


def _qwen2(fields: Fields, file: GgufFile, config: ModelConfig) -> dict[str, Any]:
    return {"family": "qwen2", "biased": _QKV}


def _qwen3(fields: Fields, file: GgufFile, config: ModelConfig) -> dict[str, Any]:
    return {"family": "qwen3", "qk_norm": True}


def _gemma3(fields: Fields, file: GgufFile, config: ModelConfig) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 0)
    # A number, every which layer is global; or for each layer whether it is local.
    pattern = fields.get("attention.sliding_window_pattern", 6)
    layers = range(config.layers)
    if type(pattern) is int and pattern >= 0:
        local = [layer for layer in layers if not pattern or layer % pattern < pattern - 1]
    elif isinstance(pattern, list) and len(pattern) == config.layers:
        local = [layer for layer, is_local in zip(layers, pattern, strict=True) if is_local]
    else:
        raise UserError(
            f"{fields.source}: attention.sliding_window_pattern {shown(pattern)} is neither a "
            f"number nor a list for {config.layers} layers; use another file"
        )
    # The file has no field for it: llama.cpp knows the 27B model by its depth.
    scaled = config.width // config.heads if config.layers == 62 else config.head_dim
    return {
        "family": "gemma3_text",
        "window": window or None,
        "local_layers": tuple(local) if window else (),
        # llama.cpp's default; a scaling is of the global layers alone.
        "local_rope": Rope(fields.number("rope.freq_base_swa", 10000.0)),
        "norm_offset": 1.0,
        "post_norms": True,
        "qk_norm": True,
        "activation": "gelu_tanh",
        "query_scale": float(scaled) ** -0.5,
        "embedding_scale": float(config.width) ** 0.5,
    }


_FEATURES: dict[str, Callable[[Fields, GgufFile, ModelConfig], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}


def _rope(fields: Fields, file: GgufFile, head_dim: int) -> Rope:
    theta = fields.number("rope.freq_base", 10000.0)
    # llama.cpp takes a factor without a type as linear; "scale_linear" is the field's old name.
    scaling = fields.get("rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise UserError(
            f"{fields.source}: rope scaling {shown(scaling)} is not supported; "
            "supported: none, linear, llama3"
        )
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0))
    linear = scaling == "linear" and factor not in (0, 1)
    if _ROPE_DIVISORS not in file.tensors:
        return Rope(theta, "linear", factor) if linear else Rope(theta)
    if linear:
        raise UserError(f"{fields.source}: rope is scaled in two ways, which is not supported")
    return _llama3_rope(file, theta, head_dim)


def _llama3_rope(file: GgufFile, theta: float, head_dim: int) -> Rope:
    """The scaling whose result, what each frequency is divided by, the file stores.

    Raises:
      UserError: the divisors are not those of any Llama 3 scaling.
    """
    divisor_F = np.concatenate(list(float_blocks(file.path, file.tensors[_ROPE_DIVISORS]))).ravel()
    plain_F = Rope(theta).frequencies(head_dim)
    if divisor_F.shape == plain_F.shape and np.isfinite(divisor_F).all() and divisor_F.min() > 0:
        factor = decimal(divisor_F.max())
        if factor == 1:
            return Rope(theta)
        # 1 / divisor = (1 - share) / factor + share, and share = (turns - 1) / (4 - 1), where turns
        # are those in the original positions: the first divided frequency tells how many these are.
        first = int(np.argmax(divisor_F > 1))
        share = (1 / divisor_F[first] - 1 / factor) / (1 - 1 / factor)
        original = float((1 + 3 * share) * 2 * math.pi / plain_F[first])
        # First what all releases of Llama 3 have.
        for positions in (8192, round(original), math.floor(original)):
            rope = Rope(theta, "llama3", factor, original_positions=max(1, positions))
            if np.allclose(rope.frequencies(head_dim), plain_F / divisor_F, rtol=1e-4, atol=0):
                return rope
    raise UserError(
        f"{file.path}: {_ROPE_DIVISORS} is not the rope scaling of Llama 3 with low and high "
        "frequency factors 1 and 4; use a model with that or without scaling"
    )


def read_gguf(file: GgufFile, config: ModelConfig, place: Placer) -> dict[str, Any]:
    """All parameters by our dotted path: what `place` makes of them.

    Raises:
      UserError: an unknown or missing tensor, a wrong shape, or an unknown quantization.
    """
    shapes = parameter_shapes(config)
    source = str(file.path)
    interleaved = file.fields.get("general.architecture") == "llama"
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads} if interleaved else {}
    offset = np.float32(config.norm_offset)
    parameters = {}
    for name, (path, transpose) in map_names(file.tensors, shapes, GGUF, source).items():
        tensor, shape = file.tensors[name], shapes[path]
        found = tuple(int(size) for size in reversed(tensor.shape))
        check_shape(name, found, path, shape[::-1] if transpose else shape, source)
        module, kind = path.split(".")[-2:]
        layout = place.kept(path, tensor.tensor_type.name)
        if layout is not None:
            pieces = (split_blocks(raw, layout) for raw in raw_blocks(file.path, tensor))
            if module in heads:
                pieces = [_joined(pieces, heads[module])]
            parameters[path] = place.keep(shape, layout, pieces)
            continue
        blocks = float_blocks(file.path, tensor)
        if module in heads:
            blocks = [split_halves(np.concatenate(list(blocks)), heads[module])]
        elif kind == "scale" and offset:
            blocks = [np.concatenate(list(blocks)) - offset]
        parameters[path] = place(path, shape, blocks, transpose)
    return parameters


def gguf_layouts(file: GgufFile, config: ModelConfig, place: Placer) -> dict[str, str]:
    """By path, what `read_gguf` would lay quantized maps out in."""
    mapped = map_names(file.tensors, parameter_shapes(config), GGUF, str(file.path))
    found = {p: place.layout(p, file.tensors[n].tensor_type.name) for n, (p, _) in mapped.items()}
    return {path: layout for path, layout in found.items() if layout is not None}


def _joined(pieces: Iterable[Pieces], heads: int) -> Pieces:
    """All outputs' pieces as one, with each head's in half-split order."""
    held = list(pieces)
    return {
        name: split_halves(np.concatenate([piece[name] for piece in held]), heads)
        for name in held[0]
    }


def split_halves(weight_EX: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs (0, H/2, 1, H/2 + 1, ...) to halves (0, 1, ...).

    >>> import numpy as np
    >>> split_halves(np.arange(4.0), heads=1).tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    size_out, *rest = weight_EX.shape
    pairs = weight_EX.reshape(heads, size_out // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(weight_EX.shape)
