// SPDX-License-Identifier: Apache-2.0
#include "io/config_check.h"

#include <fmt/format.h>

#include <cctype>
#include <map>
#include <optional>
#include <tuple>

#include "io/config_schema.h"
#include "runtime/check.h"

namespace pkmesh::config {
namespace {

namespace pb = google::protobuf;

std::optional<double> number(const pb::Message& message, const Field& field, int index) {
  const pb::Reflection& r = *message.GetReflection();
  const bool many = field.is_repeated();
  switch (field.cpp_type()) {
    case Field::CPPTYPE_INT32:
      return many ? r.GetRepeatedInt32(message, &field, index) : r.GetInt32(message, &field);
    case Field::CPPTYPE_INT64:
      return many ? r.GetRepeatedInt64(message, &field, index) : r.GetInt64(message, &field);
    case Field::CPPTYPE_UINT64:
      return many ? r.GetRepeatedUInt64(message, &field, index) : r.GetUInt64(message, &field);
    case Field::CPPTYPE_DOUBLE:
      return many ? r.GetRepeatedDouble(message, &field, index) : r.GetDouble(message, &field);
    default:
      return std::nullopt;
  }
}

class Checker {
 public:
  Checker(const Config& config, const Origins& origins) : config_(config), origins_(origins) {}

  void check_limits() const {
    visit_options(config_, "", [this](const std::string& key, const pb::Message& message, const Field& field) {
      const int count = field.is_repeated() ? message.GetReflection()->FieldSize(message, &field) : 1;
      for (int i = 0; i < count; ++i) {
        const std::optional<double> value = number(message, field, i);
        if (!value) continue;
        const std::string error = limits_error(field, *value);
        const int index = field.is_repeated() ? i : -1;
        if (!error.empty()) reject(key, "{} is {}; it {}", key, value_text(message, field, index), error);
      }
    });
  }

  void check_model() const {
    const Model& model = config_.model();
    if (model.width() % model.heads() != 0) {
      const int below = model.width() / model.heads() * model.heads();
      reject("model.width", "model.width is {}, not a multiple of model.heads ({}); {} is", model.width(),
             model.heads(), below + model.heads());
    }
    for (int i = 0; i < model.memory_size(); ++i) check_memory(model.memory(i), fmt::format("model.memory.{}", i));
    check_places();
    check_tables();
  }

