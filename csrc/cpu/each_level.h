// Compiles the file EXPO_SOURCE once for each set of vector instructions, each time inside namespace expo::EXPO_LEVEL
// with EXPO_LANES floats in a vector. Which one runs is decided when it is called (level.h), so one build serves every
// x86-64 processor, and others compile the portable one. No -march, no flags of a file's own.
//
// With EXPO_FROM_AVX512 defined these are AVX-512, without and with its bf16 instructions, and no others.
//
// Everything a level's code uses must be defined inside of it (simd.h), or the linker could keep the copy of a shared
// inline function that was compiled for the newest processor.

#define EXPO_AT_A_LEVEL

#ifndef EXPO_FROM_AVX512
#define EXPO_LEVEL portable
#define EXPO_LANES 4
#include EXPO_SOURCE
#undef EXPO_LEVEL
#undef EXPO_LANES
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#define EXPO_BEGIN(names) _Pragma(EXPO_TEXT(clang attribute push(__attribute__((target(names))), apply_to = function)))
#define EXPO_END _Pragma("clang attribute pop")
#else
#define EXPO_BEGIN(names) _Pragma("GCC push_options") _Pragma(EXPO_TEXT(GCC target(names)))
#define EXPO_END _Pragma("GCC pop_options")
#endif
#define EXPO_TEXT(...) #__VA_ARGS__

#ifndef EXPO_FROM_AVX512
EXPO_BEGIN("avx2,fma")
#define EXPO_LEVEL avx2
#define EXPO_LANES 8
#include EXPO_SOURCE
#undef EXPO_LEVEL
#undef EXPO_LANES
EXPO_END
#endif

#define EXPO_HAS_AVX512
EXPO_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define EXPO_LEVEL avx512
#define EXPO_LANES 16
#include EXPO_SOURCE
#undef EXPO_LEVEL
#undef EXPO_LANES
EXPO_END

#ifdef EXPO_FROM_AVX512
EXPO_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define EXPO_LEVEL avx512_bf16
#define EXPO_LANES 16
#define EXPO_BF16
#include EXPO_SOURCE
#undef EXPO_LEVEL
#undef EXPO_LANES
#undef EXPO_BF16
EXPO_END
#endif

#define EXPO_CHOOSE(function)                                  \
  (::expo::level() >= ::expo::Level::avx512 ? avx512::function \
   : ::expo::level() == ::expo::Level::avx2 ? avx2::function   \
                                            : portable::function)
#else
#define EXPO_CHOOSE(function) portable::function
#endif

#undef EXPO_AT_A_LEVEL
