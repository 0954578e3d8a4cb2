"""How long the examples are: of all clients, or of a sample of many."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.templates import bound
from feddpa_jax.data.tokenize import TokenCounts, other_prompt_note
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.run.inputs import encode
from feddpa_jax.training.draws import uniform
from feddpa_jax.types import Federation, TokenizedExample, UserError, client_id

# About how many training examples are tokenized, and at most how many test instances: seconds.
MOST_EXAMPLES = 20_000
# The last word of what a client draws here; training has its own.
_MEASURED = 7
# So many clients are named in a message.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The numbers of tokens, after the cut at `data.max_length`.

    Attributes:
      clients: how many there are.
      measured: indexes of those that were tokenized and have something left; all, or a sample.
      training: their tokenized examples.
      empty: names of those that have nothing left.
      counts: training examples, those cut and those dropped.
      tests: the same of the test instances.
    """

    clients: int
    measured: tuple[int, ...]
    training: tuple[tuple[TokenizedExample, ...], ...]
    empty: tuple[str, ...]
    counts: TokenCounts
    tests: TokenCounts

    @property
    def sampled(self) -> bool:
        """Whether some clients were not looked at."""
        return len(self.measured) + len(self.empty) < self.clients

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of every example that is left, int [E]."""
        return np.array([len(e.tokens_T) for own in self.training for e in own], int)

    def nothing_left(self, max_length: int) -> str:
        """The problem of the clients with no example."""
        named = ", ".join(map(repr, self.empty[:_NAMED]))
        more = len(self.empty) - _NAMED
        others = f" and {more} more" if more > 0 else ""
        clients = "client" if len(self.empty) == 1 else "clients"
        return (
            f"{clients} {named}{others}: no example is left within data.max_length = {max_length}; "
            "raise it, or leave them out"
        )

    def remarks(self, max_length: int) -> tuple[str, ...]:
        """What is cut and dropped, and what is missing for an evaluation."""
        found = []
        for what, own in (("training examples", self.counts), ("test instances", self.tests)):
            if own.truncated or own.dropped:
                found.append(
                    f"{own.truncated} of {own.examples} {what} are longer than data.max_length = "
                    f"{max_length} and cut; {own.dropped} have no answer left and are dropped"
                )
            if note := other_prompt_note([own]):
                found.append(f"{what}: {note}")
        if not self.tests.examples:
            found.append("there are no test instances, so nothing is evaluated")
        return tuple(found)


def in_order(names: Sequence[str], seed: int) -> list[int]:
    """The clients in the order in which they are looked at, by name and seed."""
    ids = np.array([client_id(name) for name in names], np.uint32)
    return np.argsort(uniform(seed, ids, _MEASURED), kind="stable").tolist()


def measure_lengths(config: Config, tokenizer: Tokenizer, federation: Federation) -> Lengths:
    """The lengths of the training examples, and of the test instances.

    Of many clients a sample is looked at, drawn by name and seed, with `MOST_EXAMPLES` examples.

    Raises:
      UserError: a text that cannot be tokenized; names its client.
    """
    clients = federation.clients
    training: dict[int, tuple[TokenizedExample, ...]] = {}
    empty: list[int] = []
    counts, count = [], 0
    bound(config.data.template, tokenizer)  # A template that is wrong is so for all clients.
    for place in in_order(federation.names, config.seed):
        if count >= MOST_EXAMPLES:
            break
        client = clients[place]
        try:
            found = encode(config, tokenizer, client.train)
        except UserError as error:
            raise UserError(f"client {client.name!r}: {error}") from None
        count += len(client.train)
        counts.append(found.counts)
        if found.examples:
            training[place] = found.examples
        else:
            empty.append(place)
    measured = tuple(sorted(training))
    tests = federation.test[:MOST_EXAMPLES]
    return Lengths(
        clients=len(clients),
        measured=measured,
        training=tuple(training[place] for place in measured),
        empty=tuple(clients[place].name for place in sorted(empty)),
        counts=TokenCounts(*np.sum(counts, axis=0).tolist()),
        tests=encode(config, tokenizer, tests).counts if tests else TokenCounts(),
    )
