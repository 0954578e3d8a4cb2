"""The statistics of a federation on the screen."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.table import Table

from feddpa_jax.data.statistics import ClientStatistics, FederationStatistics
from feddpa_jax.data.tokenize import other_prompt_note

# Of more clients, so many of the smallest and of the largest have a line.
MOST_LINES, ENDS = 40, 3
_QUANTILES = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}


def render(statistics: FederationStatistics, *, every: bool = False) -> Table | Group:
    """The statistics as a table, one line per client; of many clients a summary.

    Args:
      statistics: of all clients.
      every: a line per client, however many there are.
    """
    clients = statistics.clients
    if every or len(clients) <= MOST_LINES:
        return _clients(statistics, [clients], "training data")
    ordered = sorted(clients, key=lambda client: (client.counts.examples, client.all_tokens))
    title = f"training data: the smallest and the largest of {len(clients):,} clients"
    table = _clients(statistics, [ordered[:ENDS], ordered[-ENDS:]], title)
    return Group(_quantiles(clients), table, "a line per client: --every-client")


def _quantiles(clients: Sequence[ClientStatistics]) -> Table:
    """How much clients have."""
    table = Table(title=f"{len(clients):,} clients", title_justify="left")
    table.add_column("of a client")
    for name in _QUANTILES:
        table.add_column(name, justify="right")
    table.add_column("mean", justify="right")
    for name, values in (
        ("examples", [client.counts.examples for client in clients]),
        ("tokens", [client.all_tokens for client in clients]),
    ):
        found = np.percentile(values, list(_QUANTILES.values())).round().astype(int).tolist()
        table.add_row(name, *(f"{value:,}" for value in found), f"{np.mean(values):,.1f}")
    return table


def _clients(
    statistics: FederationStatistics, parts: Sequence[Sequence[ClientStatistics]], title: str
) -> Table:
    """Lines of some clients, in parts, and the sums of all."""
    table = Table(title=title, title_justify="left")
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
    for part in parts:
        for client in part:
            table.add_row(
                client.name,
                ", ".join(client.tasks),
                *map(str, (client.counts.examples, *client.tokens)),
                f"{client.response_tokens:.1f}",
                *map(str, (client.counts.truncated, client.counts.dropped, client.own_tests)),
            )
        table.add_section()
    totals = [c.counts for c in statistics.clients]
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
