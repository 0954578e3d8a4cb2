"""Rules that learn: against plain re-computations, alone and beside others, and what they need."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import Adapters, dual_branches
from feddpa_jax.adapters.lora import init_adapter
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.inference import mixture
from feddpa_jax.inference.mixture import Mixture, make_mixtures
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.weighting import descent
from feddpa_jax.weighting.descent import descend
from feddpa_jax.weighting.evidence import WEIGHTS, Evidence
from feddpa_jax.weighting.looking import at_weights
from feddpa_jax.weighting.rules.held_out_gate import held_out_gate
from feddpa_jax.weighting.rules.learned_layers import learned_layers
from feddpa_jax.weighting.rules.least_entropy import least_entropy
from feddpa_jax.weighting.rules.tokens import token_gate
from feddpa_jax.weighting.weights import make_weighting
from tests.evaluate.tiny_evaluation import MODEL, SCALE, TEST, TRAIN, tokenize


def bank(*seeds: int) -> dict:
    """Random adapters of the tiny model, side by side."""
    sizes = {target: MODEL.config.target_sizes()[target] for target in ("q_proj", "v_proj")}
    fresh = [init_adapter(jax.random.key(seed), sizes, layers=2, rank=2) for seed in seeds]
    noisy = [
        jax.tree.map(lambda x, k=k: x + 0.3 * jax.random.normal(jax.random.key(k), x.shape), own)
        for k, own in enumerate(fresh)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *noisy)


ADAPTERS = Adapters(bank(0), bank(1, 2), SCALE)
DRAW = np.random.default_rng(0)
HELD_HD = DRAW.normal(size=(6, 5)).astype(np.float32) + 3.0
# The first feature tells whether an example is better off with the local adapter.
SLOPE_H = np.array([1, -1, 1, 1, -1, -1], np.float32)
HELD_HD[:, 0] += 2.0 * SLOPE_H
NLL_HW = (1.0 - SLOPE_H[:, None] * np.array(WEIGHTS) + 0.2 * DRAW.random((6, 9))).astype(np.float32)


def adam(gradient, x: np.ndarray, *, rate: float, steps: int) -> np.ndarray:
    """Adam by the paper's algorithm box, in float64."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-5)
    return x


def test_descent_is_adam():
    target = np.array([3.0, -2.0, 0.0])
    expected = adam(lambda x: 2 * (x - target), np.zeros(3), rate=0.1, steps=7)
    found = descend(
        lambda x: jnp.square(x - jnp.array(target)).sum(), jnp.zeros(3), descent.adam(0.1), steps=7
    )
    np.testing.assert_allclose(found, expected, atol=3e-5)


def plain_gate(query_BD, *, ridge: float, rate: float, steps: int) -> np.ndarray:
    """The gate in numpy, with the slope of a curve's piece in the gradient's place."""
    variance = HELD_HD.var(axis=0)
    spread = np.sqrt((variance + variance.mean()) / 2)

    def z(x):
        return np.c_[(x - HELD_HD.mean(axis=0)) / spread / 5**0.5, np.ones(len(x))]

    def gradient(v):
        w = 1 / (1 + np.exp(-z(HELD_HD) @ v))
        piece = np.minimum((w * 8).astype(int), 7)
        slope = 8 * (NLL_HW[np.arange(6), piece + 1] - NLL_HW[np.arange(6), piece])
        return (slope * w * (1 - w)) @ z(HELD_HD) / 6 + ridge * np.append(v[:-1], 0.0)

    v = adam(gradient, np.zeros(6), rate=rate, steps=steps)
    return 1 / (1 + np.exp(-z(query_BD) @ v))


@pytest.mark.parametrize("ridge", [0.02, 0.5])
def test_the_gate_is_that_of_its_docstring(ridge: float):
    query_BD = DRAW.normal(size=(4, 5)).astype(np.float32) + 3.0
    how = {"ridge": ridge, "rate": 0.03, "steps": 60}
    found = jax.jit(lambda *seen: held_out_gate(*seen, **how))(query_BD, HELD_HD, NLL_HW)
    np.testing.assert_allclose(found, plain_gate(query_BD, **how), atol=2e-4)


