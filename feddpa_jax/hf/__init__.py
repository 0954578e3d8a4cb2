"""Models and tokenizers from Hugging Face folders, GGUF files and the hub."""

from feddpa_jax.hf.load import LoadedModel, fingerprint, load_model, resolve_dtype
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer

__all__ = [
    "LoadedModel",
    "Tokenizer",
    "byte_tokenizer",
    "fingerprint",
    "load_model",
    "resolve_dtype",
]
