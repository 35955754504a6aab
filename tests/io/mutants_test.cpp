// SPDX-License-Identifier: Apache-2.0
// Every parser of foreign bytes against thousands of damaged files. Checksums are mended where they would hide what
// lies behind them. (Configurations: config_fuzz_test.cpp.)
#include "tests/io/mutants.h"

#include <xxhash.h>
#include <zlib.h>

#include <cstring>

#include "comm/self.h"
#include "io/checkpoint.h"
#include "io/corpus.h"
#include "io/file.h"
#include "io/report.h"
#include "io/run_folder.h"
#include "io/safetensors.h"
#include "io/token_file.h"
#include "runtime/buffer.h"
#include "tests/io/temporary_folder.h"
#include "tests/io/written_tokens.h"

namespace pkmesh {
namespace {

const std::vector<std::string> kJsonWords = {
    "{", "}",    "[",    "]",  ",",     "\"", ":",           "9",
    "-", "e999", "null", "{}", "false", "[]", "\"resumed\"", "18446744073709551615"};

void write(const std::string& path, const std::string& text) {
  File::create(path).append(text);
}

uint64_t checksum(const std::string& text, size_t begin, size_t end) {
  return XXH3_64bits(text.data() + begin, end - begin);
}

// One element of each tensor is touched where the tensor lies: outside the file that would be a fault.
void read_safetensors(const std::string& path) {
  const Safetensors file(path);
  for (const TensorInfo& tensor : file.tensors()) {
    uint64_t sum = 0;
    for (const std::byte b : file.bytes(tensor)) sum += static_cast<uint64_t>(b);
    EXPECT_LE(sum, uint64_t{255} * static_cast<uint64_t>(tensor.bytes()));
  }
}

TEST(Mutants, Safetensors) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  create_safetensors(path, {{"a", DType::kF32, {2, 3}}, {"b", DType::kU8, {5}}, {"c", DType::kI64, {0}}}, {{"k", "v"}});
  const std::string original = read_text(path);
  const Mutants mutants(original, kJsonWords, original.size());
  const auto place = [&](const std::string& text) { write(path, text); };
  const auto read = [&] { read_safetensors(path); };
  EXPECT_EQ(refused(mutants, original.size(), place, read), original.size()) << "a truncated file is never whole";
  EXPECT_GT(refused(mutants, 3000, place, read), 2000);
}

void read_tokens(const std::string& folder) {
  const Tokens tokens = Tokens::open(folder, "train");
  std::vector<int32_t> ids(static_cast<size_t>(std::min<int64_t>(tokens.count(), 1 << 20)));
  tokens.read(0, ids);
  for (const int32_t id : ids) ASSERT_TRUE(id >= 0 && id < tokens.vocabulary_size());
}

TEST(Mutants, TokenFile) {
  const TemporaryFolder folder;
  std::vector<int32_t> ids(50000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i % 300);
  written_tokens(folder.path(), ids, 300);
  const std::string path = folder / "train-00000.tok";
  const std::string original = read_text(path);
  const std::string words[] = {std::string(8, '\xFF'), std::string(8, '\0'), std::string("\0\0\0\0\0\0\0\x80", 8),
                               std::string("\x01\0\0\0\0\0\0\x40", 8)};
  const Mutants mutants(original, {std::begin(words), std::end(words)});
  EXPECT_EQ(refused(
                mutants, 500, [&](const std::string& text) { write(path, text); }, [&] { read_tokens(folder.path()); }),
            500);

  // Behind a header whose checksum fits, and with all checksums mended.
  const Mutants headers(original.substr(0, 128), {std::begin(words), std::end(words)}, 1);
  const auto sealed = [&](std::string header, const std::string& rest) {
    header.resize(128);
    const uint64_t seal = checksum(header, 0, 120);
    std::memcpy(&header[120], &seal, 8);
    write(path, header + rest);
  };
  refused(
      headers, 3000, [&](const std::string& text) { sealed(text, original.substr(128)); },
      [&] { read_tokens(folder.path()); });
  const Mutants payloads(original.substr(128, 100000), {std::begin(words), std::end(words)}, 1);
  const int strangers = refused(
      payloads, 500,
      [&](std::string text) {
        text.resize(100000);
        std::string table(16, '\0');
        const uint64_t blocks[] = {checksum(text, 0, 65536), checksum(text, 65536, 100000)};
        std::memcpy(table.data(), blocks, 16);
        std::string header = original.substr(0, 128);
        const uint64_t of_table = checksum(table, 0, 16);
        std::memcpy(&header[56], &of_table, 8);
        sealed(header, text + table);
      },
      [&] { read_tokens(folder.path()); });
  EXPECT_GT(strangers, 100) << "tokens outside the vocabulary";
  EXPECT_LT(strangers, 500);
}

TEST(Mutants, TokenizerDescriptionAndModel) {
  const TemporaryFolder folder;
  std::string sample;
  for (int i = 0; i < 500; ++i) sample += "some words of number " + std::to_string(i * i) + " follow\n";
  train_tokenizer(std::vector<std::string>{sample}, 320)->save(folder.path());
  const std::string description = read_text(folder / "tokenizer.json");
  const std::string model = read_text(folder / "tokenizer.model");
  const auto load = [&] {
    const auto tokenizer = load_tokenizer(folder.path());
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("some words\n")), "some words\n");
  };
  EXPECT_TRUE(survives(load));
  const int changed = refused(
      Mutants(description, kJsonWords), 2000, [&](const std::string& text) { write(folder / "tokenizer.json", text); },
      load);
  EXPECT_GT(changed, 1000);
  write(folder / "tokenizer.json", description);
  // None passes the checksum, but for the whole: a damaged model is never parsed.
  EXPECT_GE(
      refused(
          Mutants(model, {}), 1000, [&](const std::string& text) { write(folder / "tokenizer.model", text); }, load),
      998);
}

