"""One prompt of one client: its weight and its answer."""

import dataclasses

import numpy as np

from feddpa_jax.adapters.lora import take
from feddpa_jax.config import Config
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.data.tokenize import encode_prompt
from feddpa_jax.evaluate.modes import available_modes, fixed_weights, instance_weights
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Adapters, Scorer
from feddpa_jax.methods.method import METHODS
from feddpa_jax.run.evaluating import check_rule, made_up, weighting_settings
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import Example, TokenizedExample, UserError, client_id
from feddpa_jax.weighting.gathering import gather


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
      adapters: global and local.
      client: its name.
      prompt: the instruction.
      context: its input, if any.

    Raises:
      UserError: no such client, no two adapters to mix, or the rule fails.
    """
    place = _place(prepared, client)
    _check_mode(config, adapters, "instance")
    check_rule(config)
    settings = weighting_settings(config)
    tokens_T = _encoded(config, prepared, prompt, context)
    # The end token stands in for a response: embeddings are of the prompt alone.
    asked = TokenizedExample(
        np.append(tokens_T, prepared.base.tokenizer.eos_id).astype(np.int32), len(tokens_T)
    )
    own = prepared.training[place]
    dreams = made_up(config, prepared, settings)
    local = adapters.local_C and take(adapters.local_C, np.array([place]))
    scorer = Scorer.for_examples(
        prepared.base.model,
        adapters._replace(local_C=local),
        [asked, *own, *dreams],
        block_tokens=1,
    )
    evidence = gather(scorer, [client_id(client)], [own], [asked], dreams, settings)
    weights = instance_weights(evidence, settings)
    assert weights.similarity_CI is not None
    g, l = weights.at(0, 0)
    return Weight(g, l, float(np.mean(weights.similarity_CI[0, 0])))


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
      adapters: global and local.
      client: its name.
      prompt: the instruction.
      context: its input, if any.
      mode: how the adapters are mixed; the method's own way if None.

    Raises:
      UserError: no such client, or the adapters do not allow the mode.
    """
    place = _place(prepared, client)
    mode = mode or METHODS.find(config.fed.method).answers_with
    _check_mode(config, adapters, mode)
    if mode == "instance":
        weight = weigh_prompt(config, prepared, adapters, client, prompt, context)
    else:
        weight = Weight(*fixed_weights(mode, 1, 1, fixed=config.weighting.fixed).at(0, 0))
    tokenizer = prepared.base.tokenizer
    answerer = Answerer(
        prepared.base.model,
        adapters,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        beams=config.eval.beams if config.eval.decoding == "beam" else 1,
        max_new_tokens=config.eval.max_new_tokens,
    )
    tokens_T = _encoded(config, prepared, prompt, context)
    (answer_T,) = answerer([Prompt(place, tokens_T, weight.global_weight, weight.local_weight)])
    return Answer(tokenizer.decode_continuation(answer_T), mode, weight)


def _place(prepared: Prepared, client: str) -> int:
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
