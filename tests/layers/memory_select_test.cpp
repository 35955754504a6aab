// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "layers/memory/score_product.h"
#include "layers/memory/select.h"
#include "layers/memory/top_k.h"
#include "runtime/buffer.h"
#include "runtime/random.h"
#include "tests/reference/select.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

struct Shape {
  int64_t tokens, heads, width, n, k;  // width of both halves
};

// The op's inputs and outputs, with sentinels behind the outputs, and the inputs in double.
struct Case {
  static constexpr int64_t kGuard = 16;
  static constexpr float kSentinel = 12345.0F;

  // With `levels` > 0 the inputs are integers in [-levels, levels]: sums are exact and ties abound.
  explicit Case(Shape s, int levels = 0, uint64_t seed = 1) : shape(s) {
    const Random random(seed, "select test");
    auto fill = [&, at = uint64_t{0}](std::vector<double>& values, int64_t count) mutable {
      values.resize(static_cast<size_t>(count));
      for (double& value : values) {
        const float u = 2.0F * random.uniform(at++) - 1.0F;
        value = levels > 0 ? std::round(u * static_cast<float>(levels)) : u;
      }
    };
    fill(queries, s.tokens * s.heads * s.width);
    fill(keys, s.heads * s.n * s.width);
    fill(dweights, s.tokens * s.heads * s.k);
    queries_f.assign(queries.begin(), queries.end());
    keys_f.assign(keys.begin(), keys.end());
    dweights_f.assign(dweights.begin(), dweights.end());
    slots.assign(dweights.size() + kGuard, -7);
    weights.assign(dweights.size() + kGuard, kSentinel);
    dqueries.assign(queries.size() + kGuard, kSentinel);
    dkeys.assign(keys.size() + kGuard, kSentinel);
    std::fill(dkeys.begin(), dkeys.end() - kGuard, 0.0F);
  }

  template <class T>
  View<T, 3> query_view(T* data) const {
    return View<T, 3>(data, shape.tokens, shape.heads, shape.width);
  }
  template <class T>
  View<T, 4> key_view(T* data) const {
    return View<T, 4>(data, shape.heads, 2, shape.n, shape.width / 2);
  }
  template <class T>
  Matrix<T> selection_view(T* data) const {
    return Matrix<T>(data, shape.tokens, shape.heads * shape.k);
  }

  void forward() {
    Stream stream;
    select_forward(stream, query_view<const float>(queries_f.data()), key_view<const float>(keys_f.data()),
                   selection_view(slots.data()), selection_view(weights.data()));
  }
  void backward() {
    Stream stream;
    Buffer<SubKeyGradient> scratch({}, 2 * shape.tokens * shape.heads * shape.k);
    select_backward(stream, query_view<const float>(queries_f.data()), key_view<const float>(keys_f.data()),
                    selection_view<const int32_t>(slots.data()), selection_view<const float>(weights.data()),
                    selection_view<const float>(dweights_f.data()),
                    View<SubKeyGradient, 4>(scratch.data(), shape.tokens, shape.heads, 2, shape.k),
                    query_view(dqueries.data()), key_view(dkeys.data()));
  }
  void expect_guards() const {
    for (int64_t i = 1; i <= kGuard; ++i) {
      EXPECT_EQ(slots[slots.size() - i], -7);
      EXPECT_EQ(weights[weights.size() - i], kSentinel);
      EXPECT_EQ(dqueries[dqueries.size() - i], kSentinel);
      EXPECT_EQ(dkeys[dkeys.size() - i], kSentinel);
    }
  }

  Shape shape;
  std::vector<double> queries, keys, dweights;
  std::vector<float> queries_f, keys_f, dweights_f, weights, dqueries, dkeys;
  std::vector<int32_t> slots;
};

const Shape kShapes[] = {{0, 2, 6, 5, 3},     {1, 1, 2, 1, 1},      {3, 1, 4, 7, 1},      {5, 2, 6, 5, 5},
                         {129, 3, 10, 37, 8}, {17, 2, 14, 100, 32}, {9, 1, 300, 67, 33},  {4, 2, 8, 150, 128},
                         {260, 2, 6, 20, 3},  {100, 1, 4, 300, 4},  {20, 2, 250, 20, 17}, {9, 1, 6, 32, 32}};

// Relative to the largest score or gradient.
constexpr double kTolerance = 2e-5;

