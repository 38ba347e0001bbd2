// dh_i <- crowd_i dh_i + label_i w_{y_i}: the row scale that the product left out, and the label's part of dh.

#include "rows.h"

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

#define EXPO_SOURCE "finish_rows.cpp"
#include "each_level.h"

namespace expo {

void finish_rows(const Finishing& all, int64_t begin, int64_t end) { EXPO_CHOOSE(finish_rows)(all, begin, end); }

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

template <class W>
static void finish_all(const Finishing& all, int64_t begin, int64_t end) {
  const int64_t whole = all.D / kLanes * kLanes, left = all.D - whole;
  for (int64_t i = begin; i < end; ++i) {
    float* dh = all.dh + i * all.stride;
    const auto* w = static_cast<const typename W::Stored*>(all.w.data) + all.y[i] * all.w.stride;
    const float crowd = all.crowd[i], label = all.label[i];
    for (int64_t d = 0; d < whole; d += kLanes)
      Float32::store(dh + d, Float32::load(dh + d) * crowd + W::load(w + d) * label);
    if (left > 0)
      store_first<Float32>(
          dh + whole, load_first<Float32>(dh + whole, left) * crowd + load_first<W>(w + whole, left) * label, left);
  }
}

static void finish_rows(const Finishing& all, int64_t begin, int64_t end) {
  switch (all.w.number) {
    case Number::float32: return finish_all<Float32>(all, begin, end);
    case Number::bfloat16: return finish_all<BFloat16>(all, begin, end);
    case Number::float16: return finish_all<Float16>(all, begin, end);
  }
}

}  // namespace expo::EXPO_LEVEL

#endif
