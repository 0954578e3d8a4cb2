"""Mutants of exports and PEFT folders."""

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
        "export/plan.py",
        "export/test_export.py",
        (
            "mixed_adapter(global_, trained.local(name), mixed)",
            "mixed_adapter(global_, trained.local(name), 1 - mixed)",
        ),
        ("AdapterOut(both, 2 * alpha", "AdapterOut(both, alpha"),
        (
            "[(global_, 1.0 - weight), (trained.local(name), weight)]",
            "[(global_, weight), (trained.local(name), 1.0 - weight)]",
        ),
        ("prepared.names.index(client)", "prepared.names.index(self.prepared.names[0])"),
        (
            'adapter[target]["a"][layer], adapter[target]["b"][layer]',
            'adapter[target]["a"][0], adapter[target]["b"][0]',
        ),
    ),
]
