"""Word problems of two to five steps, their worked solutions, and the check of an answer.

The demo pair is trained on these problems and evaluated on others of the same kind. A solution quotes
each sentence of the question and then computes:

    Ida fills 28 bags with 4 coins each, so 28 * 4: 20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112.
    Tom gives her 93 more, so 112 + 93: 112 + 90 = 202, 202 + 3 = 205.

Every value is within 0..999. Markers, tokens and models are unknown here.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["add", "subtract", "table", "multiply", "divide"]

MAX_VALUE = 999
HARD_KINDS: frozenset[Kind] = frozenset({"multiply", "divide"})
EVALUATION_HARD_RATE = 0.8
"""See `problem`: in evaluation six problems of ten have a hard step, in training a few more."""


@dataclass(frozen=True)
class Step:
    """One computation. `quote` + `expression` lead to it, `working` carries it out."""

    kind: Kind
    quote: str  # "Tom gives her 93 more, so", or "That makes" where the sentence has been quoted already
    expression: str  # "112 + 93"
    working: str  # "112 + 90 = 202, 202 + 3 = 205", or only "205" where one equation is enough
    result: int

    @property
    def lead(self) -> str:
        """The line up to where the working begins: the place where help may be asked for."""
        return f"{self.quote} {self.expression}{':' if '=' in self.working else ' ='}"

    @property
    def span(self) -> str:
        """The working as it follows the lead, up to and with the result: no full stop."""
        return f" {self.working}"


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    steps: tuple[Step, ...]
    given: str = ""  # the first sentence where it only states a number, "" where it is a step itself


def problems(seed: int, n: int) -> list[Problem]:
    """The n evaluation problems of a seed. Training draws from `training_rng`, which no seed can meet."""
    rng = random.Random(f"sr-edge demo eval {seed}")
    return [problem(rng, hard_rate=EVALUATION_HARD_RATE) for _ in range(n)]


def training_rng(seed: int, stage: str) -> random.Random:
    return random.Random(f"sr-edge demo train {seed} {stage}")


def problem(rng: random.Random, *, hard_rate: float = 1.0) -> Problem:
    """One problem.

    Args:
        hard_rate: where a hard step could come, the probability that it may. Training has them all.
    """
    story = _Story(rng, hard_rate)
    story.open()
    num_steps = rng.choices((2, 3, 4, 5), (30, 35, 22, 13))[0]
    while len(story.steps) < num_steps:
        story.go_on(num_steps - len(story.steps))
    return story.close()


def solution_text(problem: Problem) -> str:
    """The reasoning, one line a sentence, without markers: what stands between <think> and </think>."""
    given = f"{problem.given}\n" if problem.given else ""
    return given + "".join(f"{step.lead}{step.span}.\n" for step in problem.steps)


def wording(step: Step) -> str:
    """How the step's sentence is worded: "gives more so" for "Tom gives her 93 more, so"."""
    left_out = {*_THINGS, *_CONTAINERS, "she", "he", "her", "him"}
    return " ".join(word for word in re.findall(r"\b[a-z]+\b", step.quote) if word not in left_out)


def is_correct(problem: Problem, boxed: str | None) -> bool:
    """Whether the content of the last box is the answer; None says that there was no box."""
    return boxed is not None and boxed.strip() == problem.answer


def unknown_words(question: str) -> list[str]:
    """What the task's lexicon lacks, in order, each once: words, symbols, and numbers above 999."""
    parts = re.findall(r"\d[\d.,]*\d|\d|[^\W\d_]+|[^\w\s]|_", question)
    unknown = [part for part in parts if not _is_known(part)]
    return list(dict.fromkeys(unknown))


def add_working(a: int, b: int) -> str:
    """112, 93 -> "112 + 90 = 202, 202 + 3 = 205"; 112, 3 -> "115"."""
    return _by_places(a, b, "+", lambda x, y: x + y)


def subtract_working(a: int, b: int) -> str:
    """205, 67 -> "205 - 60 = 145, 145 - 7 = 138"; 205, 60 -> "145"."""
    return _by_places(a, b, "-", lambda x, y: x - y)


def multiply_working(a: int, b: int) -> str:
    """28, 4 -> "20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112"; 40, 3 -> "120"; 6, 7 -> "42"."""
    tens, units = a // 10 * 10, a % 10
    if not tens or not units:
        return str(a * b)
    return f"{tens} * {b} = {tens * b}, {units} * {b} = {units * b}, {tens * b} + {units * b} = {a * b}"


