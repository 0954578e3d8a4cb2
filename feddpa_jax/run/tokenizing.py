"""The clients' tokenized training examples: in memory, or from the cache where data are opened."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from feddpa_jax.config import Config
from feddpa_jax.data.data_cache import cached, telling
from feddpa_jax.data.population import Population
from feddpa_jax.data.templates import bound
from feddpa_jax.data.token_file import SEAL, VERSION, TokenizedClients, write_tokens
from feddpa_jax.data.tokenize import TokenCounts, Tokenized
from feddpa_jax.files.problems import with_home
from feddpa_jax.hf.tokenizer import Tokenizer
from feddpa_jax.types import Example, Federation, TokenizedExample, UserError

# Their versions may change a template's text.
_RENDERERS = ("transformers", "jinja2", "tokenizers")

Encode = Callable[[Sequence[Example]], Tokenized]


class Tokens(NamedTuple):
    """What clients train on.

    Attributes:
      training: each client's tokenized examples; none of clients that are not worked on.
      counts: truncated and dropped examples, by client or of all together.
    """

    training: Sequence[tuple[TokenizedExample, ...]]
    counts: tuple[TokenCounts, ...]


def tokenize_clients(
    config: Config,
    tokenizer: Tokenizer,
    federation: Federation,
    encode: Encode,
    only: str | None = None,
) -> Tokens:
    """Tokenizes all clients' training examples, or finds what was tokenized before.

    Args:
      config: names the template, and has lengths.
      tokenizer: the model's.
      federation: the clients.
      encode: tokenizes examples as the configuration has it.
      only: the one client whose examples are wanted; the others may have none then.

    Raises:
      UserError: no example of a client is left.
    """
    if isinstance(federation.clients, Population) and only is None:
        opened = _opened(config, tokenizer, federation.clients, encode)
        return Tokens(opened, (opened.counts,))
    training: list[tuple[TokenizedExample, ...]] = [()] * len(federation.names)
    counts = [TokenCounts()] * len(training)
    for place, name in enumerate(federation.names):
        if only not in (None, name):
            continue
        client = federation.clients[place]
        tokenized = encode(client.train)
        if not tokenized.examples:
            raise UserError(
                f"client {client.name!r}: no example is left within data.max_length = "
                f"{config.data.max_length}; raise it"
            )
        training[place], counts[place] = tokenized.examples, tokenized.counts
    return Tokens(tuple(training), tuple(counts))


def _opened(
    config: Config, tokenizer: Tokenizer, population: Population, encode: Encode
) -> TokenizedClients:
    selection = population.selection
    chooses = selection.max_train is not None or selection.validation > 0
    key = {
        "population": population.digest,
        "max_train": selection.max_train,
        "validation": selection.validation,
        "seed": selection.seed if chooses else None,
        "tokenizer": _of_tokenizer(tokenizer),
        "template": _of_template(config.data.template, tokenizer),
        "max_length": config.data.max_length,
        "encoding": config.data.encoding,
    }

    def build(folder: Path) -> None:
        with telling(f"{config.data.path}: tokenized into the cache, once") as told:
            write_tokens(folder, population, encode, told)

    return TokenizedClients(cached(SEAL, VERSION, key, build))


def _of_tokenizer(tokenizer: Tokenizer) -> str:
    """A digest of all that ids depend on."""
    about = [tokenizer.eos_id, tokenizer.bos_id, tokenizer.chat_template, tokenizer.refused]
    whole = tokenizer.backend.to_str() + repr(about)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _of_template(name: str, tokenizer: Tokenizer) -> str:
    """A digest of a template: its name, the file that it is in, and what it makes of an example."""
    template: Any = bound(name, tokenizer)[0]
    place = with_home(name.partition(".py:")[0])
    try:
        own = place if place.is_file() else inspect.getfile(inspect.unwrap(template))
        code = Path(own).read_bytes()
    except (TypeError, OSError):  # An object, such as a chat template, that its tokenizer has.
        code = b""
    seen = template(Example("Instruct.", "Answer.", "Context.", "task", "category"))
    about = [name, seen, getattr(template, "source", ""), *map(version, _RENDERERS)]
    return hashlib.sha256(repr(about).encode() + code).hexdigest()[:16]
