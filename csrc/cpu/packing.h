// How the factors of a product are copied into the order in which they are multiplied: strips of a, panels of b, unit by
// unit of K. A unit is 32 bits: a float32 number, or two bfloat16 ones that a sum meets together. Included once at each
// level with AVX-512, after simd.h, so there is no include guard.

namespace expo::EXPO_LEVEL {

typedef uint32_t vu_there __attribute__((vector_size(4 * EXPO_LANES), aligned(2), may_alias));  // bf16 numbers too

// The numbers of a unit: how they are read, put together and multiplied.

struct Singles {
  typedef uint32_t Stored __attribute__((may_alias));
  static constexpr int64_t kNumbers = 1;
  EXPO_INLINE vu together(const Stored* from, const Stored*) { return *(const vu_there*)from; }
  EXPO_INLINE uint32_t together(Stored first, Stored) { return first; }
  EXPO_INLINE vf add(vf sum, vu a, vu b) { return sum + (vf)a * (vf)b; }
};

#ifdef EXPO_BF16
struct Pairs {
  typedef uint16_t Stored;
  static constexpr int64_t kNumbers = 2;
  EXPO_INLINE vu wide(const Stored* from) { return __builtin_convertvector(*(const vh_there*)from, vu); }
  EXPO_INLINE vu together(const Stored* from, const Stored* next) { return wide(from) | wide(next) << 16; }
  EXPO_INLINE uint32_t together(Stored first, Stored next) { return first | uint32_t(next) << 16; }
  EXPO_INLINE vf add(vf sum, vu a, vu b) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
};
#endif

// A unit of row or column r, with zeros behind the block's last number.
template <class X>
EXPO_INLINE uint32_t unit(const Factor& from, const Block& block, int64_t r, int64_t u) {
  const auto* data = static_cast<const typename X::Stored*>(from.data);
  const int64_t k = u * X::kNumbers, step = from.along ? 1 : from.stride;
  const auto* first = data + r * (from.along ? from.stride : 1) + (block.k + k) * step;
  return X::together(first[0], X::kNumbers == 2 && k + 1 < block.depth ? first[step] : 0);
}

// A strip's whole units, where rows of a are of one piece.
template <class X>
static void pack_along(const typename X::Stored* a, int64_t stride, int64_t units, uint32_t* strip) {
  for (int64_t u = 0; u < units; ++u)
    for (int64_t r = 0; r < kPackedRows; ++r) {
      const auto* x = a + r * stride + u * X::kNumbers;
      strip[u * kPackedRows + r] = X::together(x[0], x[X::kNumbers - 1]);
    }
}

// The same of several strips, where columns are: a line of the cache has numbers of more than one strip.
template <class X>
static void pack_across(
    const typename X::Stored* a, int64_t stride, int64_t units, int64_t strips, uint32_t* to, int64_t size) {
  for (int64_t u = 0; u < units; ++u) {
    const auto* x = a + u * X::kNumbers * stride;
    const auto* next = x + (X::kNumbers - 1) * stride;
    for (int64_t s = 0; s < strips; ++s)
      for (int64_t r = 0; r < kPackedRows; ++r)
        to[s * size + u * kPackedRows + r] = X::together(x[s * kPackedRows + r], next[s * kPackedRows + r]);
  }
}

// Strips have their units one after the other, kPackedRows rows in each; rows behind the block's last one are zero.
template <class X>
static void pack_group(const Product& all, const Block& block, int64_t group, uint32_t* strips) {
  const int64_t units = (block.depth + X::kNumbers - 1) / X::kNumbers, whole = block.depth / X::kNumbers;
  const int64_t first = group * kGroup, left = block.rows - first * kPackedRows;
  const int64_t full = first + (left / kPackedRows < kGroup ? left / kPackedRows : kGroup);
  const int64_t end = full < first + kGroup && left % kPackedRows > 0 ? full + 1 : full;
  const int64_t size = units * kPackedRows, stride = all.a.stride;
  const auto* a = static_cast<const typename X::Stored*>(all.a.data);
  if (all.a.along) {
    for (int64_t s = first; s < full; ++s)
      pack_along<X>(a + (block.row + s * kPackedRows) * stride + block.k, stride, whole, strips + s * size);
  } else {
    const auto* corner = a + block.k * stride + block.row + first * kPackedRows;
    pack_across<X>(corner, stride, whole, full - first, strips + first * size, size);
  }
  for (int64_t s = first; s < end; ++s)
    for (int64_t u = s < full ? whole : 0; u < units; ++u)
      for (int64_t r = s * kPackedRows; r < (s + 1) * kPackedRows; ++r)
        strips[s * size + u * kPackedRows + r % kPackedRows] =
            r < block.rows ? unit<X>(all.a, block, block.row + r, u) : 0;
}

template <class X>
static void pack_strips(const Product& all, const Block& block, int64_t group, int64_t end, uint32_t* strips) {
  for (; group < end; ++group) pack_group<X>(all, block, group, strips);
}

// 16 vectors of 16 units: rows become columns. A step exchanges the lanes whose bit differs from their vector's.
EXPO_INLINE void transpose(vu x[kLanes]) {
#pragma GCC unroll 4
  for (int half = 1; half < kLanes; half *= 2) {
    const vi lane = lanes(), upper = (lane & half) != 0;
    const vi low = upper ? lane - half + (int)kLanes : lane, high = upper ? lane + (int)kLanes : lane + half;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & half) continue;
      const __m512i a = (__m512i)x[i], b = (__m512i)x[i + half];
      x[i] = (vu)_mm512_permutex2var_epi32(a, (__m512i)low, b);
      x[i + half] = (vu)_mm512_permutex2var_epi32(a, (__m512i)high, b);
    }
  }
}

