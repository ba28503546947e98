"""What is private stays here: replaced before it leaves, put back wherever the answer is cut."""

import base64
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sr_edge.errors import UsageError
from sr_edge.redact import RULES, Redacting, Redactor, Restorer, rules
from sr_edge.roles import Message
from sr_edge.suites.demo import problems, solution_text
from sr_edge.testing import Reply, ScriptedRemote, ScriptedStream

KEY = "sk-proj-4fT9xQ2mZ7aB1cD8eF3gH6jK"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7Zk3\nq9X1vLw=\n-----END RSA PRIVATE KEY-----"

PRIVATE = {
    "email": [
        ("Write to ida.k+home@example.com.", "Write to EMAIL1X."),
        ("(ida@example.co.uk), <tom@example.org>", "(EMAIL1X), <EMAIL2X>"),
        ("IDA@EXAMPLE.COM or ida@Example.Com", "EMAIL1X or EMAIL2X"),
        ("mailto:ida@example.com?subject=x", "mailto:EMAIL1X?subject=x"),
        ("müller@münchen.de, o'neil@example.ie", "EMAIL1X, EMAIL2X"),
    ],
    "path": [
        ("in /home/ida/notes.txt.", "in PATH1X."),
        ("/Users/ida/.ssh/id_ed25519 and ~/work/plan.md", "PATH1X and PATH2X"),
        ('open("/home/ida/My Documents/a b.txt")', 'open("PATH1X")'),
        (r"cd /home/ida/My\ Documents/x; ls", "cd PATH1X; ls"),
        ("file:///home/ida/x.html, see it", "PATH1X, see it"),
        ("/projects/secret/report.pdf: 3 pages", "PATH1X: 3 pages"),
        (r"C:\Users\Ida K\notes.txt is", "PATH1X is"),
        (r'"C:\\Users\\ida\\notes.txt"', '"PATH1X"'),
        (r"D:\plans\2026.xlsx, E:/plans/x.csv", "PATH1X, PATH2X"),
        (r"\\server\share\plan.docx", "PATH1X"),
        ("PATH=/opt/ida/bin:/home/ida/bin", "PATH=PATH1X:PATH2X"),
    ],
    "key": [
        (f"my key is {KEY}.", "my key is KEY1X."),
        ("hf_" + "aBcDeFgHiJ" * 3, "KEY1X"),
        ("ghp_" + "a1B2c3" * 6 + ", github_pat_11" + "ABC_def0" * 4, "KEY1X, KEY2X"),
        ("AKIAIOSFODNN7EXAMPLE and xoxb-123456789012-abcdefGHIJKL", "KEY1X and KEY2X"),
        ("Authorization: Bearer abc123DEF456ghi789", "Authorization: Bearer KEY1X"),
        (f"{PEM}\nmore", "KEY1X\nmore"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\nMIIEvQIBADANBgkqhkiG\nso", "KEY1X\nso"),
        ('DB_PASSWORD="x7Kq-92mZp4w"', 'DB_PASSWORD="KEY1X"'),
        ('{"api_key": "9f8e7d6c5b4a39281706"}', '{"api_key": "KEY1X"}'),
        ("postgres://ida:hunter2@localhost/x", "postgres://KEY1X@localhost/x"),
    ],
}
CASES = [(rule, text, hidden) for rule, cases in PRIVATE.items() for text, hidden in cases]

HARMLESS = [
    "3/4 + 1/2 = 5/4, a/b, and/or, km/h, 24/7, 1/2/3, n / m, 10 / 5 = 2",
    r"$\frac{a}{b} \in \mathbb{R}/\mathbb{Z}$, $f:\mathbb{R}\to\mathbb{R}$, $F:\Omega\rightarrow\Omega'$",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} \\ \hline \alpha\beta\gamma",
    r"x ~ y/z, ~n/2, Fig.~\ref{fig:a/b}, \home/x, $a \sim b/c$",
    "https://example.com/home/ida/x.txt?f=/home/ida/x.txt, http://localhost:8080/tmp/x",
    "/^[a-z]+$/g, s/foo/bar/, /foo/i, awk '$1 ~ /re/ {print}', $x =~/foo/",
    "GET /v1/models, POST /api/v1/users/7, <img src=/img/logo.png>, </div>, // comment, /* a */",
    "#!/usr/bin/env python, 2>/dev/null, /bin/sh -c, and/etc/, ./home/x, ../tmp/y",
    "y = x @ W.T + b; h = q@k.mT; z = a @ layer.weight; @app.get('/items'); x@y.to(device)",
    "git clone git@github.com:ida/x.git; npm i @types/node@18.0.0; user@localhost; @ida",
    "token = tokenizer.encode(text); max_tokens=512; password: str | None = None; auth = get_auth(request)",
    "secret number: 12 + 30; key = value; api_key=os.environ['API_KEY']; tokens_per_second = 1024.5",
    "task-force-2026-planning-committee, risk-adjusted, sk-learn, hf_hub_download, xoxo, AKIA",
    "for i in range(10): print(a[i] / b[i])  # 50 % of 1/3",
    "the ratio is 3:4, at 10:30, C: the third case, (a):\\n",
    "EMAIL, PATH and KEY1 are words; EMAIL0X, PATHX and WORD 1X as well",
]


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


