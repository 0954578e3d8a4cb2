"""Mutants of the federated training."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "fed/aggregate.py",
        "fed/test_methods.py",
        (
            'np.ones(len(examples_C)) if kind == "uniform"',
            'np.ones(len(examples_C)) if kind != "uniform"',
        ),
        ("weight_C / weight_C.sum()", "weight_C / len(weight_C)"),
    ),
]
