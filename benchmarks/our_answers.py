"""Our side of the answers: embeddings, weights and greedy decoding in batches across clients."""

import time
from collections.abc import Callable

from benchmarks.questions import Answers, Questions, make_answers
from feddpa_jax.evaluate.modes import instance_weights
from feddpa_jax.inference.answerer import Answerer, Prompt
from feddpa_jax.inference.scorer import Scorer
from feddpa_jax.run.inputs import Prepared
from feddpa_jax.types import client_id
from feddpa_jax.weighting.gathering import gather


def make_answering(
    prepared: Prepared, questions: Questions, *, batch_tokens: int
) -> Callable[[], Answers]:
    """The function that weighs and answers all questions; it compiles when it is first run."""
    tokenizer, model = prepared.base.tokenizer, prepared.base.model
    adapters, weighting = questions.adapters, questions.weighting
    C = len(questions.names)
    scorer = Scorer.for_examples(
        model,
        adapters,
        [*questions.instances, *(e for own in questions.training for e in own), *questions.dreams],
        block_tokens=batch_tokens,
    )
    answerer = Answerer(
        model,
        adapters,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        max_new_tokens=questions.max_new_tokens,
        batch_tokens=batch_tokens,
    )
    ids = [client_id(name) for name in questions.names]

    def answer() -> Answers:
        start = time.perf_counter()
        evidence = gather(
            scorer, ids, questions.training, questions.instances, questions.dreams, weighting
        )
        weights = instance_weights(evidence, weighting)
        prompts = [
            Prompt(
                c,
                example.tokens_T[: example.prompt_length],
                *weights.at(c, i),
                questions.taught[i],
            )
            for c in range(C)
            for i, example in enumerate(questions.instances)
        ]
        tokens = answerer(prompts)
        seconds = time.perf_counter() - start
        return make_answers(tokens, weights.means().local_CI, seconds, questions.max_new_tokens)

    return answer
