"""Checkpoints of tests, written at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.run.saver import Saver


def save(
    folder: Path, number: int, state: Mapping[str, Any], record: Mapping[str, Any], **named: Any
) -> None:
    """Writes the checkpoint of a round and waits for it."""
    with Saver(folder, keep=named.pop("keep")) as saver:
        saver.save(number, state, record, **named)