TEST(Select, TiesGoToTheLowerSlotAndEqualAnExhaustiveSearch) {
  for (const Shape& shape : kShapes)
    for (const int levels : {1, 2, 9}) {
      Case c(shape, levels);
      c.forward();
      for (int64_t token = 0; token < shape.tokens; ++token)
        for (int64_t head = 0; head < shape.heads; ++head) {
          const auto scores = reference::slot_scores(c.query_view<const double>(c.queries.data()),
                                                     c.key_view<const double>(c.keys.data()), token, head);
          const auto expected = reference::best_slots(scores, shape.k);
          const int32_t* got = c.slots.data() + (token * shape.heads + head) * shape.k;
          EXPECT_EQ(std::vector<int32_t>(got, got + shape.k), expected)
              << "token " << token << " head " << head << " n " << shape.n << " k " << shape.k;
        }
      c.expect_guards();
    }
}

TEST(Select, RandomScoresEqualAnExhaustiveSearch) {
  for (const Shape& shape : kShapes) {
    Case c(shape);
    c.forward();
    std::vector<double> weights(c.dweights.size());
    reference::select_weights(c.query_view<const double>(c.queries.data()), c.key_view<const double>(c.keys.data()),
                              c.selection_view<const int32_t>(c.slots.data()), c.selection_view(weights.data()));
    for (int64_t token = 0; token < shape.tokens; ++token)
      for (int64_t head = 0; head < shape.heads; ++head) {
        const auto scores = reference::slot_scores(c.query_view<const double>(c.queries.data()),
                                                   c.key_view<const double>(c.keys.data()), token, head);
        const auto expected = reference::best_slots(scores, shape.k);
        const int32_t* got = c.slots.data() + (token * shape.heads + head) * shape.k;
        EXPECT_EQ(std::set<int32_t>(got, got + shape.k).size(), shape.k) << "a slot twice";
        for (int64_t i = 0; i < shape.k; ++i)  // rounding may swap near-ties only
          EXPECT_NEAR(scores[got[i]], scores[expected[i]], kTolerance * static_cast<double>(shape.width));
      }
    for (size_t i = 0; i < weights.size(); ++i) EXPECT_NEAR(c.weights[i], weights[i], kTolerance);
    c.expect_guards();
  }
}

TEST(Select, BackwardEqualsTheReference) {
  for (const Shape& shape : kShapes) {
    Case c(shape);
    c.forward();
    std::fill(c.dkeys.begin(), c.dkeys.end() - Case::kGuard, 0.5F);  // accumulates
    c.backward();
    std::vector<double> dqueries(c.queries.size());
    std::vector<double> dkeys(c.keys.size());
    reference::select_backward(c.query_view<const double>(c.queries.data()), c.key_view<const double>(c.keys.data()),
                               c.selection_view<const int32_t>(c.slots.data()),
                               c.selection_view<const double>(c.dweights.data()), c.query_view(dqueries.data()),
                               c.key_view(dkeys.data()));
    for (size_t i = 0; i < dqueries.size(); ++i) EXPECT_NEAR(c.dqueries[i], dqueries[i], kTolerance);
    for (size_t i = 0; i < dkeys.size(); ++i) EXPECT_NEAR(c.dkeys[i], 0.5 + dkeys[i], kTolerance);
    c.expect_guards();
  }
}

TEST(Select, ReferenceBackwardEqualsFiniteDifferences) {
  Case c({3, 2, 6, 9, 4});
  c.forward();
  const auto queries = c.query_view(c.queries.data());
  const auto keys = c.key_view(c.keys.data());
  const auto slots = c.selection_view<const int32_t>(c.slots.data());
  const auto value = [&] {
    std::vector<double> weights(c.dweights.size());
    reference::select_weights(queries, keys, slots, c.selection_view(weights.data()));
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * c.dweights[i];
    return sum;
  };
  std::vector<double> dqueries(c.queries.size());
  std::vector<double> dkeys(c.keys.size());
  reference::select_backward(queries, keys, slots, c.selection_view<const double>(c.dweights.data()),
                             c.query_view(dqueries.data()), c.key_view(dkeys.data()));
  constexpr double kStep = 1e-5;
  const auto expect_gradient = [&](std::vector<double>& at, const std::vector<double>& gradient) {
    for (size_t i = 0; i < at.size(); ++i) {
      const double before = at[i];
      at[i] = before + kStep;
      const double above = value();
      at[i] = before - kStep;
      const double below = value();
      at[i] = before;
      EXPECT_NEAR((above - below) / (2 * kStep), gradient[i], 1e-8);
    }
  };
  expect_gradient(c.queries, dqueries);
  expect_gradient(c.keys, dkeys);
}

