"""The weight of one prompt for one client, outside of an evaluation."""

import numpy as np

from feddpa_jax.adapters.lora import take
from feddpa_jax.config import Config
from feddpa_jax.evaluate.modes import instance_weights
from feddpa_jax.inference.scorer import Adapters, Scorer
from feddpa_jax.run.evaluating import made_up, weighting_settings
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.training.rounds import client_id
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.gathering import gather


def weigh_prompt(
    config: Config, prepared: Prepared, adapters: Adapters, client: int, tokens_T: np.ndarray
) -> tuple[float | np.ndarray, float | np.ndarray, float]:
    """(g, l, similarity) of one prompt for one client."""
    settings = weighting_settings(config)
    # The end token stands in for a response: embeddings are of the prompt alone.
    asked = TokenizedExample(
        np.append(tokens_T, prepared.base.tokenizer.eos_id).astype(np.int32), len(tokens_T)
    )
    own = prepared.training[client]
    dreams = made_up(config, prepared, settings)
    local = adapters.local_C and take(adapters.local_C, np.array([client]))
    scorer = Scorer.for_examples(
        prepared.base.model,
        adapters._replace(local_C=local),
        [asked, *own, *dreams],
        block_tokens=1,
    )
    ident = client_id(prepared.names[client])
    weights = instance_weights(gather(scorer, [ident], [own], [asked], dreams, settings), settings)
    assert weights.similarity_CI is not None
    g, l = weights.at(0, 0)
    return g, l, float(np.mean(weights.similarity_CI[0, 0]))
