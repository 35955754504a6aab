#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the same layer and the same model in PyTorch and in pkmesh, in turn, and prints the ratios of their step times.

Every case has a heat, in which each way to do it in each PyTorch runs once, and a final, in which the fastest of them and
pkmesh take turns in fresh processes: A B A B. A ratio is that of two neighbours; the median over the rounds counts.
`tests/bench/peers` prepares both sides and calls this.
"""
import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from settle import Turns
from shapes import LAYERS, MODEL_CONFIG, layer_overrides

HERE = Path(__file__).resolve().parent
FEED_FORWARD = ["--set", "model.memory=[]"]
TIME_LIMIT = 600  # seconds for one process


def values(*kinds):
    """Variants of torch_run.py: "dense --compile" trains the table densely, with torch.compile."""
    return [["--values", *kind.split()] for kind in kinds]


def layer(*shape):
    """One step of a layer: what torch_run.py and pkmesh are told, and the ways in which PyTorch may do it."""
    return {"torch": ["layer", *shape], "variants": values("rows", "dense", "sparse", "dense --compile", "rows --compile"),
            "pkmesh": ["layer", *layer_overrides(*shape)]}


def model(*extra, variants, pkmesh=(), ranks=1):
    return {"torch": ["model", *extra], "variants": variants, "pkmesh": ["model", "--config", "MODEL", *pkmesh],
            "ranks": ranks}


CASES = {
    **{f"layer-{name}": layer(*shape) for name, shape in LAYERS.items()},
    "model": model(variants=values("dense", "sparse", "rows", "dense --loss chunked", "dense --compile")),
    "model-2-ranks": model(variants=values("dense", "sparse", "dense --loss chunked", "dense --compile"), ranks=2),
    "model-ffn": model(variants=values("none", "none --loss chunked", "none --compile"), pkmesh=FEED_FORWARD),
    "model-bf16": model("--bf16", variants=values("dense", "rows", "dense --loss chunked", "dense --compile"),
                        pkmesh=["--set", "train.precision=BF16"]),
}
TITLES = {
    **{f"layer-{name}": "one step of a layer, d {}, n {}, c {}, {} tokens".format(*shape)
       for name, shape in LAYERS.items()},
    "model": "a training step with memory, 1 process x all cores",
    "model-2-ranks": "a training step with memory, 2 processes x half of the cores",
    "model-ffn": "a training step with a feed-forward layer in the memory's place",
    "model-bf16": "a training step with memory, bf16 (PyTorch: autocast)",
}


class Unavailable(Exception):
    """A contestant that cannot run here, and why."""


def last_json(output):
    """The last line of the output that is a JSON object."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    raise Unavailable("it printed no figures")


def finish(processes):
    """Waits for processes that belong together; their outputs, which are short. When one fails, the others are ended."""
    deadline = time.monotonic() + TIME_LIMIT
    try:
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                raise Unavailable(f"it took more than {TIME_LIMIT} s")
            if any(process.poll() not in (None, 0) for process in processes):
                break
            time.sleep(0.05)
        failed = [process for process in processes if process.poll() not in (None, 0)]
        if failed:
            lines = failed[0].stderr.read().strip().splitlines()
            raise Unavailable(lines[-1] if lines else f"exit code {failed[0].returncode}")
        return [process.stdout.read() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def start(command, environment, cores=None):
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    return subprocess.Popen([str(word) for word in command], env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=pin)


class Torch:
    """A Python that has PyTorch."""

    def __init__(self, name, python, jemalloc):
        self.name, self.python = name, python
        probe = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
        if probe.returncode != 0:
            reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"PyTorch cannot be had from {python}: {reason}")
        self.version = probe.stdout.strip()
        self.environment = {"ATEN_CPU_CAPABILITY": "avx512", "PYTHONDONTWRITEBYTECODE": "1"}
        if "avx512f" not in Path("/proc/cpuinfo").read_text():
            del self.environment["ATEN_CPU_CAPABILITY"]
        if jemalloc:  # keeps freed memory, on huge pages
            self.environment["LD_PRELOAD"] = jemalloc
            self.environment["MALLOC_CONF"] = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"

    def run(self, case, variant, steps):
        ranks = case.get("ranks", 1)
        threads = max(1, os.cpu_count() // ranks) if ranks > 1 else os.cpu_count()
        command = [self.python, HERE / "torch_run.py", *case["torch"], *variant, "--threads", threads, "--steps", steps]
        environment = dict(self.environment, OMP_NUM_THREADS=str(threads))
        if ranks == 1:
            return [last_json(finish([start(command, environment)])[0])]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE=str(ranks))
        return [last_json(out) for out in finish([
            start(command, dict(environment, RANK=str(rank)), range(rank * threads, (rank + 1) * threads))
            for rank in range(ranks)])]


