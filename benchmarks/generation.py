"""Instance-wise weighted greedy answers: ours in batches, and the reference's one at a time."""

import statistics
from typing import Any

import numpy as np

from benchmarks.agreement import TOLERANCE
from benchmarks.our_answers import make_answering
from benchmarks.our_loop import compile_times
from benchmarks.questions import Answers, Questions
from benchmarks.torch_answers import answer_one_by_one
from benchmarks.torch_model import TorchModel
from feddpa_jax.cli.console import Reporter
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import UserError


def time_generation(
    prepared: Prepared,
    questions: Questions,
    model: TorchModel | None,
    *,
    batch_tokens: int,
    repeat: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Answers all questions on both sides, in turns.

    Args:
      prepared: the base.
      questions: who answers what.
      model: the torch side; None measures ours alone.
      batch_tokens: most tokens that ours computes at once.
      repeat: passes of each side, after a first one of ours that compiles.
      reporter: gets a message for every pass.

    Raises:
      UserError: the two sides weigh instances differently.
    """
    answer = make_answering(prepared, questions, batch_tokens=batch_tokens)
    with compile_times() as compiled:
        first = answer()
    ours: list[Answers] = []
    theirs: list[Answers] = []
    support_once: list[float] = []
    for number in range(repeat):
        which = f"answers, pass {number + 1} of {repeat}"
        ours.append(answer())
        reporter.say(f"{which}: ours {ours[-1].generated / ours[-1].seconds:,.1f} tokens/s")
        if model is not None:
            done, seconds = answer_one_by_one(model, questions)
            theirs.append(done)
            support_once.append(seconds)
            reporter.say(f"{which}: torch {done.generated / done.seconds:,.1f} tokens/s")
    result: dict[str, Any] = {
        "clients": len(questions.names),
        "instances": len(questions.instances),
        "max_new_tokens": questions.max_new_tokens,
        "ours": _rates(ours[0], [done.seconds for done in ours]),
        "torch": None,
        "torch_support_once": None,
        "ratio": None,
        "ratio_support_once": None,
        "agreement": None,
    }
    result["ours"] |= {"first_pass_seconds": first.seconds, "compile_seconds": sum(compiled)}
    if model is not None:
        result["agreement"] = _agreement(ours[0], theirs[0], str(prepared.base.model.dtype))
        rate = result["ours"]["tokens_per_second"]
        for name, seconds in (
            ("", [done.seconds for done in theirs]),
            ("_support_once", support_once),
        ):
            result[f"torch{name}"] = _rates(theirs[0], seconds)
            result[f"ratio{name}"] = rate / result[f"torch{name}"]["tokens_per_second"]
    return result


def _rates(answers: Answers, seconds: list[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "median_seconds": median,
        "answers": len(answers.tokens),
        "tokens": answers.generated,
        "tokens_per_second": answers.generated / median,
    }


def _agreement(ours: Answers, theirs: Answers, dtype: str) -> dict[str, Any]:
    difference = float(np.abs(ours.local_weight_CI - theirs.local_weight_CI).max())
    tolerance = TOLERANCE[dtype]
    if not difference <= tolerance:
        raise UserError(
            f"the two sides weigh instances differently, by up to {difference:.4f} "
            f"(allowed: {tolerance}); nothing was measured. Try --model.dtype float32, or measure "
            "ours alone with --no-torch"
        )
    same = [np.array_equal(a, b) for a, b in zip(ours.tokens, theirs.tokens, strict=True)]
    return {
        "identical_answers": sum(same) / len(same),
        "largest_weight_difference": difference,
        "tolerance": tolerance,
    }
