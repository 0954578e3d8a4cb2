"""Evidence by hand: which state of which model at which place a rule is given, and of whom."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feddpa_jax.adapters.dual import dual_branches
from feddpa_jax.config import Config
from feddpa_jax.evaluate.modes import fixed_weights, instance_weights
from feddpa_jax.inference.scorer import Request, Scorer, Scores
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.run.evaluating import weighting_settings
from feddpa_jax.types import TokenizedExample, UserError
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS, Evidence
from feddpa_jax.weighting.gathering import (
    check_layer,
    check_rule_fits,
    gather,
    pooled,
    prompt_alone,
    support_draw,
)
from feddpa_jax.weighting.rule import RULES
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance
from tests.evaluate.tiny_evaluation import ADAPTERS, LOCAL_C, MODEL, SCALE

IDS = (11, 12)
MIXES = {"base": (0.0, 0.0), "global": (1.0, 0.0), "local": (0.0, 1.0), "mixed": (0.5, 0.5)}


def example(seed: int) -> TokenizedExample:
    draw = np.random.default_rng(seed)
    length = int(draw.integers(5, 12))
    return TokenizedExample(draw.integers(3, 250, length).astype(np.int32), length - 2)


INSTANCES = tuple(map(example, range(3)))
TRAINING = (tuple(map(example, range(10, 16))), tuple(map(example, range(20, 27))))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    everything = [*INSTANCES, *TRAINING[0], *TRAINING[1]]
    return Scorer.for_examples(MODEL, ADAPTERS, everything, block_tokens=256)


def test_of_a_conversation_the_last_answer_alone_is_scored(scorer):
    """Training's loss is on the earlier answers in its prompt too."""
    one = INSTANCES[0]
    trained_T = np.arange(len(one.tokens_T)) % 2 == 1
    talk = one._replace(trained_T=trained_T)
    plain, scored = (scorer([Request(0, example, 1.0, 0.5)]) for example in (one, talk))
    for field in ("nll_I", "greedy_I", "entropy_I", "last_ILD"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(scored, field))
    shapes = [
        Scorer.for_examples(MODEL, ADAPTERS, [example] * 3, block_tokens=256).shapes
        for example in (one, one._replace(trained_T=np.ones(len(one.tokens_T), bool)))
    ]
    assert shapes[0] == shapes[1]


@jax.jit
def _forward(tokens_T, client_B, g_B, l_B):
    banks = (ADAPTERS.global_C, LOCAL_C)
    branches = dual_branches(*banks, client_B, l_B, scale=SCALE, global_weight=g_B)
    mask = causal_mask(jnp.ones((1, len(tokens_T)), jnp.int32))
    states = MODEL.states(tokens_T[None], jnp.arange(len(tokens_T))[None], mask, branches)
    logp_TV = jax.nn.log_softmax(MODEL.logits(states[-1][0]))
    return [state[0] for state in states], logp_TV


@functools.cache
def _plain(tokens: tuple[int, ...], client: int, model: str | float):
    g, l = MIXES[model] if isinstance(model, str) else (1.0 - model, model)
    # What comes later in a causal model is not seen: one length, one compilation.
    padded_T = jnp.array([*tokens, *[0] * (12 - len(tokens))], jnp.int32)
    states, logp_TV = _forward(padded_T, jnp.array([client]), jnp.array([g]), jnp.array([l]))
    return [np.asarray(state)[: len(tokens)] for state in states], np.asarray(logp_TV)


def plain(
    one: TokenizedExample, client: int, model: str | float
) -> tuple[list[np.ndarray], np.ndarray]:
    """An example alone: the state after every layer [T, D], and log-probabilities [T, V]."""
    return _plain(tuple(one.tokens_T.tolist()), client, model)


def entropy(one: TokenizedExample, client: int, model: str | float) -> float:
    """Of the distribution that follows the prompt."""
    logp_V = plain(one, client, model)[1][one.prompt_length - 1].astype(np.float64)
    return -(np.exp(logp_V) * logp_V).sum()


def prompt_nll(one: TokenizedExample, client: int, model: str | float) -> np.ndarray:
    """Of the prompt's tokens after the first."""
    at = np.arange(one.prompt_length - 1)
    return -plain(one, client, model)[1][at, one.tokens_T[1 : one.prompt_length]]


def close(found: Any, expected: Any) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=3e-5)


def embedded(one: TokenizedExample, client: int, model: str | float, pooling: str, layer: int):
    states, _ = plain(one, client, model)
    prompt_TD = states[layer][: one.prompt_length]
    return prompt_TD[-1] if pooling == "last" else prompt_TD.mean(axis=0)


