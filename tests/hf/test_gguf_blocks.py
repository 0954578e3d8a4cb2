"""Blocks that GGUF files store: kept, and worth what the `gguf` package makes of them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as theirs
from gguf.quants import quantize

from feddpa_jax.hf.gguf_blocks import STORED, split_blocks
from feddpa_jax.hf.load import load_base
from feddpa_jax.quantization.quantized import Quantized, dequantize
from feddpa_jax.quantization.quantizing import assemble
from feddpa_jax.testing import write_tiny_gguf


def stored_rows(kind: GGMLQuantizationType) -> np.ndarray:
    """Three outputs of 512 inputs, as a file has them."""
    draw = np.random.default_rng(0)
    if kind.name != "Q4_K":
        return quantize(draw.standard_normal((3, 512)).astype(np.float32), kind)
    # The package writes none: any bytes are a block, but for its two numbers.
    weights, size = GGML_QUANT_SIZES[kind]
    block_XNY = draw.integers(0, 256, (3, 512 // weights, size)).astype(np.uint8)
    block_XNY[..., :4] = draw.uniform(-1, 1, (3, 2, 2)).astype("<f2").view(np.uint8)
    return block_XNY.reshape(3, -1)


@pytest.mark.parametrize(("stored", "layout"), STORED.items())
def test_blocks_are_worth_what_ggml_says(stored: str, layout: str):
    kind = GGMLQuantizationType[stored]
    raw_EY = stored_rows(kind)
    held = assemble([split_blocks(raw_EY, layout)], layout, (512, 3), "float32")
    np.testing.assert_allclose(dequantize(held), theirs(raw_EY, kind).T, rtol=1e-6, atol=1e-6)
    # Of Q4_K, 16 numbers of 6 bits a block take 16 bytes instead of 12.
    assert held.nbytes == raw_EY.nbytes + (3 * 2 * 4 if stored == "Q4_K" else 0)


@pytest.mark.parametrize(
    ("stored", "quantize", "layout"),
    [
        ("Q8_0", "int8", "int8"),
        ("Q8_0", "nf4", "nf4"),  # Fewer bits were asked for.
        ("Q4_1", "int8", "q4_1"),
        ("Q4_0", "nf4", "q4_0"),
        ("F16", "int8", "int8"),
    ],
)
def test_a_files_own_blocks_are_kept_where_they_are_small_enough(
    tmp_path: Path, stored: str, quantize: str, layout: str
):
    """Query and key maps too, whose outputs the file has in another order."""
    file = str(write_tiny_gguf(tmp_path / "a.gguf", seed=3, kernels=stored))
    held, whole = load_base(file, "float32", quantize), load_base(file, "float32")
    assert held.layouts == (layout,) and held.fingerprint != whole.fingerprint
    assert held.precision().startswith(f"float32, layers in {layout}, of a GGUF file of {stored}")
    shapes = load_base(file, "float32", quantize, weights=False)
    assert jax.tree.structure(shapes.model) == jax.tree.structure(held.model)
    ours, plain = held.model.parameters(), whole.model.parameters()
    assert sum(isinstance(leaf, Quantized) for leaf in ours.values()) == 14
    most = (
        {"int8": 0.01, "nf4": 0.25}.get(layout, 0.0) if stored != "Q8_0" or quantize == "nf4" else 0
    )
    for path, leaf in ours.items():
        if not isinstance(leaf, Quantized):
            np.testing.assert_array_equal(leaf, plain[path])
            continue
        error = np.abs(np.asarray(dequantize(leaf)) - np.asarray(plain[path])).max()
        # Kept blocks are the file's weights; others are off by part of a step.
        assert (error <= 1e-6) if most == 0 else (1e-6 < error < most)
