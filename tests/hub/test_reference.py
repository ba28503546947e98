"""What a user may write for a repository, and what cannot be meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_edge.errors import UsageError
from sr_edge.hub.reference import Reference, is_safe_path, parse_reference

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", Reference("a/b")),
        (" a/b ", Reference("a/b")),
        ("a/b:x.gguf", Reference("a/b", "x.gguf")),
        ("a/b:dir/x.gguf@v1", Reference("a/b", "dir/x.gguf", "v1")),
        ("a/b@refs/pr/1", Reference("a/b", None, "refs/pr/1")),
        ("a/b:Q4_K_M", Reference("a/b", "Q4_K_M")),
        ("hf.co/a/b:Q4_K_M", Reference("a/b", "Q4_K_M")),
        ("huggingface.co/a/b", Reference("a/b")),
        (f"{HUB}/a/b", Reference("a/b")),
        ("HTTPS://HuggingFace.co/a/b/", Reference("a/b")),
        (f"{HUB}/a/b/tree/v2", Reference("a/b", None, "v2")),
        (f"{HUB}/a/b/blob/main/d/x.gguf", Reference("a/b", "d/x.gguf", "main")),
        (
            f"{HUB}/a/b/resolve/refs%2Fpr%2F3/my%20x.gguf?download=true",
            Reference("a/b", "my x.gguf", "refs/pr/3"),
        ),
        (f"{HUB}/models/a/b", Reference("a/b")),
        ("http://127.0.0.1:8000/a/b", Reference("a/b")),
        (
            "akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B-GRPO-SpeculativeReasoner",
            Reference("akhauriyash/DeepSeek-R1-Distill-Qwen-1.5B-GRPO-SpeculativeReasoner"),
        ),
    ],
)
def test_what_can_be_meant(text: str, expected: Reference) -> None:
    assert parse_reference(text, endpoint="http://127.0.0.1:8000") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "b", "a/", "/b", "a/b/c", "a//b", "../b", "a/..", "a/b..c", "a/b--c", "-a/b", "a/b:", "a/b@",
        "a/b:../x.gguf", "a/b:/etc/passwd", "a/b:x/../../y", "a/b:x\\y.gguf", "a/b:C:x.gguf", "a/b:nul.gguf",
        "a/b:x.", "a/b\0", "a\n/b", "\x1b[31ma/b", "a/b@../main", "a/b@-x", "https://example.com/a/b",
        "ftp://huggingface.co/a/b", "./x.gguf", f"{HUB}/datasets/a/b", f"{HUB}/spaces/a/b",
        f"{HUB}/a/b/discussions/1", f"{HUB}/a/b/blob/main/..%2F..%2Fx", f"{HUB}/a/b/resolve/main/%00.gguf",
        f"{HUB}/a",
    ],
)  # fmt: skip
def test_what_cannot_be_meant_says_how_it_can(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_reference(text)
    assert "name " in str(refused.value) or "import" in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_revision_is_named_once() -> None:
    assert parse_reference("a/b", revision="v1").revision == "v1"
    assert parse_reference(f"{HUB}/a/b/tree/v1", revision="v1").revision == "v1"
    with pytest.raises(UsageError, match="two revisions"):
        parse_reference(f"{HUB}/a/b/tree/v1", revision="v2")
    with pytest.raises(UsageError, match="no revision"):
        parse_reference("a/b", revision="")


@given(st.text(max_size=40) | st.from_regex(r"[a./:@\\%-]{1,20}", fullmatch=True))
def test_whatever_is_accepted_stays_below_its_folder(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert is_safe_path(reference.repo)
    assert reference.file is None or is_safe_path(reference.file)
