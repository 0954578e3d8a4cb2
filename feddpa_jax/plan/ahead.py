"""`feddpa plan`: a round compiled ahead of time, for this machine's devices or a TPU slice."""

import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

from feddpa_jax.config import Config, to_yaml
from feddpa_jax.devices.hardware import chip_of, memory_of
from feddpa_jax.federated.method import Method, Phase
from feddpa_jax.federated.traffic import traffic
from feddpa_jax.files.disk import make_folder, to_json, write_whole, writing
from feddpa_jax.models.decoder import Model
from feddpa_jax.plan.programs import Program, compile_averages, compile_steps
from feddpa_jax.plan.round_work import RoundWork, count_work, many_clients
from feddpa_jax.plan.topology import topology_devices
from feddpa_jax.run.beginning import make_federation
from feddpa_jax.run.folder import RunFolder, describe_environment
from feddpa_jax.run.inputs import make_lora, make_method, prepare, training_data
from feddpa_jax.training.engine import Engine
from feddpa_jax.training.rows import BlockShape
from feddpa_jax.types import UserError

_log = logging.getLogger(__name__)

# Every client's participation and examples are laid out one by one.
MOST_CLIENTS = 100_000


class Options(NamedTuple):
    """What is planned for.

    Attributes:
      topology: a TPU slice such as "v5p:4x4x4"; None for this machine's devices.
      clients: how many, with the examples of the configured ones in turn; None for those.
      out: the folder of plan.json; None to write none.
    """

    topology: str | None
    clients: int | None
    out: Path | None


def plan(config: Config, options: Options) -> dict[str, Any]:
    """Compiles the round's programs from shapes alone, and returns what the compiler says.

    Args:
      config: resolved; the base's weights are not read.
      options: what it is planned for.

    Raises:
      UserError: there is no such slice, or a program finds no room on its devices.
    """
    if options.clients is not None and not 1 <= options.clients <= MOST_CLIENTS:
        raise UserError(f"clients: {options.clients} is not a number from 1 to {MOST_CLIENTS:,}")
    if options.out is not None and (options.out / "plan.json").exists():
        raise UserError(f"out: {options.out} holds a plan.json already; name another folder")
    devices = None if options.topology is None else topology_devices(options.topology)
    prepared = prepare(config, devices=devices, weights=False)
    data = training_data(config, prepared)
    if options.clients is not None:
        data = many_clients(data, options.clients)
    shapes = data.shapes(config.fed.rounds)
    work = count_work(data, shapes)
    # No file is written: the folder is only where a run's would lie.
    engine = make_federation(config, prepared, RunFolder(Path("."))).engine
    method = make_method(config, prepared)
    participants = data.most
    slots = data.slots(participants)
    device = prepared.mesh.devices.flat[0]
    # Those of the second round: the first may have fewer.
    phases = method.phases_of(1, config.fed.rounds + 2)
    _log.info(
        f"compiling {len(phases) * len(shapes)} programs of {config.model.path} in "
        f"{config.model.dtype} for {prepared.mesh.size} x {device.device_kind}; "
        f"{work.real_tokens / work.computed_tokens:.1%} of the computed tokens are real"
    )
    programs = _compile(engine, prepared.base.model, method, phases, slots, shapes, device)
    chunks = -(-participants // (config.fed.clients_per_step or participants))
    told = [
        _told(
            program,
            work.blocks.get(program.shape, 0.0) if program.shape else chunks,
            chip_of(device),
        )
        for program in programs
    ]
    before = method.phases_of(0, config.fed.rounds)
    moved = traffic(method, make_lora(config, prepared), phases, data.participants(0), before)
    result: dict[str, Any] = {
        "command": ["feddpa", *sys.argv[1:]],
        "environment": describe_environment(),
        "config": to_yaml(config),
        "topology": options.topology,
        "devices": {"kind": device.device_kind, "count": prepared.mesh.size},
        "mesh": dict(prepared.mesh.shape),
        "attention": prepared.base.model.attention,
        "clients": len(data.names),
        "participants": participants,
        "slots": slots,
        "client_bytes_received": moved[0],
        "client_bytes_sent": moved[1],
        "programs": told,
        "round": _round(told, work, len(phases)),
        "remedy": next(
            (p.memory.remedy() for p in programs if p.memory and p.memory.remedy()), None
        ),
    }
    if options.out is not None:
        _write(options.out, result)
    return result


def _write(out: Path, result: dict[str, Any]) -> None:
    with writing(out):
        make_folder(out)
        write_whole(out / "plan.json", to_json(result))
    _log.info(f"everything: {out / 'plan.json'}")


def _compile(
    engine: Engine,
    model: Model,
    method: Method,
    phases: tuple[Phase, ...],
    slots: int,
    shapes: tuple[BlockShape, ...],
    device: Any,
) -> list[Program]:
    """Every phase's step for every block shape, and the average of the adapters."""
    chip = chip_of(device)
    programs: list[Program] = []
    for program in compile_steps(
        engine,
        model,
        method,
        phases,
        slots=slots,
        shapes=shapes,
        limit=memory_of(device),
        chip=chip,
    ):
        assert program.shape is not None
        programs.append(program)
        _log.info(
            f"{program.phase} phase, {program.shape.rows} x {program.shape.length}: "
            f"{program.compile_seconds:.1f} s"
        )
    return [*programs, *compile_averages(engine, method, phases, slots, chip)]


def _told(program: Program, calls: float, chip: Any) -> dict[str, Any]:
    """A program as plan.json has it."""
    rate = None if program.seconds is None else program.flops / program.seconds
    memory = program.memory
    return {
        "phase": program.phase,
        "rows": program.shape and program.shape.rows,
        "length": program.shape and program.shape.length,
        "positions": program.shape and program.shape.positions,
        "calls": calls,
        "flops": program.flops,
        "bytes_accessed": program.bytes_accessed,
        "main_bytes_accessed": program.main_bytes_accessed,
        "seconds": program.seconds,
        "estimate": program.estimate,
        "peak_share": None if rate is None or chip is None else rate / chip.flops,
        "collectives": {kind: own._asdict() for kind, own in program.collectives.items()},
        "memory": memory
        and {
            "base": memory.base,
            "adapters": memory.adapters,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "total": memory.total,
            "limit": memory.limit,
        },
        "compile_seconds": program.compile_seconds,
    }


def _round(told: list[dict[str, Any]], work: RoundWork, phases: int) -> dict[str, Any]:
    """A whole round, on all devices together."""
    real = phases * work.real_tokens
    known = all(program["seconds"] is not None for program in told)
    seconds = sum(program["calls"] * program["seconds"] for program in told) if known else None
    return {
        "real_tokens": real,
        "computed_tokens": phases * work.computed_tokens,
        "real_share": work.real_tokens / work.computed_tokens,
        "seconds": seconds,
        "tokens_per_second": None if seconds is None else real / seconds,
    }
