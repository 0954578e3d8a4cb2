"""A training run: rounds, metrics and checkpoints in one loop around a method's pure functions."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.tokenize import other_prompt_note
from feddpa_jax.devices.hardware import memory_of
from feddpa_jax.devices.processes import check_same, from_first, is_first, several, together
from feddpa_jax.federated.clients import MemoryStore, Saved
from feddpa_jax.federated.method import METHODS, FedState, Method, Metrics
from feddpa_jax.federated.play import Federation, fresh_clients, play_phases, start
from feddpa_jax.federated.shapes import phase_shapes
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.hf.load import resolve_dtype
from feddpa_jax.progress import Advance, OnProgress, follow
from feddpa_jax.run import round_state
from feddpa_jax.run.checkpoint import (
    CLIENTS,
    at_step,
    check_fits,
    latest,
    rounds_saved,
)
from feddpa_jax.run.client_files import ClientFiles
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.identity import identity
from feddpa_jax.run.inputs import Prepared, make_lora, make_method, training_data
from feddpa_jax.run.recording import forget, record, saving
from feddpa_jax.run.round import Round, metrics_line
from feddpa_jax.run.starting_adapters import check_start, named_clients, start_from
from feddpa_jax.training.engine import NonFiniteError, make_engine
from feddpa_jax.training.memory import plan_memory
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)


def resolved(config: Config) -> Config:
    """The configuration with what depends on the machine settled, as it is written to the run."""
    model = dataclasses.replace(config.model, dtype=resolve_dtype(config.model.dtype))
    return dataclasses.replace(config, model=model)


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
      step: "last" (the last good one), "best" (the lowest loss) or a round's number.
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
        else ClientFiles(run.checkpoints / CLIENTS, config.fed.clients_in_memory),
        aggregation=config.fed.aggregation,
    )


def tell_data(config: Config, prepared: Prepared) -> None:
    """Says what is trained on."""
    counts = prepared.counts
    cut, dropped = sum(c.truncated for c in counts), sum(c.dropped for c in counts)
    held = sum(len(client.validation) for client in prepared.federation.clients)
    _log.info(
        f"{sum(c.examples for c in counts)} training examples of {len(counts)} clients "
        f"({cut} cut, {dropped} dropped at {config.data.max_length} tokens"
        f"{f', {held} held out' if held else ''}); "
        f"{config.model.path} in {config.model.dtype}"
    )
    if note := other_prompt_note(counts):
        _log.info(f"training examples: {note}")


def _rounds(config: Config) -> str:
    personalizes = METHODS.find(config.fed.method).personalizes
    count = f"{config.fed.rounds} round{'s' if config.fed.rounds > 1 else ''}"
    return f"{count} and the personalization" if personalizes else count


def total_rounds(config: Config) -> int:
    """Rounds of a run; the phases after the last one, if the method has any, are one more."""
    return config.fed.rounds + METHODS.find(config.fed.method).personalizes


def check_beginning(config: Config, prepared: Prepared, run: RunFolder | None) -> None:
    """Refuses what `train` would refuse before its first round; nothing is written.

    Raises:
      UserError: an adapter of `init` cannot be used, or checkpoints are of other data, another
        model or other adapters.
    """
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
    if config.fed.method == "feddpa_t" and config.fed.rounds == 1:
        _log.info("feddpa_t trains local adapters from the second round on; fed.rounds is 1")
    if run is not None:
        folder = run
        from_first(lambda: forget(folder, found.rounds, config.fed.keep_checkpoints))
    return found


def play(
    config: Config,
    prepared: Prepared,
    run: RunFolder | None,
    start: Start,
    on_progress: OnProgress | None = None,
) -> Generator[Round]:
    """Plays the rounds that are left; each is being written, if there is a folder, as it is given.

    All are on disk once the iterator has ended or is closed.

    Args:
      config: resolved.
      prepared: base, clients and tokenized examples.
      run: its folder, started and held by this process; None for a run in memory.
      start: where to go on.
      on_progress: called as tokens are trained on.

    Raises:
      UserError: a loss or update is not finite, or nothing can be written; the last good
        checkpoint is kept.
    """
    state, first, known = start
    left = range(first, total_rounds(config))
    if not left:
        return
    progress: list[Advance] = []
    federation = make_federation(config, prepared, run, lambda real, computed: progress[-1](real))
    method, lora = make_method(config, prepared), make_lora(config, prepared)
    data = training_data(config, prepared)
    shapes = data.shapes(config.fed.rounds)
    listed = ", ".join(f"{shape.rows} x {shape.length}" for shape in shapes)
    _log.info(
        f"{config.fed.method}: {len(data.names)} clients, {_rounds(config)}, blocks of "
        f"{listed} (rows x tokens)"
    )
    report_memory(config, prepared, data, method, federation, shapes)
    amount = sum(round_tokens(config, method, data, number) for number in left)
    with (
        follow("training", amount, "tokens", on_progress) as advance,
        saving(run, keep=config.fed.keep_checkpoints) as saver,
    ):
        progress.append(advance)
        for number in left:
            began = time.perf_counter()
            state, metrics = play_round(method, federation, state, data, shapes, config, number)
            phases = method.phases_of(number, config.fed.rounds)
            before = method.phases_of(number - 1, config.fed.rounds) if number else None
            moved = traffic(method, lora, phases, participants(config, data, number), before)
            line = metrics_line(number, metrics, moved, time.perf_counter() - began)
            advance(0, f"round {number + 1}: loss {line['loss']:.3f}")
            if run is not None and saver is not None:
                record(saver, known, run, number, state, line)
            yield Round(number, state, line)


def report_memory(
    config: Config,
    prepared: Prepared,
    data: TrainingData,
    method: Method,
    federation: Federation,
    shapes: Sequence[BlockShape],
) -> None:
    """Says what the largest block takes on a device, and what to change if it is too much.

    Its program, of the first round's last phase, is compiled for that, which training then need
    not do.
    """
    slots = data.slots(len(data.participants(0)))
    shape = max(shapes, key=lambda shape: shape.rows * data.costs.row(shape.length))
    phase = method.phases_of(0, config.fed.rounds)[-1]
    trained, frozen = phase_shapes(method, phase)
    plan = plan_memory(
        federation.engine.lower(phase.objective, trained, frozen, slots, shape).compile(),
        prepared.base.model,
        trained,
        frozen,
        slots=slots // data.shards,
        limit=memory_of(prepared.mesh.local_devices[0]),
    )
    _log.info(f"memory of each device: {plan.line()}")
    remedy = plan.remedy()
    if remedy is not None:
        _log.warning(f"this is more than the device has: {remedy}")


def play_round(
    method: Method,
    federation: Federation,
    state: FedState,
    data: TrainingData,
    shapes: Sequence[BlockShape],
    config: Config,
    number: int,
) -> tuple[FedState, Metrics]:
    """One round, or the phases after the last."""
    try:
        return play_phases(
            method,
            federation,
            state,
            lambda everybody: data.round(number, shapes, everybody=everybody),
            method.phases_of(number, config.fed.rounds),
            key=run_key(config, number),
            learning_rate=round_rate(config, number),
        )
    except NonFiniteError as error:
        kept = f"the checkpoint of round {number - 1} is kept" if number else "nothing was written"
        raise UserError(f"round {number}, {error}; {kept}") from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"round {number}: the device has no memory left; lower fed.block_tokens or "
            "fed.clients_per_step, or set model.remat true"
        ) from None


def round_rate(config: Config, number: int) -> float:
    """The learning rate that a round's local trainings start with; after the last, the whole one.

    Loshchilov & Hutter, *SGDR*, arXiv 1608.03983, eq. 5, over the rounds, without restarts.
    """
    fed = config.fed
    if fed.rate_over_rounds == "constant" or number >= fed.rounds:
        return fed.learning_rate
    return fed.learning_rate * 0.5 * (1.0 + math.cos(math.pi * number / fed.rounds))


def participants(config: Config, data: TrainingData, number: int) -> np.ndarray:
    """The clients of a round, by index; after the last round all of them."""
    return np.arange(len(data.names)) if number == config.fed.rounds else data.participants(number)


def round_tokens(config: Config, method: Method, data: TrainingData, number: int) -> int:
    """Real tokens that a round will train on, in all its phases."""
    some = sum(map(data.tokens, participants(config, data, number).tolist()))
    everybody = sum(map(data.tokens, range(len(data.names))))
    phases = [p for p in method.phases_of(number, config.fed.rounds) if p.search is None]
    return sum(everybody if phase.everybody else some for phase in phases)
