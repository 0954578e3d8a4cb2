"""Who answers what in the comparison of generation, and what an answering gives."""

from typing import NamedTuple

import jax
import numpy as np

from benchmarks.workload import asked, test_instances
from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import Adapter, bank_of
from feddpa_jax.config import Config
from feddpa_jax.evaluate.modes import WeightingSettings
from feddpa_jax.run.evaluating import made_up, weighting_settings
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample


class Questions(NamedTuple):
    """Every client answers every instance.

    Attributes:
      names: the clients.
      adapters: the ones that answer.
      training: each client's prompts, from which its support is drawn.
      instances: the prompts, I of them; all with the end token for a response.
      dreams: made-up prompts, where the weighting rule asks for them.
      taught: how long each instance's response is, the guess by which answers are batched.
      weighting: how instances are weighed.
      max_new_tokens: most tokens of an answer.
    """

    names: tuple[str, ...]
    adapters: Adapters
    training: list[list[TokenizedExample]]
    instances: list[TokenizedExample]
    dreams: tuple[TokenizedExample, ...]
    taught: list[int]
    weighting: WeightingSettings
    max_new_tokens: int


class Answers(NamedTuple):
    """The answers of one pass, client by client.

    Attributes:
      tokens: without the end token.
      generated: tokens of all answers, end tokens among them.
      local_weight_CI: the local adapter's weight.
      seconds: of the pass.
    """

    tokens: list[np.ndarray]
    generated: int
    local_weight_CI: np.ndarray
    seconds: float


def make_questions(
    config: Config, prepared: Prepared, data: TrainingData, trained_C: Adapter, instances: int
) -> Questions:
    """Some test instances for all clients; the adapters are those that the clients just trained.

    Local adapters are the clients' own copies, the global one is their mean.
    """
    global_ = jax.tree.map(lambda leaf: leaf.mean(axis=0), trained_C)
    eos_id = prepared.base.tokenizer.eos_id
    weighting = weighting_settings(config)
    chosen = test_instances(config, prepared, instances)
    return Questions(
        names=data.names,
        adapters=Adapters(bank_of(global_), trained_C, config.lora.alpha / config.lora.rank),
        training=[[asked(example, eos_id) for example in own] for own in data.examples],
        instances=[asked(example, eos_id) for example in chosen],
        dreams=made_up(config, prepared, weighting),
        taught=[len(example.tokens_T) - example.prompt_length for example in chosen],
        weighting=weighting,
        max_new_tokens=config.eval.max_new_tokens,
    )


def make_answers(
    tokens: list[np.ndarray], local_weight_CI: np.ndarray, seconds: float, max_new_tokens: int
) -> Answers:
    """The answers with their tokens counted."""
    generated = sum(min(len(tokens_T) + 1, max_new_tokens) for tokens_T in tokens)
    return Answers(tokens, generated, local_weight_CI, seconds)
