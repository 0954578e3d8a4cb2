"""Evaluation: packed scores equal plain ones, known answers are what decoding gives."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from feddpa_jax.adapters.dual import Adapters, dual_branches
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.cli.scores_table import render
from feddpa_jax.evaluate import evaluation
from feddpa_jax.evaluate.evaluation import Decoding, ModeResult, evaluate
from feddpa_jax.evaluate.modes import available_modes, fixed_weights
from feddpa_jax.evaluate.results import make_evaluation, write_evaluation
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Request, Scorer
from feddpa_jax.models.decoder import causal_mask
from feddpa_jax.types import UserError
from feddpa_jax.weighting.settings import WeightingSettings
from tests.evaluate.tiny_evaluation import (
    ADAPTERS,
    GLOBAL,
    LOCAL_C,
    MODEL,
    SCALE,
    TEST,
    TOKENIZER,
    TRAIN,
    run,
    setting,
    tokenize,
)


@pytest.fixture(scope="module")
def results():
    return run()


@jax.jit
def forward(tokens_T, branches):
    """The states and log-probabilities of one example alone."""
    T = len(tokens_T)
    mask = causal_mask(jnp.ones((1, T), jnp.int32))
    hidden_BTD, _ = MODEL.hidden(tokens_T[None], jnp.arange(T)[None], mask, branches)
    return hidden_BTD, jax.nn.log_softmax(MODEL.logits(hidden_BTD[0]))


def plain(example, client: int, g, l):
    """One example alone: mean response NLL, greedy?, last and mean prompt state."""
    tokens_T, prompt, _ = example
    T = len(tokens_T)
    branches = dual_branches(
        bank_of(GLOBAL),
        LOCAL_C,
        jnp.array([client]),
        tuple(jnp.array([w]) for w in l) if np.ndim(l) else jnp.array([l]),
        scale=SCALE,
        global_weight=tuple(jnp.array([w]) for w in g) if np.ndim(g) else jnp.array([g]),
    )
    hidden_BTD, logp_TV = forward(tokens_T, branches)
    hidden_BTD = np.asarray(hidden_BTD)
    target_T = tokens_T[prompt:]
    at = np.arange(prompt - 1, T - 1)
    nll = -np.asarray(logp_TV)[at, target_T].mean()
    greedy = (np.asarray(logp_TV).argmax(axis=1)[at] == target_T).all()
    return nll, greedy, hidden_BTD[0, prompt - 1], hidden_BTD[0, :prompt].mean(axis=0)


def test_packed_scores_equal_plain_ones():
    draw = np.random.default_rng(0)
    examples = tokenize(TEST) + tokenize(TRAIN[0]) + tokenize(TRAIN[1])
    requests = [
        Request(int(draw.integers(2)), e, float(draw.random()), float(draw.random()))
        for e in examples
    ]
    # Some have their own weights in each of the two layers.
    requests[::3] = [
        request._replace(global_weight=draw.random(2), local_weight=draw.random(2))
        for request in requests[::3]
    ]
    scorer = Scorer.for_examples(MODEL, ADAPTERS, examples, block_tokens=400)
    scores = scorer(requests)
    for i, (client, example, g, l) in enumerate(requests):
        nll, greedy, last_D, mean_D = plain(example, client, g, l)
        assert scores.nll_I[i] == pytest.approx(nll, abs=2e-5)
        assert scores.greedy_I[i] == greedy
        np.testing.assert_allclose(scores.last_ILD[i, 0], last_D, atol=2e-5)
        np.testing.assert_allclose(scores.mean_ILD[i, 0], mean_D, atol=2e-5)


def test_weights_of_every_mode(results):
    assert list(results) == ["base", "global", "local", "fixed", "instance"]
    expected = {"base": (0, 0), "global": (1, 0), "local": (0, 1), "fixed": (0.75, 0.25)}
    for mode, (g, l) in expected.items():
        np.testing.assert_allclose(results[mode].weights.global_CI, g)
        np.testing.assert_allclose(results[mode].weights.local_CI, l)
    weights = results["instance"].weights
    assert weights.similarity_CI is not None
    np.testing.assert_allclose(weights.local_CI, np.clip(0.5 * weights.similarity_CI, 0, 1))
    np.testing.assert_allclose(weights.global_CI, 1 - weights.local_CI)
    assert len(np.unique(weights.local_CI)) == weights.local_CI.size
    for mode in results:
        for c in range(2):
            g, l = (
                float(w[c, 1])
                for w in (results[mode].weights.global_CI, results[mode].weights.local_CI)
            )
            nll = plain(tokenize(TEST)[1], c, g, l)[0]
            assert results[mode].scores_CI["nll"][c, 1] == pytest.approx(nll, abs=2e-5)


def test_released_orientation_and_embeddings(results):
    released = run(
        modes=("instance",),
        metrics=("nll",),
        weighting=WeightingSettings(support=3, scales="global"),
    )["instance"]
    paper = results["instance"]
    np.testing.assert_allclose(released.weights.local_CI, 1 - paper.weights.local_CI, atol=1e-6)
    other = run(
        modes=("instance",),
        metrics=("nll",),
        weighting=WeightingSettings(support=3, embed_with="base", pooling="mean", resample=True),
    )["instance"]
    assert other.weights.similarity_CI is not None
    assert paper.weights.similarity_CI is not None
    assert not np.allclose(other.weights.similarity_CI, paper.weights.similarity_CI, atol=1e-3)


def test_weights_of_layers_in_answers():
    """The same weight in both layers is that weight; layers swapped are another model."""
    prompts_of = [e.tokens_T[: e.prompt_length] for e in tokenize(TEST)]

    def answers(weight, beams: int = 1) -> list[list[int]]:
        answerer = Answerer(
            MODEL, ADAPTERS, stop_ids=(-1,), pad_id=0, max_new_tokens=6, beams=beams
        )
        other = 1.0 - np.asarray(weight, np.float32)
        prompts = [Prompt(1, tokens_T, other, np.asarray(weight)) for tokens_T in prompts_of]
        return [tokens_T.tolist() for tokens_T in answerer(prompts)]

    for beams in (1, 2):
        assert answers([0.3, 0.3], beams) == answers(0.3, beams)
        assert answers([0.0, 1.0], beams) != answers([1.0, 0.0], beams)


def test_a_rule_of_layers(tmp_path):
    weighting = WeightingSettings("layerwise", support=3, scale=0.9)
    results = run(modes=["instance"], weighting=weighting)
    weights = results["instance"].weights
    assert weights.local_CI.shape == (2, 4, 2)
    np.testing.assert_allclose(weights.global_CI + weights.local_CI, 1.0, atol=1e-6)
    # Before the first layer stand the embeddings of the last prompt token, the same in all prompts.
    np.testing.assert_allclose(weights.local_CI[..., 0], 0.9, atol=1e-5)
    assert weights.local_CI[..., 1].std() > 1e-3
    report = make_evaluation(results, setting(), settings={})
    write_evaluation(tmp_path, report)
    line = json.loads((tmp_path / "instances.jsonl").read_text().splitlines()[0])
    assert line["local_weight"] == pytest.approx(np.mean(line["local_weight_by_layer"]))


ANSWERS = (("10", "88 x", "a 12 b", "no"), ("it 10 y z", "88", "", "It"))
# F1 of one common word: 1 of 1, 2, 3, 4 words against 1 of 1; ROUGE-1 is blind to case.
ROUGES = ((100.0, 200 / 3, 50.0, 0.0), (40.0, 100.0, 0.0, 100.0))


def test_answers_are_scored_by_hand(monkeypatch):
    """Every client's answers, against the targets of their own instances."""
    told = {}

    class Told:
        def __init__(self, model, adapters, **options):
            told.update(options)

        def __call__(self, prompts, on_done=None):
            found = []
            texts = [e.tokens_T[: e.prompt_length].tolist() for e in tokenize(TEST)]
            for prompt in prompts:
                i = texts.index(prompt.tokens_T.tolist())
                found.append(np.array(TOKENIZER.encode(ANSWERS[prompt.client][i])))
            return found

    monkeypatch.setattr(evaluation, "Answerer", Told)
    result = run(modes=("local",), decoding=Decoding(3, max_new_tokens=9, batch_tokens=77))["local"]
    assert result.predictions_CI == [list(own) for own in ANSWERS]
    np.testing.assert_allclose(result.scores_CI["rouge1"], ROUGES)
    np.testing.assert_array_equal(result.scores_CI["exact_match"], [[100, 0, 0, 0], [0, 100, 0, 0]])
    assert (told["beams"], told["max_new_tokens"], told["batch_tokens"]) == (3, 9, 77)


