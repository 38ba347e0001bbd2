// out [M, N] = a [M, K] b [K, N] or out += that, for blocks of a's rows and of K.
//
// a is cut into strips of 6 rows and b into panels of 64 columns, and both are copied so that the innermost loop reads
// them in order: unit by unit of K, where a unit is one float32 number or two bfloat16 ones. That loop keeps 6 x 64 sums
// in 24 registers. A panel stays in the second cache while every strip meets it.
//
// A sum runs over K in order, all in float32: runs of 128 units in a register, which join the sum of kDepth numbers,
// which joins the output. Its bits depend on its row of a, its column of b and K, and not on how many others there are or on
// which thread made it.

#include "product.h"

#ifndef EXPO_AT_A_LEVEL

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#define EXPO_FROM_AVX512
#define EXPO_SOURCE "product.cpp"
#include "each_level.h"

namespace expo {

// bindings.cpp asks for neither where there is no AVX-512.
#ifdef EXPO_HAS_AVX512

void pack_strips(const Product& all, const Block& block, int64_t group, int64_t end, uint32_t* strips) {
  if (all.number == Number::bfloat16) return avx512_bf16::pack_strips<avx512_bf16::Pairs>(all, block, group, end, strips);
  avx512::pack_strips<avx512::Singles>(all, block, group, end, strips);
}

void multiply(const Product& all, const Block& block, const Share& share, const uint32_t* strips, uint32_t* panel) {
  if (all.number == Number::bfloat16) return avx512_bf16::multiply<avx512_bf16::Pairs>(all, block, share, strips, panel);
  avx512::multiply<avx512::Singles>(all, block, share, strips, panel);
}

#else

void pack_strips(const Product&, const Block&, int64_t, int64_t, uint32_t*) {}
void multiply(const Product&, const Block&, const Share&, const uint32_t*, uint32_t*) {}

#endif

}  // namespace expo

#else

#include "simd.h"

#include "packing.h"

namespace expo::EXPO_LEVEL {

constexpr int64_t kVectors = kPackedColumns / kLanes;
constexpr int64_t kRun = 128;  // units that are summed before their sum joins others: no less exact than the library

// The sums of a tile, row by row.
struct Sums {
  vf of[kPackedRows][kVectors];
};

// Over units of a strip and a panel, in registers.
template <class X>
EXPO_INLINE Sums run(const uint32_t* strip, const uint32_t* panel, int64_t units) {
  Sums sums = {};
  for (int64_t u = 0; u < units; ++u) {
    vu b[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) b[j] = *(const vu*)(panel + (u * kVectors + j) * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kPackedRows; ++i) {
      const vu a = strip[u * kPackedRows + i] + (vu){};
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sums.of[i][j] = X::add(sums.of[i][j], a, b[j]);
    }
  }
  return sums;
}

// totals, in memory, += what one run gives.
template <class X>
static void add_run(const uint32_t* strip, const uint32_t* panel, int64_t units, Sums& totals) {
  const Sums sums = run<X>(strip, panel, units);
#pragma GCC unroll 16
  for (int i = 0; i < kPackedRows; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) totals.of[i][j] += sums.of[i][j];
}

struct Tile {
  float* out;
  int64_t stride, rows, columns;
  bool adds;
};

template <class X>
static void make_tile(const uint32_t* strip, const uint32_t* panel, int64_t units, const Tile& tile) {
  if (tile.adds)
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t c = 0; c < kPackedColumns; c += kLanes) __builtin_prefetch(tile.out + i * tile.stride + c, 1);
  Sums totals = {};
  for (int64_t u = 0; u < units; u += kRun)
    add_run<X>(strip + u * kPackedRows, panel + u * kPackedColumns, units - u < kRun ? units - u : kRun, totals);
  for (int64_t i = 0; i < tile.rows; ++i) {
    float* out = tile.out + i * tile.stride;
    for (int64_t j = 0; j < kVectors; ++j) {
      const int64_t c = j * kLanes, left = tile.columns - c;
      if (left >= kLanes) {
        Float32::store(out + c, tile.adds ? Float32::load(out + c) + totals.of[i][j] : totals.of[i][j]);
      } else if (left > 0) {
        const vf before = tile.adds ? load_first<Float32>(out + c, left) : vf{};
        store_first<Float32>(out + c, before + totals.of[i][j], left);
      }
    }
  }
}

template <class X>
static void multiply(
    const Product& all, const Block& block, const Share& share, const uint32_t* strips, uint32_t* panel) {
  const int64_t units = (block.depth + X::kNumbers - 1) / X::kNumbers;
  auto most = [](int64_t left, int64_t size) { return left < size ? left : size; };
  for (int64_t p = share.panel; p < share.panels_end; ++p) {
    const int64_t n = p * kPackedColumns;
    pack_panel<X>(all, block, n, panel);
    for (int64_t s = share.strip; s < share.strips_end; ++s) {
      const int64_t row = s * kPackedRows;
      make_tile<X>(
          strips + row * units, panel, units,
          {all.out + (block.row + row) * all.stride + n, all.stride, most(block.rows - row, kPackedRows),
           most(all.N - n, kPackedColumns), all.adds || block.k > 0});
    }
  }
}

}  // namespace expo::EXPO_LEVEL

#endif
