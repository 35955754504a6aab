// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <numeric>

#include "comm/self.h"
#include "comm/thread.h"
#include "io/checkpoint_manifest.h"
#include "io/file.h"
#include "runtime/buffer.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kCut = 10;    // elements of a dense tensor in parts
constexpr int64_t kRows = 101;  // of the table, not a multiple of anything
constexpr int64_t kWidth = 5;

// Which rows a rank holds, and in which order.
enum class Placement { kBlock, kCyclic, kPermuted };

std::vector<int64_t> rows_of(Placement placement, int64_t rank, int64_t ranks, int64_t rows = kRows) {
  std::vector<int64_t> owned;
  if (placement == Placement::kBlock) {
    for (int64_t row = rows * rank / ranks; row < rows * (rank + 1) / ranks; ++row) owned.push_back(row);
  } else {
    for (int64_t row = rank; row < rows; row += ranks) owned.push_back(row);
    if (placement == Placement::kPermuted)
      for (int64_t& row : owned) row = row * 37 % rows;  // 37 and 101 have no common divisor
  }
  return owned;
}

// Pieces of three elements, dealt to the ranks.
std::vector<Share> cut_for(int64_t rank, int64_t ranks) {
  std::vector<Share> shares;
  for (int64_t begin = 3 * rank; begin < kCut; begin += 3 * ranks) shares.push_back({begin, std::min(begin + 3, kCut)});
  return shares;
}

// A model that knows what each of its elements should be.
struct Model {
  Model(Placement placement, int64_t rank, int64_t ranks, int64_t rows = kRows)
      : Model(rows_of(placement, rank, ranks, rows), rows, cut_for(rank, ranks)) {}
  Model(std::vector<int64_t> own, int64_t rows, std::vector<Share> shares = {{0, kCut}})
      : total(rows), owned(std::move(own)), local(static_cast<int64_t>(owned.size())), parts(std::move(shares)) {}
  Model(const Model&) = delete;

  void fill() {
    for (int64_t i = 0; i < weights.count(); ++i) weights.data()[i] = static_cast<float>(i) * 0.5F;
    int64_t done = 0;
    for (const Share& part : parts)
      for (int64_t i = part.begin; i < part.end; ++i) cut.data()[done++] = static_cast<float>(i) + 0.25F;
    for (int64_t r = 0; r < local; ++r) {
      const auto row = static_cast<float>(owned[static_cast<size_t>(r)]);
      for (int64_t c = 0; c < kWidth; ++c) {
        values.data()[r * kWidth + c] = bf16(row + static_cast<float>(c) * 128);
        moments.data()[r * kWidth + c] = row * 1000 + static_cast<float>(c);
      }
      reads.data()[r] = static_cast<int32_t>(owned[static_cast<size_t>(r)]) + 7;
    }
    steps.data()[0] = 12;
  }
  // Elements that are not what fill() writes.
  int64_t wrong() const {
    Model expected(owned, total, parts);
    expected.fill();
    const auto differ = [](auto a, auto b) {
      int64_t count = 0;
      for (size_t i = 0; i < a.size(); ++i) count += a[i] == b[i] ? 0 : 1;
      return count;
    };
    return differ(weights.span(), expected.weights.span()) + differ(cut.span(), expected.cut.span()) +
           differ(steps.span(), expected.steps.span()) + differ(values.span(), expected.values.span()) +
           differ(moments.span(), expected.moments.span()) + differ(reads.span(), expected.reads.span());
  }
  CheckpointContents contents() {
    CheckpointContents result;
    result.dense = {dense_tensor("weights", weights.view().reshape(3, 4)),
                    dense_tensor("steps", steps.view()),
                    {{"cut", DType::kF32, {kCut}}, {}, /*cut=*/true}};
    int64_t done = 0;
    for (const Share& part : parts) {
      result.dense[2].parts.push_back(
          {part.begin * 4, std::as_writable_bytes(Share{done, done + part.count()}.of(cut.span()))});
      done += part.count();
    }
    result.tables = {{"layers.2/memory",
                      total,
                      local,
                      [this](int64_t r) { return owned[static_cast<size_t>(r)]; },
                      {row_tensor("values", values.view().reshape(local, kWidth)),
                       row_tensor("m", moments.view().reshape(local, kWidth)),
                       row_tensor("reads", reads.view().reshape(local, int64_t{1}))}}};
    return result;
  }

