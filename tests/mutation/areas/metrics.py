"""Mutants of the metrics, P and TTP."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "evaluate/personalization.py",
        "evaluate/test_metrics.py",
        ("[{self.low:.{digits}f}, {self.high", "[{self.high:.{digits}f}, {self.low"),
        ("None if math.isnan(part) else part for name", "part for name"),
        ('for name in ("value", "low", "high")]', 'for name in ("value", "high", "low")]'),
        ("/ one_hot_IK.sum(axis=0)", "/ len(one_hot_IK)"),
        ("return own.mean(axis=-1)", "return own.sum(axis=-1)"),
        ("/ own_CK.sum(axis=-1)", ""),
        ("matrix.mean(axis=(-2, -1))", "matrix.mean(axis=-1)[..., 0]"),
        ("[seed, 4]", "[0, 4]"),
        (
            "np.full(members, 1 / members), count) / members",
            "np.full(members, 1 / members), count)",
        ),
        ("[2.5, 97.5]", "[5.0, 95.0]"),
        ("[2.5, 97.5]", "[0.0, 97.5]"),
        ("low, high = np.percentile", "high, low = np.percentile"),
        ("int(tasks.own_CK.any(axis=1).sum()),", "len(tasks.own_CK),"),
        ("rng.multinomial(members, ", "rng.multinomial(1, "),
        ("self.weight_SI[:, members] @", "self.weight_SI[::-1][:, members] @"),
        ("has_C = own_CK.any(axis=1)", "has_C = own_CK.all(axis=1)"),
    ),
]
