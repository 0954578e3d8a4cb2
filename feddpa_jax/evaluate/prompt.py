"""One prompt of one client, outside of an evaluation: its weight and its answer."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.token_gate import TokenGate
from feddpa_jax.adapters.token_gate import Weight as RowWeight
from feddpa_jax.evaluate.modes import instance_weights
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.inference.layerwise import Layerwise
from feddpa_jax.inference.single import SingleScorer, answer_greedily, answer_with_beams
from feddpa_jax.models.decoder import Model
from feddpa_jax.types import TokenizedExample
from feddpa_jax.weighting.gathering import gather, support_draw
from feddpa_jax.weighting.settings import WeightingSettings


class Weight(NamedTuple):
    """How a prompt is answered.

    Attributes:
      global_weight: g, the global adapter's; an array [L] if each layer has its own.
      local_weight: l, the local adapter's; likewise.
      similarity: what the rule saw; None in a mode without a rule.

    >>> Weight(0.6, 0.4, similarity=0.8).local_weight
    0.4
    """

    global_weight: float | np.ndarray
    local_weight: float | np.ndarray
    similarity: float | None = None


class Own(NamedTuple):
    """What a client's instance weights rest on.

    Attributes:
      ident: the client's id, which its draws follow from.
      training: its tokenized training examples.
      dreams: made-up prompts, where the rule asks for them.
      held: its examples that the rule learns from, where it does.
    """

    ident: int
    training: Sequence[TokenizedExample]
    dreams: Sequence[TokenizedExample] = ()
    held: Sequence[TokenizedExample] = ()


class Answered(NamedTuple):
    """An answer's tokens, int32 without the end token, and the weights that it was given under."""

    tokens_T: np.ndarray
    weight: Weight


def answer_one(
    model: Model,
    tokenizer: Tokenizer,
    adapters: Adapters,
    tokens_T: np.ndarray,
    weighting: Weight | tuple[WeightingSettings, Own],
    *,
    beams: int,
    max_new_tokens: int,
) -> Answered:
    """Answers one prompt; compiles a few small programs, which serve most other prompts too.

    Weight and tokens are those of an evaluation up to rounding.

    Args:
      model: the frozen base.
      tokenizer: the base's.
      adapters: the shared one, and the client's own alone (a leading axis of 1).
      tokens_T: the prompt.
      weighting: its weights; or how an instance is weighed, and the client's own data.
      beams: of the search; 1 is greedy.
      max_new_tokens: most tokens of the answer.

    Raises:
      UserError: the weighting rule gives something that is not finite.
    """
    lengths = [len(tokens_T)]
    if not isinstance(weighting, Weight):
        lengths += [len(tokens_T) + 1, *_lengths(*weighting)]
    layerwise = Layerwise(
        model,
        adapters.global_C,
        adapters.local_C,
        scale=adapters.scale,
        longest=max(lengths),
        room=max_new_tokens * beams,
    )
    if isinstance(weighting, Weight):
        g, l, _ = weighting
    else:
        weighting, (g, l) = _weigh(layerwise, adapters, tokenizer, tokens_T, *weighting)
    ends = {"stop_ids": tokenizer.stop_ids, "max_new_tokens": max_new_tokens}
    if beams == 1:
        answer_T = answer_greedily(layerwise, tokens_T, g, l, **ends)
    else:
        answer_T = answer_with_beams(layerwise, tokens_T, g, l, beams=beams, **ends)
    return Answered(answer_T, weighting)


def weigh_one(
    model: Model,
    tokenizer: Tokenizer,
    adapters: Adapters,
    tokens_T: np.ndarray,
    settings: WeightingSettings,
    own: Own,
) -> Weight:
    """The weights of one prompt, as `answer_one` has them.

    Args:
      model: the frozen base.
      tokenizer: the base's.
      adapters: the shared one, and the client's own alone (a leading axis of 1).
      tokens_T: the prompt.
      settings: how an instance is weighed.
      own: the client's own data.

    Raises:
      UserError: the weighting rule gives something that is not finite.
    """
    layerwise = Layerwise(
        model,
        adapters.global_C,
        adapters.local_C,
        scale=adapters.scale,
        longest=max([len(tokens_T) + 1, *_lengths(settings, own)]),
        room=0,
    )
    return _weigh(layerwise, adapters, tokenizer, tokens_T, settings, own)[0]


def _lengths(settings: WeightingSettings, own: Own) -> list[int]:
    """The lengths of all prompts but the one that is asked."""
    support = np.unique(support_draw(len(own.training), settings, 1, own.ident))
    examples = [*(own.training[i] for i in support), *own.dreams]
    return [example.prompt_length for example in examples] + [len(e.tokens_T) for e in own.held]


def _weigh(
    layerwise: Layerwise,
    adapters: Adapters,
    tokenizer: Tokenizer,
    tokens_T: np.ndarray,
    settings: WeightingSettings,
    own: Own,
) -> tuple[Weight, tuple[RowWeight, RowWeight]]:
    """A prompt's weights as reported, and g and l: numbers, [L], or gates of its tokens."""
    # The end token stands in for a response: embeddings are of the prompt alone.
    asked = TokenizedExample(np.append(tokens_T, tokenizer.eos_id).astype(np.int32), len(tokens_T))
    evidence = gather(
        SingleScorer(layerwise, adapters),
        [own.ident],
        [own.training],
        [asked],
        own.dreams,
        settings,
        held=[own.held],
        read=tokenizer.decode,
    )
    weights = instance_weights(evidence, settings)
    g, l = weights.at(0, 0)
    if isinstance(l, TokenGate):
        passed = layerwise.prompt(tokens_T, g, l)
        weights = weights.seen(layerwise.gated(passed, len(tokens_T), l)[None])
    assert weights.similarity_CI is not None
    told_g, told_l = dataclasses.replace(weights, gate_CI=None).at(0, 0)
    return Weight(told_g, told_l, float(np.mean(weights.similarity_CI[0, 0]))), (g, l)
