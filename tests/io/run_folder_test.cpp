// SPDX-License-Identifier: Apache-2.0
#include "io/run_folder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "runtime/check.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

const RunDescription kDescription = {{"pkmesh", "train", "--out", "x"}, {{"a", "b"}, {0, 0, 1}}};

std::string refusal(const std::string& path, bool resume) {
  try {
    RunFolder(path, resume).begin("model {}\n", kDescription);
    return "accepted";
  } catch (const UserError& error) {
    return error.what();
  }
}

TEST(RunFolder, DescribesTheRun) {
  const TemporaryFolder folder;
  RunFolder run(folder / "runs/one", false);
  run.begin("model {}\n", kDescription);
  EXPECT_FALSE(run.resumed());
  EXPECT_EQ(read_text(run.config()), "model {}\n");
  for (const std::string& made : {run.tensorboard(), run.checkpoints()}) EXPECT_TRUE(fs::is_directory(made));
  const auto json = nlohmann::json::parse(read_text(run.description()));
  EXPECT_EQ(json["version"], program_version());
  EXPECT_EQ(json["command"][1], "train");
  EXPECT_EQ(json["ranks"], 3);
  EXPECT_EQ(json["hosts"][0]["ranks"], 2);
  EXPECT_EQ(json["hosts"][1]["name"], "b");
  EXPECT_EQ(json["started"].get<std::string>().size(), 20);
  EXPECT_FALSE(json.contains("resumed"));
}

TEST(RunFolder, AnotherRunIsNotWrittenOver) {
  const TemporaryFolder folder;
  RunFolder(folder / "run", false).begin("first\n", kDescription);
  EXPECT_NE(refusal(folder / "run", false).find("--resume auto"), std::string::npos);
  EXPECT_EQ(read_text(folder / "run/config.textproto"), "first\n");
  {
    RunFolder again(folder / "run", true);
    EXPECT_EQ(read_text(again.config()), "first\n");
    again.begin("second\n", kDescription);
    EXPECT_TRUE(again.resumed());
    EXPECT_EQ(read_text(again.config()), "second\n");
    EXPECT_EQ(nlohmann::json::parse(read_text(again.description()))["resumed"].size(), 1);
  }

  make_folder(folder / "other");
  replace_text(folder / "other/thesis.tex", "x");
  for (const bool resume : {false, true})
    EXPECT_NE(refusal(folder / "other", resume).find("is no run"), std::string::npos);
  for (const char* text : {"[torn", "{}", R"({"resumed": {"a": 1}})", R"({"resumed": "x"})"}) {
    replace_text(folder / "run/run.json", text);
    EXPECT_NE(refusal(folder / "run", true).find("does not describe a run"), std::string::npos) << text;
  }
  EXPECT_EQ(read_text(folder / "run/config.textproto"), "second\n");
  make_folder(folder / "empty");
  EXPECT_EQ(refusal(folder / "empty", true), "accepted");
}

TEST(RunFolder, IsOneProcessesAtATime) {
  const TemporaryFolder folder;
  {
    const RunFolder first(folder / "run", false);
    replace_text(first.path() + "/built-in.txt", "x");
    for (const bool resume : {false, true})
      EXPECT_NE(refusal(folder / "run", resume).find("another pkmesh"), std::string::npos);
    EXPECT_TRUE(fs::exists(folder / "run/built-in.txt"));
  }
  EXPECT_EQ(refusal(folder / "run", false), "accepted");
}

