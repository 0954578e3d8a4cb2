"""What training started from: data and adapters that must not change while a run is under way."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.manifest import NAME
from feddpa_jax.types import UserError

# What training started from, of which a record has digests by name; and what to restore.
SOURCES = {
    "data": ("the training data", "the data of these clients"),
    "init": ("the adapters of init", "these folders"),
}


def check_sources(
    place: Path,
    record: Mapping[str, Any],
    expected: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Refuses other training data or adapters at the start than those that a record names.

    Args:
      place: the checkpoint's folder.
      record: what it was written with.
      expected: the run's identity; what it does not have is not compared.
      warn: told where the record has no digests to compare with.

    Raises:
      UserError: what has changed.
    """
    unknown = []
    for key, (what, remedy) in SOURCES.items():
        if key not in expected:
            continue
        ours, its = expected[key], record.get(key)
        if not isinstance(its, dict):
            unknown += [what] if ours else []
            continue
        changed = [name for name in {**ours, **its} if ours.get(name) != its.get(name)]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{place}: {what} changed since the run began: {', '.join(changed[:3])}{more}; "
                f"restore {remedy}, or use a new --run-dir"
            )
    # A run without a manifest is of an older version too, and that has been said.
    if unknown and (place.parents[1] / NAME).exists():
        warn(
            f"{place}: an older version wrote it, without a digest of {' and '.join(unknown)}; "
            "not compared"
        )
