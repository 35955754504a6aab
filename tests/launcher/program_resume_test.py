# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped, killed or diverge, and what goes on from their checkpoints: as if nothing had happened."""
import os
import re
import shutil
import signal
import subprocess
import time

import program
from program import Job, losses, metrics


class Interrupted(program.Test):
    LONG_RUN = ("train.steps=80", "train.log_every=50", "train.memory_every=0", "train.eval_every=0",
                "train.checkpoint_every=20")

    def setUp(self):
        super().setUp()
        self.arguments = ["train", "--config", "debug", "--out", "run"]
        for override in self.LONG_RUN:
            self.arguments += ["--set", override]

    def start(self, ranks, steps):
        """A run that has done `steps` steps and goes on."""
        job = Job(self.arguments, ranks)
        while not os.path.exists("run/metrics.jsonl") or len(metrics("run")) < steps:
            if job.process.poll() is not None:
                raise AssertionError(f"it ended by itself:\n{job.finish().err}")
            time.sleep(0.01)
        return job

    def assert_goes_on(self, ranks):
        """A resumed run ends with the same losses as one that was never interrupted, bit for bit."""
        self.run_well(*self.arguments, "--resume", "auto", ranks=ranks)
        self.train("whole", *self.LONG_RUN, ranks=ranks)
        self.assertEqual(len(losses("run")), 80)
        self.assertEqual(losses("run"), losses("whole"))

    def stop_by(self, number, ranks, whom):
        job = self.start(ranks, steps=5)
        if whom == "launcher":
            job.process.send_signal(number)
        else:
            job.kill(whom, number)
        job.finish(timeout=program.SOON)
        self.assertEqual(job.code, 0, job.err)
        self.assertIn("stopped by a signal after step", job.err)
        done = metrics("run")[-1]["step"]
        self.assertLess(done, 80)
        self.assertEqual(sorted(os.listdir("run/checkpoints"))[-1], f"step_{done:08}")
        self.assert_goes_on(ranks)

    def test_sigterm(self):
        self.stop_by(signal.SIGTERM, 0, "launcher")

    def test_sigterm_to_one_rank(self):
        self.stop_by(signal.SIGTERM, 2, 1)

    def test_sigusr1_through_mpirun(self):
        self.stop_by(signal.SIGUSR1, 2, "launcher")

    def test_a_killed_rank(self):
        job = self.start(ranks=3, steps=45)
        job.kill(1, signal.SIGKILL)
        killed = time.monotonic()
        job.finish(timeout=program.SOON)
        self.assertNotEqual(job.code, 0)
        self.assertLess(time.monotonic() - killed, program.SOON)
        self.assert_goes_on(ranks=3)

    def test_a_rank_that_does_not_come(self):
        self.arguments += ["--set", "train.hang_minutes=0.05", "--set", "train.steps=100000"]
        job = self.start(ranks=2, steps=5)
        job.kill(0, signal.SIGSTOP)
        job.finish()
        self.assertNotEqual(job.code, 0)
        self.assertRegex(job.err, r"rank 1 has waited \d")
        with open("run/train.log", encoding="utf-8") as file:
            self.assertRegex(file.read(), r"\d pkmesh: rank 1 has waited \d")

    def test_a_step_short(self):
        self.train("run", "train.steps=7")
        self.train("run", "train.steps=20", options=("--resume", "auto"))
        self.train("whole", "train.steps=20")
        self.assertEqual(losses("run"), losses("whole"))
        job = self.run_well("train", "--out", "run", "--resume", "auto")
        self.assertIn("nothing to do: step 20 is done, and train.steps is 20", job.err)
        self.assertEqual(losses("run"), losses("whole"))


