"""Plays a child of the engine from a file: what it says, line by line, and where it waits for its host.

`{"wait": "answer"}` waits for a command of that kind, after which `"number": 0` in what is said means the
number of the last answer. `{"sleep": SECONDS}` sleeps, `{"die": SIGNAL}` dies.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(script: Path) -> None:
    number = 0
    for line in script.read_text().splitlines():
        step = json.loads(line)
        if "wait" in step:
            while True:
                said = sys.stdin.readline()
                if not said:
                    return
                command = json.loads(said)
                number = command["number"] if command["say"] == "answer" else number
                if command["say"] == step["wait"]:
                    break
        elif "sleep" in step:
            time.sleep(step["sleep"])
        elif "die" in step:
            os.kill(os.getpid(), step["die"])
        else:
            if step.get("number") == 0:
                step["number"] = number
            print(json.dumps(step), flush=True)
    while sys.stdin.readline():
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
