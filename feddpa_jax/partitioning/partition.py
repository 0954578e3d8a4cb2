"""Divides flat data among clients."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import numpy as np
from annotated_types import Ge, Le, Lt

from feddpa_jax.checked_settings import Count, check_value
from feddpa_jax.data.columns import Columns, check_columns
from feddpa_jax.data.records import check_client_name, to_example
from feddpa_jax.files.escape import short
from feddpa_jax.partitioning.flat_data import read_flat
from feddpa_jax.partitioning.heterogeneity import PartitionStatistics, describe_partition
from feddpa_jax.partitioning.partition_folder import write_partition
from feddpa_jax.partitioning.pool import Labels, Pool
from feddpa_jax.partitioning.readable import Readable, readable
from feddpa_jax.partitioning.specification import assign, make_specification
from feddpa_jax.short_repr import short_repr
from feddpa_jax.types import Client, Example, Federation, UserError

if TYPE_CHECKING:
    import pyarrow

    from feddpa_jax.report.plot_style import Plot

# Columns whose labels are shown where nobody says otherwise.
_LABELS = ("task", "category", "label")
# What is shown of examples without one.
NO_LABEL = "(none)"


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Flat data divided among clients, as `partition` makes it.

    Attributes:
      table: the examples with all their columns, in the data's order: an Arrow table of I rows.
      client_I: each example's client, a place in `names`; -1 for one that belongs to none.
      test_I: whether an example is a test instance of its client.
      names: of the C clients.
      settings: what made it: `partition`, `source`, `seed`, `minimum` and `test`; and `left_out`,
        how many records are no examples, if there are such.
      label: the column whose labels are counted and drawn; None for none.
      columns: the data's name of a column by ours (`data.columns`).
      read: which of the data's records the examples are, if that is known.
    """

    table: "pyarrow.Table"
    client_I: np.ndarray
    test_I: np.ndarray
    names: tuple[str, ...]
    settings: Mapping[str, Any]
    label: str | None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Readable | None = None

    def __repr__(self) -> str:
        """In a line; see `short_repr`."""
        return short_repr(
            self,
            partition=self.settings["partition"],
            clients=len(self.names),
            examples=int((self.client_I >= 0).sum()),
            tests=int((self.test_I & (self.client_I >= 0)).sum()),
            label=self.label,
        )

    @functools.cached_property
    def statistics(self) -> PartitionStatistics:
        """Sizes of clients, and how unlike they are."""
        rng = np.random.default_rng([int(self.settings["seed"]), 2])
        return describe_partition(
            self.client_I, self.test_I, len(self.names), self.label, self.labels, rng
        )

    @functools.cached_property
    def labels(self) -> Labels | None:
        """The examples' labels; None if there is no such column."""
        if self.label is None:
            return None
        number_I = None if self.read is None else self.read.number_I
        # Those that the division itself needs were looked at by then.
        return Pool(self.table, None, 1, number_I).labels(self.label, missing=NO_LABEL)

    def federation(self) -> Federation:
        """The clients and all test instances, in memory.

        Raises:
          UserError: a record without an instruction or output, or another bad field.
        """
        train: list[list[Example]] = [[] for _ in self.names]
        tests, columns = [], Columns(self.columns)
        for number, record in enumerate(self.table.to_pylist(), start=1):
            client = int(self.client_I[number - 1])
            if client < 0:
                continue
            source = f"{self.settings['source']}, record {number}"
            example = to_example(record, source, task=self.names[client], columns=columns)
            if self.test_I[number - 1]:
                tests.append(example)
            else:
                train[client].append(example)
        clients = zip(self.names, train, strict=True)
        return Federation(tuple(Client(name, tuple(own)) for name, own in clients), tuple(tests))

    def plot(self, width: float = 680) -> "Plot":
        """The examples of each client by label.

        Args:
          width: of the figure in pixels, of which an inch has 96.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows; `savefig` writes it.
        """
        from feddpa_jax.partitioning.partition_plot import plot_clients

        return plot_clients(
            self.client_I,
            self.names,
            self.labels,
            self.label,
            str(self.settings["partition"]),
            width,
        )

    def write(self, out: Path | str) -> str:
        """Writes the data into a new folder.

        The folder has `train.parquet`, `test.parquet` if there are test instances, `clients.svg`
        and `partition.json`. The column `client` names each record's client, whose records lie
        together; all other columns are as they were.

        Args:
          out: the folder; new, or empty.

        Returns:
          The data's path, for `load_federation` and `data.path`.

        Raises:
          UserError: the folder is not empty or cannot be written, no record is an example, or the
            data have another column that is called `client`.
        """
        from feddpa_jax.report.plot_style import to_svg

        if self.read is not None and self.read.wrong:
            raise UserError(f"data.path: no record can be trained on: {self.read.wrong}")

        write_partition(
            Path(out),
            self.table,
            self.client_I,
            self.test_I,
            self.names,
            {**self.settings, "statistics": dataclasses.asdict(self.statistics)},
            to_svg(self.plot()),
        )
        return f"hf:{out}"


