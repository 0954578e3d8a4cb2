"""Loads base models: an alias, a Hugging Face folder, a GGUF file, or a hub id."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.files.problems import reason
from feddpa_jax.hf.aliases import ALIASES, place_of
from feddpa_jax.hf.families import read_hf_config, write_hf_config
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.folder_tokenizer import folder_tokenizer
from feddpa_jax.hf.gguf import gguf_config, gguf_layouts, open_gguf, read_gguf, stored_types
from feddpa_jax.hf.gguf_tokenizer import gguf_tokenizer
from feddpa_jax.hf.names import check_layers, check_shape, map_names
from feddpa_jax.hf.placing import Placer, check_choice, layouts_of
from feddpa_jax.hf.tensors import files_of_tensors, read_json, stored_blocks, stored_shape
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer
from feddpa_jax.models.decoder import (
    Model,
    from_parameters,
    parameter_shapes,
    random_parameters,
)
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.model_shapes import model_shapes
from feddpa_jax.models.sizes import known_sizes
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import UserError

_RANDOM = "random:"
_BYTES = byte_tokenizer()
_CPU_FLAGS = Path("/proc/cpuinfo")
_DTYPES = ("auto", "float32", "bfloat16")
# Not every safetensors file: some repositories hold the same weights a second time.
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
    # Beside a base it is refused.
    "adapter_config.json",
]

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


class Base(NamedTuple):
    """A base model with its tokenizer.

    Attributes:
      model: the frozen base.
      tokenizer: its tokenizer.
      source: where it came from, as it was named.
      fingerprint: a short hash of its sizes and weights.
      hf_config: its `config.json`; made if the source has none.
      folder: the Hugging Face folder that it was read from; None for other sources.
      stored: of a GGUF file, the types that its tensors were stored in, as "Q4_1, Q8_0, F32". Else
        "".
      quantize: what the layers' maps are quantized to, as `model.quantize`; None for nothing.

    Example:
      ```
      base = fd.load_base("smollm2-135m")
      print(base.model.config.layers, base.tokenizer.encode("Hi"), base.fingerprint)
      ```
    """

    model: Model
    tokenizer: Tokenizer
    source: str
    fingerprint: str
    hf_config: dict[str, Any]
    folder: Path | None = None
    stored: str = ""
    quantize: str | None = None

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        sizes = self.model.config
        return short_repr(
            self,
            source=self.source,
            layers=sizes.layers,
            width=sizes.width,
            vocabulary=sizes.vocab_size,
            precision=self.precision(),
            fingerprint=self.fingerprint,
        )

    @property
    def layouts(self) -> tuple[str, ...]:
        """What quantized maps are laid out in, as ("nf4",); a GGUF file's own blocks are kept."""
        return layouts_of(self.model.parameters())

    def precision(self) -> str:
        """In what the weights are held, and what they were before.

        >>> load_base("tiny", "float32").precision()
        'float32'
        >>> load_base("tiny", "float32", "nf4").precision()
        'float32, layers in nf4'
        """
        held = str(self.model.dtype)
        if self.layouts:
            held += f", layers in {' and '.join(self.layouts)}"
            return f"{held}, of a GGUF file of {self.stored}" if self.stored else held
        return f"{held}, converted from a GGUF file of {self.stored}" if self.stored else held


def resolve_dtype(dtype: str) -> str:
    """What "auto" means here: bfloat16 on devices with fast bfloat16 products, else float32.

    Raises:
      UserError: neither "auto" nor one of the two.
    """
    if dtype not in _DTYPES:
        raise UserError(f"model.dtype: {dtype!r} is not supported; supported: {', '.join(_DTYPES)}")
    if dtype != "auto":
        return dtype
    if jax.default_backend() in ("gpu", "tpu"):
        return "bfloat16"
    try:
        flags = _CPU_FLAGS.read_text()
    except OSError:
        return "float32"
    return "bfloat16" if re.search(r"\b(amx_bf16|avx512_bf16)\b", flags) else "float32"


def load_base(
    path: str, dtype: str = "auto", quantize: str | None = None, *, weights: bool = True
) -> Base:
    """Loads a base model and its tokenizer.

    Args:
      path: "smollm2-135m", "gemma3-270m", "tiny", "random:NAME" (random weights in the sizes of a
        known model, see `models.sizes`), a folder, a *.gguf file, or a hub id "organisation/name".
      dtype: "float32", "bfloat16" or "auto".
      quantize: "int8" or "nf4" holds the layers' maps in so many bits; None does not.
      weights: if not, parameters have shapes alone (`jax.ShapeDtypeStruct`), and no fingerprint.

    Raises:
      UserError: the model is missing, damaged or not supported.

    >>> base = load_base("tiny", "float32")
    >>> base.model.config.layers, base.tokenizer.encode("Hi")
    (2, [39, 72])
    """
    dtype = resolve_dtype(dtype)
    check_choice(quantize)
    put = Placer(dtype, quantize)
    if path == "tiny" or path.startswith(_RANDOM):
        config = TINY if path == "tiny" else known_sizes(path.removeprefix(_RANDOM))
        source = _Source(config, _BYTES, write_hf_config(config))
        parameters = _random(config, put) if weights else None
    else:
        source, parameters = _from_files(path, put, weights)
    config, hf_config = source.config, source.hf_config
    if parameters is None:
        layouts = source.layouts if source.layouts is not None else put.layouts(config)
        model, found = model_shapes(config, dtype, layouts), ""
    else:
        model = from_parameters(config, parameters, dtype)
        found = fingerprint(model)
        if source.folder is not None or source.stored:
            hf_config = {**hf_config, "tie_word_embeddings": config.tied}
    return Base(
        model, source.tokenizer, path, found, hf_config, source.folder, source.stored, quantize
    )


