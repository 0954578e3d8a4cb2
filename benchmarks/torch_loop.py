"""The training that ours is compared with: a torch + peft loop, one client after the other.

The loop of the paper's released code (Yang et al., arXiv 2403.19211): batches padded to their
longest example, the loss a mean over a micro-batch's response tokens, gradients clipped, AdamW with
a linearly falling learning rate, a new optimizer for every client.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.our_loop import Pass
from benchmarks.torch_model import TorchModel
from benchmarks.workload import Updates
from feddpa_jax.adapters.lora import Adapter
from feddpa_jax.types import TokenizedExample

if TYPE_CHECKING:
    import torch

# The label of tokens that are not trained on, in `transformers`.
IGNORED = -100


def train_clients(
    model: TorchModel,
    clients: Mapping[str, Updates],
    global_: Adapter,
    *,
    learning_rate: float,
    max_grad_norm: float,
    dropout: bool,
) -> Pass:
    """Every client trains a copy of the global adapter, one after the other.

    Args:
      model: the base and its adapters.
      clients: each client's updates.
      global_: what they start from.
      learning_rate: at the first update; falls linearly to 0.
      max_grad_norm: gradients are clipped to this norm.
      dropout: whether dropout is on.
    """
    start = time.perf_counter()
    losses: dict[str, list[float]] = {}
    real, computed = 0, 0
    model.mix(1.0, 0.0)
    model.use(["global"], trains=dropout)
    for name, updates in clients.items():
        model.load("global", global_)
        losses[name] = _train(model, updates, learning_rate, max_grad_norm)
        for micro_batch in (micro for update in updates for micro in update):
            lengths = [len(example.tokens_T) for example in micro_batch]
            real, computed = real + sum(lengths), computed + max(lengths) * len(lengths)
    return Pass(losses, real, computed, time.perf_counter() - start)


def _train(
    model: TorchModel, updates: Updates, learning_rate: float, max_grad_norm: float
) -> list[float]:
    import torch

    trained = [p for p in model.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: (len(updates) - update) / len(updates)
    )
    losses = []
    for update in updates:
        optimizer.zero_grad()
        total = 0.0
        for micro_batch in update:
            output = model.model(**_padded(micro_batch, model), use_cache=False)
            loss = output.loss / len(update)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses


def _padded(
    examples: Sequence[TokenizedExample], model: TorchModel
) -> "dict[str, torch.Tensor | Any]":
    """A micro-batch as `transformers` takes it, padded to its longest example."""
    import torch

    shape = len(examples), max(len(example.tokens_T) for example in examples)
    tokens_BT = torch.full(shape, model.pad_id)
    real_BT = torch.zeros(shape, dtype=torch.int64)
    labels_BT = torch.full(shape, IGNORED)
    for b, (tokens_T, prompt_length, _) in enumerate(examples):
        T = len(tokens_T)
        tokens_BT[b, :T] = torch.from_numpy(tokens_T.astype("int64"))
        real_BT[b, :T] = 1
        labels_BT[b, prompt_length:T] = tokens_BT[b, prompt_length:T]
    batch = {"input_ids": tokens_BT, "attention_mask": real_BT, "labels": labels_BT}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
