"""The work of a run before it is trained, and how many rounds come to as many tokens."""

import dataclasses
from collections.abc import Callable

from feddpa_jax.config import Config
from feddpa_jax.run.beginning import total_rounds
from feddpa_jax.run.inputs import Prepared, make_method, training_data
from feddpa_jax.run.loop import participants, round_tokens

# As many as `fed.rounds` may be.
_MOST_ROUNDS = 99_999


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a run.

    Attributes:
      rounds: communication rounds, without a personalization after the last.
      tokens: of examples, over all clients and phases; no padding.
      updates: of the optimizer, likewise.
    """

    rounds: int
    tokens: int
    updates: int


def work_of(config: Config, prepared: Prepared) -> Work:
    """The work of a configuration's run.

    Args:
      config: the run's.
      prepared: base, clients and tokenized examples.
    """
    data, method = training_data(config, prepared), make_method(config, prepared)
    tokens = updates = 0
    for number in range(total_rounds(config)):
        some = participants(config, data, number).tolist()
        for phase in method.phases_of(number, config.fed.rounds):
            members = range(len(data.names)) if phase.everybody else some
            batches = [-(-len(data.examples[client]) // data.batch_size) for client in members]
            # Every phase is a whole local training of each participant, but for a search.
            updates += data.epochs * sum(batches) if phase.search is None else 0
        tokens += round_tokens(config, method, data, number)
    return Work(config.fed.rounds, tokens, updates)


def with_tokens(config: Config, prepared: Prepared, tokens: int) -> Config:
    """The configuration with the number of rounds whose tokens come nearest to a number.

    Args:
      config: a run's; its own number of rounds does not matter.
      prepared: base, clients and tokenized examples.
      tokens: of examples, over all clients, phases and rounds.
    """

    def with_rounds(rounds: int) -> Config:
        return dataclasses.replace(config, fed=dataclasses.replace(config.fed, rounds=rounds))

    rounds = nearest(lambda rounds: work_of(with_rounds(rounds), prepared).tokens, tokens)
    return with_rounds(rounds)


def nearest(amount: Callable[[int], int], target: int) -> int:
    """The count, at least 1, whose amount comes nearest to a target; the larger of two.

    Args:
      amount: of a count; it never falls.
      target: what is wanted.

    >>> nearest(lambda rounds: 100 * rounds, 350), nearest(lambda rounds: 100 * rounds, 30)
    (4, 1)
    """
    low = high = 1
    while amount(high) < target and high < _MOST_ROUNDS:
        low, high = high, min(2 * high, _MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if amount(middle) < target else (low, middle)
    return min((low, high), key=lambda count: (abs(amount(count) - target), -count))
