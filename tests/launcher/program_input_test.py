# SPDX-License-Identifier: Apache-2.0
"""Bad input: each is one clear line on standard error and exit code 2; nothing is written, no rank stays behind."""
import gzip
import json
import os
import shutil
import signal

import program
from program import DEBUG, TEXT, Job, flip_a_bit, setting, write


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

    def test_options_in_a_values_place(self):
        """`--out $OUT` where the variable is not set."""
        for arguments, words in (([*DEBUG, "--out", "--dry-run"], "--out: its value is missing: --dry-run is an option itself"),
                                 ([*DEBUG, "--out", "-h"], "-h is an option itself"),
                                 ([*DEBUG, "--out", "--resume=auto"], "--resume=auto is an option itself"),
                                 (["eval", "--checkpoint", "--sequences", "3"], "--checkpoint: its value is missing")):
            self.assert_refused(arguments, words, ranks=(0,))
        self.train("-", "train.steps=1")

    def test_misspelt_options(self):
        for arguments, words in ((["generate", "--propmt", "x"], "--propmt: no such option (did you mean --prompt?)"),
                                 (["eval", "--chekpoint=x"], "--chekpoint: no such option (did you mean --checkpoint?)"),
                                 (["eval", "--checkpoint", "x", "--sequence", "3"], "(did you mean --sequences?)"),
                                 (["inspect", "--foo"], "--foo: no such option; "),
                                 (["inspect", "-foo"], "-foo: no such option; ")):
            self.assert_refused(arguments, words, ranks=(0,))

    def test_address_space_that_is_too_small(self):
        self.assert_refused([*DEBUG, "--out", "run"], "address space", "ulimit -v", ranks=(0,), shell="ulimit -v 400000; exec")

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
                              ("--top-p", "2"), ("--top-p", "nan"), ("--seed", "-3"), ("--seed", str(2**64))]:
            self.assert_refused(generate + [option, value], option, f"{value} is not a", "see pkmesh generate --help",
                                ranks=(0,))
        self.assert_refused(generate + ["--tokens", "1e3"], "not a whole number from 1 to 1000000", ranks=(0,))
        self.assert_refused(generate + ["--seed", str(2**64)], "from 0 to 18446744073709551615", ranks=(0,))
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
            self.assert_refused(command + ["--checkpoint", "nosuch"], "nosuch: is not there")
        self.assert_refused(["inspect", "nosuch"], "nosuch")
        self.assert_refused(["eval", "--checkpoint", "step_00000010"], "is not there", "train.keep_checkpoints", ranks=(0,))
        self.assert_refused(["inspect", "/proc"], "/proc", "no whole checkpoint")
        self.assert_refused(["config", "model.memry"], "did you mean model.memory?")

    def test_unknown_cpu(self):
        for name in ("avx1024", "AVX2"):
            command = ["env", f"PKMESH_CPU={name}", program.PROGRAM, "config", "model.memory.heads"]
            self.check_refusal(Job([], contexts=[command] * 2), [f"PKMESH_CPU={name}", "avx2, avx512 or amx"])
        contexts = [["env", f"PKMESH_CPU={name}", program.PROGRAM, "config"] for name in ("", "avx2")]
        job = Job([], contexts=contexts)
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = file.read()
        if "avx512vl" in cpu:
            best = "amx" if "amx_bf16" in cpu else "avx512"
            self.check_refusal(job, ["has another PKMESH_CPU than rank 0", f'"avx2" instead of "{best}"'])
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
        write("figures.json", "mine")
        for path in ("folder", "/dev/null", "nosuch/figures.json", "/proc/figures.json", "figures.json"):
            self.assert_refused(step + ["--json", path], path, ranks=(0,))

    def test_threads_that_nobody_starts(self):
        bench = ["bench", "layer", "--config", "debug", "--repeats", "1"]
        known = {"OMP_NUM_THREADS": "1"}
        self.assertIn("\n1 thread per rank (OMP_NUM_THREADS)", self.run_well(*bench, env=known).out)
        said = self.run_well(*bench, env=dict(known, PKMESH_THREADS="7")).out
        self.assertIn("\n1 thread per rank (OMP_NUM_THREADS)", said)
        self.assertIn("\n1 thread per rank (OMP_NUM_THREADS)", self.run_well(*bench, env={"OMP_NUM_THREADS": "1,2"}).out)
        said = self.run_well(*bench, env={"OMP_NUM_THREADS": ""}).out
        self.assertRegex(said, r"\n[1-9]\d* threads? per rank \(chosen\)")
        for threads in ("0", "-1", "abc", "2,"):
            for ranks in (0, 2):
                job = Job(["config"], ranks, env={"OMP_NUM_THREADS": threads})
                self.check_refusal(job, [f"OMP_NUM_THREADS={threads}: is no number of threads"])
                self.assertEqual(job.out, "")


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
        self.assert_refused(setting("train.communication=NCCL"), "train.communication=NCCL", "built without it", "HOST_STAGED")
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
        self.assert_refused(huge + ["--out", "run"], "this run needs over 1 PiB", "--dry-run")

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
        self.refuse_in("ab", train[:-1] + ["elsewhere"], "elsewhere: is not on", "give an --out that all hosts share")
        more = train[:-3] + ["train.steps=5", "--out", "run", "--resume", "auto"]
        self.refuse_in("ab", more, "another checkpoint to go on from than rank 0")
        shutil.copytree("a/run", "b/run")
        write("b/run/.begins", "of a run that was killed")
        self.refuse_in("ab", more, "run: is not on", "give an --out that all hosts share")
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
        self.assert_refused(["tokenize", "--input", "text", "./text", "--out", "tokens"], "--input ./text: is given twice", ranks=(0,))
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
        write("blank", "\n" * 99)
        self.assert_refused(["tokenize", "--input", "blank", "--out", "tokens"], "blank: holds no text",
                            "--set tokenizer.kind=BYTE", ranks=(0,))
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
                              ("flipped", "checksum"), ("absent", "no training tokens"), ("unnamed", "tokenizer.json"),
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
        self.assertRegex(said, "1 byte .*is not UTF-8 .*is it text?")
        self.assertIn("257 pieces, that of bytes", said)
        for override in ("tokenizer.kind=BPE", "tokenizer.vocabulary=600"):
            self.assert_refused(["tokenize", "--input", "text", "--out", "new", "--tokenizer", "bytes", "--set", override],
                                override, "--tokenizer bytes", ranks=(0,))

    def test_too_little_text_to_validate_on(self):
        """What was asked for and does not come is said, when it is tokenized and when it is trained on."""
        tokenize = ["tokenize", "--set", "tokenizer.kind=BYTE", "--input"]
        for share in ("0.1", "0"):
            said = self.run_well(*tokenize, "text", "--out", share, "--set", f"data.validation_share={share}").err
            self.assertNotIn("warning", said)
        write("little", TEXT[:1000])
        said = self.run_well(*tokenize, "little", "--out", "none").err
        self.assertIn("warning: data.validation_share is 0.01, but the text is too short to be parted", said)
        write("more", TEXT[:3000])
        said = self.run_well(*tokenize, "more", "--out", "much").err
        self.assertRegex(said, r"warning: data.validation_share is 0.01, but 0\.\d+ of the text is for validation")
        warning = "no validation, though train.eval_every is 10: none has no validation tokens"
        for folder, every, warned in (("none", 10, True), ("none", 0, False), ("much", 10, False)):
            said = self.train(f"{folder}-{every}", "data.source=FOLDER", f"data.train={folder}", "train.steps=1",
                              f"train.eval_every={every}", "model.context=16").err
            self.assertEqual(warning in said, warned, said)

    def test_evaluation_data(self):
        self.train("run", "train.steps=1")
        shutil.copytree("run", "moved")
        shutil.rmtree("moved/tokens")
        self.assert_refused(["eval", "--checkpoint", "moved"], "moved/tokens", "--data")
        shutil.copytree("run/tokens", "valid")
        os.remove("valid/train-00000.tok")
        for ranks in (0, 2):
            evaluation = self.run_well("eval", "--checkpoint", "run", "--data", "valid", ranks=ranks).out
            self.assertRegex(evaluation, r"baselines +unigram .* per token \(counts of \S*run/tokens\)")
        shutil.move("run/tokens/train-00000.tok", "kept")
        evaluation = self.run_well("eval", "--checkpoint", "run", "--data", "valid").out
        self.assertIn("baselines    none: valid has no training tokens", evaluation)
        shutil.move("kept", "run/tokens/train-00000.tok")
        flip_a_bit("run/tokens/train-00000.tok", 4001)  # found when the baseline is counted
        evaluation = self.run_well("eval", "--checkpoint", "run", "--data", "valid").out
        self.assertRegex(evaluation, r"baselines +none: \S*tokens/train-00000.tok: .*checksum")

    def test_a_context_longer_than_the_built_in_text(self):
        self.assert_refused(setting("model.context=100000", out="not/yet/there"), "smaller context")


if __name__ == "__main__":
    program.main()
