"""Mutants of the weighting rules."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
