# SPDX-License-Identifier: Apache-2.0
"""Whole runs: any number of ranks computes the same, and what a run says of itself is so."""
import gzip
import json
import os
import re
import shutil
import time

import program
from program import Job, losses, metrics


class SameOnAnyWorld(program.Test):
    def assert_close(self, folder, expected):
        """Losses of all steps, and of the last validation, equal to 1e-4."""
        for name, value in (("loss", lambda line: line["loss"]),
                            ("validation", lambda line: line.get("validation", {}).get("loss", 1))):
            for mine, other in zip(metrics(folder), metrics(expected), strict=True):
                self.assertEqual(mine["step"], other["step"])
                self.assertLess(abs(value(mine) - value(other)), 1e-4 * abs(value(other)),
                                f"{name} of step {mine['step']} in {folder}: {value(mine)}, not {value(other)}")

    def test_ranks_and_placements(self):
        self.train("alone", "train.batch=12")
        self.assertEqual(len(losses("alone")), 20)
        self.assertLess(losses("alone")[-1][1], losses("alone")[0][1] - 1)  # it learns
        for placement in ("BLOCK", "CYCLIC", "HASH"):
            for ranks in (1, 2, 3, 4):
                with self.subTest(placement=placement, ranks=ranks):
                    out = f"{placement}-{ranks}"
                    self.train(out, "train.batch=12", f"model.memory.0.row_placement={placement}", ranks=ranks)
                    self.assert_close(out, "alone")

    def test_more_ranks_than_sequences(self):
        self.train("alone", "train.batch=2", "train.steps=8")
        self.train("four", "train.batch=2", "train.steps=8", ranks=4)
        self.assert_close("four", "alone")

    def test_again_is_the_same_to_the_bit(self):
        for ranks in (0, 3):
            self.train(f"one-{ranks}", ranks=ranks)
            self.train(f"two-{ranks}", ranks=ranks)
            self.assertEqual(losses(f"one-{ranks}"), losses(f"two-{ranks}"))

    def test_saved_on_4_ranks_resumed_on_fewer(self):
        self.train("whole", ranks=4)
        self.train("part", "train.steps=10", ranks=4)
        for ranks in (1, 2, 3):
            with self.subTest(ranks=ranks):
                out = f"on-{ranks}"
                shutil.copytree("part", out)
                self.train(out, ranks=ranks, options=("--resume", "auto"))
                self.assert_close(out, "whole")


class FewRows(program.Test):
    def test_a_rank_may_have_none(self):
        few = ("train.batch=10", "model.memory.0.sub_keys=2", "model.memory.0.neighbours=2")
        self.train("alone", "train.steps=3", *few)
        self.train("five", "train.steps=3", *few, ranks=5)
        for mine, other in zip(losses("five"), losses("alone"), strict=True):
            self.assertLess(abs(mine[1] - other[1]), 1e-4)


