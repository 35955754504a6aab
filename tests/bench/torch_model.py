# SPDX-License-Identifier: Apache-2.0
"""The language model of `pkmesh bench step` in PyTorch: post-LN transformer, GELU, learned positions, tied embeddings,
with one product-key memory in the place of a feed-forward layer (or none)."""
import torch
from torch import nn
from torch.nn import functional as F

from torch_memory import DENSE_RATE, Memory, adam


class Block(nn.Module):
    def __init__(self, d, heads, feed_forward):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.feed_forward = feed_forward

    def forward(self, x):  # (B, L, d)
        b, length, d = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if hasattr(F, "scaled_dot_product_attention"):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # PyTorch 1
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = (q @ k.transpose(-1, -2)) * (d // self.heads)**-0.5
            mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(b, length, d)))
        return self.norm2(x + self.feed_forward(x.view(-1, d)).view(x.shape))


class Model(nn.Module):
    """tokens, targets (B, L) -> mean cross-entropy."""

    def __init__(self, layers, d, heads, context, vocabulary, memory_layer, n, c, variant, loss):
        super().__init__()
        self.loss = loss
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        nn.init.normal_(self.tokens.weight, std=d**-0.5)
        nn.init.normal_(self.positions.weight, std=d**-0.5)
        self.norm = nn.LayerNorm(d)
        ffn = lambda: nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        with_memory = lambda layer: variant != "none" and layer == memory_layer
        self.blocks = nn.ModuleList(
            Block(d, heads, Memory(d, n, c, variant) if with_memory(layer) else ffn()) for layer in range(layers))
        self.memory = self.blocks[memory_layer].feed_forward if variant != "none" else None

    def forward(self, tokens, targets):
        x = self.norm(self.tokens(tokens) + self.positions.weight[:tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        x = x.view(-1, x.shape[-1])
        if self.loss == "chunked":  # newer PyTorch: never holds all logits
            return F.linear_cross_entropy(x, self.tokens.weight, targets.flatten(),
                                          options=nn.LinearCrossEntropyOptions())
        return F.cross_entropy((x @ self.tokens.weight.t().to(x.dtype)).float(), targets.flatten())


class ModelStep:
    """One training step on random tokens, of this process's share of the batch if there are several."""

    def __init__(self, shape, batch, variant, compiled, bf16, loss, decay, world):
        torch.manual_seed(1)  # the same replica everywhere
        model = Model(**shape, variant=variant, loss=loss)
        self.values = model.memory.values if model.memory else None
        dense = [p for p in model.parameters() if not (self.values and p is self.values.weight)]
        self.optimizer = adam(dense, DENSE_RATE, (0.9, 0.98), decay)
        self.sharing = world if world > 1 and variant == "sparse" else 0  # processes among which rows' gradients go by hand
        if world > 1:
            if self.sharing:
                ignored = [name for name, p in model.named_parameters() if p is self.values.weight]
                nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
            model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.model = torch.compile(model) if compiled else model
        self.bf16 = bf16
        torch.manual_seed(2 + (torch.distributed.get_rank() if world > 1 else 0))
        self.ids = torch.randint(shape["vocabulary"], (16, batch // world, shape["context"] + 1))
        self.step = 0

    def __call__(self):
        ids = self.ids[self.step % len(self.ids)]
        self.step += 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        if self.sharing:
            self.values.share_gradient(self.sharing)
        if self.values:
            self.values.update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss = loss.item()
