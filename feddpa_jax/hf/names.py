"""Parameter names: one table per family, between the files' names and our dotted paths.

A row is (the file's name, our path, whether the file's matrix is [out, in] and ours [in, out]); `*`
stands for the layer's number. The same rows read files and write them. A row without a path is for
tensors that old checkpoints store and no model uses.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from feddpa_jax.types import UserError

Table = tuple[tuple[str, str | None, bool], ...]

_BLOCK_ELEMENTS = 1 << 20

_MODEL: Table = (
    ("model.embed_tokens.weight", "embed.embedding", False),
    ("model.norm.weight", "norm.scale", False),
    ("lm_head.weight", "lm_head.kernel", True),
    ("model.layers.*.input_layernorm.weight", "layers.*.attention_norm.scale", False),
    ("model.layers.*.self_attn.q_proj.weight", "layers.*.attention.q_proj.kernel", True),
    ("model.layers.*.self_attn.k_proj.weight", "layers.*.attention.k_proj.kernel", True),
    ("model.layers.*.self_attn.v_proj.weight", "layers.*.attention.v_proj.kernel", True),
    ("model.layers.*.self_attn.o_proj.weight", "layers.*.attention.o_proj.kernel", True),
    ("model.layers.*.mlp.gate_proj.weight", "layers.*.mlp.gate_proj.kernel", True),
    ("model.layers.*.mlp.up_proj.weight", "layers.*.mlp.up_proj.kernel", True),
    ("model.layers.*.mlp.down_proj.weight", "layers.*.mlp.down_proj.kernel", True),
)
_BIASES: Table = (
    ("model.layers.*.self_attn.q_proj.bias", "layers.*.attention.q_proj.bias", False),
    ("model.layers.*.self_attn.k_proj.bias", "layers.*.attention.k_proj.bias", False),
    ("model.layers.*.self_attn.v_proj.bias", "layers.*.attention.v_proj.bias", False),
)
_MORE_BIASES: Table = (
    ("model.layers.*.self_attn.o_proj.bias", "layers.*.attention.o_proj.bias", False),
    ("model.layers.*.mlp.gate_proj.bias", "layers.*.mlp.gate_proj.bias", False),
    ("model.layers.*.mlp.up_proj.bias", "layers.*.mlp.up_proj.bias", False),
    ("model.layers.*.mlp.down_proj.bias", "layers.*.mlp.down_proj.bias", False),
)
_HEAD_NORMS: Table = (
    ("model.layers.*.self_attn.q_norm.weight", "layers.*.attention.q_norm.scale", False),
    ("model.layers.*.self_attn.k_norm.weight", "layers.*.attention.k_norm.scale", False),
)
_MLP_NORM: Table = (
    ("model.layers.*.post_attention_layernorm.weight", "layers.*.mlp_norm.scale", False),
)

LLAMA: Table = (
    *_MODEL,
    *_MLP_NORM,
    *_BIASES,
    *_MORE_BIASES,
    ("model.layers.*.self_attn.rotary_emb.inv_freq", None, False),
)
MISTRAL: Table = (*_MODEL, *_MLP_NORM)
QWEN2: Table = (*_MODEL, *_MLP_NORM, *_BIASES)
QWEN3: Table = (*_MODEL, *_MLP_NORM, *_BIASES, *_MORE_BIASES, *_HEAD_NORMS)
# Gemma's norm behind attention has the name that others give the norm before the MLP.
GEMMA3: Table = (
    *_MODEL,
    *_BIASES,
    *_MORE_BIASES,
    *_HEAD_NORMS,
    (
        "model.layers.*.post_attention_layernorm.weight",
        "layers.*.attention_post_norm.scale",
        False,
    ),
    ("model.layers.*.pre_feedforward_layernorm.weight", "layers.*.mlp_norm.scale", False),
    ("model.layers.*.post_feedforward_layernorm.weight", "layers.*.mlp_post_norm.scale", False),
)
# llama.cpp has one set of names for all families; a row is only used where the family has the part.
GGUF: Table = (
    ("token_embd.weight", "embed.embedding", False),
    ("output_norm.weight", "norm.scale", False),
    ("output.weight", "lm_head.kernel", True),
    ("blk.*.attn_norm.weight", "layers.*.attention_norm.scale", False),
    ("blk.*.attn_q.weight", "layers.*.attention.q_proj.kernel", True),
    ("blk.*.attn_k.weight", "layers.*.attention.k_proj.kernel", True),
    ("blk.*.attn_v.weight", "layers.*.attention.v_proj.kernel", True),
    ("blk.*.attn_output.weight", "layers.*.attention.o_proj.kernel", True),
    ("blk.*.attn_q.bias", "layers.*.attention.q_proj.bias", False),
    ("blk.*.attn_k.bias", "layers.*.attention.k_proj.bias", False),
    ("blk.*.attn_v.bias", "layers.*.attention.v_proj.bias", False),
    ("blk.*.attn_output.bias", "layers.*.attention.o_proj.bias", False),
    ("blk.*.ffn_gate.bias", "layers.*.mlp.gate_proj.bias", False),
    ("blk.*.ffn_up.bias", "layers.*.mlp.up_proj.bias", False),
    ("blk.*.ffn_down.bias", "layers.*.mlp.down_proj.bias", False),
    ("blk.*.attn_q_norm.weight", "layers.*.attention.q_norm.scale", False),
    ("blk.*.attn_k_norm.weight", "layers.*.attention.k_norm.scale", False),
    ("blk.*.post_attention_norm.weight", "layers.*.attention_post_norm.scale", False),
    ("blk.*.ffn_norm.weight", "layers.*.mlp_norm.scale", False),
    ("blk.*.post_ffw_norm.weight", "layers.*.mlp_post_norm.scale", False),
    ("blk.*.ffn_gate.weight", "layers.*.mlp.gate_proj.kernel", True),
    ("blk.*.ffn_up.weight", "layers.*.mlp.up_proj.kernel", True),
    ("blk.*.ffn_down.weight", "layers.*.mlp.down_proj.kernel", True),
    # Llama 3's rope scaling, which the configuration has already.
    ("rope_freqs.weight", None, False),
)


def file_name(path: str, table: Table) -> tuple[str, bool]:
    """The name under which a file stores the parameter of a path, and whether it is transposed.

    >>> file_name("layers.3.mlp.up_proj.kernel", LLAMA)
    ('model.layers.3.mlp.up_proj.weight', True)
    """
    number = re.search(r"\d+", path)
    general = re.sub(r"\.\d+\.", ".*.", path)
    name, transpose = next((row[0], row[2]) for row in table if row[1] == general)
    return name.replace("*", number.group()) if number else name, transpose


def map_names(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], table: Table, source: str
) -> dict[str, tuple[str, bool]]:
    """Finds our path for every name in a file.

    Args:
      names: the file's tensor names.
      shapes: our paths and their shapes.
      table: the family's table.
      source: the file, for messages.

    Returns:
      {name: (our path, transpose)}, the largest first: what stands twice while it is converted then
      stands beside little else. A tied model's spare head is left out.

    Raises:
      UserError: a tensor that we do not know, one that is missing, or one that is there twice.
    """
    found: dict[str, str] = {}
    mapped: dict[str, tuple[str, bool]] = {}
    for name in names:
        path, transpose = _lookup(name, table, source)
        if path is None or (path == "lm_head.kernel" and path not in shapes):
            continue  # A tied model may store its embedding a second time.
        if path not in shapes:
            raise UserError(f"{source}: tensor {name!r} ({path}) has no place in the configuration")
        if path in found:
            raise UserError(f"{source}: {path} is set twice, by {found[path]!r} and {name!r}")
        found[path] = name
        mapped[name] = (path, transpose)
    missing = sorted(set(shapes) - set(found))
    if missing:
        raise UserError(f"{source}: no tensor for {missing[0]} ({len(missing)} missing in all)")
    return dict(sorted(mapped.items(), key=lambda item: -math.prod(shapes[item[1][0]])))


def _lookup(name: str, table: Table, source: str) -> tuple[str | None, bool]:
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    general = re.sub(r"\.\d+\.", ".*.", name)
    for theirs, ours, transpose in table:
        # Files of the bare decoder (`LlamaModel`) have no "model." before their names.
        if general in (theirs, theirs.removeprefix("model.")):
            return ours and ours.replace("*", number.group() if number else ""), transpose
    raise UserError(
        f"{source}: unknown tensor {name!r}; the model has parts that are not supported"
    )


def check_layers(names: Iterable[str], layers: int, source: str) -> None:
    """Refuses a configuration with more layers than there are tensors of.

    Beforehand, because the shapes of a thousand layers take long to find.

    Raises:
      UserError: there are fewer.

    >>> check_layers(["model.layers.1.mlp.up_proj.weight"], 2, "file")
    """
    numbers = (re.search(r"\.(\d{1,9})\.", name) for name in names)
    found = max((1 + int(number.group(1)) for number in numbers if number), default=0)
    if layers > found:
        raise UserError(
            f"{source}: no tensor for layers.{found}; the configuration has {layers} layers"
        )


def check_shape(
    name: str, found: tuple[int, ...], path: str, expected: tuple[int, ...], source: str
) -> None:
    """Refuses a tensor whose shape, as the file has it, is not the configuration's."""
    if found != expected:
        raise UserError(
            f"{source}: tensor {name!r} ({path}) has shape {list(found)}, "
            f"the configuration needs {list(expected)}"
        )


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor in pieces of about a million elements, in which files are read.

    >>> list(row_blocks((3, 1 << 19)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    step = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
