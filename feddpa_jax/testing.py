"""Tiny random models, in memory or as the files that people have, for tests without a download."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.hf.families import write_hf_config
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.load import TINY
from feddpa_jax.hf.names import GGUF, file_name
from feddpa_jax.hf.tokenizer import byte_tokenizer
from feddpa_jax.models.decoder import Model, parameter_shapes, random_model
from feddpa_jax.models.model_config import ModelConfig, Rope


def tiny_config(**changes: Any) -> ModelConfig:
    """The built-in tiny model's configuration with some fields changed.

    >>> tiny_config(layers=3).layers
    3
    """
    values = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    return ModelConfig(**values | changes)


def tiny_model(key: int = 0, dtype: str = "float32", **changes: Any) -> Model:
    """A random model of `tiny_config(**changes)`."""
    return random_model(tiny_config(**changes), jax.random.key(key), dtype)


def tiny_parameters(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 parameters by our path, norm scales too; large enough that logits differ."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for path, shape in parameter_shapes(config).items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if path.endswith("scale"):
            parameters[path] = 1 - np.float32(config.norm_offset) + noise / 4
        else:
            parameters[path] = noise * np.float32(config.width**-0.5)
    return parameters


def write_tiny_hf_folder(
    path: Path | str,
    config: ModelConfig | None = None,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
) -> Path:
    """Writes a Hugging Face model folder with the byte tokenizer.

    Args:
      path: the folder; made if need be.
      config: `tiny_config()` if None.
      seed: of `tiny_parameters`, whose values the folder holds.
      dtype: float32, bfloat16 or float16.
      shards: number of safetensors files; more than one come with an index.

    Returns:
      The folder.
    """
    from safetensors.numpy import save_file

    folder, config = Path(path), config or tiny_config()
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", write_hf_config(config))
    byte_tokenizer().save(folder)
    tensors = {}
    for ours, array in tiny_parameters(config, seed).items():
        name, transpose = file_name(ours, FAMILIES[config.family].names)
        turned = array.T if transpose else array
        tensors[name] = np.array(turned, jnp.dtype(dtype), order="C")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        own = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_tiny_gguf(
    path: Path | str, config: ModelConfig | None = None, seed: int = 0, kernels: str = "F16"
) -> Path:
    """Writes a GGUF file with the values of `tiny_parameters`, as llama.cpp's converter would.

    Norms and biases are float32. The tokenizer is the byte tokenizer with one more
    token, "th", and unused ones up to the vocabulary's size. Of the windows and local ropes, those
    of Gemma 3 and Mistral are stored.

    Args:
      path: the file.
      config: `tiny_config(vocab_size=260)` if None; 258 tokens at least.
      seed: of `tiny_parameters`.
      kernels: what kernels are stored as: F16, or a quantization that the `gguf` package writes,
        such as Q8_0.

    Returns:
      The file.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    kind = GGMLQuantizationType[kernels]
    config = config or tiny_config(vocab_size=260)
    architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.family, config.family)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    _add_rope(writer, config)
    if config.window is not None:
        writer.add_sliding_window(config.window)
    if architecture == "gemma3":
        _add_pattern(writer, config)
    _add_tokenizer(writer, config.vocab_size)
    for ours, array in tiny_parameters(config, seed).items():
        name, transpose = file_name(ours, GGUF)
        turned = array.T if transpose else array
        if architecture == "llama" and ".q_proj" in ours:
            turned = _interleave(turned, config.heads)
        elif architecture == "llama" and ".k_proj" in ours:
            turned = _interleave(turned, config.kv_heads)
        elif ours.endswith("scale"):
            turned = turned + np.float32(config.norm_offset)
        turned = np.ascontiguousarray(turned, np.float32)
        if array.ndim == 1:
            writer.add_tensor(name, turned)
        else:
            writer.add_tensor(name, quantize(turned, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _add_rope(writer: Any, config: ModelConfig) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.scaling == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    if config.rope.scaling == "llama3":
        plain_F = Rope(config.rope.theta).frequencies(config.head_dim)
        divisor_F = plain_F / config.rope.frequencies(config.head_dim)
        writer.add_tensor("rope_freqs.weight", divisor_F.astype(np.float32))
    if config.local_rope is not None and config.local_rope.theta != 1e4:
        writer.add_rope_freq_base_swa(config.local_rope.theta)


def _add_pattern(writer: Any, config: ModelConfig) -> None:
    local = [layer in config.local_layers for layer in range(config.layers)]
    if local != [(layer + 1) % 6 > 0 for layer in range(config.layers)]:
        writer.add_sliding_window_pattern(local)


def _add_tokenizer(writer: Any, size: int) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.backend.get_vocab()
    tokens = [*sorted(ids, key=ids.__getitem__), "th"]
    tokens += [f"<unused{i}>" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    # 1 is an ordinary token, 3 a control token.
    writer.add_token_types([3 if i == tokenizer.eos_id else 1 for i in range(len(tokens))])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(tokenizer.eos_id)


def _interleave(weight_EX: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to pairs, as llama.cpp's converter writes them."""
    halves = weight_EX.reshape(heads, 2, weight_EX.shape[0] // heads // 2, *weight_EX.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight_EX.shape)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
