"""Collected evidence is what evaluation gathers, and the scores are those of plain requests."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from feddpa_jax.evaluate.modes import instance_weights
from feddpa_jax.inference.scorer import Request
from feddpa_jax.laboratory.candidates import weigh
from feddpa_jax.laboratory.collect import WEIGHTS, collect
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.gathering import gather
from feddpa_jax.weighting.rule import RULES, learns, on_curve
from feddpa_jax.weighting.settings import WeightingSettings

SETTINGS = (
    {"embed_with": "local"},
    {"embed_with": "global", "pooling": "mean", "layer": 1, "support": 4},
    {"embed_with": "mixed", "layer": 2, "support": 9, "scales": "global"},
    {"embed_with": "base", "pooling": "mean"},
)


def gathered(laboratory, settings: WeightingSettings, held=None, **changes) -> np.ndarray:
    """The weights that an evaluation gives all instances, [C, J]."""
    asked = dataclasses.replace(laboratory.questions, **changes)
    own = laboratory.questions
    held = held or [[own.instances[j] for j in held_H] for held_H in own.held]
    evidence = gather(
        laboratory.scorer,
        asked.ids,
        asked.training,
        asked.instances,
        asked.dreams,
        settings,
        held=held,
    )
    return instance_weights(evidence, settings).local_CI


@pytest.mark.parametrize("rule", sorted(filter(on_curve, RULES)))
def test_weights_are_those_of_evaluation(laboratory, rule):
    for changes in SETTINGS:
        settings = WeightingSettings(rule, **{"support": 5, "scale": 0.8, **changes})
        ours_CJ, theirs_CJ = weigh(laboratory.collected, settings), gathered(laboratory, settings)
        if learns(rule):
            # Client 0's held-out examples, 0 and 2, are each weighed by what the other one teaches.
            instances = laboratory.questions.instances
            for j, other in ((0, 2), (2, 0)):
                held = [[instances[other]], [instances[1]]]
                theirs_CJ[0, j] = gathered(laboratory, settings, held)[0, j]
        np.testing.assert_allclose(ours_CJ, theirs_CJ, atol=1e-4)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_rule_sees_labels_or_other_clients_data(laboratory, rule):
    """Client 0's weights do not move when all answers and client 1's data are replaced."""
    asked = laboratory.questions
    settings = WeightingSettings(rule, support=5, scale=0.8)
    before_J = gathered(laboratory, settings)[0]

    def poisoned(example: TokenizedExample, shift: int) -> TokenizedExample:
        answer_T = (example.tokens_T[example.prompt_length :] + shift) % 200 + 3
        whole_T = np.concatenate([example.tokens_T[: example.prompt_length], answer_T, answer_T])
        return TokenizedExample(whole_T.astype(np.int32), example.prompt_length)

    other, others_held = (
        [TokenizedExample((e.tokens_T + 17) % 200 + 3, e.prompt_length) for e in examples]
        for examples in (asked.training[1], [asked.instances[1]])
    )
    after_J = gathered(
        laboratory,
        settings,
        [[asked.instances[j] for j in asked.held[0]], others_held],
        instances=[poisoned(e, 5 + place) for place, e in enumerate(asked.instances)],
        training=[asked.training[0], other],
    )[0]
    np.testing.assert_allclose(after_J, before_J, atol=1e-4)


def test_what_a_rule_may_see_moves_its_weights(laboratory):
    """The test above could fail: with another own support, the weights of most rules do move."""
    other = [
        TokenizedExample((e.tokens_T + 17) % 200 + 3, e.prompt_length)
        for e in laboratory.questions.training[0]
    ]
    training = [other, laboratory.questions.training[1]]
    for rule in ("cosine", "l2", "nearest", "whitened", "gate"):
        settings = WeightingSettings(rule, support=5, scale=0.8)
        moved = gathered(laboratory, settings, training=training) - gathered(laboratory, settings)
        assert np.abs(moved[0]).max() > 1e-3, rule
        np.testing.assert_allclose(moved[1], 0.0, atol=1e-4)


FEW = ("entropy_BW", "query_nll_BTA", "query_mask_BT", "query_nll_BE", "entropy_BE")
READ = ("query_text", "support_text", "held_text")


def test_what_few_rules_ask_for_is_that_of_evaluation(laboratory):
    """Entropies at all weights, likelihoods by token and under others' adapters, and texts."""
    asked = laboratory.questions
    names = ", ".join((*FEW, *READ))
    seen: dict[str, Any] = {}
    exec(f"def everything({names}):\n    return 0.1 * entropy_BW[:, 0]", seen)
    RULES.register("everything", seen["everything"])
    try:
        settings = WeightingSettings("everything", support=3)
        found = gather(
            laboratory.scorer,
            asked.ids,
            asked.training,
            asked.instances,
            asked.dreams,
            settings,
            held=[[asked.instances[j] for j in held_H] for held_H in asked.held],
            read=asked.read,
        )
        weight_CJ = weigh(laboratory.collected, settings)
        np.testing.assert_allclose(weight_CJ, instance_weights(found, settings).local_CI, atol=1e-4)
    finally:
        RULES.remove("everything")
    for client, evidence in enumerate(found):
        ours = laboratory.collected.evidence(client, settings)
        for name in FEW:
            np.testing.assert_allclose(getattr(ours, name), getattr(evidence, name), atol=1e-4)
        for name in READ:
            assert getattr(ours, name) == getattr(evidence, name)
        assert "add 20 and 20" in ours.query_text[0]
    some = laboratory.collected.evidence(1, settings, laboratory.test)
    assert len(some.query_text) == len(some.query_nll_BTA) == 4 and "add 9" in some.query_text[0]


