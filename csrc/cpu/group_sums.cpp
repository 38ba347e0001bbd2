// sums_{i, k} = the sum of e_iv over the columns v whose group is k: what a row loses with each group of columns.
//
// Two groups are summed in vectors. More are four partial sums each, added in a fixed order: neighbours are often of one
// group, and would wait for each other. A row's bits depend on that row and the groups alone. fp32.

#include "rows.h"

#include <vector>

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

#define EXPO_SOURCE "group_sums.cpp"
#include "each_level.h"

namespace expo {
namespace {

constexpr int64_t kPartial = 4;

template <class T>
void sum_many(const Grouping& all, int64_t begin, int64_t end) {
  std::vector<float> partial(kPartial * all.groups);
  for (int64_t i = begin; i < end; ++i) {
    const T* e = static_cast<const T*>(all.e.data) + i * all.e.stride;
    partial.assign(partial.size(), 0.0f);
    int64_t v = 0;
    for (; v + kPartial <= all.V; v += kPartial)
      for (int64_t j = 0; j < kPartial; ++j) partial[all.group[v + j] * kPartial + j] += value(e[v + j]);
    for (; v < all.V; ++v) partial[all.group[v] * kPartial] += value(e[v]);
    for (int64_t k = 0; k < all.groups; ++k) {
      const float* of = partial.data() + k * kPartial;
      all.sums[i * all.stride + k] = (of[0] + of[1]) + (of[2] + of[3]);
    }
  }
}

}  // namespace

void group_sums(const Grouping& all, int64_t begin, int64_t end) {
  if (all.groups == 2) {
    std::vector<float> first(all.V);
    for (int64_t v = 0; v < all.V; ++v) first[v] = all.group[v] == 0 ? 1.0f : 0.0f;
    return EXPO_CHOOSE(sum_two)(all, first.data(), begin, end);
  }
  return all.e.number == Number::bfloat16 ? sum_many<uint16_t>(all, begin, end) : sum_many<float>(all, begin, end);
}

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

// first [V]: 1 in the columns of group 0, else 0; its products are exact, and so are their differences.
template <class E>
static void sum_two_of(const Grouping& all, const float* first, int64_t begin, int64_t end) {
  const int64_t whole = all.V / kLanes * kLanes;
  for (int64_t i = begin; i < end; ++i) {
    const auto* e = static_cast<const typename E::Stored*>(all.e.data) + i * all.e.stride;
    vf zero = {}, one = {};
    auto add = [&](vf x, vf in) __attribute__((always_inline)) {
      vf own = x * in;
      zero += own;
      one += x - own;
    };
    for (int64_t v = 0; v < whole; v += kLanes) add(E::load(e + v), Float32::load(first + v));
    if (whole < all.V)
      add(load_first<E>(e + whole, all.V - whole), load_first<Float32>(first + whole, all.V - whole));
    all.sums[i * all.stride] = sum(zero);
    all.sums[i * all.stride + 1] = sum(one);
  }
}

static void sum_two(const Grouping& all, const float* first, int64_t begin, int64_t end) {
  return all.e.number == Number::bfloat16 ? sum_two_of<BFloat16>(all, first, begin, end)
                                          : sum_two_of<Float32>(all, first, begin, end);
}

}  // namespace expo::EXPO_LEVEL

#endif
