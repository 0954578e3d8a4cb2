"""One prompt of one client: its weight and its answer."""

import dataclasses

import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.config import Config
from feddpa_jax.data.templates import bound
from feddpa_jax.data.tokenize import encode_prompt
from feddpa_jax.evaluate.modes import adapters_in, available_modes, fixed_weights
from feddpa_jax.evaluate.prompt import Own, Weight, answer_one, weigh_one
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.escape import some_names
from feddpa_jax.run.evaluating import (
    check_rule,
    decoding,
    learned_from,
    made_up,
    weighting_settings,
)
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import Example, UserError, client_id
from feddpa_jax.weighting.settings import WeightingSettings


@dataclasses.dataclass(frozen=True)
class Answer:
    """A client's answer to a prompt.

    Attributes:
      text: the answer.
      mode: how the adapters were mixed.
      weight: the weights that were used.

    >>> Answer("Hello!", "global", Weight(1.0, 0.0)).text
    'Hello!'
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
    """The weights of a client's adapters for one prompt.

    Args:
      config: the run's.
      prepared: base, clients, tokenized examples.
      adapters: the global one, and that client's own alone (a leading axis of 1).
      client: its name.
      prompt: the instruction.
      context: its input, if any.

    Raises:
      UserError: no such client, no two adapters to mix, or the rule fails.
    """
    _check_mode(config, adapters, "instance")
    tokens_T = _encoded(config, prepared, prompt, context)
    return weigh_one(
        prepared.base.model,
        prepared.base.tokenizer,
        adapters,
        tokens_T,
        *_weighed(config, prepared, client),
    )


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
      adapters: the global one, and that client's own alone (a leading axis of 1).
      client: its name.
      prompt: the instruction.
      context: its input, if any.
      mode: how the adapters are mixed; None: as the method does.

    Raises:
      UserError: no such client, or the adapters do not allow the mode.
    """
    mode = mode or METHODS.find(config.fed.method).answers_with
    _check_mode(config, adapters, mode)
    if mode == "instance":
        weighting = _weighed(config, prepared, client)
    else:
        weighting = Weight(*fixed_weights(mode, 1, 1, fixed=config.weighting.fixed).at(0, 0))
    how = decoding(config, prepared)
    answered = answer_one(
        prepared.base.model,
        prepared.base.tokenizer,
        adapters_in(mode, adapters),
        _encoded(config, prepared, prompt, context),
        weighting,
        beams=how.beams,
        max_new_tokens=how.max_new_tokens,
    )
    text = prepared.base.tokenizer.decode_continuation(answered.tokens_T)
    return Answer(text, mode, answered.weight)


def _weighed(config: Config, prepared: Prepared, client: str) -> tuple[WeightingSettings, Own]:
    check_rule(config)
    settings = weighting_settings(config)
    place = place_of(prepared, client)
    held = learned_from(config, prepared, settings, only=client)
    return settings, Own(
        client_id(client),
        prepared.training[place],
        made_up(config, prepared, settings),
        held[place] if held else (),
    )


def place_of(prepared: Prepared, client: str) -> int:
    """A client's index.

    Raises:
      UserError: there is no such client.
    """
    if client not in prepared.names:
        raise UserError(f"client: no {client!r} in this run; it has {some_names(prepared.names)}")
    return prepared.names.index(client)


def _check_mode(config: Config, adapters: Adapters, mode: str) -> None:
    if mode not in available_modes(adapters):
        raise UserError(
            f"mode: {config.fed.method} has no {mode!r}; it has "
            f"{', '.join(available_modes(adapters))}"
        )


def _encoded(config: Config, prepared: Prepared, prompt: str, context: str) -> np.ndarray:
    return encode_prompt(
        Example(prompt, "", context),
        prepared.base.tokenizer,
        bound(config.data.template, prepared.base.tokenizer)[0],
        config.data.max_length,
    )
