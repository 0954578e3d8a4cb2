"""The registry of metrics: what an answer is scored by.

@METRICS.register(title="words too many", lower_is_better=True)
def surplus(prediction, target): ...      # two texts -> a number
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from feddpa_jax.evaluate.words import words
from feddpa_jax.files.own_files import fails
from feddpa_jax.registry import Registry
from feddpa_jax.types import UserError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

    from feddpa_jax.evaluate.interval import Estimate, Interval
    from feddpa_jax.inference.scorer import Scores


class Metric(NamedTuple):
    """What an answer is scored by, and how that is told. Either `score` or `of_scores` is given.

    Attributes:
      title: its name and unit.
      digits: after the point, in tables.
      fine_digits: the same where things that hardly differ stand side by side.
      lower_is_better: whether a low score is a good one.
      score: `(prediction, target) -> score` of an answer's text.
      unanswered: the score of an answer whose text is known to differ from the target, which is
        then not generated; None if every answer's text is needed.
      of_scores: `Scores -> float array [R]`, from the model's scores of the target, without text.
      span: scores are from 0 to this; None if they may be anything. Where all answers agree,
        intervals rest on it.
    """

    title: str
    digits: int = 2
    fine_digits: int = 2
    lower_is_better: bool = False
    score: Callable[[str, str], float] | None = None
    unanswered: float | None = None
    of_scores: Callable[["Scores"], np.ndarray] | None = None
    span: float | None = None

    @property
    def generates(self) -> bool:
        """Whether it needs the text of every answer."""
        return self.score is not None and self.unanswered is None

    @property
    def heading(self) -> str:
        """The title at the head of a line."""
        return self.title[0].upper() + self.title[1:]

    @property
    def short(self) -> str:
        """The title without its unit, inside a sentence."""
        return self.title.split(",")[0]

    def cell(self, value: "Estimate | Interval", *, fine: bool = False) -> str:
        """A value with its intervals as tables show it.

        >>> from feddpa_jax.evaluate.interval import Interval
        >>> METRICS["nll"].cell(Interval(0.5, 0.25, 0.75))
        '0.50 [0.25, 0.75]'
        """
        return value.text(self.fine_digits if fine else self.digits)

    @property
    def better(self) -> str:
        """Which scores are the better ones: "lower" or "higher"."""
        return "lower" if self.lower_is_better else "higher"


def _metric(given: Any, **told: Any) -> Metric:
    """A metric as it is registered: one already, or a function of prediction and target."""
    if isinstance(given, Metric):
        return given._replace(**told)
    if not callable(given):
        raise TypeError("a metric is a function of prediction and target, or a Metric")
    told = {"title": getattr(given, "__name__", "a metric").replace("_", " "), **told}
    return Metric(**{"fine_digits": told.get("digits", 2), **told}, score=cast(Any, given))


METRICS: Registry[Metric] = Registry(
    "metric", "eval.metrics", group="feddpa_jax.metrics", wrap=_metric
)


def told(name: str, known: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> Metric:
    """How a metric is told, also one of the user's own, whose file is not run.

    Args:
      name: as of `METRICS.find`.
      known: what a summary.json says of own metrics, its "metrics".

    >>> told("my.py:words").title, told("my.py:words", {"my.py:words": {"title": "words, %"}}).title
    ('words', 'words, %')
    """
    if name in METRICS:
        return METRICS[name]
    return Metric(**{"title": name.rpartition(":")[2], **known.get(name, {})})


def in_order(names: Iterable[str]) -> list[str]:
    """Metrics in the order in which they are shown: the registered ones first.

    >>> in_order(["my.py:words", "nll", "rouge1"])
    ['rouge1', 'nll', 'my.py:words']
    """
    names = list(names)
    return [name for name in METRICS if name in names] + [n for n in names if n not in METRICS]


def about(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How metrics that the package does not bring are told, for `told` where they are not known."""
    fields = ("title", "digits", "fine_digits", "lower_is_better", "span")
    found = {name: METRICS.find(name) for name in names}
    return {
        name: {field: getattr(metric, field) for field in fields}
        for name, metric in found.items()
        if getattr(metric.score or metric.of_scores, "__module__", None) != __name__
    }


def score_texts(name: str, pairs: Sequence[tuple[str | None, str]]) -> np.ndarray:
    """The scores of predictions for targets by a metric that has a `score`, float [R].

    Args:
      name: as of `METRICS.find`.
      pairs: prediction, None where it is known to differ and was not generated; and target.

    Raises:
      UserError: the metric fails, or gives something else than finite numbers.
    """
    metric = METRICS.find(name)
    assert metric.score is not None
    found = np.zeros(len(pairs))
    for place, (prediction, target) in enumerate(pairs):
        if prediction is None and metric.unanswered is not None:
            found[place] = metric.unanswered
            continue
        try:
            found[place] = metric.score(prediction or "", target)
        except Exception as error:
            raise fails("eval.metrics", name, error) from None
        if not np.isfinite(found[place]):
            raise UserError(
                f"eval.metrics: {name} gave {found[place]} for {(prediction or '')[:60]!r}; a "
                "metric gives a finite number for every answer"
            )
    return found


class _Words:
    """The tokenizer that `RougeScorer` asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer() -> "RougeScorer":
    # It imports nltk: only where it is needed.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], tokenizer=_Words())


@METRICS.register(title="ROUGE-1", digits=1, span=100.0)
def rouge1(prediction: str, target: str) -> float:
    """ROUGE-1 F1 in percent, without stemming; blind to case and punctuation.

    The words are those of `words`; 0 where the target or the prediction has none.

    >>> round(rouge1("the cat sat", "The cat."), 1)
    80.0
    """
    return 100.0 * _scorer().score(target, prediction)["rouge1"].fmeasure


def without_words(targets: Sequence[str]) -> int:
    """How many targets have no word.

    >>> without_words(["yes", "...", "。"])
    2
    """
    return sum(not words(target) for target in targets)


def without_words_note(count: int) -> str:
    """A sentence that says what ROUGE-1 is worth for so many targets; empty for none.

    >>> without_words_note(2)
    '2 test targets have no word, only punctuation: ROUGE-1 is 0 for them whatever the answer.'
    """
    if not count:
        return ""
    targets, them = ("target has", "it") if count == 1 else ("targets have", "them")
    return (
        f"{count} test {targets} no word, only punctuation: ROUGE-1 is 0 for {them} whatever the "
        "answer."
    )


@METRICS.register(title="exact match, %", digits=1, unanswered=0.0, span=100.0)
def exact_match(prediction: str, target: str) -> float:
    r"""100 if the texts are the same, else 0; only white space at the end of both is ignored.

    >>> exact_match("yes\n", "yes"), exact_match(" yes", "yes")
    (100.0, 0.0)
    """
    return 100.0 * (prediction.rstrip() == target.rstrip())


METRICS.register(
    "nll",
    Metric("response NLL, nats", 2, 3, lower_is_better=True, of_scores=lambda scores: scores.nll_I),
)
