"""Instance-wise answers as the reference makes them: one at a time, with torch and peft.

For every instance the client's support and the instance are embedded, the adapters scaled, and the
answer generated. The released code embeds the support again for every instance, and so does this
loop; what it would take if it embedded it once a client is told beside it.
"""

import time
from typing import Any

import jax
import numpy as np

from benchmarks.questions import Answers, Questions, make_answers
from benchmarks.torch_model import TorchModel
from feddpa_jax.adapters.lora import take
from feddpa_jax.types import TokenizedExample, client_id
from feddpa_jax.weighting.evidence import Evidence
from feddpa_jax.weighting.looking import MIXES
from feddpa_jax.weighting.settings import WeightingSettings
from feddpa_jax.weighting.support import draw_support, draw_support_per_instance
from feddpa_jax.weighting.weights import make_weighting


def answer_one_by_one(model: TorchModel, questions: Questions) -> tuple[Answers, float]:
    """All answers; and the seconds of a loop that embeds each client's support once."""
    import torch

    settings = questions.weighting
    weigh = jax.jit(make_weighting(settings.rule, scale=settings.scale, scales=settings.scales))
    C, I = len(questions.names), len(questions.instances)
    local_weight_CI = np.zeros((C, I), np.float32)
    tokens: list[np.ndarray] = []
    embedding_again = 0.0
    start = time.perf_counter()
    global_1, local_C = questions.adapters.global_C, questions.adapters.local_C
    assert global_1 is not None and local_C is not None
    model.use(["global", "local"], trains=False)
    model.load("global", jax.tree.map(lambda leaf: leaf[0], global_1))
    with torch.no_grad():
        for c in range(C):
            local = take(local_C, np.array([c]))
            model.load("local", jax.tree.map(lambda leaf: leaf[0], local))
            draws_IM = _draws(questions, c)
            for i, instance in enumerate(questions.instances):
                before = time.perf_counter()
                own = [questions.training[c][s] for s in draws_IM[i]]
                support_MD = np.stack([_embed(model, example, settings) for example in own])
                if i > 0:
                    embedding_again += time.perf_counter() - before
                query_D = _embed(model, instance, settings)
                weight = float(weigh(Evidence(query_D[None], support_MD[None])).local_weight_B[0])
                local_weight_CI[c, i] = weight
                model.mix(1.0 - weight, weight)
                tokens.append(answer_one(model, instance, questions.max_new_tokens))
    seconds = time.perf_counter() - start
    answers = make_answers(tokens, local_weight_CI, seconds, questions.max_new_tokens)
    return answers, seconds - embedding_again


def _draws(questions: Questions, client: int) -> np.ndarray:
    """The indexes of the support of every instance, [I, M]; as ours are drawn."""
    settings, count = questions.weighting, len(questions.training[client])
    ident, instances = client_id(questions.names[client]), len(questions.instances)
    if settings.resample:
        return draw_support_per_instance(
            count, settings.support, instances, seed=settings.seed or 0, client=ident
        )
    draw_M = draw_support(count, settings.support, seed=settings.seed or 0, client=ident)
    return np.broadcast_to(draw_M, (instances, len(draw_M)))


def _prompt(model: TorchModel, example: TokenizedExample) -> Any:
    import torch

    tokens_T = example.tokens_T[: example.prompt_length].astype("int64")
    return torch.from_numpy(tokens_T)[None].to(model.device)


def _embed(model: TorchModel, example: TokenizedExample, settings: WeightingSettings) -> np.ndarray:
    """A prompt's final hidden state: at its last token, or the mean."""
    mixed = (1.0 - settings.mixed_at, settings.mixed_at)
    model.mix(*(mixed if settings.embed_with == "mixed" else MIXES[settings.embed_with]))
    inner = model.model.get_base_model()
    hidden_1TD = inner.base_model(input_ids=_prompt(model, example), use_cache=False)[0]
    hidden_TD = hidden_1TD[0].float().cpu().numpy()
    return hidden_TD[-1] if settings.pooling == "last" else hidden_TD.mean(axis=0)


def answer_one(
    model: TorchModel, example: TokenizedExample, max_new_tokens: int, beams: int = 1
) -> np.ndarray:
    """The answer to a prompt without its end token; 1 beam is greedy."""
    import torch

    tokens_1T = _prompt(model, example)
    answer_1T = model.model.generate(
        input_ids=tokens_1T,
        attention_mask=torch.ones_like(tokens_1T),
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=False,
        eos_token_id=list(model.stop_ids),
        pad_token_id=model.pad_id,
    )
    answer_T = answer_1T[0, tokens_1T.shape[1] :].cpu().numpy()
    ends = np.flatnonzero(np.isin(answer_T, model.stop_ids))
    return answer_T[: ends[0]] if len(ends) else answer_T
