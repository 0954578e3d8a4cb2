"""Whether clients are tested on what they train on: if none is, P is a mean over nobody."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from feddpa_jax.files.escape import some_names
from feddpa_jax.types import Client, Example, Federation, SomeClients

_log = logging.getLogger(__name__)

# So many tasks are named.
_NAMED = 3


def without_own_tests(
    clients: Iterable[Client], test: Sequence[Example], who: str = "no client"
) -> str | None:
    """What to say where no client has a test instance of a task of its own.

    Args:
      clients: they are read until one has.
      test: the test instances.
      who: has none.

    Returns:
      None where one has, or where there are no test instances at all.

    >>> anna = Client("anna", [Example("Add 1 and 2.", "3")])
    >>> without_own_tests([anna], [Example("Say hi.", "hi", task="greet")]).partition(":")[0]
    'no client has a test instance of a task of its own, so P is empty'
    >>> without_own_tests([anna], [Example("Add 2 and 2.", "4", task="anna")]) is None
    True
    """
    tested = {example.task for example in test}
    if not tested:
        return None
    trained: set[str] = set()
    for client in clients:
        own = client.tasks
        if not tested.isdisjoint(own):
            return None
        if len(trained) < 1000:  # Enough to name some.
            trained.update(own)
    return (
        f"{who} has a test instance of a task of its own, so P is empty: clients train on "
        f"{some_names(sorted(trained), _NAMED)}, the test instances are of "
        f"{some_names(sorted(tested), _NAMED)}; give both the same tasks"
    )


def warn_without_own_tests(federation: Federation, members: np.ndarray | None) -> None:
    """Warns before an evaluation whose P will be empty.

    Args:
      federation: clients and test instances.
      members: the clients that are evaluated, by index; None: all.
    """
    clients = federation.clients
    asked = clients if members is None else SomeClients(clients, members)
    if note := without_own_tests(asked, federation.test):
        _log.warning(note)
