"""`sr-edge serve` as its user starts it and its clients find it, with the built-in models."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.command_line import COMMAND, TIMEOUT, call, environment
from tests.serve.serving import Got, connect, exchange, read, request, serving, until

from sr_edge.serve.desk import Desk, settings_for
from sr_edge.session import Session, SessionSettings
from sr_edge.suites.demo import problems
from sr_edge.testing.egress_trap import EgressTrap

QUESTION = problems(seed=3, n=1)[0].question
URL = "https://far.example/v1"


class Child:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self.process = process
        self.home = home
        self.url = process.stdout.readline().strip()
        assert self.url, "it ended before it was ready"
        self.port = urlsplit(self.url).port
        self.token = (home / "state" / "serve-token").read_text().strip()

    def ask(self, target: str = "/v1/models", **more) -> Got:
        return exchange(self.port, request(self.port, target, token=self.token, **more))

    def chat(self, **more) -> bytes:
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], **more}).encode()
        return request(self.port, "/v1/chat/completions", method="POST", token=self.token, body=body)

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err


@contextmanager
def started(home: Path, *, stderr: int = subprocess.PIPE):
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment(SR_EDGE_HOME=str(home)),
    )
    try:
        yield Child(process, home)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_server_from_its_start_to_its_end(tmp_path):
    with started(tmp_path) as child:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", child.url)
        models = [model["id"] for model in child.ask().json["data"]]
        assert models == ["sr-edge-demo-small", "sr-edge-demo-small:local", "sr-edge-demo-small:remote"]
        answer = exchange(child.port, child.chat(temperature=0)).json
        assert "\\boxed{" in answer["choices"][0]["message"]["content"]
        streamed = exchange(child.port, child.chat(temperature=0, stream=True))
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        refused = exchange(child.port, child.chat(messages=[{"role": "user", "content": "Sing a song."}]))
        assert (refused.status, refused.code) == (400, "refused")
        page = exchange(child.port, request(child.port, "/", token=None))
        assert b"<html" in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "/v1/chat/completions" in child.ask("/openapi.json").json["paths"]
        assert b"sr_edge_cursors_taken 0.0" in child.ask("/metrics").body
        printed = call("serve", "--print-token", env={"SR_EDGE_HOME": str(tmp_path)})
        assert printed.stdout == f"{child.token}\n"

        with connect(child.port) as wire:  # an answer is under way when the end comes
            wire.sendall(child.chat(temperature=1.5, stream=True))
            wire.recv(1)
            code, out, err = child.end(signal.SIGTERM)
    assert (code, out) == (143, "")  # the URL was all
    assert f"sr-edge: sr-edge-demo-small is served at {child.url}" in err
    assert str(tmp_path / "state" / "serve-token") in err
    assert child.token not in err
    assert "Traceback" not in err


def test_on_a_terminal_the_page_comes_with_its_token_and_ctrl_c_ends_it(tmp_path):
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, started(tmp_path, stderr=theirs) as child:
        code, out, _ = child.end(signal.SIGINT)
        shown = terminal.read(65536).decode()
        os.close(theirs)
    assert (code, out) == (130, "")
    assert f"/#token={child.token}" in shown
    assert "Traceback" not in shown


@contextmanager
def a_taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def refusal(*options: object, **env: str) -> str:
    """The one line with which it does not start."""
    done = call("serve", *options, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    *_, line = done.stderr.splitlines()
    assert line.startswith("sr-edge: ")
    return line


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do():
    with a_taken_port() as port:
        done = call("serve", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1 port {port} is taken" in done.stderr
    assert "--port" in done.stderr


def test_f79_beyond_this_machine_only_with_a_word_and_a_name():
    assert "--beyond-loopback" in refusal("--host", "0.0.0.0", "--port", 0)
    assert "--allow-host" in refusal("--host", "0.0.0.0", "--port", 0, "--beyond-loopback")
    assert "--beyond-loopback" in refusal("--host", "10.1.2.3", "--port", 0, "--allow-host", "box.lan")
    assert "no address" in refusal("--host", "example.com", "--port", 0, "--beyond-loopback")
    assert "--host" in refusal("--host", "192.0.2.1", "--port", 0, "--beyond-loopback")


def test_a_name_that_lets_everybody_in_is_none():
    assert "--allow-host" in refusal("--port", 0, "--allow-host", "*")
    assert "--allow-origin" in refusal("--port", 0, "--allow-origin", "null")


def test_an_endpoint_is_asked_only_where_that_is_allowed(tmp_path):
    home = str(tmp_path)
    assert "--allow-remote" in refusal("--port", 0, "--big", URL, SR_EDGE_HOME=home)
    assert call("remote", "add", "far", URL, "--model", "m", env={"SR_EDGE_HOME": home}).returncode == 0
    assert "far is on the network" in refusal("--port", 0, "--remote", "far", SR_EDGE_HOME=home)
    with a_taken_port() as port:  # which is looked at later
        done = call("serve", "--port", port, env={"SR_EDGE_HOME": home})
        assert "far is not asked: --allow-remote" in done.stderr
        done = call("serve", "--port", port, "--allow-remote", env={"SR_EDGE_HOME": home})
        assert "far is not asked" not in done.stderr


def test_a_token_that_others_can_read_is_not_used(tmp_path):
    home = {"SR_EDGE_HOME": str(tmp_path)}
    assert call("serve", "--print-token", env=home).returncode == 0
    (tmp_path / "state" / "serve-token").chmod(0o644)
    assert "others may read" in refusal("--print-token", **home)
    assert "others may read" in refusal("--port", 0, **home)


def test_models_that_are_not_there_end_it_as_in_the_other_commands():
    done = call("serve", "--port", 0, "-m", "nowhere.gguf")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1


# --- the true desk behind the true door ---------------------------------------------------------------


@contextmanager
def demo(**more):
    settings = settings_for(SessionSettings(**more), 2)
    with Session.open(settings) as session, Desk(session, settings) as desk, serving(desk) as served:
        yield served


def asking(port: int, **more) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, **more})
    return request(port, "/v1/chat/completions", method="POST", body=body.encode())


def test_f77_offline_nothing_is_called_though_an_endpoint_is_named():
    with EgressTrap() as trap, demo(big=URL, big_model="m", offline=True) as served:
        for model in ("sr-edge-demo-small", "sr-edge-demo-small:local"):
            got = exchange(served.port, asking(served.port, model=model))
            assert got.status == 200
        assert trap.outside(("127.0.0.1", served.port)) == []  # our own client's


def test_f82_decoding_stops_when_a_client_leaves_and_its_place_is_free_again():
    with demo() as served:
        before = exchange(served.port, asking(served.port)).json["choices"][0]["message"]
        for _ in range(4):  # twice as many as are written at once
            wire = connect(served.port)
            wire.sendall(asking(served.port, temperature=1.0, stream=True))
            wire.recv(1)
            wire.close()
        until(lambda: served.desk.figures().running == 0)
        figures = served.desk.figures()
        assert (figures.waiting, figures.cursors_taken) == (0, 0)
        assert exchange(served.port, asking(served.port)).json["choices"][0]["message"] == before


def test_many_clients_at_once_get_their_own_answers():
    """Each is answered as it would be alone."""
    asked = [problem.question for problem in problems(seed=5, n=6)]

    def answer(port: int, question: str, *, is_stream: bool) -> str:
        messages = [{"role": "user", "content": question}]
        with connect(port, timeout=60) as wire:
            wire.sendall(asking(port, messages=messages, stream=is_stream))
            got = read(wire)
        if not is_stream:
            return got.json["choices"][0]["message"]["content"]
        lines = [line.removeprefix("data: ") for line in got.body.decode().split("\n\n")[:-2]]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        return "".join(delta.get("content", "") for delta in deltas)

    with demo() as served:
        alone = [answer(served.port, question, is_stream=False) for question in asked]
        together: dict[int, str] = {}

        def take(n: int) -> None:
            together[n] = answer(served.port, asked[n], is_stream=n % 2 == 0)

        threads = [threading.Thread(target=take, args=(n,)) for n in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[n] for n in range(len(asked))] == alone
