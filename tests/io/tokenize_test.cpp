// SPDX-License-Identifier: Apache-2.0
#include "io/tokenize.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "io/file.h"
#include "runtime/check.h"
#include "tests/io/some_text.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

TokenizeOptions options_for(const TemporaryFolder& folder, const std::string& input, const std::string& out) {
  TokenizeOptions options;
  options.inputs = {folder / input};
  options.folder = folder / out;
  options.vocabulary_size = 400;
  options.validation_share = 0.1;
  options.training_bytes = 30000;
  options.threads = 2;
  return options;
}

std::string decoded(const std::string& folder, const std::string& split) {
  const auto tokenizer = load_tokenizer(folder);
  const Tokens tokens = Tokens::open(folder, split, tokenizer->hash());
  tokens.verify();
  std::vector<int32_t> ids(static_cast<size_t>(tokens.count()));
  tokens.read(0, ids);
  return tokenizer->decode(ids);
}

std::vector<std::string> sorted_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  std::ranges::sort(lines);
  return lines;
}

// Every file of a folder with its content.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename().string()] = read_text(entry.path().string());
  return files;
}

std::string error_of(const TokenizeOptions& options) {
  try {
    tokenize(options);
  } catch (const UserError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(Tokenize, TrainAndValidPartTheText) {
  const TemporaryFolder folder;
  const std::string text = some_text(3000);
  replace_text(folder / "text", text);
  for (const auto kind : {TokenizerKind::kSentencePiece, TokenizerKind::kByte}) {
    auto options = options_for(folder, "text", kind == TokenizerKind::kByte ? "bytes" : "pieces");
    options.kind = kind;
    const TokenizeSummary summary = tokenize(options);
    const std::string train = decoded(options.folder, "train");
    const std::string valid = decoded(options.folder, "valid");
    EXPECT_EQ(sorted_lines(train + valid), sorted_lines(text));
    EXPECT_EQ(summary.train.text.bytes, static_cast<int64_t>(train.size()));
    EXPECT_EQ(summary.valid.text.bytes, static_cast<int64_t>(valid.size()));
    EXPECT_EQ(summary.train.text.words + summary.valid.text.words, text_size(text).words);
    EXPECT_GT(valid.size(), text.size() / 30);
    EXPECT_LT(valid.size(), text.size() / 4);
    EXPECT_FALSE(fs::exists(options.folder + ".partial"));
    EXPECT_TRUE(fs::exists(options.folder + "/corpus.json"));
  }
}

TEST(Tokenize, SeparatorsStandWhereTextIsNotContinuous) {
  const TemporaryFolder folder;
  replace_text(folder / "a", "first\n");
  replace_text(folder / "b", "second\n");
  auto options = options_for(folder, "a", "out");
  options.inputs.push_back(folder / "b");
  options.kind = TokenizerKind::kByte;
  options.validation_share = 0;
  tokenize(options);
  const Tokens tokens = Tokens::open(options.folder, "train");
  std::vector<int32_t> ids(static_cast<size_t>(tokens.count()));
  tokens.read(0, ids);
  const std::vector<int32_t> expected = {256, 'f', 'i', 'r', 's', 't', '\n', 256, 's', 'e', 'c', 'o', 'n', 'd', '\n'};
  EXPECT_EQ(ids, expected);
  EXPECT_EQ(Tokens::open(options.folder, "valid").count(), 0);

  // Each seam of a split has its separator: between them stands text that is continuous in the original.
  const std::string text = some_text(2000);
  replace_text(folder / "a", text);
  options = options_for(folder, "a", "seams");
  options.kind = TokenizerKind::kByte;
  tokenize(options);
  for (const char* split : {"train", "valid"}) {
    const Tokens seams = Tokens::open(options.folder, split);
    ids.resize(static_cast<size_t>(seams.count()));
    seams.read(0, ids);
    ASSERT_EQ(ids[0], 256);
    ids.push_back(256);
    std::string piece;
    for (size_t i = 1; i < ids.size(); ++i) {
      if (ids[i] != 256) {
        piece.push_back(static_cast<char>(ids[i]));
        continue;
      }
      ASSERT_NE(text.find(piece), std::string::npos);
      piece.clear();
    }
  }
}

TEST(Tokenize, TheResultDependsNeitherOnThreadsNorOnCompression) {
  const TemporaryFolder folder;
  const std::string text = some_text(3000);
  replace_text(folder / "text", text);
  auto options = options_for(folder, "text", "one");
  options.threads = 1;
  tokenize(options);
  const auto one = contents(options.folder);
  for (const int threads : {2, 5}) {
    options.threads = threads;
    options.folder = folder / std::to_string(threads);
    tokenize(options);
    EXPECT_EQ(contents(options.folder), one) << threads;
  }
  auto other_seed = options;
  other_seed.seed = 2;
  other_seed.folder = folder / "seed";
  tokenize(other_seed);
  EXPECT_NE(contents(other_seed.folder)["valid-00000.tok"], one.at("valid-00000.tok"));

  write_gzip(folder / "text.gz", text);
  auto zipped = options_for(folder, "text.gz", "zipped");
  tokenize(zipped);
  EXPECT_EQ(sorted_lines(decoded(zipped.folder, "train") + decoded(zipped.folder, "valid")), sorted_lines(text));
}

TEST(Tokenize, ShardsTogetherAreTheOneShard) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(1000));
  const auto whole = options_for(folder, "text", "whole");
  auto sharded = options_for(folder, "text", "sharded");
  sharded.shard_tokens = 1777;
  tokenize(whole);
  const TokenizeSummary summary = tokenize(sharded);
  EXPECT_GT(summary.train.shards, 3);
  EXPECT_EQ(decoded(whole.folder, "train"), decoded(sharded.folder, "train"));
  const auto is_train = [](const std::string& name) { return name.starts_with("train-"); };
  EXPECT_EQ(std::ranges::count_if(list_folder(sharded.folder), is_train), summary.train.shards);
}

