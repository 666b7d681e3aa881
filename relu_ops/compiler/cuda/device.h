/* What generated device code calls by name, beside CUDA's own functions. */
#ifndef RELU_OPS_DEVICE_H_
#define RELU_OPS_DEVICE_H_

#include "bfloat16.h"

/* The bits of a float16, as float32: exact. */
static __device__ inline float relu_ops_widen_float16(unsigned short bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}

/* The bits of the float16 nearest to a float32, ties to even. */
static __device__ inline unsigned short relu_ops_narrow_float16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

/* The bits of the bfloat16 nearest to a float32, ties to even. */
static __device__ inline unsigned short relu_ops_narrow_bfloat16(float x) {
#if __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return relu_ops_plain_narrow_bfloat16(x);
#endif
}

/* A product of bfloat16, rounded once: x * y + -0.0 is x * y in every bit. */
static __device__ inline unsigned short relu_ops_multiply_bfloat16(unsigned short a,
                                                                   unsigned short b) {
#if __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("fma.rn.bf16 %0, %1, %2, %3;" : "=h"(bits) : "h"(a), "h"(b), "h"((unsigned short)0x8000));
  return bits;
#else
  return relu_ops_plain_multiply_bfloat16(a, b);
#endif
}

#endif
