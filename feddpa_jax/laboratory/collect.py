"""What all rules together may ask for, of every client and instance; and every answer's scores.

One pass scores all instances at one mixing weight. The passes at 0, 1/2 and 1 are those of the
global adapter, the even mix and the local one, and embed the prompts too, as does one of the base.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import chex
import numpy as np

from feddpa_jax.inference.scorer import Request, Scorer, Scores
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts, Part
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS, Evidence
from feddpa_jax.weighting.gathering import (
    MIXES,
    look,
    prompt_alone,
    support_draw,
)
from feddpa_jax.weighting.settings import Model, Pooling, WeightingSettings

_AT_WEIGHT = {"global": 0.0, "mixed": 0.5, "local": 1.0}
POOLINGS: tuple[Pooling, ...] = ("last", "mean")
_BETWEEN = {w: f"weight_{w:.3f}" for w in WEIGHTS if w not in _AT_WEIGHT.values()}
# Bytes of embeddings that are computed at once.
BLOCK = 256 * 2**20
PARTS = (*MIXES, *_BETWEEN.values(), "prompts")


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is looked at.

    Attributes:
      ids: the clients' ids, for their draws.
      training: each client's examples.
      instances: J instances, those of validation and of the test together.
      dreams: made-up prompts.
      layers: after how many layers prompts are embedded, ascending.
      held: where each client's own held-out examples are among the instances.
    """

    ids: Sequence[int]
    training: Sequence[Sequence[TokenizedExample]]
    instances: Sequence[TokenizedExample]
    dreams: Sequence[TokenizedExample]
    layers: tuple[int, ...]
    held: Sequence[np.ndarray] = ()

    def requests(self) -> int:
        """How many requests `collect` scores."""
        C, J, S = len(self.ids), len(self.instances), sum(map(len, self.training))
        shared = J + S + len(self.dreams)
        own = C * J + S + C * len(self.dreams)
        prompts = (2 * J + C * J) + 3 * S
        return 2 * shared + 2 * own + len(_BETWEEN) * C * J + prompts

    def folds(self) -> np.ndarray:
        """Which of two halves of a client's own held-out examples an instance is in, [C, J].

        -1 for instances that are not the client's own held-out ones, or its only one. A rule that
        learns from held-out examples is judged on each half by what it learnt from the other one.
        """
        fold_CJ = np.full((len(self.ids), len(self.instances)), -1)
        for c, held_H in enumerate(self.held):
            if len(held_H) > 1:
                fold_CJ[c, held_H] = np.arange(len(held_H)) % 2
        return fold_CJ

    def held_without(self, client: int, fold: int) -> np.ndarray:
        """Where a client's own held-out examples are that are not in a fold."""
        own_H = self.held[client] if self.held else np.zeros(0, int)
        return own_H[self.folds()[client, own_H] != fold] if fold >= 0 else own_H


@dataclasses.dataclass(frozen=True)
class Collected:
    """Everything that was computed; c is a client's place, Y the layers, Q the poolings.

    Attributes:
      nll_CJW: response NLL of every client and instance at each of `WEIGHTS`.
      greedy_CJW: whether greedy decoding gives the target there.
      entropy_CJA: entropy of the first answer token under each of `MODELS`.
      query_nll_CJA: prompt NLL under each of `MODELS`.
      support_nll_A: by client, the training prompts' [S, A].
      embeddings: by model of `MIXES` and client: instances, training and dreams, [.., Y, Q, D].
    """

    questions: Questions
    nll_CJW: np.ndarray
    greedy_CJW: np.ndarray
    entropy_CJA: np.ndarray
    query_nll_CJA: np.ndarray
    support_nll_A: list[np.ndarray]
    embeddings: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]

    def evidence(
        self,
        client: int,
        settings: WeightingSettings,
        rows: slice = slice(None),
        fold: int = -1,
    ) -> Evidence:
        """A client's evidence on some instances, as `gather` would give it.

        Args:
          client: its place.
          settings: how prompts are embedded, and the support's draw.
          rows: of which instances.
          fold: the half of the client's held-out examples that is left out; -1 for none.
        """
        own = self.questions
        layer = own.layers[-1] if settings.layer is None else settings.layer
        at = (slice(None), own.layers.index(layer), POOLINGS.index(settings.pooling))
        query, support, dream = self.embeddings[settings.embed_with][client]
        draw_M = support_draw(len(own.training[client]), settings, 1, own.ids[client])
        held_H = own.held_without(client, fold)
        length_B = np.array([example.prompt_length for example in own.instances[rows]], np.int32)
        return Evidence(
            query_BD=query[at][rows],
            support_MD=support[at][draw_M],
            dream_ND=dream[at],
            query_nll_BA=self.query_nll_CJA[client, rows],
            support_nll_MA=self.support_nll_A[client][draw_M],
            entropy_BA=self.entropy_CJA[client, rows],
            length_B=length_B,
            held_HD=query[at][held_H],
            held_nll_HW=self.nll_CJW[client, held_H].astype(np.float32),
        )


def with_matches(collected: Collected, can_J: np.ndarray) -> Collected:
    """No exact match where the answer of the target's tokens is not the target's text."""
    greedy_CJW = collected.greedy_CJW.astype(bool) & can_J[:, None]
    return dataclasses.replace(collected, greedy_CJW=greedy_CJW)


