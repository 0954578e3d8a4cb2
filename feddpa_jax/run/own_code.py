"""Code of the user's own that a run is made with: methods and templates in FILE.py:NAME."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feddpa_jax.config import Config
from feddpa_jax.data.templates import TEMPLATES
from feddpa_jax.evaluate.metrics import METRICS
from feddpa_jax.federated.method import METHODS
from feddpa_jax.files.result_files import own_names
from feddpa_jax.registry import Registry
from feddpa_jax.weighting.rule import RULES

_log = logging.getLogger(__name__)

# By field, the registry that knows its names.
REGISTRIES: dict[str, Registry[Any]] = {
    "fed.method": METHODS,
    "data.template": TEMPLATES,
    "weighting.rule": RULES,
    "eval.metrics": METRICS,
}
# What training depends on: a run keeps copies, and goes on with the same code only.
OF_TRAINING = ("fed.method", "data.template")
FOLDER = "own_code"


def names_of(config: Config, field: str) -> tuple[str, ...]:
    """The names that a field of `REGISTRIES` has."""
    section, name = field.split(".")
    value = getattr(getattr(config, section), name)
    return (value,) if isinstance(value, str) else tuple(value)


def check_names(config: Config) -> None:
    """Refuses names that no registry knows; files are neither looked for nor run.

    Raises:
      UserError: an unknown name.
    """
    for field, registry in REGISTRIES.items():
        for name in names_of(config, field):
            registry.check(name)


def announce(config: Config, fields: Sequence[str]) -> None:
    """Says which of the user's own files are run, before they are.

    A run folder may come from somebody else: a file is run only where it is needed.

    Args:
      config: names them.
      fields: those of `REGISTRIES` whose things are needed.
    """
    for field in fields:
        for file in dict.fromkeys(own_files(config, field)):
            if file.is_file():
                _log.info(f"{field}: running the code in {file}")


def own_files(config: Config, field: str) -> list[Path]:
    """The user's own files that a field names."""
    files = [REGISTRIES[field].own_file(name) for name in names_of(config, field)]
    return [file for file in files if file is not None]


def copies(config: Config) -> dict[str, bytes]:
    """The user's own files that training depends on, by the path of their copy in the run folder.

    Raises:
      UserError: one does not exist.
    """
    sources: dict[str, bytes] = {}
    for field in OF_TRAINING:
        for name in names_of(config, field):
            if REGISTRIES[field].own_file(name) is not None:
                REGISTRIES[field].find(name)  # Says what is wrong with it.
                sources |= REGISTRIES[field].sources([name])
    names = own_names(list(sources))
    return {
        f"{FOLDER}/{name}{Path(path).suffix}": text
        for name, (path, text) in zip(names, sources.items(), strict=True)
    }


def digests(config: Config) -> dict[str, str]:
    """By field, a digest of the user's own file that training depends on."""
    return {
        field: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for field in OF_TRAINING
        for file in own_files(config, field)
    }
