"""A loop over stacked layers computes what layers one by one do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.lora import Branch, init_adapter
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.devices.mesh import make_mesh, put_base
from feddpa_jax.models.decoder import Model, causal_mask, from_parameters, random_model
from feddpa_jax.models.kv_cache import cache_mask, empty_cache
from feddpa_jax.models.layer_stack import STACK, stacked, stacked_layers, unstacked
from feddpa_jax.models.model_config import ModelConfig, Rope
from feddpa_jax.models.remat import Remat
from feddpa_jax.quantization.quantizing import quantize

LLAMA = ModelConfig(61, 16, 4, 4, 2, 6, 24)
# Two rounds of a layer with a window and one without, and a layer that is left over.
GEMMA = dataclasses.replace(
    LLAMA,
    layers=5,
    window=3,
    local_layers=(0, 2, 4),
    local_rope=Rope(theta=100.0),
    qk_norm=True,
    post_norms=True,
    biased=("q_proj",),
    activation="gelu_tanh",
    norm_offset=1.0,
    embedding_scale=4.0,
    tied=True,
)
# Two packed rows with padding, and one of padding alone.
SEGMENT_BT = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12, [0] * 12], jnp.int32)
POSITION_BT = jnp.array([[*range(5), *range(4), 0, 0, 0], range(12), range(12)], jnp.int32)
B, T = SEGMENT_BT.shape
TOKENS_BT = jax.random.randint(jax.random.key(9), (B, T), 1, 61)


@functools.cache
def by_layers(config: ModelConfig, quantized: bool = False) -> Model:
    model = random_model(config, jax.random.key(3))
    if not quantized:
        return model
    parameters = {
        path: quantize(np.asarray(leaf), "int8", "float32") if "_proj.kernel" in path else leaf
        for path, leaf in model.parameters().items()
    }
    return from_parameters(config, parameters)


def as_stack(model: Model) -> Model:
    return dataclasses.replace(model, params=stacked(model.params, model.config))


def branches(config: ModelConfig, bank: dict) -> tuple[Branch, ...]:
    """Two clients' adapters with dropout, and one that all share with weights of layers."""
    key_B2 = jnp.arange(2 * B, dtype=jnp.uint32).reshape(B, 2)
    client_B = jnp.array([0, 1, 0])
    gates = tuple(
        TokenGate(
            0.2 * jax.random.normal(jax.random.key(layer), (B, config.width)),
            jnp.full((B,), 0.1 * layer),
            jnp.array([True, False, True]),
        )
        for layer in range(config.layers)
    )
    own = Branch(bank, client_B, jnp.array([0.5, 1.0, 0.7]), key_B2, 2.0, 0.3)
    shared = jax.tree.map(lambda leaf: 0.5 * leaf[:1], bank)
    return own, Branch(shared, client_B, gates, key_B2, 2.0, 0.3, index=1)


@functools.cache
def bank(config: ModelConfig) -> dict:
    sizes = {target: config.target_sizes()[target] for target in ("q_proj", "down_proj")}
    adapter = init_adapter(jax.random.key(0), sizes, layers=config.layers, rank=2)
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.tree.map(
        lambda leaf: jnp.stack([leaf + 0.1 * jax.random.normal(key, leaf.shape) for key in keys]),
        adapter,
    )


def loss(model: Model, bank: dict, remat: Remat) -> jax.Array:
    hidden_BTD, _ = model.hidden(
        *(TOKENS_BT, POSITION_BT, causal_mask(SEGMENT_BT), branches(model.config, bank)),
        segment_BT=SEGMENT_BT,
        remat=remat,
    )
    weight_D = jnp.sin(jnp.arange(model.config.width))
    return jnp.where(SEGMENT_BT > 0, hidden_BTD @ weight_D, 0.0).sum() / T


gradient = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=2)


@functools.cache
def expected(config: ModelConfig, quantized: bool) -> tuple[jax.Array, dict]:
    return gradient(by_layers(config, quantized), bank(config), "none")


