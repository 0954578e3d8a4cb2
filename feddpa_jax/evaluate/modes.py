"""Inference modes: every client answers every test instance under each mix of the two adapters.

| mode     | g       | l   |
|----------|---------|-----|
| base     | 0       | 0   |
| global   | 1       | 0   |
| local    | 0       | 1   |
| fixed    | 1 - w   | w   |
| instance | 1 - w_b | w_b |
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from feddpa_jax.evaluate.score import Adapters, Request, Scorer, Scores
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.rules import make_weighting
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance

MODES = ("base", "global", "local", "fixed", "instance")


def available_modes(adapters: Adapters) -> tuple[str, ...]:
    """The modes that these adapters can answer in."""
    needs = {
        "base": (),
        "global": (adapters.global_,),
        "local": (adapters.local_C,),
        "fixed": (adapters.global_, adapters.local_C),
        "instance": (adapters.global_, adapters.local_C),
    }
    return tuple(mode for mode in MODES if all(part is not None for part in needs[mode]))


@dataclasses.dataclass(frozen=True)
class ModeWeights:
    """The mixing weights of a mode for every client and instance.

    Attributes:
      global_CI: g.
      local_CI: l.
      similarity_CI: what the rule saw, for the mode "instance" alone.
    """

    global_CI: np.ndarray
    local_CI: np.ndarray
    similarity_CI: np.ndarray | None = None


def fixed_weights(mode: str, clients: int, instances: int, *, fixed: float) -> ModeWeights:
    """The weights of every mode but "instance"."""
    g, l = {
        "base": (0.0, 0.0),
        "global": (1.0, 0.0),
        "local": (0.0, 1.0),
        "fixed": (1.0 - fixed, fixed),
    }[mode]
    shape = (clients, instances)
    return ModeWeights(np.full(shape, g, np.float32), np.full(shape, l, np.float32))


@dataclasses.dataclass(frozen=True)
class WeightingSettings:
    """How instances are weighed.

    Attributes:
      rule: name of the rule.
      scale: what the similarity is multiplied by.
      scales: the adapter that the scaled similarity goes to, "local" or "global".
      support: M, training examples that stand for a client's data.
      embed_with: the adapter under which prompts are embedded: "local", "global" or "base".
      pooling: "last" prompt token, or "mean" over the prompt.
      resample: a new support for every instance.
      seed: of the draws.
    """

    rule: str = "cosine"
    scale: float = 0.5
    scales: str = "local"
    support: int = 5
    embed_with: str = "local"
    pooling: str = "last"
    resample: bool = False
    seed: int = 0


def embedding_weights(embed_with: str) -> tuple[float, float]:
    """(g, l) under which prompts are embedded."""
    return {"base": (0.0, 0.0), "global": (1.0, 0.0), "local": (0.0, 1.0)}[embed_with]


def pooled(scores: Scores, pooling: str) -> np.ndarray:
    """The embeddings of scored examples, [I, D]."""
    return scores.last_ID if pooling == "last" else scores.mean_ID


@dataclasses.dataclass(frozen=True)
class Support:
    """What a client's own data contribute to weighting.

    Attributes:
      embeddings: each client's embedded training prompts, [m, D] with m as drawn.
      draws: for each client the indexes into its embeddings: [M], or [I, M] if resampled.
    """

    embeddings: list[np.ndarray]
    draws: list[np.ndarray]

    def of(self, client: int, instances: int) -> np.ndarray:
        """The support of every instance under a client, [I, M, D]."""
        chosen = self.embeddings[client][self.draws[client]]
        if chosen.ndim == 3:
            return chosen
        return np.broadcast_to(chosen, (instances, *chosen.shape))


def embed_support(
    scorer: Scorer,
    ids: Sequence[int],
    training: Sequence[Sequence[TokenizedExample]],
    instances: int,
    settings: WeightingSettings,
    on_done: Callable[[int], None] = lambda done: None,
) -> Support:
    """Draws and embeds each client's support, under the adapter that settings name."""
    g, l = embedding_weights(settings.embed_with)
    requests, counts, draws = [], [], []
    for client, (ident, examples) in enumerate(zip(ids, training, strict=True)):
        count = len(examples)
        if settings.resample:
            draw = draw_support_per_instance(
                count, settings.support, instances, seed=settings.seed, client=ident
            )
        else:
            draw = draw_support(count, settings.support, seed=settings.seed, client=ident)
        used, draw = np.unique(draw, return_inverse=True)
        draws.append(draw.reshape(-1, settings.support) if settings.resample else draw.reshape(-1))
        requests += [Request(client, examples[i], g, l) for i in used]
        counts.append(len(used))
    embedded = pooled(scorer(requests, on_done), settings.pooling)
    return Support(np.split(embedded, np.cumsum(counts)[:-1]), draws)


def instance_weights(
    query_CID: np.ndarray, support: Support, settings: WeightingSettings
) -> ModeWeights:
    """The weights of the mode "instance" from embedded instances and supports."""
    weigh = jax.jit(make_weighting(settings.rule, scale=settings.scale, scales=settings.scales))
    clients, instances = query_CID.shape[:2]
    weights = [weigh(query_CID[c], support.of(c, instances)) for c in range(clients)]
    local_CI = np.stack([np.asarray(weight.local_weight_B) for weight in weights])
    similarity_CI = np.stack([np.asarray(weight.similarity_B) for weight in weights])
    return ModeWeights(1.0 - local_CI, local_CI, similarity_CI)