TEST(Tokenize, TakesAnotherFoldersTokenizer) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(1000));
  replace_text(folder / "other", "other words altogether\n");
  const auto first = options_for(folder, "text", "first");
  auto second = options_for(folder, "other", "second");
  second.tokenizer_folder = first.folder;
  const TokenizeSummary summary = tokenize(first);
  EXPECT_EQ(tokenize(second).tokenizer_hash, summary.tokenizer_hash);
  EXPECT_EQ(decoded(second.folder, "train"), "other words altogether\n");
}

TEST(Tokenize, ASmallCorpusStillGetsValidation) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(60));
  auto options = options_for(folder, "text", "out");
  options.validation_share = 0.0001;
  EXPECT_GT(tokenize(options).valid.tokens, 0);
  options.folder = folder / "all";
  options.validation_share = 0.999;
  EXPECT_GT(tokenize(options).train.tokens, 0);
}

TEST(Tokenize, ReadsStandardInput) {
  const TemporaryFolder folder;
  const std::string text = some_text(100);
  replace_text(folder / "text", text);
  const int saved = ::dup(STDIN_FILENO);
  const int file = ::open((folder / "text").c_str(), O_RDONLY);
  ::dup2(file, STDIN_FILENO);
  auto options = options_for(folder, "text", "out");
  options.inputs = {"-"};
  options.validation_share = 0;
  tokenize(options);
  ::dup2(saved, STDIN_FILENO);
  ::close(saved);
  ::close(file);
  EXPECT_EQ(decoded(options.folder, "train"), text);
  EXPECT_FALSE(fs::exists(options.folder + "/stdin"));
}

TEST(Tokenize, ReportsProgress) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(1000));
  auto options = options_for(folder, "text", "out");
  std::map<std::string, int64_t> done;
  const auto size = static_cast<int64_t>(fs::file_size(folder / "text"));
  options.progress = [&](const TokenizeProgress& progress) {
    EXPECT_GE(progress.done, done[progress.phase]);
    EXPECT_EQ(progress.total, size);
    done[progress.phase] = progress.done;
  };
  tokenize(options);
  EXPECT_EQ(done, (std::map<std::string, int64_t>{{"reading", size}, {"learning", size}, {"encoding", size}}));
}

