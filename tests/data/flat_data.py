"""Flat data of some clients, for tests of populations and of their cache."""

import json
from pathlib import Path

from feddpa_jax.types import Example


def an_example(client: str, number: int) -> Example:
    return Example(f"Say {number} of {client}.", f"{number} ü", task=f"task_{number % 2}")


def records(clients: int = 7) -> list[tuple[str, Example]]:
    """Examples of clients in turns, so that no client's rows are beside each other."""
    names = [f"u{(3 * c) % clients}" for c in range(clients)]
    return [(name, an_example(name, n)) for n in range(4) for name in names]


def columns_of(example: Example) -> dict[str, str]:
    return {name: value for name, value in vars(example).items() if name != "history"}


def flat_file(folder: Path) -> Path:
    file = folder / "flat.jsonl"
    lines = [{"client": name, **columns_of(example)} for name, example in records()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
