"""One prompt of one client: its weight and its answer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.data.tokenize import encode_prompt
from feddpa_jax.evaluate.modes import available_modes, fixed_weights, instance_weights
from feddpa_jax.inference.layerwise import Layerwise
from feddpa_jax.inference.scorer import Adapters
from feddpa_jax.inference.single import SingleScorer, answer_greedily, answer_with_beams
from feddpa_jax.methods.method import METHODS
from feddpa_jax.run.evaluating import check_rule, made_up, weighting_settings
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import Example, TokenizedExample, UserError, client_id
from feddpa_jax.weighting.gathering import gather, support_draw


@dataclasses.dataclass(frozen=True)
class Weight:
    """How a prompt is answered.

    Attributes:
      global_weight: g, the global adapter's; an array [L] if each layer has its own.
      local_weight: l, the local adapter's; likewise.
      similarity: what the rule saw; None in a mode without a rule.
    """

    global_weight: float | np.ndarray
    local_weight: float | np.ndarray
    similarity: float | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """A client's answer to a prompt.

    Attributes:
      text: the answer.
      mode: how the adapters were mixed.
      weight: the weights that were used.
    """

    text: str
    mode: str
    weight: Weight


def weigh_prompt(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    client: str,
    prompt: str,
    context: str = "",
) -> Weight:
    """What a client's weighting rule makes of one prompt.

    Args:
      config: the run's.
      prepared: base, clients, tokenized examples.
      adapters: the global one, and the client's own alone (a leading axis of 1).
      client: its name.
      prompt: the instruction.
      context: its input, if any.

    Raises:
      UserError: there are no two adapters to mix, or the rule fails.
    """
    tokens_T = _encoded(config, prepared, prompt, context)
    return _weighed(config, prepared, adapters, client, tokens_T)[1]


def answer_prompt(
    config: Config,
    prepared: Prepared,
    adapters: Adapters,
    client: str,
    prompt: str,
    context: str = "",
    mode: str | None = None,
) -> Answer:
    """A client's answer to one prompt.

    Args:
      config: the run's.
      prepared: base, clients, tokenized examples.
      adapters: the global one, and the client's own alone (a leading axis of 1).
      client: its name.
      prompt: the instruction.
      context: its input, if any.
      mode: how the adapters are mixed; the method's own way if None.

    Raises:
      UserError: the adapters do not allow the mode.
    """
    mode = mode or METHODS.find(config.fed.method).answers_with
    _check_mode(config, adapters, mode)
    tokens_T = _encoded(config, prepared, prompt, context)
    if mode == "instance":
        layerwise, weight = _weighed(config, prepared, adapters, client, tokens_T)
    else:
        layerwise = _layerwise(config, prepared, adapters, [len(tokens_T)])
        weight = Weight(*fixed_weights(mode, 1, 1, fixed=config.weighting.fixed).at(0, 0))
    tokenizer = prepared.base.tokenizer
    asked = layerwise, tokens_T, weight.global_weight, weight.local_weight
    ends: Any = {
        "stop_ids": tokenizer.stop_ids,
        "max_new_tokens": config.eval.max_new_tokens,
    }
    if config.eval.decoding == "beam":
        answer_T = answer_with_beams(*asked, beams=config.eval.beams, **ends)
    else:
        answer_T = answer_greedily(*asked, **ends)
    return Answer(tokenizer.decode_continuation(answer_T), mode, weight)


def _weighed(
    config: Config, prepared: Prepared, adapters: Adapters, client: str, tokens_T: np.ndarray
) -> tuple[Layerwise, Weight]:
    """The weight of a prompt, and the model that found it, which answers without compiling anew."""
    _check_mode(config, adapters, "instance")
    check_rule(config)
    settings = weighting_settings(config)
    own = prepared.training[prepared.names.index(client)]
    ident = client_id(client)
    dreams = made_up(config, prepared, settings)
    # The end token stands in for a response: embeddings are of the prompt alone.
    eos_id = prepared.base.tokenizer.eos_id
    asked = TokenizedExample(np.append(tokens_T, eos_id).astype(np.int32), len(tokens_T))
    drawn = np.unique(support_draw(len(own), settings, 1, ident))
    lengths = [example.prompt_length for example in (*(own[i] for i in drawn), *dreams)]
    layerwise = _layerwise(config, prepared, adapters, [len(asked.tokens_T), *lengths])
    evidence = gather(SingleScorer(layerwise), [ident], [own], [asked], dreams, settings)
    weights = instance_weights(evidence, settings)
    assert weights.similarity_CI is not None
    return layerwise, Weight(*weights.at(0, 0), float(np.mean(weights.similarity_CI[0, 0])))


def _layerwise(
    config: Config, prepared: Prepared, adapters: Adapters, prompts: Sequence[int]
) -> Layerwise:
    return Layerwise(
        prepared.base.model,
        adapters.global_,
        adapters.local_C,
        scale=adapters.scale,
        longest=max(prompts),
        max_new_tokens=config.eval.max_new_tokens,
    )


def place_of(prepared: Prepared, client: str) -> int:
    """A client's index.

    Raises:
      UserError: there is no such client.
    """
    if client not in prepared.names:
        raise UserError(f"--client: no {client!r} in this run; it has {', '.join(prepared.names)}")
    return prepared.names.index(client)


def _check_mode(config: Config, adapters: Adapters, mode: str) -> None:
    if mode not in available_modes(adapters):
        raise UserError(
            f"--mode: {config.fed.method} has no {mode!r}; it has "
            f"{', '.join(available_modes(adapters))}"
        )


def _encoded(config: Config, prepared: Prepared, prompt: str, context: str) -> np.ndarray:
    return encode_prompt(
        Example(prompt, "", context),
        prepared.base.tokenizer,
        TEMPLATES.find(config.data.template),
        config.data.max_length,
    )