TEST(Tokenize, MistakesLeaveNothingBehind) {
  const TemporaryFolder folder;
  const std::string text = some_text(1000);
  replace_text(folder / "text", text);
  replace_text(folder / "empty", "");
  replace_text(folder / "newlines", "\n\n\n");
  write_gzip(folder / "empty.gz", "");
  write_gzip(folder / "cut.gz", text);
  fs::resize_file(folder / "cut.gz", fs::file_size(folder / "cut.gz") - 100);
  fs::create_directory(folder / "folder");
  const auto before = std::distance(fs::directory_iterator(folder.path()), {});
  const auto expect = [&](const std::string& error, const char* words) {
    EXPECT_NE(error.find(words), std::string::npos) << error;
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), before) << error;
  };
  expect(error_of(options_for(folder, "absent", "out")), "No such file");
  expect(error_of(options_for(folder, "folder", "out")), "irectory");
  expect(error_of(options_for(folder, "empty", "out")), "empty");
  expect(error_of(options_for(folder, "empty.gz", "out")), "empty");
  expect(error_of(options_for(folder, "newlines", "out")), "newlines: holds no text");
  expect(error_of(options_for(folder, "cut.gz", "out")), "truncated");
  auto options = options_for(folder, "text", "out");
  options.vocabulary_size = 10;
  expect(error_of(options), "at least");
  options = options_for(folder, "text", "out");
  options.tokenizer_folder = folder / "folder";
  expect(error_of(options), "tokenizer.json");
  options = options_for(folder, "text", "out");
  options.validation_share = 1;
  expect(error_of(options), "share");
  options = options_for(folder, "text", "out");
  options.inputs = {};
  expect(error_of(options), "--input");
}

// What would be learnt as noise.
TEST(Tokenize, RefusesWhatIsNoText) {
  const TemporaryFolder folder;
  const struct {
    std::string start;
    const char* says;
  } cases[] = {{"\xFF\xFEt\0e\0", "iconv -f utf-16"},
               {std::string("\xFF\xFE\0\0t\0\0\0", 8), "iconv -f utf-32"},
               {std::string("\0\0\xFE\xFF\0\0\0t", 8), "iconv -f utf-32"},
               {"\xFE\xFF\0t", "iconv -f utf-16"},
               {"\xFD"
                "7zXZ\0",
                "xz -dc"},
               {"\x28\xB5\x2F\xFD", "zstd -dc"},
               {"BZh9", "bzip2 -dc"},
               {"PK\x03\x04", "unzip -p"}};
  for (const auto& [start, says] : cases) {
    const std::string text = start + some_text(200);
    replace_text(folder / "plain", text);
    write_gzip(folder / "zipped", text);
    for (const char* name : {"plain", "zipped"}) {
      const std::string error = error_of(options_for(folder, name, "out"));
      EXPECT_NE(error.find(says), std::string::npos) << error;
    }
  }
  replace_text(folder / "text.gz", some_text(200));
  EXPECT_NE(error_of(options_for(folder, "text.gz", "out")).find("is none"), std::string::npos);
  replace_text(folder / "empty.gz", "");
  EXPECT_NE(error_of(options_for(folder, "empty.gz", "out")).find("is none"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_NE(error_of(options_for(folder, "pipe", "out")).find("standard input"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "out"));
  EXPECT_FALSE(fs::exists(folder / "out.partial"));

  replace_text(folder / "nearly", some_text(1000) + "caf\xE9\n");
  EXPECT_EQ(tokenize(options_for(folder, "nearly", "out")).raw_bytes, 1);
}

// Archives in one file are one text; nothing of it is lost behind a damaged one, wherever the damage and the seams lie.
TEST(Tokenize, ReadsEveryMemberOfAnArchive) {
  const TemporaryFolder folder;
  const std::string text = some_text(2000);
  write_gzip(folder / "one.gz", text);
  const std::string one = read_text(folder / "one.gz");
  const auto error = [&](const std::string& bytes) {
    replace_text(folder / "in.gz", bytes);
    fs::remove_all(folder / "out");
    return error_of(options_for(folder, "in.gz", "out"));
  };
  const auto size = [&] { return decoded(folder / "out", "train").size() + decoded(folder / "out", "valid").size(); };
  write_gzip(folder / "nothing.gz", "");
  const std::string nothing = read_text(folder / "nothing.gz");
  ASSERT_EQ(error(nothing + one + nothing + one + std::string(700000, '\0')), "no error");
  EXPECT_EQ(size(), 2 * text.size());

  const std::string end = fmt::format("its first {} bytes", one.size());
  for (const size_t at : {0, 1}) {  // in both halves of the mark, with little and with much behind it
    std::string damaged = one;
    damaged[at] ^= 1;
    EXPECT_NE(error(one + damaged + one).find(end), std::string::npos);
    EXPECT_NE(error(one + damaged).find(end), std::string::npos);
  }
  for (const std::string& rest : {std::string("\n"), std::string("\0x", 2), std::string(600000, 'x'), one.substr(1)})
    EXPECT_NE(error(one + rest).find("no archive"), std::string::npos);
  for (const size_t kept : {size_t{5}, one.size() / 2, one.size() - 1})
    EXPECT_NE(error(one + one.substr(0, kept)).find("truncated"), std::string::npos);
  for (const size_t at : {size_t{2}, one.size() / 2, one.size() - 2}) {
    std::string damaged = one;
    damaged[at] ^= 1;
    EXPECT_NE(error(one + damaged + one).find("damaged at byte"), std::string::npos);
  }
  // A seam on either side of where a piece of the file ends: a file name makes a member as long as one likes.
  for (size_t length = (1 << 18) - 2; length <= (1 << 18) + 2; ++length) {
    std::string named = one;
    constexpr size_t kFlags = 3;
    constexpr char kHasName = 8;
    named[kFlags] = kHasName;
    named.insert(10, std::string(length - one.size() - 1, 'n') + '\0');
    ASSERT_EQ(error(named + one), "no error") << length;
    EXPECT_EQ(size(), 2 * text.size());
  }
}

TEST(Tokenize, WritesThroughLinksButNotIntoTheCurrentFolder) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(100));
  fs::create_directory(folder / "real");
  fs::create_symlink(folder / "real", folder / "link");
  EXPECT_EQ(error_of(options_for(folder, "text", "link")), "no error");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::exists(folder / "real/corpus.json"));
  fs::create_symlink(folder / "nowhere", folder / "dangling");
  for (const char* out : {"dangling", "dangling/out"}) {
    auto options = options_for(folder, "text", out);
    options.progress = [](const TokenizeProgress&) { ADD_FAILURE() << "work that would be lost"; };
    EXPECT_NE(error_of(options).find("dangling: is a link to what is not there"), std::string::npos) << out;
  }
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));

  fs::create_directory(folder / "here");
  const fs::path before = fs::current_path();
  fs::current_path(folder / "here");
  auto options = options_for(folder, "text", "here");
  options.folder = ".";
  EXPECT_NE(error_of(options).find("current folder"), std::string::npos);
  fs::current_path(before);
  EXPECT_FALSE(fs::exists(folder / "here.partial"));
}

