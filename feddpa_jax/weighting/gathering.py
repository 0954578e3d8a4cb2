"""The evidence of weighting rules: prompts under the models that a rule asks for."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.inference.mixture import Mixture, make_mixtures
from feddpa_jax.inference.scorer import Request, Scores, Scoring
from feddpa_jax.types import TokenizedExample, UserError
from feddpa_jax.weighting.evidence import MODELS, WEIGHTS, Evidence
from feddpa_jax.weighting.settings import Model, WeightingSettings
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance

# (g, l) of the models that prompts are looked at with.
MIXES: dict[Model, tuple[float, float]] = {
    "base": (0.0, 0.0),
    "global": (1.0, 0.0),
    "local": (0.0, 1.0),
    "mixed": (0.5, 0.5),
}


def pooled(scores: Scores, pooling: str, place: int = 0) -> np.ndarray:
    """The embeddings of scored examples, [I, D], at one of the layers that were asked for."""
    return (scores.last_ILD if pooling == "last" else scores.mean_ILD)[:, place]


def support_draw(count: int, settings: WeightingSettings, instances: int, ident: int) -> np.ndarray:
    """Which of a client's `count` examples are its support: [M], or [I, M] if resampled."""
    if settings.resample:
        return draw_support_per_instance(
            count, settings.support, instances, seed=settings.seed or 0, client=ident
        )
    return draw_support(count, settings.support, seed=settings.seed or 0, client=ident)


def prompt_alone(example: TokenizedExample) -> TokenizedExample:
    """The prompt as a response to its first token: what is scored is the prompt itself."""
    return TokenizedExample(example.tokens_T[: example.prompt_length], 1)


def look(
    scorer: Scoring,
    examples: Sequence[Sequence[TokenizedExample]],
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Scores]:
    """Each client's scores of its examples under a model of `MIXES`.

    Where the model has no local part, an example that several clients look at is scored once.

    Args:
      scorer: of the base and the adapters.
      examples: by client.
      model: which.
      layers: as of `Scorer`.
      on_done: called with the number of requests of each block.
    """
    g, l = MIXES[model]
    place: dict[tuple[int, int], int] = {}
    requests: list[Request] = []
    where = []
    for client, own in enumerate(examples):
        rows = []
        for example in own:
            key = (client if l else 0, id(example))
            if key not in place:
                place[key] = len(requests)
                requests.append(Request(client if l else 0, example, g, l))
            rows.append(place[key])
        where.append(np.array(rows, int))
    scores = scorer(requests, on_done, layers=layers)
    return [scores.at(rows) for rows in where]


def nll_at_weights(
    scorer: Scoring, examples: Sequence[Sequence[TokenizedExample]]
) -> list[np.ndarray]:
    """Each client's mean NLL of its examples' answers at each of `WEIGHTS`, [examples, W]."""
    clients = np.repeat(np.arange(len(examples)), [len(own) for own in examples])
    flat = [example for own in examples for example in own]
    at_weight = [
        scorer(
            [Request(int(c), e, 1.0 - w, w) for c, e in zip(clients, flat, strict=True)], layers=()
        ).nll_I
        for w in WEIGHTS
    ]
    nll_IW = np.stack(at_weight, axis=-1).astype(np.float32)
    return [nll_IW[clients == c] for c in range(len(examples))]


def check_layer(settings: WeightingSettings, layers: int) -> None:
    """Refuses a layer that a model of so many layers has not.

    Raises:
      UserError: it is beyond the last.
    """
    if settings.layer is not None and settings.layer > layers:
        raise UserError(
            f"weighting.layer: is {settings.layer}, but the model has {layers} layers; "
            f"choose one from 0 to {layers}"
        )


def check_rule_fits(settings: WeightingSettings, layers: int) -> None:
    """Refuses settings that the rule, or a model of so many layers, does not allow.

    Raises:
      UserError: names the setting.
    """
    check_layer(settings, layers)
    names = settings.sees()
    if settings.resample and {"support_MD", "support_MLD", "support_nll_MA"} & set(names):
        raise UserError(
            f"weighting.resample: the rule {settings.rule} looks at one support as a whole; "
            "set it to false, or choose another rule"
        )
    if settings.layer is not None and {"query_BLD", "support_MLD"} & set(names):
        raise UserError(
            f"weighting.layer: the rule {settings.rule} looks into every layer; leave it null"
        )