def restored(parts: list[str], redactor: Redactor) -> str:
    restorer = Restorer(redactor)
    return "".join(map(restorer.push, parts)) + restorer.flush()


@pytest.mark.parametrize(("rule", "text", "hidden"), CASES)
def test_what_is_private_is_replaced_and_put_back(rule: str, text: str, hidden: str) -> None:
    redactor = rules([rule])
    assert redactor.redact(text) == hidden
    assert redactor.restore(hidden) == text
    assert rules(RULES).redact(text) == hidden
    assert rules([]).redact(text) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_formulas_code_and_addresses_of_the_web_stay(text: str) -> None:
    assert rules(RULES).redact(text) == text


def test_the_demo_problems_stay() -> None:
    redactor = rules(RULES)
    texts = [f"{problem.question}\n{solution_text(problem)}" for problem in problems(3, 2000)]
    assert [text for text in texts if redactor.redact(text) != text] == []
    assert redactor.summary() is None


def test_a_value_has_one_placeholder_in_the_whole_conversation() -> None:
    redactor = rules(["email", "path"])
    assert redactor.redact("a@example.com b@example.com") == "EMAIL1X EMAIL2X"
    assert redactor.redact("~/x.txt b@example.com") == "PATH1X EMAIL2X"
    assert redactor.counts == {"email": 2, "path": 1}
    assert redactor.summary() == "2 mail addresses and 1 path were replaced before sending"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("28 * 4", None),
        ("a@example.com, a@example.com", "1 mail address was replaced before sending"),
        (
            f"a@example.com ~/x.txt ~/y.txt {KEY}",
            "1 mail address, 2 paths and 1 key were replaced before sending",
        ),
        ("EMAIL1X", None),  # it was not private
    ],
)
def test_the_user_is_told_how_much_was_replaced(text: str, line: str | None) -> None:
    redactor = rules(RULES)
    redactor.redact(text)
    assert redactor.summary() == line


def test_what_looks_like_a_placeholder_gets_one_itself() -> None:
    redactor = rules(["email"])
    text = "EMAIL1X is a@example.com, MONKEY1X is not"
    hidden = redactor.redact(text)
    assert hidden == "WORD1X is EMAIL1X, MONWORD2X is not"
    assert redactor.restore(hidden) == text
    assert redactor.restore("EMAIL2X and WORD9X") == "EMAIL2X and WORD9X"  # nobody's


def test_known_secrets_are_found_by_value_in_every_spelling() -> None:
    secret = "correct horse/battery"
    redactor = rules(["key"], secrets=[secret, "short", ""])
    encoded = base64.b64encode(secret.encode()).decode()
    hidden = redactor.redact(f"{secret} correct%20horse%2Fbattery {encoded} short")
    assert hidden == "KEY1X KEY2X KEY3X short"
    assert redactor.restore(hidden) == f"{secret} correct%20horse%2Fbattery {encoded} short"
    assert rules(["email"], secrets=[secret]).redact(secret) == secret


