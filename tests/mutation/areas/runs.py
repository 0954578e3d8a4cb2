"""Mutants of the loop around the training and of run folders."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
