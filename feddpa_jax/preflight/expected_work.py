"""What a run is expected to work on: rounds, tokens, bytes, memory of a device, and time.

Tokens and bytes follow from the method and the data; with dropouts or an availability they are
means. Memory is estimated from sizes (`training/memory.py`). The time is a bound, except where a
run that has begun says how fast it is.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.devices.hardware import memory_of
from feddpa_jax.devices.mesh import make_mesh
from feddpa_jax.federated.method import Method, Phase
from feddpa_jax.federated.shapes import phase_shapes
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.hf.load import Base
from feddpa_jax.plan.round_work import count_work
from feddpa_jax.preflight.lengths import Lengths
from feddpa_jax.preflight.product_rate import product_rate
from feddpa_jax.run.backend import base_on
from feddpa_jax.run.beginning import fresh_state, total_rounds
from feddpa_jax.run.folder import RunFolder
from feddpa_jax.run.history import read_history
from feddpa_jax.run.inputs import Prepared, make_lora, make_method, training_data
from feddpa_jax.run.starting_adapters import check_start
from feddpa_jax.training.memory import MemoryPlan, estimate_memory
from feddpa_jax.training.participation import how_many
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import Federation


class Time(NamedTuple):
    """How long training takes.

    Attributes:
      seconds: of all rounds.
      pace: tokens of examples per second.
      measured: whether that is the pace of a run that has begun; else it is a bound, from how fast
        the device computes products of the model's sizes.
    """

    seconds: float
    pace: float
    measured: bool


@dataclasses.dataclass(frozen=True)
class ExpectedWork:
    """The work of a run.

    Attributes:
      rounds: how many, with what follows the last one.
      participants: clients that take part in a round; a mean where availability varies.
      returning: those of them that do not drop out; likewise.
      round_tokens: tokens of examples in the second round, over all clients and phases.
      tokens: of all rounds.
      real_share: tokens of examples by tokens computed.
      received: bytes that a client receives in a round.
      sent: bytes that it sends.
      memory: of one device, estimated.
      time: of the training; an evaluation comes on top.
    """

    rounds: int
    participants: float
    returning: float
    round_tokens: float
    tokens: float
    real_share: float
    received: int
    sent: int
    memory: MemoryPlan
    time: Time


def expect_work(
    config: Config,
    base: Base,
    federation: Federation,
    lengths: Lengths,
    run: RunFolder | None = None,
    there_N: np.ndarray | None = None,
) -> ExpectedWork:
    """The work of a run.

    Args:
      config: resolved.
      base: its parameters may be shapes alone.
      federation: all clients.
      lengths: of the clients' examples, or of a sample of the clients.
      run: the run's folder; its pace is used if it has begun.
      there_N: how many clients are available in each of the first rounds, where the data say it.

    Raises:
      UserError: the method, its options, `init`, the mesh or `model.attention` does not fit.
    """
    prepared, few = _prepared(config, base, federation, lengths)
    data, method = training_data(few, prepared), make_method(few, prepared)
    if config.init.global_adapter is not None or config.init.local_adapter is not None:
        check_start(few, prepared, fresh_state(few, prepared, None))
    clients = 1 if len(data.names) == 1 else lengths.clients
    wanted = how_many(clients, data.participation, config.fed.cohort)
    participants = float(wanted)
    if there_N is not None:
        participants = float(np.minimum(there_N, wanted).mean())
    elif data.availability.kind != "always":
        participants = min(participants, max(1.0, data.availability.share * clients))
    returning = participants * (1.0 - data.dropout)
    shapes = data.shapes(config.fed.rounds)
    rounds, mean = (
        config.fed.rounds,
        float(np.mean([data.tokens(c) for c in range(len(data.names))])),
    )

    def tokens_of(number: int) -> float:
        phases = [p for p in method.phases_of(number, rounds) if p.search is None]
        # After the last round, all clients train.
        some = clients if number >= rounds else returning
        return mean * sum(clients if phase.everybody else some for phase in phases)

    tokens = sum(map(tokens_of, range(total_rounds(config))))
    work = count_work(data, shapes)
    real_share = work.real_tokens / work.computed_tokens
    phases = method.phases_of(1, rounds + 2)
    members = np.arange(min(wanted, len(data.names)))
    before = method.phases_of(0, rounds + 2)
    received, sent = traffic(method, make_lora(few, prepared), phases, members, before)
    memory = max(
        (_memory(config, prepared, data, method, phase, shapes, wanted) for phase in phases),
        key=lambda plan: plan.total,
    )
    return ExpectedWork(
        rounds=total_rounds(config),
        participants=participants,
        returning=returning,
        round_tokens=tokens_of(min(1, rounds - 1)),
        tokens=tokens,
        real_share=real_share,
        received=received,
        sent=sent,
        memory=memory,
        time=_time(config, prepared, lengths, tokens, real_share, shapes, run),
    )


def _prepared(
    config: Config, base: Base, federation: Federation, lengths: Lengths
) -> tuple[Prepared, Config]:
    """The clients that have something left, and the configuration of them alone."""
    clients = tuple(federation.clients[place] for place in lengths.measured)
    mesh = make_mesh(config.mesh.clients, config.mesh.model)
    placed = base._replace(model=base_on(mesh, config, base.model))
    some = dataclasses.replace(federation, clients=clients)
    prepared = Prepared(placed, some, lengths.training, (lengths.counts,), mesh)
    make_lora(config, prepared._replace(federation=federation))  # Ranks are of all clients.
    if len(clients) == lengths.clients:
        return prepared, config
    # Who is available when is counted of all clients, not of these.
    availability = "always" if config.fed.availability == "column" else config.fed.availability
    cohort = None if config.fed.cohort is None else min(config.fed.cohort, len(clients))
    ranks = config.lora.ranks and tuple(config.lora.ranks[c] for c in lengths.measured)
    return prepared, dataclasses.replace(
        config,
        fed=dataclasses.replace(config.fed, cohort=cohort, availability=availability),
        lora=dataclasses.replace(config.lora, ranks=ranks),
    )


def _memory(
    config: Config,
    prepared: Prepared,
    data: TrainingData,
    method: Method,
    phase: Phase,
    shapes: tuple[BlockShape, ...],
    wanted: int,
) -> MemoryPlan:
    """The estimated memory of a device while the largest block of a phase is computed."""
    trained, frozen = phase_shapes(method, phase)
    return estimate_memory(
        prepared.base.model,
        trained,
        frozen,
        slots=data.slots(wanted) // data.shards,
        shape=max(shapes, key=lambda shape: shape.rows * data.costs.row(shape.length)),
        remat=config.model.remat,
        on_cpu=prepared.mesh.devices.flat[0].platform == "cpu",
        limit=memory_of(prepared.mesh.local_devices[0]),
    )


def _time(
    config: Config,
    prepared: Prepared,
    lengths: Lengths,
    tokens: float,
    real_share: float,
    shapes: tuple[BlockShape, ...],
    run: RunFolder | None,
) -> Time:
    """How long so many tokens of examples take."""
    lines = [] if run is None or not run.metrics_file.exists() else read_history(run.path)
    spent = sum(line["seconds"] for line in lines)
    if spent and (done := sum(line["real_tokens"] for line in lines)):
        return Time(tokens * spent / done, done / spent, True)
    model = prepared.base.model
    answers = sum(len(e.tokens_T) - e.prompt_length for own in lengths.training for e in own)
    positions = answers / max(1, int(lengths.tokens.sum()))
    maps = model.config.frozen_flops * (1.5 if config.model.remat == "layer" else 1.0)
    head = 4 * model.config.vocab_size * model.config.width * positions
    rows = max(shape.rows * shape.length for shape in shapes)
    rate = product_rate(model.config, model.dtype, rows) * prepared.mesh.size
    pace = rate / (maps / real_share + head)
    return Time(tokens / pace, pace, False)
