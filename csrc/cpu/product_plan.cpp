// How a product is cut into blocks, groups and tasks. No bits depend on it but on kDepth, which is the same for all.

#include <algorithm>

#include "product.h"

namespace expo {
namespace {

int64_t ceiling(int64_t x, int64_t y) { return (x + y - 1) / y; }

}  // namespace

// Half of the room is the panels', one for each thread as far as that goes; the strips have the rest, a group at least.
Plan::Plan(const Product& all, int64_t threads, int64_t room) : M_(all.M), K_(all.K) {
  const int64_t depth = std::min(all.K, kDepth), units = all.number == Number::bfloat16 ? ceiling(depth, 2) : depth;
  constexpr int64_t unit = sizeof(uint32_t), rows = kGroup * kPackedRows, a_line = sizeof(Line) / unit;
  panel_lines_ = units * kPackedColumns / a_line;
  const int64_t panel = std::max<int64_t>(panel_lines_ * sizeof(Line), 1);
  panels_ = ceiling(all.N, kPackedColumns);
  threads = std::clamp<int64_t>(room / 2 / panel, 1, std::max<int64_t>(threads, 1));
  across_ = std::min(threads, panels_);
  tasks = across_ * (threads / across_);
  const int64_t fit = (room - tasks * panel) / std::max<int64_t>(units * unit * rows, 1);
  height = std::min(std::clamp<int64_t>(fit, 1, kHeight / rows), ceiling(M_, rows)) * rows;
  height_lines_ = ceiling(height * units, a_line);
}

Block Plan::block(int64_t row, int64_t k) const {
  return {row, std::min(M_ - row, height), k, std::min(K_ - k, kDepth)};
}

int64_t Plan::groups(const Block& block) const { return ceiling(block.rows, kGroup * kPackedRows); }

Share Plan::share(const Block& block, int64_t task) const {
  const int64_t strips = ceiling(block.rows, kPackedRows), down = tasks / across_, i = task / across_, j = task % across_;
  return {strips * i / down, strips * (i + 1) / down, panels_ * j / across_, panels_ * (j + 1) / across_};
}

}  // namespace expo