def partition(
    data: Any,
    partitioner: Any,
    *,
    clients: int | None = None,
    minimum: int = 1,
    test: float = 0.0,
    seed: int = 0,
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> Partition:
    """Divides flat data among clients.

    Records that are no examples, such as those without an output, are left out, with a warning.

    Args:
      data: the path of a JSON-lines, JSON, CSV, TSV or Parquet file; or a list of `Example`s or
        mappings, a pandas or Arrow table, or a data set of `datasets`.
      partitioner: a name of `fd.partitioners`, as "iid"; a name with settings, as
        "dirichlet(task, alpha=0.1)"; FILE.py:NAME; or a function.
      clients: how many; not needed where the partitioner knows, as `natural` does.
      minimum: fewest training examples of a client.
      test: the part of each client's examples that becomes its test instances. What is no whole
        number is rounded at random, so that the part is right on average.
      seed: of everything random.
      label: the column whose labels are counted and drawn; by default the partitioner's own, or
        `task`, `category` or `label`.
      columns: the data's name of a column by ours (`data.columns`), as {"task": "topic"}. Columns
        keep their names: those of the partitioner and of `label` are the data's.
      **options: more settings of the partitioner.

    Returns:
      The partition, which `write` puts into a folder.

    Raises:
      UserError: anything wrong with the data, the settings, or both together, such as more clients
        than examples.

    >>> examples = [Example("Add.", str(n), task=f"task {n % 2}") for n in range(40)]
    >>> found = partition(examples, "pathological(task, k=1)", clients=4)
    >>> found.statistics.sizes.most, found.statistics.own_labels.most
    (10.0, 1.0)
    >>> [client.name for client in found.federation().clients]
    ['client_0', 'client_1', 'client_2', 'client_3']
    """
    check_value("clients", Optional[Count], clients)  # noqa: UP045
    check_value("minimum", Count, minimum)
    check_value("test", Annotated[float, Ge(0), Lt(1)], test)
    check_value("seed", Annotated[int, Ge(0), Le(2**32 - 1)], seed)
    wanted = make_specification(partitioner, options)
    table, source = read_flat(data)
    known = check_columns(columns)
    for ours, theirs in known.items():
        if theirs not in table.column_names:
            raise UserError(
                f"data.columns: {source} has no column {theirs!r}, which is named for {ours}; it "
                f"has {short(', '.join(map(repr, table.column_names)))}"
            )
    found = readable(table, source, known)
    table = found.table
    pool = Pool(table, clients, minimum, found.number_I)
    column = wanted.column if label is None else label
    if column is None or (label is None and wanted.name == "natural"):
        named = (known.get(name, name) for name in _LABELS)
        column = next((name for name in named if pool.has_labels(name)), None)
    if label is not None:
        pool.labels(label, field="label")
    client_I, names = assign(wanted, pool, np.random.default_rng([seed, 0]))
    settings = {
        "partition": str(wanted),
        "source": source,
        "seed": seed,
        "minimum": minimum,
        "test": test,
        **({"columns": known} if known else {}),
        **({"left_out": found.left_out} if found.left_out else {}),
    }
    tests_rng = np.random.default_rng([seed, 1])
    test_I = _held_out(client_I, len(names), test, minimum, tests_rng)
    return Partition(table, client_I, test_I, _usable(names), settings, column, known, found)


def _held_out(
    client_I: np.ndarray, clients: int, part: float, minimum: int, rng: np.random.Generator
) -> np.ndarray:
    """Which examples are test instances: bool [I]."""
    size_C = np.bincount(client_I[client_I >= 0], minlength=clients)
    test_C = np.floor(part * size_C + rng.random(clients)).astype(np.int64)
    test_C = np.minimum(test_C, size_C - minimum)
    order = rng.permutation(len(client_I))
    by_client = order[np.argsort(client_I[order], kind="stable")]
    by_client = by_client[client_I[by_client] >= 0]
    place_I = np.arange(len(by_client)) - np.repeat(np.cumsum(size_C) - size_C, size_C)
    test_I = np.zeros(len(client_I), bool)
    test_I[by_client] = place_I < np.repeat(test_C, size_C)
    return test_I


def _usable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that are folders' names and differ; where they are not, the nearest that are.

    What cannot be in a folder's name becomes `_`, and a digest of the name makes it differ.
    """
    taken: dict[str, int] = {}
    for name in names:
        taken[name.lower()] = taken.get(name.lower(), 0) + 1
    found = []
    for name in names:
        if _is_usable(name) and taken[name.lower()] == 1:
            found.append(name)
        else:
            letters = "".join(one if one.isascii() and one.isalnum() else "_" for one in name[:40])
            found.append(f"{letters}_{hashlib.sha256(name.encode()).hexdigest()[:10]}")
    return tuple(found)


def _is_usable(name: str) -> bool:
    try:
        check_client_name(name, "")
    except UserError:
        return False
    return True
