"""Who can take part in a run's rounds, as its configuration and its data say it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.federated.method import METHODS
from feddpa_jax.training.participation import ALWAYS, Availability, how_many_there
from feddpa_jax.training.timetable import make_timetable
from feddpa_jax.types import Client, UserError, available_of, client_id, names_of


def check_availability(config: Config) -> None:
    """Refuses settings of an availability that is not asked for.

    Raises:
      UserError: names the field.
    """
    fed = config.fed
    unused: dict[str, tuple[str, ...]] = {
        "always": ("availability_share", "availability_period"),
        "column": ("availability_share",),
    }
    for name in unused.get(fed.availability, ()):
        if getattr(fed, name) != getattr(type(fed), name):
            why = "all clients are always available"
            if fed.availability == "column":
                why = "the data say when clients are available"
            raise UserError(
                f"fed.{name}: {why}; set fed.availability to daily or markov, or leave it out"
            )


def who_takes_part(config: Config, clients: Sequence[Client]) -> dict[str, Any]:
    """What `TrainingData` knows of a round's clients; a centralized method's one is always there.

    Raises:
      UserError: `fed.cohort` is more than there are clients, or the data do not say as they should
        when each is available.
    """
    fed = config.fed
    if METHODS.find(fed.method).pooled:
        return {}
    count = len(clients)
    if fed.cohort is not None and fed.cohort > count:
        raise UserError(f"fed.cohort: {fed.cohort} of {count} clients; give at most {count}")
    found = Availability(fed.availability, fed.availability_share, fed.availability_period)
    if fed.availability == "column":
        said = available_of(clients)
        table = make_timetable(said, names_of(clients), fed.availability_period)
        found = found._replace(timetable=table)
    return {
        "participation": fed.participation,
        "cohort": fed.cohort,
        "availability": found,
        "dropout": fed.dropout,
    }


def clients_there(config: Config, clients: Sequence[Client]) -> np.ndarray | None:
    """How many clients are available in each of the first rounds, as of `how_many_there`.

    Returns:
      None where all are in every round.

    Raises:
      UserError: as of `who_takes_part`; or the data say that nobody is in some round.
    """
    availability = who_takes_part(config, clients).get("availability", ALWAYS)
    if availability.kind == "always":
        return None
    ids = [client_id(name) for name in names_of(clients)]
    return count_there(config, ids, availability)


def count_there(config: Config, ids: Sequence[int], availability: Availability) -> np.ndarray:
    """As `clients_there`, of clients' numbers.

    Raises:
      UserError: the data say that nobody is available in some round.
    """
    id_C = np.array(ids, np.uint32)
    there_N = how_many_there(id_C, availability, config.seed, config.fed.rounds)
    if availability.kind == "column" and not there_N.all():
        number, period = int(np.argmin(there_N)), availability.period
        raise UserError(
            f"fed.availability: nobody is available in round {number % period} of each "
            f"{period} (fed.availability_period); give some client that round in the column that "
            "data.columns names as available"
        )
    return there_N
