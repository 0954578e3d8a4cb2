"""Codes and scales against the definitions, written out group by group."""

from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.quantization.layout import LAYOUTS, NF4
from feddpa_jax.quantization.quantized import dequantize, zeros
from feddpa_jax.quantization.quantizing import assemble, quantize, quantize_rows
from feddpa_jax.types import UserError

# Whole groups, one that is not full, less than one, and several with a rest.
SIZES = [(128, 3), (33, 5), (1, 2), (150, 4)]


def weights(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def by_definition(kernel_DE: np.ndarray, layout: str) -> np.ndarray:
    """Every weight as its group's nearest value, with a scale of 16 bits."""
    group, found = LAYOUTS[layout].group, np.zeros_like(kernel_DE)
    for column in range(kernel_DE.shape[1]):
        for start in range(0, kernel_DE.shape[0], group):
            own = kernel_DE[start : start + group, column]
            largest = np.abs(own).max()
            scale = np.float32(np.float16(largest / 127 if layout == "int8" else largest))
            values = scale * (
                np.arange(-127, 128) if layout == "int8" else np.array(NF4, np.float32)
            )
            nearest = np.abs(own[:, None] - values[None]).argmin(axis=1)
            found[start : start + group, column] = values[nearest]
    return found


@pytest.mark.parametrize("layout", ["int8", "nf4"])
def test_every_weight_is_its_groups_nearest_value(layout: str):
    for shape in SIZES:
        kernel_DE = weights(shape)
        held = quantize(kernel_DE, layout, "float32")
        found_DE = np.asarray(dequantize(held))
        assert found_DE.shape == held.shape == shape
        np.testing.assert_allclose(found_DE, by_definition(kernel_DE, layout), rtol=1e-6)
        # Exactly what stands for itself: the same weights again.
        again = np.asarray(dequantize(quantize(found_DE, layout, "float32")))
        assert again.tobytes() == found_DE.tobytes()


def test_the_code_book_is_made_of_normal_quantiles():
    """QLoRA's: 8 and 9 even shares of the two halves of a normal distribution, brought to ±1."""
    quantile, most = NormalDist().inv_cdf, 0.9677083
    upper = [quantile(most + (0.5 - most) * i / 8) for i in range(8)]
    lower = [-quantile(most + (0.5 - most) * i / 7) for i in range(7)]
    values = np.array(sorted([*upper, 0.0, *lower]))
    np.testing.assert_allclose(NF4, values / values.max(), atol=2e-6)


@pytest.mark.parametrize(("layout", "most"), [("int8", 0.5 / 127), ("nf4", (1 - 0.6961928) / 2)])
def test_errors_are_at_most_half_a_step(layout: str, most: float):
    kernel_DE = weights((256, 8))
    error_DE = np.abs(np.asarray(dequantize(quantize(kernel_DE, layout, "float32"))) - kernel_DE)
    # Float16 rounds scales by up to 2^-11.
    bound = np.abs(kernel_DE).max() * (most + 2**-11)
    assert bound / 3 < error_DE.max() <= bound


@pytest.mark.parametrize("layout", ["int8", "nf4"])
def test_groups_of_zeros_and_of_what_is_no_number(layout: str):
    kernel_DE = weights((128, 3))
    kernel_DE[:64, 0] = 0
    kernel_DE[:, 1] = 1e-12  # Too small for a scale.
    kernel_DE[70, 2] = np.nan
    found_DE = np.asarray(dequantize(quantize(kernel_DE, layout, "float32")))
    assert not found_DE[:64, 0].any() and found_DE[64:, 0].any() and not found_DE[:, 1].any()
    # A damaged file stays one, in its own group alone.
    assert np.isnan(found_DE[70, 2]) and np.isfinite(found_DE[:64]).all()


def test_weights_that_no_scale_can_hold_are_refused():
    message = r"model.quantize: weights of up to 1e\+30 are too large for nf4; leave it null"
    with pytest.raises(UserError, match=message):
        quantize_rows(np.full((1, 4), 1e30, np.float32), "nf4")


def test_pieces_of_outputs_make_the_whole():
    rows_ED = weights((7, 100))
    whole = quantize(rows_ED.T, "nf4", "bfloat16")
    pieces = (quantize_rows(rows_ED[a:b], "nf4") for a, b in ((0, 2), (2, 3), (3, 7)))
    parts = assemble(pieces, "nf4", (100, 7), "bfloat16")
    for name in ("codes", "scale"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert dequantize(whole).dtype == jnp.bfloat16
    empty = zeros("nf4", (100, 7), "bfloat16")
    assert empty.nbytes == whole.nbytes == 2 * 7 * (32 + 2)
