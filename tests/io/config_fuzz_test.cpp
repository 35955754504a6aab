// SPDX-License-Identifier: Apache-2.0
// Whatever the bytes of a configuration: it is read, or there is an error of one line.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>

#include "io/config.h"
#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

using config::Config;
using Overrides = std::vector<std::string>;

// Nothing but us writes to standard error: protobuf stays silent.
class Fuzz : public testing::Test {
 protected:
  void SetUp() override { testing::internal::CaptureStderr(); }
  void TearDown() override { EXPECT_EQ(testing::internal::GetCapturedStderr(), ""); }
};

// Whatever the bytes: a configuration, or a UserError of one line.
void expect_no_harm(const std::string& text, const Overrides& overrides) {
  try {
    const Config c = parse_config(text, "fuzz", overrides);
    EXPECT_EQ(to_text(parse_config(to_text(c), "again")), to_text(c));
  } catch (const UserError& error) {
    const std::string_view line = error.what();
    EXPECT_FALSE(line.empty());
    EXPECT_LT(line.size(), 600U);
    for (const char c : line) EXPECT_EQ(std::iscntrl(static_cast<unsigned char>(c)), 0) << line;
  }
}

TEST_F(Fuzz, RandomBytes) {
  const Random random(1, "config bytes");
  for (uint64_t i = 0; i < 2000; ++i) {
    std::string text;
    for (uint64_t j = 0; j < random.bits(i) % 60; ++j) text += static_cast<char>(random.bits(1000 * (i + 1) + j));
    expect_no_harm(text, {});
    expect_no_harm("", {text});
    expect_no_harm("", {"data.train=" + text, "model.memory.0.layers=" + text});
  }
}

TEST_F(Fuzz, MutatedText) {
  const Random random(2, "config mutations");
  const std::string original = to_text(load_config("debug"));
  const std::vector<std::string> pieces = {"{",
                                           "}",
                                           "[",
                                           "]",
                                           ":",
                                           "\"",
                                           "<",
                                           ">",
                                           "-",
                                           "nan",
                                           "1e999",
                                           "#",
                                           "\n",
                                           ",",
                                           "[a.b/c]",
                                           "99999999999999999999",
                                           "memory",
                                           "layers: [",
                                           "'",
                                           "\\",
                                           std::string(1, '\0'),
                                           ";"};
  uint64_t next = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string text = original;
    for (uint32_t edits = 1 + random.bits(next++) % 3; edits > 0; --edits) {
      const size_t at = random.bits(next++) % text.size();
      const size_t length = random.bits(next++) % 8;
      const std::string& piece = pieces[random.bits(next++) % pieces.size()];
      text.replace(at, std::min(length, text.size() - at), random.bits(next++) % 4 == 0 ? "" : piece);
    }
    expect_no_harm(text, {});
  }
}

TEST_F(Fuzz, MutatedOverrides) {
  const Random random(3, "config overrides");
  const std::vector<std::string> parts = {"model", "memory", "0",     "1", "train", "steps", "layers", ".",
                                          ".",     ".",      "=",     "=", "[",     "]",     "-1",     "99999999999",
                                          "norm",  "data",   "heads", "4", " ",     "{}",    "2"};
  uint64_t next = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string assignment;
    for (uint32_t n = 1 + random.bits(next++) % 9; n > 0; --n) assignment += parts[random.bits(next++) % parts.size()];
    expect_no_harm("model { memory { layers: 1 } }", {assignment});
  }
}

}  // namespace
}  // namespace pkmesh
