"""The built-in sample: eight small tasks in the spirit of the paper's data set 1, one client each.

Every example follows from a seed through word lists and rules, so its answer is right by
construction. Each task has its own way to answer, as FLAN's tasks have: that is what a client's own
adapter can learn and a shared one must guess.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from feddpa_jax.files.disk import make_folder, write_whole
from feddpa_jax.types import Client, Example, Federation, UserError, client_id

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jack")
_COLORS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
_THINGS = ("car", "bike", "lamp", "coat", "table", "kite", "boat", "phone", "guitar", "hat")
_ANIMALS = ("dog", "cat", "horse", "parrot", "rabbit", "goat", "duck", "hamster")
_PLACES = ("park", "museum", "station", "market", "library", "beach", "school", "harbour")

# Instruction, answer, and the content that no other example may have again.
Drawn = tuple[str, str, object]
Draw = Callable[[np.random.Generator, int], Drawn]


def _pick(rng: np.random.Generator, words: tuple) -> str:
    return words[rng.integers(len(words))]


def _two(rng: np.random.Generator, words: tuple) -> tuple:
    i, j = rng.choice(len(words), 2, replace=False)
    return words[i], words[j]


def _coreference(rng: np.random.Generator, label: int) -> Drawn:
    items = ("trophy", "piano", "lamp", "statue", "violin", "ladder", "sofa", "globe", "drum")
    boxes = ("suitcase", "box", "car", "drawer", "bag", "crate", "closet", "trunk", "basket")
    item, box = _pick(rng, items), _pick(rng, boxes)
    verb = _pick(rng, ("did not fit into", "could not go into", "would not fit in"))
    size = (("big", "large", "wide"), ("small", "tiny", "narrow"))[label]
    answer = (item, box)[label]
    text = f"The {item} {verb} the {box} because it was too {_pick(rng, size)}. What was?"
    return text, f"the {answer}", text


def _entailment(rng: np.random.Generator, label: int) -> Drawn:
    name, color = _pick(rng, _NAMES), _pick(rng, _COLORS)
    thing, other = _two(rng, _THINGS)
    premise = f"{name} has a {color} {thing}."
    hypothesis = (
        f"{name} has a {thing}.",
        f"{name} has no {thing}.",
        f"{name} has a {other}.",
    )[label]
    answer = ("yes", "no", "it is not possible to tell")[label]
    text = f"{premise} Does it follow that {hypothesis[:-1]}?"
    return text, answer, text


def _acceptability(rng: np.random.Generator, label: int) -> Drawn:
    adjective = _pick(rng, ("old", "young", "small", "tall", "quiet", "happy", *_COLORS))
    animal, place = _pick(rng, _ANIMALS), _pick(rng, _PLACES)
    verb = _pick(rng, ("sleep", "wait", "play", "rest", "stay", "hide"))
    wrong = int(rng.integers(3))
    if label == 0:
        text = f"The {adjective} {animal}s {verb} near the {place}."
    elif wrong == 0:
        text = f"The {adjective} {animal}s {verb}s near the {place}."
    elif wrong == 1:
        text = f"The {animal}s {adjective} {verb} near the {place}."
    else:
        text = f"The {adjective} {animal}s {verb} the {place} near."
    answer = ("acceptable", "unacceptable")[label]
    return f'Is this sentence grammatical? "{text}"', answer, text


def _paraphrase(rng: np.random.Generator, label: int) -> Drawn:
    kinds = (
        ("How do I get to the {}?", "What is the way to the {}?"),
        ("When does the {} open?", "At what time does the {} open?"),
        ("How much is a ticket for the {}?", "What does a ticket for the {} cost?"),
        ("Who built the {}?", "By whom was the {} built?"),
        ("Is the {} open on Sundays?", "Can I visit the {} on a Sunday?"),
        ("How old is the {}?", "What is the age of the {}?"),
        ("Where is the {}?", "In which place is the {}?"),
        ("Why is the {} closed?", "For what reason is the {} closed?"),
        ("Can I walk to the {}?", "Is it possible to go to the {} on foot?"),
        ("How big is the {}?", "What is the size of the {}?"),
    )
    place, other = _two(rng, _PLACES)
    kind, another = _two(rng, kinds)
    flip = int(rng.integers(2))
    first = kind[flip].format(place)
    if label == 0:
        second = kind[1 - flip].format(place)
    elif rng.integers(2):
        second = kind[1 - flip].format(other)
    else:
        second = another[flip].format(place)
    answer = ("duplicate", "not duplicate")[label]
    return f"Same question? {first} / {second}", answer, frozenset((first, second))


def _question_class(rng: np.random.Generator, label: int) -> Drawn:
    name, thing, animal = _pick(rng, _NAMES), _pick(rng, _THINGS), _pick(rng, _ANIMALS)
    place, color = _pick(rng, _PLACES), _pick(rng, _COLORS)
    questions = (
        (
            f"Who sold the {color} {thing} at the {place}?",
            f"Whose {animal} ran to the {place}?",
            f"Who lent {name} a {color} {thing}?",
        ),
        (
            f"Where did {name} leave the {color} {thing}?",
            f"Where does {name}'s {animal} sleep?",
            f"In which town is {name}'s {place}?",
        ),
        (
            f"How many {thing}s does {name} own?",
            f"How many {animal}s live near the {place}?",
            f"How far is the {place} from {name}'s home?",
        ),
        (
            f"Why did {name} paint the {thing} {color}?",
            f"How does {name}'s {thing} work?",
            f"Why is {name}'s {animal} at the {place}?",
        ),
    )[label]
    answer = ("human", "location", "number", "description")[label]
    question = _pick(rng, questions)
    return f"What kind of answer is asked for? {question}", answer, question


def _structure_to_text(rng: np.random.Generator, label: int) -> Drawn:
    name, place = _pick(rng, _NAMES), _pick(rng, _PLACES)
    color, thing = _pick(rng, _COLORS), _pick(rng, _THINGS)
    food = _pick(rng, ("Italian", "French", "Indian", "Thai", "Greek", "Polish"))
    job = _pick(rng, ("painter", "pilot", "singer", "writer", "doctor", "farmer"))
    year = int(rng.integers(1900, 2000))
    facts, answer = (
        (f"{name} | owns | {thing} | {color}", f"{name} is the owner of a {color} {thing}."),
        (
            f"{name}'s | serves | {food} | {place}",
            f"{name}'s is a place for {food} food near the {place}.",
        ),
        (f"{name} | born | {year} | {job}", f"{name} is a {job} who was born in {year}."),
    )[label]
    return f"Write a sentence: {facts}", answer, facts


def _punctuation(rng: np.random.Generator, label: int) -> Drawn:
    name, other = _two(rng, _NAMES)
    place, thing = _pick(rng, _PLACES), _pick(rng, _THINGS)
    sentence = (
        (
            f"Yesterday {name} met {other} at the {place}.",
            f"{name} and {other} lost the {thing}, but {other} found it.",
            f"On Monday {name} took the {thing} to the {place}.",
        ),
        (
            f"Did {name} see {other} at the {place}?",
            f"{name}, where is the {thing}?",
            f"Why did {name} bring a {thing} to the {place}?",
        ),
    )[label]
    right = _pick(rng, sentence)
    plain = "".join(c for c in right if c not in ".,?").lower()
    return f"Add punctuation and capitals: {plain}", right, plain


# Three uses of each of two senses.
_SENSES = {
    "bank": (
        ("the bank of the river", "the boat reached the muddy bank", "fish near the bank"),
        ("the bank gave a loan", "put money in the bank", "the bank opens at nine"),
    ),
    "bat": (
        ("a bat flew out of the cave", "the bat sleeps upside down", "a bat eats insects"),
        ("swung the wooden bat", "hit the ball with a bat", "a new cricket bat"),
    ),
    "spring": (
        ("flowers bloom in spring", "spring follows winter", "a warm day in spring"),
        ("the spring in the mattress", "a coiled steel spring", "oil the rusty spring"),
    ),
    "light": (
        ("the box is light", "a light and easy load", "light as a feather"),
        ("turn on the light", "the light of the lamp", "a ray of light"),
    ),
    "match": (
        ("won the tennis match", "the match ended in a draw", "a football match"),
        ("lit the fire with a match", "a box with one match left", "strike a match"),
    ),
    "ring": (
        ("a gold ring on the finger", "lost the wedding ring", "a ring with a diamond"),
        ("the phone will ring", "heard the bell ring", "ring me tomorrow"),
    ),
    "wave": (
        ("a wave hit the ship", "surfed on a big wave", "the wave broke on the shore"),
        ("wave to the crowd", "wave goodbye at the door", "saw them wave a flag"),
    ),
    "bark": (
        ("the dog will bark", "heard a loud bark at night", "a bark scared the thief"),
        ("the bark of the tree", "rough brown bark of an oak", "peel off the bark"),
    ),
    "palm": (
        ("the palm of the hand", "held it in his palm", "a sweaty palm"),
        ("a palm on the beach", "coconuts fell from the palm", "the tall green palm"),
    ),
    "seal": (
        ("the seal ate a fish", "a seal swam by the ice", "the baby seal"),
        ("the seal on the letter", "broke the wax seal", "stamped with the royal seal"),
    ),
    "nail": (
        ("hammered the nail", "a rusty nail in the wall", "hung it on a nail"),
        ("painted her nail", "bit a nail in fear", "cut the nail of the thumb"),
    ),
    "trunk": (
        ("the elephant's trunk", "lifted it with its trunk", "a grey and long trunk"),
        ("packed the trunk", "locked the old trunk", "a trunk full of clothes"),
    ),
}


def _word_sense(rng: np.random.Generator, label: int) -> Drawn:
    word = _pick(rng, tuple(_SENSES))
    sense = int(rng.integers(2))
    uses = _SENSES[word]
    if label == 0:
        first, second = _two(rng, uses[sense])
    else:
        first, second = _pick(rng, uses[sense]), _pick(rng, uses[1 - sense])
    text = f'Does "{word}" mean the same? "{first}" / "{second}"'
    return text, ("same sense", "different sense")[label], frozenset((first, second))


# Task, category, number of labels, and how an example of a label is drawn.
TASKS: tuple[tuple[str, str, int, Draw], ...] = (
    ("fit_coreference", "coreference", 2, _coreference),
    ("has_entailment", "entailment", 3, _entailment),
    ("word_order", "linguistic_acceptability", 2, _acceptability),
    ("visitor_questions", "paraphrase", 2, _paraphrase),
    ("question_kind", "question_classification", 4, _question_class),
    ("facts_to_text", "structure_to_text", 3, _structure_to_text),
    ("fix_punctuation", "text_formatting", 2, _punctuation),
    ("word_meaning", "word_disambiguation", 2, _word_sense),
)


def _draws(task: int, seed: int) -> Iterator[Example]:
    """Different examples of a task, labels in turn; ends when no new one is found."""
    name, category, labels, draw = TASKS[task]
    rng = np.random.default_rng([seed, client_id(name)])
    seen: set[object] = set()
    number = 0
    while True:
        for _ in range(1000):
            instruction, output, content = draw(rng, number % labels)
            if content not in seen:
                break
        else:
            return
        seen.add(content)
        number += 1
        yield Example(instruction, output, task=name, category=category)


def sample_federation(seed: int, *, train: int = 96, test: int = 24) -> Federation:
    """Eight clients, client_0 to client_7, with one task each.

    Args:
      seed: every example follows from it.
      train: training examples per client.
      test: test instances per task; none of them is in training.

    Raises:
      UserError: the rules cannot make that many different examples.
    """
    clients, tests = [], []
    for k, (name, *_) in enumerate(TASKS):
        examples = [e for e, _ in zip(_draws(k, seed), range(train + test), strict=False)]
        if len(examples) < train + test:
            raise UserError(
                f"sample data: task {name!r} has {len(examples)} different examples, "
                f"fewer than train + test = {train + test}; ask for fewer"
            )
        clients.append(Client(f"client_{k}", tuple(examples[test:])))
        tests += examples[:test]
    return Federation(tuple(clients), tuple(tests))


def write_sample(folder: Path, seed: int, *, train: int = 96, test: int = 24) -> None:
    """Writes the sample in the paper's layout: `8/local_training_{k}.json`, `sample_test.jsonl`."""
    federation = sample_federation(seed, train=train, test=test)
    make_folder(folder / "8")

    def record(example: Example) -> dict[str, str]:
        return {
            "instruction": example.instruction,
            "output": example.output,
            "task": example.task,
            "category": example.category,
        }

    for k, client in enumerate(federation.clients):
        records = [record(example) for example in client.train]
        path = folder / "8" / f"local_training_{k}.json"
        write_whole(path, json.dumps(records, indent=1) + "\n")
    lines = [json.dumps(record(example)) + "\n" for example in federation.test]
    write_whole(folder / "sample_test.jsonl", "".join(lines))
