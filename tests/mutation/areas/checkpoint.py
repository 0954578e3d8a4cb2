"""Mutants of checkpoints."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits("run/sources.py", "run/test_checkpoint.py", ("record.get(key) != wanted", "False")),
    *edits(
        "run/checkpoint.py",
        "federated/test_clients.py run/test_checkpoint.py run/test_killed_saves.py",
        ("or sha256(path) != digest:", ":"),
        (
            "size_of(path) != size or",
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
            '(float(record["validation_loss"]), -number)',
            '(float(record["validation_loss"]), number - 10**6)',
            "run/test_checkpoint.py::test_of_equal_losses_the_later_round_is_the_best",
        ),
        ("math.isfinite(pair[0])", "not math.isnan(pair[0]) or True"),
        ("in reversed(rounds)", "in rounds"),
        ("return sorted(int(p.name)", "return list(int(p.name)"),
        ("p.name.isdecimal()", "True"),
        ("Restored(int(place.name), place", "Restored(len(record), place"),
        ("if number <= round_number]", "]"),
        ('best if step == "best" else', 'best if step != "best" else'),
        ('"record.json" not in files or not round_state.is_listed(files)', "False"),
        ("if damage:\n            warn(", "if False:\n            warn("),
        ("str(leaf.dtype), *leaf.shape", "str(leaf.dtype)"),
    ),
    *edits(
        "run/saver.py",
        "run/test_saver.py run/test_checkpoint.py run/test_killed_saves.py",
        ("self.wait()\n        arrays", "arrays"),
        ("        discard(final)", "        pass"),
        ("under_way=True", "under_way=False"),
    ),
    *edits("run/round_state.py", "run/test_saver.py", ("np.array(leaf)", "np.asarray(leaf)")),
    *edits(
        "run/checkpoint.py",
        "run/test_saver.py federated/test_clients.py",
        ("unused -= _files_of(folder, number)", "pass"),
    ),
]
