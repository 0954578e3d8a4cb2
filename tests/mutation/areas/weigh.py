"""Mutants of the laboratory of weighting rules."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