  int64_t total;
  std::vector<int64_t> owned;
  int64_t local;
  std::vector<Share> parts;  // of a dense tensor that the ranks share
  Buffer<float> cut{{}, pkmesh::total(parts)};
  Buffer<float> weights{{}, 12};
  Buffer<int64_t> steps{{}, 1};
  Buffer<bf16> values{{}, local* kWidth};
  Buffer<float> moments{{}, local* kWidth};
  Buffer<int32_t> reads{{}, local};
};

CheckpointFacts facts_of(int64_t step) {
  return {
      step, "model { layers: 2 }\n", "12 tokens\nno others", 42, {{"tokenizer.model", std::string("\0\1bytes", 7)}}};
}

constexpr SaveOptions kSmallFiles = {.keep = 0, .file_bytes = 30 * (2 * kWidth + 4 * kWidth + 4)};  // 30 rows: 4 files

std::string save(const std::string& folder, int ranks, Placement placement, int64_t step = 3,
                 const SaveOptions& options = kSmallFiles) {
  std::string path;
  run_ranks(ranks, [&](Communicator& world) {
    Model model(placement, world.rank(), world.size());
    model.fill();
    const std::string saved = save_checkpoint(world, folder, facts_of(step), model.contents(), options);
    if (world.rank() == 0) path = saved;
  });
  return path;
}

// Loads on so many ranks; what each rank got: "" if all is well, or the error's words.
std::vector<std::string> load(const std::string& path, int ranks, Placement placement = Placement::kCyclic,
                              const std::function<void(CheckpointContents&)>& change = {},
                              const LoadOptions& options = {}) {
  std::vector<std::string> outcome(static_cast<size_t>(ranks));
  run_ranks(ranks, [&](Communicator& world) {
    std::string& mine = outcome[static_cast<size_t>(world.rank())];
    Model model(placement, world.rank(), world.size());
    CheckpointContents contents = model.contents();
    if (change) change(contents);
    try {
      const CheckpointFacts facts = load_checkpoint(world, path, contents, options);
      if (model.wrong() != 0) mine = "wrong elements";
      if (facts.config_text != facts_of(3).config_text || facts.attachments != facts_of(3).attachments ||
          facts.corpus != facts_of(3).corpus || facts.tokenizer_hash != 42)
        mine = "wrong facts";
    } catch (const UserError& error) {
      mine = error.what();
      const auto values = model.moments.span();  // nothing was filled
      if (std::any_of(values.begin(), values.end(), [](float v) { return v != 0; })) mine = "half filled: " + mine;
    }
  });
  return outcome;
}

// All ranks said the same thing, in one line, and it says `words`.
void expect_refused(const std::vector<std::string>& outcome, const std::string& words) {
  for (const std::string& message : outcome) {
    EXPECT_EQ(message, outcome[0]);
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_NE(message.find(words), std::string::npos) << message << "\nexpected: " << words;
    EXPECT_EQ(message.find("half filled"), std::string::npos) << message;
  }
}

void expect_good(const std::vector<std::string>& outcome) {
  for (const std::string& message : outcome) EXPECT_EQ(message, "");
}

void alter(const std::string& path, int64_t offset_from_end) {
  std::string bytes = read_text(path);
  bytes[bytes.size() - static_cast<size_t>(offset_from_end)] ^= 0x10;
  File::create(path).append(bytes);
}

std::string table_file(const std::string& path, int i) {
  return fmt::format("{}/table-layers.2_memory-{:05}-of-00004.safetensors", path, i);
}

TEST(Checkpoint, AnyNumberOfRanksLoadsWhatAnyOtherSaved) {
  const TemporaryFolder folder;
  const Placement placements[] = {Placement::kBlock, Placement::kCyclic, Placement::kPermuted};
  for (const Placement saved : placements) {
    const std::string path = save(folder.path(), 4, saved);
    EXPECT_EQ(path, folder / "step_00000003");
    for (const int ranks : {1, 2, 3, 4})
      for (const Placement placement : placements) expect_good(load(path, ranks, placement));
  }
  expect_good(load(save(folder.path(), 1, Placement::kBlock), 3));
}

