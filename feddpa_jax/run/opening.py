"""How a command comes to a run: its configuration, its folder for itself, its adapters."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from feddpa_jax.config import Config, load_config
from feddpa_jax.data.templates import get_template
from feddpa_jax.files.lock import hold, refuse_if_held
from feddpa_jax.inference.scorer import Adapters
from feddpa_jax.methods.method import FedState
from feddpa_jax.progress import Reporter
from feddpa_jax.run.checkpoint import rounds_saved
from feddpa_jax.run.folder import BUSY, TRAINING, RunFolder
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.run.loop import resolved, restore
from feddpa_jax.types import UserError
from feddpa_jax.weighting.rule import own_file


def checked(config: Config) -> Config:
    """The configuration with what depends on the machine settled.

    Raises:
      UserError: what only the registries know is wrong, before anything is loaded.
    """
    own_file(config.weighting.rule)
    get_template(config.data.template)
    return resolved(config)


def restored(
    config: Config, prepared: Prepared, run: RunFolder, step: str, reporter: Reporter
) -> tuple[Adapters, int]:
    """The adapters of a run's checkpoint, and its round.

    Args:
      config: the run's.
      prepared: base, clients, tokenized examples.
      run: its folder; training may go on there.
      step: "last", "best" or a round's number.
      reporter: told what cannot be compared.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    while True:
        there = rounds_saved(run.checkpoints)
        try:
            # Training falls back behind a damaged checkpoint; results would be of another round.
            wanted = str(there[-1]) if step == "last" and there else step
            found = restore(config, prepared, run, reporter, wanted)
            if found is None:
                raise UserError(f"--run-dir: {run.path} has no checkpoint yet; train it first")
            return at_hand(config, found.state), found.rounds - 1
        except UserError:
            if rounds_saved(run.checkpoints) == there:
                raise
            # Training goes on beside this, and has just removed what was being read.


def at_hand(config: Config, state: FedState) -> Adapters:
    """A state's adapters, all clients' in memory."""
    local_C = None if state.local is None else jax.tree.map(jnp.asarray, state.local.all())
    return Adapters(state.global_, local_C, config.lora.alpha / config.lora.rank)


def reread(run_dir: Path, overrides: Sequence[str], reporter: Reporter) -> tuple[RunFolder, Config]:
    """A run, and its configuration with overrides of what does not touch its training.

    Raises:
      UserError: there is no run, it is damaged, or an override touches its training.
    """
    run = RunFolder(run_dir)
    run.read_config()
    config = load_config(run.config_file, overrides)
    run.check_same_training(config)
    run.say_if_unchecked(reporter.say)
    return run, checked(config)


def check_folder(config: Config, run: RunFolder) -> None:
    """Refuses early what `start_alone` would refuse.

    Raises:
      UserError: another process works on the run, or the folder is another run's or no run's.
    """
    refuse_if_held(run.path / TRAINING, BUSY, shown=run.path)
    run.check(config)


def start_alone(
    config: Config, run: RunFolder, held: contextlib.ExitStack, reporter: Reporter
) -> None:
    """Takes a run's folder for this process alone, and starts the run there.

    Args:
      config: resolved.
      run: its folder, perhaps new.
      held: what the folder is held by.
      reporter: told if the file system has no locks.

    Raises:
      UserError: another process works on the run, the folder is another run's or no run's, or it
        cannot be written.
    """
    held.enter_context(hold(run.path / TRAINING, BUSY, reporter.say, shown=run.path))
    run.check(config)
    run.start(config)
