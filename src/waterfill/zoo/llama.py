"""Small language model of the Llama kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a `Llama`; the defaults are those of stories260K.

    Attributes:
        dim: width of the residual stream.
        hidden: width of the feed-forward layers.
        layers: number of blocks.
        heads: query heads, a divisor of `dim`.
        kv_heads: key and value heads, a divisor of `heads`.
        vocabulary: number of different tokens.
        epsilon: added to the mean square in each RMSNorm.
        rotary_base: base of the geometric series of rotary frequencies.
    """

    dim: int = 64
    hidden: int = 172
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    vocabulary: int = 512
    epsilon: float = 1e-5
    rotary_base: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads


class LlamaBlock(nn.Module):
    """Causal grouped-query attention and a SwiGLU feed-forward layer, each after an RMSNorm and with a residual."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        kv_dim = shape.kv_heads * shape.head_dim
        self.attention_norm = nn.RMSNorm(shape.dim, eps=shape.epsilon)
        self.wq = nn.Linear(shape.dim, shape.dim, bias=False)
        self.wk = nn.Linear(shape.dim, kv_dim, bias=False)
        self.wv = nn.Linear(shape.dim, kv_dim, bias=False)
        self.wo = nn.Linear(shape.dim, shape.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.dim, eps=shape.epsilon)
        self.w1 = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.w2 = nn.Linear(shape.hidden, shape.dim, bias=False)
        self.w3 = nn.Linear(shape.dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Map `[batch, time, dim]` to the same shape; `rotation` is what `rotary_angles` returns."""
        x = x + self.attend(self.attention_norm(x), rotation)
        y = self.ffn_norm(x)
        fed: Tensor = self.w2(F.silu(self.w1(y)) * self.w3(y))
        return x + fed

    def attend(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Attend from each position to itself and the positions before it; `[batch, time, dim]` in and out."""
        query = rotate(_split_heads(self.wq(x), self.shape.heads), rotation)
        key = rotate(_split_heads(self.wk(x), self.shape.kv_heads), rotation)
        value = _split_heads(self.wv(x), self.shape.kv_heads)
        group = self.shape.heads // self.shape.kv_heads
        mixed = causal_attention(query, key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1))
        attended: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return attended


class Llama(nn.Module):
    """Token embedding, blocks, a last RMSNorm, and logits from the transposed embedding (tied output)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.dim)
        self.layers = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=shape.epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 `[batch, time]` with values in [0, vocabulary), to logits `[batch, time, vocabulary]`."""
        x = self.tok_embeddings(tokens)
        rotation = rotary_angles(tokens.shape[1], self.shape.head_dim, self.shape.rotary_base).to(x.device)
        for block in self.layers:
            x = block(x, rotation)
        return F.linear(self.norm(x), self.tok_embeddings.weight)


def rotary_angles(time: int, head_dim: int, base: float) -> Tensor:
    """Angle of each adjacent pair at each position: position * base^(-2 pair / head_dim), radians `[time, pairs]`."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return torch.outer(torch.arange(time, dtype=torch.float32), frequencies)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each adjacent pair of the last axis by its angle.

    Args:
        x: `[batch, heads, time, head_dim]`.
        angles: radians `[time, head_dim / 2]`.

    Returns:
        A tensor of the shape of `x`, every pair as long as before.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention in which no position sees a later one; all `[batch, heads, time, head_dim]`."""
    # The fused kernel is several times faster, but has no second derivative on the CPU, which curvature needs.
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return differentiable_causal_attention(query, key, value)


def differentiable_causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`causal_attention` step by step, with derivatives of every order."""
    scores = (query / query.shape[-1] ** 0.5) @ key.transpose(-1, -2)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    attention = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    return torch.matmul(attention, value)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    batch, time, _ = x.shape
    return x.view(batch, time, heads, -1).transpose(1, 2)


def stories260k() -> Llama:
    """The 260,032-parameter model of short stories, vocabulary 512, trained on windows of 512 tokens."""
    return Llama(LlamaShape())