def settings_of(**changes) -> WeightingSettings:
    return WeightingSettings(**{"support": 3, "seed": 5, **changes})


@pytest.mark.parametrize(
    ("model", "pooling", "layer"),
    [
        ("local", "last", None),
        ("global", "last", None),
        ("base", "mean", None),
        ("mixed", "mean", 1),
        ("local", "mean", 0),
        ("local", "last", 2),
    ],
)
def test_prompts_are_embedded_as_the_settings_say(scorer: Scorer, model, pooling, layer):
    """After `layer` layers (None: all) of the named model, at the last token or as a mean."""
    found = gather(
        scorer,
        IDS,
        TRAINING,
        INSTANCES,
        (),
        settings_of(embed_with=model, pooling=pooling, layer=layer),
    )
    place = MODEL.config.layers if layer is None else layer
    for client, evidence in enumerate(found):
        query_BD = [embedded(e, client, model, pooling, place) for e in INSTANCES]
        close(evidence.query_BD, query_BD)
        drawn = draw_support(len(TRAINING[client]), 3, seed=5, client=IDS[client])
        support_MD = [
            embedded(TRAINING[client][i], client, model, pooling, place) for i in drawn.tolist()
        ]
        close(evidence.support_MD, support_MD)


def test_prompts_are_embedded_at_the_weight_of_training(scorer: Scorer):
    """Of FedDPA-T, which trains its local adapter beside the global one; or at a given weight."""

    def resolved(fed: dict, **weighting: Any) -> WeightingSettings:
        given = {"support": 3, "embed_with": "mixed", **weighting}
        return weighting_settings(Config(seed=5, fed=fed, weighting=given))

    trained = {"method": "feddpa_t", "local_weight": 0.25}
    assert resolved({**trained, "method": "feddpa_f"}).mixed_at == 0.5
    assert resolved(trained, embed_weight=0.75).mixed_at == 0.75
    settings = resolved(trained, pooling="mean")
    for client, evidence in enumerate(gather(scorer, IDS, TRAINING, INSTANCES, (), settings)):
        close(evidence.query_BD, [embedded(e, client, 0.25, "mean", 2) for e in INSTANCES])
        drawn = draw_support(len(TRAINING[client]), 3, seed=5, client=IDS[client]).tolist()
        expected = [embedded(TRAINING[client][i], client, 0.25, "mean", 2) for i in drawn]
        close(evidence.support_MD, expected)


def test_every_instance_has_a_support_of_its_own_if_told_so(scorer: Scorer):
    settings = settings_of(resample=True, embed_with="base")
    found = gather(scorer, IDS, TRAINING, INSTANCES, (), settings)
    for client, evidence in enumerate(found):
        assert evidence.support_MD is None and evidence.support_BMD is not None
        drawn_IM = draw_support_per_instance(
            len(TRAINING[client]), 3, 3, seed=5, client=IDS[client]
        )
        for i in range(3):
            expected = [
                embedded(TRAINING[client][at], client, "base", "last", 2)
                for at in drawn_IM[i].tolist()
            ]
            close(evidence.support_BMD[i], expected)


def test_likelihoods_are_those_of_the_prompts_under_each_model(scorer: Scorer):
    """Mean NLL of the prompt's tokens after the first; columns base, global, local."""
    settings = settings_of(rule="calibrated_likelihood")
    for client, evidence in enumerate(gather(scorer, IDS, TRAINING, INSTANCES, (), settings)):

        def nll(one: TokenizedExample, client: int = client) -> list[float]:
            return [prompt_nll(one, client, model).mean() for model in MODELS]

        close(evidence.query_nll_BA, [nll(e) for e in INSTANCES])
        drawn = draw_support(len(TRAINING[client]), 3, seed=5, client=IDS[client]).tolist()
        expected = [nll(TRAINING[client][i]) for i in drawn]
        close(evidence.support_nll_MA, expected)


def test_entropies_are_those_of_the_answers_first_token(scorer: Scorer):
    for client, evidence in enumerate(
        gather(scorer, IDS, TRAINING, INSTANCES, (), settings_of(rule="entropy"))
    ):
        close(
            evidence.entropy_BA,
            [[entropy(e, client, model) for model in MODELS] for e in INSTANCES],
        )


@contextlib.contextmanager
def a_rule_that_sees(*names: str) -> Iterator[WeightingSettings]:
    """Settings of a rule with these parameters."""

    def rule(**given):
        return 0.5 + jnp.zeros(Evidence(**given).rows())

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    setattr(rule, "__signature__", signature)  # noqa: B010
    RULES.register("sees", rule)
    try:
        yield settings_of(rule="sees")
    finally:
        RULES.remove("sees")