// 20 threads are more than the columns of the last shape are cut into for few threads.
TEST(Select, SameBitsOnAnyNumberOfThreads) {
  for (const Shape& shape : {Shape{300, 2, 32, 40, 8}, Shape{20, 2, 250, 20, 17}}) {
    Case one(shape);
    const reference::ThreadScope single(1);
    one.forward();
    one.backward();
    for (const int count : {3, 20}) {
      Case several(shape);
      const reference::ThreadScope scope(count);
      several.forward();
      several.backward();
      EXPECT_EQ(one.slots, several.slots) << count;
      EXPECT_EQ(one.weights, several.weights) << count;
      EXPECT_EQ(one.dqueries, several.dqueries) << count;
      EXPECT_EQ(one.dkeys, several.dkeys) << count;
    }
  }
}

TEST(Select, NotANumberReachesTheWeights) {
  Case c({4, 1, 4, 200, 8});
  c.queries_f[5] = std::nanf("");                           // token 1: all scores of one half
  c.keys_f[150 * 2] = std::nanf("");                        // one sub-key, for every token
  c.queries_f[8] = std::numeric_limits<float>::infinity();  // token 2: infinities of both signs
  c.forward();
  c.backward();
  for (int64_t i = 0; i < 4 * 8; ++i) {
    EXPECT_TRUE(std::isnan(c.weights[i])) << i;
    EXPECT_GE(c.slots[i], 0);
    EXPECT_LT(c.slots[i], 200 * 200);
  }
  c.expect_guards();
}

TEST(Select, WrongShapesAreNamed) {
  Stream stream;
  std::vector<float> memory(1000);
  const View<const float, 3> queries(memory.data(), 2, 2, 4);
  const View<const float, 4> keys(memory.data(), 2, 2, 3, 2);
  std::vector<int32_t> slots(100);
  EXPECT_THROW(
      select_forward(stream, queries, keys, Matrix<int32_t>(slots.data(), 2, 8), Matrix<float>(memory.data(), 2, 8)),
      InternalError);  // k = 4 of n = 3
  EXPECT_THROW(select_forward(stream, queries, View<const float, 4>(memory.data(), 2, 2, 3, 3),
                              Matrix<int32_t>(slots.data(), 2, 4), Matrix<float>(memory.data(), 2, 4)),
               InternalError);
}

// Tiles and panels that are not full, and queries that lie apart.
TEST(ScoreProduct, EqualsSumsInDouble) {
  const Random random(4, "score product test");
  for (const bool on_tiles : {false, true})
    for (const int64_t n : {1, 7, 16, 31, 130})
      for (const int64_t width : {1, 3, 16, 17, 64})
        for (const int64_t tokens : {1, 5, 12, 13, 30, 33}) {
          const int64_t query_stride = width + 5;
          std::vector<float> queries(static_cast<size_t>(tokens * query_stride));
          std::vector<float> keys(static_cast<size_t>(n * width));
          random.normals(0, std::ssize(queries), 1.0F, queries.data());
          random.normals(1 << 20, std::ssize(keys), 1.0F, keys.data());
          cpu::ScoreProduct product(on_tiles);
          product.take_keys(Matrix<const float>(keys.data(), n, width));
          const int64_t stride = cpu::ScoreProduct::stride(n);
          const int64_t unit = cpu::ScoreProduct::tokens_at_once(on_tiles);
          std::vector<float> scores(static_cast<size_t>((tokens + unit - 1) / unit * unit * stride + Case::kGuard),
                                    Case::kSentinel);
          product.multiply(queries.data(), query_stride, tokens, scores.data());
          for (int64_t i = 1; i <= Case::kGuard; ++i) EXPECT_EQ(scores[scores.size() - i], Case::kSentinel);
          std::vector<float> alone(static_cast<size_t>(unit * stride));
          for (int64_t token = 0; token < tokens; ++token) {
            product.multiply(queries.data() + token * query_stride, query_stride, 1, alone.data());
            for (int64_t key = 0; key < n; ++key) {
              double expected = 0;
              for (int64_t j = 0; j < width; ++j)
                expected += static_cast<double>(queries[token * query_stride + j]) * keys[key * width + j];
              ASSERT_NEAR(scores[token * stride + key], expected, 2e-5) << n << " " << width << " " << tokens;
              ASSERT_EQ(scores[token * stride + key], alone[key]) << "whatever it is taken with";
            }
          }
        }
}

// The positions of the k best of a list, by sorting; NaN is the largest.
std::vector<int32_t> sorted_best(std::span<const float> scores, int64_t k) {
  std::vector<int32_t> positions(scores.size());
  std::iota(positions.begin(), positions.end(), 0);
  const auto rank = [&](int32_t i) { return std::isnan(scores[i]) ? std::pair(1, 0.0F) : std::pair(0, scores[i]); };
  std::ranges::stable_sort(positions, [&](int32_t a, int32_t b) { return rank(a) > rank(b); });
  positions.resize(static_cast<size_t>(k));
  return positions;
}

