// SPDX-License-Identifier: Apache-2.0
// The operand with fewer lines (rows of op(a), columns of op(b)) is packed once, by all threads, into memory that they
// share. Of the other one a thread packs a few panels, which stay in its second-level cache while the shared ones pass.
// Panels of a block of the inner dimension only, so that there is room for those beside them.
#include <algorithm>

#include "layers/gemm_tiles.h"
#include "runtime/between_ops.h"
#include "runtime/buffer.h"
#include "runtime/matrix_tiles.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

using tiles::kBf16Parts;
using tiles::kFp32Parts;
using tiles::kPanel;
using tiles::Operand;

// Of its own operand a thread packs this many panels at most. While they meet one shared panel the next one is fetched,
// a share with each of them: all of it where there are as many.
constexpr int64_t kOwnPanels = tiles::kAheadShares;
constexpr int64_t kSharedPanels = 64;                // packed at a time
constexpr int64_t kWorthAThread = int64_t{1} << 21;  // multiplications
constexpr int64_t kPackingCost = 64;                 // of an element, in multiplications

int64_t divide_up(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}

// Packed panels, kept from one product to the next: what the calling thread shares with the others, and a thread's own.
uint32_t* shared_memory(int64_t words) {
  thread_local Scratch memory;
  return memory.take<uint32_t>(words);
}
uint32_t* own_memory(int64_t words) {
  thread_local Scratch memory;
  return memory.take<uint32_t>(words);
}

// An operand, and which way its lines lie.
struct Lines {
  MatrixSlice<const float> matrix;
  bool are_rows;

  int64_t count() const { return are_rows ? matrix.rows : matrix.columns; }
  int64_t inner() const { return are_rows ? matrix.columns : matrix.rows; }
  int64_t panels() const { return tiles::panels_of(count()); }

  // A panel's lines, inner elements [k, k + depth).
  tiles::PanelSource source(int64_t panel, int64_t k, int64_t depth) const {
    const int64_t line = panel * kPanel;
    const float* const first = matrix.data + (are_rows ? line * matrix.stride + k : k * matrix.stride + line);
    return {first, matrix.stride, are_rows, std::min(kPanel, count() - line), depth};
  }
};

struct Product {
  Lines left;   // op(a)
  Lines right;  // op(b)
  float alpha;
  Vector<const float> bias;
  float beta;
  MatrixSlice<float> c;
};

// A part of c becomes alpha sums + factor c + bias.
void finish(const float* sums, float alpha, float factor, const float* bias, MatrixSlice<float> c) {
  for (int64_t i = 0; i < c.rows; ++i) {
    const float* const from = sums + i * kPanel;
    float* const to = c.data + i * c.stride;
    if (factor == 0.0F) {  // c may be NaN
#pragma omp simd
      for (int64_t j = 0; j < c.columns; ++j) to[j] = alpha * from[j];
    } else {
#pragma omp simd
      for (int64_t j = 0; j < c.columns; ++j) to[j] = alpha * from[j] + factor * to[j];
    }
    if (bias == nullptr) continue;
#pragma omp simd
    for (int64_t j = 0; j < c.columns; ++j) to[j] += bias[j];
  }
}

template <int kParts, Operand kOwn>
class TiledProduct {
 public:
  explicit TiledProduct(const Product& product) : in_(product) {}

  void run() {
    for (int64_t k = 0; k < own().inner(); k += kDepth)
      for (int64_t first = 0; first < shared().panels(); first += kSharedPanels) {
        k_ = k;
        depth_ = std::min(kDepth, own().inner() - k);
        words_ = tiles::panel_words<kParts>(depth_);
        first_ = first;
        run_block(std::min(kSharedPanels, shared().panels() - first));
        end_op();  // a part of a long one
      }
  }

 private:
  // Of the inner dimension. A panel is 96 or 128 KiB then.
  static constexpr int64_t kDepth = kParts == kFp32Parts ? 512 : 2048;
  static constexpr Operand kShared = kOwn == Operand::kLeft ? Operand::kRight : Operand::kLeft;

  const Lines& own() const { return kOwn == Operand::kLeft ? in_.left : in_.right; }
  const Lines& shared() const { return kOwn == Operand::kLeft ? in_.right : in_.left; }

