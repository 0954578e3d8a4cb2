"""A training run: rounds, metrics and checkpoints in one loop around a method's pure functions."""

import dataclasses
import json
import logging
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
from feddpa_jax.federated.clients import LocalAdapters, MemoryStore, Saved
from feddpa_jax.federated.method import METHODS, FedState, Method, Metrics, Parts
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
from feddpa_jax.run.inputs import Prepared, adapter_factory, training_data
from feddpa_jax.run.recording import forget, record, saving
from feddpa_jax.run.round import Round, metrics_line
from feddpa_jax.run.starting_adapters import check_start, start_from, start_local
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
    parts = make_parts(config, prepared, run)
    if clients and set(parts.names) <= set(clients):
        local = LocalAdapters(parts.names, parts.store, fresh=None, saved=clients)
    else:
        local = METHODS.find(config.fed.method).build(parts).init(run_key(config)).local
        if local is None and clients:
            local = LocalAdapters(parts.names, parts.store, fresh=None)
        if local is not None:
            local = start_local(config, prepared, dataclasses.replace(local, saved=clients))
    global_ = jax.tree.map(jnp.asarray, arrays.get("global_"))
    # The folders that `init` names may be gone by now; what they held is still part of the run.
    known = expected if init is None else {**expected, "init": init}
    return Start(FedState(global_, local), number + 1, known)


def run_key(config: Config, number: int = -1) -> jax.Array:
    """The key of a round; of the start, if none is given."""
    return jax.random.fold_in(jax.random.key(config.seed), number + 1)


def make_parts(
    config: Config,
    prepared: Prepared,
    run: RunFolder | None,
    on_block: Callable[[int, int], None] = lambda real, computed: None,
) -> Parts:
    """What the run's method is built from; without a folder, clients' adapters lie in memory."""
    data = training_data(config, prepared)
    return Parts(
        engine=make_engine(
            prepared.base.model,
            mesh=prepared.mesh,
            base_mode=config.mesh.base,
            scale=config.lora.alpha / config.lora.rank,
            dropout=config.lora.dropout,
            learning_rate=config.fed.learning_rate,
            max_grad_norm=config.fed.max_grad_norm,
            local_weight=config.fed.local_weight,
            detach=config.fed.frozen_branch_gradient == "detached",
            remat=config.model.remat,
            on_block=on_block,
        ),
        new_adapter=adapter_factory(config, prepared),
        aggregation=config.fed.aggregation,
        names=data.names,
        id_C=np.array(data.ids, np.uint32),
        store=MemoryStore()
        if run is None
        else ClientFiles(run.checkpoints / CLIENTS, config.fed.clients_in_memory),
        local_weight=config.fed.local_weight,
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
    """Rounds of a run, with the personalization of FedDPA-F and FedLoRA as one more."""
    return config.fed.rounds + METHODS.find(config.fed.method).personalizes


def check_beginning(config: Config, prepared: Prepared, run: RunFolder | None) -> None:
    """Refuses what `train` would refuse before its first round; nothing is written.

    Raises:
      UserError: an adapter of `init` cannot be used, or checkpoints are of other data, another
        model or other adapters.
    """
    if run is None or not from_first(lambda: rounds_saved(run.checkpoints)):
        method = METHODS.find(config.fed.method).build(make_parts(config, prepared, run))
        check_start(config, prepared, method.init(run_key(config)))
    elif is_first():
        check_fits(run.checkpoints, identity(config, prepared))


def last_or_fresh(config: Config, prepared: Prepared, run: RunFolder | None) -> Start:
    """As `begin`, but nothing is written, and another process may train in the folder."""
    known = {} if run is None else identity(config, prepared)
    check_same({"init": json.dumps(known.get("init"))})
    found = None if run is None else restore(config, prepared, run, expected=known)
    if found is not None:
        return found
    method = METHODS.find(config.fed.method).build(make_parts(config, prepared, run))
    return Start(start_from(config, prepared, method.init(run_key(config))), 0, known)


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
    parts = make_parts(config, prepared, run, lambda real, computed: progress[-1](real))
    method = METHODS.find(config.fed.method).build(parts)
    data = training_data(config, prepared)
    shapes = data.shapes(config.fed.rounds)
    listed = ", ".join(f"{shape.rows} x {shape.length}" for shape in shapes)
    _log.info(
        f"{config.fed.method}: {len(data.names)} clients, {_rounds(config)}, blocks of "
        f"{listed} (rows x tokens)"
    )
    report_memory(config, prepared, data, parts, shapes)
    amount = sum(round_tokens(config, data, number) for number in left)
    with (
        follow("training", amount, "tokens", on_progress) as advance,
        saving(run, keep=config.fed.keep_checkpoints) as saver,
    ):
        progress.append(advance)
        for number in left:
            began = time.perf_counter()
            state, metrics = play_round(method, state, data, shapes, config, number)
            line = metrics_line(number, metrics, state, time.perf_counter() - began)
            advance(0, f"round {number + 1}: loss {line['loss']:.3f}")
            if run is not None and saver is not None:
                record(saver, known, run, number, state, line)
            yield Round(number, state, line)


def report_memory(
    config: Config,
    prepared: Prepared,
    data: TrainingData,
    parts: Parts,
    shapes: Sequence[BlockShape],
) -> None:
    """Says what the largest block takes on a device, and what to change if it is too much.

    Its program is compiled for that, which training then need not do.
    """
    slots = data.slots(len(data.participants(0)))
    shape = max(shapes, key=lambda shape: shape.rows * data.costs.row(shape.length))
    adapter = jax.eval_shape(parts.new_adapter, jax.random.key(0))
    plan = plan_memory(
        parts.engine.lower(adapter, slots, shape, frozen=False).compile(),
        prepared.base.model,
        adapter,
        slots=slots // data.shards,
        frozen=False,
        limit=memory_of(prepared.mesh.local_devices[0]),
    )
    _log.info(f"memory of each device: {plan.line()}")
    remedy = plan.remedy()
    if remedy is not None:
        _log.warning(f"this is more than the device has: {remedy}")


def play_round(
    method: Method,
    state: FedState,
    data: TrainingData,
    shapes: Sequence[BlockShape],
    config: Config,
    number: int,
) -> tuple[FedState, Metrics]:
    """One round, or the personalization after the last."""
    key = run_key(config, number)
    try:
        if number == config.fed.rounds:
            assert method.personalize is not None
            return method.personalize(state, data.round(number, shapes, everybody=True), key=key)
        return method.round(state, data.round(number, shapes), key=key)
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


def round_tokens(config: Config, data: TrainingData, number: int) -> int:
    """Real tokens that a round will train on, in all its phases."""
    clients = range(len(data.names)) if number == config.fed.rounds else data.participants(number)
    # FedDPA-T has its local phase from the second round on; a personalization is one phase.
    whole = 0 < number < config.fed.rounds
    phases = len(METHODS.find(config.fed.method).phases) if whole else 1
    return phases * sum(data.tokens(client) for client in clients)
