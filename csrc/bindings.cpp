// The operations' schemas and their checks. Through torch's stable ABI, so that one build serves torch 2.11 and newer;
// tensors become pointers here and nowhere else. expo_kernels/kernels/native/ calls them; users do not.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <memory>
#include <optional>
#include <string>

#include "cpu/level.h"
#include "cpu/product.h"
#include "cpu/rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRowsOfAThread = 1, kColumnsOfAThread = 64, kSumsOfAThread = 64;

std::string shown(const Tensor& x) {
  std::string text = "[";
  for (int64_t d = 0; d < x.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(x.size(d));
  return text + "]";
}

template <class T>
T* vector_of(const char* op, const char* name, const Tensor& x, ScalarType type, int64_t size) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == type && x.dim() == 1 && x.size(0) == size && x.is_contiguous(), op,
                  ": want ", name, " contiguous on the CPU with ", size, " numbers of type ", static_cast<int>(type),
                  ", got ", shown(x), " of type ", static_cast<int>(x.scalar_type()));
  return static_cast<T*>(x.data_ptr());
}

expo::Matrix matrix(const char* op, const char* name, const Tensor& x, int64_t rows, int64_t columns, bool half) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && (rows < 0 || x.size(0) == rows) && x.size(1) == columns &&
                      (columns < 2 || x.stride(1) == 1),
                  op, ": want ", name, " on the CPU, [", rows, ", ", columns, "] with rows of one piece, got ", shown(x));
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || (half && type == ScalarType::Half), op,
                  ": want ", name, " in float32", half ? ", float16" : "", " or bfloat16, got type ",
                  static_cast<int>(type));
  const auto number = type == ScalarType::Float      ? expo::Number::float32
                      : type == ScalarType::BFloat16 ? expo::Number::bfloat16
                                                     : expo::Number::float16;
  return {x.data_ptr(), x.stride(0), number};
}

float* floats(const char* op, const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, op, ": want ", name, " in float32");
  return static_cast<float*>(matrix(op, name, x, rows, columns, false).data);
}

const int64_t* places(const char* op, const char* name, const Tensor& x, int64_t size, int64_t end) {
  const auto* data = vector_of<int64_t>(op, name, x, ScalarType::Long, size);
  for (int64_t i = 0; i < size; ++i)
    STD_TORCH_CHECK(0 <= data[i] && data[i] < end, op, ": want ", name, " from 0 to ", end - 1, ", got ", data[i]);
  return data;
}

// numbers [4, n] takes logp, inverse, pull and entropy.
void score_rows(Tensor z, Tensor y, std::optional<Tensor> bias, double softcap, double scale,
                std::optional<Tensor> stored, Tensor numbers, std::optional<Tensor> is_argmax) {
  constexpr const char* op = "score_rows";
  expo::Scoring all{};
  STD_TORCH_CHECK(z.dim() == 2 && z.size(1) > 0, op, ": want z [n, V], got ", shown(z));
  const int64_t n = z.size(0), V = z.size(1);
  all.z = matrix(op, "z", z, n, V, false);
  all.y = places(op, "y", y, n, V);
  if (bias) all.bias = vector_of<const float>(op, "bias", *bias, ScalarType::Float, V);
  all.scale = static_cast<float>(scale);
  all.softcap = static_cast<float>(softcap);
  if (stored) all.stored = matrix(op, "stored", *stored, n, V, false);
  float* rows = floats(op, "numbers", numbers, 4, n);
  const int64_t stride = numbers.stride(0);
  all.logp = rows;
  all.inverse = rows + stride;
  all.pull = rows + 2 * stride;
  if (is_argmax) {
    all.entropy = rows + 3 * stride;
    all.is_argmax = vector_of<bool>(op, "is_argmax", *is_argmax, ScalarType::Bool, n);
  }
  all.V = V;
  expo::level();  // an error of its own belongs here, not into a thread
  torch::stable::parallel_for(0, n, kRowsOfAThread, [&](int64_t begin, int64_t end) { score_rows(all, begin, end); });
}

void finish_rows(Tensor dh, Tensor crowd, Tensor label, Tensor w, Tensor y) {
  constexpr const char* op = "finish_rows";
  STD_TORCH_CHECK(dh.dim() == 2 && w.dim() == 2, op, ": want dh [n, D] and w [V, D]");
  const int64_t n = dh.size(0), D = dh.size(1);
  const expo::Finishing all{floats(op, "dh", dh, n, D), dh.stride(0),
                            vector_of<const float>(op, "crowd", crowd, ScalarType::Float, n),
                            vector_of<const float>(op, "label", label, ScalarType::Float, n),
                            matrix(op, "w", w, -1, D, true), places(op, "y", y, n, w.size(0)), D};
  expo::level();
  torch::stable::parallel_for(0, n, kRowsOfAThread, [&](int64_t begin, int64_t end) { finish_rows(all, begin, end); });
}