def test_the_gate_learns_which_mix_answers_better():
    weight_H = np.asarray(held_out_gate(HELD_HD, HELD_HD, NLL_HW, ridge=0.0))
    assert ((weight_H > 0.5) == (SLOPE_H > 0)).all() and np.ptp(weight_H) > 0.3
    flat = np.full_like(NLL_HW, 2.0)
    np.testing.assert_array_equal(held_out_gate(HELD_HD, HELD_HD, flat), 0.5)


def test_a_gate_weighs_an_instance_alike_wherever_it_stands():
    weigh = jax.jit(make_weighting("held_out_gate", scale=0.3, scales="global"))
    query_BD = DRAW.normal(size=(7, 5)).astype(np.float32)
    seen = Evidence(query_BD=query_BD, held_HD=HELD_HD, held_nll_HW=NLL_HW)
    together = weigh(seen)
    for b in range(7):
        alone = weigh(seen._replace(query_BD=query_BD[b : b + 1]))
        np.testing.assert_allclose(alone.local_weight_B, together.local_weight_B[b], atol=1e-6)
    # It is the weight: neither scale nor side applies.
    np.testing.assert_array_equal(together.local_weight_B, together.similarity_B)
    np.testing.assert_allclose(
        together.local_weight_B, held_out_gate(query_BD, HELD_HD, NLL_HW), atol=1e-6
    )


def weights_of(l: Any, layers: int) -> Any:
    if isinstance(l, tuple):
        return l
    return tuple(l[layer][None] for layer in range(layers)) if l.ndim else l[None]


@jax.jit
def log_probabilities(tokens_T, client, l) -> jax.Array:
    """One example alone, without padding: log-probabilities at every token, [T, V]."""
    branches = dual_branches(*ADAPTERS[:2], client[None], weights_of(l, 2), scale=SCALE)
    T = len(tokens_T)
    mask = causal_mask(jnp.ones((1, T), jnp.int32))
    hidden_BTD, _ = MODEL.hidden(tokens_T[None], jnp.arange(T)[None], mask, branches)
    return jax.nn.log_softmax(MODEL.logits(hidden_BTD[0]))


@jax.jit
def entropy_after(prompt_T, client, l) -> jax.Array:
    """Of the first answer token, in nats."""
    logp_V = log_probabilities(prompt_T, client, l)[-1]
    return -(jnp.exp(logp_V) * logp_V).sum()


slope_after = jax.jit(jax.grad(entropy_after, argnums=2))


def plain(of, example, client: int, l) -> jax.Array:
    """An entropy, or its slope, of an example's prompt alone."""
    return of(example.tokens_T[: example.prompt_length], jnp.int32(client), l)


def plain_loss(example, client: int, l) -> float:
    """Mean NLL of the answer's tokens."""
    tokens_T, prompt, _ = example
    logp_TV = log_probabilities(tokens_T, jnp.int32(client), jnp.asarray(l, jnp.float32))
    at = np.arange(prompt - 1, len(tokens_T) - 1)
    return -float(logp_TV[at, tokens_T[prompt:]].mean())


def mixed(examples, client: int, *, answers: bool) -> Mixture:
    return make_mixtures(MODEL, ADAPTERS, [examples, examples], answers=answers)[client]


