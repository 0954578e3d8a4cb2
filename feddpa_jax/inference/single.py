"""Scores and answers of single prompts for one client, with little to compile."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.token_gate import Weight
from feddpa_jax.inference.beam import Beams, begin, best, follow
from feddpa_jax.inference.decode import Followed
from feddpa_jax.inference.layerwise import Layerwise
from feddpa_jax.inference.scorer import Adapters, Request, Scores, empty_token_nll
from feddpa_jax.models.decoder import Model


class SingleScorer:
    """Scores requests of one client one after another: a `Scorer` for a handful of prompts.

    Prompts are embedded, or, where no layer is asked for, likelihoods are computed; not both.
    """

    def __init__(self, layerwise: Layerwise, adapters: Adapters):
        """Args: the base with the client's adapters, and these."""
        self.layerwise = layerwise
        self.adapters = adapters

    @property
    def model(self) -> Model:
        """The base."""
        return self.layerwise.model

    def under(self, adapters: Adapters) -> "SingleScorer":
        """The same under other adapters, with leading axes of 1."""
        return SingleScorer(self.layerwise.under(adapters.global_C, adapters.local_C), adapters)

    def __call__(
        self,
        requests: Sequence[Request],
        on_done: Callable[[int], None] = lambda done: None,
        *,
        layers: Sequence[int] | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Scores all requests; `client` is not read.

        Args: as of `Scorer`.

        Returns:
          Their scores; what was not asked for is NaN.
        """
        layers = (self.model.config.layers,) if layers is None else tuple(layers)
        count = len(requests)
        embedded = (count, len(layers), self.model.config.width)
        scores = Scores(
            np.full(count, np.nan),
            np.zeros(count, bool),
            np.full(count, np.nan, np.float32),
            np.zeros(embedded, np.float32),
            np.zeros(embedded, np.float32),
            token_nll_IP=empty_token_nll(requests) if tokens else None,
        )
        for i, (_, (tokens_T, prompt, _), g, l) in enumerate(requests):
            passed = self.layerwise.prompt(tokens_T[:prompt] if layers else tokens_T, g, l)
            for place, layer in enumerate(layers):
                scores.last_ILD[i, place], scores.mean_ILD[i, place] = self.layerwise.embeddings(
                    passed, prompt, layer
                )
            if not layers:
                nll_T, correct_T, entropy_T = self.layerwise.likelihoods(passed, tokens_T[1:])
                scores.nll_I[i] = nll_T[prompt - 1 :].mean(dtype=np.float64)
                if scores.token_nll_IP is not None:
                    own_P = nll_T[prompt - 1 :]
                    scores.token_nll_IP[i, : len(own_P)] = own_P
                scores.greedy_I[i] = correct_T[prompt - 1 :].all()
                scores.entropy_I[i] = entropy_T[prompt - 1]
            on_done(1)
        return scores


def answer_greedily(
    layerwise: Layerwise,
    tokens_T: np.ndarray,
    global_weight: Weight,
    local_weight: Weight,
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> np.ndarray:
    """The likeliest token at every step, until an end token or `max_new_tokens`.

    Args:
      layerwise: the base with the client's adapters.
      tokens_T: the prompt.
      global_weight: g, or each layer's [L].
      local_weight: l, likewise.
      stop_ids: the tokens of which any ends the answer.
      max_new_tokens: most tokens of it.

    Returns:
      The answer's tokens without the end token, int32.
    """
    passed = layerwise.prompt(tokens_T, global_weight, local_weight)
    (hidden_1D, _), answer = layerwise.last(passed, len(tokens_T)), []
    while True:
        (token,) = token_1 = layerwise.likeliest(hidden_1D)
        if token in stop_ids:
            break
        answer.append(token)
        if len(answer) == max_new_tokens:
            break
        said = len(answer) - 1
        passed = layerwise.step(
            *(token_1[None], len(tokens_T) + said, passed.cache, global_weight, local_weight),
            slot=layerwise.length + said,
        )
        hidden_1D = layerwise.final(passed)
    return np.array(answer, np.int32)


def answer_with_beams(
    layerwise: Layerwise,
    tokens_T: np.ndarray,
    global_weight: Weight,
    local_weight: Weight,
    *,
    beams: int,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
) -> np.ndarray:
    """The best answer of a beam search, see `generate.beam`.

    Args: as of `answer_greedily`; and the number of beams.
    """
    passed = layerwise.prompt(tokens_T, global_weight, local_weight)
    hidden_1D, _ = layerwise.last(passed, len(tokens_T))
    hidden_WD = jnp.broadcast_to(hidden_1D, (beams, hidden_1D.shape[1]))
    search = _begin(1, beams, pad_id=0, max_new_tokens=max_new_tokens)
    # Which beam said each of a beam's tokens: the cache has them all, and nothing in it moves.
    said_WT = np.zeros((beams, max_new_tokens), int)
    for index in range(max_new_tokens):
        search, from_1W, token_1W = _follow(layerwise.model, hidden_WD, search, stop_ids)
        if not search.open_B.any():
            break
        said_WT = said_WT[np.asarray(from_1W)[0]]
        said_WT[:, index] = np.arange(beams)
        own_WTW = said_WT[:, :, None] == np.arange(beams)
        passed = layerwise.step(
            *(token_1W, len(tokens_T) + index, passed.cache, global_weight, local_weight),
            slot=layerwise.length + index * beams,
            own_1WX=own_WTW.reshape(1, beams, -1),
        )
        hidden_WD = layerwise.final(passed)
    answer_1T, length_1 = jax.device_get(best(search, 0))
    return answer_1T[0, : length_1[0]]


_begin = jax.jit(begin, static_argnums=(0, 1), static_argnames=("pad_id", "max_new_tokens"))


@functools.partial(jax.jit, static_argnames="stop_ids")
def _follow(
    model: Model, hidden_WD: jax.Array, search: Beams, stop_ids: tuple[int, ...]
) -> Followed:
    return follow(search, model.logits(hidden_WD)[None], stop_ids=stop_ids)
