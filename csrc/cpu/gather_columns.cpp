// to_{i, j} = from_{i, columns_j}, in fp32 or as they are: the columns of the stored exponentials that a sparse gradient
// keeps.

#include "rows.h"

namespace expo {
namespace {

inline void put(float& to, float x) { to = x; }
inline void put(float& to, uint16_t x) { to = value(x); }
inline void put(uint16_t& to, uint16_t x) { to = x; }

template <class T, class To>
void gather_all(const Gathering& all, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* from = static_cast<const T*>(all.from.data) + i * all.from.stride;
    To* to = static_cast<To*>(all.to.data) + i * all.to.stride;
    for (int64_t j = 0; j < all.k; ++j) put(to[j], from[all.columns[j]]);
  }
}

}  // namespace

void gather_columns(const Gathering& all, int64_t begin, int64_t end) {
  if (all.from.number == Number::float32) return gather_all<float, float>(all, begin, end);
  if (all.to.number == Number::float32) return gather_all<uint16_t, float>(all, begin, end);
  gather_all<uint16_t, uint16_t>(all, begin, end);
}

}  // namespace expo