// A process that is killed runs no destructor: a copy of what it had made stands for what it leaves.
TEST(RunFolder, OneThatEndedBeforeItBeganIsBegunAnew) {
  const TemporaryFolder folder;
  {
    const RunFolder first(folder / "run", true);
    replace_text(first.path() + "/built-in.txt", "x");
    make_folder(first.path() + "/tokens.partial");
    fs::copy(folder / "run", folder / "killed", fs::copy_options::recursive);
  }
  EXPECT_FALSE(fs::exists(folder / "run"));
  {
    RunFolder again(folder / "killed", true);
    EXPECT_FALSE(again.resumed());
    EXPECT_FALSE(fs::exists(folder / "killed/built-in.txt"));
    EXPECT_FALSE(fs::exists(folder / "killed/tokens.partial"));
    again.begin("model {}\n", kDescription);
  }
  EXPECT_TRUE(fs::exists(folder / "killed/run.json"));
  {
    const RunFolder first(folder / "other", true);
    replace_text(first.path() + "/train.log", "x");
    replace_text(first.path() + "/thesis.tex", "x");
    fs::copy(folder / "other", folder / "mine", fs::copy_options::recursive);
  }
  EXPECT_NE(refusal(folder / "mine", true).find("is no run"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder / "mine/thesis.tex"));
  EXPECT_TRUE(fs::exists(folder / "other/thesis.tex"));

  {
    const RunFolder first(folder / "tokens", true);
    make_folder(first.path() + "/tokens");
    fs::copy(folder / "tokens", folder / "a_users", fs::copy_options::recursive);
    replace_text(first.path() + "/built-in.txt", "x");
    fs::copy(folder / "tokens", folder / "built_in", fs::copy_options::recursive);
  }
  EXPECT_NE(refusal(folder / "a_users", true).find("is no run"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder / "a_users/tokens"));
  EXPECT_EQ(refusal(folder / "built_in", true), "accepted");
  EXPECT_FALSE(fs::exists(folder / "built_in/tokens"));

  replace_text(folder / "killed/more", "x");
  const std::vector<std::string> left = {"checkpoints", "config.textproto", "more", "run.json", "tb"};
  EXPECT_EQ(list_folder(folder / "killed"), left);
  EXPECT_EQ(refusal(folder / "killed", true), "accepted");
  EXPECT_TRUE(fs::exists(folder / "killed/more"));
}

TEST(RunFolder, ArgumentsMayBeAnyBytes) {
  const TemporaryFolder folder;
  RunFolder(folder / "run", false).begin("", {{"pkmesh", "a\xFF"}, {{"a"}, {0}}});
  EXPECT_EQ(nlohmann::json::parse(read_text(folder / "run/run.json"))["command"][1], "a\xEF\xBF\xBD");
}

TEST(RunFolder, WhatCannotBeWrittenLeavesNothing) {
  const TemporaryFolder folder;
  replace_text(folder / "file", "x");
  EXPECT_NE(refusal(folder / "file", false).find("is no run"), std::string::npos);
  EXPECT_NE(refusal(folder / "file/run", false).find("cannot be written"), std::string::npos);
  for (const char* name : {"link", "link/", "link/run"}) {
    fs::create_symlink(folder / "nowhere", folder / "link");
    EXPECT_NE(refusal(folder / name, false).find("is a link to what is not there"), std::string::npos) << name;
    EXPECT_TRUE(fs::remove(folder / "link")) << "the user's own";
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(RunFolder, ARunThatNeverBeganLeavesNothing) {
  const TemporaryFolder folder;
  make_folder(folder / "empty");
  for (const char* name : {"a/b/run", "empty"}) {
    const RunFolder run(folder / name, false);
    replace_text(run.path() + "/built-in.txt", "x");
  }
  EXPECT_FALSE(fs::exists(folder / "a"));
  EXPECT_TRUE(fs::is_empty(folder / "empty"));
  {
    const RunFolder run(folder / "shared/mine", false);
    RunFolder(folder / "shared/other", false).begin("", kDescription);
  }
  EXPECT_FALSE(fs::exists(folder / "shared/mine"));
  EXPECT_TRUE(fs::exists(folder / "shared/other/run.json"));
  { const RunFolder run(folder / "shared/other", true); }
  EXPECT_TRUE(fs::exists(folder / "shared/other/run.json"));
}

}  // namespace
}  // namespace pkmesh
