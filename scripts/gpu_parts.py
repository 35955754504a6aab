# SPDX-License-Identifier: Apache-2.0
"""The parts of scripts/gpu-check: what each runs, needs and reports."""
import collections
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = []
Part = collections.namedtuple("Part", "name seconds needs function")
# mpirun as root, and with more ranks than cores, as in scripts/lib.sh.
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_mpi_yield_when_idle": "1"}


class Failed(Exception):
    """What is wrong, in one line."""


class DoesNotFit(Failed):
    """The GPU has less memory than the program needs."""


def part(name, seconds, *needs):
    """Registers a part: its function takes a Check and returns lines for the table, (what, figure, remark). `needs`: programs."""
    def register(function):
        PARTS.append(Part(name, seconds, needs, function))
        return function
    return register


def cuda():
    """The driver's library, or None where there is none or no GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def gpu_count():
    driver, count = cuda(), ctypes.c_int(0)
    return count.value if driver and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def has_bf16():
    """Whether the first GPU multiplies bf16: from Ampere on, compute capability 8."""
    major_of_capability = 75
    driver, device, major = cuda(), ctypes.c_int(0), ctypes.c_int(0)
    if driver and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDeviceGetAttribute(ctypes.byref(major), major_of_capability, device)
    return major.value >= 8


class Check:
    """The programs, the time limit of the part that runs, and its log."""

    def __init__(self, build, rehearse, folder, figures):
        self.build = build
        self.rehearse = rehearse
        self.folder = folder
        self.figures = figures  # what goes into the JSON file, for the part that runs
        self.device = "CPU" if rehearse else "CUDA"
        self.deadline = 0.0

    def programs(self, name):
        """Paths of a program that was built; mpirun's, wherever it is."""
        if name == "mpirun":
            return [path for path in [shutil.which(name)] if path]
        found = self.build.glob("pkmesh" if name == "pkmesh" else f"tests/**/{name}")
        return [str(path) for path in found if path.is_file() and os.access(path, os.X_OK)]

    def missing(self, needs):
        if self.rehearse:
            needs = [name for name in needs if name == "pkmesh"]  # the others' parts are not rehearsed
        where = {"mpirun": "mpirun", "pkmesh": f"{self.build}/pkmesh"}
        return [where.get(name, f"{self.build}/tests/**/{name}") for name in needs if not self.programs(name)]

    def run(self, command, seconds=None, env=None):
        """Output of a command that must succeed before the part's time is over."""
        left = self.deadline - time.monotonic()
        left = min(left, seconds) if seconds else left
        if left <= 1:
            raise Failed("no time left")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                                   env={**MPI, **os.environ, **(env or {})}, errors="replace")
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            self.log(command, output)
            raise Failed(f"{Path(command[0]).name} took more than {left:.0f} s") from None
        self.log(command, output)
        if process.returncode != 0:
            lines = [line for line in output.splitlines() if line.strip()]
            telling = [line for line in lines if re.search(r"error|FAILED|Failure|what\(\)", line)]
            too_big = re.search(r"this run needs (\S+ \S+) on cuda:\d+.* which has (\S+ \S+) for it", output)
            if too_big:
                raise DoesNotFit(f"needs {too_big[1]}, the GPU has {too_big[2]}")
            raise Failed(f"{Path(command[0]).name} ended with {process.returncode}: {(telling or lines or ['no output'])[-1][:160]}")
        return output

    def log(self, command, output):
        with open(self.folder / "gpu-check.log", "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{output}\n")

    def pkmesh(self, *words, **options):
        return self.run([*self.programs("pkmesh"), *map(str, words)], **options)

    def bench(self, name, *words):
        path = self.folder / "bench.json"
        path.unlink(missing_ok=True)
        self.pkmesh("bench", name, *words, "--json", path)
        return json.loads(path.read_text())


