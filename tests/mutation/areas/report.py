"""Mutants of the report."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "report/paired.py",
        "report/test_paired.py",
        ("one_CI - other_CI", "other_CI - one_CI"),
    ),
]
