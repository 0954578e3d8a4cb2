"""The oracle against `peft` and `transformers`: mix, gradients, optimizer, order of phases."""

from collections.abc import Iterator, Sequence

import numpy as np
import peft
import pytest
import torch
import transformers
from transformers import LlamaForCausalLM

from tests.parity.random_examples import collate, random_examples, seven_examples
from tests.parity.reference_loop import (
    Adapter,
    DualLlama,
    hf_to_parameters,
    linear_decay,
    train,
)
from tests.parity.tiny_federation import (
    ALPHA,
    LAYERS,
    RANK,
    TARGETS,
    VOCABULARY,
    gap,
    random_adapter,
    tiny_llama,
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The untied tiny Llama, which no test changes."""
    return tiny_llama()


def factors(
    model: torch.nn.Module, name: str
) -> Iterator[tuple[str, str, int, torch.nn.Parameter]]:
    """(target, "a" or "b", layer, parameter [out, in]) of one adapter of a `peft` model."""
    for path, parameter in model.named_parameters():
        for factor in "AB":
            if path.endswith(f".lora_{factor}.{name}.weight"):
                words = path.split(".")
                yield words[-4], factor.lower(), int(words[words.index("layers") + 1]), parameter


def peft_llama(**adapters: Adapter) -> peft.PeftModel:
    """`peft`'s own model of the tiny Llama with these adapters, all of them trainable."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=int(ALPHA), target_modules=list(TARGETS), lora_dropout=0.0
    )
    first, *others = adapters
    model = peft.PeftModel(tiny_llama(), config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    with torch.no_grad():
        for name, adapter in adapters.items():
            for target, factor, layer, parameter in factors(model, name):
                array = adapter[target][factor][layer].T
                parameter.data = torch.from_numpy(array.copy())
                parameter.requires_grad_(True)
    return model


def peft_adapter(model: torch.nn.Module, name: str, *, gradient: bool = False) -> Adapter:
    """One adapter of a `peft` model, or its gradients, in the oracle's layout."""
    layers: dict[str, dict[str, list[np.ndarray]]] = {}
    for target, factor, layer, parameter in factors(model, name):
        tensor = parameter.grad if gradient else parameter.detach()
        assert tensor is not None
        stack = layers.setdefault(target, {"a": [], "b": []})[factor]
        assert layer == len(stack), "parameters come in the order of the layers"
        stack.append(tensor.numpy().T.copy())
    return {
        t: {name: np.stack(stack) for name, stack in pair.items()} for t, pair in layers.items()
    }


def local_gradients(
    model: LlamaForCausalLM,
    targets: Sequence[str],
    *,
    global_weight: float,
    local_weight: float,
    detach_global: bool = False,
) -> Adapter:
    """Gradients of the local side under a mix of two random adapters."""
    global_, local = random_adapter(model, 1, targets), random_adapter(model, 2, targets)
    dual = DualLlama(model, global_, ALPHA)
    dual.load("global", global_)
    dual.load("local", local)
    dual.start(
        "local",
        global_weight=global_weight,
        local_weight=local_weight,
        detach_global=detach_global,
    )
    dual.loss(random_examples(4, 0)).backward()
    return dual.adapter("local", gradient=True)


def test_one_adapter_is_peft(model: LlamaForCausalLM):
    adapter, examples = random_adapter(model, 1), random_examples(4, 0)
    theirs = peft_llama(only=adapter)
    their_loss = theirs(**collate(examples)).loss
    their_loss.backward()

    dual = DualLlama(model, adapter, ALPHA)
    dual.load("global", adapter)
    dual.start("global", global_weight=1.0, local_weight=0.0)
    our_loss = dual.loss(examples)
    our_loss.backward()

    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-6)
    gradient = peft_adapter(theirs, "only", gradient=True)
    assert gap(dual.adapter("global", gradient=True), gradient) < 1e-6
    assert min(np.abs(gradient[t][name]).max() for t in TARGETS for name in "ab") > 1e-2


def test_exact_mix_is_peft_with_two_active_adapters(model: LlamaForCausalLM):
    theirs = peft_llama(global_=random_adapter(model, 1), local_=random_adapter(model, 2))
    assert isinstance(theirs.base_model, peft.LoraModel)
    theirs.base_model.set_adapter(["global_", "local_"])
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling = {"global_": 0.7 * ALPHA / RANK, "local_": 0.3 * ALPHA / RANK}
    theirs(**collate(random_examples(4, 0))).loss.backward()
    ours = local_gradients(model, TARGETS, global_weight=0.7, local_weight=0.3)
    assert gap(ours, peft_adapter(theirs, "local_", gradient=True)) < 1e-6