TEST(Checkpoint, TheSameBytesWhateverTheRanksAndThePlacement) {
  const TemporaryFolder folder;
  const std::string one = save(folder / "one", 1, Placement::kBlock);
  const std::string four = save(folder / "four", 4, Placement::kPermuted);
  const CheckpointManifest a = read_manifest(one);
  const CheckpointManifest b = read_manifest(four);
  ASSERT_EQ(a.files.size(), 7);  // configuration, dense, tokenizer, four of the table
  ASSERT_EQ(b.files.size(), 7);
  for (size_t i = 0; i < a.files.size(); ++i) {
    EXPECT_EQ(a.files[i].name, b.files[i].name);
    EXPECT_EQ(a.files[i].checksum, b.files[i].checksum) << a.files[i].name;
    EXPECT_EQ(file_fault(four, b.files[i]), std::nullopt);
  }
  EXPECT_EQ(a.ranks, 1);
  EXPECT_EQ(b.ranks, 4);
  EXPECT_EQ(b.step, 3);
  const Safetensors last(table_file(four, 3));
  EXPECT_EQ(last.metadata().at("row_begin"), "90");
  EXPECT_EQ(last.metadata().at("row_end"), "101");
  EXPECT_EQ(last.values<int32_t>("reads")[0], 97);
}

TEST(Checkpoint, PartsThatDoNotMakeUpATensorAreABug) {
  const TemporaryFolder folder;
  EXPECT_THROW(run_ranks(2,
                         [&](Communicator& world) {
                           Model model(Placement::kBlock, world.rank(), world.size());
                           CheckpointContents contents = model.contents();
                           if (world.rank() == 1)
                             contents.dense[2].parts[0].bytes = contents.dense[2].parts[0].bytes.first(4);
                           save_checkpoint(world, folder.path(), facts_of(1), contents);
                         }),
               InternalError);
}

TEST(Checkpoint, EmptyTablesAndRanksWithoutRows) {
  const TemporaryFolder folder;
  for (const int64_t rows : {0, 1, 2}) {
    run_ranks(4, [&](Communicator& world) {
      Model model(Placement::kBlock, world.rank(), world.size(), rows);
      model.fill();
      const std::string path = save_checkpoint(world, folder.path(), facts_of(rows), model.contents());
      Model other(Placement::kCyclic, world.rank(), world.size(), rows);
      load_checkpoint(world, path, other.contents());
      EXPECT_EQ(other.wrong(), 0);
    });
  }
}

TEST(Checkpoint, RefusesWhatIsDamaged) {
  const TemporaryFolder folder;
  const std::string path = save(folder.path(), 2, Placement::kCyclic);
  const std::string copy = folder / "copy";
  const struct {
    std::function<void()> damage;
    std::string says;
  } cases[] = {
      {[&] { fs::resize_file(table_file(copy, 2), 100); }, "has 100 bytes, expected"},
      {[&] { alter(table_file(copy, 1), 1); }, table_file(copy, 1) + ": was altered"},
      {[&] { alter(copy + "/dense.safetensors", 20); }, "dense.safetensors: was altered"},
      {[&] { alter(copy + "/config.textproto", 3); }, "config.textproto: was altered"},
      {[&] { fs::remove(table_file(copy, 3)); }, "is missing"},
      {[&] { fs::remove(copy + "/tokenizer.model"); }, "is missing"},
      {[&] { fs::remove(copy + "/manifest.textproto"); }, "not a whole checkpoint"},
      {[&] { alter(copy + "/manifest.textproto", 60); }, "manifest was altered"},
      {[&] { alter(copy + "/manifest.textproto", 3); }, "manifest was altered"},
      {[&] { fs::resize_file(copy + "/manifest.textproto", 150); }, "manifest was altered"},
      {[&] { fs::resize_file(copy + "/manifest.textproto", 0); }, "manifest was altered"},
      {[&] { fs::remove_all(copy); }, "not a whole checkpoint"},
      {[&] {
         CheckpointManifest forged = read_manifest(copy);
         forged.step = -3;
         replace_text(copy + "/manifest.textproto", manifest_text(forged));
       },
       "says step -3"},
  };
  for (const auto& [damage, says] : cases) {
    remove_quietly(copy);
    fs::copy(path, copy);
    expect_good(load(copy, 2));
    damage();
    for (const int ranks : {1, 3}) expect_refused(load(copy, ranks), says);
  }
}

