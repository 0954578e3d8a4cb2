"""Flat data for the tests of partitions."""

from feddpa_jax.types import Example

TASKS = ("sums", "poems", "code", "jokes")


def flat(count: int = 240, tasks: int = 4) -> list[dict[str, object]]:
    """Records of a few tasks, half of them of the first, by users of whom each has one or more."""
    found = []
    for n in range(count):
        task = 0 if n % 2 else (n // 2) % tasks
        record = {
            "instruction": f"Do number {n:03d}.",
            "output": f"0{n}",
            "task": f"task {task}",
            "user": f"u{int(n**0.5)}",
            "number": n % 3,
        }
        found.append(record)
    return found


def examples(count: int = 240) -> list[Example]:
    """The same as examples."""
    return [
        Example(str(one["instruction"]), str(one["output"]), task=str(one["task"]))
        for one in flat(count)
    ]
