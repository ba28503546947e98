"""llama.cpp's own converter as a judge: fetched with its sources, run in a child, its files compared.

It comes in the source archive of llama-cpp-python, of the version that is installed. Set SR_EDGE_LLAMA_CPP to
a folder of llama.cpp's sources to fetch nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGUFReader
from tests.convert.making import LLAMA3_SPLIT, QWEN2_SPLIT

from sr_convert.fields import Value

CACHE = Path(__file__).parents[2] / ".cache" / "llama.cpp"

RealName = Literal["qwen2", "llama-bpe", "deepseek-r1-qwen"]

DEEPSEEK_ADDED = (
    ("<｜end▁of▁sentence｜>", True),  # noqa: RUF001
    ("<｜User｜>", False),  # noqa: RUF001
    ("<｜Assistant｜>", False),  # noqa: RUF001
    ("<｜begin▁of▁sentence｜>", True),  # noqa: RUF001
    ("<|EOT|>", False),
    ("<think>", False),
    ("</think>", False),
)
"""What DeepSeek's distilled models have in the places of Qwen's added tokens, and whether it is special."""

CHILD = """\
import importlib.util, json, sys
sources = sys.argv[1]
sys.path[:0] = [sources, sources + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import TextModel
if importlib.util.find_spec("sentencepiece") is None:  # it imports that before it looks for such a model
    def no_model(self):
        raise FileNotFoundError
    TextModel._set_vocab_sentencepiece = no_model
decide = TextModel.get_vocab_base_pre
for line in sys.stdin:
    task = json.loads(line)
    pre = task["pre"]
    TextModel.get_vocab_base_pre = decide if pre is None else lambda self, tokenizer, pre=pre: pre
    sys.argv = ["convert_hf_to_gguf.py", task["folder"], "--outfile", task["out"], "--outtype", task["type"]]
    try:
        convert_hf_to_gguf.main()
        error = None
    except (Exception, SystemExit) as problem:
        error = f"{type(problem).__name__}: {problem}"
    print("\\n" + json.dumps({"done": task["out"], "error": error}), flush=True)
"""


class OfficialError(Exception):
    """The official converter could not convert it."""


def llama_cpp_sources() -> Path:
    """The folder of llama.cpp's sources. Fetched once from the package index, into the repository's cache."""
    named = os.environ.get("SR_EDGE_LLAMA_CPP")
    if named:
        return Path(named)
    wanted = version("llama_cpp_python")
    folder = CACHE / f"llama_cpp_python-{wanted}" / "vendor" / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        fetch += ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(CACHE)]
        subprocess.run([*fetch, f"llama-cpp-python=={wanted}"], check=True)
        with tarfile.open(next(CACHE.glob(f"llama_cpp_python-{wanted}.tar.gz"))) as archive:
            archive.extractall(CACHE, filter="data")
    return folder


class Official:
    """The converter in a child process that lives on, since its imports take longer than its work."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def convert(self, folder: Path, out: Path, type: str, pre: str | None = None) -> None:
        """Args: pre: the pre-tokenizer's name to take without looking, for tokenizers that it doesn't know.

        Raises:
            OfficialError: it refused.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        task = {"folder": str(folder), "out": str(out), "type": type, "pre": pre}
        with suppress(BrokenPipeError):  # then it says nothing either
            self._child.stdin.write(json.dumps(task) + "\n")
            self._child.stdin.flush()
        for line in self._child.stdout:
            if line.startswith('{"done"'):
                error = json.loads(line)["error"]
                if error is not None:
                    raise OfficialError(error)
                return
        raise OfficialError(f"the child ended with {self._child.wait()}")


@contextmanager
def official_converter(log: Path) -> Iterator[Official]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment.pop("NO_LOCAL_GGUF", None)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(llama_cpp_sources())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as child,
    ):
        try:
            yield Official(child)
        finally:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it died, and was reported as that
                child.stdin.close()
            child.wait(60)


# --- two files compared ------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    fields: dict[str, tuple[tuple[str, ...], Value]]
    """Types, and the value."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    """Type, shape and bytes."""


def contents(path: Path) -> Contents:
    reader = GGUFReader(path)
    fields = {
        key: (tuple(kind.name for kind in field.types), field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape)), np.ascontiguousarray(t.data).tobytes())
        for t in reader.tensors
    }
    return Contents(fields, tensors)


def differences(ours: Contents, theirs: Contents) -> list[str]:
    """Where two files differ in what both have, and which tensors only one has."""
    found: list[str] = []
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        mine, other = ours.tensors.get(name), theirs.tensors.get(name)
        if mine is None or other is None:
            found.append(f"tensor {name} is only in {'theirs' if mine is None else 'ours'}")
        elif mine != other:
            wrong = sum(a != b for a, b in zip(mine[2], other[2], strict=False))
            found.append(f"tensor {name}: {mine[:2]} against {other[:2]}, {wrong} bytes differ")
    shared = sorted(ours.fields.keys() & theirs.fields.keys())
    wrong_keys = [key for key in shared if ours.fields[key] != theirs.fields[key]]
    return found + [f"{key}: {_shown(ours.fields[key], theirs.fields[key])}" for key in wrong_keys]


def only_in_one(ours: Contents, theirs: Contents) -> tuple[list[str], list[str]]:
    """Keys that only ours has, and that only theirs has."""
    return sorted(ours.fields.keys() - theirs.fields.keys()), sorted(
        theirs.fields.keys() - ours.fields.keys()
    )


def _shown(mine: tuple[Any, Any], other: tuple[Any, Any]) -> str:
    if mine[0] == other[0] and isinstance(mine[1], list) and len(mine[1]) == len(other[1]):
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(mine[1], other[1], strict=True)) if a != b]
        return f"{len(wrong)} items differ: {wrong[:4]}"
    return f"{mine!r:.200} against {other!r:.200}"


# --- real tokenizers, from the vocabularies that llama.cpp's tests use -------------------------


def write_real_tokenizer(folder: Path, name: RealName) -> None:
    """tokenizer.json and tokenizer_config.json as the family's published checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    family = "llama-bpe" if name == "llama-bpe" else "qwen2"
    fields = GGUFReader(llama_cpp_sources() / "models" / f"ggml-vocab-{family}.gguf").fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    num_base = types.index(3)
    special = [
        (token, True) for token, kind in zip(tokens[num_base:], types[num_base:], strict=True) if kind == 3
    ]
    added = [*DEEPSEEK_ADDED] if name == "deepseek-r1-qwen" else special
    is_llama = name == "llama-bpe"
    entries = [
        {
            "id": num_base + place,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for place, (content, special) in enumerate(added)
    ]
    split = {"Regex": LLAMA3_SPLIT if is_llama else QWEN2_SPLIT}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None if is_llama else {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": _post_processor(name, entries, byte_level),
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None if is_llama else "",
            "end_of_word_suffix": None if is_llama else "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": is_llama,
            "vocab": {token: id for id, token in enumerate(tokens[:num_base])},
            "merges": fields["tokenizer.ggml.merges"].contents(),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    bos, eos, pad, kind = {
        "qwen2": (None, "<|im_end|>", "<|endoftext|>", "Qwen2Tokenizer"),
        "llama-bpe": ("<|begin_of_text|>", "<|eot_id|>", None, "PreTrainedTokenizerFast"),
        "deepseek-r1-qwen": (
            DEEPSEEK_ADDED[3][0],
            DEEPSEEK_ADDED[0][0],
            DEEPSEEK_ADDED[0][0],
            "LlamaTokenizerFast",
        ),
    }[name]
    config = {
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": kind,
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    if name == "deepseek-r1-qwen":
        config |= {"add_bos_token": True, "add_eos_token": False, "legacy": True}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8"
    )


def _post_processor(name: RealName, entries: list[dict[str, Any]], byte_level: dict[str, Any]) -> Any:
    if name == "qwen2":
        return byte_level
    first = entries[0 if name == "llama-bpe" else 3]
    item = {"SpecialToken": {"id": first["content"], "type_id": 0}}
    later = {"SpecialToken": {"id": first["content"], "type_id": 1}}
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [item, a],
        "pair": [item, a, later, b],
        "special_tokens": {
            first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        },
    }
    if name == "deepseek-r1-qwen":
        return template
    return {"type": "Sequence", "processors": [byte_level, template]}
