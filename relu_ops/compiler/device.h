/* What generated device code calls by name, beside CUDA's own functions. */
#ifndef RELU_OPS_DEVICE_H_
#define RELU_OPS_DEVICE_H_

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

#endif
