// Products of matrices by our own kernels, for processors with AVX-512: of float32 numbers, and of bfloat16 ones where
// there are instructions for them, with sums in float32 either way.

#pragma once

#include <cstdint>

#include "rows.h"

namespace expo {

struct Factor {
  const void* data;
  int64_t stride;  // numbers from one row or column to the next
  bool along;      // the numbers that a sum runs over lie side by side
};

struct Product {  // out [M, N] = a [M, K] b [K, N], or out += that
  Factor a, b;
  Number number;  // of both, float32 or bfloat16
  float* out;
  int64_t stride;
  bool adds;
  int64_t M, N, K;
};

constexpr int64_t kPackedRows = 6, kPackedColumns = 64;  // of a strip of a, of a panel of b
constexpr int64_t kGroup = 16;                           // strips that are packed together
constexpr int64_t kDepth = 2048;                         // numbers of K that are packed at once
constexpr int64_t kHeight = 1008;                        // rows of a that are, at most

// Rows from `row` on, and numbers of their sums from `k` on, so many of both.
struct Block {
  int64_t row, rows, k, depth;
};

// What one thread makes of a block: strips and panels from one to before another.
struct Share {
  int64_t strip, strips_end, panel, panels_end;
};

struct alignas(64) Line {  // of the cache
  uint32_t units[16];      // a float32 number each, or two bfloat16 ones
};

// How a product is divided: blocks one after the other, each in two rounds that threads share. Groups of strips are
// packed, then tasks pack panels, each in room of its own, and multiply.
class Plan {
 public:
  Plan(const Product& all, int64_t threads, int64_t room);

  int64_t height, tasks;

  int64_t lines() const { return height_lines_ + tasks * panel_lines_; }
  uint32_t* strips(Line* packed) const { return packed->units; }
  uint32_t* panel(Line* packed, int64_t task) const { return packed[height_lines_ + task * panel_lines_].units; }
  Block block(int64_t row, int64_t k) const;
  int64_t groups(const Block& block) const;
  Share share(const Block& block, int64_t task) const;

 private:
  int64_t M_, K_, panels_, across_;  // across: tasks that have the same strips
  int64_t height_lines_, panel_lines_;
};

void pack_strips(const Product& all, const Block& block, int64_t group, int64_t end, uint32_t* strips);
void multiply(const Product& all, const Block& block, const Share& share, const uint32_t* strips, uint32_t* panel);

}  // namespace expo
