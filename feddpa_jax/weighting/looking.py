"""Scores of clients' examples under the models that weighting rules look with."""

from collections.abc import Callable, Sequence

import numpy as np

from feddpa_jax.adapters.dual import Adapters, is_shared
from feddpa_jax.inference.scorer import Request, Scores, Scoring
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.evidence import WEIGHTS
from feddpa_jax.weighting.settings import Model

# (g, l) of the models that prompts are looked at with; "mixed" may have another weight.
MIXES: dict[Model, tuple[float, float]] = {
    "base": (0.0, 0.0),
    "global": (1.0, 0.0),
    "local": (0.0, 1.0),
    "mixed": (0.5, 0.5),
}


def look(
    scorer: Scoring,
    examples: Sequence[Sequence[TokenizedExample]],
    model: Model,
    *,
    mixed: float = 0.5,
    layers: Sequence[int] | None = None,
    tokens: bool = False,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Scores]:
    """Each client's scores of its examples under a model of `MIXES`.

    Where all clients have the same model, an example that several look at is scored once.

    Args:
      scorer: of the base and the adapters.
      examples: by client.
      model: which.
      mixed: the local weight of the model "mixed".
      layers: as of `Scorer`.
      tokens: likewise.
      on_done: called with the number of requests of each block.
    """
    g, l = (1.0 - mixed, mixed) if model == "mixed" else MIXES[model]
    own_model = not same_for_all(model, scorer.adapters)
    place: dict[tuple[int, int], int] = {}
    requests: list[Request] = []
    where = []
    for client, own in enumerate(examples):
        rows = []
        for example in own:
            key = (client if own_model else 0, id(example))
            if key not in place:
                place[key] = len(requests)
                requests.append(Request(key[0], example, g, l))
            rows.append(place[key])
        where.append(np.array(rows, int))
    scores = scorer(requests, on_done, layers=layers, tokens=tokens)
    return [scores.at(rows) for rows in where]


def same_for_all(model: Model, adapters: Adapters) -> bool:
    """Whether a model of `MIXES` is the same for all clients."""
    g, l = MIXES[model]
    return not l and (not g or is_shared(adapters.global_C))


def by_token(
    by_model: Sequence[Sequence[Scores]], instances: Sequence[Sequence[TokenizedExample]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By client, every prompt token's NLL, [B, T, A], and where it is known, [B, T].

    Args:
      by_model: by each of `MODELS` and client, the scores of the prompts alone, with tokens.
      instances: each client's prompts.
    """
    length_CB1 = [np.array([[example.prompt_length] for example in own]) for own in instances]
    place_1T = np.arange(max(length_B1.max() for length_B1 in length_CB1))[None]

    def of_client(client: int) -> np.ndarray:
        parts = [scores[client].token_nll_IP for scores in by_model]
        # Of the first token nothing is known.
        return np.pad(np.stack([np.asarray(p) for p in parts], axis=-1), ((0, 0), (1, 0), (0, 0)))

    masks = [(place_1T > 0) & (place_1T < length_B1) for length_B1 in length_CB1]
    return [of_client(client) for client in range(len(masks))], masks


def at_weights(
    scorer: Scoring, examples: Sequence[Sequence[TokenizedExample]], field: str
) -> list[np.ndarray]:
    """A field of each client's scores of its examples at each of `WEIGHTS`, [examples, W]."""
    clients = np.repeat(np.arange(len(examples)), [len(own) for own in examples])
    flat = [example for own in examples for example in own]
    at_weight = [
        scorer(
            [Request(int(c), e, 1.0 - w, w) for c, e in zip(clients, flat, strict=True)], layers=()
        )
        for w in WEIGHTS
    ]
    found_IW = np.stack([getattr(scores, field) for scores in at_weight], axis=-1)
    return [found_IW[clients == c].astype(np.float32) for c in range(len(examples))]


def side_by_side(scores: Sequence[Sequence[Scores]], field: str) -> list[np.ndarray]:
    """A field of each client's scores under several models, [examples, models], by client."""
    return [
        np.stack([getattr(own[c], field) for own in scores], axis=-1).astype(np.float32)
        for c in range(len(scores[0]))
    ]
