"""Whether a server stops when we hang up, as a survey sees it."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sr_edge.remote.endpoint import Deadlines, Endpoint
from sr_edge.roles import Prompt

STEP = 0.006  # seconds a token


@contextlib.contextmanager
def one_at_a_time(*, stops):
    """A server with raw completions that writes one reply after the other, a word every few milliseconds."""
    busy = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            words = ["g h i j k l"] if "alphabet" in str(body) else ["1 "] * body.get("max_tokens", 0)
            with busy:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for n, word in enumerate(words):
                    choice = {
                        "index": 0,
                        "text": word,
                        "finish_reason": "length" if n == len(words) - 1 else None,
                    }
                    try:
                        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                    except OSError:
                        if stops:
                            return
                    time.sleep(STEP)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield "http://{}:{}".format(*http.server_address)
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("stops", [True, False])
def test_a_server_that_goes_on_writing_for_nobody_is_seen(stops):
    deadlines = Deadlines(linger=0.05)
    with (
        one_at_a_time(stops=stops) as url,
        Endpoint(url, prompt=lambda messages: Prompt((), "", ""), model="m", deadlines=deadlines) as remote,
    ):
        assert remote.survey().can_cancel is stops
