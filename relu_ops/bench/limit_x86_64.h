/* The levels of x86-64, each with its widest vectors. Included by limit.c alone. */
#define TARGET_NAME "x86-64-v2"
#define LEVEL v2
#define TARGET __attribute__((target("arch=x86-64-v2")))
#define WIDTH 16
#define STREAM(p, v) _mm_stream_si128((__m128i*)(p), (__m128i)(v))
#include "limit_loops.h"

#define TARGET_NAME "x86-64-v3"
#define LEVEL v3
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define WIDTH 32
#define STREAM(p, v) _mm256_stream_si256((__m256i*)(p), (__m256i)(v))
#include "limit_loops.h"

#define TARGET_NAME "x86-64-v4"
#define LEVEL v4
#define TARGET __attribute__((target("arch=x86-64-v4")))
#define WIDTH 64
#define STREAM(p, v) _mm512_stream_si512((__m512i*)(p), (__m512i)(v))
#include "limit_loops.h"

static const Level* const levels[] = {&level_v2, &level_v3, &level_v4};