def test_entropies_at_every_mixing_weight(scorer: Scorer):
    with a_rule_that_sees("entropy_BW") as settings:
        found = gather(scorer, IDS, TRAINING, INSTANCES, (), settings)
    for client, evidence in enumerate(found):
        close(evidence.entropy_BW, [[entropy(e, client, w) for w in WEIGHTS] for e in INSTANCES])
        assert evidence.entropy_BA is None and evidence.query_nll_BTA is None


def test_likelihoods_of_every_prompt_token(scorer: Scorer):
    with a_rule_that_sees("query_nll_BTA", "query_mask_BT") as settings:
        found = gather(scorer, IDS, TRAINING, INSTANCES, (), settings)
    longest = max(e.prompt_length for e in INSTANCES)
    assert len({e.prompt_length for e in INSTANCES}) > 1
    for client, evidence in enumerate(found):
        nll_BTA, mask_BT = np.asarray(evidence.query_nll_BTA), np.asarray(evidence.query_mask_BT)
        assert nll_BTA.shape == (3, longest, 3) and mask_BT.shape == (3, longest)
        for b, one in enumerate(INSTANCES):
            assert np.flatnonzero(mask_BT[b]).tolist() == list(range(1, one.prompt_length))
            expected = [prompt_nll(one, client, model) for model in MODELS]
            close(nll_BTA[b, 1 : one.prompt_length].T, expected)
            assert not nll_BTA[b][~mask_BT[b]].any()


def test_adapters_that_others_had_a_part_in(scorer: Scorer):
    """A method's own, in its order; else the global one. Local ones stand for experts here."""
    experts = [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], LOCAL_C) for at in (1, 0)]
    theirs = scorer.under(ADAPTERS._replace(shared=(*experts, LOCAL_C)))
    with a_rule_that_sees("query_nll_BE", "entropy_BE") as settings:
        found = gather(theirs, IDS, TRAINING, INSTANCES, (), settings)
        plainly = gather(scorer, IDS, TRAINING, INSTANCES, (), settings)
    for client, (evidence, alone) in enumerate(zip(found, plainly, strict=True)):
        columns = [(1, "local"), (0, "local"), (client, "local")]
        for b, one in enumerate(INSTANCES):
            expected = [(prompt_nll(one, *of).mean(), entropy(one, *of)) for of in columns]
            close(np.asarray(evidence.query_nll_BE)[b], [nll for nll, _ in expected])
            close(np.asarray(evidence.entropy_BE)[b], [own for _, own in expected])
        close(alone.query_nll_BE, [[prompt_nll(e, 0, "global").mean()] for e in INSTANCES])
        close(alone.entropy_BE, [[entropy(e, 0, "global")] for e in INSTANCES])


def test_the_global_model_of_clients_that_each_receive_their_own(scorer: Scorer):
    own_C = scorer.under(ADAPTERS._replace(global_C=LOCAL_C))
    settings = settings_of(embed_with="global")
    for client, evidence in enumerate(gather(own_C, IDS, TRAINING, INSTANCES, (), settings)):
        expected = [embedded(e, client, "local", "last", 2) for e in INSTANCES]
        close(evidence.query_BD, expected)


def test_texts_are_those_of_the_prompts(scorer: Scorer):
    held = ([INSTANCES[1]], [INSTANCES[2], INSTANCES[0]])

    def text(one: TokenizedExample) -> str:
        return "".join(chr(at) for at in one.tokens_T[: one.prompt_length])

    with a_rule_that_sees("query_text", "support_text", "held_text") as settings:
        found = gather(
            *(scorer, IDS, TRAINING, INSTANCES, (), settings),
            held=held,
            read=lambda tokens_T: "".join(map(chr, tokens_T)),
        )
        with pytest.raises(UserError, match=r"weighting\.resample: the rule sees looks at one"):
            check_rule_fits(dataclasses.replace(settings, resample=True), 2)
    for client, evidence in enumerate(found):
        drawn = draw_support(len(TRAINING[client]), 3, seed=5, client=IDS[client]).tolist()
        assert evidence.query_text == tuple(map(text, INSTANCES))
        assert evidence.support_text == tuple(text(TRAINING[client][i]) for i in drawn)
        assert evidence.held_text == tuple(map(text, held[client]))
        assert evidence.rows() == 3


def test_every_layers_input_for_a_rule_that_weighs_layers(scorer: Scorer):
    settings = settings_of(rule="layerwise", embed_with="global")
    for client, evidence in enumerate(gather(scorer, IDS, TRAINING, INSTANCES, (), settings)):
        assert evidence.query_BLD is not None
        for b, one in enumerate(INSTANCES):
            expected = [embedded(one, client, "global", "last", layer) for layer in range(2)]
            close(evidence.query_BLD[b], expected)


