"""What is around quantising: names of files, what is replaced, and what the user is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_gguf import write_tiny_gguf

from sr_convert.quantize_command import default_target, notices_of, quantize_file
from sr_edge.errors import UsageError
from sr_edge.gguf_header import read_header
from sr_edge.quantizer import Fallback, Quantized


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("models/qwen-F16.gguf", "qwen-Q4_K_M.gguf"),
        ("qwen.bf16.gguf", "qwen-Q4_K_M.gguf"),
        ("qwen-1.5B.gguf", "qwen-1.5B-Q4_K_M.gguf"),
        ("q8_0.gguf", "q8_0-Q4_K_M.gguf"),
    ],
)
def test_the_type_is_in_the_name(source: str, target: str) -> None:
    assert default_target(Path(source), "q4_k_m") == Path(target)


def test_a_file_is_replaced_when_asked_to_be(tmp_path: Path) -> None:
    source, target = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "out.gguf"
    target.write_text("mine")
    with pytest.raises(UsageError, match="such a file already: name another, or replace it with --force"):
        quantize_file(source, target, "Q8_0")
    assert target.read_text() == "mine"
    target.write_bytes(b"somebody's weights")
    with pytest.raises(UsageError, match="no GGUF, and is not replaced"):
        quantize_file(source, target, "Q8_0", force=True)
    assert target.read_bytes() == b"somebody's weights"
    target.write_bytes(b"GGUF, an older one")
    done = quantize_file(source, target, "Q8_0", force=True)
    assert read_header(target).file_size == done.quantized.size
    assert done.notices == ()


def test_what_fell_back_is_told_in_a_line_for_each_kind() -> None:
    fallbacks = (
        *(Fallback(f"blk.{n}.ffn_up.weight", "q4_K", "q5_0") for n in range(24)),
        Fallback("v", "q6_K", "q8_0"),
    )
    assert notices_of(Quantized(Path("x"), 1, 2, fallbacks, ("blk.0.attn_k.weight",))) == (
        "blk.0.ffn_up.weight, blk.1.ffn_up.weight, blk.2.ffn_up.weight and 21 more have a width that q4_K "
        "cannot divide: q5_0 instead",
        "v has a width that q6_K cannot divide: q8_0 instead",
        "the importance matrix says nothing of blk.0.attn_k.weight",
    )
