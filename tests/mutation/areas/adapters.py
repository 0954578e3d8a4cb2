"""Mutants of LoRA and the dual adapter."""

from tests.mutation.mutant import Entry

ENTRIES: list[Entry] = []
