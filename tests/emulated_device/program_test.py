# SPDX-License-Identifier: Apache-2.0
"""The whole program on emulated devices: train, eval and generate say with `device: CUDA` what they say on the CPU."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "launcher"))
import program  # noqa: E402
from program import losses, snapshot  # noqa: E402

GPU = ("train.device=CUDA", "train.communication=HOST_STAGED")
CPU = ("train.device=CPU",)
SHORT = ("train.steps=6", "train.checkpoint_every=3", "train.eval_every=3", "train.batch=6",
         "model.context=16")  # short: evaluation takes several passes


def devices(count):
    """Environment of a machine with so many."""
    os.environ["PKMESH_EMULATED_DEVICES"] = str(count)


def mebibytes(text):
    number, unit = text.split()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


class OnADevice(program.Test):
    def setUp(self):
        super().setUp()
        self.addCleanup(os.environ.pop, "PKMESH_EMULATED_DEVICES", None)

    def tensors(self, run):
        """What the last checkpoint holds, without what names the device: its configuration."""
        files = snapshot(f"{run}/checkpoints/step_00000006")
        kept = {os.path.basename(path): digest for path, digest in files.items() if path.endswith(".safetensors")}
        self.assertTrue(kept)
        return kept

    def test_train_eval_and_generate(self):
        for ranks in (0, 1, 2, 3):
            with self.subTest(ranks=ranks):
                of_cpu, of_gpu = f"cpu-{ranks}", f"gpu-{ranks}"
                self.train(of_cpu, *SHORT, *CPU, ranks=ranks)
                job = self.train(of_gpu, *SHORT, *GPU, ranks=ranks)
                self.assertIn("cuda:0 over host staged" if ranks > 1 else "cuda:0 (", job.err)
                self.assertEqual(losses(of_gpu), losses(of_cpu))
                self.assertEqual(self.tensors(of_gpu), self.tensors(of_cpu))
                for command in (["eval"], ["generate", "--prompt", "What ", "--prompt", "", "--tokens", "60"]):
                    said = [self.run_well(*command, "--checkpoint", run, ranks=ranks).out for run in (of_cpu, of_gpu)]
                    self.assertGreater(len(said[0]), 60)
                    self.assertEqual(said[1].replace(of_gpu, of_cpu), said[0])

    def test_a_checkpoint_is_read_without_a_device(self):
        self.train("run", *SHORT, *GPU)
        with_device = self.run_well("eval", "--checkpoint", "run").out
        devices(0)
        without = self.run_well("eval", "--checkpoint", "run")
        self.assertIn("computes on the CPU: there is no CUDA device here", without.err)
        self.assertEqual(without.out, with_device)
        self.run_well("generate", "--checkpoint", "run", "--prompt", "a", "--tokens", "3")

    def test_ranks_with_devices_and_without(self):
        self.train("run", *SHORT, *GPU)
        for arguments in (["train", "--config", "debug", "--out", "new"],
                          ["generate", "--checkpoint", "run", "--prompt", "a"], ["bench", "model", "--config", "debug"]):
            before = snapshot(self.folder)
            contexts = [["env", f"PKMESH_EMULATED_DEVICES={count}", program.PROGRAM, *arguments] for count in (1, 0)]
            self.check_refusal(program.Job([], contexts=contexts), ["rank 1 on", "another device than rank 0"])
            self.assertEqual(snapshot(self.folder), before)

    def test_ranks_that_see_a_device_each(self):
        def contexts(arguments, *firsts):
            return [["env", "PKMESH_EMULATED_DEVICES=1", f"PKMESH_EMULATED_FIRST={first}", program.PROGRAM, *arguments] for first in firsts]

        big = ("--set", "model.memory.0.sub_keys=2600")  # 5 GB: half of it fits on each device, all of it on none
        arguments = ["train", "--config", "debug", *big, "--dry-run", "--set", "train.device=CUDA"]
        plan = program.Job([], contexts=contexts(arguments, 4, 6)).finish()
        self.assertEqual(plan.code, 0, plan.err)
        self.assertNotIn("would not start", plan.out)
        run = [word for override in SHORT for word in ("--set", override)]
        arguments = ["train", "--config", "debug", "--out", "seen", "--set", "train.device=CUDA", *run]
        job = program.Job([], contexts=contexts(arguments, 4, 6)).finish()
        self.assertEqual(job.code, 0, job.err)
        self.train("of-cpu", *SHORT, *CPU, ranks=2)
        self.assertEqual(losses("seen"), losses("of-cpu"))
        for command in (arguments, ["bench", "model", "--config", "debug"], ["eval", "--checkpoint", "seen"]):
            self.check_refusal(program.Job([], contexts=contexts(command, 4, 4)),
                               ["rank 1 on", "sees 1 GPU, which lower ranks have already", "train.communication=HOST_STAGED"])

    def test_resumed_on_the_other_side(self):
        self.train("whole", *SHORT, *CPU)
        self.train("turns", *SHORT[1:], "train.steps=3", *CPU)
        self.train("turns", *SHORT, *GPU, options=("--resume", "auto"))
        self.assertEqual(losses("turns"), losses("whole"))

    def test_a_model_that_the_device_does_not_hold(self):
        big = ("--set", "model.memory.0.sub_keys=2600")  # 5 GB
        arguments = ["train", "--config", "debug", "--out", "run", *big]
        for override in GPU:
            arguments += ["--set", override]
        self.assert_refused(arguments, "this run needs", "on cuda:0 of", "which has 4.00 GiB", "use more GPUs", ranks=(0,))
        devices(1)  # two ranks hold half of it each, on one device
        self.assert_refused(arguments, "this run needs", "on cuda:0 of", "for 2 ranks", "which has 4.00 GiB", ranks=(2,))

    def test_the_plan_tells_the_device_from_the_host(self):
        def total(ranks, *overrides):
            arguments = [word for override in overrides for word in ("--set", override)]
            plan = self.run_well("train", "--config", "debug", "--dry-run", *arguments, ranks=ranks).out
            return {line[2:20].strip(): line[20:32].strip() for line in plan.splitlines()[1:]}

        plan = total(2, *GPU)
        self.assertEqual((plan["total on the host"], plan["staging"]), ("27.0 MiB", "24.0 MiB"))
        self.assertEqual(plan["reductions"], "3.0 MiB")
        self.assertEqual(total(0, *GPU)["total on the host"], "0.0 MiB")
        of_gpu, of_cpu = total(0, *GPU), total(0, *CPU)
        for line in set(of_cpu) - {"total", "row gradients"}:  # the CPU keeps sums of rows that are read often
            self.assertEqual(of_gpu[line], of_cpu[line])
        self.assertNotIn("total on a GPU", total(2, *CPU))
        # 512 tokens' logits at a time on the CPU, 4096 on a GPU, and there their operands in 16 bits, beside 32 MiB of cuBLAS.
        wide = ("data.source=FOLDER", "tokenizer.kind=BPE", "tokenizer.vocabulary=50000", "train.batch=64",
                "train.precision=BF16")
        of_gpu, of_cpu = total(0, *GPU, *wide), total(0, *CPU, *wide)
        more = mebibytes(of_gpu["activations"]) - mebibytes(of_cpu["activations"])
        self.assertAlmostEqual(more, (4096 - 1024) * 50000 * 4 / 2**20, delta=0.2)
        rounded = 50000 * 64 + 4096 * (64 + 50000)
        self.assertAlmostEqual(mebibytes(of_gpu["scratch of kernels"]), 32 + rounded * 2 / 2**20, delta=0.2)
        self.assertNotIn("scratch of kernels", of_cpu)


if __name__ == "__main__":
    program.main()
