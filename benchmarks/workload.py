"""What is measured: equal numbers of updates of the configured clients, and instances to answer."""

import dataclasses

import numpy as np

from feddpa_jax.config import Config
from feddpa_jax.run.inputs import Prepared, encode, training_data
from feddpa_jax.training.rounds import TrainingData
from feddpa_jax.types import TokenizedExample, UserError, client_id

# A client's local training: its updates, each a list of micro-batches of examples.
Updates = list[list[list[TokenizedExample]]]


def fixed_updates(config: Config, prepared: Prepared, updates: int) -> TrainingData:
    """Every configured client with examples for so many updates, drawn from its own.

    Clients with fewer examples have some twice. One epoch, and all clients take part.
    """
    data = training_data(config, prepared)
    examples = []
    for name, own in zip(data.names, data.examples, strict=True):
        order = np.random.default_rng([data.seed, client_id(name), 4]).permutation(len(own))
        examples.append(tuple(own[i] for i in np.resize(order, updates * data.batch_size).tolist()))
    return dataclasses.replace(data, examples=tuple(examples), epochs=1, participation=1.0)


def first_part(data: TrainingData, *, clients: int, updates: int) -> TrainingData:
    """The first clients of a workload, with so many updates each."""
    count = updates * data.batch_size
    examples = tuple(own[:count] for own in data.examples[:clients])
    return dataclasses.replace(data, names=data.names[:clients], examples=examples)


def alike_clients(data: TrainingData, clients: int, updates: int) -> TrainingData:
    """As many clients as asked for, each with examples drawn from those of all.

    So the cost per client depends on how many there are, not on who they are.
    """
    pool = [example for own in data.examples for example in own]
    count = updates * data.batch_size
    order = np.random.default_rng([data.seed, 5]).permutation(len(pool))
    order = np.resize(order, clients * count).reshape(clients, count)
    return dataclasses.replace(
        data,
        names=tuple(f"client_{c}" for c in range(clients)),
        examples=tuple(tuple(pool[i] for i in own) for own in order),
    )


def trainings(data: TrainingData) -> dict[str, Updates]:
    """The local training of every client in the first round's global phase, by name."""
    return {
        name: [
            [[data.examples[client][i] for i in micro] for micro in update]
            for update in data.updates_of(client, 0, "global")
        ]
        for client, name in enumerate(data.names)
    }


def asked(example: TokenizedExample, eos_id: int) -> TokenizedExample:
    """A prompt without its response; the end token stands in, as embeddings are of prompts."""
    tokens_T = np.append(example.tokens_T[: example.prompt_length], eos_id).astype(np.int32)
    return TokenizedExample(tokens_T, example.prompt_length)


def test_instances(config: Config, prepared: Prepared, count: int) -> list[TokenizedExample]:
    """So many test instances, drawn from those of all tasks.

    Raises:
      UserError: there are not so many.
    """
    test = encode(config, prepared.base.tokenizer, prepared.federation.test).examples
    if len(test) < count:
        raise UserError(
            f"--instances: {count} are asked for, and {config.data.path} has {len(test)} test "
            "instances within data.max_length; lower --instances or use --instances 0"
        )
    order = np.random.default_rng([config.seed, 6]).permutation(len(test))
    return [test[i] for i in order[:count]]
