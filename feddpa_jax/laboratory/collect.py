"""What all rules together may ask for, of every client and instance; and every answer's scores.

One pass scores all instances at one mixing weight. The passes at 0, 1/2 and 1 are those of the
global adapter, the even mix and the local one, and embed the prompts too if a rule may ask for
that, as does one of the base. Where prompts are to be embedded at another mix, the pass at 1/2 is
one of its own. What few rules ask for is computed only if one does: prompts that the base makes up,
likelihoods of the prompts, whole and by token, and under the adapters that other clients had a part
in.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import numpy as np

from feddpa_jax.inference.scorer import Request, Scorer, Scores
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts, Part
from feddpa_jax.laboratory.questions import Questions, dreams_of
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS, Evidence
from feddpa_jax.weighting.gathering import prompt_alone, support_draw
from feddpa_jax.weighting.looking import by_token, look, same_for_all, side_by_side
from feddpa_jax.weighting.settings import Model, Pooling, WeightingSettings

POOLINGS: tuple[Pooling, ...] = ("last", "mean")
# Bytes of embeddings that are computed at once.
BLOCK = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Collected:
    """Everything that was computed; c is a client's place, Y the layers, Q the poolings.

    Attributes:
      nll_CJW: response NLL of every client and instance at each of `WEIGHTS`.
      greedy_CJW: whether greedy decoding gives the target there.
      entropy_CJW: entropy of the first answer token at each of `WEIGHTS`.
      embeddings: by model and client: instances, training and dreams, [.., Y, Q, D].
      asked: fields of `Evidence` that not all rules ask for, [C, J, ...].
      support_nll_A: by client, the training prompts' NLL under each of `MODELS`, [S, A]; None if no
        rule asks for it.
    """

    questions: Questions
    nll_CJW: np.ndarray
    greedy_CJW: np.ndarray
    entropy_CJW: np.ndarray
    embeddings: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]
    asked: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    support_nll_A: list[np.ndarray] | None = None

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
        texts = {
            "query_text": own.instances[rows],
            "support_text": [own.training[client][i] for i in draw_M],
            "held_text": [own.instances[j] for j in held_H],
        }
        asked: dict[str, Any] = {
            name: tuple(own.read(e.tokens_T[: e.prompt_length]) for e in examples)
            for name, examples in texts.items()
            if name in own.fields
        }
        asked |= {name: values_CJ[client, rows] for name, values_CJ in self.asked.items()}
        if self.support_nll_A is not None:
            asked["support_nll_MA"] = self.support_nll_A[client][draw_M]
        return Evidence(
            **asked,
            query_BD=query[at][rows],
            support_MD=support[at][draw_M],
            dream_ND=dream[at],
            entropy_BW=self.entropy_CJW[client, rows],
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
    parts = questions.parts()
    looked: dict[Model, Part] = {
        model: cache.part(
            questions.name_of(model), lambda model=model: _look(scorer, questions, model, on_done)
        )
        for model in questions.models
    }
    of_look = {questions.name_of(model): part for model, part in looked.items()}
    at_weight = {
        weight: of_look[name]
        if name in of_look
        else cache.part(name, lambda weight=weight: _at_weight(scorer, questions, weight, on_done))
        for weight, name in questions.passes().items()
    }

    def everywhere(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (C, *values.shape[1:]))

    bounds = np.cumsum([len(own) for own in questions.training])[:-1]
    embeddings = {}
    for model, part in looked.items():
        query = everywhere(part["query"])
        dream = query[:, :0]
        if dreams_of(questions.name_of(model)) in parts:
            found = cache.part(
                dreams_of(questions.name_of(model)),
                lambda model=model: _dreamt(scorer, questions, model, on_done),
            )
            dream = everywhere(found["dream"])
        supports = np.split(part["support"], bounds)
        embeddings[model] = [(query[c], supports[c], dream[c]) for c in range(C)]
    asked, support_nll = _asked(scorer, questions, cache, on_done), None
    if "prompts" in parts:
        prompts = cache.part("prompts", lambda: _prompts(scorer, questions, on_done))
        chex.assert_shape(prompts["query_nll"], (C, J, len(MODELS)))
        asked["query_nll_BA"] = prompts["query_nll"]
        support_nll = np.split(prompts["support_nll"], bounds)
    if "entropy_BA" in questions.fields:
        by_model = [everywhere(looked[model]["entropy"]) for model in MODELS]
        asked["entropy_BA"] = np.stack(by_model, axis=-1)
    return Collected(
        questions,
        np.stack([everywhere(at_weight[w]["nll"]) for w in WEIGHTS], axis=-1),
        np.stack([everywhere(at_weight[w]["greedy"]) for w in WEIGHTS], axis=-1),
        np.stack([everywhere(at_weight[w]["entropy"]) for w in WEIGHTS], axis=-1),
        embeddings,
        asked,
        support_nll,
    )


def _embedded(scores: Scores) -> np.ndarray:
    """[I, Y, Q, D]."""
    return np.stack([scores.last_ILD, scores.mean_ILD], axis=2)


def _look(
    scorer: Scorer, questions: Questions, model: Model, on_done: Callable[[int], None]
) -> Part:
    """Instances and training prompts; one row where all clients have the same model."""
    clients = 1 if same_for_all(model, scorer.adapters) else len(questions.ids)
    J, S = len(questions.instances), list(map(len, questions.training))
    sizes = _sizes(scorer, questions)
    at_once = max(1, BLOCK // (4 * max(J, *S) * math.prod(sizes)))

    def see(examples: Sequence[Sequence[TokenizedExample]]) -> Iterator[tuple[int, Scores]]:
        """Each client's scores, a few clients at a time: they take as much memory again."""
        for first in range(0, len(examples), at_once):
            some = [*[()] * first, *examples[first : first + at_once]]
            scores = look(
                *(scorer, some, model),
                mixed=questions.mixed,
                layers=questions.layers,
                on_done=on_done,
            )
            yield from list(enumerate(scores))[first:]

    found: Part = {
        "nll": np.empty((clients, J)),
        "greedy": np.empty((clients, J), bool),
        "entropy": np.empty((clients, J), np.float32),
        "query": np.empty((clients, J, *sizes), np.float32),
        "support": np.empty((sum(S), *sizes), np.float32),
    }
    for c, scores in see([questions.instances] * clients):
        found["nll"][c], found["greedy"][c] = scores.nll_I, scores.greedy_I
        found["entropy"][c], found["query"][c] = scores.entropy_I, _embedded(scores)
    ends = np.cumsum(S)
    for c, scores in see(questions.training):
        found["support"][ends[c] - S[c] : ends[c]] = _embedded(scores)
    return found


