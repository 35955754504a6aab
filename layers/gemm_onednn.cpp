// SPDX-License-Identifier: Apache-2.0
// oneDNN compiles a product for its shape, so products are kept by shape. bf16 operands are packed on the way from
// fp32, in slabs that bound the scratch.
#include "layers/gemm_onednn.h"

#include <algorithm>
#include <array>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>

#include "layers/gemm_pack.h"
#include "runtime/buffer.h"
#include "runtime/parallel.h"

namespace pkmesh {
namespace {

constexpr int64_t kSlab = 2048;  // most rows of a, and most of the inner dimension, packed at a time

int64_t round_up(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

}  // namespace

// Executes through oneDNN's C interface, for the C++ one allocates at each call.
struct OneDnnProducts::Engine {
  using memory = dnnl::memory;

  struct Shape {
    Math math = Math::kFp32;
    int64_t m = 0, n = 0, inner = 0;
    int64_t a_row = 0, a_column = 0, b_row = 0, b_column = 0;  // strides of op(a) and op(b) in fp32
    bool accumulate = false, bias = false;
    int threads = 1;
    auto operator<=>(const Shape&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 sees a 0 in it
  };
  struct Product {
    dnnl::matmul matmul;
    memory a, b, bias, c, scratch;
  };

  Stream host;  // of the packing
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Shape, Product> products;
  Scratch packed_a;
  Scratch packed_b;
  Scratch scratch;
  int64_t scratch_bytes = 0;  // the most that a product so far wants

  Product make(const Shape& shape) {
    const bool packed = shape.math == Math::kBf16;
    const memory::dims a_size = {shape.m, shape.inner};
    const memory::dims b_size = {shape.inner, shape.n};
    const memory::desc a =
        packed ? memory::desc(a_size, memory::data_type::bf16, memory::format_tag::ab)
               : memory::desc(a_size, memory::data_type::f32, memory::dims{shape.a_row, shape.a_column});
    const memory::desc b =
        packed ? memory::desc(b_size, memory::data_type::bf16, memory::format_tag::BA16a64b2a)
               : memory::desc(b_size, memory::data_type::f32, memory::dims{shape.b_row, shape.b_column});
    const memory::desc c({shape.m, shape.n}, memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (shape.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const memory::desc bias({1, shape.n}, memory::data_type::f32, memory::format_tag::ab);
    const auto operation = shape.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc description(operation, attributes, engine);
    scratch_bytes = std::max(scratch_bytes, static_cast<int64_t>(description.scratchpad_desc().get_size()));
    return {dnnl::matmul(description),           memory(a, engine, DNNL_MEMORY_NONE),
            memory(b, engine, DNNL_MEMORY_NONE), memory(bias, engine, DNNL_MEMORY_NONE),
            memory(c, engine, DNNL_MEMORY_NONE), memory(description.scratchpad_desc(), engine, DNNL_MEMORY_NONE)};
  }

  // a and b are only read; oneDNN's handles do not say so.
  void run(const Shape& shape, const void* a, const void* b, const float* bias, float* c) {
    auto known = products.find(shape);
    if (known == products.end()) known = products.emplace(shape, make(shape)).first;
    const Product& product = known->second;
    product.a.set_data_handle(const_cast<void*>(a));
    product.b.set_data_handle(const_cast<void*>(b));
    product.bias.set_data_handle(const_cast<float*>(bias));
    product.c.set_data_handle(c);
    product.scratch.set_data_handle(scratch.take<std::byte>(scratch_bytes));
    const std::array<dnnl_exec_arg_t, 5> arguments = {{{DNNL_ARG_SRC, product.a.get()},
                                                       {DNNL_ARG_WEIGHTS, product.b.get()},
                                                       {DNNL_ARG_DST, product.c.get()},
                                                       {DNNL_ARG_SCRATCHPAD, product.scratch.get()},
                                                       {DNNL_ARG_BIAS, product.bias.get()}}};
    const int count = static_cast<int>(arguments.size()) - (shape.bias ? 0 : 1);
    const dnnl_status_t status = dnnl_primitive_execute(product.matmul.get(), stream.get(), count, arguments.data());
    PKM_CHECK(status == dnnl_success, "oneDNN's product of {} x {} x {} failed with status {}", shape.m, shape.n,
              shape.inner, static_cast<int>(status));
  }
};

OneDnnProducts& OneDnnProducts::of(Stream& stream) {
  auto& attachment = stream.attachment();
  if (attachment == nullptr) attachment = std::make_shared<OneDnnProducts>();
  return *static_cast<OneDnnProducts*>(attachment.get());
}

OneDnnProducts::OneDnnProducts() : engine_(std::make_unique<Engine>()) {}
OneDnnProducts::~OneDnnProducts() = default;

bool OneDnnProducts::suits(Math math, MatrixSlice<float> c) {
  static const int isas = [] {
    dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_bf16);  // tiles are another level's, and our own
    return static_cast<int>(dnnl::get_effective_cpu_isa());
  }();
  const auto has = [](dnnl::cpu_isa isa) { return (isas & static_cast<int>(isa)) == static_cast<int>(isa); };
  if (cpu_level() != CpuLevel::kAvx512 || c.stride != c.columns) return false;
  if (math == Math::kBf16) return has(dnnl::cpu_isa::avx512_core_bf16);
  return has(dnnl::cpu_isa::avx512_core);
}

void OneDnnProducts::multiply(Math math, Transpose transpose_a, Transpose transpose_b, MatrixSlice<const float> a,
                              MatrixSlice<const float> b, Vector<const float> bias, bool accumulate,
                              MatrixSlice<float> c) {
  const bool a_flips = transpose_a == Transpose::kYes;
  const bool b_flips = transpose_b == Transpose::kYes;
  const int64_t whole = a_flips ? a.rows : a.columns;
  Engine::Shape shape = {.math = math,
                         .m = c.rows,
                         .n = c.columns,
                         .inner = whole,
                         .accumulate = accumulate,
                         .bias = !bias.empty(),
                         .threads = threads()};
  if (math == Math::kFp32) {
    shape.a_row = a_flips ? 1 : a.stride;
    shape.a_column = a_flips ? a.stride : 1;
    shape.b_row = b_flips ? 1 : b.stride;
    shape.b_column = b_flips ? b.stride : 1;
    return engine_->run(shape, a.data, b.data, bias.data(), c.data);
  }
  for (int64_t k = 0; k < whole; k += kSlab) {
    const int64_t depth = std::min(kSlab, whole - k);
    shape.inner = round_up(depth, kPackBlock);
    shape.accumulate = accumulate || k > 0;
    shape.bias = !bias.empty() && k == 0;
    uint32_t* const panels = engine_->packed_b.take<uint32_t>(shape.inner / 2 * round_up(c.columns, kPackPanel));
    pack_panels(engine_->host, b, transpose_b, {k, depth, 0, c.columns}, panels);
    for (int64_t row = 0; row < c.rows; row += kSlab) {
      shape.m = std::min(kSlab, c.rows - row);
      uint16_t* const rows = engine_->packed_a.take<uint16_t>(shape.m * shape.inner);
      pack_rows(engine_->host, a, transpose_a, {row, shape.m, k, depth}, rows);
      engine_->run(shape, rows, panels, bias.data(), c.data + row * c.columns);
    }
  }
}

}  // namespace pkmesh
