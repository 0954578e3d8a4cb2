"""Answers a second of the batched answerer: against another state of the project, or one at a time.

`python -m benchmarks.answers --against FOLDER` answers the same prompts with this state and with
that of FOLDER, in turns, each in a process of its own, and prints the ratio of the median times;
`--alone` answers them one at a time as well, with the same code. Answers end at an end token or at
one of the tokens that `--stops` draws, so that their lengths differ widely.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 8


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    made.add_argument("--model", default="smollm2-135m", help="model.path of the base")
    made.add_argument("--dtype", default="auto", help="model.dtype")
    made.add_argument("--layers", type=int, help="random weights of that model's, so many layers")
    made.add_argument("--vocabulary", type=int, help="with --layers: its vocabulary")
    made.add_argument("--data", default="sample", help="data.path of the prompts")
    made.add_argument("--prompts", type=int, default=64)
    made.add_argument("--beams", type=int, default=1)
    made.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    made.add_argument("--stops", type=float, default=0.04, help="share of tokens that end one")
    made.add_argument("--batch-tokens", type=int, help="most tokens at once; suited to the device")
    made.add_argument("--repeat", type=int, default=3)
    made.add_argument("--against", type=Path, help="a working tree to compare with")
    made.add_argument("--alone", action="store_true", help="one at a time too")
    made.add_argument("--out", type=Path, help="a JSON file for the figures")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def work(known: argparse.Namespace) -> None:
    """Answers all prompts for every line of the input, "all" or "alone", in a line of JSON."""
    answer = _answering(known)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        answers = answer(line.strip() == "alone")
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        digest = hashlib.sha256(b"".join(own.tobytes() + b"|" for own in answers)).hexdigest()
        lengths = [len(own) for own in answers]
        each = [hashlib.sha256(own.tobytes()).hexdigest()[:8] for own in answers]
        found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "lengths": lengths}
        print(json.dumps(found | {"digest": digest[:16], "each": each}), flush=True)


def _answering(known: argparse.Namespace) -> Any:
    """A function that answers all prompts, at once or one after another."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    import feddpa_jax as fd
    from feddpa_jax.adapters.dual import Adapters
    from feddpa_jax.adapters.lora import bank_of, init_adapter
    from feddpa_jax.data.templates import TEMPLATES
    from feddpa_jax.inference.answerer import Answerer, Prompt
    from feddpa_jax.models.decoder import random_model
    from feddpa_jax.training.memory import tokens_at_once

    base = fd.load_base(known.model, dtype=known.dtype)
    model, tokenizer = base.model, base.tokenizer
    template = TEMPLATES.find("alpaca_short")
    examples = fd.load_federation(known.data).test
    draw = np.random.default_rng(0)
    chosen = draw.permutation(len(examples))[: known.prompts]
    tokens = [np.array(tokenizer.encode(template(examples[i])), np.int32) for i in chosen]
    if known.layers:
        size = known.vocabulary or model.config.vocab_size
        config = dataclasses.replace(model.config, layers=known.layers, vocab_size=size)
        model = jax.jit(lambda key: random_model(config, key, model.dtype))(jax.random.key(0))
        tokens = [tokens_T % size for tokens_T in tokens]
    config = model.config

    def adapter(seed: int) -> Any:
        sizes = {target: config.target_sizes()[target] for target in ("q_proj", "v_proj")}
        fresh = init_adapter(jax.random.key(seed), sizes, layers=config.layers, rank=8)
        noise = jax.random.normal(jax.random.key(seed), (8, 1)) * 0.02
        return jax.tree.map(lambda leaf: leaf + noise.mean(), fresh)

    local_C = jax.tree.map(lambda *own: jnp.stack(own), *(adapter(c + 1) for c in range(CLIENTS)))
    stops = draw.permutation(config.vocab_size)[: int(known.stops * config.vocab_size)].tolist()
    at_once = tokens_at_once(jax.devices()[0], config, model.dtype)
    answerer = Answerer(
        model,
        Adapters(bank_of(adapter(0)), local_C, 2.0),
        stop_ids=tuple({*tokenizer.stop_ids, *stops}),
        pad_id=tokenizer.pad_id,
        beams=known.beams,
        max_new_tokens=known.tokens,
        batch_tokens=known.batch_tokens or at_once,
    )
    prompts = [Prompt(i % CLIENTS, tokens_T, 0.5, 0.5) for i, tokens_T in enumerate(tokens)]

    def answer(alone: bool) -> list[Any]:
        if alone:
            return [own for prompt in prompts for own in answerer([prompt])]
        return answerer(prompts)

    return answer


class Worker:
    """A process that answers."""

    def __init__(self, folder: Path, options: list[str]):
        """Args: the working tree whose package it uses, and the options."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *options],
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, how: str) -> dict[str, Any]:
        """One pass over all prompts."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(how + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def main(arguments: list[str] | None = None) -> None:
    """Measures, and prints what each pass took, and the ratios."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = parser().parse_args(arguments)
    if known.worker:
        work(known)
        return
    sides = {"ours": (Worker(ROOT, arguments), "all")}
    if known.against:
        sides["before"] = (Worker(known.against.resolve(), arguments), "all")
    if known.alone:
        sides["alone"] = (sides["ours"][0], "alone")
    passes: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    # The first pass compiles.
    for number in range(-1, known.repeat):
        for name, (worker, how) in sides.items():
            found = worker.ask(how)
            print(
                f"{name:>7} pass {number + 1}: {found['seconds']:8.2f} s, "
                f"{found['cpu_seconds']:8.2f} s of the CPU",
                flush=True,
            )
            if number >= 0:
                passes[name].append(found)
    for worker, _ in sides.values():
        worker.close()
    result = _compared(passes)
    print(json.dumps(result, indent=1))
    if known.out:
        known.out.write_text(json.dumps(result, indent=1) + "\n")


def _compared(passes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rates, and how many times ours is faster than the other sides."""
    result: dict[str, Any] = {}
    ours = passes["ours"][0]
    for name, found in passes.items():
        count = len(found[0]["lengths"])
        median = {
            key: statistics.median(own[key] for own in found) for key in ("seconds", "cpu_seconds")
        }
        same = sum(a == b for a, b in zip(found[0]["each"], ours["each"], strict=True))
        result[name] = {
            "answers_per_second": count / median["seconds"],
            "median_seconds": median["seconds"],
            "median_cpu_seconds": median["cpu_seconds"],
            "ratio": median["seconds"] / statistics.median(p["seconds"] for p in passes["ours"]),
            "cpu_ratio": median["cpu_seconds"]
            / statistics.median(p["cpu_seconds"] for p in passes["ours"]),
            "identical_answers": same / count,
        }
    lengths = ours["lengths"]
    result["answers"] = {
        "count": len(lengths),
        "mean_tokens": statistics.mean(lengths),
        "deciles": statistics.quantiles(lengths, n=10) if len(lengths) > 1 else lengths,
    }
    return result


if __name__ == "__main__":
    main()