class _Source(NamedTuple):
    """A base without its weights; `layouts` as of `gguf_layouts`."""

    config: ModelConfig
    tokenizer: Tokenizer
    hf_config: dict[str, Any]
    folder: Path | None = None
    stored: str = ""
    layouts: dict[str, str] | None = None


def _random(config: ModelConfig, put: Placer) -> dict[str, Any]:
    """Random weights; of maps that are quantized no more than one is held besides."""
    return {
        path: value
        if put.layout(path) is None
        else put(path, value.shape, [np.asarray(value).T], True)
        for path, value in random_parameters(config, jax.random.key(0))
    }


def _from_files(path: str, put: Placer, weights: bool) -> tuple[_Source, dict[str, Any] | None]:
    """What files hold of a base, and its weights if they are wanted.

    Raises:
      UserError: as of `load_base`.
    """
    place = place_of(path)
    if place.suffix == ".gguf" and not place.is_dir():
        file = open_gguf(place)
        with _values_of(place):
            config = gguf_config(file)
            check_layers(file.tensors, config.layers, str(place))
            tokenizer = gguf_tokenizer(file.fields, str(place))
        tokenizer.limit(config.vocab_size, str(place))
        layouts = {} if put.quantize is None else gguf_layouts(file, config, put)
        source = _Source(
            config, tokenizer, write_hf_config(config), None, stored_types(file), layouts
        )
        return source, read_gguf(file, config, put) if weights else None
    folder = place if place.exists() else _from_hub(path)
    if not folder.is_dir():
        raise UserError(f"model.path: {folder} is a file, but not *.gguf; name the model's folder")
    _check_alone(folder)
    hf_config = read_json(folder / "config.json")
    config = read_hf_config(hf_config, str(folder / "config.json"))
    tokenizer = folder_tokenizer(folder)
    tokenizer.limit(config.vocab_size, str(folder))
    parameters = None
    if weights:
        config, parameters = _read_safetensors(folder, config, put)
    return _Source(config, tokenizer, hf_config, folder), parameters


def fingerprint(model: Model) -> str:
    """A hash of sizes and 64 values of every parameter; 16 hexadecimal digits.

    Values count as bfloat16 has them, so that a model is the same in either dtype.
    """
    digest = hashlib.sha256(repr(model.config).encode())
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    ):
        # Evenly spread, and with an odd step, which does not keep to one column.
        index = np.arange(64) * (leaf.size // 64 | 1) % leaf.size
        # In memory already, there is nothing to compile for it.
        at_hand = jax.default_backend() == "cpu" and leaf.is_fully_addressable
        values = np.asarray(leaf) if at_hand else leaf
        sample = values[np.unravel_index(index, leaf.shape)]
        with np.errstate(invalid="ignore"):  # A damaged file may hold what is no number.
            digest.update(path.encode() + np.asarray(sample, jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def _check_alone(folder: Path) -> None:
    """Refuses an adapter in a base's folder: `transformers` would load it on top of its base."""
    adapter = folder / "adapter_config.json"
    if not adapter.exists():
        return
    if (folder / "config.json").exists():
        raise UserError(
            f"{adapter}: an adapter lies beside the base, and transformers would load it too; "
            "move it to a folder of its own, or merge it into the base"
        )
    raise UserError(
        f"model.path: {folder} holds an adapter and not a model; name the folder of its base, and "
        "the adapter as init.global_adapter"
    )


def _from_hub(name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(
            f"model.path: {name!r} is no alias ({', '.join(ALIASES)}, tiny, random:NAME), existing "
            "folder, *.gguf file or hub id"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # The library's errors have no common base.
        raise UserError(
            f"model.path: there is no folder {name!r}, and downloading from the hub failed "
            f"({reason(error)}); name a local folder or check the id and the connection"
        ) from None


@contextlib.contextmanager
def _values_of(file: Path) -> Iterator[None]:
    """Names the file when a value in it has the wrong type or makes no sense."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        message = str(error) if isinstance(error, UserError) else reason(error)
        raise UserError(message if str(file) in message else f"{file}: {message}") from None


def _read_safetensors(
    folder: Path, config: ModelConfig, place: Placer
) -> tuple[ModelConfig, dict[str, Any]]:
    """The parameters by our path; and the configuration, untied if the file's head differs."""
    files = files_of_tensors(folder)
    ends = ("lm_head.weight", "model.embed_tokens.weight")
    if config.tied and all(name in files for name in ends):
        # Two different matrices are kept apart whatever config.json says, as `transformers` does.
        shape = {(config.vocab_size, config.width)}
        same = {stored_shape(files[name], name) for name in ends} == shape and all(
            np.array_equal(*pair)
            for pair in zip(*(stored_blocks(files[name], name) for name in ends), strict=True)
        )
        config = dataclasses.replace(config, tied=same)
    table = FAMILIES[config.family].names
    check_layers(files, config.layers, str(folder))
    shapes = parameter_shapes(config)
    parameters = {}
    for name, (path, transpose) in map_names(files, shapes, table, str(folder)).items():
        file, shape = files[name], shapes[path]
        expected = shape[::-1] if transpose else shape
        check_shape(name, stored_shape(file, name), path, expected, str(file))
        parameters[path] = place(path, shape, stored_blocks(file, name), transpose)
    return config, parameters
