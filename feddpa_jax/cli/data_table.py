"""The statistics of a federation on the screen."""

from rich.table import Table

from feddpa_jax.data.statistics import FederationStatistics
from feddpa_jax.data.tokenize import other_prompt_note


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
