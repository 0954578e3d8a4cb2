"""Mutants of checkpoints."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