def test_beams_answer_otherwise_and_in_batches():
    """Two beams find other answers than one, the same in batches of any size."""
    options = {"modes": ("instance",), "metrics": ("rouge1",)}

    def answers(beams: int, batch_tokens: int):
        decoding = Decoding(beams, max_new_tokens=6, batch_tokens=batch_tokens)
        return run(**options, decoding=decoding)["instance"].predictions_CI

    assert answers(3, 512) == answers(3, 4096) != answers(1, 512)


def test_report_on_disk_and_on_screen(tmp_path, results):
    tasks = setting().tasks()
    np.testing.assert_array_equal(tasks.own_CK, [[True, False, False], [False, False, True]])
    settings = {"answers_with": "instance", "weighting": {"scales": "local"}}
    report = make_evaluation(results, setting(), settings=settings)
    write_evaluation(tmp_path, report)
    summary = json.loads((tmp_path / "summary.json").read_text())
    nll_CI = results["local"].scores_CI["nll"]
    # anna's own instances are 0 and 2, ben's is 1.
    expected = (nll_CI[0, [0, 2]].mean() + nll_CI[1, 1]) / 2
    assert summary["modes"]["local"]["nll"]["P"]["value"] == pytest.approx(expected)
    assert summary["modes"]["local"]["nll"]["matrix"]["ben"]["other"] == pytest.approx(nll_CI[1, 3])
    lines = [json.loads(line) for line in (tmp_path / "instances.jsonl").read_text().splitlines()]
    assert len(lines) == 5 * 2 * 4
    instance = [line for line in lines if line["mode"] == "instance"]
    assert all(line["local_weight"] == pytest.approx(0.5 * line["similarity"]) for line in instance)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    for word in ("instance *", "P: own task", "TTP: all tasks", "response NLL"):
        assert word in text
    assert "no word" not in text


def test_targets_without_words_are_reported():
    def said(metric: str, **settings) -> str:
        weights = fixed_weights("global", 2, 4, fixed=0.5)
        results = {"global": ModeResult(weights, {metric: np.ones((2, 4))}, None)}
        report = make_evaluation(results, setting(), settings=settings)
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(render(report))
        return console.export_text()

    assert "3 test targets have no word, only punctuation" in said(
        "rouge1", targets_without_words=3
    )
    assert "no word" not in said("rouge1", targets_without_words=0)
    assert "no word" not in said("nll", targets_without_words=3)


def test_modes_need_their_adapters():
    assert available_modes(Adapters(bank_of(GLOBAL), None, SCALE)) == ("base", "global")
    with pytest.raises(UserError, match=r"eval\.modes: this method has no 'local'"):
        evaluate(
            MODEL,
            Adapters(bank_of(GLOBAL), None, SCALE),
            setting(),
            modes=("local",),
            metrics=("nll",),
            weighting=WeightingSettings(),
            fixed=0.5,
            decoding=Decoding(),
        )
