// Vectors of EXPO_LANES floats and the functions of them that the row kernels need, in the compiler's own vector types:
// the same source for SSE2, NEON, AVX2 and AVX-512. Included once at each level, so there is no include guard.

#include <cstdint>
#include <cstring>

namespace expo::EXPO_LEVEL {

typedef float vf __attribute__((vector_size(4 * EXPO_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * EXPO_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * EXPO_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * EXPO_LANES)));

// As they lie in memory. (Copied by memcpy, GCC takes them in halves through the stack.)
typedef float vf_there __attribute__((vector_size(4 * EXPO_LANES), aligned(4), may_alias));
typedef uint16_t vh_there __attribute__((vector_size(2 * EXPO_LANES), aligned(2), may_alias));

#define EXPO_INLINE static inline __attribute__((always_inline))

constexpr int64_t kLanes = EXPO_LANES;
constexpr float kInfinity = __builtin_inff();

// A number as it is stored -> fp32 and back; bf16 is rounded to nearest, ties to even, and a NaN stays one.

struct Float32 {
  typedef float Stored;
  EXPO_INLINE vf load(const float* from) { return *(const vf_there*)from; }
  EXPO_INLINE void store(float* to, vf x) { *(vf_there*)to = x; }
};

struct BFloat16 {
  typedef uint16_t Stored;
  EXPO_INLINE vf load(const uint16_t* from) {
    vh x = *(const vh_there*)from;
    return (vf)(__builtin_convertvector(x, vu) << 16);
  }
  EXPO_INLINE void store(uint16_t* to, vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (bits >> 16) | 0x40;
    *(vh_there*)to = __builtin_convertvector((vu)((vi)(x == x) ? rounded : quiet), vh);
  }
};

struct Float16 {
  typedef uint16_t Stored;
  EXPO_INLINE vf load(const uint16_t* from) {
    vh x = *(const vh_there*)from;
    vu bits = __builtin_convertvector(x, vu), size = (bits & 0x7fff) << 13;
    vf value = (vf)size * 0x1p112f;  // exact, subnormal numbers too
    vu special = (vu)((vi)(size >= (vu){} + (0x7c00u << 13)) ? (vi)(size | 0x7f800000u) : (vi)value);
    return (vf)(special | ((bits & 0x8000) << 16));
  }
};

// `count` numbers of a row's end, the other lanes 0

template <class Number>
EXPO_INLINE vf load_first(const typename Number::Stored* from, int64_t count) {
  typename Number::Stored buffer[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
  return Number::load(buffer);
}

template <class Number>
EXPO_INLINE void store_first(typename Number::Stored* to, vf x, int64_t count) {
  typename Number::Stored buffer[kLanes];
  Number::store(buffer, x);
  for (int64_t i = 0; i < count; ++i) to[i] = buffer[i];
}

EXPO_INLINE vf filled(float x) { return x - (vf){}; }

EXPO_INLINE vi lanes() {
  vi x;
  for (int i = 0; i < EXPO_LANES; ++i) x[i] = i;
  return x;
}

EXPO_INLINE vf larger(vf a, vf b) { return a > b ? a : b; }  // b where a is NaN

// Over the lanes, in a fixed order.

EXPO_INLINE float sum(vf x) {
  float lane[kLanes];
  memcpy(lane, &x, sizeof x);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

EXPO_INLINE float largest(vf x) {
  float lane[kLanes];
  memcpy(lane, &x, sizeof x);
  for (int64_t i = 1; i < kLanes; ++i) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
  return lane[0];
}

// e^x for x <= 0 to 1.1 ulp; 0 below -87.3, where fp32 has no normal numbers any more; NaN for NaN.
//
// x = n log 2 + f with |f| <= log(2) / 2, and e^f = 1 + f + f^2 q(f); q is minimax of degree 4, off by 3e-9 relative.

EXPO_INLINE vf exp_nonpositive(vf x) {
  constexpr float kLeast = -87.3f, kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;  // log 2 in two parts; n kHigh is exact
  vf inside = x < kLeast ? filled(kLeast) : x;
  vf shifted = inside * 1.44269504f + kRounder;
  vf n = shifted - kRounder;
  vf f = inside - n * kHigh;
  f = f - n * kLow;
  vf q = f * 0.00138144672f + 0.00836878084f;
  q = q * f + 0.0416683927f;
  q = q * f + 0.166665196f;
  q = q * f + 0.49999994f;
  vf e = q * (f * f) + f + 1.0f;
  vf power = (vf)(((vi)shifted << 23) + 0x3f800000);  // the low bits of `shifted` are n
  return x < kLeast ? filled(0.0f) : e * power;
}

// tanh to 2 ulp, and its slope 1 - tanh^2. Below 0.55: u + u^3 r(u^2), r minimax of degree 4, off by 1e-9 relative.
// Above: (1 - e) / (1 + e) and 4 e / (1 + e)^2 with e = e^(-2 |u|), where nothing cancels.

struct Tanh {
  vf value, slope;
};

EXPO_INLINE Tanh tanh(vf u) {
  vf size = u < 0.0f ? -u : u;
  vf t = u * u;
  vf r = t * -0.00627423916f + 0.0210716780f;
  r = r * t - 0.0538523085f;
  r = r * t + 0.133325860f;
  r = r * t - 0.333333164f;
  vf near = u + u * (t * r);
  vf e = exp_nonpositive(size * -2.0f);
  vf share = 1.0f / (1.0f + e);
  vf far = (1.0f - e) * share;
  return {size < 0.55f ? near : (u < 0.0f ? -far : far), size < 0.55f ? 1.0f - near * near : 4.0f * e * share * share};
}

}  // namespace expo::EXPO_LEVEL
