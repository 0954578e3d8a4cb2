"""Mutants of the evaluation."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
