"""Damaged safetensors and GGUF files: refused in one line, or the values that the file holds."""

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import GGUFReader
from hypothesis import example, given
from hypothesis import strategies as st

from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.load import Base, load_base
from feddpa_jax.hf.names import map_names
from feddpa_jax.models.decoder import parameter_shapes
from feddpa_jax.testing import tiny_config, tiny_parameters, write_tiny_gguf, write_tiny_hf_folder
from feddpa_jax.types import UserError
from tests.fuzz.conftest import fuzz

CONFIG = tiny_config(width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=8, vocab_size=260)
_ROOT = Path(tempfile.mkdtemp(prefix="feddpa-fuzz-"))
FOLDER = write_tiny_hf_folder(_ROOT / "folder", CONFIG, dtype="float16")
SAFETENSORS = (FOLDER / "model.safetensors").read_bytes()
(FOLDER / "model.safetensors").unlink()
GGUF = write_tiny_gguf(_ROOT / "whole.gguf", CONFIG).read_bytes()
GGUF_HEADER = GGUFReader(_ROOT / "whole.gguf").data_offset
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
# Counts and sizes that a reader must not believe.
SIZES = [0, 1, 2, 255, 2**31, 2**32, 2**40, 2**61, 2**63, 2**64 - 1]


def teardown_module() -> None:
    shutil.rmtree(_ROOT, ignore_errors=True)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, header: int) -> bytes:
    """Bits turned, bytes replaced, a size put in, a piece left out or doubled, the end cut off."""
    content = bytearray(whole)
    # One in eight anywhere, the others where they matter.
    place = st.integers(0, (len(whole) if draw(st.integers(0, 7)) == 0 else header) - 1)
    kind = draw(st.sampled_from(["bit", "bits", "bytes", "size", "cut", "drop", "double"]))
    start = draw(place)
    if kind in ("bit", "bits"):
        for at in [start, *(draw(st.lists(place, max_size=3)) if kind == "bits" else [])]:
            content[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "bytes":
        new = draw(st.binary(min_size=1, max_size=8))
        content[start : start + len(new)] = new
    elif kind == "size":
        content[start : start + 8] = struct.pack("<Q", draw(st.sampled_from(SIZES)))
    elif kind == "cut":
        del content[start:]
    else:
        piece = content[start : start + draw(st.integers(1, 24))]
        content[start : start + len(piece)] = b"" if kind == "drop" else piece * 2
    return bytes(content)


def header_of(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


HEADER = header_of(SAFETENSORS)
DATA = SAFETENSORS[8 + struct.unpack("<Q", SAFETENSORS[:8])[0] :]
ODD: list[Any] = [None, -1, 0, 1, 2**63, 1.5, "", "F32", "BF16", "F8_E4M3", [], [0], [0, 2**64], {}]


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A header that is JSON, but lies."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "copy", "drop"]))
        entry = header[name]
        if not isinstance(entry, dict):
            continue
        if what == "drop":
            del header[name]
        elif what in ("name", "copy"):
            other = draw(st.sampled_from([*sorted(header), "extra", "norm.weight", "\n", ""]))
            header[other] = entry if what == "copy" else header.pop(name)
        elif draw(st.booleans()) or not isinstance(entry.get(what), list | str) or not entry[what]:
            entry[what] = draw(st.sampled_from(ODD))
        elif what == "dtype" or not isinstance(entry[what], list):
            entry["dtype"] = "BF16"  # As many bytes: other values.
        else:
            value = draw(st.sampled_from([-1, 0, 1, 2**40, 2**63, 2**64, "8", None]))
            entry[what][draw(st.integers(0, len(entry[what]) - 1))] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + DATA


def loaded(path: Path) -> Base | None:
    """The model, or None where the file is refused as it should be."""
    try:
        return load_base(str(path), "float32")
    except UserError as error:
        message = str(error)
        assert str(_ROOT) in message and "\n" not in message and len(message) < 600
        return None


def held(content: bytes) -> Callable[[str], np.ndarray]:
    """The tensors of a safetensors file, read by its description alone."""
    header, start = header_of(content), 8 + struct.unpack("<Q", content[:8])[0]

    def read(name: str) -> np.ndarray:
        entry = header[name]
        first, last = entry["data_offsets"]
        raw = content[start + first : start + last]
        return np.frombuffer(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])

    return read


_seen: list[bool] = []


@given(st.one_of(damaged(SAFETENSORS, len(SAFETENSORS) - len(DATA)), edited()))
@fuzz(120)
@example(SAFETENSORS)
@example(b"")
@example(SAFETENSORS + b"\0" * 8)
@example(struct.pack("<Q", 2**63) + SAFETENSORS[8:])
@example(SAFETENSORS.replace(b'"F16"', b'"F64"', 1))
@example(SAFETENSORS[:8] + b"[" * (len(SAFETENSORS) - 8))
@example(SAFETENSORS.replace(b"model.norm.weight", b"model.no\\nm.weight"))
@example(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995)
def test_safetensors(content: bytes):
    path = FOLDER / "model.safetensors"
    path.write_bytes(content)
    base = loaded(FOLDER)
    _seen.append(base is not None)
    if base is None:
        return
    read, names = held(content), set(header_of(content)) - {"__metadata__"}
    shapes = parameter_shapes(base.model.config)
    mapped = map_names(names, shapes, FAMILIES["llama"].names, "file")
    for name, (ours, transpose) in mapped.items():
        stored = read(name).astype(np.float32)
        np.testing.assert_array_equal(
            base.model.parameters()[ours], stored.T if transpose else stored, err_msg=name
        )


EXPECTED = {
    path: array.astype(np.float16 if array.ndim > 1 else np.float32)
    for path, array in tiny_parameters(CONFIG).items()
}


def _with_field(name: bytes, value: int) -> bytes:
    """The file with another value in a field of 32 bits."""
    at = GGUF.index(name) + len(name) + 4
    return GGUF[:at] + struct.pack("<I", value) + GGUF[at + 4 :]


@given(damaged(GGUF, GGUF_HEADER))
@fuzz(120)
@example(GGUF)
@example(GGUF[:24])
@example(GGUF[:8] + struct.pack("<Q", 2**62) + GGUF[16:])  # tensors
@example(GGUF[:16] + struct.pack("<Q", 2**62) + GGUF[24:])  # fields
@example(_with_field(b"llama.block_count", 10**9))
@example(_with_field(b"llama.attention.head_count", 0))
@example(_with_field(b"llama.embedding_length", 2**31))
def test_gguf(content: bytes):
    path = _ROOT / "damaged.gguf"
    path.write_bytes(content)
    base = loaded(path)
    _seen.append(base is not None)
    if base is None or len(content) != len(GGUF) or content[GGUF_HEADER:] != GGUF[GGUF_HEADER:]:
        return
    for name, array in base.model.parameters().items():
        np.testing.assert_array_equal(array, EXPECTED[name], err_msg=name)


def test_some_are_read_and_most_refused():
    """The comparisons above took place."""
    assert 3 < sum(_seen) < 0.5 * len(_seen)
