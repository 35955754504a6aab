# SPDX-License-Identifier: Apache-2.0
"""Starts the program as its users do, alone and under mpirun, and looks at what it said and left behind.

A test file names its cases with unittest and ends in program.main(): `test_file PKMESH MPIEXEC [unittest's options]`.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

SOON = 30  # seconds within which a refusal, or the death of a rank, must have ended the whole job; it takes about one
LONG = 300  # seconds after which a run that should succeed is taken to hang
DEBUG = ["train", "--config", "debug"]
TEXT = "".join(f"word{i % 97} follows word{i % 89}; " + "\n" * (i % 7 == 0) for i in range(2000))
MARK = "PKMESH_TEST_JOB"  # in the environment of every process of a job, so that those left behind can be found


class Job:
    """A job under way: PROGRAM on `ranks` ranks, 0 for no mpirun; or, with `contexts`, one rank per argument list.

    `shell` is a command line that comes before the program in the same process: a limit, a redirection.
    """

    def __init__(self, arguments, ranks=0, contexts=None, shell=None, cwd=None, stdin=subprocess.DEVNULL,
                 stdout=subprocess.PIPE, env=None):
        self.mark = uuid.uuid4().hex
        self.begin = time.monotonic()
        if contexts:
            command = [MPIEXEC]
            for context in contexts:
                command += [":"] * (len(command) > 1) + ["-n", "1"] + context
        else:
            command = ([MPIEXEC, "-n", str(ranks)] if ranks else []) + [PROGRAM] + list(arguments)
        if shell:
            command = ["sh", "-c", f'{shell} "$0" "$@"'] + command
        environment = dict(os.environ, **(env or {}), **{MARK: self.mark})
        self.process = subprocess.Popen(command, cwd=cwd, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
                                        env=environment)

    def processes(self):
        """{pid: rank} of the job's living processes; rank None for mpirun, or without it."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    variables = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
            except OSError:
                continue
            if variables.get(MARK.encode()) == self.mark.encode():
                rank = variables.get(b"OMPI_COMM_WORLD_RANK")
                found[int(pid)] = None if rank is None else int(rank)
        return found

    def kill(self, rank, signal):
        for pid, its_rank in self.processes().items():
            if its_rank == rank:
                os.kill(pid, signal)

    def finish(self, timeout=LONG):
        """Waits for the end; sets code, out, err, seconds."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for pid in self.processes():
                os.kill(pid, 9)
            self.process.wait()
            raise AssertionError(f"{self.process.args} did not end within {timeout} s") from None
        self.code = self.process.returncode
        self.out, self.err = (out or b"").decode("utf-8", "replace"), err.decode("utf-8", "replace")
        self.seconds = time.monotonic() - self.begin
        while self.processes():
            if time.monotonic() - self.begin > timeout:
                raise AssertionError(f"{self.process.args} left processes behind: {self.processes()}")
            time.sleep(0.05)
        return self


def setting(override, out="run"):
    return DEBUG + ["--set", override, "--out", out]


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def metrics(folder):
    with open(f"{folder}/metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(folder):
    """[(step, loss, gradient norm), ...] of all steps, with every bit that was computed."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics(folder)]


def snapshot(folder):
    """What is in a folder: {path: bytes' hash}, folders with None, links with where they point."""
    found = {}
    for path, folders, files in os.walk(folder):
        found.update({os.path.join(path, name): None for name in folders})
        for name in map(lambda file: os.path.join(path, file), files):
            if os.path.islink(name):
                found[name] = os.readlink(name)
                continue
            with open(name, "rb") as file:
                found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def flip_a_bit(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


class Test(unittest.TestCase):
    """Each test works in an empty folder of its own, its current directory."""

    maxDiff = None

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="pkmesh-program-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        os.chdir(self.folder)
        self.addCleanup(os.chdir, "/")

    def run_well(self, *arguments, ranks=0, **options):
        job = Job(arguments, ranks, **options).finish()
        self.assertEqual(job.code, 0, f"{arguments} on {ranks} ranks:\n{job.err}")
        return job

    def train(self, out, *overrides, ranks=0, options=()):
        """The debug run with overrides such as "train.steps=5"."""
        settings = [word for override in overrides for word in ("--set", override)]
        return self.run_well(*DEBUG, "--out", out, *settings, *options, ranks=ranks)

    def check_refusal(self, job, words):
        """Exit code 2, one line of ours that holds `words`, and nobody left, soon."""
        job.finish(timeout=SOON)
        said = f"{job.process.args}:\n{job.err}"
        self.assertEqual(job.code, 2, said)
        ours = [line for line in job.err.splitlines() if "error" in line and not line.startswith(("[", "mpirun"))]
        self.assertEqual(len(ours), 1, said)
        self.assertTrue(ours[0].startswith("error: "), said)
        self.assertLess(len(ours[0]), 500, said)
        self.assertNotIn("internal error", job.err)
        for word in words:
            self.assertIn(word, ours[0])

    def assert_refused(self, arguments, *words, ranks=(0, 2), **options):
        """... and everything in the test's folder is as it was."""
        before = snapshot(self.folder)
        for count in ranks:
            with self.subTest(arguments=arguments, ranks=count):
                job = Job(arguments, count, **options)
                self.check_refusal(job, words)
                if count == 0:
                    self.assertEqual(len(job.err.splitlines()), 1, job.err)
                self.assertEqual(job.out, "")
                self.assertEqual(snapshot(self.folder), before)


def main():
    global PROGRAM, MPIEXEC
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(module="__main__", argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)