class Figures(program.Test):
    def test_what_is_done_between_steps_does_not_count(self):
        """Communication per step is the same with and without evaluations and checkpoints in between."""
        often = ("train.eval_every=1", "train.checkpoint_every=3")
        seldom = ("train.eval_every=0", "train.checkpoint_every=0")
        for out, overrides in (("often", often), ("seldom", seldom)):
            self.train(out, "train.steps=8", "train.memory_every=4", "train.log_every=4", *overrides, ranks=2)
        figures = {out: [table["mib_per_step"] for line in metrics(out) for table in line.get("memory", {}).values()]
                   for out in ("often", "seldom")}
        self.assertEqual(len(figures["often"]), 2)
        self.assertEqual(figures["often"], figures["seldom"])
        for line in metrics("often"):
            self.assertLess(0, line["communication"]["exposed"])
            self.assertLessEqual(line["communication"]["exposed"], 1)
        last = metrics("often")[-1]
        sent = last["communication"]["per_step"]
        lookups = ("selections", "partials", "output gradients", "weight gradients")
        (table,) = last["memory"].values()  # of the same steps
        self.assertAlmostEqual(sum(sent[purpose]["mib"] for purpose in lookups), table["mib_per_step"])
        self.assertGreater(sent["dense gradients"]["ms"], 0)

    def test_memory_lines_may_be_left_out(self):
        self.assertIn("memory layer", self.train("some", "train.steps=2", "train.memory_every=1").err)
        self.assertNotIn("hottest shard", self.train("none", "train.steps=2", "train.memory_every=0").err)
        self.assertNotIn("memory", metrics("none")[-1])

    def test_a_profile_is_printed_and_kept(self):
        job = self.train("run", "train.steps=3", ranks=2, options=("--profile",))
        self.assertRegex(job.err, r"communication \| 2 ranks on 1 host \| 3 steps of [0-9.]+ ms\npurpose +calls/step")
        self.assertRegex(job.err, r"\ndense gradients +[0-9.]+ ")
        with open("run/profile.json", encoding="utf-8") as file:
            self.assertGreater(json.load(file)["purposes"]["partials"]["bytes"], 0)
        with open("run/trace/trace.json", encoding="utf-8") as file:
            names = {event["name"] for event in json.load(file)["traceEvents"] if event["ph"] == "X"}
        self.assertLess({"memory forward", "memory backward", "partials: all_to_all_v"}, names)

    def test_of_several_tables_nothing_is_said_that_is_not_known(self):
        job = self.train("run", "train.steps=2", "train.memory_every=2", "model.memory.0.layers=[0,1]", ranks=2)
        self.assertEqual(len(re.findall(r"memory layer[01] \|.*hottest shard", job.err)), 2)
        self.assertNotIn("/step\n", job.err)
        for table in metrics("run")[-1]["memory"].values():
            self.assertNotIn("mib_per_step", table)

    def test_checkpoints_hold_the_tokenizer_that_the_run_began_with(self):
        job = Job(["train", "--config", "debug", "--out", "run", "--set", "train.steps=40"], 0)
        while not os.path.exists("run/metrics.jsonl") or len(metrics("run")) < 2:
            self.assertIsNone(job.process.poll())
            time.sleep(0.01)
        os.remove("run/tokens/tokenizer.json")
        job.finish()
        self.assertEqual(job.code, 0, job.err)
        self.run_well("generate", "--checkpoint", "run", "--prompt", "a", "--tokens", "3")


