"""How a command comes to a run: its configuration, its folder for itself, its adapters."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from feddpa_jax.adapters.dual import Adapters
from feddpa_jax.adapters.lora import bank_of
from feddpa_jax.config import Config, load_config
from feddpa_jax.config.column_map import ColumnMap
from feddpa_jax.data.folders import IN_MEMORY
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.devices.processes import from_first
from feddpa_jax.federated.method import METHODS, FedState
from feddpa_jax.files.bucket import folder_at
from feddpa_jax.files.lock import hold, refuse_if_held
from feddpa_jax.hf.load import Base
from feddpa_jax.run.beginning import Start, restore
from feddpa_jax.run.checkpoint import rounds_saved
from feddpa_jax.run.folder import BUSY, TRAINING, RunFolder
from feddpa_jax.run.inputs import Prepared, make_lora, make_method
from feddpa_jax.run.loop import resolved
from feddpa_jax.run.own_code import OF_TRAINING, announce, check_names
from feddpa_jax.run.size_check import check_sizes
from feddpa_jax.run.starting_adapters import global_adapter, local_adapters
from feddpa_jax.run.taking_part import check_availability
from feddpa_jax.types import Federation, UserError
from feddpa_jax.weighting.rule import RULES, check_parameters

_log = logging.getLogger(__name__)


def checked(config: Config) -> Config:
    """The configuration with what depends on the machine settled.

    Raises:
      UserError: what only the registries know is wrong, before anything is loaded.
    """
    check_names(config)
    if RULES.own_file(config.weighting.rule) is None:
        check_parameters(config.weighting.rule, config.weighting.parameters)
    announce(config, OF_TRAINING)
    check_modes(config)
    check_availability(config)
    TEMPLATES.find(config.data.template)
    return resolved(config)


def check_modes(config: Config, asked: str | None = None) -> None:
    """Refuses modes that neither all methods nor the configured one have; its file is run.

    Args:
      config: names the method and, in `eval.modes`, the modes.
      asked: another mode, of the option `--mode`.

    Raises:
      UserError: an unknown mode; the message lists the known ones.
    """
    entry = METHODS.find(config.fed.method)
    entry.check_modes(config.fed.method, "eval.modes", config.eval.modes or ())
    entry.check_modes(config.fed.method, "mode", [] if asked is None else [asked])


def restored(
    config: Config,
    prepared: Prepared,
    run: RunFolder,
    step: str,
    *,
    only: int | np.ndarray | None = None,
) -> tuple[Adapters, int]:
    """The adapters of a run's checkpoint, and its round.

    Args:
      config: the run's.
      prepared: base, clients, tokenized examples.
      run: its folder; training may go on there.
      step: "last", "best" or a round's number.
      only: the clients whose own adapters are wanted, by index; None for all of them.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    while True:
        there = rounds_saved(run.checkpoints)
        try:
            found = last_saved(config, prepared, run, step)
            return at_hand(config, prepared, found.state, only), found.rounds - 1
        except UserError:
            if rounds_saved(run.checkpoints) == there:
                raise
            # Training goes on beside this, and has just removed what was being read.


