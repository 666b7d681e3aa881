/* What differs between processors, for x86-64. */
#ifndef RELU_OPS_ARCH_X86_64_H_
#define RELU_OPS_ARCH_X86_64_H_

#include <cpuid.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <x86intrin.h>

/* ---- images: whose code this processor runs (operator.c) ------------------------------------------- */

#define ARCH_NAME "x86_64" /* as uname -m says */
#define ARCH_MACHINE IMAGE_X86_64

/* ---- features (processor.c) ----------------------------------------------------------------------- */

typedef enum { EBX, ECX } ArchRegister;

/* What the operating system must save at a switch, as XCR0 says (Intel SDM, volume 1, 13.3). */
typedef enum { NOTHING = 0, SSE_AVX = 0x6, SSE_AVX_AVX512 = 0xE6 } ArchState;

typedef struct {
  const char* name; /* as /proc/cpuinfo has it */
  uint32_t leaf;    /* of cpuid, subleaf 0 */
  ArchRegister place;
  uint32_t bit;
  ArchState state; /* VEX-coded instructions on general registers (bmi1, bmi2) need none */
} ArchFeature;

/* What the levels of the x86-64 psABI require (section 3.1.1): v2, v3, v4. That the processor has xsave says
 * less than that the operating system has switched it on, which is what is asked. */
static const ArchFeature ARCH_FEATURES[] = {
    {"cx16", 1, ECX, bit_CMPXCHG16B, NOTHING},
    {"lahf_lm", 0x80000001, ECX, bit_LAHF_LM, NOTHING},
    {"popcnt", 1, ECX, bit_POPCNT, NOTHING},
    {"pni", 1, ECX, bit_SSE3, NOTHING},
    {"sse4_1", 1, ECX, bit_SSE4_1, NOTHING},
    {"sse4_2", 1, ECX, bit_SSE4_2, NOTHING},
    {"ssse3", 1, ECX, bit_SSSE3, NOTHING},

    {"avx", 1, ECX, bit_AVX, SSE_AVX},
    {"avx2", 7, EBX, bit_AVX2, SSE_AVX},
    {"bmi1", 7, EBX, bit_BMI, NOTHING},
    {"bmi2", 7, EBX, bit_BMI2, NOTHING},
    {"f16c", 1, ECX, bit_F16C, SSE_AVX},
    {"fma", 1, ECX, bit_FMA, SSE_AVX},
    {"abm", 0x80000001, ECX, bit_ABM, NOTHING},
    {"movbe", 1, ECX, bit_MOVBE, NOTHING},
    {"xsave", 1, ECX, bit_OSXSAVE, NOTHING},

    {"avx512f", 7, EBX, bit_AVX512F, SSE_AVX_AVX512},
    {"avx512bw", 7, EBX, bit_AVX512BW, SSE_AVX_AVX512},
    {"avx512cd", 7, EBX, bit_AVX512CD, SSE_AVX_AVX512},
    {"avx512dq", 7, EBX, bit_AVX512DQ, SSE_AVX_AVX512},
    {"avx512vl", 7, EBX, bit_AVX512VL, SSE_AVX_AVX512},
};

/* XCR0; 0 where the operating system has not switched xsave on, and xgetbv is no instruction. */
static inline uint64_t arch_saved_state(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (uint64_t)d << 32 | a;
}

/* Whether the processor has a feature, and the operating system supports it. */
static inline bool arch_has(const ArchFeature* feature, uint64_t saved_state) {
  uint32_t a, b, c, d;
  if (!__get_cpuid_count(feature->leaf, 0, &a, &b, &c, &d)) return false;
  uint32_t found = feature->place == EBX ? b : c;
  return (found & feature->bit) && (saved_state & feature->state) == (uint64_t)feature->state;
}

/* ---- code (mapping.c) ----------------------------------------------------------------------------- */

/* Bytes were written that will be executed: instruction caches see it. */
static inline void arch_code_was_written(void* base, size_t size) {
  (void)base, (void)size;
}

/* ---- running (run_cpu.c, pool.c) ------------------------------------------------------------------ */

/* Wait a little, in a loop that waits for another thread. */
static inline void arch_pause(void) {
  _mm_pause();
}

/* Ticks of a clock that every processor has alike. */
static inline uint64_t arch_clock(void) {
  return __rdtsc();
}

/* After stores that went past the cache: whatever is stored after this is seen after them. */
static inline void arch_store_fence(void) {
  _mm_sfence();
}

/* How this thread computes with floats: MXCSR (Intel SDM, volume 1, 10.2.3). */
typedef uint32_t ArchFloatMode;

static inline ArchFloatMode arch_float_mode(void) {
  return _mm_getcsr();
}

static inline void arch_set_float_mode(ArchFloatMode mode) {
  _mm_setcsr(mode);
}

/* A mode as IEEE 754 has it: no flushing (bits 6 and 15), rounded to nearest (13 and 14), exceptions masked
 * (7 to 12). Which exceptions there were stays as it is. */
static inline ArchFloatMode arch_exact_float_mode(ArchFloatMode mode) {
  return (mode & ~0xE040u) | 0x1F80u;
}

/* ---- the machine's limit (bench/limit.c) ----------------------------------------------------------- */

#define ARCH_LIMIT "limit_x86_64.h"

#endif
