"""A partition on the screen."""

from rich.table import Table

from feddpa_jax.partitioning.heterogeneity import PartitionStatistics, Spread


def render_partition(title: str, found: PartitionStatistics) -> Table:
    """The statistics of a partition as a table.

    Args:
      title: what divided the data.
      found: the statistics.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("all", "min", "median", "max"):
        table.add_column(column, justify="right")
    table.add_row("clients", f"{found.clients:,}", "", "", "")
    table.add_row("training examples", f"{found.examples:,}", *_numbers(found.sizes))
    if found.tests:
        table.add_row("test instances", f"{found.tests:,}", "", "", "")
    if found.left_out:
        table.add_row("examples of no client", f"{found.left_out:,}", "", "", "")
    if found.own_labels is not None:
        name = f"values of {found.column}"
        table.add_row(name, f"{found.labels:,}", *_numbers(found.own_labels))
        table.caption = (
            f"A client's mix of {found.column} differs from that of all by {found.distance:.2f} on "
            f"average (0: alike, 1: nothing in common), and by {found.distance_by_chance:.2f} if "
            "the same examples are dealt out at random. This is the total variation distance."
        )
        table.caption_justify = "left"
    return table


def _numbers(spread: Spread) -> list[str]:
    return [f"{number:,.10g}" for number in (spread.least, spread.median, spread.most)]
