"""The evidence of weighting rules: prompts under the models that a rule asks for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from feddpa_jax.inference.mixture import Mixture, make_mixtures
from feddpa_jax.inference.scorer import Scores, Scoring
from feddpa_jax.types import TokenizedExample, UserError
from feddpa_jax.weighting.evidence import MODELS, TEXTS, Evidence
from feddpa_jax.weighting.looking import at_weights, by_token, look, side_by_side
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance


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
    whole = {"support_MD", "support_MLD", "support_nll_MA", "support_text"}
    if settings.resample and whole & set(names):
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
    read: Callable[[np.ndarray], str]

    def texts(self, examples: Sequence[TokenizedExample]) -> tuple[str, ...]:
        """Their prompts as texts."""
        return tuple(self.read(example.tokens_T[: example.prompt_length]) for example in examples)

    def embedded(self, examples: Sequence[Sequence[TokenizedExample]]) -> list[np.ndarray]:
        """Each client's embeddings, [examples, D]."""
        settings = self.settings
        layers = None if settings.layer is None else [settings.layer]
        scores = look(
            self.scorer, examples, settings.embed_with, mixed=settings.mixed_at, layers=layers
        )
        return [pooled(own, settings.pooling) for own in scores]

    def before_layers(self, examples: Sequence[Sequence[TokenizedExample]]) -> list[np.ndarray]:
        """Each client's embeddings before every layer, [examples, L, D]."""
        every = range(self.scorer.model.config.layers)
        settings = self.settings
        scores = look(
            self.scorer, examples, settings.embed_with, mixed=settings.mixed_at, layers=every
        )
        last = settings.pooling == "last"
        return [own.last_ILD if last else own.mean_ILD for own in scores]

    def under_all(
        self,
        examples: Sequence[Sequence[TokenizedExample]],
        field: str,
        use: Mapping[str, list[Scores]],
    ) -> list[np.ndarray]:
        """A field of each client's scores under every one of `MODELS`, [examples, A]."""
        by_model = [use.get(m) or look(self.scorer, examples, m, layers=()) for m in MODELS]
        return side_by_side(by_model, field)

    def under_others(
        self, examples: Sequence[Sequence[TokenizedExample]], field: str
    ) -> list[np.ndarray]:
        """The same under every adapter that other clients had a part in, [examples, E]."""
        adapters = self.scorer.adapters.of_others()
        under = [look(self.scorer.under(a), examples, "global", layers=()) for a in adapters]
        return side_by_side(under, field)


def _of_support(
    looks: _Looks,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    instances: int,
) -> dict[str, list[Any]]:
    """Each client's evidence on its support, by field."""
    settings, names = looks.settings, looks.settings.sees()
    draws = [
        support_draw(len(own), settings, instances, ident)
        for own, ident in zip(training, ids, strict=True)
    ]
    used = [np.unique(draw, return_inverse=True) for draw in draws]
    examples = [[own[i] for i in rows] for own, (rows, _) in zip(training, used, strict=True)]
    at = [places.reshape(draw.shape) for draw, (_, places) in zip(draws, used, strict=True)]
    found: dict[str, list[Any]] = {}
    if "support_BMD" in names or "support_MD" in names:
        found["support_BMD" if settings.resample else "support_MD"] = looks.embedded(examples)
    if "support_MLD" in names:
        found["support_MLD"] = looks.before_layers(examples)
    if "support_nll_MA" in names:
        alone = [[prompt_alone(example) for example in own] for own in examples]
        found["support_nll_MA"] = looks.under_all(alone, "nll_I", {})
    found = {
        name: [e[rows] for e, rows in zip(values, at, strict=True)]
        for name, values in found.items()
    }
    if "support_text" in names:
        found["support_text"] = [
            looks.texts([own[i] for i in draw]) for own, draw in zip(training, draws, strict=True)
        ]
    return found


def _of_prompts(
    looks: _Looks, everyone: Sequence[Sequence[TokenizedExample]]
) -> dict[str, list[Any]]:
    """Each client's evidence on the prompts themselves, by field."""
    names = looks.settings.sees()
    # Prompts that several clients have are the same objects here too: they may be scored once.
    bare = {id(example): prompt_alone(example) for own in everyone for example in own}
    alone = [[bare[id(example)] for example in own] for own in everyone]
    found: dict[str, list[Any]] = {}
    if "query_nll_BA" in names:
        found["query_nll_BA"] = looks.under_all(alone, "nll_I", {})
    if {"query_nll_BTA", "query_mask_BT"} & set(names):
        scores = [look(looks.scorer, alone, m, layers=(), tokens=True) for m in MODELS]
        found["query_nll_BTA"], found["query_mask_BT"] = by_token(scores, everyone)
    if "query_nll_BE" in names:
        found["query_nll_BE"] = looks.under_others(alone, "nll_I")
    if "query_text" in names:
        found["query_text"] = [looks.texts(own) for own in everyone]
    return found


