"""Digests of what a client trains on, and of many clients at once."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from feddpa_jax.types import Client, TokenizedExample


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """A digest of some parts, which tells where one ends: 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def client_digest(client: Client, training: Sequence[TokenizedExample]) -> str:
    """A digest of a client's examples: order, tokens, prompts, tasks; and what is held out."""

    def parts() -> Iterable[bytes]:
        for tokens_T, prompt_length, trained_T in training:
            yield np.append(tokens_T, prompt_length).astype("<i8").tobytes()
            if trained_T is not None:
                yield trained_T.tobytes()
        for example in client.train:
            yield example.task.encode()
        for example in client.validation:
            for text in (example.instruction, example.input, example.output, example.task):
                yield text.encode()
            for turn in example.history:
                yield f"{turn.role} {turn.text}".encode()

    return digest_of_parts(parts())


class DigestOfAll:
    """One digest of many clients', in their order."""

    def __init__(self) -> None:
        """Of no client yet."""
        self._whole = hashlib.sha256()

    def add(self, name: str, digest: str) -> None:
        """Takes a client's name and digest in."""
        self._whole.update(f"{name} {digest}\n".encode())

    def hexdigest(self) -> str:
        """16 hexadecimal digits."""
        return self._whole.hexdigest()[:16]
