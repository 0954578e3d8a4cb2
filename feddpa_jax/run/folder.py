"""The run folder: resolved configuration, environment, results, and where checkpoints lie."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feddpa_jax.config import Config, difference, load_config, to_yaml
from feddpa_jax.files import manifest
from feddpa_jax.files.disk import clear_leftovers, is_leftover, make_folder, writing
from feddpa_jax.files.lock import holder_of
from feddpa_jax.files.manifest import Checked
from feddpa_jax.files.strict_json import parse_json
from feddpa_jax.run.checkpoint import knows_sources, rounds_saved
from feddpa_jax.run.environment import describe_environment
from feddpa_jax.run.longer import without_more_rounds
from feddpa_jax.run.own_code import FOLDER as OWN_CODE
from feddpa_jax.run.own_code import copies
from feddpa_jax.types import UserError

# What a process holds (`lock.hold`) within a run's folder, and what another one is told.
TRAINING, EVALUATION, LABORATORY = "train", "eval", "weigh"
BUSY = "wait for it, or use another --run-dir"

_LOST = "restore it from a copy, or train again into a new --run-dir"
# By file: what to do if it is damaged.
_REMEDIES = {
    manifest.NAME: "restore it from a copy, or remove it to go on without checksums",
    "config.yaml": _LOST,
    "environment.json": "start the training command again, which writes it anew",
    "tracking.json": "restore it from a copy, or leave track.to empty",
}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's files."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """The folder of evaluation results."""
        return self.path / "eval"

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """A line a round."""
        return self.path / "metrics.jsonl"

    def check(self, config: Config) -> None:
        """Refuses a folder that is another run's, or no run's; the run may have more rounds now.

        What a killed command left there before it wrote the configuration is no obstacle.

        Raises:
          UserError: what is there.
        """
        if self.config_file.is_file():
            if self.has_results():
                old = self.read_config()
                saved = rounds_saved(self.checkpoints)
                self.check_same_training(without_more_rounds(old, config, saved, self.path))
            else:
                # A run that came to nothing blocks no other; what is no run's is not overwritten.
                self.read_config()
        elif self.path.exists() and not self._is_empty():
            if manifest.is_ours(self.path):
                self.read("config.yaml")  # It is listed, and missing.
            raise UserError(
                f"run_dir: {self.path} holds something else than a run; name a new folder"
            )

    def _is_empty(self) -> bool:
        """Whether nothing is there but what a run that was killed at its start leaves."""
        if not self.path.is_dir():
            return False
        there = {p.name for p in self.path.iterdir() if not is_leftover(p)}
        return not there or (there == {manifest.NAME} and manifest.is_ours(self.path))

    def has_results(self) -> bool:
        """Whether there is a checkpoint, or an evaluation, that rests on the configuration."""
        return bool(rounds_saved(self.checkpoints)) or (self.evaluation / "summary.json").exists()

    def start(self, config: Config) -> None:
        """Makes the folder and writes configuration and environment.

        Raises:
          UserError: it cannot be written.
        """
        with writing(self.path):
            make_folder(self.path)
            clear_leftovers(self.path)
        own = copies(config)
        if own:
            make_folder(self.path / OWN_CODE)
        for name, content in own.items():
            self.write(name, content)
        self.write("config.yaml", to_yaml(config))
        self.write("environment.json", json.dumps(describe_environment(), indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Replaces a file of the run itself.

        Raises:
          UserError: it cannot be written.
        """
        manifest.write_one(self.path, name, content, _REMEDIES[manifest.NAME])

    def say_if_unchecked(self, say: Callable[[str], None]) -> None:
        """Says so if the run has no checksums, as of an older version.

        Raises:
          UserError: its manifest is damaged.
        """
        checked = Checked(self.path, _REMEDIES[manifest.NAME])
        checked.say_if_unchecked(say, ", or other training data,")

    def read(self, name: str) -> bytes | None:
        """A file of the run itself; None if there is none, and need not be.

        Raises:
          UserError: it is missing or damaged.
        """
        checked = Checked(self.path, _REMEDIES[manifest.NAME])
        checked.remedy = _REMEDIES[name]
        return checked.read(name)

    def check_same_training(self, config: Config) -> None:
        """Refuses a configuration that trains differently.

        The sections eval and weighting and the number of test instances do not touch training and
        may differ; neither does it matter whether data are loaded or opened, on which devices a run
        goes on, how these compute (`model.attention`, `model.layers`), or who follows it. Data,
        model and adapters may have moved: checkpoints know them by their content (`identity`).

        Raises:
          UserError: another section differs, or the run's configuration is damaged.
        """
        old = self.read_config()
        free = {name: getattr(old, name) for name in ("eval", "weighting", "mesh", "track")}
        data = dataclasses.replace(config.data, max_test=old.data.max_test, cache=old.data.cache)
        same_way = {"attention": old.model.attention, "layers": old.model.layers}
        model = dataclasses.replace(config.model, **same_way)
        init = config.init
        if knows_sources(self.checkpoints):
            data = dataclasses.replace(data, path=old.data.path)
            model = dataclasses.replace(model, path=old.model.path)
            paths = dataclasses.asdict(old.init)
            moved = {name: path for name, path in paths.items() if path and getattr(init, name)}
            init = dataclasses.replace(init, **moved)
        same = dataclasses.replace(config, **free, data=data, model=model, init=init)
        changes = difference(old, same)
        if changes:
            raise UserError(
                f"{self.path}: the run there has another configuration ({'; '.join(changes)}); "
                "use another --run-dir, or that run's settings"
            )

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
          UserError: there is no run in the folder, or its configuration is damaged.
        """
        content = self.read("config.yaml")
        if content is None:
            raise UserError(f"run_dir: {self.path} holds no run (no config.yaml); train one first")
        if not content.strip():
            raise UserError(f"{self.config_file}: is empty; {_REMEDIES['config.yaml']}")
        return load_config(self.config_file, of_run=True)

    def read_summary(self) -> dict[str, Any] | None:
        """What the last evaluation found; None if there was none.

        Raises:
          UserError: its file is missing or damaged.
        """
        checked = results_of(self.path, EVALUATION)
        content = checked.read("summary.json")
        if content is None:
            return None
        try:
            found = parse_json(content.decode(), "summary.json", finite=False)
            found["modes"].items()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{self.evaluation / 'summary.json'}: is damaged; {checked.remedy}"
            ) from None
        return found


def results_of(run: Path, part: str) -> Checked:
    """The files in a folder of a run, which the command of the same name makes.

    Args:
      run: the run's folder.
      part: `EVALUATION` or `LABORATORY`.

    Raises:
      UserError: their manifest is damaged.
    """
    remedy = f"make it again with feddpa {part} --run-dir {shlex.quote(str(run))}"
    holder = holder_of(run / part)
    if holder:
        remedy = f"{holder}; wait for it, then start this command again"
    return Checked(run / part, remedy)
