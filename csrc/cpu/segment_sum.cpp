// sums_s = the sum of values from offsets_s to offsets_{s+1}, in float64 and in order, cast once: a sequence's log-prob
// from its scored tokens.

#include "rows.h"

namespace expo {

void segment_sum(const float* values, const int64_t* offsets, float* sums, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) {
    double total = 0;
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) total += values[i];
    sums[s] = static_cast<float>(total);
  }
}

}  // namespace expo
