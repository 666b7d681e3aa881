/* What differs between processors, for AArch64. */
#ifndef RELU_OPS_ARCH_AARCH64_H_
#define RELU_OPS_ARCH_AARCH64_H_

#include <asm/hwcap.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/auxv.h>

/* ---- images: whose code this processor runs (operator.c) ------------------------------------------- */

#define ARCH_NAME "aarch64" /* as uname -m says */
#define ARCH_MACHINE IMAGE_AARCH64

/* ---- features (processor.c) ----------------------------------------------------------------------- */

typedef struct {
  const char* name; /* as /proc/cpuinfo has it */
  uint64_t bit;     /* of AT_HWCAP: <asm/hwcap.h> */
} ArchFeature;

static const ArchFeature ARCH_FEATURES[] = {{"fp", HWCAP_FP}, {"asimd", HWCAP_ASIMD}};

/* What Linux says of the processor: only what it saves the registers for. */
static inline uint64_t arch_saved_state(void) {
  return getauxval(AT_HWCAP);
}

static inline bool arch_has(const ArchFeature* feature, uint64_t saved_state) {
  return (saved_state & feature->bit) != 0;
}

/* ---- code (mapping.c) ----------------------------------------------------------------------------- */

/* Bytes were written that will be executed: instruction caches know nothing of data caches (Arm ARM,
 * B2.4.4). Readable, they may be mapped executable already. */
static inline void arch_code_was_written(void* base, size_t size) {
  __builtin___clear_cache((char*)base, (char*)base + size);
}

/* ---- running (run_cpu.c, pool.c) ------------------------------------------------------------------ */

/* Wait a little, in a loop that waits for another thread. yield is a no-operation on most processors; isb
 * takes tens of cycles, and is what Rust's spin_loop and MySQL wait with. */
static inline void arch_pause(void) {
  __asm__ volatile("isb" ::: "memory");
}

/* About the rate of arch_clock, which sizes of arrays are compared with (pool.c): that of x86's counter. */
#define ARCH_TICKS_PER_SECOND UINT64_C(2500000000)

/* Ticks of a clock that every processor has alike. Its own rate is between 1 MHz and 1 GHz. */
static inline uint64_t arch_clock(void) {
  uint64_t ticks, per_second;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  __asm__("mrs %0, cntfrq_el0" : "=r"(per_second));
  return per_second ? ticks * (ARCH_TICKS_PER_SECOND / per_second) : ticks;
}

/* After stores that went past the cache: whatever is stored after this is seen after them. */
static inline void arch_store_fence(void) {
  __asm__ volatile("dmb ishst" ::: "memory");
}

/* How this thread computes with floats: FPCR (Arm ARM, C5.2.8). */
typedef uint64_t ArchFloatMode;

static inline ArchFloatMode arch_float_mode(void) {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}

static inline void arch_set_float_mode(ArchFloatMode mode) {
  __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}

/* A mode as IEEE 754 has it: no flushing (bits 0, 19 and 24), rounded to nearest (22 and 23), exceptions
 * masked (8 to 12 and 15), half precision with infinities and NaN (26); what changes NaN, the sign of one or
 * other elements of a register is off too (1, 2, 13 and 25). */
static inline ArchFloatMode arch_exact_float_mode(ArchFloatMode mode) {
  return mode & ~UINT64_C(0x07C8BF07);
}

/* ---- the machine's limit (bench/limit.c) ----------------------------------------------------------- */

#define ARCH_LIMIT "limit_aarch64.h"

#endif