  // Everything that meets `count` shared panels from first_ on.
  void run_block(int64_t count) {
    shared_ = shared_memory(count * words_);
    last_ = shared_ + (count - 1) * words_;
    parallel_for(0, count, 1 + kWorthAThread / (kPackingCost * kPanel * depth_), [&](int64_t from, int64_t to) {
      for (int64_t panel = from; panel < to; ++panel)
        tiles::pack_panel<kParts, kShared>(shared().source(first_ + panel, k_, depth_), shared_ + panel * words_);
    });
    // Pieces of the own panels, as many for each thread; where there are fewer panels than threads, of both.
    const int64_t workers = in_parallel() ? 1 : threads();
    const int64_t panels = own().panels();
    const int64_t owns = std::min(panels, divide_up(divide_up(panels, kOwnPanels), workers) * workers);
    const int64_t shares = std::min(count, divide_up(workers, owns));
    const int64_t work = panels * count * kPanel * kPanel * depth_ / (owns * shares);
    parallel_for(0, owns * shares, 1 + kWorthAThread / work, [&](int64_t from, int64_t to) {
      [[maybe_unused]] const tiles::TileScope scope;
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t own = piece / shares;
        const int64_t share = piece % shares;
        multiply_piece(panels * own / owns, panels * (own + 1) / owns, count * share / shares,
                       count * (share + 1) / shares);
      }
    });
  }

  void multiply_piece(int64_t from, int64_t to, int64_t shared_from, int64_t shared_to) const {
    uint32_t* const packed = own_memory(kOwnPanels * words_);
    for (int64_t panel = from; panel < to; ++panel)
      tiles::pack_panel<kParts, kOwn>(own().source(panel, k_, depth_), packed + (panel - from) * words_);
    for (int64_t j = shared_from; j < shared_to; ++j)
      for (int64_t i = from; i < to; ++i) {
        const uint32_t* const mine = packed + (i - from) * words_;
        const uint32_t* const other = shared_ + j * words_;
        const uint32_t* const ahead =
            std::min<const uint32_t*>(other + words_, last_) + (i - from) * words_ / kOwnPanels;
        if constexpr (kOwn == Operand::kLeft)
          multiply(i, mine, first_ + j, other, ahead);
        else
          multiply(first_ + j, other, i, mine, ahead);
      }
  }

  // Panels with their numbers.
  void multiply(int64_t row, const uint32_t* left, int64_t column, const uint32_t* right, const uint32_t* ahead) const {
    row *= kPanel;
    column *= kPanel;
    const MatrixSlice<float> part(in_.c.data + row * in_.c.stride + column, std::min(kPanel, in_.c.rows - row),
                                  std::min(kPanel, in_.c.columns - column), in_.c.stride);
    const float factor = k_ == 0 ? in_.beta : 1.0F;  // of what is there
    const float* const bias = in_.bias.empty() || k_ > 0 ? nullptr : in_.bias.data() + column;
    const bool whole = part.rows == kPanel && part.columns == kPanel;
    if (whole && in_.alpha == 1.0F && factor == 0.0F && bias == nullptr)
      return tiles::multiply_panels<kParts>(left, right, depth_, part.data, part.stride, ahead);
    if (factor != 0.0F)  // what is there will be wanted when the tiles are done
      for (int64_t i = 0; i < part.rows; ++i)
        for (int64_t j = 0; j < part.columns; j += 16) __builtin_prefetch(part.data + i * part.stride + j, 1, 3);
    alignas(64) float sums[kPanel * kPanel];
    tiles::multiply_panels<kParts>(left, right, depth_, sums, kPanel, ahead);
    finish(sums, in_.alpha, factor, bias, part);
  }

  const Product& in_;
  // The block at hand.
  int64_t k_ = 0;
  int64_t depth_ = 0;
  int64_t words_ = 0;  // of a panel
  int64_t first_ = 0;  // shared panel
  uint32_t* shared_ = nullptr;
  uint32_t* last_ = nullptr;  // panel of these
};

template <int kParts>
void run(const Product& product) {
  if (product.left.count() >= product.right.count())
    TiledProduct<kParts, Operand::kLeft>(product).run();
  else
    TiledProduct<kParts, Operand::kRight>(product).run();
}

}  // namespace

void gemm_on_tiles(Stream&, Math math, Transpose transpose_a, Transpose transpose_b, float alpha,
                   MatrixSlice<const float> a, MatrixSlice<const float> b, Vector<const float> bias, float beta,
                   MatrixSlice<float> c) {
  const Product product = {
      {a, transpose_a == Transpose::kNo}, {b, transpose_b == Transpose::kYes}, alpha, bias, beta, c};
  if (math == Math::kBf16)
    run<kBf16Parts>(product);
  else
    run<kFp32Parts>(product);
}

}  // namespace pkmesh::PKM_CPU
