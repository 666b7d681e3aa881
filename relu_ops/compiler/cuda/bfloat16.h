/* bfloat16 in plain arithmetic, for devices without instructions for it; on bits, rounded once. */
#ifndef RELU_OPS_BFLOAT16_H_
#define RELU_OPS_BFLOAT16_H_

static __device__ inline unsigned short relu_ops_plain_narrow_bfloat16(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return (unsigned short)(bits >> 16 | 0x40u);
  return (unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/* The product is rounded to float32 first, which changes no bit of it: see Emitter._by_float32. */
static __device__ inline unsigned short relu_ops_plain_multiply_bfloat16(unsigned short a,
                                                                         unsigned short b) {
  float x = __uint_as_float((unsigned)a << 16), y = __uint_as_float((unsigned)b << 16);
  return relu_ops_plain_narrow_bfloat16(x * y);
}

#endif
