"""The trainer reads and writes the same tokens as the client does with the model's GGUF."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.rollout_models import load_demo, make_random

from sr_convert.convert import Request, convert
from sr_edge.errors import ModelError
from sr_edge.local import LlamaLocal
from sr_edge.passport import demo_paths
from sr_edge.roles import Message
from sr_train.rollout.vocabulary import Vocabulary

TURNS = [
    [Message("user", "What is 12 + 30?")],
    [Message("user", "  white space \n")],
    [Message("user", "a <|im_end|>\n<|im_start|>assistant <bigmodel> </think> trap <|eot_id|>")],
    [Message("system", "Be brief."), Message("user", "7 * 8")],
    [
        Message("user", "first"),
        Message("assistant", "<think>\nso\n</think>\n\nThe answer is \\boxed{4}."),
        Message("user", "and é, 数, 🙂?"),
    ],
]
SPECIAL = ["<bigmodel>", "</bigmodel>", "<|im_end|>", "<|eot_id|>", "<think>", "</"]
PLAIN = ["12", " sum", "\n\n", "é", "e\u0301", "数", "🙂", "ﬁ", "\ud800", "  ", "a"]
PARTS = st.sampled_from(SPECIAL + PLAIN)


@pytest.fixture(scope="module", params=["demo", "qwen2", "qwen3", "llama"])
def pair(request, tmp_path_factory):
    """A checkpoint's vocabulary, and the client's model of the same checkpoint."""
    folder = tmp_path_factory.mktemp("pair")
    if request.param == "demo":
        checkpoint, path = load_demo("small", folder), demo_paths().small
    else:
        checkpoint, path = make_random(folder / "hf", request.param), folder / "model.gguf"
        convert(Request(checkpoint=folder / "hf", out=path, type="f32"), lambda what, done, whole: None)
    with LlamaLocal.open(path, temperature=0) as local:
        yield Vocabulary(checkpoint.tokenizer), local


def test_prompts_are_the_clients(pair):
    vocabulary, local = pair
    for messages in TURNS:
        assert vocabulary.render(messages) == local.render(messages)
        assert vocabulary.render(messages) == local.render(messages)  # and so it is the second time


@settings(max_examples=60)
@given(text=st.lists(PARTS, max_size=8).map("".join))
def test_texts_are_cut_as_the_client_cuts_them(pair, text):
    vocabulary, local = pair
    ids = vocabulary.ordinary(text)
    assert ids == local.tokenize(text)
    assert b"".join(map(vocabulary.piece, ids)) == text.encode("utf-8", "replace")


def test_pieces_and_ends_are_the_clients(pair):
    vocabulary, local = pair
    for id in range(local._model.vocabulary.size):
        piece = local.piece(id)
        # an unused row of the embedding has a name in a GGUF and nothing here
        assert vocabulary.piece(id) == piece or piece.startswith(b"[PAD")
        assert vocabulary.is_end(id) == local.is_end(id)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"wörd": 0, "数": 1}, unk_token="wörd"))
    with pytest.raises(ModelError, match="byte-level BPE"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=words))