def test_known_scores_serve_where_they_are_of_the_last_layer(scorer: Scorer):
    def scores(value: float) -> Scores:
        states = np.full((3, 1, MODEL.config.width), value, np.float32)
        return Scores(np.zeros(3), np.zeros(3, bool), np.zeros(3), states, states + 1)

    known = {"local": [scores(1.0), scores(2.0)], "global": [scores(7.0), scores(8.0)]}
    rule = {"rule": "constant"}
    found = gather(scorer, IDS, TRAINING, INSTANCES, (), settings_of(**rule), known)
    assert [float(np.asarray(e.query_BD).mean()) for e in found] == [1.0, 2.0]
    other = settings_of(**rule, embed_with="global", pooling="mean")
    found = gather(scorer, IDS, TRAINING, INSTANCES, (), other, known)
    assert [float(np.asarray(e.query_BD).mean()) for e in found] == [8.0, 9.0]
    lower = gather(scorer, IDS, TRAINING, INSTANCES, (), settings_of(**rule, layer=1), known)
    expected = [embedded(e, 0, "local", "last", 1) for e in INSTANCES]
    close(lower[0].query_BD, expected)


def test_pooled_by_hand():
    last_ILD, mean_ILD = np.arange(8.0).reshape(1, 2, 4), -np.arange(8.0).reshape(1, 2, 4)
    scores = Scores(np.zeros(1), np.zeros(1, bool), np.zeros(1), last_ILD, mean_ILD)
    assert pooled(scores, "last").tolist() == [[0, 1, 2, 3]]
    assert pooled(scores, "last", 1).tolist() == [[4, 5, 6, 7]]
    assert pooled(scores, "mean", 1).tolist() == [[-4, -5, -6, -7]]


def test_draws_follow_seed_and_client():
    once, anew = settings_of(), settings_of(resample=True)
    assert support_draw(9, once, 4, 7).tolist() == draw_support(9, 3, seed=5, client=7).tolist()
    assert support_draw(9, anew, 4, 7).shape == (4, 3)
    other = dataclasses.replace(once, seed=6)
    draws = [support_draw(99, *of).tolist() for of in ((once, 4, 7), (other, 4, 7), (once, 4, 8))]
    assert len(set(map(tuple, draws))) == 3


def test_a_prompt_alone_has_its_first_token_for_a_prompt():
    tokens_T, prompt_length, _ = prompt_alone(TokenizedExample(np.array([5, 6, 7, 8, 9]), 3))
    assert (tokens_T.tolist(), prompt_length) == ([5, 6, 7], 1)


def test_the_layers_there_are():
    for layer in (None, 0, 2):
        check_layer(settings_of(layer=layer), 2)
    with pytest.raises(
        UserError, match=r"is 3, but the model has 2 layers; choose one from 0 to 2"
    ):
        check_layer(settings_of(layer=3), 2)


def test_fixed_weights_by_hand():
    found = {
        mode: fixed_weights(mode, 2, 3, fixed=0.3) for mode in ("base", "global", "local", "fixed")
    }
    pairs = {mode: found[mode].at(1, 2) for mode in found}
    assert pairs["fixed"] == pytest.approx((0.7, 0.3))
    assert {m: pairs[m] for m in ("base", "global", "local")} == {
        "base": (0.0, 0.0),
        "global": (1.0, 0.0),
        "local": (0.0, 1.0),
    }
    assert found["fixed"].local_CI.shape == (2, 3)


def test_instance_weights_by_hand():
    """Cosines 1 and 0 for one client, 0 and 1 for the other; scale 0.4."""
    query_BD = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    evidence = [
        Evidence(query_BD=query_BD, support_MD=np.array([support], np.float32))
        for support in ([3.0, 0.0], [0.0, 2.0])
    ]
    weights = instance_weights(evidence, settings_of(scale=0.4))
    np.testing.assert_allclose(weights.local_CI, [[0.4, 0.0], [0.0, 0.4]], atol=1e-6)
    np.testing.assert_allclose(weights.global_CI, [[0.6, 1.0], [1.0, 0.6]], atol=1e-6)
    released = instance_weights(evidence, settings_of(scale=0.4, scales="global"))
    np.testing.assert_allclose(released.local_CI, [[0.6, 1.0], [1.0, 0.6]], atol=1e-6)
    assert weights.similarity_CI is not None
    np.testing.assert_allclose(weights.similarity_CI, [[1.0, 0.0], [0.0, 1.0]], atol=1e-6)
