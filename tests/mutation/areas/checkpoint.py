"""Mutants of checkpoints."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits("run/sources.py", "run/test_checkpoint.py", ("record.get(key) != wanted", "False")),
    *edits(
        "run/checkpoint.py",
        "methods/test_clients.py run/test_checkpoint.py",
        ("or sha256(path) != digest:", ":"),
        (
            "path.stat().st_size != size or",
            "",
            "",
            "the digest differs too; the size is only found sooner",
        ),
        ("return _find_damaged_client(place)", 'return ""'),
        ("if sha256(path) != digest", "if False"),
        ("if found != size", "if False"),
        ("done[:-keep]", "done[: -keep - 1]"),
        ("done[:-keep]", "done[:-1]"),
        (" - {best_round(folder, done)}", ""),
        ("-min(finite)[1]", "-max(finite)[1]"),
        (
            '(float(record["loss"]), -number)',
            '(float(record["loss"]), number - 10**6)',
            "run/test_checkpoint.py::test_of_equal_losses_the_later_round_is_the_best",
        ),
        ("math.isfinite(pair[0])", "not math.isnan(pair[0]) or True"),
        ("in reversed(rounds)", "in rounds"),
        ("return sorted(int(p.name)", "return list(int(p.name)"),
        ("p.name.isdecimal()", "True"),
        ("Restored(int(place.name), state", "Restored(len(state), state"),
        ("if number <= round_number]", "]"),
        ('best if step == "best" else', 'best if step != "best" else'),
        ('{"record.json", STATE} <= files.keys()', "True"),
        ("if damage:\n            warn(", "if False:\n            warn("),
        ("str(leaf.dtype), *leaf.shape", "str(leaf.dtype)"),
    ),
]
