"""Mutants of the evaluation and what it reports."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "weighting/gathering.py",
        "weighting/test_gathering.py",
        ('if pooling == "last" else', 'if pooling != "last" else'),
        ("scores.mean_ILD)[:, place]", "scores.mean_ILD)[:, 0 * place - 1]"),
        (
            "if settings.resample:\n        return draw_support_per",
            "if not settings.resample:\n        return draw_support_per",
        ),
        (
            "example.tokens_T[: example.prompt_length], 1)",
            "example.tokens_T[: example.prompt_length], 2)",
        ),
        ("example.tokens_T[: example.prompt_length], 1)", "example.tokens_T, 1)"),
        ("settings.layer > layers", "settings.layer >= layers"),
        ("None if settings.layer is None else [settings.layer]", "None"),
        (
            "self.scorer, examples, settings.embed_with, mixed=settings.mixed_at, layers=layers",
            'self.scorer, examples, "local", mixed=settings.mixed_at, layers=layers',
        ),
        (
            "known.get(settings.embed_with) if settings.layer is None else None",
            "known.get(settings.embed_with)",
        ),
        (
            "name: [e[rows] for e, rows in zip(values, at",
            "name: [e for e, rows in zip(values, at",
        ),
        (
            "_of_support(looks, ids, training, len(everyone[0]))",
            "_of_support(looks, ids, training, 1)",
        ),
        ("if settings.resample and whole", "if False and whole"),
        ('under_all(everyone, "entropy_I", known)', 'under_all(everyone, "nll_I", known)'),
        ('under_others(alone, "nll_I")', 'under_all(alone, "nll_I", {})'),
        (
            'at_weights(looks.scorer, everyone, "entropy_I")',
            'at_weights(looks.scorer, everyone, "nll_I")',
        ),
        ("looks.texts([own[i] for i in draw])", "looks.texts(own)"),
    ),
    *edits(
        "weighting/looking.py",
        "weighting/test_gathering.py",
        ('"local": (0.0, 1.0)', '"local": (1.0, 0.0)'),
        ("(1.0 - mixed, mixed) if model", "(mixed, 1.0 - mixed) if model"),
        (
            "requests.append(Request(key[0], example, g, l))",
            "requests.append(Request(key[0], example, l, g))",
        ),
        ("key = (client if own_model else 0, id(example))", "key = (0, id(example))"),
        ("not l and (not g or is_shared(adapters.global_C))", "not l"),
        ("((0, 0), (1, 0), (0, 0))", "((0, 0), (0, 1), (0, 0))"),
        ("(place_1T > 0) & (place_1T < length_B1)", "place_1T < length_B1"),
        ("(place_1T > 0) & (place_1T < length_B1)", "place_1T > 0"),
        ("Request(int(c), e, 1.0 - w, w)", "Request(int(c), e, w, 1.0 - w)"),
    ),
    *edits(
        "weighting/weights.py",
        "weighting/test_gathering.py",
        ("scale=settings.scale", "scale=1.0"),
    ),
    *edits(
        "inference/base_prompts.py",
        "inference/test_base_prompts.py",
        ("jax.random.key(seed)", "jax.random.key(0)"),
        ("[: max_length - 1]", "[:max_length]"),
        (
            "[*ids, tokenizer.eos_id], np.int32), len(ids))",
            "[*ids, tokenizer.eos_id], np.int32), len(ids) - 1)",
        ),
    ),
    *edits(
        "evaluate/results.py",
        "evaluate/test_results.py",
        ('"P": summary.p.to_json()', '"P": summary.ttp.to_json()'),
        ('"TTP": summary.ttp.to_json()', '"TTP": summary.p.to_json()'),
        (
            "zip(tasks.names, row.tolist(), strict=True)",
            "zip(tasks.names[::-1], row.tolist(), strict=True)",
        ),
        (
            "zip(clients, summary.matrix_CK, strict=True)",
            "zip(clients[::-1], summary.matrix_CK, strict=True)",
        ),
        (
            "scores_CI - results[other].scores_CI[name]",
            "results[other].scores_CI[name] - scores_CI",
        ),
        ('(("own", own_CI), ("foreign", ~own_CI))', '(("foreign", own_CI), ("own", ~own_CI))'),
        (
            'results["instance"].weights.means().local_CI',
            'results["instance"].weights.means().global_CI',
        ),
        ('(mode, "global", "p")', '(mode, "global", "ttp")'),
        ('(mode, "local", "ttp")', '(mode, "local", "p")'),
        (
            '"global_weight": float(weights.global_CI[c, i])',
            '"global_weight": float(weights.local_CI[c, i])',
        ),
        (
            '"local_weight": float(weights.local_CI[c, i])',
            '"local_weight": float(weights.global_CI[c, i])',
        ),
        ("float(weights.similarity_CI[c, i])", "float(weights.local_CI[c, i])"),
        ("result.predictions_CI[c] if", "result.predictions_CI[0] if"),
        ('"target": example.output', '"target": example.instruction'),
        ("{n: float(s[c, i])", "{n: float(s[0, i])"),
        (
            "[example.instruction, example.input, example.output]",
            "[example.instruction, example.output]",
        ),
        (
            "[example.instruction, example.input, example.output]",
            "[example.instruction, example.input]",
        ),
        ("if own]", "if not own]"),
        (
            "(json_text(line) +",
            "(__import__('json').dumps(line, ensure_ascii=False) +",
            "e2e/test_special_characters.py",
        ),
    ),
    *edits(
        "cli/scores_table.py",
        "evaluate/test_results.py",
        ("told.cell(by_metric[name].p),\n", "told.cell(by_metric[name].ttp),\n"),
        ("told.cell(by_metric[name].ttp),\n", "told.cell(by_metric[name].p),\n"),
        ('f"{mode} *" if answers else mode', 'mode if answers else f"{mode} *"'),
        ("getattr(summary, measure)", "summary.p"),
    ),
    *edits(
        "evaluate/modes.py",
        "evaluate/test_evaluation.py::test_weights_of_every_mode evaluate/test_results.py",
        ('"fixed": (1.0 - fixed, fixed)', '"fixed": (fixed, 1.0 - fixed)'),
        ('"global": (1.0, 0.0)', '"global": (0.0, 1.0)'),
        (
            "return ModeWeights(1.0 - local_CI, local_CI, similarity_CI)",
            "return ModeWeights(local_CI, 1.0 - local_CI, similarity_CI)",
        ),
        (
            "ModeWeights(self.global_CI.mean(axis=-1), self.local_CI.mean(axis=-1), similarity)",
            "ModeWeights(self.local_CI.mean(axis=-1), self.global_CI.mean(axis=-1), similarity)",
        ),
        ("similarity = similarity.mean(axis=-1)", "similarity = similarity[..., 0]"),
    ),
    *edits(
        "evaluate/evaluation.py",
        "evaluate/test_evaluation.py",
        ("beams=decoding.beams,\n", "beams=1,\n"),
        ("setting.instances[r % instances].output", "setting.instances[0].output"),
        ("pairs[(c % own.rows) * instances :]", "pairs[0:]"),
    ),
]
