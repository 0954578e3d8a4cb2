"""Mutants of exports and PEFT folders."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