struct SmallModel {
  Buffer<float> weights{{}, 12};
  Buffer<float> values{{}, 20 * 3};
  CheckpointContents contents() {
    return {{dense_tensor("w", weights.view().reshape(3, 4))},
            {{"t", 20, 20, [](int64_t row) { return row; }, {row_tensor("values", values.view().reshape(20, 3))}}}};
  }
};

TEST(Mutants, Manifest) {
  const TemporaryFolder folder;
  SelfCommunicator world;
  SmallModel model;
  const std::string path = save_checkpoint(world, folder.path(),
                                           {7, "model {}\n", "words", 2, {{"tokenizer.json", "{}"}}}, model.contents());
  const std::string manifest = path + "/manifest.textproto";
  const std::string original = read_text(manifest);
  const std::vector<std::string> words = {
      "{", "}", "-1", "9223372036854775807", "\"", "name: \"../x\"", "rows", "F64", "columns", "tables {", "#", ": 0"};
  const auto load = [&] {
    describe_checkpoint(path);
    load_checkpoint(world, path, model.contents());
  };
  EXPECT_TRUE(survives(load));
  EXPECT_GE(refused(
                Mutants(original, words), 1500, [&](const std::string& text) { write(manifest, text); }, load),
            1490);
  const std::string body = original.substr(0, original.rfind("# xxh3 "));
  EXPECT_GT(refused(
                Mutants(body, words), 4000,
                [&](const std::string& text) {
                  write(manifest, fmt::format("{}# xxh3 {:016x}\n", text, text_checksum(text)));
                },
                load),
            2000);
}

TEST(Mutants, Archive) {
  const TemporaryFolder folder;
  const std::string path = folder / "text.gz";
  std::string text;
  for (int i = 0; i < 300; ++i) text += "line " + std::to_string(i) + "\n";
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  const int damaged = refused(
      Mutants(read_text(path), {}), 2000, [&](const std::string& bytes) { write(path, bytes); },
      [&] {
        BlockReader reader({path}, 100);
        Block block;
        while (reader.next(block)) EXPECT_LE(block.text.size(), 200U);
      });
  EXPECT_GT(damaged, 1000);
}

TEST(Mutants, RunFolder) {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  for (const bool resume : {false, true})
    RunFolder(run, resume).begin("model {}\n", {{"pkmesh", "train"}, {{"a"}, {0}}});
  const std::string metrics = R"({"step":1,"loss":6.5,"step_ms":900,"tokens_per_s":1000,"validation":{"loss":1}}
{"step":2,"loss":3.25,"step_ms":1,"tokens_per_s":2,"memory":{"L6":{"used":0.6,"kl":0.9,"top1":0.01}}}
)";
  write(run + "/metrics.jsonl", metrics);
  const auto describe = [&] { describe_run(run); };
  EXPECT_TRUE(survives(describe));
  EXPECT_GT(refused(
                Mutants(metrics, kJsonWords), 3000,
                [&](const std::string& text) { write(run + "/metrics.jsonl", text); }, describe),
            300);
  write(run + "/metrics.jsonl", metrics);
  const std::string description = read_text(run + "/run.json");
  EXPECT_GT(
      refused(
          Mutants(description, kJsonWords), 3000, [&](const std::string& text) { write(run + "/run.json", text); },
          [&] {
            describe_run(run);
            RunFolder(run, true).begin("model {}\n", {{"pkmesh"}, {{"a"}, {0}}});
          }),
      1000);
}

}  // namespace
}  // namespace pkmesh
