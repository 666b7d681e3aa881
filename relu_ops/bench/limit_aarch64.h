/* AArch64, with two registers of 16 bytes as a vector: stnp stores two. Included by limit.c alone. */
#include <arm_neon.h>

#define TARGET_NAME "aarch64"
#define LEVEL aarch64
#define TARGET
#define WIDTH 32
#define STREAM(p, v) stream_pair((p), (v))

typedef long long Pair __attribute__((vector_size(32)));

static inline void stream_pair(char* p, Pair v) {
  int64x2_t low = {v[0], v[1]}, high = {v[2], v[3]};
  __asm__ volatile("stnp %q1, %q2, [%0]" : : "r"(p), "w"(low), "w"(high) : "memory");
}

#include "limit_loops.h"

static const Level* const levels[] = {&level_aarch64};
