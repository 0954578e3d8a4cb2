"""A training run: rounds, metrics and checkpoints in one loop around a method's pure functions."""

import dataclasses
import logging
import math
import time
from collections.abc import Generator, Sequence

import jax
import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.data.population import Population
from feddpa_jax.data.tokenize import other_prompt_note
from feddpa_jax.devices.hardware import memory_of
from feddpa_jax.federated.method import METHODS, FedState, Method, Metrics
from feddpa_jax.federated.play import Federation as Players
from feddpa_jax.federated.play import play_phases
from feddpa_jax.federated.shapes import phase_shapes
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.hf.load import resolve_dtype
from feddpa_jax.progress import Advance, OnProgress, follow
from feddpa_jax.run.beginning import Start, make_federation, run_key, total_rounds
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.inputs import Prepared, make_lora, make_method, training_data
from feddpa_jax.run.recording import record, saving
from feddpa_jax.run.round import Round, metrics_line, told_losses
from feddpa_jax.run.taking_part import count_there
from feddpa_jax.run.validation import judges, validation_loss
from feddpa_jax.training.engine import NonFiniteError
from feddpa_jax.training.memory import plan_memory
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import Federation, UserError

_log = logging.getLogger(__name__)
# At most so many clients draw before the first round, to say how much there is to do: a second.
MOST_DRAWS = 4_000_000


def resolved(config: Config) -> Config:
    """The configuration with what depends on the machine settled, as it is written to the run."""
    model = dataclasses.replace(config.model, dtype=resolve_dtype(config.model.dtype))
    return dataclasses.replace(config, model=model)


def tell_data(config: Config, prepared: Prepared) -> None:
    """Says what is trained on."""
    counts = prepared.counts
    cut, dropped = sum(c.truncated for c in counts), sum(c.dropped for c in counts)
    held = held_out_examples(prepared.federation)
    _log.info(
        f"{sum(c.examples for c in counts)} training examples of {len(prepared.names)} clients "
        f"({cut} cut, {dropped} dropped at {config.data.max_length} tokens"
        f"{f', {held} held out' if held else ''}); "
        f"{config.model.path} in {prepared.base.precision()}"
    )
    if note := other_prompt_note(counts):
        _log.info(f"training examples: {note}")


def held_out_examples(federation: Federation) -> int:
    """How many examples all clients hold out."""
    clients = federation.clients
    if isinstance(clients, Population):
        return len(clients) * clients.selection.validation
    return sum(len(client.validation) for client in clients)


def _rounds(config: Config) -> str:
    personalizes = METHODS.find(config.fed.method).personalizes
    count = f"{config.fed.rounds} round{'s' if config.fed.rounds > 1 else ''}"
    return f"{count} and the personalization" if personalizes else count


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
        checkpoint is kept. Or the data say that nobody is available in some round.
    """
    state, first, known = start
    left = range(first, total_rounds(config))
    if not left:
        return
    progress: list[Advance] = []
    federation = make_federation(config, prepared, run, lambda real, computed: progress[-1](real))
    method, lora = make_method(config, prepared), make_lora(config, prepared)
    data = training_data(config, prepared)
    if data.availability.kind == "column":
        count_there(config, data.ids, data.availability)
    shapes, judging = data.shapes(config.fed.rounds), judges(data, config.seed)
    listed = ", ".join(f"{shape.rows} x {shape.length}" for shape in shapes)
    _log.info(
        f"{config.fed.method}: {len(data.names)} clients, {_rounds(config)}, blocks of "
        f"{listed} (rows x tokens)"
    )
    report_memory(config, prepared, data, method, federation, shapes)
    amount = tokens_of_rounds(config, method, data, left)
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
            members, returned = drawn(config, data, number), participants(config, data, number)
            senders = len(participants(config, data, number - 1)) if number else None
            moved = traffic(
                method, lora, phases, members, before, returned=returned, senders=senders
            )
            spent = time.perf_counter() - began
            loss = validation_loss(config, method, federation, data, shapes, judging, state)
            lost = np.setdiff1d(members, returned).tolist()
            dropped_out = [data.names[client] for client in lost] if data.dropout else None
            line = metrics_line(number, metrics, moved, spent, loss, dropped_out)
            advance(0, f"round {number + 1}: {told_losses(line)}")
            if run is not None and saver is not None:
                record(saver, known, run, number, state, line)
            yield Round(number, state, line)


def report_memory(
    config: Config,
    prepared: Prepared,
    data: TrainingData,
    method: Method,
    federation: Players,
    shapes: Sequence[BlockShape],
) -> None:
    """Says what the largest block takes on a device, and what to change if it is too much.

    Its program, of the first round's last phase, is compiled for that, which training then need
    not do.
    """
    slots = data.slots(data.most)
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
    federation: Players,
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
            "fed.clients_per_step, or set model.remat to cheap or layer"
        ) from None


def round_rate(config: Config, number: int) -> float:
    """The learning rate that a round's local trainings start with; after the last, the whole one.

    Loshchilov & Hutter, *SGDR*, arXiv 1608.03983, eq. 5, over the rounds, without restarts.
    """
    fed = config.fed
    if fed.rate_over_rounds == "constant" or number >= fed.rounds:
        return fed.learning_rate
    return fed.learning_rate * 0.5 * (1.0 + math.cos(math.pi * number / fed.rounds))


def drawn(config: Config, data: TrainingData, number: int) -> np.ndarray:
    """The clients of a round, by index, those that drop out too; after the last round, all."""
    return np.arange(len(data.names)) if number == config.fed.rounds else data.participants(number)


def participants(config: Config, data: TrainingData, number: int) -> np.ndarray:
    """The clients that train in a round, by index; after the last round, all of them."""
    return np.arange(len(data.names)) if number == config.fed.rounds else data.returning(number)


def round_tokens(config: Config, method: Method, data: TrainingData, number: int) -> int:
    """Real tokens that a round will train on, in all its phases."""
    return int(_in_phases(config, method, data, number, _by_participants(config, data, number)))


def tokens_of_rounds(config: Config, method: Method, data: TrainingData, rounds: range) -> float:
    """Real tokens of some rounds.

    Every client draws a number in every round. Where these are more than `MOST_DRAWS`, the
    participants of some rounds alone are drawn, and their mean stands for all.
    """
    most = max(1, MOST_DRAWS // len(data.names))
    if len(rounds) <= most:
        return sum(round_tokens(config, method, data, number) for number in rounds)
    sampled = [n for n in rounds[:: -(-len(rounds) // most)] if n != config.fed.rounds]
    mean = float(np.mean([_by_participants(config, data, number) for number in sampled]))
    everybody = float(_by_participants(config, data, config.fed.rounds))
    return sum(
        _in_phases(config, method, data, n, everybody if n == config.fed.rounds else mean)
        for n in rounds
    )


def _by_participants(config: Config, data: TrainingData, number: int) -> int:
    """Tokens of one local training of all who train in a round."""
    return data.epochs * int(data.sizes.tokens_C[participants(config, data, number)].sum())


def _in_phases(
    config: Config, method: Method, data: TrainingData, number: int, some: float
) -> float:
    """Tokens of all phases of a round, from those of one local training of all participants."""
    everybody = data.epochs * int(data.sizes.tokens_C.sum())
    phases = [p for p in method.phases_of(number, config.fed.rounds) if p.search is None]
    return sum(everybody if phase.everybody else some for phase in phases)
