#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The comparison's plumbing: a stand-in for PyTorch prints known figures, pkmesh really runs. Nothing here is a matter of
time.  compare_test.py PKMESH"""
import contextlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import compare
from settle import GIB, Turns, returns_memory

PKMESH = sys.argv.pop(1) if len(sys.argv) > 1 else None
# Answers the probe, then says how it was started; `sparse` fails as an old PyTorch would.
STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    print("9.9.9")
    sys.exit()
if "sparse" in sys.argv:
    sys.exit("RuntimeError: no kernel for it")
milliseconds = 2000.0 if "rows" in sys.argv else 1000.0
print("a line that is no figure")
print(json.dumps({{"ms": [milliseconds + int(os.environ.get("RANK", 0)), milliseconds * 3, 1.0], "peak_mib": 500}}))
"""


def run(*arguments):
    """-> exit code, standard output, standard error of compare.py with these arguments."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["compare.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = compare.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


class Compare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.waits = []  # seconds, before each process but the first
        compare.Turns = lambda peak_of: Turns(peak_of, self.waits.append, lambda: True)
        self.figures = Path(folder.name, "figures.json")
        self.stand_in = Path(folder.name, "python")
        self.stand_in.write_text(STAND_IN.format(python=sys.executable))
        self.stand_in.chmod(self.stand_in.stat().st_mode | stat.S_IXUSR)
        tiny = dict(compare.layer(16, 40, 16, 8), variants=compare.values("sparse", "rows", "dense"))
        compare.CASES.update({"tiny": tiny, "tiny-2": dict(tiny, ranks=2)})
        compare.TITLES.update({"tiny": "a tiny layer", "tiny-2": "the same on two ranks"})

    def compare(self, *cases):
        code, out, err = run("--pkmesh", PKMESH, "--torch", self.stand_in, "--rounds", 3, "--steps", 2, "--json",
                             self.figures, *cases)
        return code, out, err, json.loads(self.figures.read_text()) if self.figures.exists() else []

    def test_a_case(self):
        code, out, err, lines = self.compare("tiny")
        self.assertEqual((code, err), (0, ""))
        self.assertIn("does not run: RuntimeError: no kernel for it", out)
        (line,) = lines
        self.assertEqual(line["peer"], "9.9.9 --values dense", "the faster one takes part in the final")
        self.assertEqual(line["torch_ms"], [1000.0] * 3, "medians of the samples")
        self.assertEqual(line["ratios"], [1000.0 / ms for ms in line["pkmesh_ms"]])
        self.assertEqual(line["ratio"], sorted(line["ratios"])[1])
        self.assertEqual(line["torch_peak_mib"], 500)
        self.assertEqual(line["memory_ratio"], line["pkmesh_peak_mib"] / 500)
        after_torch = 1 + 6 * 500 * 2**20 / GIB
        self.assertEqual(self.waits[:3] + self.waits[3::2], [25] + [after_torch] * 5, "25 after the one that failed")
        self.assertEqual(len(self.waits), 8)
        self.assertLessEqual(max(self.waits[4::2]), 1 + 6 * line["pkmesh_peak_mib"] * 2**20 / GIB, "after pkmesh")
        self.assertIn("9.9.9 --values dense", out.splitlines()[-1])

    def test_without_a_choice_there_is_no_heat(self):
        code, out, _, (line,) = self.compare("tiny", "--only", "--values rows")
        self.assertEqual((code, line["torch_ms"]), (0, [2000.0] * 3))
        self.assertNotIn("heat", out)

    def test_two_processes(self):
        code, _, err, (line,) = self.compare("tiny-2")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(line["torch_ms"], [1001.0] * 3, "a step takes as long as its slowest rank")
        self.assertEqual(line["torch_peak_mib"], 1000, "both ranks' memory")

    def test_without_pytorch(self):
        code, out, err = run("--pkmesh", PKMESH, "--torch", "/bin/false", "tiny")
        self.assertEqual(code, 2)
        self.assertIn("left out: PyTorch cannot be had from /bin/false", out)
        self.assertIn("error: no PyTorch to compare with", err)
        self.assertEqual(len(err.splitlines()), 1)

    def test_pkmesh_fails(self):
        compare.CASES["tiny"]["pkmesh"] += ["--set", "model.width=15"]
        code, out, _, lines = self.compare("tiny")
        self.assertEqual((code, lines), (1, []))
        self.assertRegex(out, "tiny is left out: error: .*model.width")

    def test_unknown_case(self):
        code, _, _ = run("--pkmesh", PKMESH, "layer-z")
        self.assertIn("layer-z: no such case", code)

    def test_a_machine_that_gives_memory_back(self):
        device = self.folder / "virtio_balloon/virtio0"
        self.assertFalse(returns_memory(self.folder), "no balloon")
        device.mkdir(parents=True)
        (device / "features").write_text("0110000100000000\n")
        self.assertFalse(returns_memory(self.folder))
        (device / "features").write_text("0110010100000000\n")
        self.assertTrue(returns_memory(self.folder))

    def test_a_rank_that_dies_ends_the_other(self):
        python = sys.executable
        lost = [compare.start([python, "-c", "import time; time.sleep(1000)"], {}),
                compare.start([python, "-c", "import sys; sys.exit('lost')"], {})]
        with self.assertRaisesRegex(compare.Unavailable, "lost"):
            compare.finish(lost)
        self.assertTrue(all(process.poll() is not None for process in lost))

    def test_ranks_against_threads(self):
        small = ["--config", "quickstart", "--set", "model.width=16", "--set", "model.heads=2", "--set", "train.batch=4",
                 "--set", "model.context=16", "--set", "model.memory.0.sub_keys=16", "--set", "tokenizer.vocabulary=512"]
        command = [sys.executable, "-B", Path(__file__).parent / "ranks", "--program", PKMESH, "--rounds", "1",
                   "--repeats", "1", *small]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(len(re.findall(r"ms +[0-9]+ tok/s", result.stdout)), 4)
        self.assertRegex(result.stdout, r"weak scaling, 2 ranks over 1 x 1 of half +[0-9.]+ ")


if __name__ == "__main__":
    unittest.main()