def divide_working(a: int, b: int) -> str:
    """162, 6 -> "120 / 6 = 20, 42 / 6 = 7, 20 + 7 = 27"; 120, 6 -> "20"; 42, 6 -> "7"."""
    assert a % b == 0, "only exact divisions have a working"
    tens, units = a // b // 10 * 10, a // b % 10
    if not tens or not units:
        return str(a // b)
    return f"{tens * b} / {b} = {tens}, {units * b} / {b} = {units}, {tens} + {units} = {a // b}"


# --- the words ---------------------------------------------------------------------------------------

_SHE = ("Ida", "Anna", "Mia", "Eva", "Nora", "Lucy", "Rosa", "Clara", "Jane", "Emma")
_HE = ("Tom", "Ben", "Leo", "Max", "Paul", "Omar", "Karl", "Finn", "Hugo", "Sam")
_THINGS = (
    "coins", "apples", "stamps", "cards", "shells", "books", "pencils", "marbles",
    "nuts", "beads", "stickers", "buttons", "lemons", "candles",
)  # fmt: skip
_CONTAINERS = ("bags", "boxes", "jars", "baskets", "tins", "bowls", "crates", "trays", "packs")

_GIVEN = (
    "{N} has {a} {t}.",
    "{N} starts with {a} {t}.",
    "{N} owns {a} {t}.",
    "There are {a} {t} on the table of {N}.",
    "{N} finds {a} {t} at home.",
)
_GROUPS_FIRST = (
    "{N} fills {a} {c} with {b} {t} each.",
    "{N} has {a} {c} with {b} {t} in each.",
    "There are {a} {c} with {b} {t} each.",
    "{N} buys {a} {c} of {b} {t} each.",
)
_ADD = (
    "{M} gives {her} {b} more.",
    "{N} buys {b} more.",
    "{N} finds another {b}.",
    "A gift brings {b} more.",
    "Then {she} wins {b} {t} in a game.",
    "Another {b} {t} come by post.",
)
_SUBTRACT = (
    "{N} loses {b} of them.",
    "{N} gives {b} to {M}.",
    "Then {she} sells {b} {t}.",
    "{M} takes {b} of them.",
    "{N} throws away {b}.",
    "At school {b} {t} get lost.",
)
_GROUPS_MORE = (
    "{M} brings {a} {c} with {b} {t} each.",
    "{N} buys {a} more {c} of {b} {t} each.",
    "Then {a} {c} come, each with {b} {t}.",
    "A shop sends {a} {c} with {b} {t} in each.",
)
_GROUPS_LESS = (
    "{N} gives {a} friends {b} {t} each.",
    "Then {she} sells {a} {c} with {b} {t} in each.",
    "{M} takes {a} {c} of {b} {t} each.",
    "At school {a} {c} with {b} {t} each get lost.",
)
_TIMES = {
    2: ("{N} doubles the number of {t}.", "Then {she} gets as many again.", "{M} makes it twice as many."),
    3: ("{N} triples the number of {t}.", "{M} makes it three times as many."),
}
_DIVIDE = (
    "{N} splits them into {b} equal parts and keeps one.",
    "{N} puts them equally into {b} {c} and keeps one.",
    "{M} leaves {her} only one of {b} equal parts.",
    "Then {she} makes {b} equal piles and sells all but one.",
)
_HALVE = ("{N} gives half of them to {M}.", "Half of the {t} get lost.", "Then {she} sells half of them.")
_SHARE = (
    "{N} shares them equally among {b} friends.",
    "Then {b} friends share them equally.",
    "{N} deals them out equally to {b} friends.",
    "They are shared equally by {b} children.",
)
_ASK = (
    "How many {t} does {N} have now?",
    "How many {t} does {N} have in the end?",
    "How many {t} are there now?",
    "What is the number of {t} in the end?",
    "Find the number of {t} that {N} has now.",
)
_ASK_SHARE = (
    "How many {t} does each of them get?",
    "What does each of them get?",
    "How many {t} are there for each?",
    "Find the share of each.",
)


class _Story:
    """A problem under construction: the running total, and the sentences that led to it."""

    def __init__(self, rng: random.Random, hard_rate: float) -> None:
        self.steps: list[Step] = []
        self._rng = rng
        self._hard_rate = hard_rate
        self._sentences: list[str] = []
        self._given = ""
        self._total = 0
        self._is_shared = False
        name = rng.choice(_SHE + _HE)
        self._words = {
            "N": name,
            "she": "she" if name in _SHE else "he",
            "her": "her" if name in _SHE else "him",
            "t": rng.choice(_THINGS),
        }

    def open(self) -> None:
        if self._rng.random() < 0.65:
            self._total = self._rng.randint(12, 199)
            self._given = self._say(_GIVEN, a=self._total)
        else:
            self._groups(_GROUPS_FIRST)

    def go_on(self, room: int) -> None:
        """Add the next sentence, of one step or two; no sentence where the one drawn does not fit."""
        draw = self._rng.random()
        is_hard_due = self._is_hard_due()
        if draw < 0.33 and self._total < MAX_VALUE:
            b = self._amount(MAX_VALUE - self._total)
            self._compute("add", self._say(_ADD, b=b), b)
        elif draw < 0.62 and self._total > 10:
            b = self._amount(self._total - 1)
            self._compute("subtract", self._say(_SUBTRACT, b=b), b)
        elif draw < 0.74 and room >= 2:
            self._groups(_GROUPS_MORE)
        elif draw < 0.80 and room >= 2 and self._total >= 60:
            self._groups(_GROUPS_LESS, is_loss=True)
        elif draw < 0.85 and 10 <= self._total <= 99 and is_hard_due:
            factor = self._rng.choice((2, 2, 3))
            self._compute("multiply", self._say(_TIMES[factor]), factor)
        elif draw >= 0.85 and is_hard_due:
            self._divide(is_last=room == 1)

    def close(self) -> Problem:
        self._say(_ASK_SHARE if self._is_shared else _ASK)
        return Problem(" ".join(self._sentences), str(self._total), tuple(self.steps), self._given)

    def _groups(self, wordings: tuple[str, ...], is_loss: bool = False) -> None:
        """So many containers with so many things each: a product, then added or taken away."""
        is_first = not self._sentences
        limit = self._total - 1 if is_loss else MAX_VALUE - self._total
        a, b = self._factors()
        if a * b > limit:
            return
        two_digits, one_digit = max(a, b), min(a, b)  # the same order as `multiply_working`
        if two_digits < 10:
            two_digits, one_digit = a, b
        total, product = self._total, a * b
        self._total = two_digits
        kind: Kind = "table" if two_digits < 10 else "multiply"
        self._compute(kind, self._say(wordings, a=a, b=b), one_digit)
        if not is_first:
            self._total = total
            self._compute(
                "subtract" if is_loss else "add", "That leaves" if is_loss else "That makes", product
            )

    def _is_hard_due(self) -> bool:
        """One hard step a problem is the rule: what a span is worth shows best where few are needed."""
        if self._hard_rate < 1 and self._rng.random() >= self._hard_rate:
            return False
        has_one = any(step.kind in HARD_KINDS for step in self.steps)
        return not has_one or self._rng.random() < 0.12

    def _factors(self) -> tuple[int, int]:
        """Two factors, in the order of the sentence: two one-digit ones, or one of two digits."""
        rng = self._rng
        if rng.random() < 0.35 or not self._is_hard_due():
            return rng.randint(2, 9), rng.randint(2, 9)
        large = rng.randint(2, 9) * 10 if rng.random() < 0.12 else rng.randint(11, 59)
        small = rng.randint(2, 9)
        return (large, small) if rng.random() < 0.5 else (small, large)

    def _divide(self, is_last: bool) -> None:
        divisors = [k for k in range(2, 10) if self._total % k == 0 and 2 <= self._total // k <= 99]
        if not divisors:
            return
        k = self._rng.choice(divisors)
        self._is_shared = is_last and self._rng.random() < 0.5
        wordings = _SHARE if self._is_shared else _HALVE if k == 2 else _DIVIDE
        self._compute("divide", self._say(wordings, b=k), k)

    def _compute(self, kind: Kind, sentence: str, b: int) -> None:
        a = self._total
        sign, working, result = {
            "add": ("+", add_working, a + b),
            "subtract": ("-", subtract_working, a - b),
            "table": ("*", multiply_working, a * b),
            "multiply": ("*", multiply_working, a * b),
            "divide": ("/", divide_working, a // b),
        }[kind]
        quote = f"{sentence[:-1]}, so" if sentence.endswith(".") else sentence
        self.steps.append(Step(kind, quote, f"{a} {sign} {b}", working(a, b), result))
        self._total = result

    def _amount(self, limit: int) -> int:
        """Mostly of two digits, now and then of one or a round ten."""
        draw = self._rng.random()
        low, high = (2, 9) if draw < 0.2 else (10, 99)
        return min(limit, self._rng.randint(low, high))

    def _say(self, wordings: tuple[str, ...], **numbers: int) -> str:
        others = [name for name in _SHE + _HE if name != self._words["N"]]
        words = {"M": self._rng.choice(others), "c": self._rng.choice(_CONTAINERS)}
        sentence = self._rng.choice(wordings).format_map({**self._words, **words, **numbers})
        self._sentences.append(sentence)
        return sentence


def _by_places(a: int, b: int, sign: str, apply: Callable[[int, int], int]) -> str:
    """b's hundreds, then its tens, then its units, each in one equation; only the result if one is enough."""
    parts = [part for part in (b // 100 * 100, b // 10 % 10 * 10, b % 10) if part]
    if len(parts) < 2:
        return str(apply(a, b))
    equations = []
    for part in parts:
        equations.append(f"{a} {sign} {part} = {apply(a, part)}")
        a = apply(a, part)
    return ", ".join(equations)


def _is_known(part: str) -> bool:
    if part[0].isdigit():
        number = part.rstrip(".,")
        return number.isdecimal() and number.isascii() and int(number) <= MAX_VALUE
    return part.lower() in _lexicon()


@cache
def _lexicon() -> frozenset[str]:
    templates = (
        *_GIVEN, *_GROUPS_FIRST, *_ADD, *_SUBTRACT, *_GROUPS_MORE, *_GROUPS_LESS, *_TIMES[2], *_TIMES[3],
        *_DIVIDE, *_HALVE, *_SHARE, *_ASK, *_ASK_SHARE,
    )  # fmt: skip
    words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(templates)).lower())
    names = (word.lower() for word in _SHE + _HE)
    return frozenset({*words, *names, *_THINGS, *_CONTAINERS, "she", "he", "her", "him", ".", ",", "?"})
