// SPDX-License-Identifier: Apache-2.0
#include "io/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

#include "io/config_schema.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

using config::Config;
using Overrides = std::vector<std::string>;

// The message of the UserError that the text and the overrides give; empty if they are right.
std::string error_of(std::string_view text, const Overrides& overrides = {}) {
  try {
    parse_config(text, "run.textproto", overrides);
  } catch (const UserError& error) {
    return error.what();
  }
  return {};
}

TEST(Config, DefaultsAreComplete) {
  const Config c = parse_config("", "run.textproto");
  EXPECT_EQ(c.model().layers(), 12);
  EXPECT_EQ(c.model().ffn_width(), 4096);
  EXPECT_TRUE(c.model().embedding_norm());
  EXPECT_EQ(c.model().memory_size(), 0);
  EXPECT_DOUBLE_EQ(c.optimizer().learning_rate(), 2.5e-4);
  EXPECT_DOUBLE_EQ(c.values().learning_rate(), 1e-3);
  EXPECT_EQ(c.values().schedule(), config::CONSTANT);
  config::visit_options(c, "", [](const std::string& key, const google::protobuf::Message& m, const config::Field& f) {
    EXPECT_TRUE(m.GetReflection()->HasField(m, &f)) << key;
  });
}

TEST(Config, ResolveDerives) {
  const Config c = parse_config(
      "model { width: 96 heads: 4 norm: PRE_LN memory { layers: [7, 3] output: SWILU value_width: 40 }"
      "  memory { layers: 3 placement: AFTER table: \"shared\" } memory { layers: 0 table: \"shared\" } }",
      "run.textproto");
  EXPECT_EQ(c.model().ffn_width(), 384);
  EXPECT_FALSE(c.model().embedding_norm());
  ASSERT_EQ(c.model().memory_size(), 4);
  const std::vector<std::pair<int, std::string>> expected = {
      {0, "shared"}, {3, "layer3"}, {3, "shared"}, {7, "layer7"}};
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(c.model().memory(i).layers_size(), 1);
    EXPECT_EQ(c.model().memory(i).layers(0), expected[i].first);
    EXPECT_EQ(c.model().memory(i).table(), expected[i].second);
  }
  EXPECT_EQ(c.model().memory(0).value_width(), 96);
  EXPECT_EQ(c.model().memory(1).value_width(), 40);
  EXPECT_EQ(to_text(resolve(c)), to_text(c));
  EXPECT_TRUE(parse_config("model { norm: PRE_LN embedding_norm: true }", "x").model().embedding_norm());
  EXPECT_EQ(parse_config("data { train: \"tokens\" }", "x").data().valid(), "tokens");
  EXPECT_EQ(parse_config("data { train: \"tokens\" valid: \"other\" }", "x").data().valid(), "other");
}

