// SPDX-License-Identifier: Apache-2.0
#include "layers/attention_decode.h"

#include "runtime/range.h"

namespace pkmesh {
namespace {

void check_caches(const View<float, 3>& key_cache, const View<float, 3>& value_cache, int64_t qkv_width) {
  check_shape("attention_decode: value_cache", value_cache,
              {{"sequences", key_cache.size(0)}, {"capacity", key_cache.size(1)}, {"width", key_cache.size(2)}});
  PKM_CHECK(qkv_width == 3 * key_cache.size(2), "attention_decode: qkv is {} wide, the caches {}", qkv_width,
            key_cache.size(2));
}

}  // namespace

void attention_decode(Stream& stream, int64_t heads, Matrix<const float> qkv, Vector<const int32_t> positions,
                      View<float, 3> key_cache, View<float, 3> value_cache, Matrix<float> output) {
  check_caches(key_cache, value_cache, qkv.size(1));
  const Extent sequences = {"sequences", key_cache.size(0)};
  check_shape("attention_decode: qkv", qkv, {sequences, {"3 * width", 3 * key_cache.size(2)}});
  check_shape("attention_decode: positions", positions, {sequences});
  check_shape("attention_decode: output", output, {sequences, {"width", key_cache.size(2)}});
  PKM_CHECK(heads >= 1 && key_cache.size(2) % heads == 0, "attention_decode: {} heads do not divide the width {}",
            heads, key_cache.size(2));
  Range range("attention_decode");
  PKM_DISPATCH(stream, attention_decode, heads, qkv, positions, key_cache, value_cache, output);
}

}  // namespace pkmesh
