"""The data of a preflight: all of them, or a sample of large ones that no cache holds yet."""

import itertools

from feddpa_jax.config import Config
from feddpa_jax.data.glimpse import FewClients, Most, glimpse
from feddpa_jax.data.hub import load_tests
from feddpa_jax.data.selection import Selection, some_per_task
from feddpa_jax.data.survey import problems_of
from feddpa_jax.preflight.lengths import MOST_EXAMPLES, in_order
from feddpa_jax.run.inputs import load_data
from feddpa_jax.types import Federation

# So many problems of the data are told, and so many are counted.
SHOWN, COUNTED = 10, 10_000
NOT_ALL_READ = (
    "data.path: the data are not in the cache yet (data.cache), so the examples of a sample of the "
    "clients alone were read; the first run reads all, and may find an error in others"
)

NOT_COUNTED = (
    "fed.availability: column, and when the clients are available is not known before all their "
    "records are read into the cache"
)


def knows_who_is_there(config: Config, federation: Federation) -> bool:
    """Whether it is known when the clients are available, if that is in their records."""
    clients = federation.clients
    few = isinstance(clients, FewClients) and clients.said is None
    return config.fed.availability != "column" or not few


def more_problems(config: Config) -> list[str]:
    """What is wrong with the configured data besides what loading them says: at most `SHOWN`.

    The last says how many more there are; of very many, not all are counted.
    """
    data = config.data
    selection = Selection(data.max_train, data.validation, config.seed)
    every = problems_of(data.path, selection, data.columns, data.test_path)
    found = list(dict.fromkeys(itertools.islice(every, COUNTED)))
    if len(found) <= SHOWN:
        return found
    more = len(found) - SHOWN
    least = "at least " if len(found) == COUNTED else ""
    return [*found[:SHOWN], f"data.path: {least}{more:,} more problems of the data"]


def look_at(config: Config) -> tuple[Federation, bool]:
    """The configured clients and test instances, and whether they are a part of all.

    Of a part, all clients' names are there, and the examples of those that lengths are measured on.

    Raises:
      UserError: anything that is wrong with what was read.
    """
    data, seed = config.data, config.seed
    found = glimpse(
        data.path,
        Selection(data.max_train, data.validation, seed),
        lambda names: in_order(names, seed),
        Most(MOST_EXAMPLES, MOST_EXAMPLES),
        cache=data.cache,
        columns=data.columns,
    )
    if found is None:
        return load_data(config), False
    test = found.test if data.test_path is None else load_tests(data.test_path, data.columns)
    return Federation(found.clients, some_per_task(test, data.max_test, seed)), True
