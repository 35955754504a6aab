// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <thread>

#include "io/file.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

void write_bytes(const std::string& path, std::string_view text) {
  File file = File::create(path);
  file.append(text);
}

// A file with this header text and `data` zero bytes behind it.
std::string with_header(const std::string& header, size_t data) {
  std::string text(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(text.data(), &length, 8);
  return text + header + std::string(data, '\0');
}

// The message of the UserError that reading the file gives, or "accepted".
std::string verdict(const std::string& path) {
  try {
    const Safetensors file(path);
    for (const TensorInfo& tensor : file.tensors()) {
      uint64_t sum = 0;  // touches every byte: outside the file this would be a fault
      for (const std::byte b : file.bytes(tensor)) sum += static_cast<uint64_t>(b);
      EXPECT_LE(sum, uint64_t{255} * static_cast<uint64_t>(tensor.bytes()));
    }
    return "accepted";
  } catch (const UserError& error) {
    return error.what();
  }
}

void expect_one_line(const std::string& message, const std::string& path) {
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_EQ(message.rfind(path, 0), 0) << message;
}

template <class T>
void write(SafetensorsWriter& writer, std::string_view name, const std::vector<T>& values, int64_t first = 0) {
  writer.write(name, std::as_bytes(std::span(values)), first * static_cast<int64_t>(sizeof(T)));
}

TEST(Safetensors, KeepsTypesShapesAndMetadata) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  create_safetensors(path,
                     {{"bytes", DType::kU8, {3}},
                      {"weights", DType::kF32, {2, 3}},
                      {"none", DType::kF32, {0, 7}},
                      {"half", DType::kBF16, {2}},
                      {"sixteen", DType::kF16, {1}},
                      {"moments", DType::kF64, {1, 1, 2}},
                      {"scalar", DType::kI64, {}},
                      {"ids", DType::kI32, {2}},
                      {"counts", DType::kU32, {2}}},
                     {{"format", "pkmesh"}, {"quote", "\"\n"}});
  {
    SafetensorsWriter writer(path);
    write<float>(writer, "weights", {1, 2, 3, 4, 5, 6});
    write<uint8_t>(writer, "bytes", {7, 8, 9});
    write<bf16>(writer, "half", {bf16(1.5F), bf16(-2.0F)});
    write<fp16>(writer, "sixteen", {fp16(0x1.554p-2F)});
    write<double>(writer, "moments", {0.25, -1e300});
    write<int64_t>(writer, "scalar", {-5});
    write<int32_t>(writer, "ids", {-1, 2});
    write<uint32_t>(writer, "counts", {4000000000U, 2});
    writer.sync();
  }
  const Safetensors file(path);
  EXPECT_EQ(file.metadata().at("format"), "pkmesh");
  EXPECT_EQ(file.metadata().at("quote"), "\"\n");
  EXPECT_EQ(file.tensors().size(), 9);
  EXPECT_EQ(file.at("weights").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.values<float>("weights")[5], 6);
  EXPECT_EQ(file.values<uint8_t>("bytes")[2], 9);
  EXPECT_EQ(static_cast<float>(file.values<bf16>("half")[0]), 1.5F);
  EXPECT_EQ(file.values<double>("moments")[1], -1e300);
  EXPECT_EQ(file.values<int64_t>("scalar")[0], -5);
  EXPECT_EQ(file.values<int32_t>("ids")[0], -1);
  EXPECT_EQ(file.values<uint32_t>("counts")[0], 4000000000U);
  EXPECT_TRUE(file.values<float>("none").empty());
  EXPECT_EQ(file.at("sixteen").dtype, DType::kF16);
  EXPECT_EQ(file.values<fp16>("sixteen")[0].bits, 0x3555) << "IEEE: a third, rounded";
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_THROW(file.at("absent"), UserError);
  EXPECT_THROW(file.values<int32_t>("weights"), UserError);
  for (const TensorInfo& tensor : file.tensors()) EXPECT_EQ(tensor.begin % dtype_bytes(tensor.dtype), 0) << tensor.name;
  EXPECT_EQ(file.tensors().front().begin % 64, 0);
}