def settings(**options):
    """model__width=4 -> --set model.width=4"""
    return [word for key, value in options.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def gtest_counts(output):
    ran = re.findall(r"\[==========\] (\d+) tests? from .* ran", output)
    skipped = len(set(re.findall(r"\[  SKIPPED \] (\S+)", output)))
    return int(ran[-1]) if ran else 0, skipped


PARITY = ("dense_cuda_test", "memory_cuda_test", "sparse_adam_cuda_test")


@part("parity", 60, *PARITY)
def parity(check):
    """Every op on the GPU against the same op on the CPU."""
    if check.rehearse:
        return [("every op", "not rehearsed", "needs a GPU")]
    lines = []
    for program in (path for name in PARITY for path in check.programs(name)):
        output = check.run([program], env={"PKMESH_REQUIRE_GPU": "1"})
        ran, skipped = gtest_counts(output)
        if ran == skipped:
            raise Failed(f"{Path(program).name} ran no test")
        lines.append((Path(program).name, f"{ran - skipped} tests", f"{skipped} skipped" if skipped else ""))
        check.figures[Path(program).name] = {"ran": ran - skipped, "skipped": skipped}
    return lines


# Ranks that share a GPU: to NCCL each is a host of its own, and traffic goes through sockets. For correctness only.
SHARED_GPU = ("NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME==lo NCCL_P2P_DISABLE=1 "
              "NCCL_SHM_DISABLE=1 NCCL_NVLS_ENABLE=0 NCCL_MNNVL_ENABLE=0 NCCL_RAS_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_BUFFSIZE=1048576")


@part("communicators", 75, "comm_gpu_test", "mpirun")
def communicators(check):
    """The communicators' contract on device memory: NCCL with 1 and 2 ranks on the GPU, HostStaged with 1, 2 and 4."""
    if check.rehearse:
        return [("the contract", "not rehearsed", "needs a GPU")]
    program = check.programs("comm_gpu_test")[0]
    lines = []
    failures = []
    # Without 4 ranks over NCCL: through sockets, and taking turns on one GPU, they may need minutes.
    for ranks, seconds, tests in ((1, 20, "*"), (2, 35, "*"), (4, 20, "-*/Nccl")):
        name = f"comm_gpu_test, {ranks} ranks"
        command = f"{SHARED_GPU if ranks > 1 else ''} exec {program} '--gtest_filter={tests}'"
        try:
            output = check.run(["mpirun", "-n", str(ranks), "sh", "-c", command], seconds=seconds,
                               env={"PKMESH_TEST_RANKS": str(ranks), "PKMESH_REQUIRE_GPU": "1"})
            ran, skipped = gtest_counts(output)
            if ran == skipped:
                raise Failed("ran no test")
            lines.append((name, f"{ran - skipped} tests", f"{skipped} skipped" if skipped else ""))
            check.figures[name] = {"ran": ran - skipped, "skipped": skipped}
        except Failed as error:
            failures.append(f"{name}: {error}")
    if failures:
        raise Failed("; ".join(failures))
    return lines


@part("training", 50, "pkmesh")
def training(check):
    """Twenty steps on the GPU give the CPU's losses."""
    tolerance = 1e-4
    common = ["--config", "debug", *settings(model__width=128, model__heads=4, model__layers=3, train__steps=20, train__eval_every=0,
                                             train__checkpoint_every=0, optimizer__warmup_steps=5)]
    losses = {}
    for device in ("CPU", check.device):
        out = check.folder / f"training-{device}-{len(losses)}"
        check.pkmesh("train", *common, *settings(train__device=device), "--out", out)
        losses[len(losses)] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    cpu, gpu = losses[0], losses[1]
    if len(cpu) != 20 or len(gpu) != 20:
        raise Failed(f"{len(cpu)} and {len(gpu)} steps instead of 20")
    worst = max(abs(a - b) / abs(a) for a, b in zip(cpu, gpu))
    check.figures.update(cpu=cpu, gpu=gpu, worst=worst)
    if not worst <= tolerance:
        raise Failed(f"losses differ by {worst:.1e}, more than {tolerance:.0e}")
    return [("losses of 20 steps, fp32, GPU against CPU", f"{worst:.1e}", f"relative, at most {tolerance:.0e}; {cpu[0]:.4f} to {cpu[-1]:.4f}")]


@part("kernels", 90, "pkmesh")
def kernels(check):
    """The memory's kernels against the device's copy bandwidth."""
    lines = []
    sizes = (32,) if check.rehearse else (1024, 2048)
    toy = settings(model__width=64, model__context=32, model__memory__0__neighbours=8, model__memory__0__key_width=32, train__batch=2)
    for n in sizes:
        for kind in ("FP32", "BF16"):
            try:
                figures = check.bench("kernels", "--repeats", 5, *(toy if check.rehearse else []),
                                      *settings(model__memory__0__sub_keys=n, model__memory__0__row_type=kind, values__moment_type=kind,
                                                train__device=check.device))
            except DoesNotFit as error:
                lines.append((f"{n}^2 rows, {kind}", "skipped", str(error)))
                continue
            check.figures[f"{n}^2 {kind}"] = figures
            lines.append((f"copy ({n}^2 rows, {kind})", f"{figures['copy_gb_per_s']:.0f} GB/s", "read and written"))
            for kernel in figures["kernels"]:
                lines.append((f"  {kernel['name']}", f"{kernel['ms']['median']:.3f} ms",
                              f"{100 * kernel['of_copy']:.0f}% of copy bandwidth, floor {kernel['floor_ms']:.3f} ms ({100 * kernel['of_floor']:.0f}%)"))
    if not check.figures:
        raise Failed(f"no size fits: {lines[-1][2]}")
    return lines


# The model of the comparison: 12 blocks, a memory of n^2 rows in the place of one feed-forward layer.
MODEL = {"layers": 12, "d": 1024, "heads": 16, "context": 1024, "vocabulary": 32000, "memory_layer": 6, "n": 1024, "c": 512, "batch": 8}
TOY_MODEL = {"layers": 2, "d": 64, "heads": 4, "context": 32, "vocabulary": 600, "memory_layer": 1, "n": 16, "c": 32, "batch": 2}


def model_settings(check):
    model = TOY_MODEL if check.rehearse else MODEL
    return settings(model__layers=model["layers"], model__width=model["d"], model__heads=model["heads"], model__context=model["context"],
                    model__memory__0__layers=f"[{model['memory_layer']}]", model__memory__0__sub_keys=model["n"],
                    model__memory__0__neighbours=8 if check.rehearse else 32, model__memory__0__key_width=model["c"],
                    tokenizer__vocabulary=model["vocabulary"], train__batch=model["batch"], train__device=check.device)


@part("model", 90, "pkmesh")
def model(check):
    """A whole training step with the memory and with the feed-forward layer in its place."""
    lines = []
    for precision in ("FP32",) if check.rehearse else ("BF16" if has_bf16() else "FP16", "FP32"):
        figures = check.bench("step", "--repeats", 5, *model_settings(check), *settings(train__precision=precision))
        check.figures[precision] = figures
        for one in figures["models"]:
            lines.append((f"{precision}, {one['name']}", f"{one['tokens_per_s']:.0f} tok/s", f"{one['ms']['median']:.1f} ms a step"))
        ratio = figures["speed_with_over_without"]
        lines.append((f"{precision}, speed with / without", f"{ratio['median']:.3f}", f"{ratio['min']:.3f} to {ratio['max']:.3f}"))
    return lines


@part("pytorch", 90)
def pytorch(check):
    """The same layer and the same model in PyTorch, on the same device."""
    lines = []
    shape = TOY_MODEL if check.rehearse else MODEL
    script = ROOT / "tests/bench/torch_steps.py"
    device = "cpu" if check.rehearse else "cuda"
    for name, words in (("memory, eager", ["--values", "sparse"]), ("memory, rows by hand", ["--values", "rows"]), ("no memory", ["--values", "none"]),
                        ("no memory, compiled", ["--values", "none", "--compile"])):
        if check.rehearse and "compiled" in name:
            continue
        try:
            output = check.run([sys.executable, str(script), device, json.dumps(shape), *words], seconds=60)
        except Failed as error:
            lines.append((f"PyTorch, {name}", "failed", str(error)))
            continue
        figures = json.loads(output.splitlines()[-1])
        check.figures[name] = figures
        lines.append((f"PyTorch {figures['torch']}, {name}", f"{figures['tokens_per_s']:.0f} tok/s", f"{figures['ms']:.1f} ms a step, {figures['type']}"))
    if not check.figures:
        raise Failed(lines[0][2])
    return lines


@part("big", 80, "pkmesh")
def big(check):
    """A table of 16.8 million rows of 1024 values, or what fits, with bf16 rows and moments, trains on one device."""
    sizes = [(64, "FULL")] if check.rehearse else [(n, second) for n in (4096, 2048, 1024) for second in ("FULL", "ROW_WISE")]
    toy = settings(model__width=64, model__heads=16, model__context=64, train__batch=4, model__memory__0__neighbours=8, model__memory__0__key_width=32)
    full = settings(model__width=1024, model__heads=16, model__context=256, train__batch=32, model__memory__0__neighbours=32,
                    model__memory__0__key_width=512)
    lines = []
    for n, second in sizes:
        try:  # a benchmark: a run would save a table of up to 100 GB
            figures = check.bench("model", "--repeats", 5, "--config", "debug", *(toy if check.rehearse else full), *settings(
                model__memory__0__sub_keys=n, model__memory__0__heads=4, model__memory__0__row_type="BF16", values__moment_type="BF16",
                values__second_moment=second, train__device=check.device))
        except DoesNotFit as error:
            lines.append((f"{n}^2 rows, second moment {second}", "skipped", str(error)))
            continue
        check.figures.update(figures, sub_keys=n, second_moment=second)
        model = figures["models"][0]
        remark = f"{model['ms']['median']:.1f} ms a step; every loss and gradient finite"
        return [*lines, (f"{n}^2 rows, bf16, second moment {second}", f"{model['tokens_per_s']:.0f} tok/s", remark)]
    raise Failed(f"no size fits: {lines[-1][2]}")


# Tests that are quick, of all kernels of the memory but those of hundreds of cases.
SANITIZED = ["MemoryCuda.*", "QueryCuda.Selection*", "QueryCuda.BatchNorm*", "SparseAdamCuda.RowsBeyond*", "SparseAdamCuda.ListsOf*", "SparseAdamCuda.Bounds*"]


@part("sanitizer", 60, "memory_cuda_test", "sparse_adam_cuda_test")
def sanitizer(check):
    """compute-sanitizer over the memory's kernels."""
    programs = check.programs("memory_cuda_test") + check.programs("sparse_adam_cuda_test")
    if check.rehearse:
        return [("memcheck", "not rehearsed", "needs a GPU")]
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(tool, os.X_OK):
        raise Failed("compute-sanitizer is not on this machine")
    lines = []
    for program in programs:
        for kind in ("memcheck", "racecheck"):
            output = check.run([tool, "--tool", kind, "--error-exitcode", "9", program, "--gtest_filter=" + ":".join(SANITIZED)], seconds=40,
                               env={"PKMESH_REQUIRE_GPU": "1", "PKMESH_QUICK": "1"})
            if gtest_counts(output)[0] == 0:
                raise Failed(f"{Path(program).name} has none of the tests {SANITIZED}")
            summary = [line for line in output.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
            lines.append((f"{kind}, {Path(program).name}", "clean", summary[-1].strip("= ") if summary else ""))
    return lines
