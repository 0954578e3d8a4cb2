"""Models and tokenizers from Hugging Face folders, GGUF files and the hub."""

from feddpa_jax.hf.load import Base, fingerprint, load_base, resolve_dtype
from feddpa_jax.hf.tokenizer import Tokenizer, byte_tokenizer

__all__ = [
    "Base",
    "Tokenizer",
    "byte_tokenizer",
    "fingerprint",
    "load_base",
    "resolve_dtype",
]
