// to_k = factor_k from_{index_k}, in fp32 or bf16: the rows of w that a sparse gradient multiplies.

#include "rows.h"

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

#define EXPO_SOURCE "gather_rows.cpp"
#include "each_level.h"

namespace expo {

void gather_rows(const RowGathering& all, int64_t begin, int64_t end) { EXPO_CHOOSE(gather_rows)(all, begin, end); }

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

template <class X, class To>
static void gather_all(const RowGathering& all, int64_t begin, int64_t end) {
  const int64_t whole = all.D / kLanes * kLanes, left = all.D - whole;
  for (int64_t k = begin; k < end; ++k) {
    const auto* x = static_cast<const typename X::Stored*>(all.from.data) + all.index[k] * all.from.stride;
    auto* to = static_cast<typename To::Stored*>(all.to.data) + k * all.to.stride;
    const float factor = all.factor == nullptr ? 1.0f : all.factor[k];
    for (int64_t d = 0; d < whole; d += kLanes) To::store(to + d, X::load(x + d) * factor);
    if (left > 0) store_first<To>(to + whole, load_first<X>(x + whole, left) * factor, left);
  }
}

template <class To>
static void gather_as(const RowGathering& all, int64_t begin, int64_t end) {
  switch (all.from.number) {
    case Number::float32: return gather_all<Float32, To>(all, begin, end);
    case Number::bfloat16: return gather_all<BFloat16, To>(all, begin, end);
    case Number::float16: return gather_all<Float16, To>(all, begin, end);
  }
}

static void gather_rows(const RowGathering& all, int64_t begin, int64_t end) {
  if (all.to.number == Number::bfloat16) return gather_as<BFloat16>(all, begin, end);
  gather_as<Float32>(all, begin, end);
}

}  // namespace expo::EXPO_LEVEL

#endif
