// SPDX-License-Identifier: Apache-2.0
#include "io/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "runtime/check.h"
#include "runtime/random.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

std::vector<std::string> sample_text() {
  std::string text;
  const Random random(3, "tokenizer test");
  const std::vector<std::string> words = {"memory", "dictionary", "product",      "key",   "the",          "of",
                                          "</s>",   "<0x41>",     "na\xC3\xAFve", "   1.", "\xE2\x82\xAC", "(Bot.)"};
  for (uint64_t i = 0; i < 8000; ++i) {
    text += words[random.bits(i) % words.size()];
    text += random.bits(i + 100000) % 9 == 0 ? "\n      " : " ";
  }
  return {text};
}

const Tokenizer& trained() {
  static const auto tokenizer = train_tokenizer(sample_text(), 512);
  return *tokenizer;
}

std::vector<std::string> odd_texts() {
  std::vector<std::string> texts = {
      "",
      "\n",
      " ",
      "   ",
      "memory of the key\n\n  the  dictionary \n",
      "tabs\tand\r\nreturns\r",
      "\xE2\x96\x81 is not a space, nor is\xE2\x96\x81\xE2\x96\x81this",
      std::string("nul\0inside", 10),
      "<0x41></s><unk>\xE2\x81\x87 \xE2\x96\x85 <s>",
      "\xEF\xBB\xBFna\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x98\x80 \xEF\xBF\xBD",
      "cut \xE2\x82",
      "\xC0\xAF overlong, \xED\xA0\x80 surrogate, \xF4\x90\x80\x80 beyond, \xE0\x80\xAF \xF0\x80\x80\x80",
      "\xC2\xA0 and \xE3\x80\x80 are spaces of other kinds",
      std::string(5000, 'x') + std::string(5000, ' '),
  };
  const Random random(5, "bytes");
  for (uint64_t length = 1; length < 400; length += 7) {
    std::string bytes;
    std::string text_like;
    for (uint64_t i = 0; i < length; ++i) {
      bytes.push_back(static_cast<char>(random.bits(length * 1000 + i)));
      text_like.push_back("ab \n\t\xE2\x96\x81\x82\xC3"[random.bits(length * 1000 + i) % 10]);
    }
    texts.push_back(bytes);
    texts.push_back(text_like);
  }
  return texts;
}

TEST(Tokenizer, EveryTextComesBackByteForByte) {
  const auto bytes = make_byte_tokenizer();
  for (const Tokenizer* tokenizer : std::initializer_list<const Tokenizer*>{bytes.get(), &trained()}) {
    for (const std::string& text : odd_texts()) {
      const auto ids = tokenizer->encode(text);
      EXPECT_EQ(tokenizer->decode(ids), text);
      for (const int32_t id : ids) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, tokenizer->vocabulary_size());
        ASSERT_NE(id, tokenizer->separator());
      }
      EXPECT_EQ(tokenizer->encode(text), ids) << "a remembered word must give what it gave at first";
    }
  }
}

TEST(Tokenizer, LearnsWordsAndIndentation) {
  EXPECT_LE(trained().encode(" dictionary").size(), 2U);
  EXPECT_LE(trained().encode("      ").size(), 3U);
  EXPECT_LE(trained().vocabulary_size(), 512);
  EXPECT_GT(trained().vocabulary_size(), 258);
}

TEST(Tokenizer, TextCutAfterANewlineGivesTheSameIds) {
  const std::string first = "memory  of\n";
  const std::string second = "   the key";
  auto pieces = trained().encode(first);
  trained().encode(second, pieces);
  EXPECT_EQ(pieces, trained().encode(first + second));
}

TEST(Tokenizer, TheSeparatorIsNoText) {
  auto ids = trained().encode("key");
  ids.push_back(trained().separator());
  EXPECT_EQ(trained().decode(ids), "key");
  EXPECT_THROW(trained().decode(std::vector<int32_t>{trained().vocabulary_size()}), InternalError);
  EXPECT_THROW(trained().decode(std::vector<int32_t>{-1}), InternalError);
}

TEST(Tokenizer, TrainingRepeats) {
  const auto again = train_tokenizer(sample_text(), 512);
  EXPECT_EQ(again->hash(), trained().hash());
}

TEST(Tokenizer, SavesAndLoads) {
  const TemporaryFolder folder;
  for (const bool byte : {true, false}) {
    const auto bytes = make_byte_tokenizer();
    const Tokenizer& saved = byte ? *bytes : trained();
    saved.save(folder.path());
    const auto loaded = load_tokenizer(folder.path());
    EXPECT_EQ(loaded->hash(), saved.hash());
    EXPECT_EQ(loaded->files(), saved.files());
    EXPECT_EQ(loaded->vocabulary_size(), saved.vocabulary_size());
    EXPECT_EQ(loaded->separator(), saved.separator());
    EXPECT_EQ(loaded->encode("the memory"), saved.encode("the memory"));
  }
}

TEST(Tokenizer, DamagedFilesAreTheUsersErrors) {
  const TemporaryFolder folder;
  EXPECT_THROW(load_tokenizer(folder.path()), UserError);
  trained().save(folder.path());
  {
    std::fstream model(folder / "tokenizer.model", std::ios::in | std::ios::out | std::ios::binary);
    model.seekp(200);
    model.put('#');
  }
  EXPECT_THROW(load_tokenizer(folder.path()), UserError);
  std::filesystem::resize_file(folder / "tokenizer.model", 99);
  EXPECT_THROW(load_tokenizer(folder.path()), UserError);
  for (const char* text : {"", "{", "[]", "{\"kind\": 3}", "{\"kind\": \"morse\", \"hash\": \"\"}"}) {
    std::ofstream(folder / "tokenizer.json") << text;
    EXPECT_THROW(load_tokenizer(folder.path()), UserError) << text;
  }
}

TEST(Tokenizer, CountsBytesThatAreNoText) {
  EXPECT_EQ(raw_bytes(""), 0);
  EXPECT_EQ(raw_bytes("tabs\tlines\r\n\f caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"), 0);
  EXPECT_EQ(raw_bytes("caf\xE9 and \xC0\xAF"), 3);
  EXPECT_EQ(raw_bytes(std::string("n\0u\0l\0 \x1B", 8)), 4);
}

TEST(Tokenizer, SamplesThatCannotBeLearntFromAreTheUsersErrors) {
  EXPECT_THROW(train_tokenizer({}, 512), UserError);
  EXPECT_THROW(train_tokenizer(std::vector<std::string>{"", "\n\n\t"}, 512), UserError);
  EXPECT_THROW(train_tokenizer(sample_text(), 100), UserError);
}

TEST(Tokenizer, PoorSamplesGiveSmallVocabularies) {
  for (const std::string text : {"a", " ", "    ", "aaaa aaaa", "<0x41><0x42>", "\xE2\x82\xAC"}) {
    const auto tokenizer = train_tokenizer(std::vector<std::string>{text}, 8192);
    EXPECT_LT(tokenizer->vocabulary_size(), 300) << text;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text + " more")), text + " more");
  }
}

}  // namespace
}  // namespace pkmesh
