"""Mutants of the report."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
