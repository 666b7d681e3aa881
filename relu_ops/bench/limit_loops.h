/* The loops of one level, by hand, with its widest vectors. Included once for each level (limit_x86_64.h,
 * limit_aarch64.h), which says before what it is:
 *   TARGET_NAME   the target
 *   LEVEL         what names end in: the last part of the target's
 *   TARGET        lets the level's instructions into these functions, and into none besides
 *   WIDTH         the bytes of its widest vector
 *   STREAM(p, v)  a store of such a vector that goes past the caches
 */
#define Vector NAMED(Vector, LEVEL)
#define Floats NAMED(Floats, LEVEL)
#define Unaligned NAMED(Unaligned, LEVEL)
typedef long long Vector __attribute__((vector_size(WIDTH)));
typedef float Floats __attribute__((vector_size(WIDTH)));
typedef Vector Unaligned __attribute__((aligned(1), may_alias));

#define LOAD(p) ((Vector)(*(const Unaligned*)(p)))
#define STORE(p, v) (*(Unaligned*)(p) = (v))

#define COPY(x, i) LOAD((x)[0] + (i))
#define SCALE(x, i) ((Vector)((Floats)LOAD((x)[0] + (i)) * 0.5f))
#define COMBINE2(x, i) (LOAD((x)[0] + (i)) ^ LOAD((x)[1] + (i)))
#define COMBINE3(x, i) (COMBINE2(x, i) ^ LOAD((x)[2] + (i)))

/* Four vectors in flight; what is left over goes through a buffer of one vector. */
#define LOOP(NAME, COMPUTE, PUT, FENCE)                                                             \
  TARGET static __attribute__((noinline)) void NAMED(NAME, LEVEL)(char* y, const char* const* x,    \
                                                                  size_t bytes) {                   \
    size_t i = 0;                                                                                   \
    for (; i + 4 * WIDTH <= bytes; i += 4 * WIDTH) {                                                \
      Vector a = COMPUTE(x, i), b = COMPUTE(x, i + WIDTH);                                          \
      Vector c = COMPUTE(x, i + 2 * WIDTH), d = COMPUTE(x, i + 3 * WIDTH);                          \
      PUT(y + i, a);                                                                                \
      PUT(y + i + WIDTH, b);                                                                        \
      PUT(y + i + 2 * WIDTH, c);                                                                    \
      PUT(y + i + 3 * WIDTH, d);                                                                    \
    }                                                                                               \
    for (; i + WIDTH <= bytes; i += WIDTH) PUT(y + i, COMPUTE(x, i));                               \
    if (i < bytes) {                                                                                \
      char tail[3][WIDTH] __attribute__((aligned(WIDTH))) = {{0}};                                  \
      const char* const t[3] = {tail[0], tail[1], tail[2]};                                         \
      for (int k = 0; k < 3; ++k)                                                                   \
        if (x[k]) memcpy(tail[k], x[k] + i, bytes - i);                                             \
      Vector last = COMPUTE(t, 0);                                                                  \
      memcpy(y + i, &last, bytes - i);                                                              \
    }                                                                                               \
    FENCE;                                                                                          \
  }

LOOP(copy, COPY, STORE, (void)0)
LOOP(scale, SCALE, STORE, (void)0)
LOOP(combine2, COMBINE2, STORE, (void)0)
LOOP(combine3, COMBINE3, STORE, (void)0)
LOOP(copy_streaming, COPY, STREAM, arch_store_fence())
LOOP(scale_streaming, SCALE, STREAM, arch_store_fence())
LOOP(combine2_streaming, COMBINE2, STREAM, arch_store_fence())
LOOP(combine3_streaming, COMBINE3, STREAM, arch_store_fence())

/* The sum of an array's 64-bit words; bytes left over count as one more. */
EXPORT TARGET uint64_t NAMED(limit_sum, LEVEL)(const char* x, size_t bytes) {
  Vector a = {0}, b = {0}, c = {0}, d = {0};
  size_t i = 0;
  for (; i + 4 * WIDTH <= bytes; i += 4 * WIDTH) {
    a += LOAD(x + i);
    b += LOAD(x + i + WIDTH);
    c += LOAD(x + i + 2 * WIDTH);
    d += LOAD(x + i + 3 * WIDTH);
  }
  a = (a + b) + (c + d);
  uint64_t total = 0;
  for (int k = 0; k < WIDTH / 8; ++k) total += (uint64_t)a[k];
  for (; i < bytes; i += 8) {
    uint64_t word = 0;
    memcpy(&word, x + i, bytes - i < 8 ? bytes - i : 8);
    total += word;
  }
  return total;
}

/* In the order of limit.py's names; the second of a pair has non-temporal stores. */
static const Level NAMED(level, LEVEL) = {
    TARGET_NAME,
    NAMED(limit_sum, LEVEL),
    {NAMED(copy, LEVEL), NAMED(copy_streaming, LEVEL), NAMED(scale, LEVEL), NAMED(scale_streaming, LEVEL),
     NAMED(combine2, LEVEL), NAMED(combine2_streaming, LEVEL), NAMED(combine3, LEVEL),
     NAMED(combine3_streaming, LEVEL)},
};

#undef TARGET_NAME
#undef TARGET
#undef Vector
#undef Floats
#undef Unaligned
#undef LOAD
#undef STORE
#undef COPY
#undef SCALE
#undef COMBINE2
#undef COMBINE3
#undef LOOP
#undef LEVEL
#undef WIDTH
#undef STREAM
