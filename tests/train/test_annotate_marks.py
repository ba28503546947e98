"""Steps, marks, replies and quotes: what is pure in annotation."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_edge.markers import CLOSE, OPEN, strip_markers
from sr_train.annotate import judge, measured, snippets
from sr_train.annotate.spans import Rule, choose, snapped, with_markers
from sr_train.annotate.statistics import Marked, figures
from sr_train.annotate.steps import Step, is_within, protected, split_steps
from sr_train.problems import Problem

SENTENCES = (
    "Okay, so we have a problem.",
    "Let me think about it again, e.g. with small numbers!",
    "Wait.",
    "Is that so?",
    "It costs 5 dollars. Then we pay 3 more.",
    "The ratio is 3.5 or so.",
    "Alors, \u00e7a marche \U0001f600.",
)
FORMULAS = (
    r"$x = 1. Y = 2$", r"$$a. B$$", r"\( p. Q \)", "\\[ u.\n\n V \\]", r"\boxed{7. A {b}}",
    "\\begin{align} x. Y\\\\[4pt] z \\end{align}", "`code. Here`", "\n```py\nprint. Me\n\nDone. It\n```\n",
)  # fmt: skip
SEPARATORS = (" ", "\n", "\n\n", "  \n  ")

pieces = st.lists(
    st.tuples(st.sampled_from(SENTENCES + FORMULAS), st.sampled_from(SEPARATORS)), min_size=1, max_size=14
)


def built(parts):
    """The text, and where in it its formulas are."""
    text, inside = "", []
    for piece, separator in parts:
        if piece in FORMULAS:
            start = len(text) + piece.startswith("\n")
            inside.append((start, len(text) + len(piece.rstrip("\n"))))
        text += piece + separator
    return text, inside


@given(pieces)
def test_steps_are_the_trace_and_never_cut_a_formula(parts):
    text, inside = built(parts)
    steps = split_steps(text)
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert all(step.start < step.end for step in steps)
    cuts = [step.start for step in steps]
    assert not [at for at in cuts if is_within(at, inside)]
    assert not any("\\boxed" in text[step.start : step.end] for step in steps if step.is_markable)


@given(st.text(alphabet="ab. \n$\\[](){}`A1<>/think\u3002", max_size=60))
def test_any_text_is_the_sum_of_its_steps(text):
    steps = split_steps(text)
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert not [step for step in steps if is_within(step.start, protected(text))]


def test_steps_are_sentences_and_lines():
    text = (
        "First we add the two numbers. Wait. Is Fig. 3 about that, i.e. the sum? It is!\n"
        "1. A numbered line is not cut after its number.\n\nA last paragraph without an end"
    )
    assert [text[step.start : step.end] for step in split_steps(text)] == [
        "First we add the two numbers. Wait.",
        " Is Fig. 3 about that, i.e. the sum? It is!\n",
        "1. A numbered line is not cut after its number.\n\n",
        "A last paragraph without an end",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5. Then he pays $6. And then $7 more.",
        r"It costs $5. So $x. y$ and $6. Then $z. W$ holds for it all.",
        r"He pays \$5. Then \$6. And again \$7. That is all of it.",
    ],
)
def test_money_is_no_reason_to_cut_a_formula(text):
    allowed = [step.start for step in split_steps(text)]
    formulas = [(text.find(f), text.find(f) + len(f)) for f in ("$x. y$", "$z. W$") if f in text]
    assert not [at for at in allowed if is_within(at, formulas)]


def test_escaped_money_is_no_formula():
    text = r"He pays \$5 for a book. Then he pays \$6 for another. That is all of it."
    assert len(split_steps(text)) == 3


def test_only_reasoning_is_marked():
    text = (
        "<think>\nWe add the numbers here.\nSo the answer is \\boxed{3}.\n</think>\n\nThe final answer is 3."
    )
    marked = [text[step.start : step.end] for step in split_steps(text) if step.is_markable]
    assert marked == ["We add the numbers here.\n"]


# --- marks -----------------------------------------------------------------------------------------------

RULE = Rule(target_share=0.4, min_span_chars=8, merge_gap_chars=10)


@settings(max_examples=200)
@given(pieces, st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_marks_obey_the_rule(parts, seed, share):
    text, inside = built(parts)
    steps, rng = split_steps(text), random.Random(seed)
    scores = {index: float(rng.randint(1, 3)) for index in range(len(steps)) if rng.random() < 0.6}
    rule = Rule(share, 8, rng.choice((0, 10, 80)))
    spans = choose(text, steps, scores, rule, "id")
    annotated = with_markers(text, spans)
    assert strip_markers(annotated) == text
    assert annotated.count(OPEN) == annotated.count(CLOSE) == len(spans)
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert sum(end - start for start, end in spans) <= share * len(text)
    assert not [at for span in spans for at in span if is_within(at, inside)]
    assert not any("\\boxed" in text[start:end] for start, end in spans)
    assert all(len(text[start:end].strip()) >= 8 for start, end in spans)


def test_the_most_difficult_steps_come_first():
    text = "".join(f"This is sentence number {n} of them.\n" for n in range(10))
    steps = split_steps(text)
    chosen = choose(text, steps, dict.fromkeys(range(10), 2.0) | {7: 3.0}, RULE, "a")
    start = steps[7].start
    assert any(a <= start < b for a, b in chosen)
    assert 0.3 < sum(b - a for a, b in chosen) / len(text) <= 0.4


def test_equal_steps_are_not_drawn_from_the_beginning():
    text = "".join(f"This is sentence number {n} of them.\n" for n in range(10))
    steps = split_steps(text)
    every = dict.fromkeys(range(10), 2.0)
    firsts = {choose(text, steps, every, RULE, f"problem {n}")[0][0] for n in range(20)}
    assert len(firsts) > 1
    assert choose(text, steps, every, RULE, "a") == choose(text, steps, every, RULE, "a")


def test_a_trace_with_markers_is_refused():
    with pytest.raises(ValueError, match="itself"):
        with_markers(f"One {OPEN}two.", [(0, 3)])


# --- the judge's reply -----------------------------------------------------------------------------------

TRACE = "".join(f"Sentence number {n} says a thing.\n" for n in range(5)) + "So it is \\boxed{3}.\n"
STEPS = split_steps(TRACE)
WANTED = {1: 3, 3: 2}
ENTRIES = [{"i": 1, "difficulty": 3, "kind": "insight"}, {"i": 3, "difficulty": 2, "kind": "case_split"}]
PLAIN = json.dumps({"steps": ENTRIES})


@pytest.mark.parametrize(
    "reply",
    [
        PLAIN,
        json.dumps(ENTRIES),
        f'<think>[0]? {{"steps": []}} no.</think>\n{PLAIN}',
        f"Here you are:\n```json\n{json.dumps({'steps': ENTRIES}, indent=2)}\n```\nI hope it helps [1].",
        PLAIN[:-2] + ', {"i": 4, "diff',  # cut
        str({"steps": ENTRIES}),  # as Python writes it
        '{"steps": [{"i": "1", "difficulty": "3", "kind": 7}, {"i": "[3]", "difficulty": 2.0,}]}',
        '{"steps": {"1": 3, "3": {"difficulty": 2}}}',
        "[1]: 3 (insight)\n[3]: 2 case split\n",
        "- Step 1: difficulty 3\n- Step 3: difficulty 2",
        PLAIN.replace('"i": 1,', '"i": 1, "why": "as in {x}",'),
    ],
)
def test_a_reply_is_read_in_whatever_dress(reply):
    judgement = judge.read_reply(reply, STEPS)
    assert {index: rated.difficulty for index, rated in judgement.steps.items()} == WANTED
    assert judgement.steps[3].kind in ("case split", "other")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot judge this.",
        "<think>hm",
        '<think>[0]? {"steps": [{"i": 0, "difficulty": 3}]}, or',
        '{"error": "no"}',
        "[1, 2, 3]",
    ],
)
def test_a_reply_without_a_judgement_is_named(reply):
    with pytest.raises(judge.UnreadableReplyError):
        judge.read_reply(reply, STEPS)


def test_what_names_no_step_is_counted_and_left_out():
    reply = json.dumps(
        [
            {"i": 99, "difficulty": 3},
            {"i": 5, "difficulty": 3},
            {"i": True, "difficulty": 1},
            {"i": 0, "difficulty": 9},
        ]
    )
    judgement = judge.read_reply(reply, STEPS)
    assert {index: rated.difficulty for index, rated in judgement.steps.items()} == {0: 3}
    assert judgement.num_strange == 3


def test_nothing_difficult_is_a_judgement():
    assert judge.read_reply('{"steps": []}', STEPS).steps == {}


@given(st.text(max_size=80))
def test_no_reply_breaks_the_reading(reply):
    try:
        judgement = judge.read_reply(reply, STEPS)
    except judge.UnreadableReplyError:
        return
    assert all(
        STEPS[index].is_markable and 0 <= rated.difficulty <= 3 for index, rated in judgement.steps.items()
    )


def test_the_judge_sees_every_step_and_numbers_for_those_that_may_be_marked():
    asked = judge.question(Problem("p", "What is it?", "3", TRACE), STEPS)[-1].content
    assert "What is it?" in asked
    assert all(f"[{n}] Sentence number {n} says a thing." in asked for n in range(5))
    assert "\nSo it is \\boxed{3}." in asked


# --- quotes ----------------------------------------------------------------------------------------------

LATEX = (
    "First, let us define $f(x) = \\frac{1}{x}$ for all positive x.\n\n"
    "Therefore the sum \\( a \\cdot b \\) telescopes, which is the main idea of the proof.\n"
    "Then we only have to add the two remaining numbers, and nothing else is left.\n"
)


@pytest.mark.parametrize(
    ("snippet", "way"),
    [
        ("the sum \\( a \\cdot b \\) telescopes", "exact"),
        ("the  sum $a \\times b$\ntelescopes", "normalised"),
        ("THE SUM a\u00b7b telescopes", "normalised"),
        ("the sum a*b telescopes, which is a main idea of the proof", "fuzzy"),
        ("an altogether different sentence about geometry and circles", "rejected"),
        ("sum", "rejected"),
    ],
)
def test_a_quote_is_found_by_likeness(snippet, way):
    found = snippets.align(snippet, LATEX, min_score=90.0)
    assert found.way == way
    if way == "rejected":
        assert found.at is None
        return
    start, end = found.at
    assert "telescopes" in LATEX[start:end]
    assert 0 <= LATEX.index("the sum") - start + 2 <= 4 or way != "fuzzy"
    marked = snapped(split_steps(LATEX), [found.at])
    assert [LATEX[s.start : s.end] for s in map(split_steps(LATEX).__getitem__, marked)] == [
        LATEX[LATEX.index("Therefore") : LATEX.index("Then we")]
    ]


def test_step_that_no_quote_covers_for_the_greater_part_is_not_chosen():
    step = Step(100, 150, is_markable=True)
    assert snapped([step], [(5, 105), (148, 157)]) == []  # 5 of 100 characters, 2 of 9
    assert snapped([step], [(5, 105), (144, 152)]) == [0]


@given(st.text(alphabet="aB \n$\\{}\u00b7\u2212\u0130x.", min_size=1, max_size=40))
def test_what_is_spelled_alike_knows_where_it_stood(text):
    plain, origin = snippets.normalised(text)
    assert len(origin) == len(plain) + 1
    assert origin == sorted(origin)
    assert all(0 <= at < len(text) for at in origin[:-1])


@given(st.integers(0, 60), st.integers(9, 60))
def test_any_part_of_the_trace_is_found_where_it_is(start, length):
    snippet = LATEX[start : start + length].strip()
    found = snippets.align(snippet, LATEX, min_score=90.0)
    if found.at is not None:
        assert LATEX[slice(*found.at)] == snippet
    else:
        assert len(snippets.normalised(snippet)[0]) < snippets.MIN_SNIPPET


def test_quotes_are_read_out_of_a_reply():
    reply = f"<think>x</think>{snippets.START}\nOne.\n{snippets.END}\ntext\n{snippets.START}\nTwo."
    assert snippets.read_reply(reply) == ["One.", "Two."]
    with pytest.raises(judge.UnreadableReplyError):
        snippets.read_reply("nothing here")


# --- measurement -----------------------------------------------------------------------------------------


def test_surprisal_belongs_to_the_step_that_a_token_begins_in():
    steps = [Step(0, 4, True), Step(4, 10, True), Step(10, 12, False)]
    tokens = [(0, 1.0), (3, 3.0), (4, 0.5), (9, 1.5), (10, 9.0), (11, float("inf"))]
    found = measured.step_surprisals(steps, tokens)
    assert [(each.mean, each.num_tokens) for each in found] == [(2.0, 2), (1.0, 2), (9.0, 1)]
    assert measured.most_surprising(steps, found, 0.5) == [0]
    assert measured.most_surprising(steps, found, 0.0) == [0, 1]  # the third may not be marked


def test_a_step_that_the_model_writes_by_itself_is_not_tried_out():
    found = [measured.Surprisal(0.001, 20), measured.Surprisal(0.0, 0)]
    assert measured.most_surprising([Step(0, 9, True), Step(9, 18, True)], found, 0.0) == []


def test_a_gain_is_the_difference_of_two_shares():
    steps = [Step(0, 5, True), Step(5, 9, True)]
    trials = measured.trials_of(Problem("p", "q", "7", "abcdefghi"), steps, 1, n=4, seed=1, number=2)
    assert len({trial.key for trial in trials}) == 8
    assert {(trial.before, trial.step) for trial in trials} == {("abcde", "fghi")}
    answers = ["7", "1", "1", "1", "7", "7", "7", "1"]
    is_right = lambda gold, text: text.endswith(gold)  # noqa: E731
    gain = measured.gain_of(trials, answers, is_right)
    assert gain == measured.Gain(helped=3, alone=1, n=4)
    assert gain.value == 0.5
    assert measured.gain_of(trials, [None, *answers[1:]], is_right) is None
    assert measured.gain_of(trials, answers, lambda gold, text: None) is None


def test_figures_of_the_marks():
    rows = [Marked(100, 5, ((0, 10), (50, 60)), ("check",)), Marked(100, 4, ())]
    found = figures(rows)
    assert (found["rows"], found["rows_with_spans"], found["spans"]) == (2, 1, 2)
    assert found["share"] == 0.1
    assert found["share_per_row"]["mean"] == 0.1
    assert found["span_length"]["median"] == 10
    assert found["kinds"] == {"check": 1}
    assert figures([])["share"] == 0.0