def _of_answers(
    looks: _Looks,
    everyone: Sequence[Sequence[TokenizedExample]],
    known: Mapping[str, list[Scores]],
) -> dict[str, list[np.ndarray]]:
    """Each client's evidence on how open its answers are, by field."""
    names = looks.settings.sees()
    found: dict[str, list[np.ndarray]] = {}
    if "entropy_BA" in names:
        found["entropy_BA"] = looks.under_all(everyone, "entropy_I", known)
    if "entropy_BW" in names:
        found["entropy_BW"] = at_weights(looks.scorer, everyone, "entropy_I")
    if "entropy_BE" in names:
        found["entropy_BE"] = looks.under_others(everyone, "entropy_I")
    return found


def gather(
    scorer: Scoring,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    instances: Sequence[TokenizedExample],
    dreams: Sequence[TokenizedExample],
    settings: WeightingSettings,
    known: Mapping[str, list[Scores]] | None = None,
    held: Sequence[Sequence[TokenizedExample]] = (),
    read: Callable[[np.ndarray], str] | None = None,
) -> list[Evidence]:
    """Each client's evidence on all instances: what the rule asks for, nothing more.

    Args:
      scorer: of the base and the adapters.
      ids: the clients' ids, for their draws.
      training: each client's examples, the source of its support.
      instances: I instances, the same for all clients.
      dreams: as of `gather_own`.
      settings: likewise.
      known: likewise.
      held: likewise.
      read: likewise.

    Raises:
      UserError: as of `gather_own`.
    """
    everyone = [instances] * len(ids)
    return gather_own(scorer, ids, training, everyone, dreams, settings, known, held, read)


def gather_own(
    scorer: Scoring,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    everyone: Sequence[Sequence[TokenizedExample]],
    dreams: Sequence[TokenizedExample],
    settings: WeightingSettings,
    known: Mapping[str, list[Scores]] | None = None,
    held: Sequence[Sequence[TokenizedExample]] = (),
    read: Callable[[np.ndarray], str] | None = None,
) -> list[Evidence]:
    """Each client's evidence on instances of its own, as many for each.

    Args:
      scorer: of the base and the adapters.
      ids: the clients' ids, for their draws.
      training: each client's examples, the source of its support.
      everyone: by client, its instances.
      dreams: made-up prompts (see `dreams`), if the rule asks for them.
      settings: the rule and what it is given.
      known: each client's scores of the instances under models of `MIXES`, where there are any;
        used if the settings embed after the last layer.
      held: each client's examples that a rule may learn from, if the rule asks for them.
      read: the text of tokens, if the rule asks for texts.

    Raises:
      UserError: a rule that asks for the support as a whole where every instance has its own, or
        for every layer where one is set.
    """
    check_rule_fits(settings, scorer.model.config.layers)
    names, known = settings.sees(), known or {}
    assert read is not None or not set(names) & set(TEXTS)
    looks = _Looks(scorer, settings, read or repr)
    found: dict[str, list[Any]] = {
        "length_B": [np.array([e.prompt_length for e in own], np.int32) for own in everyone]
    }
    found |= _of_prompts(looks, everyone) | _of_answers(looks, everyone, known)
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
        found |= _of_support(looks, ids, training, len(everyone[0]))
    if "dream_ND" in names:
        found["dream_ND"] = looks.embedded([dreams] * len(ids))
    if "held_HD" in names:
        found["held_HD"] = looks.embedded(held)
    if "held_nll_HW" in names:
        found["held_nll_HW"] = at_weights(scorer, held, "nll_I")
    if "held_text" in names:
        found["held_text"] = [looks.texts(own) for own in held]
    mixtures: dict[str, list[Mixture]] = {}
    for name, own, answers in (("query_mixture", everyone, False), ("held_mixture", held, True)):
        if name in names:
            mixtures[name] = make_mixtures(scorer.model, scorer.adapters, own, answers=answers)
    every = {**found, **mixtures}
    return [Evidence(**{name: own[c] for name, own in every.items()}) for c in range(len(ids))]
