# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu-check without a GPU: what it says then, and a rehearsal of its parts on the CPU: gpu_check_test.py PKMESH"""
import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts/gpu-check"
PKMESH = Path(sys.argv.pop(1)).resolve()
REHEARSED = ["training", "kernels", "model", "big"]  # pytorch needs PyTorch, the others a GPU


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.json = Path(self.folder.name) / "figures.json"

    def check(self, *words):
        return subprocess.run([sys.executable, "-B", SCRIPT, *words, "--json", self.json], capture_output=True, text=True, check=False,
                              cwd=self.folder.name)

    def test_parts_together_take_less_than_ten_minutes(self):
        output = self.check("--list").stdout.splitlines()
        self.assertLess(int(output[-1].split()[0]), 600)
        self.assertEqual(len(output), 9)

    def test_says_in_one_line_that_there_is_no_gpu(self):
        if os.path.exists("/dev/nvidia0"):
            self.skipTest("there is a GPU")
        result = self.check()
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, r"\Agpu-check: there is no GPU on this machine; nothing was run\n\Z")
        self.assertFalse(self.json.exists())

    def test_refuses_what_it_does_not_know(self):
        self.assertEqual(self.check("nonsense").returncode, 2)
        result = self.check("--dry-run", "--build", self.folder.name)
        self.assertEqual(result.returncode, 2)
        self.assertIn("pkmesh is missing", result.stderr)
        result = self.check("--dry-run", "--env", "absent.sh")
        self.assertIn("absent.sh could not be sourced", result.stderr)

    def test_rehearses_on_the_cpu(self):
        result = self.check("--rehearse", "--build", PKMESH.parent, *REHEARSED)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("gpu-check: 4 passed, 0 failed", result.stdout)
        figures = json.loads(self.json.read_text())
        self.assertTrue(figures["rehearsal"])
        parts = figures["parts"]
        self.assertEqual(list(parts), REHEARSED)
        self.assertEqual(parts["training"]["figures"]["worst"], 0, "the CPU against itself")
        self.assertEqual(len(parts["training"]["figures"]["cpu"]), 20)
        self.assertEqual(len(parts["kernels"]["figures"]["32^2 BF16"]["kernels"]), 11)
        self.assertGreater(parts["model"]["figures"]["FP32"]["speed_with_over_without"]["median"], 0)
        self.assertGreater(parts["big"]["figures"]["models"][0]["ms"]["median"], 0)
        self.assertIn("$ ", self.json.with_suffix(".log").read_text())

    def stand_in(self, *lines):
        """A program in the place of pkmesh, which runs if these lines do not end it."""
        program = Path(self.folder.name) / "pkmesh"
        program.write_text("\n".join(("#!/bin/sh", *lines, f'exec {PKMESH} "$@"', "")))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def test_sizes_that_do_not_fit_are_skipped(self):
        words = "error: this run needs 51.5 GiB on cuda:0 of here, which has 31.7 GiB for it: use more GPUs or a smaller model"
        self.stand_in(f"case $* in *row_type=FP32*) echo '{words}'; exit 2 ;; esac")
        result = self.check("--rehearse", "--build", self.folder.name, "kernels")
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertRegex(result.stdout, r"kernels +passed .*32\^2 rows, FP32 +skipped +needs 51\.5 GiB, the GPU has 31\.7 GiB")
        self.assertEqual(list(json.loads(self.json.read_text())["parts"]["kernels"]["figures"]), ["32^2 BF16"])
        self.stand_in(f"echo '{words}'; exit 2")
        for part in ("kernels", "big"):
            result = self.check("--rehearse", "--build", self.folder.name, part)
            self.assertEqual(result.returncode, 1, result.stdout)
            self.assertRegex(result.stdout, part + r" +FAILED .*no size fits: needs 51\.5 GiB")

    def test_a_part_without_its_program_does_not_stop_the_next(self):
        result = self.check("--rehearse", "--build", self.folder.name, "parity", "training")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertRegex(result.stdout, r"training +FAILED .*pkmesh is missing: build it first")
        self.assertRegex(result.stdout, r"parity +passed")
        self.assertEqual(self.check("--rehearse", "--build", self.folder.name, "training").returncode, 2)

    def test_a_part_that_fails_does_not_stop_the_next(self):
        self.stand_in("case $1 in train) echo 'error: it was asked to fail'; exit 3 ;; esac")
        result = self.check("--rehearse", "--build", self.folder.name, "training", "kernels")
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertRegex(result.stdout, r"training +FAILED .*pkmesh ended with 3: error: it was asked to fail")
        self.assertRegex(result.stdout, r"kernels +passed")
        self.assertIn("gpu-check: 1 passed, 1 failed", result.stdout)


unittest.main()