def collect(
    scorer: Scorer,
    questions: Questions,
    cache: Cache | MemoryParts,
    on_done: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Computes what the cache has not, part by part.

    Args:
      scorer: of the base, the adapters, and shapes for all examples and bare prompts.
      questions: what to look at.
      cache: opened.
      on_done: called with the number of requests that were scored.
    """
    C, J = len(questions.ids), len(questions.instances)
    counts = [len(own) for own in questions.training]
    looked = {
        model: cache.part(model, lambda model=model: _look(scorer, questions, model, on_done))
        for model in MIXES
    }
    at_weight = {_AT_WEIGHT[model]: looked[model] for model in _AT_WEIGHT}
    for weight, name in _BETWEEN.items():
        at_weight[weight] = cache.part(
            name, lambda weight=weight: _at_weight(scorer, questions, weight, on_done)
        )
    prompts = cache.part("prompts", lambda: _prompts(scorer, questions, on_done))

    def everywhere(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (C, *values.shape[1:]))

    bounds = np.cumsum(counts)[:-1]
    embeddings = {}
    for model, part in looked.items():
        query, dream = everywhere(part["query"]), everywhere(part["dream"])
        supports = np.split(part["support"], bounds)
        embeddings[model] = [(query[c], supports[c], dream[c]) for c in range(C)]
    chex.assert_shape(prompts["query_nll"], (C, J, len(MODELS)))
    return Collected(
        questions,
        np.stack([everywhere(at_weight[w]["nll"]) for w in WEIGHTS], axis=-1),
        np.stack([everywhere(at_weight[w]["greedy"]) for w in WEIGHTS], axis=-1),
        np.stack([everywhere(looked[m]["entropy"]) for m in MODELS], axis=-1),
        prompts["query_nll"],
        np.split(prompts["support_nll"], bounds),
        embeddings,
    )


def _embedded(scores: Scores) -> np.ndarray:
    """[I, Y, Q, D]."""
    return np.stack([scores.last_ILD, scores.mean_ILD], axis=2)


def _look(
    scorer: Scorer, questions: Questions, model: Model, on_done: Callable[[int], None]
) -> Part:
    """Instances, training prompts and dreams under a model; one row stands for all clients."""
    clients = len(questions.ids) if MIXES[model][1] else 1

    J, S = len(questions.instances), list(map(len, questions.training))
    sizes = (len(questions.layers), len(POOLINGS), scorer.model.config.width)
    at_once = max(1, BLOCK // (4 * max(J, *S) * math.prod(sizes)))

    def see(examples: Sequence[Sequence[TokenizedExample]]) -> Iterator[tuple[int, Scores]]:
        """Each client's scores, a few clients at a time: they take as much memory again."""
        for first in range(0, len(examples), at_once):
            some = [*[()] * first, *examples[first : first + at_once]]
            scores = look(scorer, some, model, layers=questions.layers, on_done=on_done)
            yield from list(enumerate(scores))[first:]

    found: Part = {
        "nll": np.empty((clients, J)),
        "greedy": np.empty((clients, J), bool),
        "entropy": np.empty((clients, J), np.float32),
        "query": np.empty((clients, J, *sizes), np.float32),
        "dream": np.empty((clients, len(questions.dreams), *sizes), np.float32),
        "support": np.empty((sum(S), *sizes), np.float32),
    }
    for c, scores in see([questions.instances] * clients):
        found["nll"][c], found["greedy"][c] = scores.nll_I, scores.greedy_I
        found["entropy"][c], found["query"][c] = scores.entropy_I, _embedded(scores)
    for c, scores in see([questions.dreams] * clients):
        found["dream"][c] = _embedded(scores)
    ends = np.cumsum(S)
    for c, scores in see(questions.training):
        found["support"][ends[c] - S[c] : ends[c]] = _embedded(scores)
    return found


def _at_weight(
    scorer: Scorer, questions: Questions, weight: float, on_done: Callable[[int], None]
) -> Part:
    """All clients' scores of all instances at a local weight."""
    C, J = len(questions.ids), len(questions.instances)
    requests = [
        Request(c, example, 1.0 - weight, weight)
        for c in range(C)
        for example in questions.instances
    ]
    scores = scorer(requests, on_done, layers=())
    return {"nll": scores.nll_I.reshape(C, J), "greedy": scores.greedy_I.reshape(C, J)}


def _prompts(scorer: Scorer, questions: Questions, on_done: Callable[[int], None]) -> Part:
    """Likelihoods of the prompts themselves under each of `MODELS`."""
    C = len(questions.ids)
    instances = [prompt_alone(example) for example in questions.instances]
    training = [[prompt_alone(example) for example in own] for own in questions.training]
    query, support = [], []
    for model in MODELS:
        for found, examples in ((query, [instances] * C), (support, training)):
            scores = look(scorer, examples, model, layers=(), on_done=on_done)
            found.append([own.nll_I.astype(np.float32) for own in scores])
    return {
        "query_nll": np.stack([np.stack(own) for own in query], axis=-1),
        "support_nll": np.stack([np.concatenate(own) for own in support], axis=-1),
    }
