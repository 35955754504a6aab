// SPDX-License-Identifier: Apache-2.0
#include "io/config_schema.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "io/config.h"
#include "io/embedded.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

using config::Config;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << path;
  return text.str();
}

TEST(Presets, AllLoad) {
  const std::vector<Preset> presets = list_presets();
  ASSERT_EQ(presets.size(), 14U);
  for (const Preset& preset : presets) {
    EXPECT_GT(preset.summary.size(), 10U) << preset.name;
    const Config c = load_config(std::string(preset.name));
    const bool memory = preset.name.find("-dense") == std::string_view::npos;
    EXPECT_EQ(c.model().memory_size(), memory ? 1 : 0) << preset.name;
    EXPECT_EQ(read(std::string(PKMESH_SOURCE_DIR) + "/launcher/configs/" + std::string(preset.name) + ".textproto"),
              preset.text);
  }
  const Config paper = load_config("paper-16x1600");
  EXPECT_EQ(paper.model().layers(), 16);
  EXPECT_EQ(paper.model().width(), 1600);
  EXPECT_EQ(paper.model().memory(0).key_width(), 512);
}

TEST(Presets, BuiltInText) {
  EXPECT_EQ(built_in_text(), read(std::string(PKMESH_SOURCE_DIR) + "/LICENSE"));
  const Config debug = load_config("debug");
  EXPECT_GT(static_cast<int64_t>(built_in_text().size()), 100 * (debug.model().context() + 1));
}

TEST(Schema, EveryOptionIsDescribed) {
  config::Config everything = load_config("debug");
  config::visit_options(everything, "",
                        [](const std::string& key, const google::protobuf::Message&, const config::Field& f) {
                          EXPECT_FALSE(config::comment(f.full_name()).empty()) << key;
                          const bool number = f.cpp_type() == config::Field::CPPTYPE_INT32 ||
                                              f.cpp_type() == config::Field::CPPTYPE_INT64 ||
                                              f.cpp_type() == config::Field::CPPTYPE_DOUBLE;
                          EXPECT_EQ(!config::limits_text(f).empty(), number) << key;
                          const std::string help = option_help(key);
                          EXPECT_NE(help.find(config::comment(f.full_name())), std::string::npos) << help;
                        });
}

TEST(Schema, Help) {
  EXPECT_EQ(option_help("train.steps"),
            "train.steps (whole number, 1 to 1000000000; default: 100000)\nUpdates of the parameters.\n");
  EXPECT_NE(option_help("model.norm").find("PRE_LN "), std::string::npos);
  EXPECT_NE(option_help("model.memory.0.heads").find("default: 4"), std::string::npos);
  EXPECT_NE(option_help("model.memory.heads").find("default: 4"), std::string::npos);
  EXPECT_NE(option_help("").find("model.memory.N.neighbours"), std::string::npos);
  EXPECT_NE(option_help("model.memory").find("model.memory.N.neighbours"), std::string::npos);
  EXPECT_THROW(option_help("model.heds"), UserError);
  EXPECT_THROW(option_help("train.steps.x"), UserError);
}

TEST(Schema, PageIsFresh) {
  EXPECT_TRUE(read(std::string(PKMESH_SOURCE_DIR) + "/docs/configuration.md") == configuration_markdown())
      << "docs/configuration.md is stale: pkmesh config --markdown > docs/configuration.md";
}

TEST(Schema, Nearest) {
  EXPECT_EQ(config::nearest("heds", {"layers", "heads", "width"}), "heads");
  EXPECT_EQ(config::nearest("WIDHT", {"layers", "heads", "width"}), "width");
  EXPECT_EQ(config::nearest("xyzzy", {"layers", "heads", "width"}), "");
  EXPECT_EQ(config::nearest("", {"a", "bc"}), "");
}

}  // namespace
}  // namespace pkmesh
