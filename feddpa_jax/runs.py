"""The run folder: resolved configuration, environment, metrics, and where checkpoints lie."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from feddpa_jax.checkpoint import rounds_saved
from feddpa_jax.config import Config, difference, load_config, to_yaml
from feddpa_jax.types import UserError

_PACKAGES = ("feddpa_jax", "jax", "jaxlib", "flax", "optax", "safetensors", "numpy")


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
        """Refuses a folder that is another run's, or no run's.

        Raises:
          UserError: what is there.
        """
        if self.config_file.is_file():
            if self.has_results():
                self.check_same_training(config)
            else:
                # A run that came to nothing blocks no other; what is no run's is not overwritten.
                load_config(self.config_file)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(
                f"--run-dir: {self.path} holds something else than a run; name a new folder"
            )

    def has_results(self) -> bool:
        """Whether there is a checkpoint, or an evaluation, that rests on the configuration."""
        return bool(rounds_saved(self.checkpoints)) or (self.evaluation / "summary.json").exists()

    def start(self, config: Config) -> None:
        """Makes the folder and writes configuration and environment.

        Raises:
          UserError: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.config_file, to_yaml(config))
            environment = json.dumps(describe_environment(), indent=2)
            write_whole(self.path / "environment.json", environment + "\n")

    def check_same_training(self, config: Config) -> None:
        """Refuses a configuration that trains differently.

        The sections eval and weighting and the number of test instances do not touch training and
        may differ; neither does it matter on which devices a run goes on, or who follows it.

        Raises:
          UserError: another section differs.
        """
        old = load_config(self.config_file)
        free = {name: getattr(old, name) for name in ("eval", "weighting", "mesh", "track")}
        data = dataclasses.replace(config.data, max_test=old.data.max_test)
        same = dataclasses.replace(config, **free, data=data)
        changes = difference(old, same)
        if changes:
            raise UserError(
                f"{self.path}: the run there has another configuration ({'; '.join(changes)}); "
                "use another --run-dir, or that run's settings"
            )

    def read_config(self) -> Config:
        """The run's configuration.

        Raises:
          UserError: there is no run in the folder.
        """
        if not self.config_file.is_file():
            raise UserError(
                f"--run-dir: {self.path} holds no run (no config.yaml); train one first"
            )
        return load_config(self.config_file)

    def read_summary(self) -> dict[str, Any] | None:
        """What the last evaluation found; None if there was none, or its file is damaged."""
        try:
            content = json.loads((self.evaluation / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and "modes" in content else None

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds a round's line."""
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def drop_metrics_from(self, number: int) -> None:
        """Removes the lines of rounds that will be done again, and a line that was cut short."""
        if not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["round"] < number:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        with writing(self.metrics_file):
            write_whole(self.metrics_file, "".join(kept))


class writing:  # noqa: N801 - reads as a phrase: `with writing(path):`
    """Context in which a failure to write a path becomes a message for the user."""

    def __init__(self, path: Path):
        """Args: what is written."""
        self.path = path

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turns an OSError into a UserError."""
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise UserError(
                f"{self.path}: cannot be written ({reason}); make room or choose another folder, "
                "then start the same command again"
            ) from None


def write_rules(folder: Path, files: Mapping[str, bytes]) -> None:
    """Keeps the files that rules of the user's own are from beside what they gave.

    Args:
      folder: of the results; `rules` in it then holds these files and no others.
      files: their content, by path.
    """
    with writing(folder):
        shutil.rmtree(folder / "rules", ignore_errors=True)
        names = file_names([Path(p).with_suffix("").as_posix().lstrip("./~") for p in files])
        for name, content in zip(names, files.values(), strict=True):
            (folder / "rules").mkdir(parents=True, exist_ok=True)
            write_whole(folder / "rules" / f"{name}.py", content)


def file_names(titles: Sequence[str]) -> list[str]:
    """Titles, which may hold names from data, as names of files, no two alike.

    They are short enough for an ending, and for file systems that take 255 bytes.

    >>> file_names(["scores ../nll", "a b", "a_b", "A/b"])
    ['scores_.._nll', 'a_b', 'a_b_2', 'A_b_3']
    """
    names: list[str] = []
    taken: set[str] = set()
    for title in titles:
        title = unicodedata.normalize("NFC", title)  # Some file systems do not tell é from e´.
        name = base = re.sub(r"[^\w.-]+", "_", title).encode()[:200].decode(errors="ignore")
        number = 1
        while name.casefold() in taken:  # Some file systems do not tell a from A.
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file aside and renames it, so that it is there whole or as it was."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def describe_environment() -> dict[str, Any]:
    """Versions, devices and the code's git revision."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    revision = (
        subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if _has_git()
        else ""
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "packages": versions,
        "git_revision": revision or None,
    }


def _has_git() -> bool:
    from shutil import which

    return which("git") is not None