void add_rows(Tensor out, Tensor index, Tensor rows, std::optional<Tensor> factor) {
  constexpr const char* op = "add_rows";
  STD_TORCH_CHECK(out.dim() == 2 && rows.dim() == 2, op, ": want out [V, D] and rows [n, D]");
  const int64_t n = rows.size(0), D = out.size(1);
  const expo::Adding all{floats(op, "out", out, -1, D), out.stride(0), places(op, "index", index, n, out.size(0)),
                         matrix(op, "rows", rows, n, D, true),
                         factor ? vector_of<const float>(op, "factor", *factor, ScalarType::Float, n) : nullptr, n};
  expo::level();
  torch::stable::parallel_for(0, D, kColumnsOfAThread, [&](int64_t begin, int64_t end) { add_rows(all, begin, end); });
}

void column_sums(Tensor e, Tensor f, Tensor g, Tensor out) {
  constexpr const char* op = "column_sums";
  STD_TORCH_CHECK(e.dim() == 2, op, ": want e [n, V], got ", shown(e));
  const int64_t n = e.size(0), V = e.size(1);
  const expo::Summing all{matrix(op, "e", e, n, V, false),
                          vector_of<const float>(op, "f", f, ScalarType::Float, n),
                          vector_of<const float>(op, "g", g, ScalarType::Float, n),
                          floats(op, "out", out, 3, V), out.stride(0), n};
  expo::level();
  torch::stable::parallel_for(0, V, kColumnsOfAThread, [&](int64_t begin, int64_t end) { column_sums(all, begin, end); });
}

void group_sums(Tensor e, Tensor group, Tensor sums) {
  constexpr const char* op = "group_sums";
  STD_TORCH_CHECK(e.dim() == 2 && sums.dim() == 2, op, ": want e [n, V] and sums [n, groups]");
  const int64_t n = e.size(0), V = e.size(1), groups = sums.size(1);
  const expo::Grouping all{matrix(op, "e", e, n, V, false), places(op, "group", group, V, groups),
                           floats(op, "sums", sums, n, groups), sums.stride(0), groups, V};
  torch::stable::parallel_for(0, n, kRowsOfAThread, [&](int64_t begin, int64_t end) { group_sums(all, begin, end); });
}

void gather_columns(Tensor from, Tensor columns, Tensor to) {
  constexpr const char* op = "gather_columns";
  STD_TORCH_CHECK(from.dim() == 2 && columns.dim() == 1, op, ": want from [n, V] and columns [k]");
  const int64_t n = from.size(0), k = columns.size(0);
  const expo::Gathering all{matrix(op, "from", from, n, from.size(1), false),
                            places(op, "columns", columns, k, from.size(1)), matrix(op, "to", to, n, k, false), k};
  STD_TORCH_CHECK(all.to.number == expo::Number::float32 || all.to.number == all.from.number, op,
                  ": want `to` in float32, or as `from` is");
  torch::stable::parallel_for(0, n, kRowsOfAThread, [&](int64_t begin, int64_t end) { gather_columns(all, begin, end); });
}

void gather_rows(Tensor from, Tensor index, std::optional<Tensor> factor, Tensor to) {
  constexpr const char* op = "gather_rows";
  STD_TORCH_CHECK(from.dim() == 2 && index.dim() == 1, op, ": want from [V, D] and index [k]");
  const int64_t k = index.size(0), D = from.size(1);
  const expo::RowGathering all{matrix(op, "from", from, -1, D, true), places(op, "index", index, k, from.size(0)),
                               factor ? vector_of<const float>(op, "factor", *factor, ScalarType::Float, k) : nullptr,
                               matrix(op, "to", to, k, D, false), D};
  expo::level();
  torch::stable::parallel_for(0, k, kRowsOfAThread, [&](int64_t begin, int64_t end) { gather_rows(all, begin, end); });
}

void segment_sum(Tensor values, Tensor offsets, Tensor sums) {
  constexpr const char* op = "segment_sum";
  STD_TORCH_CHECK(values.dim() == 1 && offsets.dim() == 1 && offsets.size(0) > 0, op,
                  ": want values [n] and offsets [S + 1]");
  const int64_t n = values.size(0), S = offsets.size(0) - 1;
  const auto* from = vector_of<const float>(op, "values", values, ScalarType::Float, n);
  const auto* at = places(op, "offsets", offsets, S + 1, n + 1);
  for (int64_t s = 0; s < S; ++s) STD_TORCH_CHECK(at[s] <= at[s + 1], op, ": want offsets that do not fall");
  auto* to = vector_of<float>(op, "sums", sums, ScalarType::Float, S);
  torch::stable::parallel_for(0, S, kSumsOfAThread,
                              [&](int64_t begin, int64_t end) { expo::segment_sum(from, at, to, begin, end); });
}

