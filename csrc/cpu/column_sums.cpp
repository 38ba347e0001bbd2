// Of each column v of the stored exponentials e, over the n rows of a block: what says how much the column matters.
//
//     squares_v = sum_n (f_n e_nv)^2        sums_v = sum_n g_n e_nv        largest_v = max_n f_n e_nv
//
// Threads share the columns, rows are added in their order: bits do not depend on the number of threads. fp32.

#include "rows.h"

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

#define EXPO_SOURCE "column_sums.cpp"
#include "each_level.h"

namespace expo {

void column_sums(const Summing& all, int64_t begin, int64_t end) { EXPO_CHOOSE(column_sums)(all, begin, end); }

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

constexpr int64_t kTogether = 4;  // vectors of columns whose sums are in registers while the rows go by

template <class E, bool kWhole>
EXPO_INLINE void sum_vector(const typename E::Stored* e, int64_t count, float f, float g, vf* squares, vf* sums,
                            vf* largest) {
  vf x = kWhole ? E::load(e) : load_first<E>(e, count);
  vf weighted = x * f;
  *squares += weighted * weighted;
  *sums += x * g;
  *largest = larger(weighted, *largest);
}

template <class E, bool kWhole, int64_t kVectors>
EXPO_INLINE void sum_columns(const Summing& all, int64_t v, int64_t count) {
  vf squares[kVectors] = {}, sums[kVectors] = {}, largest[kVectors] = {};
  for (int64_t i = 0; i < all.n; ++i) {
    const auto* e = static_cast<const typename E::Stored*>(all.e.data) + i * all.e.stride + v;
    for (int64_t j = 0; j < kVectors; ++j)
      sum_vector<E, kWhole>(e + j * kLanes, count, all.f[i], all.g[i], squares + j, sums + j, largest + j);
  }
  float* out = all.out + v;
  for (int64_t j = 0; j < kVectors; ++j, out += kLanes) {
    if constexpr (kWhole) {
      Float32::store(out, squares[j]);
      Float32::store(out + all.stride, sums[j]);
      Float32::store(out + 2 * all.stride, largest[j]);
    } else {
      store_first<Float32>(out, squares[j], count);
      store_first<Float32>(out + all.stride, sums[j], count);
      store_first<Float32>(out + 2 * all.stride, largest[j], count);
    }
  }
}

template <class E>
static void sum_all(const Summing& all, int64_t begin, int64_t end) {
  int64_t v = begin;
  for (; v + kTogether * kLanes <= end; v += kTogether * kLanes) sum_columns<E, true, kTogether>(all, v, kLanes);
  for (; v + kLanes <= end; v += kLanes) sum_columns<E, true, 1>(all, v, kLanes);
  if (v < end) sum_columns<E, false, 1>(all, v, end - v);
}

static void column_sums(const Summing& all, int64_t begin, int64_t end) {
  return all.e.number == Number::bfloat16 ? sum_all<BFloat16>(all, begin, end) : sum_all<Float32>(all, begin, end);
}

}  // namespace expo::EXPO_LEVEL

#endif