def check(found: tuple[jax.Array, dict], config: ModelConfig, quantized: bool = False) -> None:
    pairs = zip(*map(jax.tree.leaves, (found, expected(config, quantized))), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
        assert float(jnp.abs(other).max()) > 1e-3


@pytest.mark.parametrize(
    ("config", "quantized", "remat"),
    [
        (LLAMA, False, "none"),
        (LLAMA, False, "layer"),
        (LLAMA, True, "none"),
        (GEMMA, False, "none"),
    ],
    ids=["llama", "layer", "quantized", "gemma"],
)
def test_losses_and_gradients(config: ModelConfig, quantized: bool, remat: Remat):
    loop = as_stack(by_layers(config, quantized))
    assert stacked_layers(loop.params[STACK]) == 4
    check(gradient(loop, bank(config), remat), config, quantized)


@pytest.mark.parametrize("mode", ["tensor", "full"])
def test_a_base_that_two_devices_share(mode: str):
    """Its layers are split as they are one by one; every device has all rounds."""
    mesh = make_mesh(1, 2)
    loop = as_stack(by_layers(LLAMA))
    params = put_base(loop.params, mesh, mode)
    alone = put_base(by_layers(LLAMA).params, mesh, mode)["layers"][0]
    for one, other in zip(*map(jax.tree.leaves, (params[STACK][0], alone)), strict=True):
        assert one.sharding.shard_shape(one.shape) == (4, *other.sharding.shard_shape(other.shape))
    if mode == "tensor":
        check(gradient(dataclasses.replace(loop, params=params), bank(LLAMA), "none"), LLAMA)


def test_layers_are_there_by_number():
    """Parameters and the states between layers are those of layers one by one."""
    model = by_layers(GEMMA)
    loop = as_stack(model)
    assert list(loop.params["layers"]) == [4]
    assert loop.parameters().keys() == model.parameters().keys()
    for path, leaf in loop.parameters().items():
        np.testing.assert_array_equal(leaf, model.parameters()[path])
    given = (TOKENS_BT, POSITION_BT, causal_mask(SEGMENT_BT))
    states = jax.jit(Model.states)
    for one, other in zip(states(loop, *given), states(model, *given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_answers():
    """A step over a cache gives the same states and fills the same cache."""

    @jax.jit
    def step(base: Model) -> tuple:
        cache = empty_cache(LLAMA, B, T, jnp.float32)
        mask_BTS = cache_mask(POSITION_BT, cache._replace(position_BS=POSITION_BT))
        return base.hidden(TOKENS_BT, POSITION_BT, mask_BTS, cache=cache)

    found, other = step(as_stack(by_layers(LLAMA))), step(by_layers(LLAMA))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, other)
    assert float(jnp.abs(found[1].layers[3].k_BKHS).max()) > 0.1


def test_a_loop_is_as_long_for_many_layers_as_for_few():
    """The program of twelve layers has the products of four, forward and backward."""

    def products(layers: int) -> int:
        config = dataclasses.replace(LLAMA, layers=layers)
        lowered = gradient.lower(as_stack(by_layers(config)), bank(config), "none")
        return lowered.as_text().count("stablehlo.dot_general")

    assert products(12) == products(4) > 0


def test_what_does_not_repeat_stays():
    """Layers whose maps are held in different ways are of different kinds."""
    one, other = by_layers(LLAMA), by_layers(LLAMA, True)
    config = dataclasses.replace(LLAMA, layers=2)
    mixed = {**one.params, "layers": {0: one.params["layers"][0], 1: other.params["layers"][1]}}
    assert stacked(mixed, config) is mixed
    assert unstacked(mixed) is mixed


def test_a_loop_holds_no_weights_and_no_scores():
    """What it writes for its backward pass is of tokens: outputs of maps and what norms take."""
    loop, own = as_stack(by_layers(LLAMA)), bank(LLAMA)
    program = jax.make_jaxpr(jax.grad(lambda own: loss(loop, own, "none")))(own)
    forward = next(eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan")
    written = [v.aval.shape for v in forward.outvars]
    kernels = {leaf.shape for leaf in jax.tree.leaves(loop.params[STACK])}
    assert not kernels & set(written)
    # Of gate and up one number each.
    assert written.count((4, B, T, LLAMA.ffn)) == 2
    # Scores of pairs of tokens are computed again.
    assert (4, 2 * B, 2 * T, T) not in written
