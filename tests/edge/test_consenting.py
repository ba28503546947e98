"""`--policy ask` outside the chat: nothing leaves before the user has seen it and said yes."""

from pathlib import Path

from tests.command_line import call, run_in_terminal
from tests.edge.test_ask import QUESTION
from tests.raw_server import DONE, FIN, RawServer, head, text, usage

SPAN = [head(), text(" 20 * 4 = 80"), text("", "stop"), usage(100, 10), DONE, FIN]
ASKED = "a always: "


def ask(server: RawServer, home: Path, answer: str) -> tuple[int, str]:
    env = {"SR_EDGE_HOME": str(home)}
    typed = {ASKED: answer}
    options = ("--policy", "ask", "--temp", 0, "--big", server.url, "--big-model", "big")
    return run_in_terminal("ask", QUESTION, *options, env=env, typed=typed)


def test_no_keeps_it_here_and_the_small_model_goes_on(tmp_path: Path) -> None:
    with RawServer(*[SPAN] * 12) as server:
        code, seen = ask(server, tmp_path, "n\n")
    assert code == 0
    assert "wants" in seen
    assert server.requests == []


def test_yes_sends_this_span_and_asks_again_for_the_next(tmp_path: Path) -> None:
    with RawServer(*[SPAN] * 12) as server:
        code, seen = ask(server, tmp_path, "y\n")
    assert code == 0
    assert len(server.requests) == seen.count(ASKED) >= 1


def test_always_asks_once(tmp_path: Path) -> None:
    with RawServer(*[SPAN] * 12) as server:
        code, seen = ask(server, tmp_path, "a\n")
    assert code == 0
    assert seen.count(ASKED) == 1
    assert server.requests


def test_what_is_shown_is_what_is_sent(tmp_path: Path) -> None:
    with RawServer(*[SPAN] * 12) as server:
        _, seen = ask(server, tmp_path, "v\ny\n")
    assert QUESTION[:30] in seen.replace("\n", " ").split("wants", 1)[1]
    assert server.requests


def test_without_a_terminal_nothing_leaves(tmp_path: Path) -> None:
    with RawServer(*[SPAN] * 12) as server:
        done = call(
            *("ask", QUESTION, "--policy", "ask", "--temp", 0, "--big", server.url, "--big-model", "big"),
            env={"SR_EDGE_HOME": str(tmp_path)},
        )
    assert done.returncode == 0
    assert "nobody was there to ask" in done.stderr
    assert server.requests == []
