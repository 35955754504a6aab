#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One process of PyTorch that times whole steps and prints one line of JSON; `tests/bench/peers` starts it.

    torch_run.py layer D N C TOKENS --values dense|sparse|rows [--compile]
    torch_run.py model --values dense|sparse|rows|none [--compile] [--bf16] [--loss plain|chunked]  (RANK, WORLD_SIZE as torchrun)
"""
import argparse
import json
import os
import resource
import sys
import time

import torch

from shapes import BATCH, MODEL, WEIGHT_DECAY

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layer", "model"])
    parser.add_argument("shape", type=int, nargs="*", help="layer: d n c tokens")
    parser.add_argument("--values", choices=["dense", "sparse", "rows", "none"], default="dense")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--loss", choices=["plain", "chunked"], default="plain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, on standard error")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    imported = peak_mib()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(1)
    if options.what == "layer":
        from torch_memory import LayerStep
        step = LayerStep(*options.shape, options.values, options.compile)
    else:
        from torch_model import ModelStep
        step = ModelStep(MODEL, BATCH, options.values, options.compile, options.bf16, options.loss, WEIGHT_DECAY, world)

    milliseconds = []
    for i in range(options.warm_up + options.steps):
        if world > 1:
            torch.distributed.barrier()
        begin = time.perf_counter()
        step()
        if i >= options.warm_up:
            milliseconds.append((time.perf_counter() - begin) * 1e3)
    figures = {"torch": torch.__version__, "ms": milliseconds, "peak_mib": peak_mib(), "imported_mib": imported,
               "loss": getattr(step, "last_loss", None)}
    if options.what == "layer":
        figures["distinct_rows"] = step.distinct_rows()
    if options.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45),
              file=sys.stderr)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # some builds abort while their process group is torn down


if __name__ == "__main__":
    main()