def test_finds_that_overlap_are_hidden_together() -> None:
    text = "/home/ida@example.com/x and https://ida:pa55@example.com/"
    assert rules(RULES).redact(text) == "PATH1X and https://KEY1X/"


def test_an_unknown_rule_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'emails': did you mean 'email'"):
        rules(["path", "emails"])
    with pytest.raises(UsageError, match="there are email, path, key"):
        rules(["x"])


PARTS = st.lists(
    st.one_of(
        st.sampled_from([text for _, text, _ in CASES] + HARMLESS),
        st.sampled_from(["EMAIL1X", "PATH2", "X", "WORD1X", "KEY", "EM", "AIL1X", "1", "/home/", "@", "sk-"]),
        st.sampled_from(["a@example.com", "~/plan.md", KEY, " ", "\n", '"']),
        st.text(max_size=8),
    ),
    max_size=8,
).map("".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(PARTS, CUTS)
@example("EMAIL1Xa@example.com", [])
@example("EMAILa@example.com1X", [3])
def test_redaction_can_be_undone_wherever_the_text_is_cut(text: str, cuts: list[int]) -> None:
    redactor = rules(RULES)
    hidden = redactor.redact(text)
    assert redactor.restore(hidden) == text
    assert restored(pieces(hidden, cuts), redactor) == text
    assert restored([*hidden], redactor) == text


@given(PARTS, PARTS, CUTS)
def test_however_an_answer_is_cut_the_same_is_restored(asked: str, answer: str, cuts: list[int]) -> None:
    redactor = rules(RULES)
    redactor.redact(asked)
    answer = answer.replace("a@example.com", "EMAIL1X").replace("~/plan.md", "PATH1X")
    assert restored(pieces(answer, cuts), redactor) == redactor.restore(answer)


@given(PARTS)
def test_little_is_held_back(text: str) -> None:
    restorer = Restorer(rules(RULES))
    come = 0
    for n, character in enumerate(text, 1):
        come += len(restorer.push(character))
        assert n - come <= len("EMAIL123456789")
    assert come + len(restorer.flush()) == len(text)


@given(PARTS, PARTS)
def test_what_was_hidden_once_is_hidden_in_the_same_way(text: str, more: str) -> None:
    redactor = rules(RULES)
    hidden = redactor.redact(text)
    redactor.redact(more)
    assert redactor.redact(text) == hidden  # so that the remote finds it in its cache


class Recorder(ScriptedRemote):
    """Keeps what it was sent."""

    def stream(self, messages: Sequence[Message], answer: str, max_tokens: int) -> ScriptedStream:
        self.sent = [message.content for message in messages], answer, max_tokens
        return super().stream(messages, answer, max_tokens)


def test_the_remote_sees_placeholders_and_we_see_values() -> None:
    remote = Recorder([Reply((" to EMA", "IL1X and PATH", "1", "X, EMAIL7X, EM"))])
    redacting = Redacting(remote, rules(["email", "path"]))
    stream = redacting.stream(
        [Message("user", "Is ida@example.com in ~/a.txt?")], "I ask ida@example.com", 64
    )
    read = []
    while (text := stream.read(1)) is not None:
        read.append(text)
    assert "".join(read) == " to ida@example.com and ~/a.txt, EMAIL7X, EM"
    assert stream.read(1) is None
    assert stream.outcome.end == "stop"
    assert redacting.name == remote.name
    assert redacting.counts == {"email": 1, "path": 1}
    assert remote.sent == (["Is EMAIL1X in PATH1X?"], "I ask EMAIL1X", 64)
    stream.close()
    assert remote.streams[0].closed


def test_hostile_text_costs_time_in_proportion() -> None:
    redactor = rules(RULES, secrets=[KEY])
    began = time.process_time()
    for unit in (
        "/ab",
        "/home/",
        '"/home/',
        "a.",
        "x@a.",
        "token",
        "token=",
        "C:\\a ",
        "://a:",
        "~/",
        "%a",
        "PEM",
    ):
        redactor.redact(unit * 20_000)
    redactor.redact("-----BEGIN PRIVATE KEY-----" * 5000)
    assert time.process_time() - began < 10  # about 1 here