class _Looks(NamedTuple):
    """Looks at each client's examples, as the settings say."""

    scorer: Scoring
    settings: WeightingSettings

    def embedded(self, examples: Sequence[Sequence[TokenizedExample]]) -> list[np.ndarray]:
        """Each client's embeddings, [examples, D]."""
        settings = self.settings
        layers = None if settings.layer is None else [settings.layer]
        scores = look(self.scorer, examples, settings.embed_with, layers=layers)
        return [pooled(own, settings.pooling) for own in scores]

    def before_layers(self, examples: Sequence[Sequence[TokenizedExample]]) -> list[np.ndarray]:
        """Each client's embeddings before every layer, [examples, L, D]."""
        every = range(self.scorer.model.config.layers)
        scores = look(self.scorer, examples, self.settings.embed_with, layers=every)
        last = self.settings.pooling == "last"
        return [own.last_ILD if last else own.mean_ILD for own in scores]

    def under_all(
        self,
        examples: Sequence[Sequence[TokenizedExample]],
        field: str,
        use: Mapping[str, list[Scores]],
    ) -> list[np.ndarray]:
        """A field of each client's scores under every one of `MODELS`, [examples, A]."""
        by_model = [use.get(m) or look(self.scorer, examples, m, layers=()) for m in MODELS]
        return [
            np.stack([getattr(scores[c], field) for scores in by_model], axis=-1).astype(np.float32)
            for c in range(len(examples))
        ]


def _of_support(
    looks: _Looks,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    instances: int,
) -> dict[str, list[np.ndarray]]:
    """Each client's evidence on its support, by field."""
    settings, names = looks.settings, looks.settings.sees()
    draws = [
        support_draw(len(own), settings, instances, ident)
        for own, ident in zip(training, ids, strict=True)
    ]
    used = [np.unique(draw, return_inverse=True) for draw in draws]
    examples = [[own[i] for i in rows] for own, (rows, _) in zip(training, used, strict=True)]
    at = [places.reshape(draw.shape) for draw, (_, places) in zip(draws, used, strict=True)]
    found: dict[str, list[np.ndarray]] = {}
    if "support_BMD" in names or "support_MD" in names:
        found["support_BMD" if settings.resample else "support_MD"] = looks.embedded(examples)
    if "support_MLD" in names:
        found["support_MLD"] = looks.before_layers(examples)
    if "support_nll_MA" in names:
        alone = [[prompt_alone(example) for example in own] for own in examples]
        found["support_nll_MA"] = looks.under_all(alone, "nll_I", {})
    return {
        name: [e[rows] for e, rows in zip(values, at, strict=True)]
        for name, values in found.items()
    }


def gather(
    scorer: Scoring,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    instances: Sequence[TokenizedExample],
    dreams: Sequence[TokenizedExample],
    settings: WeightingSettings,
    known: Mapping[str, list[Scores]] | None = None,
    held: Sequence[Sequence[TokenizedExample]] = (),
) -> list[Evidence]:
    """Each client's evidence on all instances: what the rule asks for, nothing more.

    Args:
      scorer: of the base and the adapters.
      ids: the clients' ids, for their draws.
      training: each client's examples, the source of its support.
      instances: I instances, the same for all clients.
      dreams: made-up prompts (see `dreams`), if the rule asks for them.
      settings: the rule and what it is given.
      known: each client's scores of the instances under models of `MIXES`, where there are any;
        used if the settings embed after the last layer.
      held: each client's examples that a rule may learn from, if the rule asks for them.

    Raises:
      UserError: a rule that asks for the support as a whole where every instance has its own, or
        for every layer where one is set.
    """
    check_rule_fits(settings, scorer.model.config.layers)
    names, known = settings.sees(), known or {}
    looks = _Looks(scorer, settings)
    everyone = [instances] * len(ids)
    length_B = np.array([example.prompt_length for example in instances], np.int32)
    found: dict[str, list[np.ndarray]] = {"length_B": [length_B] * len(ids)}
    if "query_BD" in names:
        ready = known.get(settings.embed_with) if settings.layer is None else None
        found["query_BD"] = (
            looks.embedded(everyone)
            if ready is None
            else [pooled(scores, settings.pooling) for scores in ready]
        )
    if "query_BLD" in names:
        found["query_BLD"] = looks.before_layers(everyone)
    if any(name.startswith("support") for name in names):
        found |= _of_support(looks, ids, training, len(instances))
    if "dream_ND" in names:
        found["dream_ND"] = looks.embedded([dreams] * len(ids))
    if "query_nll_BA" in names:
        alone = [[prompt_alone(example) for example in instances]] * len(ids)
        found["query_nll_BA"] = looks.under_all(alone, "nll_I", {})
    if "entropy_BA" in names:
        found["entropy_BA"] = looks.under_all(everyone, "entropy_I", known)
    if "held_HD" in names:
        found["held_HD"] = looks.embedded(held)
    if "held_nll_HW" in names:
        found["held_nll_HW"] = nll_at_weights(scorer, held)
    mixtures: dict[str, list[Mixture]] = {}
    for name, own, answers in (("query_mixture", everyone, False), ("held_mixture", held, True)):
        if name in names:
            mixtures[name] = make_mixtures(scorer.model, scorer.adapters, own, answers=answers)
    every = {**found, **mixtures}
    return [Evidence(**{name: own[c] for name, own in every.items()}) for c in range(len(ids))]