def _dreamt(
    scorer: Scorer, questions: Questions, model: Model, on_done: Callable[[int], None]
) -> Part:
    """The embeddings of made-up prompts; one row where all clients have the same model."""
    clients = 1 if same_for_all(model, scorer.adapters) else len(questions.ids)
    shape = (clients, len(questions.dreams), *_sizes(scorer, questions))
    at_once = max(1, BLOCK // (4 * max(1, math.prod(shape[1:]))))
    found_C = np.empty(shape, np.float32)
    for first in range(0, clients, at_once):
        some = [*[()] * first, *[questions.dreams] * min(at_once, clients - first)]
        scores = look(
            *(scorer, some, model), mixed=questions.mixed, layers=questions.layers, on_done=on_done
        )
        for c, own in list(enumerate(scores))[first:]:
            found_C[c] = _embedded(own)
    return {"dream": found_C}


def _sizes(scorer: Scorer, questions: Questions) -> tuple[int, int, int]:
    """Y, Q and D."""
    return len(questions.layers), len(POOLINGS), scorer.model.config.width


def _at_weight(
    scorer: Scorer, questions: Questions, weight: float, on_done: Callable[[int], None]
) -> Part:
    """All clients' scores of all instances at a local weight; one row where they are the same."""
    shared = weight == 0 and same_for_all("global", scorer.adapters)
    C, J = 1 if shared else len(questions.ids), len(questions.instances)
    requests = [
        Request(c, example, 1.0 - weight, weight)
        for c in range(C)
        for example in questions.instances
    ]
    scores = scorer(requests, on_done, layers=())
    found = {"nll": scores.nll_I, "greedy": scores.greedy_I, "entropy": scores.entropy_I}
    return {name: values.reshape(C, J) for name, values in found.items()}


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


def _asked(
    scorer: Scorer,
    questions: Questions,
    cache: Cache | MemoryParts,
    on_done: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """What only some rules ask for, [C, J, ...] by field of `Evidence`."""
    C = len(questions.ids)
    compute = {
        "tokens": lambda: _tokens(scorer, questions, on_done),
        "others": lambda: _others(scorer, questions, on_done),
    }
    wanted = [name for name in compute if name in questions.parts()]
    found = {}
    for part in [cache.part(name, compute[name]) for name in wanted]:
        found |= {name: np.broadcast_to(own, (C, *own.shape[1:])) for name, own in part.items()}
    return found


def _tokens(scorer: Scorer, questions: Questions, on_done: Callable[[int], None]) -> Part:
    """Likelihoods of every token of the prompts, under each of `MODELS`."""
    alone = [[prompt_alone(e) for e in questions.instances]] * len(questions.ids)
    scores = [
        look(scorer, alone, model, layers=(), tokens=True, on_done=on_done) for model in MODELS
    ]
    by_client, masks = by_token(scores, [questions.instances] * len(questions.ids))
    return {"query_nll_BTA": np.stack(by_client), "query_mask_BT": masks[0][None]}


def _others(scorer: Scorer, questions: Questions, on_done: Callable[[int], None]) -> Part:
    """Prompts and answers under the adapters that other clients had a part in."""
    clients = len(questions.ids)
    instances = [list(questions.instances)] * clients
    alone = [[prompt_alone(example) for example in questions.instances]] * clients
    under = [scorer.under(adapters) for adapters in scorer.adapters.of_others()]

    def seen(examples: Sequence[Sequence[TokenizedExample]], field: str) -> np.ndarray:
        scores = [look(own, examples, "global", layers=(), on_done=on_done) for own in under]
        return np.stack(side_by_side(scores, field))

    return {"query_nll_BE": seen(alone, "nll_I"), "entropy_BE": seen(instances, "entropy_I")}
