"""The data of a preflight: all of them, or a sample of large ones that no cache holds yet."""

import functools

from feddpa_jax.config import Config
from feddpa_jax.data.glimpse import glimpse
from feddpa_jax.data.hub import load_tests
from feddpa_jax.data.selection import Selection, some_per_task
from feddpa_jax.preflight.lengths import MOST_EXAMPLES, looked_at
from feddpa_jax.run.inputs import load_data
from feddpa_jax.types import Federation

NOT_ALL_READ = (
    "data.path: the data are not in the cache yet (data.cache), so the examples of a sample of the "
    "clients alone were read; the first run reads all, and may find an error in others"
)


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
        functools.partial(looked_at, seed=seed),
        cache=data.cache,
        columns=data.columns,
        most_tests=MOST_EXAMPLES,
    )
    if found is None:
        return load_data(config), False
    test = found.test if data.test_path is None else load_tests(data.test_path, data.columns)
    return Federation(found.clients, some_per_task(test, data.max_test, seed)), True