def test_losses_and_entropies_as_functions_of_weights(monkeypatch):
    """Rows of several lengths, some at a time: as each example alone, and so are the gradients."""
    monkeypatch.setattr(mixture, "TOKENS", 130)
    examples = tokenize(TEST)[:2] + tokenize(TRAIN[1])[:2]
    for client, shape in ((0, (4,)), (1, (4, 2))):
        weight = jnp.asarray(DRAW.random(shape), jnp.float32)
        found = mixed(examples, client, answers=True)
        assert found.sheets[0].tokens_NRT.shape[0] > 1
        loss_I = jax.jit(lambda of, w: of.loss(w))(found, weight)
        entropy_I = jax.jit(lambda of, w: of.entropy(w))(found, weight)
        slopes = jax.jit(jax.grad(lambda w, of: of.entropy(w).sum()))(weight, found)
        for i, example in enumerate(examples):
            l = np.asarray(weight[i])
            assert loss_I[i] == pytest.approx(plain_loss(example, client, l), abs=3e-5)
            expected = plain(entropy_after, example, client, weight[i])
            assert entropy_I[i] == pytest.approx(float(expected), abs=3e-5)
            slope = plain(slope_after, example, client, weight[i])
            np.testing.assert_allclose(slopes[i], slope, atol=3e-5)


def test_prompts_have_no_answers():
    examples = tokenize(TEST)
    asked, known = (mixed(examples, 0, answers=answers) for answers in (False, True))
    with pytest.raises(ValueError, match="answers are not known"):
        asked.loss(jnp.zeros(4))
    longest = max(len(e.tokens_T) for e in examples)
    assert asked.sheets[0].tokens_NRT.shape[2] <= longest
    assert not any(leaf.size and leaf.any() for leaf in [s.answer_NR for s in asked.sheets])
    half = jnp.full(4, 0.5)
    np.testing.assert_allclose(asked.entropy(half), known.entropy(half), atol=3e-5)


@pytest.mark.parametrize(("rate", "steps"), [(4.0, 1), (1.0, 4)])
def test_the_least_entropy_of_each_instance(rate: float, steps: int):
    examples = tokenize(TEST)
    seen = mixed(examples, 1, answers=False)
    found_B = jax.jit(lambda of: least_entropy(of, rate=rate, steps=steps))(seen)
    assert np.ptp(found_B) > 0.01
    for example, found in zip(examples, found_B, strict=True):
        u = 0.0
        for _ in range(steps):
            w = 1.0 / (1.0 + np.exp(-u))
            slope = float(plain(slope_after, example, 1, jnp.float32(w)))
            u -= rate * slope * w * (1.0 - w)  # The sigmoid's own slope.
        assert found == pytest.approx(1.0 / (1.0 + np.exp(-u)), abs=1e-4)
        before, after = (
            float(plain(entropy_after, example, 1, jnp.float32(w))) for w in (0.5, found)
        )
        assert after < before
    # Whatever stands beside an instance.
    for b in (0, 3):
        alone = least_entropy(mixed(examples[b : b + 1], 1, answers=False), rate=rate, steps=steps)
        np.testing.assert_allclose(alone, found_B[b : b + 1], atol=1e-4)


def test_the_learned_weight_of_every_layer():
    """Adam on the mean loss of examples that are each computed alone."""
    own = tokenize(TRAIN[1])[:3]
    held = make_mixtures(MODEL, ADAPTERS, [own[:2], own], answers=True)[1]
    how = {"rate": 0.3, "steps": 4}
    found_L = jax.jit(lambda of: learned_layers(of, **how))(held)

    def mean_loss(u_L):
        total = 0.0
        for tokens_T, prompt, _ in own:
            logp_TV = log_probabilities(tokens_T, jnp.int32(1), jax.nn.sigmoid(u_L))
            at = np.arange(prompt - 1, len(tokens_T) - 1)
            total -= logp_TV[at, tokens_T[prompt:]].mean()
        return total / len(own)

    gradient = jax.grad(mean_loss)
    u_L = adam(lambda u: np.asarray(gradient(jnp.asarray(u, jnp.float32))), np.zeros(2), **how)
    np.testing.assert_allclose(found_L, 1 / (1 + np.exp(-u_L)), atol=1e-4)
    assert mean_loss(jnp.asarray(u_L)) < mean_loss(jnp.zeros(2)) and np.ptp(found_L) > 0.01
    # All instances of the client get them, as they are.
    weigh = jax.jit(make_weighting("learned_layers", scale=0.1, scales="global", parameters=how))
    weights = weigh(Evidence(held_mixture=held, length_B=np.array([5, 6, 7])))
    np.testing.assert_allclose(weights.local_weight_B, np.stack([found_L] * 3), atol=1e-6)