// Takes the k best of lists of n, which lie n apart, and holds them against sorting.
void expect_sorted(std::span<const float> scores, int64_t n, int64_t k) {
  const int64_t lists = std::ssize(scores) / n;
  std::vector<float> best(static_cast<size_t>(lists * k));
  std::vector<int32_t> got(best.size());
  cpu::TopK top_k(n);
  top_k(
      {scores.data(), lists, n, n}, k, [](int64_t, int32_t position) { return position; },
      [&](int64_t list) {
        return cpu::TopK::Out{best.data() + list * k, got.data() + list * k};
      });
  for (int64_t list = 0; list < lists; ++list) {
    const std::vector<int32_t> expected = sorted_best(scores.subspan(list * n, n), k);
    for (int64_t i = 0; i < k; ++i) {
      ASSERT_EQ(got[list * k + i], expected[i]) << "n " << n << " k " << k << " list " << list << " place " << i;
      const float score = scores[list * n + expected[i]];
      EXPECT_TRUE(best[list * k + i] == score || std::isnan(score));
    }
  }
}

// Every kind of scores beside every other: lists are bounded several at a time, and one must not disturb another.
TEST(TopK, EqualsSortingWhateverTheScores) {
  constexpr int64_t kLists = 2 * cpu::kLanes + 3;
  const Random random(3, "top-k test");
  uint64_t at = 0;
  for (const int64_t n : {1, 2, 63, 64, 65, 96, 97, 119, 128, 200, 511, 512, 1000, 4096})
    for (const int64_t k : {1, 2, 31, 32, 33, 100, 128}) {
      if (k > n) continue;
      std::vector<float> scores;
      for (int64_t list = 0; list < kLists; ++list)
        for (int64_t i = 0; i < n; ++i) {
          const float u = 2.0F * random.uniform(at++) - 1.0F;
          const float kinds[] = {u,
                                 std::round(3.0F * u),
                                 0.25F,
                                 static_cast<float>(i),
                                 static_cast<float>(-i) * 1e30F,
                                 u > 0.9F ? INFINITY : (u < 0 ? -INFINITY : -0.0F * u),
                                 u > 0.9F ? NAN : u};
          scores.push_back(kinds[list % std::ssize(kinds)]);
        }
      expect_sorted(scores, n, k);
    }
}

// All scores apart but for one pair, which takes places `place` and `place` + 1: equal, or a bit apart, the later one
// in the list the larger. In each list the pair is elsewhere.
std::vector<float> one_close_pair(int64_t n, int64_t place, bool equal, float sign, const Random& random) {
  constexpr int64_t kLists = cpu::kLanes + 3;
  std::vector<float> scores;
  for (int64_t list = 0; list < kLists; ++list) {
    std::vector<float> own(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) own[i] = sign * (1000.0F + static_cast<float>(i));
    std::ranges::sort(own, std::greater());
    own[place + 1] = own[place];
    std::vector<int32_t> order(own.size());
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[random.bits(list * 1000 + i) % (i + 1)]);
    std::vector<float> mixed(own.size());
    for (int64_t i = 0; i < n; ++i) mixed[order[i]] = own[i];
    if (!equal) {
      float& later = mixed[std::max(order[place], order[place + 1])];
      later = std::nextafter(later, INFINITY);
    }
    scores.insert(scores.end(), mixed.begin(), mixed.end());
  }
  return scores;
}

// What a network sees of two such scores is the same, and their positions must not decide: among the k best, and at the
// cut, where one of them is in and the other is out.
TEST(TopK, ScoresThatAreNearlyTheSameAreToldApartAlsoAtTheCut) {
  const Random random(4, "close pair");
  for (const int64_t n : {33, 40, 64, 100, 128, 200})
    for (const int64_t k : {17, 24, 31, 32})
      for (const int64_t place : {int64_t{0}, k - 2, k - 1, k})
        for (const bool equal : {true, false})
          for (const float sign : {1.0F, -1.0F}) {
            if (place + 1 >= n) continue;
            SCOPED_TRACE(testing::Message() << "place " << place << (equal ? " equal" : " a bit apart"));
            expect_sorted(one_close_pair(n, place, equal, sign, random), n, k);
          }
}

// NaN leads some groups, and few groups' maxima are large: the bound must not hide what the 32 best need. Few scores
// are sorted instead: the same must come out.
TEST(TopK, NotANumberIsTheLargestAndHidesNothing) {
  for (const int64_t count : {128, 192, 256}) {
    std::vector<float> scores(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      scores[i] = i % cpu::kLanes == 0 ? 10.0F : (i < cpu::kLanes ? NAN : static_cast<float>(-i));
    expect_sorted(scores, count, 32);
  }
}

}  // namespace
}  // namespace pkmesh
