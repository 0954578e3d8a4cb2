"""Scoring and answering on several devices: the numbers and texts of one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.devices.mesh import make_mesh, mesh_of, put_base
from feddpa_jax.hf.load import load_base
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.models.decoder import Model
from feddpa_jax.types import TokenizedExample

ONE = load_base("tiny", "float32").model
LAYERS, WIDTH = ONE.config.layers, ONE.config.width
COUNT = 21


@jax.jit
def bank() -> dict:
    sizes = {t: ONE.config.target_sizes()[t] for t in ("q_proj", "down_proj")}
    fresh = [init_adapter(jax.random.key(s), sizes, layers=LAYERS, rank=2) for s in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(9), leaf.shape), stacked
    )


ALL = bank()
ADAPTERS = Adapters(
    jax.tree.map(lambda leaf: leaf[:1], ALL), jax.tree.map(lambda leaf: leaf[1:], ALL), 2.0
)


def on_mesh(clients: int, model: int) -> Model:
    mesh = make_mesh(clients, model)
    return dataclasses.replace(ONE, params=put_base(ONE.params, mesh, "tensor"))


def weights(kind: str) -> list:
    """(g, l) of every request: each layer's, or the gates of its client."""
    rng = np.random.default_rng(2)
    if kind == "layers":
        return [(1 - w, w) for w in rng.random((COUNT, LAYERS)).astype(np.float32)]
    gates = [
        TokenGate(
            rng.normal(size=(LAYERS, WIDTH)).astype(np.float32),
            np.zeros(LAYERS, np.float32),
            np.ones(LAYERS, bool),
        )
        for _ in range(3)
    ]
    return [(gates[i % 3].rest(), gates[i % 3]) for i in range(COUNT)]


def requests(kind: str) -> list[Request]:
    rng = np.random.default_rng(1)
    found = []
    for i, (g, l) in enumerate(weights(kind)):
        length = int(rng.integers(9, 15))
        tokens_T = rng.integers(3, ONE.config.vocab_size, length).astype(np.int32)
        found.append(Request(i % 3, TokenizedExample(tokens_T, length - 3), g, l))
    return found


def scorer(model: Model, asked: list[Request]) -> Scorer:
    return Scorer.for_examples(model, ADAPTERS, [own.example for own in asked], block_tokens=32)


# As many devices as there are; and two groups of two, each of which shares the base.
@pytest.mark.parametrize(("clients", "model", "kind"), [(8, 1, "layers"), (2, 2, "gates")])
def test_scores_are_those_of_one_device(clients: int, model: int, kind: str):
    asked, calls = requests(kind), {}
    several = on_mesh(clients, model)
    assert mesh_of(ONE.params) is None and mesh_of(several.params) is not None
    found = {}
    for name, base in (("one", ONE), ("several", several)):
        done: list[int] = []
        found[name] = scorer(base, asked)(asked, done.append, layers=(0, LAYERS), tokens=True)
        assert sum(done) == COUNT
        calls[name] = len(done)
    # Each device has rows of its own.
    assert calls["several"] <= -(-calls["one"] // clients) + 1 < calls["one"]
    for field in dataclasses.fields(found["one"]):
        of_one = getattr(found["one"], field.name)
        if of_one is None:
            assert getattr(found["several"], field.name) is None
            continue
        assert len(np.unique(of_one)) > 1 or field.name == "greedy_I"
        np.testing.assert_allclose(getattr(found["several"], field.name), of_one, atol=1e-5)


def test_answers_are_those_of_one_device():
    prompts = [
        Prompt(own.client, own.example.tokens_T[:-3], own.global_weight, own.local_weight)
        for own in requests("layers")
    ]
    stops = tuple(range(0, ONE.config.vocab_size, 7))
    answers = [
        Answerer(base, ADAPTERS, stop_ids=stops, pad_id=0, max_new_tokens=6)(prompts)
        for base in (ONE, on_mesh(4, 2))
    ]
    assert len({len(answer) for answer in answers[0]}) > 2  # Devices do not end together.
    for of_one, of_several in zip(*answers, strict=True):
        assert of_one.tolist() == of_several.tolist()
