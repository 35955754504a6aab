// SPDX-License-Identifier: Apache-2.0
// SentencePiece brings an old protobuf of its own under the names of ours (cmake/Packages.cmake). Both must work in one
// program.
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "io/config.pb.h"
#include "io/tokenizer.h"

namespace pkmesh {
namespace {

TEST(Protobuf, OursAndSentencePiecesDoNotMeet) {
  const auto tokenizer = train_tokenizer(std::vector<std::string>{"to be or not to be"}, 512);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("to be")), "to be");
  config::Limits limits;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString("min: 1 max: 2.5", &limits));
  EXPECT_EQ(limits.max(), 2.5);
  config::Limits copy;
  ASSERT_TRUE(copy.ParseFromString(limits.SerializeAsString()));
  EXPECT_EQ(copy.DebugString(), limits.DebugString());
}

}  // namespace
}  // namespace pkmesh
