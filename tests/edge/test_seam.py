"""A reply reads on from the answer: the same text however it is cut, without repetition or preamble."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sr_edge.remote.dialects import DIALECTS, dialect_named
from sr_edge.remote.seam import Seam
from sr_edge.remote.seams.part import MAX_HELD

OPEN = "<think>\n"
ANSWER = "We know that the train has twelve wagons. So we add up the two numbers"
LONG = "Let us look at it again. " + ANSWER + ", which gives us the number of the seats in all of them"


def join(answer, reply, name="instruct", opening="", cut=1, **options):
    """The text of a reply in pieces of `cut` characters, and what was dropped."""
    seam = Seam(answer, dialect=dialect_named(name), opening=opening, **options)
    pieces = [reply[at : at + cut] for at in range(0, len(reply), cut)]
    return "".join([seam.push(piece) for piece in pieces]) + seam.flush(), seam.dropped


def in_every_cut(answer, reply, name="instruct", opening="", **options):
    results = {join(answer, reply, name, opening, cut, **options) for cut in (1, 2, 3, 7, 1 + len(reply))}
    assert len(results) == 1, results
    return results.pop()


# --- where a turn of its own was asked for ------------------------------------------------------------------

REST = " and get 12."


@pytest.mark.parametrize(
    ("reply", "dropped"),
    [
        ("and get 12.", ()),
        (" and get 12.", ()),
        ("Sure, here is the continuation: and get 12.", ("preamble",)),
        ("Sure! Here's the continuation:\n\nand get 12.", ("preamble",)),
        ("Certainly. and get 12.", ("preamble",)),
        ("Of course! Here is the rest of the answer:\n\nand get 12.", ("preamble",)),
        ("Okay, continuing from where it breaks off: and get 12.", ("preamble",)),
        ("Continuing from where it stops...\n\nand get 12.", ("preamble",)),
        ("Continuation: and get 12.", ("preamble",)),
        ("**Continuation:**\n\nand get 12.", ("preamble",)),
        ("### Continuation\n\nand get 12.", ("preamble",)),
        ("I'll continue the answer:\nand get 12.", ("preamble",)),
        ("Here you go:\n\nand get 12.", ("preamble",)),
        ("[Continuing from where I left off] and get 12.", ("preamble",)),
        ("(continued) and get 12.", ("preamble",)),
        ("*(cont'd)*\n\nand get 12.", ("preamble",)),
        ("Sure thing! Here's the rest: and get 12.", ("preamble",)),
        ("Okay, here is the rest:\n\nand get 12.", ("preamble",)),
        ("Great! Continuing: and get 12.", ("preamble",)),
        ("Assistant: and get 12.", ("preamble",)),
        ("**Assistant:** and get 12.", ("preamble",)),
        ("I apologize, here's the continuation: and get 12.", ("preamble",)),
        ("I apologize for the confusion. Here is the continuation: and get 12.", ("preamble",)),
        ("Sorry about that! Continuing:\nand get 12.", ("preamble",)),
        ("Sure, the next step is as follows:\nand get 12.", ("preamble",)),
        ("Sure, here is the continuation:\n```\nand get 12.\n```", ("preamble",)),
        ("```text\nand get 12.\n```\n\nLet me know if I should go on.", ("preamble",)),
        ("```\nand get 12.\n```", ("preamble",)),
        ('Here is the continuation:\n"and get 12."', ("preamble",)),
        ("Here is the continuation:\n“and get 12.”", ("preamble",)),
        ("...and get 12.", ("preamble",)),
        ("… and get 12.", ("preamble",)),
        ("<draft>and get 12.</draft>", ("preamble",)),
        ("</draft>\nand get 12.", ("preamble",)),
        ("and get 12.</draft>", ()),
        ("and get 12.\n</draft>\nI hope this helps!", ()),
        ("<continuation>\nand get 12.\n</continuation>", ("preamble",)),
        ("<think>They want more.</think>\n\nand get 12.", ("think",)),
        ("<think>\n\n</think>\n\nSure! and get 12.", ("think", "preamble")),
        ("<thinking>They want </think> more.</thinking>\n\nand get 12.", ("think",)),
        ("and get 12.\n\nI hope this helps!", ("closing",)),
        ("and get 12.\n\nI hope this helps! Let me know if you need anything else! 😊\n", ("closing",)),
        ("and get 12.\n\nI hope this helps!\n\nFeel free to ask if you have questions.", ("closing",)),
        ("and get 12.\n\nLet me know if you need more.\n</draft>", ("closing",)),
        ("the two numbers and get 12.", ("overlap",)),
        ("The two numbers and get 12.", ("overlap",)),
        ("So we add up the two numbers and get 12.", ("overlap",)),
        (ANSWER + " and get 12.", ("echo",)),
        (ANSWER.replace(" ", "  ") + " and get 12.", ("echo",)),
        (ANSWER.replace(" ", "\n") + " and get 12.", ("echo",)),
        ("Sure, here is the continuation:\n\n" + ANSWER + " and get 12.", ("preamble", "echo")),
        (f"<draft>\n{ANSWER}\n</draft>\n\nand get 12.", ("preamble", "echo")),
        (f'"{ANSWER} and get 12."', ("echo",)),
        ("“the two numbers and get 12.”", ("overlap",)),
        ("...the two numbers and get 12.", ("preamble", "overlap")),
        ("Sure, here is the continuation:\n```\nthe two numbers and get 12.\n```", ("preamble", "overlap")),
    ],
)
def test_a_turn_is_made_to_read_on(reply, dropped):
    text, found = in_every_cut(ANSWER, reply)
    assert (text, found) == (REST, dropped)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("", "Sure! That is easy."),  # nothing was asked to be continued: it is the answer's own beginning
        ("So", "here the sum is: 12"),
        ("First:", "```python\nprint(1)\n```"),
        ("It is.", "Okay, so the sum of 3 and 4 is 7.\nNext"),
        ("It is.", "Let me compute it: 7"),
        ("It is.", "Here are the remaining values: 7"),
        ("It is.", "This is a continuous function: f"),
        ("It is.", "Sure enough, it is 7"),
        ("It is.", "Now we continue with 7"),
        ("It is.", "Here's the rest: 7"),
        ("It is.", "Great! That is what we want: 7"),
        ("It is.", "(continued fractions) are next"),
        ("It is.", "[continuous functions] are next"),
        ("It is.", "Sorry is the word: 7"),
        ("It is.", "Apologies are due, he said: 7"),
        ("User: Hi\nAssistant: Hello\nUser: Why?", "Assistant: Because."),
        ("It is.", "<thing> is a tag"),
        ("A <thinking> tag:", "<thinking>so</thinking>"),
        ("It is.", "Seven. I hope this helps!"),
        ("It is.", "Dear all,\n\nI hope this helps.\n\nYours, Ann"),
        ("It is.", "Seven.\n\nI hope this is seven."),
        ("It is.", "Seven.\n\nLet me know if"),
        ("It is.", "Seven.\n\nLet me know if\nit is.\n\nI h"),
        ("It is.", "Seven. \n\n \n Ok"),
        ("We add 1 + 2 +", "... + 100"),
        ("We have 1, 2,", "..., 100"),
        ("1 + 2 + 3", "... + 9 = 45"),
        ("1 + 2 + 3", "…+n"),
        ("1 + 2 + 3", "... + x_n"),
        ("1 * 2 + 2 * 3", "... + 8 * 9"),
        ("So $1 \\cdot 2", "... \\cdot n$"),
        ("The list is 1, 2, 3", "..., 9."),
        ("The list is a, b", "..., z."),
        ("It is.", '"Yes", he said, and "no"'),
        ("the cat", "catalogue of all"),
        ("It is", "Continuity of f"),
        ("It is", "</dra he wrote"),
        ("It is", "a < b and `x`"),
    ],
)
def test_what_only_looks_like_a_preamble_is_text(answer, reply):
    text, dropped = in_every_cut(answer, reply)
    assert text.lstrip(" ") == reply
    assert dropped == ()


@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        ("We get", "12", " 12"),
        ("We get.", "Then", " Then"),
        ("We get ", "12", "12"),
        ("We get\n", "12", "12"),
        ("We get\n\n", "\n\n12", "12"),
        ("We get", ", then", ", then"),
        ("We get", ".", "."),
        ("f(", "x", "x"),
        ("f(x", ")", ")"),
        ("a [", "b", "b"),
        ("say “", "yes", "yes"),
        ('say "', "yes", "yes"),
        ('say "yes"', "and", " and"),
        ("\\", "frac", "frac"),
        ("so $", "x = 5$", "x = 5$"),
        ("so $x$", "is", " is"),
        ("so", "$x$ is", " $x$ is"),
        ("so $x", "$ is", "$ is"),
        ("x^", "2", "2"),
        ("x_", "i", "i"),
        ("\\frac{", "1", "1"),
        ("-", "1", "1"),
        ("km/", "h", "h"),
        ("x", "= 3", " = 3"),
        ("we are", "well", " well"),
        ("we", "'re", "'re"),
        ("我们得到", "十二", "十二"),
        ("We get", "\n\n\n\n12", "\n\n12"),
        ("We get", "   12", " 12"),
        ("We get", "\n", ""),
        ("We get", "", ""),
    ],
)
def test_whitespace_at_the_seam_of_a_turn(answer, reply, text):
    assert in_every_cut(answer, reply)[0] == text


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("The sum is 2 + 2 + 2 +", " 2 + 2 = 10."),
        ("2 + 2 + 2 +", " 2 + 2 = 10."),
        ("2 + 2 +", "2 + 2 + 2 = 10."),
        ("10 + 10 + 10 +", " 10 + 10 = 50."),
        ("So x * x *", " x * x = x^4"),
        ("So x * x *", " x * x * x = x^5"),
        ("So " + "x * " * 14, "x * " * 12 + "x = x^27"),
        ("So 2 \\cdot 2 \\cdot", "2 \\cdot 2 = 16"),
        ("That is 10 cm + 5 kg + 10 cm +", "10 cm + 5 kg"),
        ("We add 3 apples + 3 apples +", "3 apples = 9 apples"),
        ("the value 100", "100 more"),
        ("It is 100, 200,", "200, 300"),
        ("So 10 - 5", "- 5 = 0"),
        ("So x - 5 =", "- 5 + x"),
        ("So 2 * 35", "* 35 = 2450"),
        ("So (x + 1)", "(x + 1) = y"),
        ("It was very, very,", "very, very good"),
        ("the cat", "catalogue of all"),
        ("By the", "theorem of Rolle"),
        ("four", "fourths"),
        ("We have multi ", "multiply"),
        ("We have 11 ", "112."),
        ("We have x3", "x34"),
        ("f(10.25", "255"),
    ],
)
def test_the_terms_of_a_sum_or_a_list_are_no_run_up(answer, reply):
    text, dropped = in_every_cut(answer, reply)
    assert (text.strip(), dropped) == (reply.strip(), ())


@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        ("First, 28 * 4 =", "28 * 4 = 112.", " 112."),
        ("We know it. 28 * 4 =", "28 * 4 = 112.", " 112."),
        ("We know:\n- 28 * 4 =", "28 * 4 = 112.", " 112."),
        ("Well, 1 + 2 +", "1 + 2 + 3 = 6", " 3 = 6"),
        ("So we get 28 * 4 =", "28 * 4 = 112.", " 112."),
        ("It follows that $x = 2$", "$x = 2$ or", " or"),
        ("So I need 12 * 35.", "12 * 35. Let", " Let"),
        ("So I need $12 \\cdot 35", "$12 \\cdot 35 = 420$", " = 420$"),
        ("So 10 + 1", "10 + 12 = 22", "2 = 22"),
        ("So I need 12", "... * 35", " * 35"),
        ("So, 12", "..., 35", ", 35"),
        ("So 12 * 35 = 10", "... * 35 + 2 * 35", " * 35 + 2 * 35"),
        ("So 12 * 35 + 10", "... * 35 + 2 * 35", " * 35 + 2 * 35"),
        ("It would be 12 * 33.3,", "12 * 33.3, so no", " so no"),
        ("So 10 * 35 =", "* 35 = 350", " 350"),
        ("So 10 * 35 = 350,", "35 = 350, and", " and"),
        ("So 10 * 35 + 2 *", "+ 2 * 35", " 35"),
        ("Let me split it: 10 *", "it: 10 * 35", " 35"),
        ("The **product:** $12 \\cdot 35", "$12 \\cdot 35 = 420$", " = 420$"),
        ("We know:\n2.", "2. Then", " Then"),
        ("We know:\nx", "x = 5", " = 5"),
        ("The two values are 1, 12, 123, 1234, 12345, 123456", "1, 12, 123, 1234, 12345, 123456, 7", ", 7"),
        ("multi", "multiply 28 by 4", "ply 28 by 4"),
        ("We multi", "Multiply 28 by 4", "ply 28 by 4"),
        ("So we multi", "we multiply", "ply"),
        ("So we add the numb", "add the numbers", "ers"),
        ("which is 11", "112.", "2."),
        ("which is 3.1", "3.14.", "4."),
        ("so \\frac{1}{2} \\time", "\\times 2", "s 2"),
        ("我们得到", "我们得到十二", "十二"),
        ("multi", "ply", " ply"),
        ("which is 11", "2.", " 2."),
    ],
)
def test_a_line_that_is_begun_anew_and_a_word_that_is_written_in_full_are(answer, reply, text):
    assert in_every_cut(answer, reply)[0] == text


def test_a_short_word_may_be_meant_twice_and_a_longer_one_is_a_run_up():
    assert in_every_cut("That is so", "so easy")[0] == " so easy"
    assert in_every_cut("That is very", "very easy")[0] == " easy"
    assert in_every_cut("We have 12 + 3 = 15\n", "15 + 4 = 19")[0] == "15 + 4 = 19", "a new line"
    assert in_every_cut("The values:\n- two wagons", "- two wagons: 70")[0] == ": 70"


def test_a_block_of_code_is_taken_up_inside_of_its_fence():
    answer = "Like this:\n```python\nfor x in y:"
    text, dropped = in_every_cut(answer, "```python\n    print(x)\n```\nDone.")
    assert (text, dropped) == ("\n    print(x)\n```\nDone.", ("preamble",))
    assert in_every_cut(answer + "\n", "```python\n    print(x)\n```")[0] == "    print(x)\n```"


def test_fences_inside_of_a_wrapping_fence_are_text():
    reply = "```markdown\nso:\n\n```python\nprint(1)\n```\n\nDone.\n```\nAnything else?"
    assert in_every_cut("It is", reply)[0] == " so:\n\n```python\nprint(1)\n```\n\nDone."


def test_a_delimiter_that_the_answer_holds_is_text():
    answer = "The file holds <draft>one</draft> and"
    assert in_every_cut(answer, "<draft>two</draft>.")[0] == " <draft>two</draft>."
    assert in_every_cut(answer, "<draft-2>more.</draft-2> Bye")[0] == " more."


# --- where the answer was continued as it stands ------------------------------------------------------------

PREFILLS = ["reasoning", "vllm-think", "vllm", "prefix", "partial", "trailing-plain"]


@pytest.mark.parametrize("name", PREFILLS)
@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        (ANSWER, " and get 12.", " and get 12."),
        (ANSWER, ANSWER + " and get 12.", " and get 12."),
        (ANSWER + "\n\n", ANSWER + "\n\nand get 12.", "and get 12."),
        (LONG, "So we add up the two numbers, which gives us the number of the seats in all of them.", "."),
        ("ha ha", " ha ha", " ha ha"),
        ("very", " very good", " very good"),
        (ANSWER, " the two numbers", " the two numbers"),
        ("calcul", "ate", "ate"),
        ("1", "2", "2"),
        ("Sure", ", here is the continuation: 5", ", here is the continuation: 5"),
        ("It is", " ...and so on", " ...and so on"),
        ("one ", " two", "two"),
        ("one", "  two", " two"),
        ("one ", "two", "two"),
        ("one\n", "\n\ntwo", "\ntwo"),
        ("one\n\n", "\n\ntwo", "two"),
        ("one\n\n", "two", "two"),
        ("one", "\n\n\n\n  two", "\n\n  two"),
        ("def f():\n    ", "\n    return", "return"),
        ("def f():\n    ", "\n        return", "    return"),
        ("one", "\n\n", "\n\n"),
        ("one", "<think>\nWell.\n</think>\n\ntwo", "\n\ntwo"),
        ("one", "</think>\n\ntwo", "\n\ntwo"),
        ("one", " <thing>", " <thing>"),
        ("one", "<thinking>\nWell.\n</thinking>\n\ntwo", "\n\ntwo"),
        ("First, 28 * 4 =", "28 * 4 = 112.", " 112."),
        ("First, 28 * 4 =", " 28 * 4 = 112.", " 112."),
        ("We know it.\nSo the sum", "So the sum is", " is"),
        ("We know it. So the sum", " So the sum is", " is"),
        ("We know it. So the numb", " So the numbers", "ers"),
        ("We know it, so the sum", " the sum is", " the sum is"),
        ("We know it. So be it", " be it", " be it"),
        ("They go on and on", " on and on", " on and on"),
        ("So, 10 + 10 +", " 10 + 10 = 40", " 10 + 10 = 40"),
        ("One. Row, row, row your boat,", "\nRow, row, row your boat,", "\nRow, row, row your boat,"),
        ("One.\nAnd so it goes.\n", "And so it goes.\n", "And so it goes.\n"),
        ("Count: left and right, left and right,", " left and right,", " left and right,"),
    ],
)
def test_a_continuation_is_left_as_it_is_but_for_repetitions(name, answer, reply, text):
    assert in_every_cut(answer, reply, name)[0] == text


@pytest.mark.parametrize("name", ["reasoning", "vllm-think", "vllm", "trailing"])
def test_a_thought_that_is_opened_anew_goes_on(name):
    assert in_every_cut(ANSWER, f"<think>\n{ANSWER}, so 12", name, OPEN) == (", so 12", ("think", "echo"))
    assert in_every_cut("One. ", "<think> Two", name, OPEN)[0] == "Two"
    assert in_every_cut("One.", " Two.\n</think>\n\nThree", name, OPEN)[0] == " Two.\n</think>\n\nThree"


def test_where_thoughts_are_sent_as_text_a_think_block_is_the_servers_own():
    for name in ("prefix", "instruct"):
        assert in_every_cut("One. ", "<think>Hm.</think>Two", name, OPEN) == ("Two", ("think",))
        assert in_every_cut("One. ", "<think>Hm.", name, OPEN) == ("", ("think",))
    assert in_every_cut("One. ", "Hm, well.\n</think>\n\nTwo", "instruct-aloud", OPEN) == ("Two", ("think",))


@pytest.mark.parametrize("name", ["vllm-think", "vllm", "prefix", "instruct"])
def test_an_echo_after_a_thought_is_found_however_the_thought_was_sent(name):
    answer = f"Let me see.\n</think>\n\n{ANSWER}"
    sent = {"vllm-think": OPEN + answer, "vllm": answer}.get(name, f"Let me see.\n\n{ANSWER}")
    for echo in (sent, ANSWER):
        assert in_every_cut(answer, echo + " and get 12.", name, OPEN)[0] == " and get 12."


def test_a_server_that_is_known_to_echo_repeats_short_answers_too():
    assert in_every_cut("Yes", "Yes, it is", "prefix")[0] == "Yes, it is"
    assert in_every_cut("Yes", "Yes, it is", "prefix", echoes=True)[0] == ", it is"


@pytest.mark.parametrize("name", ["instruct", "vllm"])
def test_the_seam_of_a_long_answer_is_found_in_no_time(name):
    answer = "\n".join(f"- {n} + {n} = {2 * n}" for n in range(2500))
    began = time.monotonic()
    assert join(answer, f"{answer} is even", name)[0] == " is even"
    assert time.monotonic() - began < 5


# --- raw completions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reply", "text"),
    [
        (ANSWER, " and", " and"),
        (ANSWER + " ", "  and", "and"),
        (ANSWER, "  and", " and"),
        ("f:\n    ", "    x", "    x"),
        ("f:", "\n        x", "\n        x"),
        ("f:\n", "        x", "        x"),
        ("one\n\n", "\n\ntwo", "two"),
        ("one\n\n", "\n\n    two", "    two"),
        ("one\n", "\n\ntwo", "\ntwo"),
        ("one", "\n\n\n\ntwo", "\n\ntwo"),
        ("one", "\ttwo", "\ttwo"),
        ("", "\n\n\n  one", "\n\n\n  one"),
        ("", "<think>one</think>", "<think>one</think>"),
        ("", "  ", "  "),
        ("one", "<think>two</think>", ""),
        ("one", "<think>Well.</think>\n\ntwo", "\n\ntwo"),
        ("one", " <think>Well.</think> two", " two"),
        ("one", " two <think>three</think>", " two <think>three</think>"),
        ("one", "Sure! Here's the continuation: two", "Sure! Here's the continuation: two"),
        ("one", "<think>Well.</think>\n\nSure! Here's the continuation:\n\ntwo", " two"),
        ("one", "<think>Well.</think>\n\nSure! two", "\n\nSure! two"),
        ("one", "<thinking>Well.</thinking>\nSure thing! Here's the rest: two", " two"),
        ("one", ANSWER, ANSWER),
        (ANSWER, ANSWER + " and", " and"),
        (ANSWER, "P: " + ANSWER + " and", " and"),
        (ANSWER, ANSWER[:-1], ANSWER[:-1]),
        ("ha", " ha", " ha"),
    ],
)
def test_raw_completions_stay_exact_but_for_an_echo_and_doubled_spaces(answer, reply, text):
    assert in_every_cut(answer, reply, "completions", prompt="P: ")[0] == text


def test_raw_completions_inside_of_a_thought_have_all_their_tags():
    for reply in ("<think>two", "\n</think>\n\ntwo", " two</think>three"):
        assert in_every_cut("one", reply, "completions", OPEN)[0] == reply
    assert in_every_cut("", "\n\n</think>\n\none", "completions", OPEN)[0] == "\n\n</think>\n\none"


def test_an_echo_of_a_long_prompt_is_found_in_no_time():
    prompt = "".join(chr(97 + at * at % 26) for at in range(200_000))
    began = time.monotonic()
    text, _ = join("so", prompt + "so it goes", "completions", prompt=prompt, cut=3)
    assert text == " it goes"
    assert time.monotonic() - began < 5


# --- invariants ---------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        " ", "\n", "\n\n", "a", "b ", "the ", "two ", "numbers", ", ", ".", "12", "$", '"', "“", "```",
        "```\n", "…", "...", "<think>", "</think>", "<draft>", "</draft>", "</continuation>", "Sure", "! ",
        ":", "Sure, ",
        "here is the continuation:", "Continuing from where it stops", "Okay, ", "é", "数", "\u00a0", ANSWER,
        ANSWER[-20:], ANSWER[:20], "ha ", "(", "-", "\\", "2 + ", "2 + 2 = ", "28", "multi", "multiply",
        "<thinking>", "</thinking>", "I hope this helps", "Let me know if", "\n\nI hope this helps!",
        "Sorry, ", "Assistant", "[continuing from", "] ", "(continued) ", "+ ",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=9).map("".join)
NAMES = st.sampled_from([dialect.name for dialect in DIALECTS])


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, NAMES, st.sampled_from(["", OPEN]), st.lists(st.integers(1, 9), min_size=1, max_size=30))
@example("", "\n", "instruct", "", [1])
@example(ANSWER, "```\nx\n```\n", "instruct", "", [1])
@example(ANSWER, '"' + ANSWER + '"', "instruct", "", [2])
def test_any_cut_of_a_reply_gives_the_same_text(answer, reply, name, opening, sizes):
    whole, dropped = join(answer, reply, name, opening, len(reply) + 1)
    seam = Seam(answer, dialect=dialect_named(name), opening=opening)
    text, at = "", 0
    for n in range(len(reply)):
        if at >= len(reply):
            break
        size = sizes[n % len(sizes)]
        text += seam.push(reply[at : at + size])
        at += size
    assert (text + seam.flush(), seam.dropped) == (whole, dropped)
    assert join(answer, reply, name, opening, 1)[0] == whole


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, NAMES, st.sampled_from(["", OPEN]))
def test_text_is_only_taken_away_at_the_ends_and_one_space_put_in(answer, reply, name, opening):
    text, _ = join(answer, reply, name, opening)
    kept = "".join(text.split())
    assert kept in "".join(reply.split()), "nothing is made up, reordered or dropped in the middle"
    if name != "completions" or (opening + answer).removeprefix(OPEN).strip():
        seam = (opening + answer)[-3:] + text[:3]
        assert "\n\n\n" not in seam or (opening + answer).endswith("\n\n\n")


def repeats(answer, reply):
    """Five characters or more of its end: more than half of what counts."""
    ours, theirs = "".join(answer.split()), "".join(reply.split())
    return any(theirs.startswith(ours[at:]) for at in range(len(ours) - 4))


@settings(max_examples=200, deadline=None)
@given(st.text("abc xyz.", min_size=1, max_size=40), st.text("abc xyz.", max_size=60), NAMES)
def test_a_continuation_without_a_long_repetition_is_kept_in_full(answer, reply, name):
    if dialect_named(name).is_asking or repeats(answer, reply):
        return
    text, dropped = join(answer, reply, name)
    assert dropped == ()
    assert text.split() == reply.split()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["2", "10", "x", "3y"]), min_size=2, max_size=9),
    st.sampled_from("+*-"),
    NAMES,
    st.data(),
)
def test_no_term_of_a_sum_is_lost(terms, sign, name, data):
    cut = data.draw(st.integers(1, len(terms) - 1))
    before, after = f" {sign} ".join(terms[:cut]), f" {sign} ".join(terms[cut:])
    if name != "instruct-aloud":
        text, dropped = join(f"The whole is {before} {sign}", f" {after} = z.", name)
        assert (text, dropped) == (f" {after} = z.", ())


@pytest.mark.parametrize("name", [dialect.name for dialect in DIALECTS if not dialect.thinks_aloud])
def test_little_is_held_back(name):
    """And of ordinary text nothing but a word or two."""
    words = "So the sum is 12, and with that we have what we wanted. " * 20
    seam = Seam(ANSWER, dialect=dialect_named(name), opening="")
    held = pushed = 0
    for at, character in enumerate(words, 1):
        pushed += len(seam.push(character))
        held = max(held, at - pushed)
    assert held <= 12
    for start in (
        "Sure, here is the ",
        "Okay, continuing ",
        "here is the sum of ",
        "\n" * 30,
        "Certainly, " * 3,
    ):
        seam = Seam(ANSWER, dialect=dialect_named(name), opening="")
        pushed = [seam.push(character) for character in start + "x " * MAX_HELD]
        assert len("".join(pushed)) > MAX_HELD
