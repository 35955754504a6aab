# SPDX-License-Identifier: Apache-2.0
"""The product-key memory of docs/memory-layer.md in PyTorch, as fast as PyTorch lets one write it.

What a careful user would do is done: only the pairs of sub-keys that can win are summed (119 of 1,024 for k = 32),
selection runs outside autograd, rows are pooled by F.embedding_bag. Three ways to train the table (class Values):
  sparse   embedding_bag(sparse=True) and torch.optim.SparseAdam
  dense    embedding_bag(sparse=False) and torch.optim.Adam(fused=True) over all rows, read or not
  rows     by hand: the rows that were read are copied into a small table, whose dense gradient meets fused Adam with
           copies of their moments; all three are written back. SparseAdam's semantics.
"""
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adam import adam as functional_adam

VALUE_RATE, DENSE_RATE = 1e-3, 2.5e-4
HAS_FUSED_ADAM = int(torch.__version__.split(".")[0]) >= 2 and hasattr(torch, "_fused_adam_")


def adam(parameters, rate, betas, decay=0.0):
    """AdamW over all of them in one pass where this PyTorch has that for the CPU, else tensor by tensor."""
    how = {"fused": True} if HAS_FUSED_ADAM else {"foreach": False}
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=1e-8, weight_decay=decay, **how)


class Values(nn.Module):
    """The table and its optimiser. forward: slots (T, S), weights (T, S) -> (T, dv)."""

    def __init__(self, slots, width, variant):
        super().__init__()
        self.variant = variant
        self.weight = nn.Parameter(torch.empty(slots, width).normal_(0, width**-0.5), requires_grad=variant != "rows")
        if variant == "rows":
            if not HAS_FUSED_ADAM:
                raise RuntimeError("this PyTorch has no fused Adam for the CPU")
            self.first, self.second = torch.zeros_like(self.weight.data), torch.zeros_like(self.weight.data)
            self.steps = torch.tensor(0.0)
        elif variant == "sparse":
            self.optimizer = torch.optim.SparseAdam([self.weight], lr=VALUE_RATE, betas=(0.9, 0.999))
        else:
            self.optimizer = adam([self.weight], VALUE_RATE, (0.9, 0.999))

    def forward(self, slots, weights):
        table = self.weight
        if self.variant == "rows":
            read = torch.zeros(table.shape[0], dtype=torch.bool)
            read[slots.flatten()] = True
            self.read = read.nonzero().flatten()
            slots = (read.cumsum(0) - 1)[slots]
            table = self.copied = table.index_select(0, self.read).requires_grad_()
        return F.embedding_bag(slots, table, mode="sum", per_sample_weights=weights, sparse=self.variant == "sparse")

    def share_gradient(self, world):
        """A sparse gradient's mean over processes, which DistributedDataParallel does not take over gloo."""
        own = self.weight.grad.coalesce()
        counts = [torch.empty(1, dtype=torch.int64) for _ in range(world)]
        torch.distributed.all_gather(counts, torch.tensor([own._nnz()]))
        most = int(max(counts))
        rows, values = torch.zeros(most, dtype=torch.int64), torch.zeros(most, self.weight.shape[1])
        rows[:own._nnz()], values[:own._nnz()] = own.indices()[0], own.values()  # as many from each: zeros fill up
        every_rows, every_values = ([torch.empty_like(part) for _ in range(world)] for part in (rows, values))
        torch.distributed.all_gather(every_rows, rows)
        torch.distributed.all_gather(every_values, values)
        self.weight.grad = torch.sparse_coo_tensor(torch.cat(every_rows)[None], torch.cat(every_values) / world,
                                                   self.weight.shape)

    def update(self):
        if self.variant != "rows":
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return
        with torch.no_grad():
            first, second = (m.index_select(0, self.read) for m in (self.first, self.second))
            functional_adam(
                [self.copied], [self.copied.grad], [first], [second], [], [self.steps], foreach=False, fused=True,
                amsgrad=False, beta1=0.9, beta2=0.999, lr=VALUE_RATE, weight_decay=0.0, eps=1e-8, maximize=False)
            for whole, part in ((self.weight, self.copied), (self.first, first), (self.second, second)):
                whole.index_copy_(0, self.read, part)
        self.copied = None


class Memory(nn.Module):
    """x (T, d) -> (T, dv). n sub-keys per half, key width c of both halves, H heads of k neighbours."""

    def __init__(self, d, n, c, variant, heads=4, k=32):
        super().__init__()
        self.heads, self.n, self.k, self.half = heads, n, k, c // 2
        self.query = nn.Linear(d, heads * c)
        self.norm = nn.BatchNorm1d(heads * c)
        self.keys = nn.Parameter(torch.empty(heads, 2, n, c // 2).uniform_(-self.half**-0.5, self.half**-0.5))
        self.values = Values(n * n, d, variant)
        places = [(p, q) for p in range(k) for q in range(k) if (p + 1) * (q + 1) <= k]
        self.register_buffer("first", torch.tensor([p for p, _ in places]))
        self.register_buffer("second", torch.tensor([q for _, q in places]))

    def select(self, x):
        """-> slots, weights, both (T, H k)."""
        query = self.norm(self.query(x)).view(-1, self.heads, 2, self.half).permute(1, 2, 0, 3)  # (H, 2, T, c/2)
        scores = query @ self.keys.to(query.dtype).transpose(-1, -2)  # (H, 2, T, n)
        with torch.no_grad():
            best, places = scores.topk(self.k)
            sums = best[:, 0].index_select(-1, self.first) + best[:, 1].index_select(-1, self.second)
            chosen = sums.topk(self.k, sorted=False).indices
            i = places[:, 0].gather(-1, self.first[chosen])
            j = places[:, 1].gather(-1, self.second[chosen])
            slots = (i * self.n + j).transpose(0, 1).reshape(-1, self.heads * self.k)
        chosen_scores = scores[:, 0].gather(-1, i) + scores[:, 1].gather(-1, j)  # (H, T, k)
        weights = chosen_scores.float().softmax(-1).transpose(0, 1).reshape(slots.shape)
        return slots, weights

    def forward(self, x):
        slots, weights = self.select(x)
        self.slots = slots
        return self.values(slots, weights)

    def dense_parameters(self):
        return [p for name, p in self.named_parameters() if not name.startswith("values.")]


class LayerStep:
    """One whole step of the layer: forward, backward with the input's gradient, update of values, keys and query."""
    INPUTS = 4  # that take turns, as in `pkmesh bench layer`

    def __init__(self, d, n, c, tokens, variant, compiled):
        self.memory = Memory(d, n, c, variant)
        if compiled:
            self.memory.select = torch.compile(self.memory.select)
        self.optimizer = adam(self.memory.dense_parameters(), DENSE_RATE, (0.9, 0.98))
        self.inputs = [torch.randn(tokens, d, requires_grad=True) for _ in range(self.INPUTS)]
        self.gradient = torch.randn(tokens, d) * (tokens * d)**-0.5
        self.step = 0

    def __call__(self):
        x = self.inputs[self.step % self.INPUTS]
        self.step += 1
        x.grad = None
        self.memory(x).backward(self.gradient)
        self.memory.values.update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def distinct_rows(self):
        return self.memory.slots.unique().numel()