def test_every_token_by_hand():
    # Layer 0: (1, 0) and (0, 1) have the mean (1/2, 1/2); layer 1: (0, 1) twice.
    support_MLD = jnp.array([[[2.0, 0.0], [0.0, 5.0]], [[0.0, 3.0], [0.0, 1.0]]])
    weigh = make_weighting("tokenwise", scale=0.8, scales="local")
    seen = Evidence(support_MLD=support_MLD, length_B=np.array([4, 5]))
    gate = weigh(seen).local_weight_B
    assert isinstance(gate, TokenGate)
    x_BTD = jnp.array([[[7.0, 0.0], [0.0, -2.0]]])
    # Cosines with the two: 1 and 0, 0 and -1; in the other layer 0 twice, -1 twice.
    for layer, expected in enumerate(([0.8 * 0.5, 0.0], [0.0, 0.0])):
        own = jax.tree.map(lambda leaf, at=layer: leaf[at][None], gate)
        np.testing.assert_allclose(own.weights(x_BTD)[0], expected, atol=1e-6)
    turned = make_weighting("tokenwise", scale=0.8, scales="global")(seen).local_weight_B
    assert isinstance(turned, TokenGate)
    own = jax.tree.map(lambda leaf: leaf[0][None], turned)
    np.testing.assert_allclose(own.weights(x_BTD)[0], [0.6, 1.0], atol=1e-6)


def test_a_trained_gate_of_tokens():
    """Adam on the mean loss of examples that are each computed alone; from 1/2 everywhere."""
    own = tokenize(TRAIN[0])[:2]
    held = make_mixtures(MODEL, ADAPTERS, [own], answers=True)[0]
    found = jax.jit(lambda of: token_gate(of, rate=0.1, steps=3))(held)

    def mean_loss(flat):
        v_LD, c_L = flat[:-2].reshape(2, -1), flat[-2:]
        size = MODEL.config.width**0.5
        gates = tuple(
            TokenGate(size * v_LD[layer][None], c_L[layer][None], jnp.array([True]))
            for layer in range(2)
        )
        total = 0.0
        for tokens_T, prompt, _ in own:
            logp_TV = log_probabilities(tokens_T, jnp.int32(0), gates)
            at = np.arange(prompt - 1, len(tokens_T) - 1)
            total -= logp_TV[at, tokens_T[prompt:]].mean()
        return total / len(own)

    gradient = jax.grad(mean_loss)
    start = np.zeros(2 * MODEL.config.width + 2)
    flat = adam(
        lambda u: np.asarray(gradient(jnp.asarray(u, jnp.float32))), start, rate=0.1, steps=3
    )
    np.testing.assert_allclose(found.bias, flat[-2:], atol=2e-3)
    direction_LD = flat[:-2].reshape(2, -1) * MODEL.config.width**0.5
    assert np.abs(found.direction - direction_LD).mean() < 0.02 * np.abs(direction_LD).mean()
    assert held.loss(found).mean() < held.loss(jnp.full(2, 0.5)).mean()
    assert found.soft.all()


def test_losses_at_every_weight():
    own = [tokenize(TRAIN[0])[:2], tokenize(TEST)[:1]]
    scorer = Scorer.for_examples(MODEL, ADAPTERS, [*own[0], *own[1]], block_tokens=400)
    found = at_weights(scorer, own, "nll_I")
    assert [nll_HW.shape for nll_HW in found] == [(2, 9), (1, 9)]
    for client, place, w in ((0, 0, 0), (0, 1, 3), (1, 0, 8)):
        l = WEIGHTS[w]
        expected = plain_loss(own[client][place], client, l)
        assert found[client][place, w] == pytest.approx(expected, abs=2e-5)
