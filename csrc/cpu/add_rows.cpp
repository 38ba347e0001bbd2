// out_{index_i} += factor_i rows_i for i = 0, 1, ... in this order: the label's part of dw, and the rows of a sparse dw.
//
// An index may come several times, so threads share the columns and not the rows: bits do not depend on their number.

#include "rows.h"

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

#define EXPO_SOURCE "add_rows.cpp"
#include "each_level.h"

namespace expo {

void add_rows(const Adding& all, int64_t begin, int64_t end) { EXPO_CHOOSE(add_rows)(all, begin, end); }

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

template <class X>
static void add_all(const Adding& all, int64_t begin, int64_t end) {
  const int64_t whole = begin + (end - begin) / kLanes * kLanes;
  for (int64_t i = 0; i < all.n; ++i) {
    float* out = all.out + all.index[i] * all.stride;
    const auto* x = static_cast<const typename X::Stored*>(all.rows.data) + i * all.rows.stride;
    const float factor = all.factor == nullptr ? 1.0f : all.factor[i];
    for (int64_t d = begin; d < whole; d += kLanes)
      Float32::store(out + d, Float32::load(out + d) + X::load(x + d) * factor);
    if (const int64_t left = end - whole; left > 0)
      store_first<Float32>(
          out + whole, load_first<Float32>(out + whole, left) + load_first<X>(x + whole, left) * factor, left);
  }
}

static void add_rows(const Adding& all, int64_t begin, int64_t end) {
  switch (all.rows.number) {
    case Number::float32: return add_all<Float32>(all, begin, end);
    case Number::bfloat16: return add_all<BFloat16>(all, begin, end);
    case Number::float16: return add_all<Float16>(all, begin, end);
  }
}

}  // namespace expo::EXPO_LEVEL

#endif
