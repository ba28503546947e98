"""`sr-edge serve` judged by schemathesis: whether all that its own OpenAPI document says is true.

It sends what the document allows and what it does not, and looks at statuses, headers and bodies. The model
is one that takes any text: the built-in pair refuses most of what is valid.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serve.judges.serving import needs, served

pytestmark = [pytest.mark.slow, needs("schemathesis")]

PATIENCE = 1200.0
EXAMPLES = 60
"""Of each operation, in each phase."""


@pytest.mark.parametrize("seed", [1, 2])
def test_the_document_and_the_server_agree(tmp_path: Path, terse: Path, seed: int) -> None:
    command = shutil.which("schemathesis", path=os.path.dirname(sys.executable))
    assert command is not None
    report = tmp_path / "report.json"
    with served(tmp_path / "home", "-m", terse, "--offline", "--parallel", 4, "--queue", 64) as server:
        done = subprocess.run(
            [
                *(command, "run", f"{server.root}/openapi.json"),
                *("--header", f"Authorization: Bearer {server.token}"),
                *("--max-examples", str(EXAMPLES), "--seed", str(seed), "--workers", "2", "--no-color"),
                *("--continue-on-failure", "--report-json-path", str(report)),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())
