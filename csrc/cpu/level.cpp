#include "level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace expo {
namespace {

constexpr const char* kVariable = "EXPO_KERNELS_SIMD";
constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Level best() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::portable;
  for (bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                   __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0})
    if (!has) return Level::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Level::avx512_bf16 : Level::avx512;
#else
  return Level::portable;
#endif
}

Level chosen() {
  const char* asked = std::getenv(kVariable);
  if (asked == nullptr || *asked == '\0') return best();
  for (int i = 0; i <= static_cast<int>(best()); ++i)
    if (std::string(asked) == kNames[i]) return static_cast<Level>(i);
  throw std::runtime_error(std::string(kVariable) + ": want portable, avx2, avx512 or avx512_bf16, up to the " +
                           kNames[static_cast<int>(best())] + " that this processor has, got " + asked);
}

}  // namespace

Level level() {
  static const Level once = chosen();
  return once;
}

bool library_lags() {
#if defined(__x86_64__) && defined(__GNUC__)
  return level() >= Level::avx512 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace expo
