"""What training started from: data and adapters that must not change while a run is under way."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feddpa_jax.data.digest import digests_in_short, names_in_short
from feddpa_jax.files.manifest import NAME
from feddpa_jax.types import UserError

# What training started from, of which a record has digests by name; and what to restore.
SOURCES = {
    "data": ("the training data", "the data of these clients"),
    "init": ("the adapters of init", "these folders"),
    "code": ("the code of your own", "these files from own_code in the run folder"),
}


def check_record(
    place: Path,
    record: Mapping[str, Any],
    expected: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Refuses a run of another identity than a checkpoint's.

    Args:
      place: the checkpoint's folder.
      record: what it was written with.
      expected: the run's identity; what it does not have is not compared.
      warn: told where the record has no digests to compare with.

    Raises:
      UserError: what differs, or has changed.
    """
    record = _in_short(record)
    for key, value in expected.items():
        if key in SOURCES:
            continue
        wanted = json.loads(json.dumps(value))
        if record.get(key) != wanted:
            name, its, ours = _difference(key, record.get(key), wanted)
            raise UserError(
                f"{place}: does not fit: its {name} is {its}, this run's is {ours}; "
                "use the run's own configuration, or a new --run-dir"
            )
    _check_sources(place, record, expected, warn)


def _in_short(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record as it is written today: earlier versions named clients however many there were."""
    names, data = record.get("clients"), record.get("data")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return record
    known = {"data": digests_in_short(names, data)} if isinstance(data, dict) else {}
    return {**record, "clients": names_in_short(names), **known}


def _check_sources(
    place: Path,
    record: Mapping[str, Any],
    expected: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Refuses other training data or adapters at the start than those that a record names."""
    unknown = []
    for key, (what, remedy) in SOURCES.items():
        if key not in expected:
            continue
        ours, its = expected[key], record.get(key)
        if not isinstance(its, dict):
            unknown += [what] if ours else []
            continue
        # Which clients there are is compared by their names; data may be of some of them.
        names = ours if key == "data" else {**ours, **its}
        changed = [name for name in names if ours.get(name) != its.get(name)]
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


def _difference(name: str, its: Any, ours: Any) -> tuple[str, str, str]:
    """Name and both values of what differs; of long values the first entry that does."""
    texts = json.dumps(its), json.dumps(ours)
    if max(map(len, texts)) > 120:
        if isinstance(its, list) and isinstance(ours, list):
            its, ours = dict(enumerate(its)), dict(enumerate(ours))
        if isinstance(its, dict) and isinstance(ours, dict):
            key = next(k for k in [*ours, *its] if its.get(k) != ours.get(k))
            return _difference(f"{name}[{key}]", its.get(key), ours.get(key))
    return name, *texts
