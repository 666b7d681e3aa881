/* bfloat16 in plain arithmetic, for devices without instructions for it; on bits, rounded once. */
#ifndef RELU_OPS_BFLOAT16_H_
#define RELU_OPS_BFLOAT16_H_

static __device__ inline unsigned short relu_ops_plain_narrow_bfloat16(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return (unsigned short)(bits >> 16 | 0x40u);
  return (unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/* The product in float32 is exact, but below 2**-126, where it is rounded there to the result's
 * own quantum, 2**-133: scaled by 2**133 in steps that are exact, it is the bits themselves. */
static __device__ inline unsigned short relu_ops_plain_multiply_bfloat16(unsigned short a,
                                                                         unsigned short b) {
  float x = __uint_as_float((unsigned)a << 16), y = __uint_as_float((unsigned)b << 16);
  float product = x * y;
  if (!(fabsf(product) < 0x1p-126f)) return relu_ops_plain_narrow_bfloat16(product);
  float quanta = rintf(fabsf((x * 0x1p66f) * (y * 0x1p67f)));
  return (unsigned short)(((a ^ b) & 0x8000) | (unsigned)quanta);
}

#endif
