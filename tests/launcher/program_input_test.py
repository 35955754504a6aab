# SPDX-License-Identifier: Apache-2.0
"""Bad input: each is one clear line on standard error and exit code 2; nothing is written, no rank stays behind."""
import gzip
import json
import os
import shutil
import signal
import subprocess
import time
import unittest

import program
from program import Job, flip_a_bit

DEBUG = ["train", "--config", "debug"]
TEXT = "".join(f"word{i % 97} follows word{i % 89}; " + "\n" * (i % 7 == 0) for i in range(2000))


def setting(override, out="run"):
    return DEBUG + ["--set", override, "--out", out]


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class CommandLine(program.Test):
    def test_without_a_command(self):
        self.assert_refused([], "tokenize, train, eval", "see pkmesh --help")

    def test_unknown_command(self):
        self.assert_refused(["trian"], "trian", "did you mean train?")

    def test_unknown_option(self):
        self.assert_refused(DEBUG + ["--steps", "3", "--out", "run"], "--steps", "see pkmesh train --help")

    def test_missing_options(self):
        self.assert_refused(["train", "--out", "run"], "--config", "quickstart")
        self.assert_refused(DEBUG, "--out FOLDER")
        self.assert_refused(["train", "--resume", "auto"], "--out FOLDER", ranks=(0,))
        self.assert_refused(["eval"], "--checkpoint is required", ranks=(0,))
        self.assert_refused(["generate", "--checkpoint", "x"], "--prompt is required", ranks=(0,))
        self.assert_refused(["tokenize", "--out", "tokens"], "--input is required", ranks=(0,))

    def test_options_that_exclude_each_other(self):
        self.assert_refused(DEBUG + ["--dry-run", "--print-config"], "--print-config", "--dry-run", ranks=(0,))

    def test_names_of_any_bytes(self):
        self.assert_refused(["inspect", "no\nsuch"], "no?such", ranks=(0,))
        out = b"run \xff"
        self.run_well(*DEBUG, "--set", "train.steps=1", "--out", out)
        self.assertIn("  1 rank on ", self.run_well("inspect", out).out)
        self.assertIn("eval", self.run_well("--help").out)
        self.run_well("eval", "--checkpoint", out)

    def test_bad_numbers(self):
        generate = ["generate", "--checkpoint", "run", "--prompt", "a"]
        for option, value in [("--tokens", "ten"), ("--tokens", "0"), ("--tokens", "0100"), ("--tokens", "0x10"),
                              ("--temperature", "-1"), ("--temperature", "nan"), ("--temperature", "1x"),
                              ("--top-p", "2"), ("--top-p", "nan"), ("--seed", "-3"), ("--seed", str(2**63))]:
            self.assert_refused(generate + [option, value], option, f"{value} is not a", "see pkmesh generate --help",
                                ranks=(0,))
        self.assert_refused(generate + ["--tokens", "1e3"], "not a whole number from 1 to 1000000", ranks=(0,))
        self.assert_refused(["eval", "--checkpoint", "run", "--sequences", "-1"], "--sequences",
                            "-1 is not a whole number of at least 0;", ranks=(0,))

    def test_empty_values(self):
        write("text", TEXT)
        eval_, generate = (["eval", "--checkpoint", "run"], ["generate", "--checkpoint", "run", "--prompt", "a"])
        tokenize = ["tokenize", "--input", "text", "--out", "tokens"]
        for command, option in [(DEBUG + ["--out", "new"], "--resume"), (["train"], "--config"), (DEBUG, "--out"),
                                (DEBUG + ["--out", "new"], "--set"), (tokenize, "--tokenizer"), (tokenize, "--input"),
                                (["bench", "ops"], "--json"), (eval_, "--data"), (["eval"], "--checkpoint"),
                                (generate, "--tokens")]:
            line = (f"error: {option}: the value is empty", f"see pkmesh {command[0]} --help")
            self.assert_refused(command + [option, ""], *line, ranks=(0,))
            self.assert_refused(command + [option + "=", "--help"], *line, ranks=(0,))
        for command in ("config", "inspect", "bench"):
            self.assert_refused([command, ""], "the value is empty", ranks=(0,))

    def test_one_value_at_a_time(self):
        self.assert_refused(["generate", "--checkpoint", "run", "--prompt", "a", "b"], "b is not understood", ranks=(0,))
        self.assert_refused(setting("train.steps=1") + ["--set", "train.steps=2", "train.seed=2"],
                            "train.seed=2 is not understood", ranks=(0,))
        self.assert_refused(setting("[train.steps=1,train.seed=2]"), "[train: no such option", ranks=(0,))

    def test_values_in_brackets(self):
        for name in ("[a]", "[b,c]", "d"):
            write(name, TEXT)
        byte = ("--set", "tokenizer.kind=BYTE")
        self.run_well("tokenize", "--input", "[a]", "[b,c]", "--input", "d", *byte, "--out", "[o,p]")
        with open("[o,p]/corpus.json", encoding="utf-8") as file:
            self.assertEqual(json.load(file)["inputs"], ["[a]", "[b,c]", "d"])
        self.train("[run]", "train.steps=1")
        prompts = ["[1913 Webster]", "[a,b]", "{}", ""]
        said = self.run_well("generate", "--checkpoint", "[run]", "--tokens", "1", "--top-p", "1e-6",
                             *[word for prompt in prompts for word in ("--prompt", prompt)]).out
        found = [said.find(prompt) for prompt in prompts[:3]]
        self.assertEqual(found, sorted(found))
        self.assertEqual(found[0], 0)
        self.assertEqual(said.count("\n\n"), 4)

    def test_nonsense_paths(self):
        for command in (["eval"], ["generate", "--prompt", "a"]):
            self.assert_refused(command + ["--checkpoint", "nosuch"], "nosuch", "no whole checkpoint")
        self.assert_refused(["inspect", "nosuch"], "nosuch")
        self.assert_refused(["inspect", "/proc"], "/proc", "no whole checkpoint")
        self.assert_refused(["config", "model.memry"], "did you mean model.memory?")

    def test_unknown_cpu(self):
        for name in ("avx1024", "AVX2"):
            command = ["env", f"PKMESH_CPU={name}", program.PROGRAM, "config", "model.memory.heads"]
            self.check_refusal(Job([], contexts=[command] * 2), [f"PKMESH_CPU={name}", "avx2 or avx512"])
        contexts = [["env", f"PKMESH_CPU={name}", program.PROGRAM, "config"] for name in ("", "avx2")]
        job = Job([], contexts=contexts)
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = file.read()
        if "avx512vl" in cpu:
            self.check_refusal(job, ["has another PKMESH_CPU than rank 0", '"avx2" instead of "avx512"'])
        else:
            self.assertEqual(job.finish().code, 0)

    def test_standard_output_that_is_full(self):
        self.train("run", "train.steps=1")
        for command in (["config", "model.memory.heads"], ["config"], ["--help"], ["train", "--help"], ["--version"],
                        DEBUG + ["--print-config"], ["inspect", "run"], ["inspect", "debug"],
                        ["eval", "--checkpoint", "run"], ["bench", "layer", "--config", "debug"],
                        ["generate", "--checkpoint", "run", "--prompt", "a" * 99, "--tokens", "1"]):
            with open("/dev/full", "wb") as full:
                self.check_refusal(Job(command, stdout=full), ["standard output cannot be written: No space left"])
        self.check_refusal(Job(["config"], shell="exec 1>&-;"), ["standard output cannot be written"])

    def test_a_reader_that_has_gone(self):
        read, write_ = os.pipe()
        os.close(read)
        with open(write_, "wb") as pipe:
            job = Job(["config"], stdout=pipe).finish()
        self.assertEqual((job.code, job.err), (-signal.SIGPIPE, ""))

    def test_benchmarks(self):
        step = ["bench", "step", "--config", "debug"]
        self.assert_refused(step + ["--set", "model.memory=[]"], "no memory to measure")
        self.assert_refused(step + ["--set", "train.precision=FP16"], "train.precision")
        self.assert_refused(["bench", "ops"], "without mpirun", ranks=(2,))
        nowhere = ["env", f"TMPDIR={self.folder}/nosuch", program.PROGRAM]  # of a rank: mpirun would make it
        self.check_refusal(Job([], contexts=[nowhere + step] * 2), ["temporary files", "TMPDIR"])
        os.mkdir("folder")
        for path in ("folder", "/dev/null", "nosuch/figures.json", "/proc/figures.json"):
            self.assert_refused(step + ["--json", path], path, ranks=(0,))


    def test_threads_that_nobody_starts(self):
        bench = ["bench", "layer", "--config", "debug", "--repeats", "1"]
        known = {"OMP_NUM_THREADS": "1"}
        self.assertIn("\n1 thread per rank (OMP_NUM_THREADS)", self.run_well(*bench, env=known).out)
        said = self.run_well(*bench, env=dict(known, PKMESH_THREADS="7")).out
        self.assertIn("\n1 thread per rank (OMP_NUM_THREADS)", said)
        said = self.run_well(*bench, env={"OMP_NUM_THREADS": "0"}).out
        self.assertRegex(said, r"\n[1-9]\d* threads? per rank \(chosen\)")


