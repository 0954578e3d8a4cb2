"""The same base in torch, with a global and a local LoRA adapter of `peft` on it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from feddpa_jax.adapters.lora import Adapter, kernel_path
from feddpa_jax.config import Config
from feddpa_jax.hf.family import FAMILIES
from feddpa_jax.hf.load import Base
from feddpa_jax.hf.names import file_name
from feddpa_jax.hf.save import save_model
from feddpa_jax.hf.saved_config import saved_config


def missing_packages() -> str | None:
    """Why the torch side cannot be measured; None if it can."""
    try:
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


class TorchModel:
    """A `peft` model with the adapters "global" and "local".

    Attributes:
      model: the `PeftModel`.
      device: where it lies.
      pad_id: the token that pads.
      stop_ids: the tokens of which any ends an answer.
    """

    def __init__(self, config: Config, base: Base, *, same_weights: bool = True):
        """Makes the model.

        Args:
          config: the run's configuration.
          base: the base that is taken over.
          same_weights: if not, only its sizes are: a large model's weights take long to hand over,
            and a step takes as long with others.
        """
        import torch
        import transformers
        from peft import LoraConfig, get_peft_model

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.pad_id, self.stop_ids = base.tokenizer.pad_id, base.tokenizer.stop_ids
        self._family = base.model.config.family
        self._layers = base.model.config.layers
        dtype = getattr(torch, str(base.model.dtype))
        if same_weights:
            with tempfile.TemporaryDirectory(prefix="feddpa-bench-") as folder:
                save_model(Path(folder), base, lambda path, leaf: leaf)
                frozen = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        else:
            sizes = dict(saved_config(base.hf_config, base.model.config, str(base.model.dtype)))
            sizes = transformers.AutoConfig.for_model(sizes.pop("model_type"), **sizes)
            with torch.device(self.device):
                frozen = transformers.AutoModelForCausalLM.from_config(sizes, dtype=dtype)
        # No penalties or suppressed tokens that the base's file asks for: ours are plain answers.
        frozen.generation_config = transformers.GenerationConfig()
        alpha = config.lora.alpha
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # pyright: ignore
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.targets),
        )
        model: Any = get_peft_model(frozen, lora, adapter_name="global")
        model.add_adapter("local", lora)
        self.model = model.to(self.device)

    def load(self, side: str, adapter: Adapter) -> None:
        """Copies an adapter's factors into "global" or "local"."""
        import torch

        inner = self.model.get_base_model()
        with torch.no_grad():
            for target, pair in adapter.items():
                factors = {name: np.asarray(stack_LXY) for name, stack_LXY in pair.items()}
                for layer in range(self._layers):
                    name, _ = file_name(kernel_path(target, layer), FAMILIES[self._family].names)
                    lora = inner.get_submodule(name.removesuffix(".weight"))
                    for part, module in (("a", lora.lora_A), ("b", lora.lora_B)):
                        value = torch.from_numpy(factors[part][layer].T.copy())
                        module[side].weight.copy_(value)

    def use(self, sides: Sequence[str], *, trains: bool) -> None:
        """Activates adapters; with `trains`, dropout is on and their factors take gradients."""
        self.model.base_model.set_adapter(list(sides))
        self.model.train(trains)

    def mix(self, g: float, l: float) -> None:
        """Sets the weights of the two adapters: g global, l local."""
        from peft.tuners.lora import LoraLayer

        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                layer.set_scale("global", g)
                layer.set_scale("local", l)
