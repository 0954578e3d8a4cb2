"""Mutants of the evaluation."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "evaluate/evidence.py",
        "evaluate/test_evidence.py",
        ('if pooling == "last" else', 'if pooling != "last" else'),
        ("scores.mean_ILD)[:, place]", "scores.mean_ILD)[:, 0 * place - 1]"),
        ('"local": (0.0, 1.0)', '"local": (1.0, 0.0)'),
        ('"mixed": (0.5, 0.5)', '"mixed": (1.0, 1.0)'),
        (
            "if settings.resample:\n        return draw_support_per",
            "if not settings.resample:\n        return draw_support_per",
        ),
        (
            "example.tokens_T[: example.prompt_length], 1)",
            "example.tokens_T[: example.prompt_length], 2)",
        ),
        ("example.tokens_T[: example.prompt_length], 1)", "example.tokens_T, 1)"),
        (
            "requests.append(Request(client if l else 0, example, g, l))",
            "requests.append(Request(client if l else 0, example, l, g))",
        ),
        ("key = (client if l else 0, id(example))", "key = (0, id(example))"),
        ("settings.layer > layers", "settings.layer >= layers"),
        ("None if settings.layer is None else [settings.layer]", "None"),
        (
            "look(scorer, examples, settings.embed_with, layers=layers)",
            'look(scorer, examples, "local", layers=layers)',
        ),
        (
            "known.get(settings.embed_with) if settings.layer is None else None",
            "known.get(settings.embed_with)",
        ),
        (
            "e[rows] for e, rows in zip(embedded(examples), at",
            "e for e, rows in zip(embedded(examples), at",
        ),
        ('under_all(everyone, "entropy_I", known)', 'under_all(everyone, "nll_I", known)'),
    ),
    *edits(
        "evaluate/modes.py",
        "evaluate/test_evidence.py evaluate/test_evaluate.py",
        ('"fixed": (1.0 - fixed, fixed)', '"fixed": (fixed, 1.0 - fixed)'),
        ('"global": (1.0, 0.0),\n        "local"', '"global": (0.0, 1.0),\n        "local"'),
        (
            "ModeWeights(1.0 - local_CI, local_CI, similarity_CI)",
            "ModeWeights(local_CI, 1.0 - local_CI, similarity_CI)",
        ),
        ("scale=settings.scale", "scale=1.0"),
    ),
    *edits(
        "evaluate/report.py",
        "evaluate/test_evaluate.py",
        ('"TTP": interval(summary.ttp)', '"TTP": interval(summary.p)'),
        ('("own", own_CI), ("foreign", ~own_CI)', '("foreign", own_CI), ("own", ~own_CI)'),
    ),
    *edits(
        "evaluate/dreams.py",
        "evaluate/test_dreams.py",
        ("jax.random.key(seed)", "jax.random.key(0)"),
        ("[: max_length - 1]", "[:max_length]"),
        (
            "[*ids, tokenizer.eos_id], np.int32), len(ids))",
            "[*ids, tokenizer.eos_id], np.int32), len(ids) - 1)",
        ),
    ),
]
