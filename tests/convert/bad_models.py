"""Models that cannot work, each in its own way: GGUFs, and checkpoints.

A case makes its model in a folder of its own, and says what the program is asked to do with it, what the one
line must say, and the exit code.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from tests.tiny_gguf import write_tiny_gguf

Made = Path
"""What the command is given."""


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], Made]
    """Makes the model in this folder."""
    says: str
    """A part of the line that is no other case's."""
    command: tuple[str, ...] = ("models", "import", "{}")
    code: int = 4


def replaced(path: Path, old: bytes, new: bytes, offset: int = 0) -> Path:
    """Overwrite what stands `offset` bytes after the first `old`."""
    data = bytearray(path.read_bytes())
    at = data.index(old) + offset
    data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def content(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(data)
        return path

    return make


def tiny(folder: Path, **options: Any) -> Path:
    return write_tiny_gguf(folder / "model.gguf", **options)


def patched(old: bytes, new: bytes, offset: int = 0, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: replaced(tiny(folder, **options), old, new, offset)


def number(key: str, value: int) -> Callable[[Path], Path]:
    """A number of the metadata, four bytes of it, becomes another."""
    return patched(key.encode(), struct.pack("<I", value), len(key) + 4)


def cut(keep: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = tiny(folder)
        os.truncate(path, round(path.stat().st_size * keep))
        return path

    return make


def tensor(name: str, field: str, value: int) -> Callable[[Path], Path]:
    """A number of a tensor's entry: behind its name: how many dimensions, each of two, type, offset."""
    form, place = {"dimensions": ("<I", 0), "first": ("<Q", 4), "second": ("<Q", 12),
                   "type": ("<I", 20), "offset": ("<Q", 24)}[field]  # fmt: skip
    return patched(name.encode(), struct.pack(form, value), len(name) + place)


def header(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def written(fill: Callable[[gguf.GGUFWriter], None], architecture: str = "qwen2") -> Callable[[Path], Path]:
    """A GGUF that the writer wrote, whatever is in it."""

    def make(folder: Path) -> Path:
        path = folder / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def vocabulary_only(writer: gguf.GGUFWriter) -> None:
    for add, value in ((writer.add_context_length, 64), (writer.add_block_count, 1),
                       (writer.add_embedding_length, 64), (writer.add_head_count, 4)):  # fmt: skip
        add(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.gguf")
    return folder / "model.gguf"


def loop(folder: Path) -> Path:
    (folder / "model.gguf").symlink_to("model.gguf")
    return folder / "model.gguf"


KEY = "qwen2."
GGUFS = (
    Case("missing", lambda folder: folder / "model.gguf", "no such file"),
    Case("a folder", lambda folder: folder, "this is a directory"),
    Case("a pipe", fifo, "not a regular file"),
    Case("a link to itself", loop, "symbolic link"),
    Case("empty", content(b""), "the file is empty"),
    Case("a web page", content(b"<!DOCTYPE html><html>404"), "a web page"),
    Case("an LFS pointer", content(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    Case("a zip archive", content(b"PK\x03\x04" + bytes(60)), "a zip archive"),
    Case("a pickle", content(b"\x80\x02}q\x00" + bytes(60)), "a Python pickle"),
    Case("safetensors", content(struct.pack("<Q", 300) + b'{"a":{}}'), "safetensors: convert"),
    Case("JSON", content(b'{"architectures": []}'), "JSON text"),
    Case("GGML", content(b"tjgg" + bytes(60)), "a GGML file"),
    Case("gzip", content(b"\x1f\x8b\x08" + bytes(60)), "compressed with gzip"),
    Case("zstd", content(b"\x28\xb5\x2f\xfd" + bytes(60)), "compressed with zstd"),
    Case("7z", content(b"7z\xbc\xaf\x27\x1c" + bytes(60)), "a 7z archive"),
    Case("zeros", content(bytes(4096)), "zeros: the download is incomplete"),
    Case("a line of text", content(b"Not Found"), "text, 'Not Found'"),
    Case("noise", content(bytes(range(200, 256)) * 4), "begins with c8 c9"),
    Case("only the magic", content(b"GGUF"), "after 4 bytes"),
    Case("version 1", content(b"GGUF" + struct.pack("<I", 1) + bytes(64)), "GGUF version 1"),
    Case("version 77", content(b"GGUF" + struct.pack("<I", 77) + bytes(64)), "GGUF version 77"),
    Case("big-endian", content(b"GGUF" + struct.pack(">I", 3) + bytes(64)), "big-endian"),
    Case("a billion tensors", content(header(1 << 30, 0)), "1,073,741,824 tensors"),
    Case("keys beyond counting", content(header(0, 1 << 62)), "and 4,611,686,018,427,387,904 keys"),
    Case("no key at all", content(header(0, 0)), "does not say its model's architecture"),
    Case("a key of 2**63 bytes", content(header(0, 1, struct.pack("<Q", 1 << 63))), "after 32 bytes"),
    Case("an empty key", content(header(0, 1, text("") + bytes(16))), "one of its keys is empty"),
    Case("a value of no type", content(header(0, 1, text("k") + struct.pack("<I", 99))), "unknown type (99)"),
    Case(
        "a list of lists", content(header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1))), "unknown type (9)"
    ),
    Case(
        "a list of 2**61", content(header(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 1 << 61))), "after 49"
    ),
    Case(
        "an endless text", patched(b"general.name", struct.pack("<Q", 1 << 40), 16), "inside its own metadata"
    ),
    Case(
        "a key twice",
        patched(b"general.nama", b"general.name", metadata={"general.nama": "b"}),
        "in it twice",
    ),
    Case("cut in the metadata", cut(0.005), "incomplete or damaged"),
    Case("cut in the weights", cut(0.9), "the file is cut short"),
    Case("an unknown architecture", lambda f: tiny(f, architecture="mamba"), "architecture is 'mamba'"),
    Case("an adapter", lambda f: tiny(f, metadata={"general.type": "adapter"}), "no model but 'adapter'"),
    Case("another tokenizer", patched(b"gpt2", b"bert"), "the tokenizer is 'bert'"),
    Case("no vocabulary", written(lambda writer: writer.add_name("nothing")), "the file has no vocabulary"),
    Case("equal tokens", lambda f: tiny(f, words=["twin", "twin"]), "the same spelling"),
    Case("a vocabulary without weights", written(vocabulary_only), "a vocabulary but no weights"),
    Case("no layers", number(KEY + "block_count", 0), "an impossible 'block_count', 0"),
    Case("too many layers", number(KEY + "block_count", 1 << 20), "'block_count', 1048576"),
    Case("no context", number(KEY + "context_length", 0), "an impossible 'context_length'"),
    Case("no width", number(KEY + "embedding_length", 0), "an impossible 'embedding_length'"),
    Case("no heads", number(KEY + "attention.head_count", 0), "an impossible 'attention.head_count', 0"),
    Case(
        "heads of no width",
        number(KEY + "attention.head_count", 1 << 20),
        "an impossible 'attention.head_count', 1048576",
    ),
    Case("no key-value heads", number(KEY + "attention.head_count_kv", 0), "'attention.head_count_kv'"),
    Case(
        "five dimensions", tensor("output.weight", "dimensions", 5), "'output.weight' is in it twice, or has"
    ),
    Case("no columns", tensor("output.weight", "first", 0), "'output.weight' has an impossible shape"),
    Case(
        "rows beyond counting",
        tensor("token_embd.weight", "second", 1 << 60),
        "'token_embd.weight' has an imp",
    ),
    Case("a type of the future", tensor("output.weight", "type", 250), "'output.weight' has type 250"),
    Case("a tensor elsewhere", tensor("output.weight", "offset", 12345), "'output.weight' is not where"),
    Case("a tensor twice", patched(b"blk.1.ffn_up", b"blk.0.ffn_up"), "'blk.0.ffn_up.weight' is in it twice"),
    # From here on the header is sound, and llama.cpp is the one that says no.
    Case("a tensor under another name", patched(b"blk.1.ffn_up", b"blk.9.ffn_up"), "blk.1.ffn_up.weight"),
    Case("another shape", number(KEY + "feed_forward_length", 96), "has wrong shape"),
    Case("more layers than tensors", number(KEY + "block_count", 3), "blk.2."),
    Case("a pre-tokenizer of the future", patched(b"tokenizer.ggml.pre", b"qwen9", 30), "qwen9"),
)


# --- checkpoints ---------------------------------------------------------------------------------------

CONVERT = ("convert", "{}", "-o", "{}/out.gguf", "--type", "f16")
_WEIGHTS = "model.safetensors"


def checkpoint(change: Callable[[Path], object], **options: Any) -> Callable[[Path], Path]:
    """A sound checkpoint, and what is wrong with it now."""

    def make(folder: Path) -> Path:
        from tests.convert.making import make_checkpoint

        path = make_checkpoint(folder / "checkpoint", **options)
        change(path)
        return path

    return make


def config(**changes: Any) -> Callable[[Path], object]:
    return edited("config.json", lambda found: found | changes)


def edited(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return make


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def becomes(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def weights(change: Callable[[dict[str, Any], bytearray], object]) -> Callable[[Path], object]:
    """The header of the safetensors, and the bytes behind it, become others."""

    def make(folder: Path) -> None:
        path = folder / _WEIGHTS
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        found, rest = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
        change(found, rest)
        header = json.dumps(found).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + rest)

    return make


def entry(name: str, **changes: Any) -> Callable[[Path], object]:
    return weights(lambda found, rest: found[name].update(changes))


def shorter(folder: Path) -> None:
    os.truncate(folder / _WEIGHTS, (folder / _WEIGHTS).stat().st_size - 5)


def infinite(found: dict[str, Any], rest: bytearray) -> None:
    first, _ = found["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
    rest[first : first + 4] = struct.pack("<f", float("inf"))


def sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b")


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(found: dict[str, Any]) -> dict[str, Any]:
        change(found)
        return found

    return edited("tokenizer.json", apply)


def other_words(found: dict[str, Any]) -> None:
    found["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


UP = "model.layers.0.mlp.up_proj.weight"
WINDOW = {"use_sliding_window": True, "sliding_window": 64, "layer_types": None, "max_window_layers": 0}
CHECKPOINTS = (
    Case("no folder", lambda folder: folder / "nowhere", "there is no such folder", CONVERT[:2]),
    Case("a file", content(b"GGUF"), "this is a file: name the folder", CONVERT[:2]),
    Case("no config", checkpoint(without("config.json")), "there is no config.json", CONVERT),
    Case("a config that is cut", checkpoint(becomes("config.json", b'{"a": ')), "this is no JSON", CONVERT),
    Case("a config that is a list", checkpoint(becomes("config.json", b"[]")), "this is no config", CONVERT),
    Case(
        "no architecture",
        checkpoint(config(architectures=None, model_type=None)),
        "does not say the",
        CONVERT,
    ),
    Case(
        "another architecture", checkpoint(config(architectures=["MambaForCausalLM"])), "MambaForC", CONVERT
    ),
    Case(
        "no width", checkpoint(config(hidden_size=None)), "it does not say the model's hidden_size", CONVERT
    ),
    Case("no heads", checkpoint(config(num_attention_heads=0)), "num_attention_heads", CONVERT),
    Case("heads that do not fit", checkpoint(config(num_key_value_heads=3)), "cannot share 3", CONVERT),
    Case("another width", checkpoint(config(hidden_size=96)), "96", CONVERT),
    Case("more layers", checkpoint(config(num_hidden_layers=3)), "model.layers.2.", CONVERT),
    Case("fewer layers", checkpoint(config(num_hidden_layers=1)), "model.layers.1.", CONVERT),
    Case("GPTQ", checkpoint(config(quantization_config={"quant_method": "gptq"})), "(gptq)", CONVERT),
    Case("a window", checkpoint(config(**WINDOW)), "window of 64", CONVERT),
    Case("another activation", checkpoint(config(hidden_act="relu")), "'relu'", CONVERT),
    Case(
        "an unknown rope",
        checkpoint(config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0})),
        "spiral",
        CONVERT,
    ),
    Case("no weights", checkpoint(without(_WEIGHTS)), "there are no weights", CONVERT),
    Case(
        "a pickle", checkpoint(lambda f: (f / _WEIGHTS).rename(f / "pytorch_model.bin")), "pickles", CONVERT
    ),
    Case(
        "an adapter",
        checkpoint(lambda f: (f / "config.json").rename(f / "adapter_config.json")),
        "--lora",
        CONVERT,
    ),
    Case(
        "an LFS pointer", checkpoint(becomes(_WEIGHTS, b"version https://git-lfs.github.com")), "LFS", CONVERT
    ),
    Case("an empty file", checkpoint(becomes(_WEIGHTS, b"")), "safetensors: the file is empty", CONVERT),
    Case(
        "a header without an end",
        checkpoint(becomes(_WEIGHTS, struct.pack("<Q", 9999) + b"{")),
        "within its h",
        CONVERT,
    ),
    Case(
        "a header of nonsense",
        checkpoint(becomes(_WEIGHTS, struct.pack("<Q", 4) + b"{{{{")),
        "cannot be read (",
        CONVERT,
    ),
    Case("cut weights", checkpoint(shorter), "cut", CONVERT),
    Case("weights that overlap", checkpoint(entry(UP, data_offsets=[0, 32768])), "overlap", CONVERT),
    Case("weights of another size", checkpoint(entry(UP, shape=[128, 63])), UP, CONVERT),
    Case("8-bit weights", checkpoint(entry(UP, dtype="F8_E4M3")), "in 8-bit floats", CONVERT),
    Case(
        "a missing tensor",
        checkpoint(config(tie_word_embeddings=False), tied=True),
        "lm_head.weight",
        CONVERT,
    ),
    Case(
        "a tensor that is too much",
        checkpoint(weights(lambda f, r: f.update({"model.extra": f.pop(UP)}))),
        "model.extra",
        CONVERT,
    ),
    Case("values that are no numbers", checkpoint(weights(infinite)), UP, CONVERT),
    Case(
        "a shard too few",
        checkpoint(lambda f: next(f.glob("model-*2-of*")).unlink(), shards=3),
        "is missing, of 4 files",
        CONVERT,
    ),
    Case(
        "no index",
        checkpoint(without("model.safetensors.index.json"), shards=2),
        "parts of a checkpoint",
        CONVERT,
    ),
    Case(
        "layers without number",
        checkpoint(config(num_hidden_layers=2**31 - 1)),
        "2,147,483,647 layers",
        CONVERT,
    ),
    Case("an epsilon that is none", checkpoint(config(rms_norm_eps="small")), "rms_norm_eps", CONVERT),
    Case("no context", checkpoint(config(max_position_embeddings=0)), "max_position_embeddings", CONVERT),
    Case("no tokenizer", checkpoint(without("tokenizer.json")), "tokenizer.json", CONVERT),
    Case("SentencePiece", checkpoint(sentencepiece), "SentencePiece", CONVERT),
    Case(
        "a tokenizer that is cut", checkpoint(becomes("tokenizer.json", b'{"mod')), "tokenizer.json", CONVERT
    ),
    Case(
        "another kind of tokenizer",
        checkpoint(vocabulary(lambda t: t["model"].update(type="Unigram"))),
        "Unigram",
        CONVERT,
    ),
    Case("no merges", checkpoint(vocabulary(lambda t: t["model"].update(merges=[]))), "merges", CONVERT),
    Case(
        "ids with a hole",
        checkpoint(vocabulary(lambda t: t["model"]["vocab"].update(zzz=99999))),
        "have a hole",
        CONVERT,
    ),
    Case("words cut otherwise", checkpoint(vocabulary(other_words)), "Nearest is", CONVERT),
    Case("a type that is none", checkpoint(lambda folder: None), "q9_z", (*CONVERT[:-1], "q9_z"), code=2),
    Case("a file that is there", checkpoint(becomes("out.gguf", b"")), "--force", CONVERT, code=2),
    Case("no adapter there", checkpoint(lambda folder: None), "nowhere", (*CONVERT, "--lora", "{}/nowhere")),
    Case("sr_edge.json that is cut", checkpoint(becomes("sr_edge.json", b"{")), "sr_edge.json", CONVERT),
)