TEST(Config, RoundTrip) {
  for (const Preset& preset : list_presets()) {
    const Config c = load_config(std::string(preset.name));
    const Config again = parse_config(to_text(c), "again");
    EXPECT_EQ(to_text(again), to_text(c));
  }
  const Overrides odd = {"data.train=a \"b\" \\ \xc3\xa9=c", "train.seed=18446744073709551615",
                         "optimizer.learning_rate=0.1234567890123456"};
  const Config c = parse_config("", "x", odd);
  EXPECT_EQ(c.data().train(), "a \"b\" \\ \xc3\xa9=c");
  EXPECT_EQ(c.train().seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(to_text(parse_config(to_text(c), "again")), to_text(c));
}

TEST(Config, ResolvedTextSeesMeaningOnly) {
  const std::string plain = to_text(parse_config("", "a"));
  EXPECT_EQ(to_text(parse_config("# words\nmodel { layers: 12 }", "b")), plain);
  EXPECT_EQ(to_text(resolve(Config())), plain);
  EXPECT_NE(to_text(parse_config("model { layers: 13 }", "a")), plain);
}

TEST(Config, Overrides) {
  const std::string text = "model { memory { layers: 1 } memory { layers: 2 } }";
  const Overrides overrides = {"train.steps=100",
                               "train.steps=200",
                               "model.memory.0.neighbours=16",
                               "model.memory.1.layers=[4,5]",
                               "model.memory.2.layers=6",
                               "model.memory.2.query_norm=LAYER_NORM",
                               "data.train=/some where/tokens",
                               "data.valid=\"quoted\"",
                               "optimizer.learning_rate=1e-5",
                               "model.embedding_norm=false"};
  const Config c = parse_config(text, "x", overrides);
  EXPECT_EQ(c.train().steps(), 200);
  ASSERT_EQ(c.model().memory_size(), 4);
  EXPECT_EQ(c.model().memory(0).neighbours(), 16);
  EXPECT_EQ(c.model().memory(1).layers(0), 4);
  EXPECT_EQ(c.model().memory(2).layers(0), 5);
  EXPECT_EQ(c.model().memory(3).layers(0), 6);
  EXPECT_EQ(c.model().memory(3).query_norm(), config::Memory::LAYER_NORM);
  EXPECT_EQ(c.data().train(), "/some where/tokens");
  EXPECT_EQ(c.data().valid(), "quoted");
  EXPECT_DOUBLE_EQ(c.optimizer().learning_rate(), 1e-5);
  EXPECT_FALSE(c.model().embedding_norm());
  EXPECT_EQ(parse_config(text, "x", Overrides{"model.memory=[]"}).model().memory_size(), 0);
  EXPECT_EQ(parse_config(text, "x", Overrides{"model.memory=[{layers: 9}]"}).model().memory(0).layers(0), 9);
}

struct Mistake {
  std::string text;
  Overrides overrides;
  std::string error;
};

TEST(Config, MistakesInText) {
  const std::string in = "run.textproto:";
  const std::vector<Mistake> mistakes = {
      {"model {\n  heds: 5\n}", {}, in + "2: model.heds: no such option; did you mean model.heads?"},
      {"modle {\n  heads: 5\n}", {}, in + "1: modle: no such option; did you mean model?"},
      {"train {\n  neighbours: 5\n}",
       {},
       in + "2: train.neighbours: no such option; did you mean model.memory.neighbours?"},
      {"data {\n  xyzzy: 5\n}",
       {},
       in + "2: data.xyzzy: no such option; data has source, train, valid, validation_share, seed"},
      {"model {\n  memory { layers: 1 }\n  memory {\n    sub_kyes: 5\n  }\n}",
       {},
       in + "4: model.memory.1.sub_kyes: no such option; did you mean model.memory.1.sub_keys?"},
      {"model {\n  norm: PRELN\n  layers: 3\n}",
       {},
       in + "2: model.norm is PRELN, not one of POST_LN, PRE_LN; did you mean PRE_LN?"},
      {"values {\n\n  schedule: LINEAR }",
       {},
       in + "3: values.schedule is LINEAR, not one of INVERSE_SQRT, COSINE, CONSTANT"},
      {"model { layers: many }", {}, in + "1: model.layers is many; expected a whole number"},
      {"model { norm: 5.5 }", {}, in + "1: model.norm is 5.5, not one of POST_LN, PRE_LN"},
      {"model { layers: 99999999999 }", {}, in + "1: model.layers is out of range (1 to 1024)"},
      {"model { embedding_norm: maybe }", {}, in + "1: model.embedding_norm is maybe; expected true or false"},
      {"data { train: tokens }", {}, in + "1: data.train is text: put it in double quotes"},
      {"train { steps: 5\n steps: 6\n }", {}, in + "2: train.steps is set twice"},
      {"model { embedding_norm: 2 }", {}, in + "1: model.embedding_norm is 2; expected true or false"},
      {"data {\n seed: -1 }", {}, in + "2: data.seed is -1; it must be 0 to 18446744073709551615"},
      {"train {\n seed: 18446744073709551616 }", {}, in + "2: train.seed is out of range (0 to 18446744073709551615)"},
      {"{\"step\": 1}", {}, in + "1: expected the name of an option, got {; is it a configuration?"},
      {"values {\n learning_rate: 1e-400 }",
       {},
       in + "2: values.learning_rate is 1e-400, which is too small: it would be 0"},
      {"values {\n learning_rate: 1e-50 }",
       {},
       in + "2: values.learning_rate is 1e-50; it is too small: rounded to 32 bits it would be 0"},
      {"# a\ntrain {\n  steps: 0\n}", {}, in + "3: train.steps is 0; it must be 1 to 1000000000"},
      {"model {\n dropout: 1 }", {}, in + "2: model.dropout is 1; it must be at least 0, less than 1"},
      {"model {\n dropout: nan }", {}, in + "2: model.dropout is nan; it must be at least 0, less than 1"},
      {"model {\n dropout: 0.99999999 }",
       {},
       in + "2: model.dropout is 0.99999999; it must be at least 0, less than 1 when it is rounded to 32 bits"},
      {"values {\n epsilon: 1e-50 }",
       {},
       in + "2: values.epsilon is 1e-50; it must be more than 0, at most 1 when it is rounded to 32 bits"},
      {"tokenizer {\n character_coverage: 0.9 }",
       {},
       in + "2: tokenizer.character_coverage is 0.9; it must be 0.98 to 1"},
      {"train {\n batch: 8 steps: 0100 }",
       {},
       in + "2: train.steps is 0100, which would be read in base 8; drop the zeros before it"},
      {"# 0100\nmodel { memory {} memory {\n layers: [0, 0x1, 02] } }",
       {},
       in + "3: model.memory.1.layers is 02, which would be read in base 8; drop the zeros before it"},
      {"train {\n bucket_mib: -1 }", {}, in + "2: train.bucket_mib is -1; it must be 0 to 4096"},
      {"train {\n bucket_mib: 1e-9 }", {}, in + "2: train.bucket_mib is 1e-09; it must be at least 0.001, or 0"},
      {"model { memory { layers: 1 layers: -1 } }", {}, in + "1: model.memory.0.layers is -1; it must be 0 to 1023"},
      {"model { memory {\nlayers: 1\nkey_width: 7 } }",
       {},
       in + "3: model.memory.0.key_width is 7; it must be 2 to 65536, a multiple of 2"},
  };
  for (const Mistake& mistake : mistakes) EXPECT_EQ(error_of(mistake.text), mistake.error) << mistake.text;
  EXPECT_NE(error_of("model {").find(in), std::string::npos);
  EXPECT_NE(error_of("model { layers: }").find("model.layers"), std::string::npos);
}

TEST(Config, MistakesInOverrides) {
  const std::string memory = "model { memory { layers: 1 } }";
  const std::vector<Mistake> mistakes = {
      {"", {"train.steps"}, "--set train.steps: expected KEY=VALUE, such as train.steps=100"},
      {"", {"train.stepz=3"}, "--set train.stepz=3: train.stepz: no such option; did you mean train.steps?"},
      {"", {"train.steps=x"}, "--set train.steps=x: train.steps is x; expected a whole number"},
      {"", {"train.steps="}, "--set train.steps=: train.steps needs a value"},
      {"",
       {"train.steps=0100"},
       "--set train.steps=0100: train.steps is 0100, which would be read in base 8; drop the zeros before it"},
      {"", {"train.steps=0"}, "--set train.steps=0: train.steps is 0; it must be 1 to 1000000000"},
      {"train { steps: 7 }", {"train.steps=0"}, "--set train.steps=0: train.steps is 0; it must be 1 to 1000000000"},
      {"",
       {"train.steps=3 batch: 5"},
       "--set train.steps=3 batch: 5: sets more than one option; repeat --set for each"},
      {"", {"train.steps.x=3"}, "--set train.steps.x=3: train.steps is a single option; drop \".x\""},
      {"", {"train=3"}, "--set train=3: train is a group of options; name one, such as train.steps"},
      {memory,
       {"model.memory.0=3"},
       "--set model.memory.0=3: model.memory.0 is a group of options; name one, such as model.memory.0.layers"},
      {memory,
       {"model.memory.heads=3"},
       "--set model.memory.heads=3: model.memory is a list; say which entry, such as model.memory.0.heads"},
      {memory,
       {"model.memory.3.heads=3"},
       "--set model.memory.3.heads=3: model.memory has no entry 3; the next one is model.memory.1"},
      {memory,
       {"model.memory.-1.heads=3"},
       "--set model.memory.-1.heads=3: model.memory is a list; say which entry, such as model.memory.0.layers"},
      {"", {"=5"}, "--set =5: expected KEY=VALUE, such as train.steps=100"},
      {"", {"data.seed=-1"}, "--set data.seed=-1: data.seed is -1; it must be 0 to 18446744073709551615"},
      {"",
       {"values.learning_rate=0.1e-400"},
       "--set values.learning_rate=0.1e-400: values.learning_rate is 0.1e-400, which is too small: it would be 0"},
      {memory,
       {"model.memory.0.heds=3"},
       "--set model.memory.0.heds=3: model.memory.0.heds: no such option; did you mean model.memory.0.heads?"},
      {memory,
       {"model.memory=[{heds: 3}]"},
       "--set model.memory=[{heds: 3}]: model.memory.0.heds: no such option; did you mean model.memory.0.heads?"},
      {"",
       {"model.norm=pre_ln"},
       "--set model.norm=pre_ln: model.norm is pre_ln, not one of POST_LN, PRE_LN; did you mean PRE_LN?"},
  };
  for (const Mistake& mistake : mistakes)
    EXPECT_EQ(error_of(mistake.text, mistake.overrides), mistake.error) << mistake.overrides[0];
}

TEST(Config, OptionsThatDisagree) {
  const std::string small = "model {\n layers: 4 width: 64 heads: 4\n";
  const std::vector<Mistake> mistakes = {
      {"model {\n width: 250\n heads: 4 }",
       {},
       "run.textproto:2: model.width is 250, not a multiple of model.heads (4)"},
      {small + "memory { heads: 2 } }", {}, "run.textproto:3: model.memory.0.layers is empty"},
      {small + "memory { layers: 4 } }",
       {},
       "run.textproto:3: model.memory.0.layers names block 4, but model.layers is 4"},
      {small + "memory { layers: 1\n neighbours: 9 sub_keys: 8 } }",
       {},
       "run.textproto:4: model.memory.0.neighbours is 9, more than model.memory.0.sub_keys (8)"},
      {small + "memory { layers: 1 heads: 65\n neighbours: 1010 sub_keys: 1024 } }",
       {},
       "run.textproto:4: model.memory.0.neighbours is 1010 for each of 65 heads, 65650 in all; at most 65535"},
      {small + "memory { layers: 1\n value_width: 32 } }",
       {},
       "run.textproto:4: model.memory.0.value_width is 32, but output PLAIN needs model.width (64)"},
      {small + "memory { layers: 1\n table: \"a/b\" } }", {}, "run.textproto:4: model.memory.0.table is \"a/b\""},
      {small + "memory { layers: 1 }\n memory { layers: [0, 1] } }",
       {},
       "run.textproto:4: model.memory.1.layers names block 1, where model.memory.0 puts a memory already (REPLACE)"},
      {small + "memory { layers: [1, 1] } }", {}, "run.textproto:3: model.memory.0.layers names block 1, where"},
      {small + "memory { layers: 1 table: \"t\" }\n memory { layers: 2 table: \"t\" sub_keys: 64 } }",
       {},
       "run.textproto:4: model.memory.1.sub_keys is 64, but model.memory.0, which shares table \"t\", has 512"},
      {small + "memory { layers: 1 table: \"t\" }\n memory { layers: 2 table: \"t\" row_type: BF16 } }",
       {},
       "run.textproto:4: model.memory.1.row_type is BF16, but model.memory.0"},
      {small + "memory { layers: 1 table: \"layer2\" }\n memory { layers: 2 sub_keys: 64 } }",
       {},
       "run.textproto:4: model.memory.1.sub_keys is 64, but model.memory.0, which shares table \"layer2\", has 512"},
      {small + "memory { layers: 1 }\n memory { layers: 0\n table: \"layer1\" sub_keys: 64 } }",
       {},
       "run.textproto:5: model.memory.1.sub_keys is 64, but model.memory.0, which shares table \"layer1\", has 512"},
      {small + "memory { layers: [1, 2] }\n memory { layers: 0 table: \"layer2\" } }",
       {"model.memory.1.row_type=BF16"},
       "--set model.memory.1.row_type=BF16: model.memory.1.row_type is BF16, but model.memory.0, which shares table "
       "\"layer2\", has FP32"},
      {"train { batch: 10\n accumulate: 3 }", {}, "run.textproto:1: train.batch is 10, not a multiple of"},
      {"data { source: BUILT_IN }", {}, "run.textproto:1: data.source BUILT_IN is read byte by byte"},
      {"tokenizer { kind: BYTE }\n data { source: BUILT_IN\n train: \"tokens\" }",
       {},
       "run.textproto:3: data.train is tokens, but data.source is BUILT_IN"},
      {"optimizer {\n warmup_steps: 0 }", {}, "run.textproto:2: optimizer.warmup_steps is 0, but INVERSE_SQRT needs"},
      {"values { schedule: COSINE\n warmup_steps: 11 }",
       {"train.steps=10"},
       "run.textproto:2: values.warmup_steps is 11, more than train.steps (10)"},
      {"values {\n moment_type: FP16 }", {}, "run.textproto:2: values.moment_type: FP16 does not reach down"},
      {"optimizer {\n warmup_init: 1 }", {}, "run.textproto:2: optimizer.warmup_init is 1, above"},
      {"values {\n min_learning_rate: 1 }", {}, "run.textproto:2: values.min_learning_rate is 1, above"},
      {"values { algorithm: DENSE_ADAM\n bias_correction: ROW_COUNTER }",
       {},
       "run.textproto:2: values.bias_correction"},
  };
  for (const Mistake& mistake : mistakes) {
    const std::string error = error_of(mistake.text, mistake.overrides);
    EXPECT_TRUE(error.starts_with(mistake.error)) << error;
  }
  EXPECT_EQ(error_of(small + "memory { layers: 1 } memory { layers: 1 placement: AFTER } }"), "");
  EXPECT_EQ(error_of(small + "memory { layers: 1 output: SWILU value_width: 32 } }"), "");
}

TEST(Config, Files) {
  const std::string folder = testing::TempDir() + "config_test." + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  const std::string path = folder + "/run.textproto";
  const auto error = [](const std::string& name) -> std::string {
    try {
      load_config(name);
    } catch (const UserError& e) {
      return e.what();
    }
    return {};
  };
  std::ofstream(path) << "model { layers: 3 }";
  EXPECT_EQ(load_config(path).model().layers(), 3);
  std::ofstream(path) << "\xEF\xBB\xBFmodel { layers: 3 }\r\n";
  EXPECT_EQ(load_config(path).model().layers(), 3);
  std::ofstream(path) << "\xFF\xFEm";
  EXPECT_NE(error(path).find("UTF-16"), std::string::npos);
  std::ofstream(path) << "model { layers: -3 }";
  EXPECT_TRUE(error(path).starts_with(path + ":1: model.layers is -3"));
  std::ofstream(path) << std::string((1 << 20) + 1, '#');
  EXPECT_NE(error(path).find("larger than 1 MiB"), std::string::npos);
  EXPECT_NE(error(folder + "/absent.textproto").find("cannot be opened: No such file"), std::string::npos);
  EXPECT_NE(error(path + "/x").find("cannot be opened: Not a directory"), std::string::npos);
  EXPECT_NE(error(folder).find("is it a folder?"), std::string::npos);
  EXPECT_NE(error("quikstart").find("did you mean quickstart?"), std::string::npos);
  std::filesystem::remove_all(folder);
}

TEST(Config, Changes) {
  const Config from = load_config("debug");
  EXPECT_EQ(config_changes(from, from), std::vector<std::string>{});
  const Config to = load_config("debug", Overrides{"train.steps=30", "data.valid=x", "model.memory.0.layers=[0]",
                                                   "model.memory.1.layers=[1]", "values.schedule=COSINE"});
  const auto changes = config_changes(from, to);
  const auto has = [&](const std::string& change) { return std::ranges::count(changes, change) == 1; };
  EXPECT_TRUE(has("train.steps: 20 -> 30"));
  EXPECT_TRUE(has("data.valid: \"\" -> \"x\""));
  EXPECT_TRUE(has("values.schedule: CONSTANT -> COSINE"));
  EXPECT_TRUE(has("model.memory.0.layers: [1] -> [0]"));
  EXPECT_TRUE(has("model.memory.1.layers: none -> [1]"));
  EXPECT_TRUE(std::ranges::count(config_changes(to, from), "model.memory.1.layers: [1] -> none") == 1);
}

TEST(Config, ValidationTokensFollowTheTrainingTokens) {
  const auto moved = [](const std::string& valid, const Overrides& overrides) {
    const std::string text =
        to_text(load_config("debug", Overrides{"data.source=FOLDER", "data.train=a", "data.valid=" + valid}));
    return parse_config(text, "run", overrides).data().valid();
  };
  EXPECT_EQ(moved("a", {"data.train=b"}), "b");
  EXPECT_EQ(moved("a", {"data.train=b", "data.valid=c"}), "c");
  EXPECT_EQ(moved("c", {"data.train=b"}), "c");
  EXPECT_EQ(moved("a", {"train.steps=3"}), "a");
}

}  // namespace
}  // namespace pkmesh
