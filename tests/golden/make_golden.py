#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files: what PyTorch computes for our layers, our optimisers and one whole training step.

    python3 tests/golden/make_golden.py        (Debian: apt install python3-torch; written with torch 1.13)

Everything is computed in double from inputs that fp32 holds exactly, and stored as fp32 (safetensors). Inputs are drawn
until no selection of the memory layer is nearly tied, so that fp32 must select the same slots. Scalars that a test needs
(eps, learning rates, norms) are tensors of the same file.
"""
import json
import math
import struct
from pathlib import Path

import torch
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent
LAYER_NORM_EPS = 1e-5
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1
CLEAR_GAP = 2e-4  # between a selected score and the best one left out


def save(name, tensors):
    """The safetensors format: length of the header (8 bytes, little-endian), JSON header, raw data."""
    header, data = {}, b""
    for key, value in tensors.items():
        value = torch.as_tensor(value).detach().contiguous()
        value = value.to(torch.float32 if value.is_floating_point() else torch.int64)
        raw = value.numpy().tobytes()
        header[key] = {"dtype": "F32" if value.is_floating_point() else "I64", "shape": list(value.shape),
                       "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (FOLDER / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def normal(*shape, scale=1.0, mean=0.0):
    """A leaf in double whose values are exactly representable in fp32."""
    drawn = torch.randn(*shape, dtype=torch.float64) * scale + mean
    return drawn.float().double().requires_grad_()


def gradients(parameters):
    return {f"{name}.gradient": p.grad for name, p in parameters.items()}


class Tied(Exception):
    """Two candidates are so close that fp32 might choose the other one."""


def top(scores, k):
    """Top k of the last dimension, best first; the gap below the last one, and between any two of them, must be clear."""
    best = scores.topk(min(k + 1, scores.shape[-1]), dim=-1).values
    if (best[..., :-1] - best[..., 1:]).min() < CLEAR_GAP:
        raise Tied
    return scores.topk(k, dim=-1)


def draw_until_clear(build):
    for seed in range(1000):
        torch.manual_seed(seed)
        try:
            return build()
        except Tied:
            continue
    raise RuntimeError("every draw has a near tie: lower CLEAR_GAP")


# Product-key memory: docs/memory-layer.md. x (T, d) -> (T, dv).
def memory_parameters(d, dv, heads, n, c):
    return {"query.weight": normal(heads * c, d, scale=d**-0.5), "query.bias": normal(heads * c, scale=0.1),
            "query_norm.weight": normal(heads * c, scale=0.2, mean=1.0), "query_norm.bias": normal(heads * c, scale=0.2),
            "keys": normal(heads, 2, n, c // 2, scale=(c // 2)**-0.5), "values": normal(n * n, dv, scale=dv**-0.5)}


def memory(p, x, k, running=None):
    heads, _, n, half = p["keys"].shape
    query = F.linear(x, p["query.weight"], p["query.bias"])
    mean, variance = running if running else (None, None)
    query = F.batch_norm(query, mean, variance, p["query_norm.weight"], p["query_norm.bias"], training=True,
                         momentum=BATCH_NORM_MOMENTUM, eps=BATCH_NORM_EPS)
    query = query.view(-1, heads, 2, half)
    scores = torch.einsum("thsc,hsnc->thsn", query, p["keys"])
    best, chosen = top(scores, k)  # (T, heads, 2, k)
    sums = (best[:, :, 0, :, None] + best[:, :, 1, None, :]).flatten(2)
    slots = (chosen[:, :, 0, :, None] * n + chosen[:, :, 1, None, :]).flatten(2)
    score, position = top(sums, k)
    slots = slots.gather(2, position)
    weights = score.softmax(-1)
    output = torch.einsum("thk,thkd->td", weights, p["values"][slots])
    return output, slots, weights


def golden_memory():
    tokens, d, heads, n, c, k = 24, 20, 4, 16, 16, 8

    def build():
        p = memory_parameters(d, d, heads, n, c)
        x, d_out = normal(tokens, d), normal(tokens, d)
        running = torch.zeros(heads * c, dtype=torch.float64), torch.ones(heads * c, dtype=torch.float64)
        output, slots, weights = memory(p, x, k, running)
        output.backward(d_out)
        save("memory", {"x": x, "x.gradient": x.grad, "output": output, "output.gradient": d_out, "slots": slots,
                        "weights": weights, "query_norm.running_mean.after": running[0],
                        "query_norm.running_var.after": running[1], "k": k, **p, **gradients(p)})

    draw_until_clear(build)


def golden_batch_norm():
    torch.manual_seed(1)
    tokens, features = 10, 7
    x, weight, bias = normal(tokens, features, scale=2.0, mean=0.5), normal(features, mean=1.0), normal(features)
    before = normal(features).detach(), normal(features, scale=0.1, mean=1.0).detach()
    mean, variance = before[0].clone(), before[1].clone()
    d_y = normal(tokens, features)
    y = F.batch_norm(x, mean, variance, weight, bias, True, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)
    y.backward(d_y)
    eval_y = F.batch_norm(x, mean, variance, weight, bias, False, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)
    save("batch_norm", {"x": x, "weight": weight, "bias": bias, "running_mean": before[0], "running_var": before[1],
                        "y": y, "y.gradient": d_y, "x.gradient": x.grad, "weight.gradient": weight.grad,
                        "bias.gradient": bias.grad, "running_mean.after": mean, "running_var.after": variance,
                        "y.eval": eval_y})


# Transformer blocks. x (sequences, context, d).
def norm_parameters(name, d):
    return {f"{name}.weight": normal(d, scale=0.2, mean=1.0), f"{name}.bias": normal(d, scale=0.2)}


def attention_parameters(d):
    return {"attention.qkv.weight": normal(3 * d, d, scale=1.5 * d**-0.5), "attention.qkv.bias": normal(3 * d, scale=0.2),
            "attention.out.weight": normal(d, d, scale=d**-0.5), "attention.out.bias": normal(d, scale=0.2),
            **norm_parameters("norm1", d)}


def ffn_parameters(d):
    return {"ffn.in.weight": normal(4 * d, d, scale=d**-0.5), "ffn.in.bias": normal(4 * d, scale=0.2),
            "ffn.out.weight": normal(d, 4 * d, scale=(4 * d)**-0.5), "ffn.out.bias": normal(d, scale=0.2)}


def layer_norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], LAYER_NORM_EPS)


def attention(p, x, heads):
    sequences, context, d = x.shape
    qkv = F.linear(x, p["attention.qkv.weight"], p["attention.qkv.bias"])
    q, k, v = (part.view(sequences, context, heads, d // heads).transpose(1, 2) for part in qkv.split(d, dim=-1))
    scores = q @ k.transpose(2, 3) / math.sqrt(d // heads)
    future = torch.ones(context, context, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return F.linear(mixed.transpose(1, 2).reshape(x.shape), p["attention.out.weight"], p["attention.out.bias"])


def ffn(p, x):
    return F.linear(F.gelu(F.linear(x, p["ffn.in.weight"], p["ffn.in.bias"])), p["ffn.out.weight"], p["ffn.out.bias"])


def block(p, x, heads, pre_norm, second=ffn):
    if pre_norm:
        x = x + attention(p, layer_norm(p, "norm1", x), heads)
        return x + second(p, layer_norm(p, "norm2", x))
    x = layer_norm(p, "norm1", x + attention(p, x, heads))
    return layer_norm(p, "norm2", x + second(p, x))


def golden_block(name, pre_norm):
    torch.manual_seed(2)
    d, heads = 12, 3
    p = {**attention_parameters(d), **ffn_parameters(d), **norm_parameters("norm2", d)}
    x, d_y = normal(2, 5, d), normal(2, 5, d)
    y = block(p, x, heads, pre_norm)
    y.backward(d_y)
    save(name, {"x": x, "y": y, "y.gradient": d_y, "x.gradient": x.grad, "heads": heads, "eps": LAYER_NORM_EPS,
                **p, **gradients(p)})


# Optimisers.
def golden_adam(name, optimizer, **options):
    torch.manual_seed(3)
    steps, count = 5, 37
    value, after, every_gradient = normal(count), [], normal(steps, count, scale=0.3).detach()
    tensors = {"values": value.detach().clone(), "gradients": every_gradient}
    learning_rates = torch.tensor([0.01, 0.02, 0.03, 0.02, 0.01], dtype=torch.float64)
    adam = optimizer([value], betas=(0.9, 0.98), eps=1e-8, **options)
    for gradient, lr in zip(every_gradient, learning_rates):
        adam.param_groups[0]["lr"] = lr.item()
        value.grad = gradient.clone()
        adam.step()
        after.append(value.detach().clone())
    state = adam.state[value]
    save(name, {**tensors, "learning_rates": learning_rates, "values.after": torch.stack(after),
                "first_moments": state["exp_avg"], "second_moments": state["exp_avg_sq"],
                "weight_decay": float(options.get("weight_decay", 0.0))})


def golden_rows(name, optimizer, sparse):
    """A table of 12 rows; contribution j of a step adds weights[j] * d_out[sources[j]] to the gradient of rows[j]."""
    torch.manual_seed(4)
    steps, count, width, tokens, contributions, lr = 5, 12, 5, 4, 9, 0.02
    table = normal(count, width)
    rows = torch.randint(0, count - 2, (steps, contributions))  # the last two rows are never touched
    rows[1:, :3] = rows[:1, :3]  # some rows every step,
    rows[:, 4] = rows[:, 3]  # and some twice in a step
    sources = torch.randint(0, tokens, (steps, contributions))
    weights, d_out = normal(steps, contributions).detach(), normal(steps, tokens, width).detach()
    tensors = {"values": table.detach().clone(), "rows": rows, "sources": sources, "weights": weights,
               "output.gradient": d_out, "lr": lr}
    adam, after = optimizer([table], lr=lr, betas=(0.9, 0.999), eps=1e-8), []
    for step in range(steps):
        sums = torch.sparse_coo_tensor(rows[step][None], weights[step, :, None] * d_out[step][sources[step]],
                                       (count, width))
        table.grad = sums if sparse else sums.to_dense()
        adam.step()
        after.append(table.detach().clone())
    state = adam.state[table]
    save(name, {**tensors, "values.after": torch.stack(after), "first_moments": state["exp_avg"],
                "second_moments": state["exp_avg_sq"]})


# One training step of a 2-layer post-LN model whose second layer's FFN is a memory.
def golden_train_step():
    vocabulary, context, sequences, d, heads = 50, 8, 2, 16, 2
    memory_heads, n, c, k = 2, 12, 8, 4
    peak, warmup_init, warmup, eps = 2.5e-3, 1e-7, 10, 1e-5
    values_lr, dense_max_norm, values_max_norm = 1e-3, 0.5, 0.05

    def build():
        first = {**attention_parameters(d), **ffn_parameters(d), **norm_parameters("norm2", d)}
        of_memory = memory_parameters(d, d, memory_heads, n, c)
        second = {**attention_parameters(d), **norm_parameters("norm2", d)}
        p = {"tokens.weight": normal(vocabulary, d, scale=d**-0.5), "positions.weight": normal(context, d, scale=d**-0.5),
             **norm_parameters("embedding_norm", d), **{f"layers.0.{key}": value for key, value in first.items()},
             **{f"layers.1.{key}": value for key, value in second.items()},
             **{f"layers.1.memory.{key}": value for key, value in of_memory.items()}}
        running = torch.zeros(memory_heads * c, dtype=torch.float64), torch.ones(memory_heads * c, dtype=torch.float64)
        tokens, targets = torch.randint(0, vocabulary, (2, sequences, context))
        chosen = []

        def run_memory(_, x):
            output, slots, _ = memory(of_memory, x.reshape(-1, d), k, running)
            chosen.append(slots)
            return output.view(x.shape)

        x = layer_norm(p, "embedding_norm", p["tokens.weight"][tokens] + p["positions.weight"])
        x = block(first, x, heads, False)
        x = block(second, x, heads, False, run_memory)
        logits = x @ p["tokens.weight"].T
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        return p, running, tokens, targets, chosen[0], loss

    p, running, tokens, targets, slots, loss = draw_until_clear(build)
    values = p["layers.1.memory.values"]
    dense = [parameter for parameter in p.values() if parameter is not values]
    tensors = {"input_tokens": tokens, "target_tokens": targets, "loss": loss, "slots": slots,
               **{f"{name}.before": value.detach().clone() for name, value in p.items()},
               **{name: value.clone() for name, value in gradients(p).items()}}
    dense_norm = torch.nn.utils.clip_grad_norm_(dense, dense_max_norm)
    values_norm = torch.nn.utils.clip_grad_norm_([values], values_max_norm)
    assert dense_norm > dense_max_norm and values_norm > values_max_norm, "both clips are to be seen"

    lr = warmup_init + (peak - warmup_init) / warmup  # at step 1
    adam = torch.optim.Adam(dense, lr=lr, betas=(0.9, 0.98), eps=eps)
    adam.step()
    touched = slots.unique()
    values.grad = torch.sparse_coo_tensor(touched[None], values.grad[touched], values.shape)
    rows = torch.optim.SparseAdam([values], lr=values_lr, betas=(0.9, 0.999), eps=eps)
    rows.step()
    for name, value in p.items():
        state = (rows if value is values else adam).state[value]
        tensors |= {f"{name}.after": value, f"{name}.first_moments": state["exp_avg"],
                    f"{name}.second_moments": state["exp_avg_sq"]}
    save("train_step", {
        **tensors, "layers.1.memory.query_norm.running_mean.after": running[0],
        "layers.1.memory.query_norm.running_var.after": running[1], "dense_norm": dense_norm,
        "values_norm": values_norm, "dense_max_norm": dense_max_norm, "values_max_norm": values_max_norm, "peak": peak,
        "warmup_init": warmup_init, "warmup": warmup, "lr": lr, "values_lr": values_lr, "adam_eps": eps, "heads": heads,
        "memory_heads": memory_heads, "k": k, "eps": LAYER_NORM_EPS})


if __name__ == "__main__":
    golden_memory()
    golden_batch_norm()
    golden_block("block_post_norm", False)
    golden_block("block_pre_norm", True)
    golden_adam("adam", torch.optim.Adam)
    golden_adam("adamw", torch.optim.AdamW, weight_decay=0.1)
    golden_rows("sparse_adam", torch.optim.SparseAdam, True)
    golden_rows("dense_adam", torch.optim.Adam, False)
    golden_train_step()