def test_detached_gradient_misses_the_paths_through_later_global_branches(model: LlamaForCausalLM):
    """Where no adapted map follows, nothing is missed.

    With q and v adapted, no adapted map follows the last layer's. With o adapted too, the last
    layer's v feeds o, and only o has none after it.
    """
    for targets, untouched in ((TARGETS, TARGETS), ((*TARGETS, "o_proj"), ("o_proj",))):
        exact = local_gradients(model, targets, global_weight=0.5, local_weight=0.5)
        detached = local_gradients(
            model, targets, global_weight=0.5, local_weight=0.5, detach_global=True
        )
        for target in targets:
            for name in "ab":
                gap_L = np.abs(exact[target][name] - detached[target][name]).max(axis=(1, 2))
                assert gap_L[0] > 1e-3, (targets, target, name)
                assert (gap_L[1] < 1e-7) == (target in untouched), (targets, target, name)


def test_schedule_is_the_one_of_transformers_without_warmup():
    factors = []
    for schedule in ("ours", "theirs"):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
        scheduler = (
            torch.optim.lr_scheduler.LambdaLR(optimizer, linear_decay(5))
            if schedule == "ours"
            else transformers.get_linear_schedule_with_warmup(optimizer, 0, 5)
        )
        rates = []
        for _ in range(5):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        factors.append(rates)
    assert factors[0] == pytest.approx(factors[1], rel=1e-12)
    assert factors[0] == pytest.approx([3e-4, 2.4e-4, 1.8e-4, 1.2e-4, 0.6e-4], rel=1e-12)


class Listed(torch.utils.data.Dataset):
    """A list as a data set."""

    def __init__(self, items: list[dict[str, torch.Tensor]]):
        """Args: the items."""
        self.items = items

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One item."""
        return self.items[index]

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.items)


class InOrder(transformers.Trainer):
    """The trainer on seven examples in micro-batches of two, without shuffling."""

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Micro-batches as they come."""
        micro_batches = [micro for update in seven_examples(epochs=1) for micro in update]
        batches = [collate(micro_batch) for micro_batch in micro_batches]
        return torch.utils.data.DataLoader(Listed(batches), batch_size=None)


def test_local_training_is_the_trainer_of_transformers(model: LlamaForCausalLM, tmp_path):
    adapter = random_adapter(model, 1)
    theirs = peft_llama(only=adapter)
    trainer = InOrder(
        model=theirs,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            gradient_accumulation_steps=2,
            num_train_epochs=3,
            learning_rate=0.02,
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
    )
    # The reference's version of the trainer knows no other mean than that of the micro-batches.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]

    dual = DualLlama(model, adapter, ALPHA)
    dual.load("global", adapter)
    trained = dual.start("global", global_weight=1.0, local_weight=0.0)
    losses = train(dual, trained, seven_examples(epochs=3), 0.02)

    assert losses == pytest.approx([line["loss"] for line in log], abs=1e-4)
    assert gap(dual.adapter("global"), peft_adapter(theirs, "only")) < 1e-6
    assert gap(dual.adapter("global"), adapter) > 1e-2
    norms = [line["grad_norm"] for line in log]
    assert max(norms) > 1.5, "clipping has nothing to do"


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_have_dotted_paths_and_kernels_in_out(tied: bool):
    model = tiny_llama(tied=tied)
    parameters = hf_to_parameters(model)
    sizes = {path: array.shape for path, array in parameters.items()}
    assert sizes["embed.embedding"] == (VOCABULARY, 16)
    assert sizes["layers.1.attention.k_proj.kernel"] == (16, 16)
    assert sizes["layers.1.attention.q_proj.kernel"] == (16, 32)
    assert sizes["layers.1.attention.o_proj.kernel"] == (32, 16)
    assert sizes["layers.0.mlp.down_proj.kernel"] == (24, 16)
    assert sizes["layers.0.mlp_norm.scale"] == (16,)
    assert len(parameters) == 2 + 9 * LAYERS + (not tied)
    assert ("lm_head.kernel" in parameters) != tied
    gate = model.get_submodule("model.layers.1.mlp.gate_proj")
    assert isinstance(gate, torch.nn.Linear)
    x_D = np.random.default_rng(0).normal(size=16)
    ours = x_D @ parameters["layers.1.mlp.gate_proj.kernel"]
    np.testing.assert_allclose(ours, gate(torch.from_numpy(x_D)).detach().numpy(), atol=1e-12)
