"""Which clients are evaluated, and in what groups: memory holds the adapters of one group."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from feddpa_jax.evaluate.evaluation import ModeResult, Setting
from feddpa_jax.evaluate.modes import ModeWeights
from feddpa_jax.training.draws import uniform
from feddpa_jax.types import UserError, client_id

# So many clients are evaluated at once.
AT_ONCE = 256


def evaluated(names: Sequence[str], count: int | None, seed: int) -> np.ndarray | None:
    """The clients that are evaluated, by index, ascending; None: all of them, at once.

    Each client draws a number that depends on its own name and the seed alone, and the smallest are
    evaluated.

    Args:
      names: of all clients.
      count: how many; None: all.
      seed: the run's.

    Raises:
      UserError: there are fewer clients.

    >>> evaluated(["anna", "ben", "cleo"], 2, seed=0)
    array([0, 1])
    >>> evaluated(["anna", "ben", "cleo"], None, seed=0) is None
    True
    """
    if count is not None and count > len(names):
        raise UserError(f"eval.clients: is {count}, and there are {len(names)} clients; lower it")
    if count is None or count == len(names):
        return None if len(names) <= AT_ONCE else np.arange(len(names))
    draws = uniform(seed, np.array([client_id(name) for name in names]), 4)
    return np.sort(np.argsort(draws, kind="stable")[:count])


def in_groups(members: np.ndarray) -> list[np.ndarray]:
    """Clients in groups of at most `AT_ONCE`."""
    return [members[first : first + AT_ONCE] for first in range(0, len(members), AT_ONCE)]


def together_again(
    found: Sequence[tuple[dict[str, ModeResult], Setting]],
) -> tuple[dict[str, ModeResult], Setting]:
    """The results of groups of clients as those of all, and what was evaluated.

    Args:
      found: by group its results by mode, and its clients with the test instances, which are the
        same for all.
    """
    results, setting = found[0]
    if len(found) == 1:
        return results, setting
    clients = tuple(client for _, own in found for client in own.clients)
    training = tuple(examples for _, own in found for examples in own.training)
    held = tuple(examples for _, own in found for examples in own.held)
    whole = dataclasses.replace(setting, clients=clients, training=training, held=held)
    return {mode: _joined([own[mode] for own, _ in found]) for mode in results}, whole


def _joined(parts: Sequence[ModeResult]) -> ModeResult:
    names, predictions = parts[0].scores_CI, None
    if parts[0].predictions_CI is not None:
        predictions = [texts for part in parts for texts in part.predictions_CI or ()]
    return ModeResult(
        _weights([part.weights for part in parts]),
        {name: np.concatenate([part.scores_CI[name] for part in parts]) for name in names},
        predictions,
    )


def _weights(parts: Sequence[ModeWeights]) -> ModeWeights:
    def joined(name: str) -> np.ndarray | None:
        fields = [getattr(part, name) for part in parts]
        return None if fields[0] is None else np.concatenate(fields)

    global_CI, local_CI = joined("global_CI"), joined("local_CI")
    assert global_CI is not None
    assert local_CI is not None
    return ModeWeights(global_CI, local_CI, joined("similarity_CI"), joined("gate_CI"))