def run_pkmesh(program, case, steps, folder):
    ranks = case.get("ranks", 1)
    config, figures = Path(folder, "model.textproto"), Path(folder, "figures.json")
    figures.unlink(missing_ok=True)
    config.write_text(MODEL_CONFIG)
    words = [config if word == "MODEL" else word for word in case["pkmesh"]]
    threads = max(1, os.cpu_count() // ranks)
    launch = ["mpirun", "-n", ranks] if ranks > 1 else []
    finish([start([*launch, program, "bench", *words, "--repeats", steps, "--json", figures],
                  {"OMP_NUM_THREADS": str(threads)} if ranks > 1 else {})])
    found = json.loads(figures.read_text())
    spread = found["models"][0]["ms"] if "models" in found else found["ms"]
    return {"ms": spread["median"], "peak_mib": found["memory"]["peak_bytes"] * ranks / 2**20, "commit": found["commit"]}


def torch_figures(ranks):
    """One figure from all ranks' samples: each step takes as long as the slowest of them."""
    steps = [max(samples) for samples in zip(*(rank["ms"] for rank in ranks))]
    return {"ms": statistics.median(steps), "peak_mib": sum(rank["peak_mib"] for rank in ranks)}


def spread_text(values, form="{:.2f}"):
    return (form + " (" + form + "-" + form + ")").format(statistics.median(values), min(values), max(values))


def summary(title, peer, theirs, ours):
    """A line of the table: the ratio of neighbours, both medians, both peaks of memory."""
    ratios = [a["ms"] / b["ms"] for a, b in zip(theirs, ours)]
    peaks = [max(figures["peak_mib"] for figures in side) for side in (theirs, ours)]
    return {"case": title, "peer": peer, "ratio": statistics.median(ratios), "ratios": ratios,
            "torch_ms": [a["ms"] for a in theirs], "pkmesh_ms": [b["ms"] for b in ours], "torch_peak_mib": peaks[0],
            "pkmesh_peak_mib": peaks[1], "memory_ratio": peaks[1] / peaks[0]}


def heat(case, peers, steps, only, turns):
    """[(ms, peer, variant)], fastest first; not run if there is no choice."""
    variants = [only.split()] if only else case["variants"]
    if len(peers) * len(variants) == 1:
        return [(0, peers[0], variants[0])]
    found = []
    for peer in peers:
        for variant in variants:
            name = f"  heat   PyTorch {peer.version:<14} {' '.join(variant):<32}"
            try:
                figures = turns.take(lambda: torch_figures(peer.run(case, variant, steps)))
            except Unavailable as why:
                print(f"{name} does not run: {why}", flush=True)
                continue
            found.append((figures["ms"], peer, variant))
            print(f"{name} {figures['ms']:9.1f} ms {figures['peak_mib']:8.0f} MiB", flush=True)
    return sorted(found, key=lambda entry: entry[0])


def compare(name, peers, program, options, folder, turns):
    case = CASES[name]
    print(f"\n{name}: {TITLES[name]}", flush=True)
    fastest = heat(case, peers, options.steps, options.only, turns)
    if not fastest:
        raise Unavailable(f"{name}: no PyTorch runs it")
    _, peer, variant = fastest[0]
    theirs, ours = [], []
    for turn in range(options.rounds):
        theirs.append(turns.take(lambda: torch_figures(peer.run(case, variant, options.steps))))
        ours.append(turns.take(lambda: run_pkmesh(program, case, options.steps, folder)))
        print(f"  round {turn + 1}  PyTorch {theirs[-1]['ms']:9.1f} ms   pkmesh {ours[-1]['ms']:9.1f} ms   "
              f"ratio {theirs[-1]['ms'] / ours[-1]['ms']:.2f}", flush=True)
    return dict(summary(name, f"{peer.version} {' '.join(variant)}", theirs, ours), commit=ours[0]["commit"])


def print_table(lines):
    print(f"\n{'case':<16}{'speed of pkmesh / PyTorch':>28}{'PyTorch ms':>26}{'pkmesh ms':>26}{'peak MiB':>17}{'memory':>8}"
          "  fastest PyTorch")
    for line in lines:
        peaks = f"{line['torch_peak_mib']:.0f} {line['pkmesh_peak_mib']:.0f}"
        print(f"{line['case']:<16}{spread_text(line['ratios']):>28}{spread_text(line['torch_ms'], '{:.0f}'):>26}"
              f"{spread_text(line['pkmesh_ms'], '{:.0f}'):>26}{peaks:>17}{line['memory_ratio']:>8.2f}  {line['peer']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--pkmesh", required=True, metavar="PROGRAM")
    parser.add_argument("--torch", action="append", default=[], metavar="PYTHON", help="has PyTorch; may be repeated")
    parser.add_argument("--jemalloc", default="", metavar="LIBRARY", help="PyTorch's allocator")
    parser.add_argument("--only", metavar="WORDS", help='the one way in which PyTorch may do it: "--values dense --compile"')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="timed steps in each process")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such case; choose from {', '.join(CASES)}")
    peers = []
    for python in options.torch:
        try:
            peers.append(Torch(python, python, options.jemalloc))
            print(f"PyTorch {peers[-1].version} from {python}", flush=True)
        except Unavailable as why:
            print(f"left out: {why}", flush=True)
    if not peers:
        print("error: no PyTorch to compare with; see `left out` above", file=sys.stderr)
        return 2
    turns = Turns(lambda figures: figures["peak_mib"] * 2**20)
    lines, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases or CASES:
            try:
                lines.append(compare(name, peers, options.pkmesh, options, folder, turns))
            except Unavailable as why:
                print(f"  {name} is left out: {why}", flush=True)
                failed = True
    if lines:
        print_table(lines)
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
