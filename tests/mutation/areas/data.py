"""Mutants of what is read, tokenized, packed and scheduled."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