TEST(Tokenize, TwoAtOnceDoNotMix) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(1000));
  auto options = options_for(folder, "text", "out");
  std::string second;
  options.progress = [&](const TokenizeProgress& progress) {
    if (second.empty() && progress.phase == std::string("encoding"))
      second = error_of(options_for(folder, "text", "out"));
  };
  EXPECT_EQ(error_of(options), "no error");
  EXPECT_NE(second.find("another pkmesh"), std::string::npos) << second;
  EXPECT_FALSE(decoded(options.folder, "train").empty());
}

TEST(Tokenize, OverwritesNothing) {
  const TemporaryFolder folder;
  replace_text(folder / "text", some_text(100));
  const auto options = options_for(folder, "text", "out");
  fs::create_directory(folder / "out");
  replace_text(folder / "out/mine", "mine");
  EXPECT_NE(error_of(options).find("not an empty folder"), std::string::npos);
  EXPECT_EQ(contents(options.folder), (std::map<std::string, std::string>{{"mine", "mine"}}));
  fs::remove(folder / "out/mine");

  replace_text(folder / "out.partial", "mine");
  EXPECT_NE(error_of(options).find("in the way"), std::string::npos);
  EXPECT_EQ(read_text(folder / "out.partial"), "mine");
  fs::remove(folder / "out.partial");
  fs::create_directory(folder / "out.partial");
  replace_text(folder / "out.partial/mine", "mine");
  EXPECT_NE(error_of(options).find("in the way"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder / "out.partial/mine"));
  fs::rename(folder / "out.partial/mine", folder / "out.partial/train-00000.tok.tmp");
  EXPECT_EQ(error_of(options), "no error") << "what an interrupted run left is replaced";
  EXPECT_FALSE(fs::exists(folder / "out.partial"));
}

}  // namespace
}  // namespace pkmesh