class Configuration(program.Test):
    def test_wrong_keys(self):
        self.assert_refused(setting("train.stps=3"), "--set train.stps=3", "did you mean train.steps?", ranks=(0, 2, 4))
        write("my.textproto", "model { layers: 2\n heds: 4 }\n")
        self.assert_refused(["train", "--config", "./my.textproto", "--out", "run"], "my.textproto:2",
                            "did you mean model.heads?")

    def test_values_out_of_range(self):
        self.assert_refused(setting("train.steps=-3"), "train.steps is -3", "1 to 1000000000")
        self.assert_refused(setting("model.heads=5"), "model.width is 64", "model.heads (5)", ranks=(0,))
        self.assert_refused(setting("model.dropout=nan"), "model.dropout", ranks=(0,))
        self.assert_refused(setting("train.batch"), "KEY=VALUE", ranks=(0,))
        self.assert_refused(setting("model.dropout=0.99999999"), "model.dropout", "less than 1", "32 bits", ranks=(0,))
        self.assert_refused(setting("train.steps=0100"), "train.steps is 0100", "base 8", ranks=(0,))

    def test_more_neighbours_than_sub_keys(self):
        self.assert_refused(setting("model.memory.0.neighbours=33"), "neighbours is 33", "sub_keys (32)")

    def test_value_width_that_does_not_match(self):
        self.assert_refused(setting("model.memory.0.value_width=32"), "value_width is 32", "model.width (64)")

    def test_a_communicator_that_was_not_compiled_in(self):
        self.assert_refused(setting("train.communication=NCCL"), "communication NCCL", "built without it", "HOST_STAGED")
        self.assert_refused(setting("train.communication=GLOO"), "train.communication", "AUTO, NCCL, HOST_STAGED",
                            ranks=(0,))

    def test_a_precision_that_the_device_has_not(self):
        self.assert_refused(setting("train.precision=FP16"), "train.precision", "FP16", "BF16 or FP32")
        self.assert_refused(setting("train.precision=FP8"), "train.precision", "FP32, BF16, FP16", ranks=(0,))

    def test_files_that_are_no_configuration(self):
        os.mkdir("folder.d")
        write("syntax.textproto", "model {\n")
        for path in ("./folder.d", "./nosuch.textproto", "./syntax.textproto", "/bin/sh"):
            self.assert_refused(["train", "--config", path, "--out", "run"], path, ranks=(0,))
        self.assert_refused(["train", "--config", "debgu", "--out", "run"], "did you mean debug?", ranks=(0,))

    def test_data_that_would_not_be_read(self):
        self.assert_refused(setting("data.train=tokens"), "data.train is tokens", "set data.source to FOLDER")

    def test_a_file_with_a_presets_looks(self):
        write("mine", "")
        self.assert_refused(["train", "--config", "mine", "--out", "run"], "give ./mine", ranks=(0,))

    def test_a_model_that_no_machine_holds(self):
        self.assert_refused(setting("model.memory.0.sub_keys=46340"), "this run needs", "TiB", "--dry-run")
        huge = DEBUG + ["--set", "model.memory=[]"]  # 2^66 bytes
        for override in ("model.width=65536", "model.heads=1", "model.context=900", "train.batch=16777216",
                         "model.layers=1024"):
            huge += ["--set", override]
        self.assertRegex(self.run_well(*huge, "--dry-run").out, "activations +over 1 PiB(.*\n)+ +total +over 1 PiB")
        self.assert_refused(huge + ["--out", "run"], "this run needs", "TiB", "--dry-run")

    def test_ranks_that_disagree(self):
        before = program.snapshot(self.folder)
        context = [program.PROGRAM] + DEBUG + ["--out", "run"]
        for other, difference in [(["--set", "train.steps=9"], "--set"), (["--dry-run"], "--dry-run")]:
            with self.subTest(other=other):
                job = Job([], contexts=[context, context + other])
                self.check_refusal(job, ["rank 1 on", "another command line than rank 0", difference])
        self.check_refusal(Job([], contexts=[context, [program.PROGRAM, "inspect", "debug"]]), ["another command line"])
        self.assertEqual(program.snapshot(self.folder), before)

    def test_ranks_that_read_different_files(self):
        for name, steps in (("a", 3), ("b", 4)):
            os.mkdir(name)
            text = self.run_well(*DEBUG, "--print-config", "--set", f"train.steps={steps}").out
            write(f"{name}/my.textproto", text)
        before = program.snapshot(self.folder)
        line = f"cd $0 && exec {program.PROGRAM} train --config ./my.textproto --out ../run"
        job = Job([], contexts=[["sh", "-c", line, "a"], ["sh", "-c", line, "b"]])
        self.check_refusal(job, ["another configuration than rank 0", '"steps: 4" instead of "steps: 3"'])
        self.assertEqual(program.snapshot(self.folder), before)

    def refuse_in(self, folders, arguments, *words):
        """One rank in each folder; what is there stays as it is."""
        before = program.snapshot(self.folder)
        line = 'cd "$0" && exec "$@"'
        contexts = [["sh", "-c", line, folder, program.PROGRAM, *arguments] for folder in folders]
        self.check_refusal(Job([], contexts=contexts), list(words))
        self.assertEqual(program.snapshot(self.folder), before)

    def test_ranks_that_have_disks_of_their_own(self):
        for folder, words in (("a", 4000), ("b", 5000)):
            os.mkdir(folder)
            write(f"{folder}/text", "".join(f"word {i * i}\n" for i in range(words)))
            self.run_well("tokenize", "--input", "text", "--out", "tokens", "--set", "tokenizer.kind=BYTE", cwd=folder)
        train = ["train", "--config", "debug", "--set", "data.source=FOLDER", "--set", "data.train=tokens",
                 "--set", "train.steps=3", "--out", "run"]
        self.refuse_in("ab", train, "another corpus than rank 0", "training tokens")
        self.run_well(*train, cwd="a")
        shutil.rmtree("b/tokens")
        shutil.copytree("a/tokens", "b/tokens")
        more = train[:-3] + ["train.steps=5", "--out", "run", "--resume", "auto"]
        self.refuse_in("ab", more, "another checkpoint to go on from than rank 0")
        shutil.copytree("a/run", "b/run")
        self.run_well(*more, "--set", "train.checkpoint_every=4", cwd="b")
        for folder, step in (("a", 4), ("b", 5)):
            shutil.copytree(f"b/run/checkpoints/step_{step:08}", f"{folder}/other")
        self.refuse_in("ab", ["generate", "--checkpoint", "other", "--prompt", "a"], "another checkpoint than rank 0")


