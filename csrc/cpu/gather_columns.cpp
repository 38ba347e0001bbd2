// to_{i, j} = from_{i, columns_j}, in fp32: the columns of the stored exponentials that a sparse gradient keeps.

#include "rows.h"

namespace expo {
namespace {

template <class T>
void gather_all(const Gathering& all, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* from = static_cast<const T*>(all.from.data) + i * all.from.stride;
    float* to = all.to + i * all.stride;
    for (int64_t j = 0; j < all.k; ++j) to[j] = value(from[all.columns[j]]);
  }
}

}  // namespace

void gather_columns(const Gathering& all, int64_t begin, int64_t end) {
  return all.from.number == Number::float32 ? gather_all<float>(all, begin, end)
                                            : gather_all<uint16_t>(all, begin, end);
}

}  // namespace expo