class Diverged(program.Test):
    OVERRIDES = ("optimizer.learning_rate=10", "optimizer.weight_decay=10", "train.eval_every=0")

    def test_ends_and_keeps_what_was_saved_before(self):
        self.train("run", "train.steps=2")
        arguments = ["train", "--out", "run", "--resume", "auto"]
        for override in self.OVERRIDES + ("train.steps=200", "train.checkpoint_every=5"):
            arguments += ["--set", override]
        job = Job(arguments).finish()
        self.assertEqual(job.code, 2, job.err)
        self.assertIn("20 steps in turn were not finite: the run has diverged", job.err)
        self.assertIn("no checkpoint after step", job.err)
        with open("run/train.log", encoding="utf-8") as file:
            self.assertIn("error: 20 steps in turn were not finite", file.read().splitlines()[-1])
        last = metrics("run")[-1]
        self.assertIsNone(last["loss"])
        self.assertTrue(last["skipped"])
        first_bad = next(line["step"] for line in metrics("run") if line.get("skipped"))
        for name in os.listdir("run/checkpoints"):
            self.assertLess(int(name.split("_")[1]), first_bad)
        self.assertIn("loss", self.run_well("inspect", "run").out)


    def test_a_state_that_no_validation_can_use_is_not_saved(self):
        """Each step's own loss was finite, the validation after the last is not: the checkpoint before it stays."""
        arguments = ["train", "--config", "debug", "--out", "run"]
        for override in ("optimizer.learning_rate=10", "optimizer.weight_decay=10", "optimizer.schedule=CONSTANT",
                         "optimizer.warmup_steps=0", "train.steps=60", "train.checkpoint_every=1",
                         "train.eval_every=1", "train.keep_checkpoints=1"):
            arguments += ["--set", override]
        job = Job(arguments).finish()
        self.assertEqual(job.code, 2, job.err)
        bad = re.search(r"no checkpoint after step (\d+): the last validation loss was not finite", job.err)
        self.assertIsNotNone(bad, job.err)
        self.assertNotIn("skipped", next(line for line in metrics("run") if line["step"] == int(bad[1])))
        (kept,) = os.listdir("run/checkpoints")
        self.assertLess(int(kept.split("_")[1]), int(bad[1]))
        self.run_well("eval", "--checkpoint", "run")


