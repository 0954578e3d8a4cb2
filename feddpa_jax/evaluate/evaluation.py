"""Evaluation of a federation: every client, every test instance, every inference mode."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.evaluate.known_answers import can_match, known_answer, needs_no_end
from feddpa_jax.evaluate.metrics import METRICS, score_texts
from feddpa_jax.evaluate.modes import (
    ModeWeights,
    adapters_in,
    available_modes,
    fixed_weights,
    instance_weights,
    same_for_all,
)
from feddpa_jax.evaluate.personalization import Tasks
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Request, Scorer, Scores
from feddpa_jax.models.decoder import Model
from feddpa_jax.progress import OnProgress, follow
from feddpa_jax.types import (
    Client,
    Example,
    TokenizedExample,
    UserError,
    client_id,
    names_of,
)
from feddpa_jax.weighting.gathering import gather
from feddpa_jax.weighting.looking import MIXES
from feddpa_jax.weighting.settings import WeightingSettings


@dataclasses.dataclass(frozen=True)
class Asked:
    """Who answers what.

    Attributes:
      clients: their names and tasks.
      instances: the test instances, I of them.
    """

    clients: Sequence[Client]
    instances: tuple[Example, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names."""
        return names_of(self.clients)

    def tasks(self) -> Tasks:
        """Which task each instance has, and whose own it is."""
        return self._tasks

    @functools.cached_property
    def _tasks(self) -> Tasks:
        names = tuple(sorted({example.task for example in self.instances}))
        return Tasks(
            names=names,
            task_I=np.array([names.index(example.task) for example in self.instances]),
            own_CK=np.array([_among(client.tasks, names) for client in self.clients]),
        )


