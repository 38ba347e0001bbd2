// What the operations take: plain pointers, rows of a stride, no tensors. bindings.cpp has checked them.

#pragma once

#include <bit>
#include <cstdint>

namespace expo {

enum class Number { float32, bfloat16, float16 };

struct Matrix {
  void* data;
  int64_t stride;  // numbers from one row to the next
  Number number;
};

// A stored float32 or bfloat16 number, one at a time.
inline float value(float x) { return x; }
inline float value(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

struct Scoring {
  Matrix z;           // [n, V] logits of the product, float32 or bfloat16
  const int64_t* y;   // [n] labels
  const float* bias;  // [V] or null
  float scale;
  float softcap;  // 0: none
  Matrix stored;  // [n, V] or without data: exponentials, float32 or bfloat16
  float* logp;    // [n], and so the others
  float* inverse;
  float* pull;
  float* entropy;   // null where not asked for, and so is
  bool* is_argmax;  // this
  int64_t V;
};

void score_rows(const Scoring& all, int64_t begin, int64_t end);

struct Finishing {
  float* dh;  // [n, D]
  int64_t stride;
  const float* crowd;  // [n]
  const float* label;  // [n]
  Matrix w;            // [V, D]
  const int64_t* y;    // [n]
  int64_t D;
};

void finish_rows(const Finishing& all, int64_t begin, int64_t end);

struct Adding {
  float* out;  // [V, D]
  int64_t stride;
  const int64_t* index;  // [n]
  Matrix rows;           // [n, D]
  const float* factor;   // [n] or null: 1
  int64_t n;
};

void add_rows(const Adding& all, int64_t begin, int64_t end);  // of the D columns

// What a sparse gradient wants: how much each column of e [n, V] matters, what its rows lose with groups of columns, and
// the columns of e and the rows of w that it keeps.

struct Summing {
  Matrix e;        // [n, V], float32 or bfloat16
  const float* f;  // [n]
  const float* g;  // [n]
  float* out;      // [3, V]: squares, sums, largest
  int64_t stride;  // from one of them to the next
  int64_t n;
};

void column_sums(const Summing& all, int64_t begin, int64_t end);  // of the V columns

struct Grouping {
  Matrix e;              // [n, V], float32 or bfloat16
  const int64_t* group;  // [V]
  float* sums;           // [n, groups]
  int64_t stride;
  int64_t groups;
  int64_t V;
};

void group_sums(const Grouping& all, int64_t begin, int64_t end);  // of the n rows

struct Gathering {
  Matrix from;             // [n, V], float32 or bfloat16
  const int64_t* columns;  // [k]
  Matrix to;               // [n, k], float32, or as from is
  int64_t k;
};

void gather_columns(const Gathering& all, int64_t begin, int64_t end);  // of the n rows

struct RowGathering {
  Matrix from;           // [V, D]
  const int64_t* index;  // [k]
  const float* factor;   // [k] or null: 1
  Matrix to;             // [k, D], float32 or bfloat16
  int64_t D;
};

void gather_rows(const RowGathering& all, int64_t begin, int64_t end);  // of the k rows

void prefer_huge_pages(void* data, int64_t bytes);

// values [n], offsets [S + 1] -> sums [S]
void segment_sum(const float* values, const int64_t* offsets, float* sums, int64_t begin, int64_t end);

}  // namespace expo