TEST(Safetensors, RangesOfOneTensorAreWrittenAtTheSameTime) {
  const TemporaryFolder folder;
  const std::string path = folder / "rows.safetensors";
  constexpr int64_t kRows = 1000;
  create_safetensors(path, {{"rows", DType::kI32, {kRows, 3}}}, {});
  std::vector<std::thread> writers;
  for (int64_t rank = 0; rank < 4; ++rank) {
    writers.emplace_back([&path, rank] {
      SafetensorsWriter writer(path);
      for (int64_t row = rank; row < kRows; row += 4) {
        const auto value = static_cast<int32_t>(row);
        write<int32_t>(writer, "rows", {value, -value, 7}, row * 3);
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const Safetensors file(path);
  const auto values = file.values<int32_t>("rows");
  for (int32_t row = 0; row < kRows; ++row) {
    ASSERT_EQ(values[static_cast<size_t>(row) * 3], row);
    ASSERT_EQ(values[static_cast<size_t>(row) * 3 + 1], -row);
  }
  SafetensorsWriter writer(path);
  EXPECT_THROW(write<int32_t>(writer, "rows", {1}, kRows * 3), InternalError);
}

TEST(Safetensors, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const std::string path = folder / "bad.safetensors";
  const std::string f32 = R"("dtype":"F32","shape":[1],)";
  const struct {
    std::string content;
    const char* says;
  } cases[] = {
      {"", "too short"},
      {"1234567", "too short"},
      {std::string(8, '\xff'), "does not fit"},
      {with_header("{}", 0).substr(0, 9), "does not fit"},
      {with_header("[1]", 0), "not a JSON object"},
      {with_header("{\"a\":", 0), "not a JSON object"},
      {with_header(std::string(100000, '['), 0), "not a JSON object"},
      {with_header("{\"\xff\":1}", 0), "not a JSON object"},
      {with_header("{}", 3), "3 bytes belong to no tensor"},
      {with_header(R"({"__metadata__":3})", 0), "metadata is not an object"},
      {with_header(R"({"__metadata__":{"a":3}})", 0), "is not a string"},
      {with_header(R"({"a":7})", 0), "lacks dtype"},
      {with_header(R"({"a":{)" + f32 + R"("data_offsets":[0]}})", 4), "lacks dtype"},
      {with_header(R"({"a":{"dtype":"Q3","shape":[1],"data_offsets":[0,4]}})", 4), "dtype"},
      {with_header(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "not a size"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4), "not a size"},
      {with_header(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4), "not a size"},
      {with_header(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0), "too large"},
      {with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "does not match"},
      {with_header(R"({"a":{)" + f32 + R"("data_offsets":[4,8]}})", 4), "outside the file"},
      {with_header(R"({"a":{)" + f32 + R"("data_offsets":[4,0]}})", 8), "outside the file"},
      {with_header(R"({"a":{)" + f32 + R"("data_offsets":[4,8]}})", 8), "leaves a gap"},
      {with_header(R"({"a":{)" + f32 + R"("data_offsets":[0,4]},"b":{)" + f32 + R"("data_offsets":[2,6]}})", 6),
       "overlaps"},
      {with_header(R"({"a\n\u0000b":{)" + f32 + R"("data_offsets":[0,4]}})", 3), R"("a\n\u0000b" lies outside)"},
  };
  for (const auto& [content, says] : cases) {
    write_bytes(path, content);
    const std::string message = verdict(path);
    expect_one_line(message, path);
    EXPECT_NE(message.find(says), std::string::npos) << message << "\nexpected: " << says;
  }
  expect_one_line(verdict(folder / "absent"), folder / "absent");
  expect_one_line(verdict(folder.path()), folder.path());
}

TEST(Safetensors, UnalignedTensorsOfOtherWritersAreRefusedNotMisread) {
  const TemporaryFolder folder;
  const std::string path = folder / "odd.safetensors";
  std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  header.append((8 - header.size() % 8) % 8, ' ');
  write_bytes(path, with_header(header, 5));
  const Safetensors file(path);
  EXPECT_EQ(file.bytes(file.at("b")).size(), 4);
  EXPECT_THROW(file.values<float>("b"), UserError);
}

TEST(File, AFailedWriteLeavesTheOldText) {
  const TemporaryFolder folder;
  const std::string path = folder / "text";
  replace_text(path, "old");
  replace_text(path, "new");
  EXPECT_EQ(read_text(path), "new");
  EXPECT_EQ(file_checksum(path), text_checksum("new"));
  EXPECT_THROW(replace_text(folder / "text/below", "x"), UserError);
  File full = File::open_existing("/dev/full");
  EXPECT_THROW(full.append("x"), UserError);
}

}  // namespace
}  // namespace pkmesh
