"""Mutants of exports and their cards."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "hf/peft_format.py",
        "hf/test_peft_format.py",
        ("stack_LXY[layer], np.float32).T", "stack_LXY[0], np.float32).T"),
        (
            "np.asarray(tensor, np.float32).T",
            "np.asarray(tensor, np.float32)[::-1].T",
        ),
        (
            '_PARTS = {"a": ".lora_A.weight", "b": ".lora_B.weight"}',
            '_PARTS = {"b": ".lora_A.weight", "a": ".lora_B.weight"}',
        ),
        ('["a"].shape[-1]', '["a"].shape[-2]'),
    ),
    *edits(
        "hf/peft_settings.py",
        "hf/test_peft_format.py",
        ("alpha *= math.sqrt(rank)", "alpha *= 1"),
        ("alpha *= math.sqrt(rank)", "alpha /= math.sqrt(rank)"),
    ),
    *edits(
        "export/card.py",
        "export/test_card.py",
        (
            'in metrics.items()\n            for measure in ("P", "TTP")\n        ]',
            'in metrics.items()\n            for measure in ("TTP", "P")\n        ]',
        ),
        ('star = " *" if mode == trained', 'star = " *" if mode != trained'),
        (
            "{1 - out.local_weight:g} of the global and {out.local_weight:g} of the",
            "{out.local_weight:g} of the global and {1 - out.local_weight:g} of the",
        ),
        ('if own["scales"] == "global":', 'if own["scales"] == "local":'),
        ('if own["pooling"] == "last" else', 'if own["pooling"] == "mean" else'),
        ('if own["embed_with"] == "base" else', 'if own["embed_with"] != "base" else'),
        ("{len(weighting.support_MD)} of", "{weighting.support_MD.shape[1]} of"),
        ("{c.counts.truncated} | ", "{c.counts.dropped} | "),
        ("{tests.examples} test instances", "{tests.truncated} test instances"),
        ("round {trained.round_number}", "round {fed.rounds}"),
        (
            'learning rate "\n        f"{fed.learning_rate:g}',
            'learning rate "\n        f"{lora.dropout:g}',
        ),
        ("{fed.local_epochs} local epochs", "{fed.rounds} local epochs"),
        (
            "LoRA of rank {out.rank}, alpha {out.alpha:g}",
            "LoRA of rank {out.alpha:g}, alpha {out.rank}",
        ),
        ("markdown(', '.join(c.tasks))", "', '.join(c.tasks)", "e2e/test_special_characters.py"),
    ),
    *edits(
        "export/contents.py",
        "export/test_export.py",
        (
            "both = mixed_adapter(global_, trained.local(name), mixed)",
            "both = mixed_adapter(global_, trained.local(name), 1 - mixed)",
        ),
        ("AdapterOut(both, 2 * alpha, name, mixed)", "AdapterOut(both, alpha, name, mixed)"),
        (
            "[(global_, 1.0 - weight), (trained.local(name), weight)]",
            "[(global_, weight), (trained.local(name), 1.0 - weight)]",
            "export/test_plan.py",
        ),
        ("[(trained.local(name), 1.0)]", "[(global_, 1.0)]", "export/test_plan.py"),
        (
            "take(self.adapters.local_C, np.array([index]))",
            "take(self.adapters.local_C, np.array([0]))",
        ),
    ),
    *edits(
        "export/instance_weights.py",
        "export/test_export.py",
        ("pooled(support[c], settings.pooling)", "pooled(support[0], settings.pooling)"),
        ('"scales": settings.scales', '"scales": "local"'),
        ('"scale": settings.scale,', '"scale": 0.5,'),
        ("look(scorer, drawn, settings.embed_with,", 'look(scorer, drawn, "global",'),
    ),
    *edits(
        "export/read_back.py",
        "export/test_export.py",
        (
            "if found.tobytes() == expected.tobytes():",
            "if np.allclose(found, expected, rtol=1e-2):",
        ),
        ('("lora_alpha", found.alpha, out.alpha)', '("lora_alpha", out.alpha, out.alpha)'),
        ("if found.settings != json.loads(json.dumps(weighting.settings)):", "if False:"),
        (
            "found.support_MD, weighting.support_MD, rtol=1e-3, atol=1e-3",
            "found.support_MD, weighting.support_MD, rtol=1, atol=1",
        ),
    ),
]
