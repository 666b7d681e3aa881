/* What this machine's processor is, asked of itself: /proc may be hidden, and is not needed. */
#include <string.h>

#include "arch.h"
#include "core.h"

enum { FEATURES = sizeof(ARCH_FEATURES) / sizeof(*ARCH_FEATURES) };
_Static_assert(FEATURES < 64, "the features of a processor are one word, and a bit that says it is known");

#define KNOWN (UINT64_C(1) << 63)

/* A bit a row. Asked once: below a hypervisor cpuid takes microseconds. Whoever asks first finds the
 * same, so that two at once are harmless. */
static uint64_t features(void) {
  static _Atomic uint64_t known;
  uint64_t found = atomic_load_explicit(&known, memory_order_relaxed);
  if (found) return found;
  uint64_t saved_state = arch_saved_state();
  for (int k = 0; k < FEATURES; ++k)
    if (arch_has(&ARCH_FEATURES[k], saved_state)) found |= UINT64_C(1) << k;
  atomic_store_explicit(&known, found | KNOWN, memory_order_relaxed);
  return found | KNOWN;
}

const char* relu_ops_processor_feature(size_t number) {
  uint64_t found = features();
  for (int k = 0; k < FEATURES; ++k)
    if ((found >> k & 1) && number-- == 0) return ARCH_FEATURES[k].name;
  return NULL;
}

bool relu_ops_processor_has(const char* feature) {
  const char* name;
  for (size_t k = 0; (name = relu_ops_processor_feature(k)); ++k)
    if (strcmp(name, feature) == 0) return true;
  return false;
}

/* Not asked of the system: setarch makes it name another one that this program does not run on. */
const char* relu_ops_architecture(void) {
  return ARCH_NAME;
}