TEST(Checkpoint, RefusesAnotherModel) {
  const TemporaryFolder folder;
  const std::string path = save(folder.path(), 2, Placement::kCyclic);
  std::vector<std::byte> storage(1 << 16);
  const auto bytes = [&](int64_t count) { return std::span(storage).first(static_cast<size_t>(count)); };
  const auto refused = [&](const std::function<void(CheckpointContents&)>& change, const std::string& says) {
    expect_refused(load(path, 2, Placement::kCyclic, change), says);
  };
  refused(
      [&](auto& c) {
        c.dense[0] = {{"weights", DType::kF32, {3, 5}}, {{0, bytes(60)}}};
      },
      "weights is F32 (3, 4), the model's is F32 (3, 5)");
  refused(
      [&](auto& c) {
        c.dense[0] = {{"weights", DType::kI32, {3, 4}}, {{0, bytes(48)}}};
      },
      "the model's is I32 (3, 4)");
  refused([&](auto& c) { c.dense.push_back({{"bias", DType::kF32, {2}}, {{0, bytes(8)}}}); }, "holds no tensor bias");
  refused([&](auto& c) { c.dense.pop_back(); }, "the model has no tensor cut");
  refused([&](auto& c) { c.tables[0].name = "other"; }, "holds no table other");
  refused([&](auto& c) { c.tables.clear(); }, "the model has no table layers.2/memory");
  refused([&](auto& c) { c.tables[0].rows = 102; }, "has 101 rows, the model's has 102");
  refused([&](auto& c) { c.tables[0].tensors.pop_back(); }, "has no reads");
  refused([&](auto& c) { c.tables[0].tensors[0].name = std::string("v"); }, "holds no v");
  refused([&](auto& c) { c.tables[0].tensors[0].dtype = DType::kF16; },
          "BF16 with 5 columns, the model's is F16 with 5");

  // Without `exact`, what the model does not ask for is left alone.
  const auto fewer = [](CheckpointContents& c) { c.tables[0].tensors.pop_back(); };
  const auto outcome = load(path, 2, Placement::kCyclic, fewer, {.exact = false});
  for (const std::string& message : outcome) EXPECT_EQ(message, "wrong elements");  // "reads" stays as it was
}

TEST(Checkpoint, RowsThatNobodyOwnsAreOurBug) {
  const TemporaryFolder folder;
  SelfCommunicator world;
  Model model(Placement::kBlock, 0, 1);
  CheckpointContents contents = model.contents();
  contents.tables[0].global_row = [](int64_t row) { return row == 7 ? 8 : row; };
  EXPECT_THROW(save_checkpoint(world, folder.path(), facts_of(1), contents), InternalError);
  EXPECT_EQ(latest_checkpoint(folder.path()), std::nullopt);
}

TEST(Checkpoint, KeepsTheLastOnes) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "step_00000099");  // no manifest: neither counted nor removed
  fs::create_directories(folder / "step_x");
  for (const int64_t step : {9, 10, 100}) save(folder.path(), 2, Placement::kBlock, step, {.keep = 2});
  EXPECT_EQ(list_checkpoints(folder.path()),
            (std::vector<std::string>{folder / "step_00000010", folder / "step_00000100"}));
  EXPECT_EQ(latest_checkpoint(folder.path()), folder / "step_00000100");
  EXPECT_EQ(find_checkpoint(folder.path()), folder / "step_00000100");
  EXPECT_EQ(find_checkpoint(folder / "step_00000010"), folder / "step_00000010");
  EXPECT_THROW(find_checkpoint(folder / "step_00000099"), UserError);
  EXPECT_THROW(find_checkpoint(folder / "nowhere"), UserError);
  prune_checkpoints(folder.path(), 0);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 2);
  remove_quietly(folder / "step_00000100/manifest.textproto");
  prune_checkpoints(folder.path(), 1);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 1);
  EXPECT_THROW(latest_checkpoint(folder.path()), UserError);  // to fall back is the user's decision
}