def test_each_client_may_receive_a_global_adapter_of_its_own(laboratory):
    """As in FedALT: at weight 0 every client answers with its own, and embeds with it."""
    adapters = laboratory.scorer.adapters
    scorer = laboratory.scorer.under(adapters._replace(global_C=adapters.local_C))
    instances = laboratory.questions.instances[:2]
    few = dataclasses.replace(
        laboratory.questions, instances=instances, dreams=(), held=(), fields=frozenset()
    )
    done = []
    found = collect(scorer, few, MemoryParts(), done.append)
    assert sum(done) == few.requests(scorer.adapters)
    np.testing.assert_allclose(
        found.nll_CJW[..., 0], laboratory.collected.nll_CJW[:, :2, 8], atol=1e-4
    )
    assert np.abs(np.diff(found.nll_CJW[..., 0], axis=0)).min() > 1e-4
    for client in (0, 1):
        ours = found.embeddings["global"][client][0]
        theirs = laboratory.collected.embeddings["local"][client][0][:2]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_prompts_may_be_mixed_at_another_weight(laboratory):
    """The embeddings are those of evaluation; the scores at 1/2 are still computed."""
    instances = laboratory.questions.instances[:3]
    few = dataclasses.replace(
        laboratory.questions, instances=instances, held=(), fields=frozenset(), mixed=0.25
    )
    done = []
    found = collect(laboratory.scorer, few, MemoryParts(), done.append)
    assert sum(done) == few.requests(laboratory.scorer.adapters)
    assert {"mixed_0.250000", "weight_0.500"} < set(few.parts()) and "mixed" not in few.parts()
    np.testing.assert_allclose(found.nll_CJW, laboratory.collected.nll_CJW[:, :3], atol=1e-4)
    settings = WeightingSettings("cosine", embed_with="mixed", embed_weight=0.25, support=4)
    expected_CJ = gathered(laboratory, settings, instances=instances)
    np.testing.assert_allclose(weigh(found, settings), expected_CJ, atol=1e-5)
    half = dataclasses.replace(settings, embed_weight=0.5)
    assert np.abs(gathered(laboratory, half, instances=instances) - expected_CJ).max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "embed_with", "parts"),
    [
        ((), ("local",), {"local"}),
        (("dream_ND",), ("global",), {"local", "global", "local_dreams", "global_dreams"}),
        (("entropy_BA", "support_nll_MA"), ("mixed",), {"base", "global", "mixed", "prompts"}),
    ],
)
def test_only_what_rules_may_ask_for_is_computed(laboratory, fields, embed_with, parts):
    """What is computed is as if all were, and the count told beforehand is right."""
    few = dataclasses.replace(laboratory.questions, fields=frozenset(fields), embed_with=embed_with)
    done = []
    found = collect(laboratory.scorer, few, MemoryParts(), done.append)
    assert sum(done) == few.requests(laboratory.scorer.adapters)
    assert sum(done) < 0.8 * laboratory.questions.requests(laboratory.scorer.adapters)
    looked = {name for name in few.parts() if not name.startswith("weight")}
    assert looked == {"local", *parts} and len(found.embeddings) == len(few.models)
    whole = laboratory.collected
    np.testing.assert_allclose(found.nll_CJW, whole.nll_CJW, atol=1e-4)
    np.testing.assert_allclose(found.entropy_CJW, whole.entropy_CJW, atol=1e-4)
    settings = WeightingSettings(embed_with=embed_with[0], support=4)
    ours, theirs = (own.evidence(1, settings)._asdict() for own in (found, whole))
    for name in {"query_BD", "support_MD", "held_nll_HW", *fields}:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
    left_out = {"entropy_BA", "support_nll_MA", "query_nll_BTA"} - set(fields)
    assert all(ours[name] is None and theirs[name] is not None for name in left_out)


def test_scores_are_those_of_plain_requests(laboratory):
    instances = laboratory.questions.instances
    for c, w in ((0, 0), (1, 3), (0, 8), (1, 4)):
        weight = WEIGHTS[w]
        plain = laboratory.scorer([Request(c, e, 1 - weight, weight) for e in instances])
        np.testing.assert_allclose(laboratory.collected.nll_CJW[c, :, w], plain.nll_I, atol=1e-5)
        np.testing.assert_array_equal(laboratory.collected.greedy_CJW[c, :, w], plain.greedy_I)
    # The global adapter is the same for all; local ones differ.
    np.testing.assert_array_equal(*laboratory.collected.nll_CJW[..., 0])
    assert np.abs(np.diff(laboratory.collected.nll_CJW[..., 8], axis=0)).min() > 1e-4


def test_progress_counts_every_request(laboratory, tmp_path):
    cache = Cache(tmp_path / "evidence", {"checkpoint": "a"})
    cache.open(fresh=False)
    done = []
    collect(laboratory.scorer, laboratory.questions, cache, done.append)
    assert sum(done) == laboratory.questions.requests(laboratory.scorer.adapters)
    assert cache.holds(laboratory.questions.parts())
    assert {"tokens", "others"} < set(laboratory.questions.parts())