  void check_training() const {
    const Train& train = config_.train();
    if (train.batch() % train.accumulate() != 0)
      reject("train.batch", "train.batch is {}, not a multiple of train.accumulate ({}); {} is", train.batch(),
             train.accumulate(), (train.batch() / train.accumulate() + 1) * train.accumulate());
    constexpr double kLeastMib = 0.001;
    if (train.bucket_mib() > 0 && train.bucket_mib() < kLeastMib)
      reject("train.bucket_mib", "train.bucket_mib is {}; it must be at least {}, or 0", train.bucket_mib(), kLeastMib);
    if (config_.data().source() == Data::BUILT_IN && config_.tokenizer().kind() != Tokenizer::BYTE)
      reject("data.source", "data.source BUILT_IN is read byte by byte; set tokenizer.kind to BYTE");
    if (config_.data().source() == Data::BUILT_IN && !config_.data().train().empty())
      reject("data.train", "data.train is {}, but data.source is BUILT_IN; set data.source to FOLDER",
             config_.data().train());
    check_schedule("optimizer", config_.optimizer());
    check_schedule("values", config_.values());
    if (config_.values().moment_type() == FP16)
      reject("values.moment_type", "values.moment_type: FP16 does not reach down to squared gradients; use BF16");
    if (config_.values().algorithm() == Values::DENSE_ADAM && config_.values().bias_correction() == Values::ROW_COUNTER)
      reject("values.bias_correction",
             "values.bias_correction is ROW_COUNTER, but DENSE_ADAM moves all rows alike; "
             "set it to GLOBAL_STEP");
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(std::string_view key, fmt::format_string<Args...> format, Args&&... args) const {
    fail(origins_.prefix(key) + fmt::format(format, std::forward<Args>(args)...));
  }

  void check_memory(const Memory& memory, const std::string& key) const {
    const Model& model = config_.model();
    const std::string layers = key + ".layers";
    if (memory.layers_size() == 0)
      reject(layers, "{} is empty; name the blocks that have this memory, such as [{}]", layers, model.layers() / 2);
    for (const int layer : memory.layers()) {
      if (layer >= model.layers())
        reject(layers, "{} names block {}, but model.layers is {}; the last block is {}", layers, layer, model.layers(),
               model.layers() - 1);
    }
    if (memory.neighbours() > memory.sub_keys())
      reject(key + ".neighbours", "{}.neighbours is {}, more than {}.sub_keys ({}); it must be at most that", key,
             memory.neighbours(), key, memory.sub_keys());
    constexpr int kMostSelections = 65535;  // of a token: comm/route.h counts them in 16 bits
    if (memory.heads() * memory.neighbours() > kMostSelections)
      reject(key + ".neighbours", "{}.neighbours is {} for each of {} heads, {} in all; at most {}", key,
             memory.neighbours(), memory.heads(), memory.heads() * memory.neighbours(), kMostSelections);
    const int value_width = memory.value_width() == 0 ? model.width() : memory.value_width();
    if (memory.output() == Memory::PLAIN && value_width != model.width())
      reject(key + ".value_width", "{}.value_width is {}, but output PLAIN needs model.width ({}); SWILU takes any",
             key, value_width, model.width());
    for (const char c : memory.table()) {
      if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_' && c != '-')
        reject(key + ".table", "{}.table is \"{}\"; a name has letters, digits, '_' and '-' only", key, memory.table());
    }
    if (memory.table().size() > 64)
      reject(key + ".table", "{}.table has {} characters; at most 64", key, memory.table().size());
  }

  // A block has at most one memory at each placement.
  void check_places() const {
    std::map<std::pair<int, Memory::Placement>, int> taken;
    for (int i = 0; i < config_.model().memory_size(); ++i) {
      const Memory& memory = config_.model().memory(i);
      for (const int layer : memory.layers()) {
        const auto [other, fresh] = taken.insert({{layer, memory.placement()}, i});
        if (fresh) continue;
        const std::string key = fmt::format("model.memory.{}.layers", i);
        reject(key, "{} names block {}, where model.memory.{} puts a memory already ({}); drop one", key, layer,
               other->second, Memory::Placement_Name(memory.placement()));
      }
    }
  }

  // Memories that share a table agree on what the table is.
  void check_tables() const {
    std::map<std::string, int> first;
    for (int i = 0; i < config_.model().memory_size(); ++i) {
      for (const int layer : config_.model().memory(i).layers()) {
        const std::string table = table_name(config_.model().memory(i), layer);
        check_same_table(table, i, first.insert({table, i}).first->second);
      }
    }
  }

  void check_same_table(const std::string& table, int i, int j) const {
    const Memory& memory = config_.model().memory(i);
    const Memory& other = config_.model().memory(j);
    const auto agree = [&](const char* name, const auto& mine, const auto& theirs) {
      if (mine == theirs) return;
      const std::string key = fmt::format("model.memory.{}.{}", i, name);
      reject(key, "{} is {}, but model.memory.{}, which shares table \"{}\", has {}; make them equal", key, mine, j,
             table, theirs);
    };
    const int width = config_.model().width();
    agree("sub_keys", memory.sub_keys(), other.sub_keys());
    agree("value_width", memory.value_width() == 0 ? width : memory.value_width(),
          other.value_width() == 0 ? width : other.value_width());
    agree("row_placement", Memory::RowPlacement_Name(memory.row_placement()),
          Memory::RowPlacement_Name(other.row_placement()));
    agree("row_type", NumberType_Name(memory.row_type()), NumberType_Name(other.row_type()));
  }

  // T is Optimizer or Values.
  template <class T>
  void check_schedule(const std::string& key, const T& optimizer) const {
    const int64_t steps = config_.train().steps();
    if (optimizer.schedule() == INVERSE_SQRT && optimizer.warmup_steps() == 0)
      reject(key + ".warmup_steps", "{}.warmup_steps is 0, but INVERSE_SQRT needs a warm-up; set it to 1 or more", key);
    if (optimizer.schedule() == COSINE && optimizer.warmup_steps() > steps)
      reject(key + ".warmup_steps",
             "{}.warmup_steps is {}, more than train.steps ({}): COSINE would end before it began", key,
             optimizer.warmup_steps(), steps);
    if (optimizer.warmup_steps() > 0 && optimizer.warmup_init() > optimizer.learning_rate())
      reject(key + ".warmup_init", "{}.warmup_init is {}, above {}.learning_rate ({}); lower it", key,
             optimizer.warmup_init(), key, optimizer.learning_rate());
    if (optimizer.min_learning_rate() > optimizer.learning_rate())
      reject(key + ".min_learning_rate", "{}.min_learning_rate is {}, above {}.learning_rate ({}); lower it", key,
             optimizer.min_learning_rate(), key, optimizer.learning_rate());
  }

  const Config& config_;
  const Origins& origins_;
};

}  // namespace

std::string table_name(const Memory& memory, int layer) {
  if (!memory.table().empty()) return memory.table();
  return fmt::format("layer{}{}", layer, memory.placement() == Memory::AFTER ? "_after" : "");
}

void check(const Config& config, const Origins& origins) {
  const Checker checker(config, origins);
  checker.check_limits();
  checker.check_model();
  checker.check_training();
}

}  // namespace pkmesh::config
