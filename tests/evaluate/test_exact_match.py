"""Exact match without an answer: what scores tell is what decoding gives."""

import dataclasses

import numpy as np
import pytest

from feddpa_jax.data.templates import alpaca_short
from feddpa_jax.data.tokenize import encode_examples
from feddpa_jax.evaluate.evaluation import Decoding, evaluate
from feddpa_jax.evaluate.known_answers import known_answer
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.types import Example
from feddpa_jax.weighting.settings import WeightingSettings
from tests.evaluate.tiny_evaluation import (
    ADAPTERS,
    MODEL,
    TEST,
    TOKENIZER,
    run,
    setting,
    tokenize,
)


def test_answers_known_from_scores_are_what_decoding_gives():
    """Targets that the model itself would give: the fast path must agree with decoding."""
    predictions_CI = run(metrics=("rouge1",), modes=("global",))["global"].predictions_CI
    assert predictions_CI is not None
    answers = predictions_CI[0]
    own = tuple(
        Example(e.instruction, answer, task=e.task)
        for e, answer in zip(TEST, answers, strict=True)
        if answer.strip() and TOKENIZER.decode(TOKENIZER.encode(answer)) == answer
    )
    if not own:
        pytest.fail(f"the tiny model says nothing that can be a target: {answers}")
    again = evaluate(
        MODEL,
        ADAPTERS,
        dataclasses.replace(setting(), instances=own, tokenized=tokenize(own)),
        modes=("global",),
        metrics=("rouge1", "exact_match"),
        weighting=WeightingSettings(support=3),
        fixed=0.5,
        decoding=Decoding(max_new_tokens=4, batch_tokens=512),
    )["global"]
    np.testing.assert_array_equal(again.scores_CI["exact_match"][0], 100.0)


def exact_matches(instances, tokenized, **changes) -> dict[tuple[str, ...], np.ndarray]:
    """By metrics, of the global adapter: with answers generated and without."""
    options = {
        "modes": ("global",),
        "weighting": WeightingSettings(support=3),
        "fixed": 0.5,
        "decoding": Decoding(max_new_tokens=4, batch_tokens=512),
    }
    about = dataclasses.replace(setting(), instances=instances, tokenized=tokenized)
    return {
        metrics: evaluate(MODEL, ADAPTERS, about, metrics=metrics, **(options | changes))[
            "global"
        ].scores_CI["exact_match"][0]
        for metrics in (("rouge1", "exact_match"), ("exact_match",))
    }


def greedy_texts(tokens: int) -> list[tuple[Example, str]]:
    """The first tokens that the global adapter answers the test instances with, as texts."""
    answerer = Answerer(MODEL, ADAPTERS, stop_ids=(-1,), pad_id=0, max_new_tokens=tokens)
    prompts = [Prompt(0, e.tokens_T[: e.prompt_length], 1.0, 0.0) for e in tokenize(TEST)]
    return list(zip(TEST, map(TOKENIZER.decode_continuation, answerer(prompts)), strict=True))


def test_exact_match_is_that_of_the_text_whether_or_not_it_is_generated():
    """Targets that the model gives token for token, whole, cut or too long; and other targets."""
    texts = greedy_texts(4)
    spelled = [
        (example, text)
        for example, text in texts
        if text.isascii() and text.strip() == text and len(text) == 4
    ]
    assert spelled, f"the tiny model says nothing that can be a target: {texts}"
    example, text = spelled[0]
    prompt = tokenize([example])[0].prompt_length
    wrong = "#" if text[2] != "#" else "*"
    cases = {
        4: [
            (text, 200, 100.0),  # The answer has no room for its end token.
            (text + "\n", 200, 100.0),  # White space at the end is ignored,
            (" " + text, 200, 0.0),  # and at the start it counts.
            (text[:2] + wrong, 200, 0.0),
            # The first two tokens are the model's; two more follow them.
            (text, prompt + 2, 100.0),
            (text[:2] + "else", prompt + 2, 0.0),
        ],
        # An answer of three tokens is not a target of four, or of two.
        3: [(text, 200, 0.0), (text[:2], 200, 0.0)],
    }
    for most, group in cases.items():
        instances = tuple(Example(example.instruction, c[0], task=example.task) for c in group)
        tokenized = tuple(
            encode_examples([instance], TOKENIZER, alpaca_short, max_length).examples[0]
            for instance, (_, max_length, _) in zip(instances, group, strict=True)
        )
        decoding = Decoding(max_new_tokens=most, batch_tokens=512)
        for metrics, score_I in exact_matches(instances, tokenized, decoding=decoding).items():
            assert score_I.tolist() == [expected for _, _, expected in group], (most, metrics)


def test_a_target_with_an_end_token_inside_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    """Greedy decoding ends there, although the argmax is the target at every position."""
    test = (Example("say", "ab", task="add"), Example("say", "a<|end|>b", task="add"))
    known = [known_answer(example, TOKENIZER, most=4) for example in tokenize(test)]
    assert known == ["ab", "a"]
    own = dataclasses.replace(setting(), instances=test, tokenized=tokenize(test))
    monkeypatch.setattr(Scorer, "__call__", always_greedy(Scorer.__call__))
    options = {"modes": ("base",), "weighting": WeightingSettings(support=3), "fixed": 0.25}
    options |= {"decoding": Decoding(max_new_tokens=4)}
    scores = evaluate(MODEL, ADAPTERS, own, metrics=("exact_match",), **options)["base"].scores_CI
    np.testing.assert_array_equal(scores["exact_match"], [[100, 0], [100, 0]])
    decoded = evaluate(MODEL, ADAPTERS, own, metrics=("rouge1",), **options)["base"].predictions_CI
    assert decoded is not None
    assert decoded == [["ab", "a"]] * 2


def always_greedy(call):
    """A scorer's call that finds every target the likeliest."""

    def scored(self, *args, **options):
        scores = call(self, *args, **options)
        return dataclasses.replace(scores, greedy_I=np.ones_like(scores.greedy_I))

    return scored