class Threads(program.Test):
    SAID = re.compile(r"threads (\d+) threads? per rank \((\S+)\), (\d+) cores? for (\d+) ranks?(.*)")

    def start(self, out, ranks, threads=None):
        """What a short run says of its threads: (threads, why, cores, ranks, remark), and the threads that OpenMP has."""
        former = os.environ.pop("OMP_NUM_THREADS", None)
        if former is not None:
            self.addCleanup(os.environ.__setitem__, "OMP_NUM_THREADS", former)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            self.addCleanup(os.environ.pop, "OMP_NUM_THREADS")
        log = self.train(out, "train.steps=2", ranks=ranks).err
        said, has = self.SAID.search(log), re.search(r"(\d+) threads? each", log)
        self.assertTrue(said and has, log)
        count, why, cores, of, remark = said.groups()
        return int(count), why, int(cores), int(of), remark, int(has.group(1))

    def test_left_out_they_fill_the_cores(self):
        for ranks in (0, 1, 2, 4):
            with self.subTest(ranks=ranks):
                count, why, cores, of, _, has = self.start(f"run-{ranks}", ranks)
                self.assertEqual((why, of), ("chosen", max(1, ranks)))
                self.assertEqual(count, max(1, cores // max(1, ranks)))
                self.assertEqual(has, count)
                self.assertLessEqual(cores, os.cpu_count())

    def test_more_than_cores_sleep(self):
        threads = os.cpu_count() + 1
        count, why, _, _, remark, has = self.start("run", 2, threads)
        self.assertEqual((count, why, has), (threads, "OMP_NUM_THREADS", threads))
        self.assertIn("sleep", remark)


class Commands(program.Test):
    def test_help_and_version(self):
        self.assertRegex(self.run_well("--version").out, r"^\d+\.\d+\.\d+\n$")
        text = self.run_well("--help").out
        for command in ("tokenize", "train", "eval", "generate", "inspect", "bench", "config"):
            self.assertIn(f"  {command} ", text)
            self.assertIn(f"Usage: pkmesh {command}", self.run_well(command, "--help").out)
        self.assertIn("default: 4", self.run_well("config", "model.memory.heads").out)
        self.assertEqual(self.run_well("--help", ranks=2).out, text)  # said once

    def test_plans_without_writing(self):
        plan = self.run_well("train", "--config", "debug", "--dry-run").out
        self.assertIn("1024 of 1024 rows", plan)
        self.assertIn("512 of 1024 rows", self.run_well("train", "--config", "debug", "--dry-run", ranks=2).out)
        text = self.run_well("train", "--config", "debug", "--print-config", "--set", "train.steps=7").out
        with open("my.textproto", "w", encoding="utf-8") as file:
            file.write(text)
        self.assertEqual(self.run_well("train", "--config", "./my.textproto", "--print-config", ranks=2).out, text)
        self.assertIn("steps: 7", text)
        self.assertEqual(os.listdir("."), ["my.textproto"])

    def test_plans_for_ranks_that_are_elsewhere(self):
        plan = ["train", "--config", "debug", "--dry-run"]
        one_host = self.run_well(*plan, "--ranks", "4").out
        self.assertEqual(one_host, self.run_well(*plan, ranks=4).out)
        two_hosts = self.run_well(*plan, "--ranks", "4", "--hosts", "2").out
        self.assertIn("moments of 1/4", one_host)
        self.assertIn("moments of 1/4", two_hosts)
        self.assertIn("moments of 1/3", self.run_well(*plan, "--ranks", "3", "--hosts", "2").out)
        self.assertIn("reductions", two_hosts)
        self.assertNotIn("reductions", one_host)
        rounded = self.run_well(*plan, "--ranks", "4", "--hosts", "2", "--set", "train.exchange_type=BF16").out
        self.assertIn("the rounded change of 1/4", rounded)
        self.assert_refused(plan + ["--ranks", "2", "--hosts", "3"], "--hosts 3: 2 ranks are on as many hosts at most")
        self.assert_refused(plan[:3] + ["--ranks", "2", "--out", "run"], "--ranks requires --dry-run")

    def test_plans_say_what_would_not_start(self):
        plan = ["train", "--config", "debug", "--dry-run", "--set"]
        self.assertNotIn("would not start", self.run_well(*plan, "train.steps=7").out)
        large = self.run_well(*plan, "model.memory.0.sub_keys=40000").out
        self.assertIn("\nwould not start here: this run needs", large)
        self.assertNotIn("--dry-run", large)
        self.assertIn("\nwould not start here: train.precision", self.run_well(*plan, "train.precision=FP16").out)
        options = ["data.source=FOLDER", "--set", "data.train=nosuch"]
        self.assertIn("\nwould not start here: nosuch: No such file or directory; ", self.run_well(*plan, *options).out)
        self.assertIn("\nnosuch: is not here; planned with", self.run_well(*plan, *options, "--ranks", "2").out)
        with open("my.textproto", "w", encoding="utf-8") as file:
            file.write(self.run_well(*plan[:3], "--print-config", "--set", *options).out)
        self.assertIn("1024 of 1024 rows", self.run_well("inspect", "my.textproto").out)

    def test_holds_what_was_planned(self):
        table = ["--set", "model.memory.0.sub_keys=1024", "--set", "model.width=64", "--set", "model.memory.0.layers=[1]"]
        for ranks in (0, 3):
            figures = f"figures-{ranks}.json"
            self.run_well("bench", "memory", "--config", "debug", *table, "--repeats", "1", "--json", figures, ranks=ranks)
            with open(figures, encoding="utf-8") as file:
                lines = {line["what"]: line for line in json.load(file)["memory"]}
            rows = 1024 * 1024 * (64 * 3 * 4 + 8)  # value, two moments, counters
            self.assertGreater(lines["planned"]["bytes"], rows)
            self.assertLess(lines["planned"]["bytes"], 1.2 * rows)
            self.assertAlmostEqual(lines["model, every row written once"]["of_plan"], 1, delta=0.05, msg=f"{ranks} ranks")
            self.assertLess(lines["model, no step"]["of_plan"], 0.6, "moments are lent when a row is first updated")

    def test_a_checkpoint_by_any_name(self):
        self.train("run", "train.steps=2")
        expected = self.run_well("eval", "--checkpoint", "run").out.splitlines()[2:]
        os.symlink("run/checkpoints/step_00000002", "best")
        for folder, name in ((".", "run/checkpoints/step_00000002/"), (".", "best"), ("run/checkpoints", "step_00000002"),
                             ("run/checkpoints/step_00000002", "."), ("run", "."), ("run", "checkpoints")):
            with self.subTest(folder=folder, name=name):
                found = self.run_well("eval", "--checkpoint", name, cwd=folder).out.splitlines()[2:]
                self.assertEqual(found, expected)

    def test_a_plan_takes_the_vocabulary_of_the_tokens(self):
        with open("text", "w", encoding="utf-8") as file:
            file.write("".join(f"word {i} and word {i * i}\n" for i in range(2000)))
        self.run_well("tokenize", "--input", "text", "--out", "tokens", "--set", "tokenizer.vocabulary=512")
        options = ["--config", "debug", "--set", "data.source=FOLDER", "--set", "data.train=tokens"]
        plan = self.run_well("train", *options, "--dry-run").out
        self.assertIn(plan.strip(), self.run_well("train", *options, "--out", "run").err)

    def test_from_text_to_a_sample(self):
        text = "".join(f"entry {i}: the {i % 13}th kind of \u00e9toile.\n" for i in range(1500))
        with open("a.txt", "w", encoding="utf-8") as file:
            file.write(text[:20000])
        with gzip.open("b.gz", "wt", encoding="utf-8") as file:
            file.write(text[20000:])
        self.run_well("tokenize", "--input", "a.txt", "b.gz", "--out", "tokens", "--set", "tokenizer.vocabulary=600",
                      "--set", "data.validation_share=0.1")
        with open("a.txt", "rb") as standard_input:
            self.run_well("tokenize", "--input", "-", "--tokenizer", "tokens", "--out", "more", stdin=standard_input)
        self.train("run", "data.source=FOLDER", "data.train=tokens", "tokenizer.kind=BPE", "train.steps=10", ranks=2,
                   options=("--profile",))
        for made in ("config.textproto", "run.json", "train.log", "metrics.jsonl", "profile.json"):
            self.assertTrue(os.path.exists(f"run/{made}"), made)
        self.check_eval()
        self.check_generate()
        self.check_inspect()

    def check_eval(self):
        alone = self.run_well("eval", "--checkpoint", "run").out
        two = self.run_well("eval", "--checkpoint", "run", ranks=2).out
        for line in ("perplexity ", "baselines ", "memory ", "KL to uniform"):
            self.assertIn(line, alone)

        def loss(text):
            return float(text.split("loss")[1].split()[0])

        self.assertLess(abs(loss(alone) - loss(two)), 2e-4)
        last = metrics("run")[-1]["validation"]["loss"]
        whole = loss(self.run_well("eval", "--checkpoint", "run", "--sequences", "12").out)
        self.assertLess(abs(whole - last), 2e-4)
        part = self.run_well("eval", "--checkpoint", "run", "--sequences", "1").out
        self.assertIn(", the first of more\n", part)
        self.assertNotIn("per word", part)  # nobody knows how many words it has
        counts = [re.search(r"bigram ([0-9.]+) per token", text).group(1) for text in (part, alone)]
        self.assertNotEqual(*counts, "the baselines are of the same tokens as the model's figures")
        self.assertIn("per word", alone)
        self.run_well("eval", "--checkpoint", "run/checkpoints/step_00000010", "--data", "more")

    def check_generate(self):
        generate = ["generate", "--checkpoint", "run", "--prompt", "entry 5", "--tokens"]
        alone = self.run_well(*generate, "20").out
        self.assertTrue(alone.startswith("entry 5"))
        self.assertEqual(self.run_well(*generate, "20", ranks=2).out, alone)
        for seed in (2, 2**64 - 1):
            self.assertNotEqual(self.run_well(*generate, "20", "--seed", str(seed)).out, alone)
        self.run_well(*generate, "150")  # the context is 64
        self.run_well("generate", "--checkpoint", "run", "--prompt", "", "--prompt", "entry " * 200, "--tokens", "5")

    def check_inspect(self):
        self.train("other", "train.steps=3")
        compared = self.run_well("inspect", "run", "other").out.splitlines()
        self.assertEqual([line.split()[:3] for line in compared],
                         [["run", "ranks", "step"], ["run", "2", "10"], ["other", "1", "3"]])
        self.assert_refused(["inspect", "run", "debug"], "debug: no run there")
        self.assertIn("step_00000010", self.run_well("inspect", "run").out)
        self.assertIn("dense.safetensors", self.run_well("inspect", "run/checkpoints/step_00000010").out)
        for configuration in ("debug", "run/config.textproto"):
            self.assertIn("memory per rank (4 ranks)", self.run_well("inspect", configuration).out)


if __name__ == "__main__":
    program.main()
