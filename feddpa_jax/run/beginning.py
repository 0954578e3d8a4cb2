"""Where a run begins: the fresh state of its method, or that of its last good checkpoint."""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.devices.processes import check_same, from_first, is_first, several, together
from feddpa_jax.evaluate.groups import check_evaluated
from feddpa_jax.federated.clients import MemoryStore, Saved
from feddpa_jax.federated.method import METHODS, FedState, Method, Phase
from feddpa_jax.federated.play import Federation, fresh_clients, start
from feddpa_jax.run import round_state
from feddpa_jax.run.checkpoint import (
    CLIENTS,
    at_step,
    check_fits,
    latest,
    rounds_saved,
)
from feddpa_jax.run.client_files import MANY, ClientFiles
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.identity import identity
from feddpa_jax.run.inputs import Prepared, make_lora, make_method, training_data
from feddpa_jax.run.recording import forget
from feddpa_jax.run.starting_adapters import check_start, named_clients, start_from
from feddpa_jax.training.engine import make_engine

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where training goes on: a state, the rounds behind it, and the identity of the run."""

    state: FedState
    rounds: int
    known: dict[str, Any]


def restore(
    config: Config,
    prepared: Prepared,
    run: RunFolder,
    step: str = "last",
    *,
    expected: dict[str, Any] | None = None,
) -> Start | None:
    """The state of a checkpoint; None before the first one.

    Args:
      config: resolved.
      prepared: base, clients and tokenized examples.
      run: its folder.
      step: "last" (the last good one), "best" (the lowest loss on held-out examples) or a round's
        number.
      expected: the run's `identity`, where it is known already.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or of another run.
    """
    expected = identity(config, prepared) if expected is None else expected

    def find() -> list[Any] | None:
        if step == "last":
            found = latest(run.checkpoints, expected, warn=_log.warning)
        else:
            found = at_step(run.checkpoints, step, expected, warn=_log.warning)
        if found is None:
            return None
        state = round_state.send(found.place) if several() else found.state()
        return [found.round_number, state, found.clients, found.record.get("init")]

    found = from_first(find)
    if found is None:
        return None
    number, sent, clients, init = found
    arrays = together(lambda: round_state.receive(sent)) if several() else sent
    clients = {name: Saved(*saved) for name, saved in clients.items()}
    method = make_method(config, prepared)
    fresh = fresh_clients(method, make_federation(config, prepared, run), run_key(config))
    own = dataclasses.replace(fresh, saved=clients)
    if clients and set(own.names) <= set(clients):
        # All have trained: the folder that `init` names may be gone.
        own = dataclasses.replace(own, fresh={})
    else:
        own = named_clients(config, prepared, own)
    server = jax.tree.map(jnp.asarray, server_parts(arrays))
    # The folders that `init` names may be gone by now; what they held is still part of the run.
    known = expected if init is None else {**expected, "init": init}
    return Start(FedState(server, own), number + 1, known)


def server_parts(arrays: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's arrays as the server's parts; earlier versions had one, named `global_`."""
    return {"global": arrays["global_"]} if arrays.keys() == {"global_"} else dict(arrays)


def run_key(config: Config, number: int = -1) -> jax.Array:
    """The key of a round; of the start, if none is given."""
    return jax.random.fold_in(jax.random.key(config.seed), number + 1)


def make_federation(
    config: Config,
    prepared: Prepared,
    run: RunFolder | None,
    on_block: Callable[[int, int], None] = lambda real, computed: None,
) -> Federation:
    """What plays the run's method; without a folder, clients' parts lie in memory."""
    data = training_data(config, prepared)
    return Federation(
        engine=make_engine(
            prepared.base.model,
            mesh=prepared.mesh,
            base_mode=config.mesh.base,
            scale=config.lora.alpha / make_lora(config, prepared).rank,
            dropout=config.lora.dropout,
            learning_rate=config.fed.learning_rate,
            max_grad_norm=config.fed.max_grad_norm,
            remat=config.model.remat,
            on_block=on_block,
        ),
        names=data.names,
        id_C=np.array(data.ids, np.uint32),
        store=MemoryStore()
        if run is None
        else ClientFiles(
            run.checkpoints / CLIENTS,
            config.fed.clients_in_memory,
            sharded=len(data.names) > MANY,
        ),
        aggregation=config.fed.aggregation,
    )


def total_rounds(config: Config) -> int:
    """Rounds of a run; the phases after the last one, if the method has any, are one more."""
    return config.fed.rounds + METHODS.find(config.fed.method).personalizes


def check_beginning(config: Config, prepared: Prepared, run: RunFolder | None) -> None:
    """Refuses what `train` would refuse before its first round; nothing is written.

    Raises:
      UserError: an adapter of `init` cannot be used, checkpoints are of other data, another model
        or other adapters, or fewer clients are there than are to be evaluated.
    """
    check_evaluated(config.eval.clients, len(prepared.names))
    if run is None or not from_first(lambda: rounds_saved(run.checkpoints)):
        check_start(config, prepared, fresh_state(config, prepared, run))
    elif is_first():
        check_fits(run.checkpoints, identity(config, prepared))


def last_or_fresh(config: Config, prepared: Prepared, run: RunFolder | None) -> Start:
    """As `begin`, but nothing is written, and another process may train in the folder."""
    known = {} if run is None else identity(config, prepared)
    check_same({"init": json.dumps(known.get("init"))})
    found = None if run is None else restore(config, prepared, run, expected=known)
    if found is not None:
        return found
    return Start(start_from(config, prepared, fresh_state(config, prepared, run)), 0, known)


def fresh_state(config: Config, prepared: Prepared, run: RunFolder | None) -> FedState:
    """The method's state before the first round."""
    method, federation = make_method(config, prepared), make_federation(config, prepared, run)
    return start(method, federation, run_key(config))


def begin(config: Config, prepared: Prepared, run: RunFolder | None) -> Start:
    """The fresh state of a method, or that of the run's last good checkpoint.

    Args:
      config: resolved.
      prepared: base, clients and tokenized examples.
      run: its folder, started and held by this process; None for a run in memory.

    Raises:
      UserError: the checkpoints are of another run, or an adapter of `init` cannot be used.
    """
    found = last_or_fresh(config, prepared, run)
    if found.rounds:
        _log.info(f"resuming after {found.rounds} of {total_rounds(config)} rounds")
    for phase in never_played(make_method(config, prepared), config.fed.rounds):
        _log.info(
            f"{config.fed.method}: none of the {config.fed.rounds} rounds has a phase that trains "
            f"{', '.join(phase.train)}; raise fed.rounds if you want it"
        )
    if run is not None:
        folder = run
        from_first(lambda: forget(folder, found.rounds, config.fed.keep_checkpoints))
    return found


def never_played(method: Method, rounds: int) -> list[Phase]:
    """The phases that none of so many rounds has."""
    return [
        phase
        for phase in method.phases
        if not phase.after and not any(map(phase.when, range(rounds)))
    ]
