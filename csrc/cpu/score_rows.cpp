// Logits -> what the loss and its gradient need of the softmax, row by row, the label y apart from the crowd.
//
//     x_v = softcap tanh(a_v / softcap), or a_v,          a_v = scale (z_v + bias_v)
//     m = max_{v != y} x_v     E_v = exp(x_v - m)     C = sum_{v != y} E_v     g = x_y - m     u = log C - g
//     logp = -log(1 + e^u)     inverse = 1 / (C + e^g)     pull = t_y C / (C + e^g)     t = dx/da = 1 - (x / softcap)^2
//     stored_v = t_v E_v, 0 for v = y:     d logp / da_v = -inverse stored_v     d logp / da_y = pull
//
// C is summed without the label, so nothing cancels, however certain it is; m is the crowd's own maximum, so C >= 1 and
// what is stored fills its format. Sums are fp32, of lanes and of blocks in a fixed order; what follows of a row's few
// numbers is float64 and cast once; storing is the one downcast of the exponentials. A row's bits depend on that row
// alone. logp, inverse and pull are NaN where any logit is NaN or +inf, where the label's is not finite, or where a cap
// hid that.

#include "rows.h"

#include <cmath>

#ifndef EXPO_AT_A_LEVEL

#include "level.h"

namespace expo {
void keep_row(const Scoring& all, int64_t i, float maximum, float crowd, float moment, float label,
              float t);
}

#define EXPO_SOURCE "score_rows.cpp"
#include "each_level.h"

namespace expo {
namespace {

double exp_or_largest(double x) { return std::exp(x < 700.0 ? x : 700.0); }

// H = log S - sum_v p_v (x_v - top), with top the maximum of the row, so that both terms are >= 0.
double entropy(double crowd, double moment, double gap) {
  if (gap > 0) {
    const double rest = crowd * std::exp(-gap);
    return std::log1p(rest) - (moment - gap * crowd) * std::exp(-gap) / (1 + rest);
  }
  const double own = std::exp(gap), total = crowd + own;
  return std::log(total) - (moment + (own > 0 ? gap * own : 0.0)) / total;
}

}  // namespace

// From the crowd's maximum, sum and moment, and the label's logit.
void keep_row(const Scoring& all, int64_t i, float maximum, float crowd, float moment, float label,
              float t) {
  const bool known = std::isfinite(label) && std::isfinite(crowd);
  const double gap = crowd == 0 ? 0.0 : double(label) - maximum, u = std::log(double(crowd)) - gap;
  const double own = exp_or_largest(gap), nan = std::nan("");
  all.logp[i] = float(known ? -(u > 0 ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u))) : nan);
  all.inverse[i] = float(known ? 1 / (crowd + own) : nan);
  all.pull[i] = float(known ? double(t) * crowd / (crowd + own) : nan);
  if (all.entropy != nullptr) {
    all.entropy[i] = float(known ? entropy(crowd, moment, gap) : nan);
    all.is_argmax[i] = known && gap >= 0;
  }
}

void score_rows(const Scoring& all, int64_t begin, int64_t end) { EXPO_CHOOSE(score_rows)(all, begin, end); }

}  // namespace expo

#else

#include "simd.h"

