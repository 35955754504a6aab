# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, missing, in the way or have no room: refused in one clear line, as bad input is."""
import os
import shutil
import subprocess
import time

import program
from program import DEBUG, TEXT, Job, flip_a_bit, setting, write


class Checkpoints(program.Test):
    def setUp(self):
        super().setUp()
        self.train("whole", "train.steps=4", "train.checkpoint_every=2")
        shutil.copytree("whole", "run")
        self.newest = "run/checkpoints/step_00000004"

    def assert_damage_is_seen(self, *words):
        self.assert_refused(DEBUG + ["--resume", "auto", "--set", "train.steps=6", "--out", "run"], *words, ranks=(2,))
        self.assert_refused(DEBUG + ["--resume", self.newest, "--set", "train.steps=6", "--out", "new"], *words,
                            ranks=(0,))
        for command in (["eval"], ["generate", "--prompt", "a"]):
            self.assert_refused(command + ["--checkpoint", "run"], *words, ranks=(0,))
        job = Job(["inspect", self.newest])
        self.check_refusal(job, [self.newest])
        # The user's way out: the checkpoint before, once the newest is gone.
        before = "run/checkpoints/step_00000002"
        self.assert_refused(DEBUG + ["--resume", before, "--out", "run"], f"{self.newest}: is in the way", ranks=(0,))
        shutil.rmtree(self.newest)
        self.run_well(*DEBUG, "--resume", before, "--out", "run", "--set", "train.steps=4")
        self.assertEqual(program.losses("run"), program.losses("whole"))

    def test_a_flipped_bit_in_dense_parameters(self):
        flip_a_bit(f"{self.newest}/dense.safetensors", 99999)
        self.assert_damage_is_seen("dense.safetensors", "checksum")

    def test_a_flipped_bit_in_rows(self):
        flip_a_bit(f"{self.newest}/table-layer1-00000-of-00001.safetensors", 99999)
        self.assert_damage_is_seen("table-layer1", "checksum")

    def test_a_truncated_file(self):
        os.truncate(f"{self.newest}/dense.safetensors", 999)
        self.assert_damage_is_seen("dense.safetensors", "999 bytes")

    def test_a_missing_file(self):
        os.remove(f"{self.newest}/dense.safetensors")
        self.assert_damage_is_seen("dense.safetensors", "missing")

    def test_a_flipped_bit_in_the_manifest(self):
        flip_a_bit(f"{self.newest}/manifest.textproto", 50)
        self.assert_damage_is_seen("manifest.textproto", "altered")

    def test_a_missing_manifest(self):
        os.remove(f"{self.newest}/manifest.textproto")
        said = self.run_well("inspect", "run").out
        self.assertIn(f"checkpoints: step_00000002\n  damaged: {self.newest}: not a whole checkpoint", said)
        self.assert_damage_is_seen("not a whole checkpoint", "manifest.textproto")

    def test_another_tokenizer(self):
        """Whole by itself, and yet not the one whose tokens the model knows."""
        write("text", "a few words of text, and a few more words\n" * 400)
        self.run_well("tokenize", "--input", "text", "--out", "other", "--set", "tokenizer.vocabulary=512")
        for name in ("tokenizer.json", "tokenizer.model"):
            shutil.copy(f"other/{name}", self.newest)
        for command in (["eval"], ["generate", "--prompt", "a"]):
            self.assert_refused(command + ["--checkpoint", "run"], "tokenizer.json: has ", ranks=(0,))

    def test_another_model(self):
        for override, words in [("model.width=32", "tokens.weight"), ("model.memory.0.sub_keys=16", "memory"),
                                ("model.layers=3", "no tensor"), ("model.memory=[]", "tensor"),
                                ("values.second_moment=ROW_WISE", "v is F32")]:
            self.assert_refused(setting(override) + ["--resume", "auto"], "step_00000004", words, ranks=(0,))
        self.assert_refused(setting("model.width=32", out="new") + ["--resume", "run"], "tokens.weight", ranks=(2,))

    def test_other_data(self):
        write("text", TEXT)
        self.run_well("tokenize", "--input", "text", "--out", "tokens", "--set", "tokenizer.kind=BYTE")
        self.train("on-tokens", "data.source=FOLDER", "data.train=tokens", "train.steps=2")
        self.assert_refused(DEBUG + ["--resume", "auto", "--out", "on-tokens"], "on-tokens/tokens", "other data")

    def test_resume_from_nothing(self):
        self.assert_refused(DEBUG + ["--resume", "nosuch", "--out", "new"], "nosuch: is not there")


