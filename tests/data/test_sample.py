"""The sample's answers, by other rules than those that made them; no leaks, whatever the seed."""

import re

import pytest

from feddpa_jax.data.folders import load_federation
from feddpa_jax.data.sample import TASKS, sample_federation, write_sample
from feddpa_jax.types import Example, UserError


def of_task(task: str) -> list[Example]:
    federation = sample_federation(7)
    everything = [e for client in federation.clients for e in client.train] + [*federation.test]
    return [example for example in everything if example.task == task]


def test_grammatical_sentences_have_one_shape():
    places = "park|museum|station|market|library|beach|school|harbour"
    verbs = "sleep|wait|play|rest|stay|hide"
    animals = "dogs|cats|horses|parrots|rabbits|goats|ducks|hamsters"
    shape = rf"The (?!{animals})\w+ ({animals}) ({verbs}) near the ({places})\."
    for example in of_task("word_order"):
        sentence = example.instruction.split('"')[1]
        assert (example.output == "acceptable") == bool(re.fullmatch(shape, sentence)), sentence


def test_question_words_tell_the_kind():
    kinds = {"Who": "human", "Whose": "human", "Where": "location", "In": "location"}
    kinds |= {"How many": "number", "How far": "number", "How does": "description"}
    kinds["Why"] = "description"
    for example in of_task("question_kind"):
        first, second, *_ = example.instruction.split("? ", 1)[1].split()
        assert example.output == kinds.get(first, kinds.get(f"{first} {second}"))


def test_duplicate_questions_are_of_one_place_and_worded_differently():
    places = re.compile("park|museum|station|market|library|beach|school|harbour")
    for example in of_task("visitor_questions"):
        pair = example.instruction.removeprefix("Same question? ").split(" / ")
        first, second = (set(places.findall(question)) for question in pair)
        assert len(first) == len(second) == 1
        assert pair[0] != pair[1]
        if example.output == "duplicate":
            assert first == second


def test_senses_agree_with_each_other():
    """Uses joined by "same sense" never come out as different, however long the chain."""
    examples = of_task("word_meaning")
    parent: dict[str, str] = {}

    def root(use: str) -> str:
        while parent.setdefault(use, use) != use:
            use = parent[use]
        return use

    pairs = [(re.findall('"([^"]+)"', e.instruction)[1:], e.output) for e in examples]
    for (first, second), output in pairs:
        if output == "same sense":
            parent[root(first)] = root(second)
    different = [pair for pair, output in pairs if output == "different sense"]
    assert different
    assert all(root(first) != root(second) for first, second in different)


def test_facts_are_all_in_the_sentence():
    for example in of_task("facts_to_text"):
        facts = example.instruction.removeprefix("Write a sentence: ").split(" | ")
        words = re.findall(r"[A-Za-z0-9']+", example.output)
        named = [fact for fact in facts if fact not in ("owns", "serves", "born")]
        assert all(fact in words for fact in named), example


@pytest.mark.parametrize("seed", range(5))
def test_no_test_instance_is_in_training_not_even_turned_round(seed):
    def content(example: Example) -> frozenset[str]:
        text = example.instruction.removeprefix("Same question? ")
        return frozenset(part.strip('" ') for part in re.split(r"\? \"| / ", text))

    federation = sample_federation(seed)
    for client in federation.clients:
        tests = [example for example in federation.test if example.task == client.tasks[0]]
        assert len(tests) == 24
        assert {content(e) for e in client.train}.isdisjoint(content(e) for e in tests)


def test_more_than_the_rules_make(tmp_path):
    with pytest.raises(UserError, match=r"'visitor_questions' has \d+ different examples"):
        sample_federation(0, train=500)
    with pytest.raises(UserError):
        write_sample(tmp_path / "data", 0, train=500)
    assert not (tmp_path / "data").exists()


def test_sample_is_deterministic_disjoint_and_balanced():
    federation = sample_federation(3)
    assert federation == sample_federation(3)
    assert federation != sample_federation(4)
    assert len(federation.clients) == 8
    for client, (task, _, labels, _) in zip(federation.clients, TASKS, strict=True):
        assert client.tasks == (task,)
        trained = {example.instruction for example in client.train}
        assert len(trained) == 96
        tests = [example for example in federation.test if example.task == task]
        assert len(tests) == 24
        assert trained.isdisjoint(example.instruction for example in tests)
        answers = {example.output for example in client.train}
        if len(answers) == labels:
            counts = [sum(e.output == a for e in client.train) for a in answers]
            assert max(counts) - min(counts) <= 1
        assert max(len(e.instruction + e.output) for e in client.train) < 170


def test_sample_answers_are_right():
    """Checked against the words of the question by other rules than those that made it."""
    by_task = {client.tasks[0]: client.train for client in sample_federation(0).clients}
    for example in by_task["fit_coreference"]:
        item, box = (part.split()[0] for part in example.instruction.split(" the ")[0:2])
        words = example.instruction.replace(".", "").replace("?", "").split()
        item, box = words[1], words[words.index("because") - 1]
        big = words[words.index("too") + 1] in ("big", "large", "wide")
        assert example.output == f"the {item if big else box}"
    for example in by_task["has_entailment"]:
        premise, rest = example.instruction.split(". Does it follow that ")
        claim = rest.rstrip("?").split()
        thing = claim[-1]
        expected = "it is not possible to tell"
        if thing == premise.split()[-1]:
            expected = "no" if claim[2] == "no" else "yes"
        assert example.output == expected
    for example in by_task["fix_punctuation"]:
        plain = "".join(c for c in example.output if c not in ".,?").lower()
        assert example.instruction.endswith(f": {plain}")
        assert example.output[-1] in ".?"


def test_written_sample_loads_equal(tmp_path):
    write_sample(tmp_path / "data", 5)
    assert load_federation(str(tmp_path / "data")) == sample_federation(5)
