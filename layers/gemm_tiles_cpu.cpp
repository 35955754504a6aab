// SPDX-License-Identifier: Apache-2.0
// The right operand is packed once, by all threads, into memory that they share; a thread packs a few panels of the left
// one, which stay in its second-level cache while all of the right one pass. Panels of a block of the inner dimension
// only, so that two of them, one of each operand, fit in that cache beside those.
#include <algorithm>

#include "layers/gemm_tiles.h"
#include "layers/matrix_tiles.h"
#include "runtime/buffer.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kLeftPanels = 4;                 // at most, of a thread's piece of the left operand
constexpr int64_t kColumns = 2048;                 // of the right operand, packed at a time
constexpr int64_t kWorthAThread = int64_t{1} << 21;  // multiplications

int64_t divide_up(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}

uint32_t* grow(Buffer<uint32_t>& buffer, int64_t count) {
  if (buffer.count() < count) {
    buffer = {};
    buffer = Buffer<uint32_t>({}, count);
  }
  return buffer.data();
}

struct Product {
  Transpose transpose_a;
  Transpose transpose_b;
  float alpha;
  MatrixSlice<const float> a;
  MatrixSlice<const float> b;
  Vector<const float> bias;
  float beta;
  MatrixSlice<float> c;

  int64_t inner() const { return transpose_a == Transpose::kYes ? a.rows : a.columns; }

  // Rows of op(a) and columns of op(b) from `line` on, inner elements [k, k + count).
  PanelSource left(int64_t line, int64_t k, int64_t count) const {
    const bool together = transpose_a == Transpose::kNo;
    return {a.data + (together ? line * a.stride + k : k * a.stride + line), a.stride, together,
            std::min(kPanel, c.rows - line), count};
  }
  PanelSource right(int64_t line, int64_t k, int64_t count) const {
    const bool together = transpose_b == Transpose::kYes;
    return {b.data + (together ? line * b.stride + k : k * b.stride + line), b.stride, together,
            std::min(kPanel, c.columns - line), count};
  }
};

// A part of c becomes alpha sums + factor c + bias.
void finish(const float* sums, float alpha, float factor, const float* bias, MatrixSlice<float> c) {
  for (int64_t i = 0; i < c.rows; ++i) {
    const float* const from = sums + i * kPanel;
    float* const to = c.data + i * c.stride;
    if (factor == 0.0F) std::fill_n(to, c.columns, 0.0F);  // which may have been NaN
#pragma omp simd
    for (int64_t j = 0; j < c.columns; ++j) to[j] = alpha * from[j] + factor * to[j];
    if (bias == nullptr) continue;
#pragma omp simd
    for (int64_t j = 0; j < c.columns; ++j) to[j] += bias[j];
  }
}

template <int kParts>
class TiledProduct {
 public:
  explicit TiledProduct(const Product& product) : in_(product) {}

  void run() {
    for (int64_t k = 0; k < in_.inner(); k += kDepth)
      for (int64_t column = 0; column < in_.c.columns; column += kColumns) {
        k_ = k;
        depth_ = std::min(kDepth, in_.inner() - k);
        words_ = panel_words<kParts>(depth_);
        column_ = column;
        right_panels_ = divide_up(std::min(kColumns, in_.c.columns - column), kPanel);
        run_block();
      }
  }

 private:
  // Of the inner dimension. A panel is 96 or 128 KiB then.
  static constexpr int64_t kDepth = kParts == kSingle ? 512 : 2048;

  void run_block() {
    thread_local Buffer<uint32_t> shared;
    right_ = grow(shared, right_panels_ * words_);
    parallel_for(0, right_panels_, 1 + kWorthAThread / (8 * kPanel * depth_), [&](int64_t from, int64_t to) {
      for (int64_t panel = from; panel < to; ++panel)
        pack_panel<kParts, Operand::kRight>(in_.right(column_ + panel * kPanel, k_, depth_), right_ + panel * words_);
    });
    // Pieces of the left operand, as many for each thread; where they are too few, of both.
    const int64_t left_panels = divide_up(in_.c.rows, kPanel);
    const int64_t fewest = divide_up(left_panels, kLeftPanels);
    const int64_t lefts = std::min(left_panels, divide_up(fewest, threads()) * threads());
    const int64_t rights = std::min(right_panels_, divide_up(threads(), lefts));
    const int64_t work = in_.c.rows * right_panels_ * kPanel * depth_ / (lefts * rights);
    parallel_for(0, lefts * rights, 1 + kWorthAThread / std::max<int64_t>(1, work), [&](int64_t from, int64_t to) {
      [[maybe_unused]] const TileScope tiles;
      for (int64_t piece = from; piece < to; ++piece) {
        const int64_t left = piece / rights;
        const int64_t right = piece % rights;
        multiply_piece(left_panels * left / lefts, left_panels * (left + 1) / lefts, right_panels_ * right / rights,
                       right_panels_ * (right + 1) / rights);
      }
    });
  }

  void multiply_piece(int64_t left_from, int64_t left_to, int64_t right_from, int64_t right_to) const {
    thread_local Buffer<uint32_t> own;
    uint32_t* const left = grow(own, kLeftPanels * words_);
    for (int64_t panel = left_from; panel < left_to; ++panel)
      pack_panel<kParts, Operand::kLeft>(in_.left(panel * kPanel, k_, depth_), left + (panel - left_from) * words_);
    for (int64_t j = right_from; j < right_to; ++j)
      for (int64_t i = left_from; i < left_to; ++i)
        multiply_one(left + (i - left_from) * words_, i * kPanel, right_ + j * words_, column_ + j * kPanel);
  }

  void multiply_one(const uint32_t* left, int64_t row, const uint32_t* right, int64_t column) const {
    const MatrixSlice<float> part(in_.c.data + row * in_.c.stride + column, std::min(kPanel, in_.c.rows - row),
                                  std::min(kPanel, in_.c.columns - column), in_.c.stride);
    const float factor = k_ == 0 ? in_.beta : 1.0F;  // of what is there
    const float* const bias = in_.bias.empty() || k_ > 0 ? nullptr : in_.bias.data() + column;
    const bool whole = part.rows == kPanel && part.columns == kPanel;
    if (whole && in_.alpha == 1.0F && (factor == 0.0F || factor == 1.0F) && bias == nullptr)
      return multiply_panels<kParts>(left, right, depth_, factor == 1.0F, part.data, part.stride);
    alignas(64) float sums[kPanel * kPanel];
    multiply_panels<kParts>(left, right, depth_, /*accumulate=*/false, sums, kPanel);
    finish(sums, in_.alpha, factor, bias, part);
  }

  const Product& in_;
  // The block at hand.
  int64_t k_ = 0;
  int64_t depth_ = 0;
  int64_t words_ = 0;  // of a panel
  int64_t column_ = 0;
  int64_t right_panels_ = 0;
  uint32_t* right_ = nullptr;
};

}  // namespace

void gemm_on_tiles(Stream&, Math math, Transpose transpose_a, Transpose transpose_b, float alpha,
                   MatrixSlice<const float> a, MatrixSlice<const float> b, Vector<const float> bias, float beta,
                   MatrixSlice<float> c) {
  const Product product = {transpose_a, transpose_b, alpha, a, b, bias, beta, c};
  if (math == Math::kBf16)
    TiledProduct<kBrainFloat>(product).run();
  else
    TiledProduct<kSingle>(product).run();
}

}  // namespace pkmesh::PKM_CPU