TEST(Checkpoint, ReplacesOneOfTheSameStep) {
  const TemporaryFolder folder;
  const std::string path = save(folder.path(), 2, Placement::kBlock);
  alter(table_file(path, 0), 1);
  EXPECT_EQ(save(folder.path(), 3, Placement::kCyclic), path);
  expect_good(load(path, 2));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

// A process that dies in the middle of writing rows.
TEST(CheckpointDeathTest, AKilledSaveLeavesTheFormerOne) {
  const TemporaryFolder folder;
  const std::string former = save(folder.path(), 2, Placement::kBlock, 3);
  const auto die = [&] {
    SelfCommunicator world;
    Model model(Placement::kCyclic, 0, 1);
    CheckpointContents contents = model.contents();
    contents.tables[0].global_row = [](int64_t row) {
      if (row == 50) raise(SIGKILL);
      return row;
    };
    save_checkpoint(world, folder.path(), facts_of(4), contents);
  };
  EXPECT_EXIT(die(), testing::KilledBySignal(SIGKILL), "");
  EXPECT_TRUE(fs::exists(folder / ".step_00000004.tmp/dense.safetensors"));
  EXPECT_EQ(latest_checkpoint(folder.path()), former);
  expect_good(load(former, 1));
  const std::string next = save(folder.path(), 2, Placement::kBlock, 5);
  EXPECT_FALSE(fs::exists(folder / ".step_00000004.tmp"));
  EXPECT_EQ(latest_checkpoint(folder.path()), next);
}

// What saving on two ranks said, with files limited to so many bytes: as a full disk, but only for this process.
std::vector<std::string> save_with_limit(const std::string& folder, rlim_t limit) {
  rlimit former{};
  getrlimit(RLIMIT_FSIZE, &former);
  const rlimit small{limit, former.rlim_max};
  auto* handler = signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  std::vector<std::string> said(2);
  run_ranks(2, [&](Communicator& world) {
    Model model(Placement::kCyclic, world.rank(), world.size());
    model.fill();
    try {
      save_checkpoint(world, folder, facts_of(4), model.contents(), kSmallFiles);
    } catch (const UserError& error) {
      said[static_cast<size_t>(world.rank())] = error.what();
    }
  });
  setrlimit(RLIMIT_FSIZE, &former);
  signal(SIGXFSZ, handler);
  return said;
}

TEST(Checkpoint, AFullDiskLeavesTheFormerOnes) {
  const TemporaryFolder folder;
  const std::string former = save(folder.path(), 2, Placement::kBlock, 3);
  expect_refused(save_with_limit(folder.path(), 600), "ulimit -f");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);  // no temporary folder
  expect_good(load(former, 2));
}

TEST(Checkpoint, AnUnwritableFolderIsTheUsersMistake) {
  const TemporaryFolder folder;
  replace_text(folder / "file", "in the way");
  run_ranks(2, [&](Communicator& world) {
    Model model(Placement::kCyclic, world.rank(), world.size());
    EXPECT_THROW(save_checkpoint(world, folder / "file/checkpoints", facts_of(4), model.contents()), UserError);
  });
  EXPECT_EQ(read_text(folder / "file"), "in the way");
}

// docs/checkpoints.md shows this script: anyone with numpy can read a table.
TEST(Checkpoint, PythonOpensATable) {
  const TemporaryFolder folder;
  const std::string path = save(folder.path(), 3, Placement::kPermuted);
  std::string python;
  for (const std::string candidate : {"python3", "/usr/bin/python3"})
    if (python.empty() && std::system((candidate + " -c 'import numpy' 2>/dev/null").c_str()) == 0) python = candidate;
  if (python.empty()) GTEST_SKIP() << "NOT TESTED: no python3 with numpy; install python3-numpy";
  const std::string out = folder / "out";
  const std::string command =
      fmt::format("{} {}/open_table.py {} layers.2_memory > {}", python, PKMESH_TEST_FOLDER, path, out);
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  EXPECT_EQ(read_text(out),
            "m (101, 5) float32 first 0 last 100004\n"
            "reads (101, 1) int32 first 7 last 107\n"
            "values (101, 5) float32 first 0 last 612\n");
}

}  // namespace
}  // namespace pkmesh
