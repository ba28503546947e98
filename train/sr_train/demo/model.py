"""A plain Qwen2 decoder, small and fused enough to be trained on one core.

Its state dict splits and joins exactly into that of transformers' Qwen2ForCausalLM (`hf_state_dict`), which
a test holds it to. Only what the demo pair needs: tied embeddings, no grouped heads, no cache.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_THETA = 10_000.0
RMS_EPS = 1e-6


@dataclass(frozen=True)
class ModelShape:
    num_layers: int
    hidden: int
    inner: int  # width of the gated MLP
    vocab: int
    head_dim: int = 32
    context: int = 1024

    @property
    def num_heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def num_parameters(self) -> int:
        """The embedding, counted once since it is tied, the blocks, and the last norm."""
        attention = 4 * self.hidden**2 + 3 * self.hidden
        block = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.vocab * self.hidden + self.num_layers * block + self.hidden


class Decoder(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        cos, sin = _rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if name == "embed.weight" else shape.hidden**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Final hidden states. ids: (B, T) -> (B, T, hidden)."""
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]  # (T, head_dim)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.rms_norm(x, (self.shape.hidden,), self.norm, RMS_EPS)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocab). Separate, since the loss needs few of the positions."""
        return F.linear(hidden, self.embed.weight)

    def all_logits(self, ids: Tensor) -> Tensor:
        """ids: (B, T) -> (B, T, vocab)."""
        return self.logits(self(ids))


class _Block(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.num_heads, self.head_dim = shape.num_heads, shape.head_dim
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=True)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.hidden, bias=False)
        self.norm_1 = nn.Parameter(torch.ones(shape.hidden))
        self.norm_2 = nn.Parameter(torch.ones(shape.hidden))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        qkv = self.qkv(F.rms_norm(x, (hidden,), self.norm_1, RMS_EPS))
        qkv = qkv.view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, head_dim)
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))
        gate, up = self.gate_up(F.rms_norm(x, (hidden,), self.norm_2, RMS_EPS)).chunk(2, dim=-1)
        narrowed: Tensor = self.down(F.silu(gate) * up)
        return x + narrowed


def hf_state_dict(model: Decoder) -> dict[str, Tensor]:
    """The weights under transformers' Qwen2 names, `lm_head` left out since it is tied."""
    tensors = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    for index, block in enumerate(model.blocks):
        assert isinstance(block, _Block)
        own = f"model.layers.{index}."
        for name, weight, bias in zip("qkv", block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True):
            tensors[f"{own}self_attn.{name}_proj.weight"] = weight
            tensors[f"{own}self_attn.{name}_proj.bias"] = bias
        gate, up = block.gate_up.weight.chunk(2)
        tensors[f"{own}self_attn.o_proj.weight"] = block.out.weight
        tensors[f"{own}mlp.gate_proj.weight"] = gate
        tensors[f"{own}mlp.up_proj.weight"] = up
        tensors[f"{own}mlp.down_proj.weight"] = block.down.weight
        tensors[f"{own}input_layernorm.weight"] = block.norm_1
        tensors[f"{own}post_attention_layernorm.weight"] = block.norm_2
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rope_tables(shape: ModelShape) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), ROPE_THETA**-exponents)
    angles = torch.cat((angles, angles), dim=-1)  # (context, head_dim)
    return angles.cos(), angles.sin()
