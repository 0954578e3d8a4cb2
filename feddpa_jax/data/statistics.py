"""What is in a federation: examples, token lengths, truncation, tasks."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table

from feddpa_jax.data.tokenize import TokenCounts, Tokenized, other_prompt_note
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
    """

    name: str
    tasks: tuple[str, ...]
    counts: TokenCounts
    tokens: tuple[int, int, int, int]
    response_tokens: float
    own_tests: int


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
            )
        )
    test_counts = TokenCounts()
    if federation.test:
        test_counts = encode(federation.test).counts
    return FederationStatistics(tuple(clients), tests, test_counts)


def render(statistics: FederationStatistics) -> Table:
    """The statistics as a table, one line per client."""
    table = Table(title="training data", title_justify="left")
    table.add_column("client")
    table.add_column("tasks", overflow="fold")
    for column in (
        "examples",
        "min",
        "median",
        "95 %",
        "max",
        "response",
        "cut",
        "dropped",
        "tests",
    ):
        table.add_column(column, justify="right")
    for client in statistics.clients:
        table.add_row(
            client.name,
            ", ".join(client.tasks),
            *map(str, (client.counts.examples, *client.tokens)),
            f"{client.response_tokens:.1f}",
            *map(str, (client.counts.truncated, client.counts.dropped, client.own_tests)),
        )
    totals = [c.counts for c in statistics.clients]
    table.add_section()
    table.add_row(
        "all",
        "",
        str(sum(c.examples for c in totals)),
        *[""] * 5,
        str(sum(c.truncated for c in totals)),
        str(sum(c.dropped for c in totals)),
        "",
    )
    tests = statistics.test_counts
    table.caption = (
        f"min to max: tokens of an example. {tests.examples} test instances of "
        f"{len(statistics.tests)} tasks: {tests.truncated} cut, {tests.dropped} dropped."
    )
    if note := other_prompt_note([*totals, tests]):
        table.caption += f" {note}."
    table.caption_justify = "left"
    return table
