"""What all rules together may ask for, of every client and instance; and every answer's scores.

One pass scores all instances at one mixing weight. The passes at 0, 1/2 and 1 are those of the
global adapter, the even mix and the local one, and embed the prompts too, as does one of the base.
Where prompts are to be embedded at another mix, the pass at 1/2 is one of its own.
Likelihoods by token, and under the adapters that other clients had a part in, are computed only if
a rule asks for them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.inference.scorer import Request, Scorer, Scores
from feddpa_jax.laboratory.evidence_cache import Cache, MemoryParts, Part
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS, Evidence
from feddpa_jax.weighting.gathering import prompt_alone, support_draw
from feddpa_jax.weighting.looking import MIXES, by_token, look, same_for_all, side_by_side
from feddpa_jax.weighting.settings import Model, Pooling, WeightingSettings

_AT_WEIGHT = {"global": 0.0, "mixed": 0.5, "local": 1.0}
POOLINGS: tuple[Pooling, ...] = ("last", "mean")
_BETWEEN = {w: f"weight_{w:.3f}" for w in WEIGHTS if w not in _AT_WEIGHT.values()}
PARTS = (*MIXES, *_BETWEEN.values(), "prompts")
# The scores at 1/2, where prompts are mixed at another weight.
_HALF = "weight_0.500"
# Parts that are computed only for rules that see these fields.
_ASKED = {
    "tokens": ("query_nll_BTA", "query_mask_BT"),
    "others": ("query_nll_BE", "entropy_BE"),
}


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
      fields: of `Evidence`, those that rules ask for.
      read: the text of tokens.
      mixed: the local weight of the model "mixed", which prompts are embedded under.
    """

    ids: Sequence[int]
    training: Sequence[Sequence[TokenizedExample]]
    instances: Sequence[TokenizedExample]
    dreams: Sequence[TokenizedExample]
    layers: tuple[int, ...]
    held: Sequence[np.ndarray] = ()
    fields: frozenset[str] = frozenset()
    read: Callable[[np.ndarray], str] = repr
    mixed: float = 0.5

    def parts(self) -> tuple[str, ...]:
        """The parts of the evidence that are needed."""
        asked = (name for name, own in _ASKED.items() if self.fields & set(own))
        half = () if self.mixed == 0.5 else (_HALF,)
        return (*(self.name_of(part) for part in PARTS), *half, *asked)

    def name_of(self, part: str) -> str:
        """A part's name; prompts that are mixed at another weight than 1/2 are another part."""
        return part if part != "mixed" or self.mixed == 0.5 else f"mixed_{self.mixed:.6f}"

    def requests(self, adapters: Adapters) -> int:
        """How many requests `collect` scores under some adapters."""
        C, J, S = len(self.ids), len(self.instances), sum(map(len, self.training))
        of = {model: 1 if same_for_all(model, adapters) else C for model in MIXES}
        looks = sum(S + clients * (J + len(self.dreams)) for clients in of.values())
        prompts = sum(of[model] * J + S for model in MODELS)
        found = looks + (len(_BETWEEN) + (_HALF in self.parts())) * C * J + prompts
        if "tokens" in self.parts():
            found += sum(of[model] * J for model in MODELS)
        if "others" in self.parts():
            others = [same_for_all("global", own) for own in adapters.of_others()]
            found += sum(2 * J * (1 if shared else C) for shared in others)
        return found

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
      entropy_CJW: the same at each of `WEIGHTS`.
      query_nll_CJA: prompt NLL under each of `MODELS`.
      support_nll_A: by client, the training prompts' [S, A].
      embeddings: by model of `MIXES` and client: instances, training and dreams, [.., Y, Q, D].
      asked: fields of `Evidence` that few rules ask for, [C, J, ...].
    """

    questions: Questions
    nll_CJW: np.ndarray
    greedy_CJW: np.ndarray
    entropy_CJA: np.ndarray
    entropy_CJW: np.ndarray
    query_nll_CJA: np.ndarray
    support_nll_A: list[np.ndarray]
    embeddings: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]
    asked: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

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
        return Evidence(
            **asked,
            query_BD=query[at][rows],
            support_MD=support[at][draw_M],
            dream_ND=dream[at],
            query_nll_BA=self.query_nll_CJA[client, rows],
            support_nll_MA=self.support_nll_A[client][draw_M],
            entropy_BA=self.entropy_CJA[client, rows],
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
    counts = [len(own) for own in questions.training]
    looked = {
        model: cache.part(
            questions.name_of(model), lambda model=model: _look(scorer, questions, model, on_done)
        )
        for model in MIXES
    }
    at_weight = {_AT_WEIGHT[model]: looked[model] for model in _AT_WEIGHT}
    half = {0.5: _HALF} if _HALF in questions.parts() else {}
    for weight, name in {**_BETWEEN, **half}.items():
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
        np.stack([everywhere(at_weight[w]["entropy"]) for w in WEIGHTS], axis=-1),
        prompts["query_nll"],
        np.split(prompts["support_nll"], bounds),
        embeddings,
        _asked(scorer, questions, cache, on_done),
    )


def _embedded(scores: Scores) -> np.ndarray:
    """[I, Y, Q, D]."""
    return np.stack([scores.last_ILD, scores.mean_ILD], axis=2)


def _look(
    scorer: Scorer, questions: Questions, model: Model, on_done: Callable[[int], None]
) -> Part:
    """Instances, training prompts and dreams; one row where all clients have the same model."""
    clients = 1 if same_for_all(model, scorer.adapters) else len(questions.ids)

    def see(examples: Sequence[Sequence[TokenizedExample]]) -> list[Scores]:
        return look(
            *(scorer, examples, model),
            mixed=questions.mixed,
            layers=questions.layers,
            on_done=on_done,
        )

    queries = see([questions.instances] * clients)
    dreams = see([questions.dreams] * clients)
    supports = see(questions.training)
    return {
        "nll": np.stack([scores.nll_I for scores in queries]),
        "greedy": np.stack([scores.greedy_I for scores in queries]),
        "entropy": np.stack([scores.entropy_I for scores in queries]),
        "query": np.stack([_embedded(scores) for scores in queries]),
        "dream": np.stack([_embedded(scores) for scores in dreams]),
        "support": np.concatenate([_embedded(scores) for scores in supports]),
    }


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
