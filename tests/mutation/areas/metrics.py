"""Mutants of the metrics, P and TTP."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
