"""`sr-edge`, whose child is the command that STAGED_CHILD says, one argument a line."""

import os
from functools import partial

import sr_edge.engine.host as host
from sr_edge.__main__ import run


def main() -> None:
    host.Engine = partial(host.Engine, command=os.environ["STAGED_CHILD"].split("\n"))  # type: ignore[misc]
    run()


if __name__ == "__main__":
    main()
