// Asks the system for pages of 2 MiB under a large buffer, before anything is written there: a page of 4 KiB at a time,
// first touching a workspace of 128 MiB takes as long as a twentieth of the products that fill it. Where the system has
// no such pages, or gives none, nothing changes.

#include "rows.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace expo {

void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace expo
