"""Costs follow the device and the model."""

import pytest

from feddpa_jax.models.sizes import known_sizes
from feddpa_jax.training.costs import CPU_COSTS, Costs, costs_on


@pytest.mark.parametrize(
    ("name", "length"), [("smollm2-135m", 400), ("llama-3.2-1b", 1933), ("llama-2-7b", 3217)]
)
def test_attention_costs_as_much_as_the_maps(name, length):
    config = known_sizes(name)
    assert costs_on("cpu", config) == CPU_COSTS
    gpu, tpu = costs_on("gpu", config), costs_on("tpu", config)
    assert gpu.attention_length == tpu.attention_length == length
    assert gpu.row(length) == 2 * length
    # A compilation is worth the FLOPs that the device computes meanwhile.
    assert gpu.compilation * config.frozen_flops == pytest.approx(3e15, rel=1e-3)
    assert tpu.compilation == pytest.approx(10 * gpu.compilation, rel=1e-3)


def test_a_row_by_hand():
    # 100 (1 + 100 / 400) = 125, and 400 (1 + 1) = 800.
    costs = Costs(block=64, compilation=5000, attention_length=400)
    assert (costs.row(100), costs.row(400)) == (125.0, 800.0)


def test_a_block_costs_an_h200_what_was_measured():
    """24 ms with 4,000 tokens of SmolLM2, and 50 with 16,400; a 7B model's start is no longer."""
    config = known_sizes("smollm2-135m")
    start = costs_on("gpu", config).block
    assert (start + 4_000) / (start + 16_400) == pytest.approx(24 / 50, rel=0.05)
    wide = known_sizes("llama-2-7b")
    flops = [costs_on("gpu", c).block * c.frozen_flops / c.layers for c in (config, wide)]
    assert flops == pytest.approx([1e11, 1e11], rel=1e-2)
    assert costs_on("tpu", config).block == 1024
