"""Training the demo pair: the loss of a marked span, runs that are cut off, and the file that comes out."""

import random
from pathlib import Path

import numpy as np
import pytest

from sr_edge.suites.demo import Problem, Step, multiply_working, problems

pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

import gguf
import torch

from sr_train.demo.data import Mix, Syllabus, layout
from sr_train.demo.export import HandBack, write_gguf
from sr_train.demo.loop import Progress, Schedule
from sr_train.demo.measure import measure, rates
from sr_train.demo.model import Decoder, ModelShape, hf_state_dict
from sr_train.demo.pretrain import new_model, pretrain
from sr_train.demo.recipe import Pretraining, Shape
from sr_train.demo.sft import CLOSES, IGNORED, STAY, WRITTEN, marked_row, padded, span_loss
from sr_train.demo.tokenizer import CLOSE, IM_END, OPEN, DemoTokenizer, train_tokenizer

PLAN = Pretraining(
    Shape(num_layers=1, hidden=32, inner=32),
    Syllabus(teaches_hard=True, mixes=(Mix(0, 0.5, 0.0),)),
    Schedule(num_steps=24, num_warmup=4, num_between_checkpoints=8),
    num_rows=2,
)
ASKED = Problem(
    "Ida fills 28 bags with 4 coins each. Tom gives her 3 more. How many coins does Ida have now?",
    "115",
    (
        Step("multiply", "Ida fills 28 bags with 4 coins each, so", "28 * 4", multiply_working(28, 4), 112),
        Step("add", "Tom gives her 3 more, so", "112 + 3", "115", 115),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> DemoTokenizer:
    return train_tokenizer(seed=0, num_problems=500)


def test_a_marked_row_reads_as_the_problem_with_its_markers(tokenizer: DemoTokenizer) -> None:
    open_id, close_id = tokenizer.id(OPEN), tokenizer.id(CLOSE)
    row = marked_row(layout(tokenizer, ASKED), (True, False), open_id, close_id)
    text = tokenizer.decode(row.ids)
    assert "so 28 * 4:<bigmodel> 20 * 4 = 80, 8 * 4 = 32, 80 + 32 = 112</bigmodel>.\nTom gives" in text
    assert row.labels[row.ids.index(open_id) - 1] == WRITTEN, "choosing to ask is trained"
    assert row.labels[row.ids.index(close_id) - 1] == CLOSES
    assert row.labels.count(CLOSES) == 1
    assert row.labels.count(STAY) == len(tokenizer.encode(ASKED.steps[0].span))


def test_a_local_row_keeps_the_working_without_markers_and_without_loss(tokenizer: DemoTokenizer) -> None:
    laid = layout(tokenizer, ASKED)
    row = marked_row(laid, (True, False), tokenizer.id(OPEN), tokenizer.id(CLOSE), is_local=True)
    (start, end), _ = laid.spans
    assert row.ids == laid.ids
    assert set(row.labels[start - 1 : end - 1]) == {IGNORED}
    assert row.labels[start - 2] == row.labels[end - 1] == WRITTEN


def test_span_tokens_are_judged_by_the_closing_marker_alone() -> None:
    """Two spans that differ in everything but the closing decision cost the same, and pull only on it."""
    close_id, labels = 3, torch.tensor([WRITTEN, STAY, STAY, CLOSES, IGNORED])
    logits = torch.randn(5, 6, requires_grad=True, generator=torch.Generator().manual_seed(0))
    loss = span_loss(logits, torch.tensor([1, 0, 5, close_id, 2]), labels, close_id)
    other = span_loss(logits, torch.tensor([1, 4, 2, close_id, 0]), labels, close_id)
    assert torch.equal(loss.total(), other.total())

    (gradient,) = torch.autograd.grad(loss.closing, logits)
    probabilities = logits.detach().softmax(-1)
    assert (gradient[1:3, close_id] > 0).all(), "inside the span: close less"
    assert gradient[3, close_id] < 0, "at its end: close more"
    others = [0, 1, 2, 4, 5]
    for row in (1, 2, 3):  # among the other tokens nothing is preferred: they move by their own share
        share = gradient[row, others] / probabilities[row, others]
        assert torch.allclose(share, share[0].expand(5), atol=1e-5)
    assert gradient[0].abs().sum() == gradient[4].abs().sum() == 0


def test_the_closing_loss_is_the_binary_one() -> None:
    logits = torch.tensor([[0.3, -0.2, 1.1], [2.0, 0.1, -0.7]])
    p_close = logits.softmax(-1)[:, 2]
    loss = span_loss(logits, torch.tensor([0, 2]), torch.tensor([STAY, CLOSES]), close_id=2)
    assert torch.allclose(loss.closing, -(1 - p_close[0]).log() - p_close[1].log())
    assert (loss.num_written, loss.num_closing) == (0, 2)


def test_padding_asks_for_nothing(tokenizer: DemoTokenizer) -> None:
    short, long = (
        marked_row(layout(tokenizer, each), [False] * len(each.steps), 0, 1) for each in problems(2, 2)
    )
    ids, labels = padded([short, long], pad_id=0)
    assert labels.shape[1] == ids.shape[1] - 1
    assert (labels > 0).sum() == len(short.labels + long.labels) - (short.labels + long.labels).count(IGNORED)


class CutOff(Exception):
    pass


def test_a_run_cut_off_and_resumed_ends_with_the_same_weights(
    tokenizer: DemoTokenizer, tmp_path: Path
) -> None:
    whole = new_model(PLAN, tokenizer, seed=1)
    pretrain(whole, PLAN, tokenizer, "big", 1, tmp_path / "whole", lambda _: None)

    def cut_off(progress: Progress) -> None:
        if progress.step == 20:  # the checkpoint before is that of step 16: four steps are lost
            raise CutOff

    first = new_model(PLAN, tokenizer, seed=1)
    with pytest.raises(CutOff):
        pretrain(first, PLAN, tokenizer, "big", 1, tmp_path / "cut", cut_off)

    resumed = new_model(PLAN, tokenizer, seed=99)  # whatever it starts from, the checkpoint decides
    steps: list[int] = []
    pretrain(
        resumed, PLAN, tokenizer, "big", 1, tmp_path / "cut", lambda progress: steps.append(progress.step)
    )
    assert steps == [20, 24], "it went on from the checkpoint and not from the beginning"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_model_that_knows_nothing_is_marked_wrong_everywhere(tokenizer: DemoTokenizer) -> None:
    layouts = [layout(tokenizer, each) for each in problems(4, 10)]
    marks = measure(new_model(PLAN, tokenizer, seed=0).all_logits, layouts, num_rows=4)
    assert [len(mark.is_right) for mark in marks] == [len(each.spans) for each in layouts]
    assert rates(layouts, marks).whole == 0.0


def test_the_plain_decoder_is_qwen2(tokenizer: DemoTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(tokenizer)
    shape = model.shape
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads, max_position_embeddings=shape.context,
        tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    reference = transformers.Qwen2ForCausalLM(config).eval()
    missing = reference.load_state_dict(hf_state_dict(model), strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    assert sum(each.numel() for each in reference.parameters()) == shape.num_parameters
    ids = torch.tensor([layout(tokenizer, ASKED).ids])
    with torch.no_grad():
        assert torch.allclose(reference(ids).logits, model.logits(model(ids)), atol=1e-4)


def test_llama_cpp_reads_the_file_as_torch_reads_the_model(tokenizer: DemoTokenizer, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model, path = random_model(tokenizer), tmp_path / "small.gguf"
    exact = gguf.GGMLQuantizationType.F32
    write_gguf(path, hf_state_dict(model), model.shape, tokenizer, "small", HandBack(), exact)
    loaded = llama_cpp.Llama(
        str(path), n_ctx=512, n_threads=1, logits_all=True, verbose=False, flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    laid = layout(tokenizer, ASKED)
    text = tokenizer.decode(laid.ids)
    assert loaded.tokenize(text.encode(), add_bos=False, special=True) == laid.ids
    loaded.eval(laid.ids)
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([laid.ids])))[0].numpy()
    assert np.abs(loaded.scores[: len(laid.ids)] - expected).max() < 1e-3
    metadata = loaded.metadata
    assert metadata["sr_edge.markers.open_id"] == str(tokenizer.id(OPEN))
    assert metadata["sr_edge.markers.close_id"] == str(tokenizer.id(CLOSE))
    assert float(metadata["sr_edge.handback.tau"]) == 0.5
    assert loaded.token_eos() == tokenizer.id(IM_END)
    loaded.close()


def test_the_shipped_quantisation_keeps_the_matrices_close(tokenizer: DemoTokenizer, tmp_path: Path) -> None:
    model, path = random_model(tokenizer), tmp_path / "big.gguf"
    write_gguf(path, hf_state_dict(model), model.shape, tokenizer, "big")
    reader = gguf.GGUFReader(path)
    assert not any("markers" in name for name in reader.fields), "the big one never sees them"
    stored = {tensor.name: tensor for tensor in reader.tensors}
    embedding = stored["token_embd.weight"]
    restored = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    assert np.abs(restored - model.embed.weight.detach().numpy()).max() < 0.02
    assert stored["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def random_model(tokenizer: DemoTokenizer) -> Decoder:
    torch.manual_seed(random.Random("random model").randrange(2**31))
    model = Decoder(ModelShape(num_layers=2, hidden=64, inner=96, vocab=tokenizer.num_tokens))
    for parameter in model.parameters():  # no bias left at zero, no norm at one: a swapped pair would show
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return model
