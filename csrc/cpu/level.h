// Which vector instructions this process uses: the best that the processor and its system have, or fewer where
// EXPO_KERNELS_SIMD asks for it (portable, avx2, avx512, avx512_bf16), read once.

#pragma once

namespace expo {

enum class Level { portable, avx2, avx512, avx512_bf16 };  // in the order of native/csrc.py

Level level();  // throws where EXPO_KERNELS_SIMD names none, or one that this processor has not

// Whether this processor has AVX-512 and is AMD's: there MKL, whose float32 products torch takes, does not use it.
bool library_lags();

}  // namespace expo