class Folders(program.Test):
    def test_closed_standard_streams(self):
        job = Job(DEBUG + ["--set", "train.steps=2", "--out", "run"], shell="exec 0<&- 1>&- 2>&-;").finish()
        self.assertEqual(job.code, 0)
        self.assertEqual([line["step"] for line in program.metrics("run")], [1, 2])
        with open("run/metrics.jsonl", encoding="utf-8") as lines:
            self.assertEqual([line for line in lines if not line.startswith("{")], [])
        self.check_refusal(Job(["tokenize", "--input", "-", "--out", "tokens"], shell="exec 0<&-;"), ["standard input"])
        self.assertEqual(os.listdir(), ["run"])

    def test_a_limit_on_the_size_of_files(self):
        self.check_refusal(Job(DEBUG + ["--out", "a/run"], shell="ulimit -f 1;"),
                           ["a/run/", "cannot be written: File too large", "ulimit -f"])
        self.assertEqual(os.listdir(), [])

    def test_unwritable(self):
        write("file", "x")
        for out in ("file/run", "/proc/run", "/dev/null/run"):
            self.assert_refused(DEBUG + ["--out", out], out, "cannot be written")
        os.symlink("nowhere", "link")
        for command in (DEBUG, ["tokenize", "--input", "file"]):
            for out in ("link", "link/run"):
                self.assert_refused(command + ["--out", out], "link: is a link to what is not there", ranks=(0,))
        self.assertTrue(os.path.islink("link"))

    def test_taken(self):
        os.mkdir("mine")
        write("mine/thesis.tex", "x")
        self.assert_refused(DEBUG + ["--out", "mine"], "mine", "is no run")
        self.assert_refused(DEBUG + ["--out", "mine", "--resume", "auto"], "mine", "is no run", ranks=(0,))
        self.train("run", "train.steps=1")
        self.assert_refused(DEBUG + ["--out", "run"], "holds a run already", "--resume auto")

    def test_a_run_under_way(self):
        job = Job(DEBUG + ["--set", "train.steps=100000", "--out", "run"])
        self.addCleanup(job.finish)
        self.addCleanup(job.process.terminate)
        while not os.path.exists("run/metrics.jsonl"):
            time.sleep(0.01)
        for ranks in (0, 2):
            other = Job(DEBUG + ["--resume", "auto", "--out", "run"], ranks)
            self.check_refusal(other, ["run: another pkmesh is writing to it"])
        self.assertIsNone(job.process.poll())

    def mount(self, options):
        os.mkdir("mounted")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "mounted"], capture_output=True,
                              text=True, check=False)
        if done.returncode != 0:
            self.skipTest(f"NOT TESTED, for this machine does not let us mount: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", f"{self.folder}/mounted"], check=True)

    def test_a_read_only_disk(self):
        self.mount("ro")
        self.assert_refused(DEBUG + ["--out", "mounted/run"], "mounted/run", "Read-only")

    def test_a_full_disk(self):
        self.mount("size=3m")  # room for one checkpoint, and not for two
        for ranks in (0, 2):
            job = Job(DEBUG + ["--set", "train.keep_checkpoints=0", "--out", "mounted/run"], ranks)
            self.check_refusal(job, ["step_00000020", "No space left", "free some space"])
            self.assertEqual(os.listdir("mounted/run/checkpoints"), ["step_00000010"])
            self.run_well("eval", "--checkpoint", "mounted/run")
            shutil.rmtree("mounted/run")


if __name__ == "__main__":
    program.main()
