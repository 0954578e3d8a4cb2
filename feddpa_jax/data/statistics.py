"""What is in a federation: examples, token lengths, truncation, tasks."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from feddpa_jax.data.tokenize import TokenCounts, Tokenized
from feddpa_jax.types import Example, Federation


@dataclasses.dataclass(frozen=True)
class ClientStatistics:
    """One client's training data.

    Attributes:
      name: the client.
      tasks: its tasks.
      counts: examples, truncated, dropped.
      tokens: minimum, median, 95th percentile and maximum of an example's tokens.
      response_tokens: mean number of response tokens.
      own_tests: test instances of its own tasks.
      all_tokens: of all its examples.
    """

    name: str
    tasks: tuple[str, ...]
    counts: TokenCounts
    tokens: tuple[int, int, int, int]
    response_tokens: float
    own_tests: int
    all_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class FederationStatistics:
    """All clients, and the test instances by task."""

    clients: tuple[ClientStatistics, ...]
    tests: dict[str, int]
    test_counts: TokenCounts


def describe(
    federation: Federation, encode: Callable[[Sequence[Example]], Tokenized]
) -> FederationStatistics:
    """Tokenizes everything with `encode` and counts."""
    tests = {
        task: sum(example.task == task for example in federation.test)
        for task in sorted({example.task for example in federation.test})
    }
    clients = []
    for client in federation.clients:
        tokenized, _, counts = encode(client.train)
        lengths = [len(example.tokens_T) for example in tokenized] or [0]
        responses = [len(e.tokens_T) - e.prompt_length for e in tokenized] or [0]
        low, median, high, most = (round(np.percentile(lengths, q)) for q in (0, 50, 95, 100))
        clients.append(
            ClientStatistics(
                name=client.name,
                tasks=client.tasks,
                counts=counts,
                tokens=(low, median, high, most),
                response_tokens=float(np.mean(responses)),
                own_tests=sum(tests.get(task, 0) for task in client.tasks),
                all_tokens=sum(lengths),
            )
        )
    test_counts = TokenCounts()
    if federation.test:
        test_counts = encode(federation.test).counts
    return FederationStatistics(tuple(clients), tests, test_counts)