class Resumed(program.Test):
    def test_a_run_that_began_with_anothers_checkpoint_goes_on_from_it(self):
        """Killed before it has one of its own, it does not begin from the beginning."""
        self.train("first", "train.steps=3")
        job = Job(["train", "--out", "run", "--resume", "first", "--set", "train.steps=100000",
                   "--set", "train.checkpoint_every=0"])
        while not os.path.exists("run/metrics.jsonl") or not metrics("run"):
            self.assertIsNone(job.process.poll())
            time.sleep(0.01)
        job.process.kill()
        job.finish()
        again = self.run_well("train", "--out", "run", "--resume", "auto", "--set", "train.steps=6")
        self.assertRegex(again.err, r"resumed from /.*/first/checkpoints/step_00000003 after step 3")
        self.run_well("train", "--out", "whole", "--resume", "first", "--set", "train.steps=6")
        self.assertEqual([step for step, _, _ in losses("run")], [4, 5, 6])
        self.assertEqual(losses("run"), losses("whole"))

    def test_its_beginning_is_gone(self):
        self.train("first", "train.steps=3")
        self.run_well("train", "--out", "run", "--resume", "first", "--set", "train.steps=4")
        shutil.rmtree("run/checkpoints")
        os.rename("first", "elsewhere")
        self.assert_refused(["train", "--out", "run", "--resume", "auto", "--set", "train.steps=6"],
                            "run: has no checkpoint, and /", "give --resume CHECKPOINT")

    def test_nothing_is_left_to_do(self):
        self.train("first", "train.steps=3")
        self.assert_refused(["train", "--out", "run", "--resume", "first"],
                            "first/checkpoints/step_00000003: nothing to do: step 3 is done, and train.steps is 3")
        self.assertFalse(os.path.exists("run"))

    def test_a_folder_with_the_name_of_another_step(self):
        """Were it the newest, what is saved later would be the oldest, and go."""
        self.train("run", "train.steps=3")
        shutil.copytree("run/checkpoints/step_00000003", "run/checkpoints/step_00000099")
        for arguments in (["train", "--out", "run", "--resume", "auto", "--set", "train.steps=6"],
                          ["eval", "--checkpoint", "run"]):
            self.assert_refused(arguments, "step_00000099: is of step 3 by its manifest")

    def test_who_reads_the_lines_may_go(self):
        for overrides, code, last in (([], 0, "done    20 steps"), (Diverged.OVERRIDES + ("train.steps=200",), 2, "error: 20 steps")):
            with self.subTest(last), subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE,
                                                      stdout=subprocess.DEVNULL) as reader:
                settings = [word for override in overrides for word in ("--set", override)]
                job = Job(["train", "--config", "debug", "--out", f"run{code}", "--set", "train.log_every=1"] + settings,
                          shell="exec 2>&1", stdout=reader.stdin)
                reader.stdin.close()
                job.finish()
                self.assertEqual(job.code, code)
                with open(f"run{code}/train.log", encoding="utf-8") as file:
                    self.assertIn(last, file.read())

    def test_what_a_run_has_saved_is_not_overtaken(self):
        self.train("run", "train.steps=4", "train.checkpoint_every=2")
        self.train("other", "train.steps=2")
        for checkpoint in ("run/checkpoints/step_00000002", "other"):
            self.assert_refused(["train", "--out", "run", "--resume", checkpoint, "--set", "train.steps=3"],
                                "run/checkpoints/step_00000004: is in the way of going on from", checkpoint)
        self.run_well("train", "--out", "again", "--resume", "run/checkpoints/step_00000002",
                      "--set", "train.steps=4", "--set", "train.checkpoint_every=2")
        self.assertEqual(losses("again"), losses("run")[2:])

    def test_refused_it_leaves_the_folder_as_it_was(self):
        self.train("run", "train.steps=2")
        with open("run/metrics.jsonl", "w", encoding="utf-8") as file:
            file.write("no json\nnone\n")
        self.assert_refused(["train", "--out", "run", "--resume", "auto", "--set", "train.steps=4"], "metrics.jsonl:1")

    def test_with_other_options(self):
        self.train("run", "train.steps=4")
        job = self.train("run", "train.steps=6", "optimizer.learning_rate=2e-3", options=("--resume", "auto"))
        for change in ("train.steps: 4 -> 6", "optimizer.learning_rate: 0.001 -> 0.002"):
            self.assertIn(f"changed {change}", job.err)
        self.assertEqual(job.err.count("changed "), 2)
        with open("run/train.log", encoding="utf-8") as file:
            kept = [line for line in file.read().splitlines() if "changed " in line]
        self.assertEqual([line.split("changed ")[1] for line in kept],
                         [line.split("changed ")[1] for line in job.err.splitlines() if "changed " in line])

    def test_with_another_corpus(self):
        options = ["--set", "data.source=FOLDER", "--set", "data.train=tokens", "--out", "run"]
        for words, steps in ((3000, 2), (4000, 4), (4000, 6)):
            with open("text", "w", encoding="utf-8") as file:
                file.write("".join(f"word {i * i}\n" for i in range(words)))
            shutil.rmtree("tokens", ignore_errors=True)
            self.run_well("tokenize", "--input", "text", "--out", "tokens", "--set", "tokenizer.kind=BYTE")
            job = self.run_well("train", "--config", "debug", *options, "--set", f"train.steps={steps}",
                                *(["--resume", "auto"] if steps > 2 else []))
            self.assertEqual(len(re.findall(r"changed corpus: \d+ training tokens .* -> \d+ training tokens", job.err)),
                             steps == 4)

    def test_with_tokens_that_have_moved(self):
        program.write("text", program.TEXT)
        self.run_well("tokenize", "--input", "text", "--out", "tokens", "--set", "tokenizer.kind=BYTE")
        self.train("run", "data.source=FOLDER", "data.train=tokens", "train.steps=1")
        os.rename("tokens", "moved")
        self.assert_refused(["train", "--resume", "auto", "--out", "run"], "tokens: No such file or directory",
                            "--set data.train=FOLDER")
        self.run_well("train", "--resume", "auto", "--out", "run", "--set", "data.train=moved",
                      "--set", "train.steps=2")
        self.assert_refused(["train", "--resume", "auto", "--out", "run", "--set", "data.valid=text"],
                            "text: not a folder", "--set data.valid=FOLDER", ranks=(0,))

    def test_from_a_checkpoint_with_its_configuration(self):
        self.train("run", "train.steps=4", "train.seed=7")
        self.run_well("train", "--resume", "run", "--set", "train.steps=6", "--out", "new", ranks=2)
        self.assertEqual([line["step"] for line in metrics("new")], [5, 6])
        with open("new/config.textproto", encoding="utf-8") as file:
            self.assertIn("seed: 7", file.read())


if __name__ == "__main__":
    program.main()