def _among(own: Sequence[str], names: Sequence[str]) -> list[bool]:
    return [name in own for name in names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Asked):
    """What is evaluated on what.

    Attributes:
      training: each client's tokenized examples, the source of its support.
      tokenized: the instances, tokenized.
      tokenizer: the model's.
      dreams: made-up prompts, where the weighting rule asks for them (see `dreams`).
      held: each client's examples that the weighting rule learns from, where it does.
    """

    training: Sequence[tuple[TokenizedExample, ...]]
    tokenized: tuple[TokenizedExample, ...]
    tokenizer: Tokenizer
    dreams: tuple[TokenizedExample, ...] = ()
    held: tuple[tuple[TokenizedExample, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are made: beams (1 is greedy), their length, and tokens computed at once."""

    beams: int = 1
    max_new_tokens: int = 80
    batch_tokens: int = 4096


@dataclasses.dataclass(frozen=True)
class ModeResult:
    """What one mode gave, for every client and instance.

    Attributes:
      weights: the mixing weights.
      scores_CI: by metric.
      predictions_CI: the answers' texts; None where none were generated.
    """

    weights: ModeWeights
    scores_CI: dict[str, np.ndarray]
    predictions_CI: Sequence[Sequence[str]] | None


class _Pass:
    """One mode's requests: modes that are the same for all clients are computed once."""

    def __init__(self, shared: bool, weights: ModeWeights, tokenized: Sequence[TokenizedExample]):
        self.shared = shared
        self.clients = weights.local_CI.shape[0]
        self.rows = 1 if self.shared else self.clients
        self.requests = [
            Request(c, example, *weights.at(c, i))
            for c in range(self.rows)
            for i, example in enumerate(tokenized)
        ]

    def spread(self, flat: np.ndarray) -> np.ndarray:
        """Results in the order of the requests as [C, I, ...]."""
        values = flat.reshape(self.rows, -1, *flat.shape[1:])
        return np.broadcast_to(values, (self.clients, *values.shape[1:]))

    def by_client(self, scores: Scores) -> list[Scores]:
        """Each client's scores of the instances."""
        place_RI = np.arange(len(self.requests)).reshape(self.rows, -1)
        found = [scores.at(place_I) for place_I in place_RI]
        return found * (self.clients if self.shared else 1)


def evaluate(
    model: Model,
    adapters: Adapters,
    setting: Setting,
    *,
    modes: Sequence[str] | None,
    metrics: Sequence[str],
    weighting: WeightingSettings,
    fixed: float,
    decoding: Decoding,
    on_progress: OnProgress | None = None,
) -> dict[str, ModeResult]:
    """Scores, and where a metric needs the text also generates, every answer in every mode.

    Exact match compares texts. Where nothing else asks for generation, an answer that leaves the
    target's tokens counts as another text.

    Args:
      model: the frozen base.
      adapters: global, local, LoRA scale.
      setting: clients and instances.
      modes: which; None for all that the adapters allow.
      metrics: names of `METRICS`, or FILE.py:NAME.
      weighting: how instances are weighed.
      fixed: local weight of the mode "fixed".
      decoding: how answers are made.
      on_progress: called as answers are done.

    Returns:
      Results by mode.

    Raises:
      UserError: a mode that the adapters do not allow.
    """
    chosen = _chosen(adapters, modes)
    weights, passes, scores = _score(
        model, adapters, setting, chosen, weighting, fixed, decoding, on_progress
    )
    asked = [METRICS.find(name) for name in metrics]
    generates = any(metric.generates for metric in asked) or decoding.beams > 1
    answers: dict[str, list[str | None]] = {m: [None] * len(passes[m].requests) for m in chosen}
    if generates or any(metric.score for metric in asked):
        answers = _answers(
            model, adapters, setting, passes, scores, decoding, on_progress, every=generates
        )
    return {
        mode: _result(
            weights[mode], passes[mode], scores[mode], answers[mode], generates, setting, metrics
        )
        for mode in chosen
    }


def _chosen(adapters: Adapters, modes: Sequence[str] | None) -> list[str]:
    """The modes asked for, in the order of `available_modes`."""
    possible = available_modes(adapters)
    chosen = [mode for mode in possible if modes is None or mode in modes]
    for mode in modes or ():
        if mode not in possible:
            raise UserError(f"eval.modes: this method has no {mode!r}; it has {list(possible)}")
    return chosen


def _score(
    model: Model,
    adapters: Adapters,
    setting: Setting,
    chosen: Sequence[str],
    weighting: WeightingSettings,
    fixed: float,
    decoding: Decoding,
    on_progress: OnProgress | None,
) -> tuple[dict[str, ModeWeights], dict[str, _Pass], dict[str, Scores]]:
    """By mode the weights, the requests and their scores; the instances are weighed in between."""
    C, I = len(setting.clients), len(setting.tokenized)
    # Training examples are scored too: any of them may be drawn as support.
    own_examples = (*setting.training, *setting.held)
    everything = [*setting.tokenized, *(e for own in own_examples for e in own), *setting.dreams]
    shared = {mode: same_for_all(mode, adapters) for mode in chosen}
    total = sum(I * (1 if shared[mode] else C) for mode in chosen)
    scorer = Scorer.for_examples(
        model,
        adapters,
        everything,
        block_tokens=decoding.batch_tokens,
        times=total / len(everything),
    )
    weights = {m: fixed_weights(m, C, I, fixed=fixed) for m in chosen if m != "instance"}
    passes: dict[str, _Pass] = {}
    scores: dict[str, Scores] = {}
    with follow("scoring", total, "answers", on_progress) as advance:
        for mode in chosen:
            if mode == "instance":
                evidence = gather(
                    scorer,
                    [client_id(client.name) for client in setting.clients],
                    setting.training,
                    setting.tokenized,
                    setting.dreams,
                    weighting,
                    {m: passes[m].by_client(scores[m]) for m in scores if m in MIXES},
                    setting.held,
                    setting.tokenizer.decode,
                )
                weights[mode] = instance_weights(evidence, weighting)
            passes[mode] = _Pass(shared[mode], weights[mode], setting.tokenized)
            own = scorer.under(adapters_in(mode, adapters))
            scores[mode] = own(passes[mode].requests, advance)
            weights[mode] = weights[mode].seen(scores[mode].gated_IL)
    return weights, passes, scores


def _answers(
    model: Model,
    adapters: Adapters,
    setting: Setting,
    passes: dict[str, _Pass],
    scores: dict[str, Scores],
    decoding: Decoding,
    on_progress: OnProgress | None,
    *,
    every: bool,
) -> dict[str, list[str | None]]:
    """The text of every request's answer; unless `every`, None for those that leave the target.

    Where the argmax is the target at every response position, greedy decoding gives the target:
    such answers are known without decoding.
    """
    tokenizer, most = setting.tokenizer, decoding.max_new_tokens
    texts = [known_answer(example, tokenizer, most) for example in setting.tokenized]
    endless_I = can_match(setting.instances, setting.tokenized, tokenizer, most)
    endless_I &= [needs_no_end(example, tokenizer, most) for example in setting.tokenized]
    open_: list[tuple[str, int]] = []
    answers: dict[str, list[str | None]] = {}
    for mode, own in passes.items():
        answers[mode] = [None] * len(own.requests)
        for r in range(len(own.requests)):
            i = r % len(texts)
            follows = decoding.beams == 1 and scores[mode].greedy_I[r]
            if follows:
                answers[mode][r] = texts[i]
            if answers[mode][r] is None and (every or follows or endless_I[i]):
                open_.append((mode, r))
    if not open_:
        return answers
    prompts: dict[str, list[Prompt]] = {mode: [] for mode, _ in open_}
    for mode, r in open_:
        client, example, g, l = passes[mode].requests[r]
        # The bare model seldom ends; tuned ones answer about as long as they were taught to.
        taught = len(example.tokens_T) - example.prompt_length
        guess = most if mode == "base" else taught
        prompts[mode].append(Prompt(client, example.tokens_T[: example.prompt_length], g, l, guess))
    with follow("answering", len(open_), "answers", on_progress) as advance:
        decoded: dict[str, list[np.ndarray]] = {}
        # Modes under the same adapters share their batches.
        alone = [mode for mode in prompts if mode in adapters.others]
        for group in [[mode for mode in prompts if mode not in alone], *([m] for m in alone)]:
            answerer = Answerer(
                model,
                adapters_in(group[0], adapters) if group else adapters,
                stop_ids=tokenizer.stop_ids,
                pad_id=tokenizer.pad_id,
                beams=decoding.beams,
                max_new_tokens=most,
                batch_tokens=decoding.batch_tokens,
            )
            found = iter(answerer([p for mode in group for p in prompts[mode]], advance))
            decoded |= {mode: [next(found) for _ in prompts[mode]] for mode in group}
    for mode, r in open_:
        answers[mode][r] = tokenizer.decode_continuation(decoded[mode].pop(0))
    return answers


def _result(
    weights: ModeWeights,
    own: _Pass,
    scores: Scores,
    answers: Sequence[str | None],
    generates: bool,
    setting: Setting,
    metrics: Sequence[str],
) -> ModeResult:
    instances = len(setting.instances)
    pairs = [(text, setting.instances[r % instances].output) for r, text in enumerate(answers)]
    flat = {}
    for name in metrics:
        of_scores = METRICS.find(name).of_scores
        flat[name] = score_texts(name, pairs) if of_scores is None else of_scores(scores)
    rows = None
    if generates:
        rows = [
            [text or "" for text, _ in pairs[(c % own.rows) * instances :][:instances]]
            for c in range(own.clients)
        ]
    return ModeResult(weights, {name: own.spread(flat[name]) for name in metrics}, rows)
