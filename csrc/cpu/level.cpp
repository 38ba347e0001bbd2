#include "level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace expo {
namespace {

constexpr const char* kVariable = "EXPO_KERNELS_SIMD";
constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Level best() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::portable;
  for (bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                   __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0})
    if (!has) return Level::avx2;
  return Level::avx512;
#else
  return Level::portable;
#endif
}

Level chosen() {
  const char* asked = std::getenv(kVariable);
  if (asked == nullptr || *asked == '\0') return best();
  for (int i = 0; i <= static_cast<int>(best()); ++i)
    if (std::string(asked) == kNames[i]) return static_cast<Level>(i);
  throw std::runtime_error(std::string(kVariable) + ": want portable, avx2 or avx512, up to the " +
                           kNames[static_cast<int>(best())] + " that this processor has, got " + asked);
}

}  // namespace

Level level() {
  static const Level once = chosen();
  return once;
}

}  // namespace expo