// x [.., ..] as a factor whose sums run along its dimension `dim`.
expo::Factor factor(const char* op, const char* name, const Tensor& x, int64_t dim) {
  const int64_t other = 1 - dim;
  const bool along = x.stride(dim) == 1 || x.size(dim) < 2;
  STD_TORCH_CHECK(x.is_cpu() && (along || x.stride(other) == 1 || x.size(other) < 2), op, ": want ", name,
                  " on the CPU, with rows or columns of one piece, got ", shown(x));
  return {x.data_ptr(), x.stride(along ? other : dim), along};
}

// room: bytes for what is packed; a group of strips and one panel are the least that it takes.
void product(Tensor a, Tensor b, Tensor out, bool adds, int64_t room) {
  constexpr const char* op = "product";
  STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), op, ": want a [M, K] and b [K, N], got ",
                  shown(a), " and ", shown(b));
  const bool narrow = a.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && (narrow || a.scalar_type() == ScalarType::Float), op,
                  ": want a and b both in float32 or both in bfloat16");
  STD_TORCH_CHECK(expo::level() >= (narrow ? expo::Level::avx512_bf16 : expo::Level::avx512), op,
                  ": want vector instructions that this processor has not");
  const int64_t M = a.size(0), N = b.size(1), K = a.size(1);
  const expo::Product all{factor(op, "a", a, 1), factor(op, "b", b, 0),
                          narrow ? expo::Number::bfloat16 : expo::Number::float32,
                          floats(op, "out", out, M, N), out.stride(0), adds, M, N, K};
  if (M == 0 || N == 0) return;
  const expo::Plan plan(all, torch::stable::get_num_threads(), room);
  const auto packed = std::make_unique_for_overwrite<expo::Line[]>(plan.lines());
  for (int64_t row = 0; row < M; row += plan.height)
    for (int64_t k = 0; k == 0 || k < K; k += expo::kDepth) {
      const expo::Block block = plan.block(row, k);
      torch::stable::parallel_for(0, plan.groups(block), 1, [&](int64_t begin, int64_t end) {
        pack_strips(all, block, begin, end, plan.strips(packed.get()));
      });
      torch::stable::parallel_for(0, plan.tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task)
          multiply(all, block, plan.share(block, task), plan.strips(packed.get()), plan.panel(packed.get(), task));
      });
    }
}

void prefer_huge_pages(Tensor x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), "prefer_huge_pages: want x contiguous on the CPU, got ", shown(x));
  expo::prefer_huge_pages(x.data_ptr(), x.numel() * static_cast<int64_t>(x.element_size()));
}

bool library_lags() { return expo::library_lags(); }

// A number and no name: torch's stable ABI, up to 2.13 at least, leaks every string that an operation takes or returns.
int64_t level() { return static_cast<int64_t>(expo::level()); }

}  // namespace

STABLE_TORCH_LIBRARY(expo_kernels_native, m) {
  m.def(
      "score_rows(Tensor z, Tensor y, Tensor? bias, float softcap, float scale, Tensor(a!)? stored, "
      "Tensor(b!) numbers, Tensor(c!)? is_argmax) -> ()");
  m.def("finish_rows(Tensor(a!) dh, Tensor crowd, Tensor label, Tensor w, Tensor y) -> ()");
  m.def("add_rows(Tensor(a!) out, Tensor index, Tensor rows, Tensor? factor) -> ()");
  m.def("column_sums(Tensor e, Tensor f, Tensor g, Tensor(a!) out) -> ()");
  m.def("group_sums(Tensor e, Tensor group, Tensor(a!) sums) -> ()");
  m.def("gather_columns(Tensor from, Tensor columns, Tensor(a!) to) -> ()");
  m.def("gather_rows(Tensor from, Tensor index, Tensor? factor, Tensor(a!) to) -> ()");
  m.def("segment_sum(Tensor values, Tensor offsets, Tensor(a!) sums) -> ()");
  m.def("product(Tensor a, Tensor b, Tensor(a!) out, bool adds, int room) -> ()");
  m.def("prefer_huge_pages(Tensor(a!) x) -> ()");
  m.def("level() -> int");
  m.def("library_lags() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(expo_kernels_native, CPU, m) {
  m.impl("score_rows", TORCH_BOX(&score_rows));
  m.impl("finish_rows", TORCH_BOX(&finish_rows));
  m.impl("add_rows", TORCH_BOX(&add_rows));
  m.impl("column_sums", TORCH_BOX(&column_sums));
  m.impl("group_sums", TORCH_BOX(&group_sums));
  m.impl("gather_columns", TORCH_BOX(&gather_columns));
  m.impl("gather_rows", TORCH_BOX(&gather_rows));
  m.impl("segment_sum", TORCH_BOX(&segment_sum));
  m.impl("product", TORCH_BOX(&product));
  m.impl("prefer_huge_pages", TORCH_BOX(&prefer_huge_pages));
}

STABLE_TORCH_LIBRARY_IMPL(expo_kernels_native, CompositeExplicitAutograd, m) {
  m.impl("level", TORCH_BOX(&level));
  m.impl("library_lags", TORCH_BOX(&library_lags));
}
