import os
import re
import stat
import threading

import pytest

from sr_edge.errors import UsageError
from sr_edge.serve.token import serve_token, token_path


@pytest.fixture
def environ(tmp_path):
    return {"SR_EDGE_HOME": str(tmp_path / "home")}


def test_it_is_made_once_for_its_owner_alone(environ):
    token = serve_token(environ)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)  # 256 bits
    assert serve_token(environ) == token
    path = token_path(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == f"{token}\n"


def test_no_two_are_the_same(tmp_path):
    assert len({serve_token({"SR_EDGE_HOME": str(tmp_path / str(n))}) for n in range(20)}) == 20


def test_starts_at_the_same_moment_agree(environ):
    found = []
    threads = [threading.Thread(target=lambda: found.append(serve_token(environ))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604, 0o660, 0o777])
def test_one_that_others_can_reach_is_refused(environ, mode):
    serve_token(environ)
    token_path(environ).chmod(mode)
    with pytest.raises(UsageError, match=rf"mode {mode:03o}\): remove it"):
        serve_token(environ)


@pytest.mark.parametrize(
    "text", ["", "secret", "x" * 42, "x" * 44, "x" * 42 + "é", "x" * 10_000, "x" * 43 + "\n\n"]
)
def test_what_is_no_token_is_refused_and_not_shown(environ, text):
    serve_token(environ)
    token_path(environ).write_text(text)
    with pytest.raises(UsageError, match="it holds something else") as raised:
        serve_token(environ)
    assert not text.strip() or text.strip() not in str(raised.value)


def test_what_is_no_file_is_refused(environ):
    path = token_path(environ)
    path.mkdir(parents=True)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        serve_token(environ)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(UsageError, match="it is not a file"):
        serve_token(environ)
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))
    with pytest.raises(UsageError, match="a link that leads nowhere"):
        serve_token(environ)
