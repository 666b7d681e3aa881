/* Prints which features arch_x86_64.h finds where the operating system saves some registers: a line for
 * none, for those of AVX, for those of AVX-512, for those that it says it saves. */
#include <stdio.h>

#include "../../relu_ops/native/arch_x86_64.h"

int main(void) {
  const uint64_t states[] = {NOTHING, SSE_AVX, SSE_AVX_AVX512, arch_saved_state()};
  for (int k = 0; k < 4; ++k) {
    for (size_t f = 0; f < sizeof(ARCH_FEATURES) / sizeof(*ARCH_FEATURES); ++f)
      if (arch_has(&ARCH_FEATURES[f], states[k])) printf("%s ", ARCH_FEATURES[f].name);
    printf("\n");
  }
  return 0;
}