class Corpus(program.Test):
    def setUp(self):
        super().setUp()
        write("text", TEXT)

    def tokenize(self, out, kind):
        self.run_well("tokenize", "--input", "text", "--out", out, "--set", f"tokenizer.kind={kind}", "--set",
                      "tokenizer.vocabulary=512", "--set", "data.validation_share=0.1")

    def test_tokenize(self):
        write("empty", "")
        with open("cut.gz", "wb") as file:
            file.write(gzip.compress(os.urandom(9000))[:5000])
        for path, words in [("empty", "the corpus is empty"), ("nosuch", "nosuch"), ("/proc", "/proc"),
                            ("cut.gz", "truncated")]:
            for out in ("tokens", "a/b/tokens"):
                self.assert_refused(["tokenize", "--input", path, "--out", out], words, ranks=(0,))
        command = ["tokenize", "--input", "text", "--out"]
        self.assert_refused(command + ["text/tokens"], "text/tokens", "cannot be written", ranks=(0,))
        self.assert_refused(command + ["/proc/tokens"], "/proc/tokens", "cannot be written", ranks=(0,))
        self.assert_refused(command + ["text"], "already exists", ranks=(0,))
        self.assert_refused(command + ["tokens", "--tokenizer", "nosuch"], "nosuch", ranks=(0,))
        self.assert_refused(command + ["tokens", "--set", "tokenizer.vocabulary=3"], "512 to", ranks=(0,))
        self.assert_refused(command + ["tokens"], "without mpirun", ranks=(2,))
        write("many", "".join(map(chr, range(0x4E00, 0x5600))))
        self.assert_refused(["tokenize", "--input", "many", "--out", "tokens", "--set", "tokenizer.vocabulary=512"],
                            "tokenizer.vocabulary", "character_coverage", ranks=(0,))

    def train_on(self, folder):
        return DEBUG + ["--set", "data.source=FOLDER", "--set", f"data.train={folder}", "--out", "run"]

    def test_token_files(self):
        self.tokenize("bytes", "BYTE")
        self.tokenize("pieces", "BPE")

        def altered(name, alter):
            shutil.copytree("bytes", name)
            alter(f"{name}/train-00000.tok")

        altered("other", lambda path: shutil.copy("pieces/train-00000.tok", path))
        altered("truncated", lambda path: os.truncate(path, 5001))
        altered("header", lambda path: flip_a_bit(path, 41))
        altered("flipped", lambda path: flip_a_bit(path, 4001))
        altered("absent", os.remove)
        altered("unnamed", lambda path: os.remove(os.path.join(os.path.dirname(path), "tokenizer.json")))
        for folder, words in [("other", "written with tokenizer"), ("truncated", "truncated"), ("header", "damaged"),
                              ("flipped", "checksum"), ("absent", "no train tokens"), ("unnamed", "tokenizer.json"),
                              ("nosuch", "nosuch")]:
            self.assert_refused(self.train_on(folder), folder, words)
        self.assert_refused(self.train_on("bytes") + ["--set", "model.context=100000"], "smaller context", ranks=(0,))
        self.assert_refused(self.train_on(""), "data.train", "pkmesh tokenize", ranks=(0,))
        self.train("good", "train.steps=1")
        self.assert_refused(["eval", "--checkpoint", "good", "--data", "pieces"], "written with tokenizer")
        os.truncate("bytes/valid-00000.tok", 200)
        self.assert_refused(["eval", "--checkpoint", "good", "--data", "bytes"], "bytes/valid", "truncated")

    def test_text_that_is_none(self):
        with open("utf16", "w", encoding="utf-16") as file:
            file.write(TEXT)
        self.assert_refused(["tokenize", "--input", "utf16", "--out", "tokens"], "utf16", "iconv", ranks=(0,))
        with open("latin1", "w", encoding="latin-1") as file:
            file.write(TEXT + "caf\u00e9")
        said = self.run_well("tokenize", "--input", "latin1", "--out", "tokens", "--set", "tokenizer.vocabulary=512").err
        self.assertRegex(said, "1 byte .*is not UTF-8 .*is it text?")
        # What the tokenizer is counts, not what would have been learnt.
        self.tokenize("bytes", "BYTE")
        said = self.run_well("tokenize", "--input", "latin1", "--out", "more", "--tokenizer", "bytes").err
        self.assertNotIn("is it text?", said)
        self.assertIn("257 pieces, that of bytes", said)
        for override in ("tokenizer.kind=BPE", "tokenizer.vocabulary=600"):
            self.assert_refused(["tokenize", "--input", "text", "--out", "new", "--tokenizer", "bytes", "--set", override],
                                override, "--tokenizer bytes", ranks=(0,))

    def test_evaluation_data(self):
        self.train("run", "train.steps=1")
        shutil.copytree("run", "moved")
        shutil.rmtree("moved/tokens")
        self.assert_refused(["eval", "--checkpoint", "moved"], "moved/tokens", "--data")
        shutil.copytree("run/tokens", "valid")
        os.remove("valid/train-00000.tok")
        for ranks in (0, 2):
            evaluation = self.run_well("eval", "--checkpoint", "run", "--data", "valid", ranks=ranks).out
            self.assertIn("baselines    none: valid has no training tokens", evaluation)
        shutil.copy("run/tokens/train-00000.tok", "valid")
        flip_a_bit("valid/train-00000.tok", 4001)  # found when the baseline is counted
        self.assert_refused(["eval", "--checkpoint", "run", "--data", "valid"], "valid/train-00000.tok", "checksum")

    def test_a_context_longer_than_the_built_in_text(self):
        self.assert_refused(setting("model.context=100000", out="not/yet/there"), "smaller context")


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
        self.assert_damage_is_seen("not a whole checkpoint", "manifest.textproto")

    def test_another_tokenizer(self):
        """Whole by itself, and yet not the one whose tokens the model knows."""
        write("text", "a few words of text, and a few more words\n" * 400)
        self.run_well("tokenize", "--input", "text", "--out", "other", "--set", "tokenizer.vocabulary=512")
        for name in ("tokenizer.json", "tokenizer.model"):
            shutil.copy(f"other/{name}", self.newest)
        for command in (["eval"], ["generate", "--prompt", "a"]):
            self.assert_refused(command + ["--checkpoint", "run"], "its tokenizer is not the one", ranks=(0,))

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
        self.assert_refused(DEBUG + ["--resume", "nosuch", "--out", "new"], "nosuch", "no whole checkpoint")


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
