// sums_{i, k} = the sum of e_iv over the columns v whose group is k: what a row loses with each group of columns.
//
// Four partial sums of each group, added in a fixed order: neighbours are often of one group, and would wait for each
// other. A row's bits depend on that row and the groups alone. fp32.

#include <cstring>
#include <vector>

#include "rows.h"

namespace expo {
namespace {

constexpr int64_t kPartial = 4;

template <class T>
void sum_all(const Grouping& all, int64_t begin, int64_t end) {
  std::vector<float> partial(kPartial * all.groups);
  for (int64_t i = begin; i < end; ++i) {
    const T* e = static_cast<const T*>(all.e.data) + i * all.e.stride;
    std::memset(partial.data(), 0, partial.size() * sizeof(float));
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
  return all.e.number == Number::bfloat16 ? sum_all<uint16_t>(all, begin, end) : sum_all<float>(all, begin, end);
}

}  // namespace expo