// The panel from column n on: unit by unit, kPackedColumns columns in each; columns behind the last one are zero.
template <class X>
static void pack_panel(const Product& all, const Block& block, int64_t n, uint32_t* panel) {
  const int64_t units = (block.depth + X::kNumbers - 1) / X::kNumbers, whole = block.depth / X::kNumbers;
  const int64_t columns = all.N - n < kPackedColumns ? all.N - n : kPackedColumns;
  const auto* data = static_cast<const typename X::Stored*>(all.b.data);
  auto one_by_one = [&](int64_t u, int64_t first) {
    for (int64_t c = first; c < kPackedColumns; ++c)
      panel[u * kPackedColumns + c] = c < columns ? unit<X>(all.b, block, n + c, u) : 0;
  };
  const int64_t vectors = columns / kLanes * kLanes, blocks = all.b.along ? whole / kLanes * kLanes : whole;
  if (all.b.along) {
    for (int64_t c = 0; c < vectors; c += kLanes)
      for (int64_t u = 0; u < blocks; u += kLanes) {
        vu x[kLanes];
        for (int64_t i = 0; i < kLanes; ++i)
          x[i] = *(const vu_there*)(data + (n + c + i) * all.b.stride + block.k + u * X::kNumbers);
        transpose(x);
        for (int64_t i = 0; i < kLanes; ++i) *(vu*)(panel + (u + i) * kPackedColumns + c) = x[i];
      }
  } else {
    for (int64_t u = 0; u < blocks; ++u) {
      const auto* x = data + (block.k + u * X::kNumbers) * all.b.stride + n;
      for (int64_t c = 0; c < vectors; c += kLanes)
        *(vu*)(panel + u * kPackedColumns + c) = X::together(x + c, x + c + (X::kNumbers - 1) * all.b.stride);
    }
  }
  if (vectors < kPackedColumns)
    for (int64_t u = 0; u < blocks; ++u) one_by_one(u, vectors);
  for (int64_t u = blocks; u < units; ++u) one_by_one(u, 0);
}

}  // namespace expo::EXPO_LEVEL