def last_saved(config: Config, prepared: Prepared, run: RunFolder, step: str) -> Start:
    """The state of a run's checkpoint; its clients' parts are read when they are asked for.

    Args: as of `restored`.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    there = rounds_saved(run.checkpoints)
    # Training falls back behind a damaged checkpoint; results would be of another round.
    wanted = str(there[-1]) if step == "last" and there else step
    found = restore(config, prepared, run, wanted)
    if found is None:
        raise UserError(f"run_dir: {run.path} has no checkpoint yet; train it first")
    return found


def some_of(
    config: Config, prepared: Prepared, run: RunFolder, start: Start, members: np.ndarray
) -> tuple[Adapters, int]:
    """The adapters of some clients of a state that was opened before, and its round.

    Raises:
      UserError: a client's file is damaged, or was removed by a training that went on.
    """
    number = start.rounds - 1
    try:
        return at_hand(config, prepared, start.state, members), number
    except UserError:
        if number in rounds_saved(run.checkpoints):
            raise
        raise UserError(
            f"{run.path}: training went on, and removed round {number} while it was being read; "
            "wait for it to end, or train with a larger fed.keep_checkpoints"
        ) from None


def at_hand(
    config: Config, prepared: Prepared, state: FedState, only: int | np.ndarray | None = None
) -> Adapters:
    """What a state answers with, in memory: all clients' adapters, or some clients' alone.

    Args:
      config: the run's.
      prepared: base and clients.
      state: of the federation.
      only: the clients whose adapters are wanted, by index, c of them; the adapters have leading
        axes of c then.
    """
    lora = make_lora(config, prepared)
    members = np.arange(len(state.clients.names)) if only is None else np.atleast_1d(only)
    own_C = state.clients.take(members) if state.clients.parts else {}
    own_C = jax.tree.map(jnp.asarray, own_C)
    found = make_method(config, prepared).answers(state.server, own_C, members)
    scale = config.lora.alpha / lora.rank
    return Adapters(found.global_C, found.local_C, scale, dict(found.others), found.shared)


def reread(run_dir: Path, overrides: Sequence[str]) -> tuple[RunFolder, Config]:
    """A run, and its configuration with overrides of what does not touch its training.

    Where a kernel of `model.attention` was asked for, it is "auto" now: these devices need not have
    it, and what reads a run computes attention explicitly. Its layers are one by one, since a loop
    serves training alone.

    Raises:
      UserError: there is no run, it is damaged, or an override touches its training.
    """
    run = RunFolder(run_dir)
    run.read_config()
    config = load_config(run.config_file, overrides, of_run=True)
    run.check_same_training(config)
    run.say_if_unchecked(_log.warning)
    attention = "explicit" if config.model.attention == "explicit" else "auto"
    model = dataclasses.replace(config.model, attention=attention, layers="unrolled")
    return run, checked(dataclasses.replace(config, model=model))


def check_folder(config: Config, run: RunFolder) -> None:
    """Refuses early what `start_alone` would refuse.

    Raises:
      UserError: another process works on the run, or the folder is another run's or no run's.
    """
    refuse_if_held(run.path / TRAINING, BUSY, shown=run.path)
    run.check(config)


def start_alone(config: Config, run: RunFolder, held: contextlib.ExitStack) -> None:
    """Takes a run's folder for this process alone, and starts the run there.

    Args:
      config: resolved.
      run: its folder, perhaps new.
      held: what the folder is held by.

    Raises:
      UserError: another process works on the run, the folder is another run's or no run's, or it
        cannot be written.
    """
    held.enter_context(hold(run.path / TRAINING, BUSY, _log.warning, shown=run.path))
    run.check(config)
    run.start(config)


def settled(config: Config, base: Base, data: Federation) -> Config:
    """The configuration with what base and federation say of themselves.

    Raises:
      UserError: the configuration asks for another base, or for other data.
    """
    held = {"path": base.source, "dtype": str(base.model.dtype), "quantize": base.quantize}
    _check_same("model", config.model, held)
    model = dataclasses.replace(config.model, **held)
    source = data.source
    own: dict[str, Any] = {"path": IN_MEMORY}
    if source is None:
        _check_same("data", config.data, {"columns": ColumnMap(), "test_path": None})
    else:
        own = source._asdict() | {"columns": ColumnMap(source.columns)}
        _check_same("data", config.data, {n: v for n, v in own.items() if n != "seed"})
        if own.pop("seed") != config.seed:
            _log.warning(
                f"the data were loaded with seed {source.seed}, and the run's is {config.seed}: "
                "commands on its folder would load other data"
            )
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, **own))


def beside(old: Config, new: Config, prepared: Prepared) -> Config:
    """The configuration of an experiment that shares another one's base, data and devices.

    Args:
      old: the other experiment's.
      new: its own.
      prepared: what they share.

    Raises:
      UserError: they differ in what they share, or the base cannot have the new one's sizes.
    """
    found = settled(new, prepared.base, prepared.federation)
    for name in ("seed", "model", "data", "mesh"):
        if getattr(found, name) != getattr(old, name):
            raise UserError(f"{name}: differs from the other experiment's; make a new one")
    check_sizes(found, prepared.base.model.config)
    return found


def _check_same(section: str, settings: Any, given: Mapping[str, Any]) -> None:
    """Refuses what is asked for besides the defaults, and is not what was given."""
    loader = {"model": "load_base", "data": "load_federation"}[section]
    for name, value in given.items():
        asked, default = getattr(settings, name), getattr(type(settings)(), name)
        if asked not in (default, value):
            raise UserError(
                f"{section}.{name}: is {asked!r}, but what was loaded has {value!r}; give it to "
                f"{loader}"
            )


def folder_of(run_dir: Path | str | None, config: Config) -> RunFolder | None:
    """A run's folder, or None; refused early as by `check_folder`."""
    if run_dir is None:
        return None
    run = RunFolder(folder_at(run_dir))
    from_first(lambda: check_folder(config, run))
    return run


def check_named(config: Config, run: RunFolder) -> None:
    """Refuses what cannot be evaluated as the adapters that `init` names.

    Raises:
      UserError: `init` names none, or the folder has checkpoints of its own or is another run's.
    """
    if config.init.global_adapter is None and config.init.local_adapter is None:
        raise UserError(
            "config: evaluates the adapters of init.global_adapter and init.local_adapter, and "
            "neither is set; set one, or leave --config out to evaluate the run in --run-dir"
        )
    check_folder(config, run)
    if rounds_saved(run.checkpoints):
        raise UserError(f"run_dir: {run.path} has checkpoints of its own; name a new folder")


def named_adapters(config: Config, prepared: Prepared) -> Adapters:
    """The adapters that `init` names, whoever trained them.

    Raises:
      UserError: one cannot be read or does not fit.
    """
    scale = config.lora.alpha / config.lora.rank
    global_ = global_adapter(config, prepared)
    global_1 = None if global_ is None else bank_of(global_)
    return Adapters(global_1, local_adapters(config, prepared), scale)
