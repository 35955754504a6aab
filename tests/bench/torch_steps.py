#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times training steps of the language model in PyTorch on one device, in bf16 (in fp16 on GPUs before Ampere); scripts/gpu-check starts it.

    torch_steps.py cuda|cpu SHAPE --values dense|sparse|rows|none [--compile]

SHAPE is a JSON object: layers, d, heads, context, vocabulary, memory_layer, n, c, batch. Prints one JSON object."""
import argparse
import json
import statistics
import time

import torch

WARM_UP, STEPS = 4, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=["cuda", "cpu"])
    parser.add_argument("shape", type=json.loads)
    parser.add_argument("--values", choices=["dense", "sparse", "rows", "none"], default="none")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_default_device(options.device)  # before the model's modules are made, which name no device
    from torch_memory import DENSE_RATE, adam
    from torch_model import Model

    shape = dict(options.shape)
    batch = shape.pop("batch")
    torch.manual_seed(1)
    model = Model(**shape, variant=options.values, loss="plain")
    values = model.memory.values if model.memory else None
    optimizer = adam([p for p in model.parameters() if not (values and p is values.weight)], DENSE_RATE, (0.9, 0.98))
    ids = torch.randint(shape["vocabulary"], (batch, shape["context"] + 1))
    step_model = torch.compile(model) if options.compile else model

    old = options.device == "cuda" and torch.cuda.get_device_capability()[0] < 8
    half = torch.float16 if old else torch.bfloat16  # no loss scale: it is the time that counts

    def step():
        with torch.autocast(options.device, dtype=half):
            loss = step_model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        if values:
            values.update()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device

    samples = []
    for i in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        loss = step()
        if i >= WARM_UP:
            samples.append((time.perf_counter() - begin) * 1e3)
    ms = statistics.median(samples)
    print(json.dumps({"torch": torch.__version__, "ms": ms, "tokens_per_s": batch * shape["context"] / ms * 1e3, "samples": samples,
                      "loss": loss, "type": str(half).removeprefix("torch.")}))


main()
