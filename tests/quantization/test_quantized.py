"""Models that compute with quantized maps: the numbers of plain ones, and no plain copy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.lora import bank_of, init_adapter
from feddpa_jax.adapters.mix import Term, branches_of
from feddpa_jax.devices.contraction import contract_frozen
from feddpa_jax.devices.mesh import make_mesh, put_base
from feddpa_jax.inference.decode import decode, prefill
from feddpa_jax.models.decoder import Model, causal_mask, random_model
from feddpa_jax.models.model_config import ModelConfig
from feddpa_jax.models.model_shapes import model_shapes
from feddpa_jax.models.remat import Remat
from feddpa_jax.models.sizes import known_sizes
from feddpa_jax.quantization.quantized import dequantize
from feddpa_jax.quantization.quantizing import quantize
from feddpa_jax.training.engine import make_engine
from feddpa_jax.training.memory import bytes_on_one, estimate_memory
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.training.step import Frozen
from tests.federated.player import player_for
from tests.quantization.quantized_models import plain, quantized
from tests.training.test_engine import CONFIG, make_data, new_adapter

KEY = jax.random.key(3)


@pytest.mark.parametrize("layout", ["int8", "nf4"])
def test_a_product_and_its_gradient_are_those_of_the_plain_weights(layout: str):
    w = quantize(np.random.default_rng(1).standard_normal((40, 6)), layout, "float32")
    x_TD = jax.random.normal(KEY, (3, 40))

    def product(x_TD, w):
        return contract_frozen("TD,DE->TE", x_TD, w, jnp.float32)

    for weights in (w, dequantize(w)):
        y_TE, pull = jax.vjp(lambda x_TD, weights=weights: product(x_TD, weights), x_TD)
        (dx_TD,) = pull(jnp.cos(y_TE))
        np.testing.assert_allclose(y_TE, x_TD @ dequantize(w), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dx_TD, jnp.cos(y_TE) @ dequantize(w).T, rtol=1e-5, atol=1e-5)


def test_training_equals_that_on_the_plain_weights(tmp_path):
    """A round of FedIT: the adapter, which all steps of all clients are in, and every loss."""
    held = quantized(random_model(CONFIG, KEY), "nf4")
    data = make_data(epochs=1)
    # Of one length, so that one step is compiled.
    short = [[e for e in own if 6 <= len(e.tokens_T) < 12][:3] for own in data.examples]
    examples = tuple(tuple(own or data.examples[0]) for own in short)
    found = []
    for name, model in (("held", held), ("plain", plain(held))):
        engine = make_engine(model, scale=2.0, dropout=0.3, learning_rate=1e-2)
        given = (engine, new_adapter, dataclasses.replace(data, examples=examples))
        player = player_for("fedit", *given, tmp_path / name, rounds=1)
        state, metrics = player.round(player.start(), 0)
        found.append((state.server["global"], [phase.losses for phase in metrics.values()]))
        assert engine.compilations() == 1
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-5)


# Two layers of 0.85 million weights, 3.4 MB in float32; the largest maps have 1 MB.
DEEP = ModelConfig(32, 128, 2, 2, 2, 64, 2048, tied=True)
TOKENS = 8


def temporary(program, *given) -> int:
    """Bytes of a compiled program besides what it is given and gives back."""
    stats = jax.jit(program).lower(*given).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


def test_no_plain_copy_is_held_between_forward_and_backward_pass_or_tokens():
    """A map or two at once are, in float32; never a layer's three, or all layers'."""
    model = quantized(random_model(DEEP, KEY, jnp.bfloat16), "nf4")
    one = 4 * DEEP.width * DEEP.ffn
    sizes = {"q_proj": DEEP.target_sizes()["q_proj"]}
    adapter = init_adapter(KEY, sizes, layers=DEEP.layers, rank=1)
    tokens_BT = jnp.zeros((1, TOKENS), jnp.int32)
    length_B = jnp.full(1, TOKENS)

    def loss(adapter, model: Model):
        rows = branches_of([Term(bank_of(adapter))], jnp.zeros(1, jnp.int32), scale=1.0)
        mask_BTS = causal_mask(jnp.ones_like(tokens_BT))
        hidden_BTD, _ = model.hidden(tokens_BT, jnp.arange(TOKENS)[None], mask_BTS, rows)
        return model.logits(hidden_BTD).mean()

    def answer(model: Model):
        given = (model, (), prefill(model, (), tokens_BT, length_B), length_B)
        return decode(*given, stop_ids=(1,), pad_id=0, max_new_tokens=TOKENS)

    assert temporary(jax.grad(loss), adapter, model) < 2.5 * one
    assert temporary(answer, model) < 2.5 * one


@pytest.mark.parametrize(
    ("layout", "remat", "size", "total"),
    [
        ("int8", "none", 7.406, 15.6),
        ("nf4", "none", 3.966, 12.1),
        ("nf4", "cheap", 3.966, 9.6),
        ("nf4", "layer", 3.966, 5.9),
    ],
)
def test_seven_billion_weights_by_count(layout: str, remat: Remat, size: float, total: float):
    """32 layers of 4 x 4096^2 + 3 x 4096 x 11008 weights at 8.5 or 4.25 bits; embedding and head.

    With adapters of rank 8 of eight clients, at blocks of 2 x 512.
    """
    config = known_sizes("llama-2-7b")
    paths = [f"layers.{layer}.{part}" for layer in range(32) for part in _MAPS]
    shapes = model_shapes(config, "bfloat16", dict.fromkeys(paths, layout))
    model = Model(put_base(shapes.params, make_mesh(1, 1), "tensor"), *_rest(shapes))
    assert bytes_on_one(model) / 1e9 == pytest.approx(size, abs=1e-3)
    targets = {target: config.target_sizes()[target] for target in ("q_proj", "v_proj")}
    adapter = jax.eval_shape(lambda: init_adapter(KEY, targets, layers=32, rank=8))
    given = (model, {"global": adapter}, Frozen({}, {}))
    shape = BlockShape(2, 512, 1024)
    options = {"slots": 8, "shape": shape, "remat": remat, "on_cpu": False, "limit": None}
    found = estimate_memory(*given, **options)
    assert found.base == bytes_on_one(model)
    assert found.total / 1e9 == pytest.approx(total, abs=0.1)
    # A fused kernel keeps no weights of 32 heads, in all layers or, recomputed, in one.
    fused = dataclasses.replace(model, attention="cudnn")
    fewer = estimate_memory(fused, *given[1:], **options)
    layers, size = {"none": (32, 2), "cheap": (32, 2), "layer": (1, 2)}[remat]
    assert found.total - fewer.total == size * 32 * 1024 * 512 * layers


_MAPS = [
    *(f"attention.{name}_proj.kernel" for name in "qkvo"),
    *(f"mlp.{name}_proj.kernel" for name in ("gate", "up", "down")),
]


def _rest(model: Model):
    return model.definition, model.config


@pytest.mark.parametrize("mode", ["tensor", "full"])
def test_a_split_base_is_split_and_computes_the_same(mode: str):
    """Its computation with `mesh.base: tensor`, where products see a part of the weights."""
    config = ModelConfig(64, 128, 1, 4, 2, 16, 256)
    model = quantized(random_model(config, KEY), "int8")
    split = Model(put_base(model.params, make_mesh(1, 4), mode), *_rest(model))
    mlp = split.params["layers"][0]["mlp"]
    for name, whole, wanted in (
        ("up_proj", (4, 32, 256), (4, 32, 64)),  # by output
        ("down_proj", (8, 32, 128), (2, 32, 128) if mode == "tensor" else (8, 32, 32)),  # by group
    ):
        codes = mlp[name]["kernel"].codes
        assert codes.shape == whole and codes.sharding.shard_shape(whole) == wanted
    assert bytes_on_one(split) < 0.3 * bytes_on_one(model)
    if mode == "full":
        return
    tokens_BT = jnp.arange(8)[None]

    @jax.jit
    def states(model: Model):
        return model.hidden(tokens_BT, tokens_BT, causal_mask(jnp.ones_like(tokens_BT)))[0]

    np.testing.assert_allclose(states(split), states(model), rtol=0, atol=1e-5)
