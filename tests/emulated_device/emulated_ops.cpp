// SPDX-License-Identifier: Apache-2.0
// Every op of the program on an emulated device: the CPU's, of the level that the CPU's own runs take (runtime/cpu.h),
// queued on the stream. One line per op: its name and the number of its arguments.
#include <tuple>
#include <variant>

#include "comm/route.h"
#include "layers/attention.h"
#include "layers/attention_decode.h"
#include "layers/cross_entropy.h"
#include "layers/dropout.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/gelu.h"
#include "layers/gemm.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/memory/batch_norm.h"
#include "layers/memory/pooled.h"
#include "layers/memory/row_gradients.h"
#include "layers/memory/select.h"
#include "layers/memory/value_table.h"
#include "layers/silu_gate.h"
#include "optim/adam.h"
#include "optim/sparse_adam.h"
#include "tests/emulated_device/emulated_device.h"

namespace pkmesh {
namespace {

// --- where an op's arguments lie ---

template <class... T>
void check_all(const char* op, const T&... views);

template <class T>
void check_place(const char*, const T&) {}  // numbers

template <class T, int N>
void check_place(const char* op, const View<T, N>& view) {
  PKM_CHECK(view.empty() || on_device(view.data()), "{} was given host memory on an emulated device", op);
}
template <class T>
void check_place(const char* op, const MatrixSlice<T>& slice) {
  PKM_CHECK(slice.rows * slice.columns == 0 || on_device(slice.data), "{} was given host memory", op);
}
template <class... T>
void check_place(const char* op, const std::variant<T...>& one) {
  std::visit([&](const auto& view) { check_place(op, view); }, one);
}
void check_place(const char* op, const Asked& asked) {
  check_all(op, asked.selections, asked.offsets);
}
void check_place(const char* op, const OwnerOrder& o) {
  check_all(op, o.addresses, o.selections, o.order, o.pair_lengths, o.pair_token, o.token_offsets, o.token_pairs,
            o.selection_counts, o.pair_counts);
}
void check_place(const char* op, const RowGradients& g) {
  check_all(op, g.rows, g.offsets, g.weights, g.sources, g.order, g.d_output, g.touched);
}
void check_place(const char* op, const RowGradientsOut& o) {
  check_all(op, o.rows, o.offsets, o.weights, o.sources, o.order, o.touched);
}
void check_place(const char* op, const RowState& s) {
  check_all(op, s.first, s.second, s.steps);
}
void check_place(const char* op, const EveryRow& e) {
  check_all(op, e.rows, e.offsets, e.touched);
}
void check_place(const char* op, const std::span<const GradientPiece>& pieces) {
  for (const GradientPiece& piece : pieces) check_all(op, piece.selections, piece.pair_offsets);
}

template <class... T>
void check_all(const char* op, const T&... views) {
  (check_place(op, views), ...);
}

// --- what an op reads when it runs: its arguments as they were when it was queued ---

template <class T>
struct Kept {
  T value;
  T& get() { return value; }
};
template <>
struct Kept<std::span<const GradientPiece>> {
  explicit Kept(std::span<const GradientPiece> pieces) : value(pieces.begin(), pieces.end()) {}
  std::vector<GradientPiece> value;
  std::span<const GradientPiece> get() const { return value; }
};

// Queues op(cpu stream, arguments...).
template <class Op, class... Arguments>
void forward(Stream& stream, const char* name, const Op& op, const Arguments&... arguments) {
  check_all(name, arguments...);
  const auto kept = std::make_shared<std::tuple<Kept<Arguments>...>>(Kept<Arguments>{arguments}...);
  emulated::enqueue(stream, [op, kept, math = stream.math()] {
    Stream cpu;
    cpu.set_math(math);
    std::apply([&](auto&... each) { op(cpu, each.get()...); }, *kept);
  });
}

template <class Op>
struct Signature;
template <class... Parameters>
struct Signature<void(Stream&, Parameters...)> {
  static constexpr size_t kCount = sizeof...(Parameters);
  template <size_t i>
  using At = std::tuple_element_t<i, std::tuple<Parameters...>>;
};

// As a kernel does: no more rows than were touched.
RowGradients as_touched(RowGradients gradients) {
  gradients.rows = gradients.rows.rows(0, gradients.touched[0]);
  gradients.offsets = gradients.offsets.rows(0, gradients.touched[0] + 1);
  return gradients;
}

}  // namespace

#define ARGUMENT(name, i) Signature<decltype(cpu::name)>::At<i> a##i
#define ARGUMENTS_2(name) ARGUMENT(name, 0), ARGUMENT(name, 1)
#define ARGUMENTS_3(name) ARGUMENTS_2(name), ARGUMENT(name, 2)
#define ARGUMENTS_4(name) ARGUMENTS_3(name), ARGUMENT(name, 3)
#define ARGUMENTS_5(name) ARGUMENTS_4(name), ARGUMENT(name, 4)
#define ARGUMENTS_6(name) ARGUMENTS_5(name), ARGUMENT(name, 5)
#define ARGUMENTS_7(name) ARGUMENTS_6(name), ARGUMENT(name, 6)
#define ARGUMENTS_8(name) ARGUMENTS_7(name), ARGUMENT(name, 7)
#define ARGUMENTS_9(name) ARGUMENTS_8(name), ARGUMENT(name, 8)
#define NAMES_2 a0, a1
#define NAMES_3 NAMES_2, a2
#define NAMES_4 NAMES_3, a3
#define NAMES_5 NAMES_4, a4
#define NAMES_6 NAMES_5, a5
#define NAMES_7 NAMES_6, a6
#define NAMES_8 NAMES_7, a7
#define NAMES_9 NAMES_8, a8
#define EMULATE(name, count)                                                                                        \
  static_assert(Signature<decltype(cpu::name)>::kCount == (count), #name " takes another number of arguments now"); \
  void cuda::name(Stream& stream, ARGUMENTS_##count(name)) {                                                        \
    const auto op = [](Stream& cpu, auto&&... arguments) { PKM_DISPATCH(cpu, name, arguments...); };                \
    forward(stream, #name, op, NAMES_##count);                                                                      \
  }

EMULATE(sort_by_owner, 3)
EMULATE(select_by_token, 4)
EMULATE(add_lengths, 3)

EMULATE(attention_forward, 5)
EMULATE(attention_backward, 7)
EMULATE(attention_decode, 6)
EMULATE(cross_entropy_forward, 5)
EMULATE(cross_entropy_train, 8)
EMULATE(dropout, 3)
EMULATE(fill, 2)
EMULATE(add, 3)
EMULATE(narrow, 2)
EMULATE(widen, 2)
EMULATE(add_sum, 2)
EMULATE(add_sum_of_squares, 2)
EMULATE(embedding_forward, 5)
EMULATE(embedding_backward, 5)
EMULATE(count_positions, 2)
EMULATE(gelu_forward, 2)
EMULATE(gelu_backward, 3)
EMULATE(gemm, 7)
EMULATE(layer_norm_forward, 7)
EMULATE(residual_layer_norm_forward, 9)
EMULATE(layer_norm_backward, 9)
EMULATE(linear_forward, 4)
EMULATE(linear_backward, 6)
EMULATE(silu_gate_forward, 3)
EMULATE(silu_gate_backward, 5)

EMULATE(batch_norm_sums, 2)
EMULATE(batch_norm_statistics, 6)
EMULATE(batch_norm_normalise, 8)
EMULATE(batch_norm_backward_sums, 5)
EMULATE(batch_norm_backward_apply, 8)
EMULATE(select_forward, 4)
EMULATE(select_backward, 8)
EMULATE(pooled_gather, 4)
EMULATE(weight_gradients, 5)
EMULATE(combine_partials, 4)
EMULATE(copy_rows, 3)
EMULATE(scatter_scalars, 3)
EMULATE(sort_by_row, 6)  // `count` stays what there may be at most: the copy is what becomes the number
EMULATE(count_usage, 3)
EMULATE(mark_best, 3)
EMULATE(draw_rows, 5)

EMULATE(adam_update, 6)
EMULATE(add_in_order, 2)

void cuda::update_rows(Stream& stream, const RowUpdate& update, const TableRows& values, const RowState& state,
                       const RowGradients& gradients, Vector<float> dweights) {
  PKM_CHECK(dweights.empty(), "update_rows: dweights are for the CPU alone");
  check_all("update_rows", values, state, gradients);
  emulated::enqueue(stream, [=] {
    Stream cpu;
    PKM_DISPATCH(cpu, update_rows, update, values, state, as_touched(gradients), Vector<float>());
  });
}

void cuda::row_squares(Stream& stream, const RowGradients& gradients, Vector<double> squares) {
  check_all("row_squares", gradients, squares);
  emulated::enqueue(stream, [=] {
    Stream cpu;
    const RowGradients touched = as_touched(gradients);
    std::ranges::fill(squares.flat(), 0.0);
    PKM_DISPATCH(cpu, row_squares, touched, squares.rows(0, touched.rows.count()));
  });
}

void cuda::squares_bound(Stream& stream, const RowGradients& gradients, Vector<double> total) {
  check_all("squares_bound", gradients, total);
  emulated::enqueue(stream, [=] {
    Stream cpu;
    PKM_DISPATCH(cpu, squares_bound, as_touched(gradients), total);
  });
}

void cuda::list_every_row(Stream& stream, const RowGradients& gradients, const EveryRow& out) {
  check_all("list_every_row", gradients, out);
  emulated::enqueue(stream, [=] {
    Stream cpu;
    PKM_DISPATCH(cpu, list_every_row, as_touched(gradients), out);
  });
}

}  // namespace pkmesh
