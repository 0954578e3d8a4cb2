"""Mutants of the laboratory of weighting rules."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "weigh/report.py",
        "weigh",
        ('"test": _summaries(finding.test)', '"test": _summaries(finding.validation)'),
    ),
    *edits(
        "weigh/candidates.py",
        "weigh/test_grid.py",
        ('rule="constant", scale=0.0', 'rule="constant", scale=1.0'),
        ("cost_N = mean_N if", "cost_N = -mean_N if"),
    ),
]