namespace expo::EXPO_LEVEL {

constexpr int64_t kBlock = 64 * kLanes;  // columns that are summed before they join the row's sum

struct Logits {
  vf x, t;
};

// Of kLanes columns from v on, or of the first `count` of them with x = -inf in the other lanes; `hidden` becomes NaN
// where the cap would hide an infinity or a NaN.
template <class Z, bool kWhole>
EXPO_INLINE Logits logits(const Scoring& all, const typename Z::Stored* z, int64_t v, int64_t count, vf& hidden) {
  vf a = kWhole ? Z::load(z + v) : load_first<Z>(z + v, count);
  if (all.bias != nullptr) a += kWhole ? Float32::load(all.bias + v) : load_first<Float32>(all.bias + v, count);
  Logits made{a * all.scale, filled(1.0f)};
  if (all.softcap != 0) {
    hidden += made.x * 0.0f;
    const Tanh bent = tanh(made.x / all.softcap);
    made = {bent.value * all.softcap, bent.slope};
  }
  if constexpr (!kWhole) made.x = lanes() < (int32_t)count ? made.x : filled(-kInfinity);
  return made;
}

template <class Z, class E, bool kStores>
EXPO_INLINE void score_row(const Scoring& all, int64_t i) {
  const auto* z = static_cast<const typename Z::Stored*>(all.z.data) + i * all.z.stride;
  auto* stored = kStores ? static_cast<typename E::Stored*>(all.stored.data) + i * all.stored.stride : nullptr;
  const int64_t V = all.V, whole = V / kLanes * kLanes, y = all.y[i], at = y / kLanes * kLanes;
  const vf none = filled(-kInfinity);
  const vi own = lanes() == (int32_t)(y - at);  // the label's lane, among those from `at` on
  float label = 0, t = 1;
  vf hidden = {}, top = none;

  auto first = [&](Logits made, int64_t v) __attribute__((always_inline)) {
    vf x = made.x;
    if (v == at) {
      t = largest(own ? made.t : none);
      label = largest(own ? x : none);  // -inf where it is NaN, and neither is finite
      x = own ? none : x;
    }
    top = larger(x, top);
  };
  for (int64_t v = 0; v < whole; v += kLanes) first(logits<Z, true>(all, z, v, kLanes, hidden), v);
  if (whole < V) first(logits<Z, false>(all, z, whole, V - whole, hidden), whole);

  float maximum = largest(top);
  if (maximum == -kInfinity) maximum = 0;  // no crowd: every E is 0
  vf total = hidden, moment = {}, ignored = {};  // the sums of blocks, whose own are these
  vf part = {}, part_moment = {};

  auto second = [&](Logits made, int64_t v) __attribute__((always_inline)) {
    if (v == at) made.x = own ? none : made.x;
    vf gap = made.x - maximum;
    vf e = exp_nonpositive(gap);
    part += e;
    if (all.entropy != nullptr) part_moment += e > 0.0f ? e * gap : filled(0.0f);
    return all.softcap == 0 ? e : e * made.t;
  };
  for (int64_t block = 0; block < V; block += kBlock) {
    const int64_t end = block + kBlock < V ? block + kBlock : V, full = end < whole ? end : whole;
    for (int64_t v = block; v < full; v += kLanes) {
      vf e = second(logits<Z, true>(all, z, v, kLanes, ignored), v);
      if constexpr (kStores) E::store(stored + v, e);
    }
    if (full < end) {
      vf e = second(logits<Z, false>(all, z, full, end - full, ignored), full);
      if constexpr (kStores) store_first<E>(stored + full, e, end - full);
    }
    total += part;
    moment += part_moment;
    part = part_moment = filled(0.0f);
  }
  keep_row(all, i, maximum, sum(total), sum(moment), label, t);
}

template <class Z, class E, bool kStores>
static void score_all(const Scoring& all, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) score_row<Z, E, kStores>(all, i);
}

static void score_rows(const Scoring& all, int64_t begin, int64_t end) {
  const bool narrow = all.z.number == Number::bfloat16, narrow_stored = all.stored.number == Number::bfloat16;
  if (all.stored.data == nullptr)
    return narrow ? score_all<BFloat16, Float32, false>(all, begin, end)
                  : score_all<Float32, Float32, false>(all, begin, end);
  if (narrow)
    return narrow_stored ? score_all<BFloat16, BFloat16, true>(all, begin, end)
                         : score_all<BFloat16, Float32, true>(all, begin, end);
  return narrow_stored ? score_all<Float32, BFloat16, true>(all, begin, end)
                       : score_all<Float32, Float32, true>(all, begin, end);
}

}  // namespace expo::EXPO_LEVEL

#endif
