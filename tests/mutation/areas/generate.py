"""Mutants of decoding."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
