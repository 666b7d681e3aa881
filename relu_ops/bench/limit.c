/* The limit: loops that move the bytes of an operator and do next to nothing else.
 *
 * Written by hand with the widest vectors of the level that it is compiled for (-march). Ordinary
 * and non-temporal stores; one thread, or several that spin for their next job between start and
 * stop, which is the cheapest dispatch there is (and nothing to ship: it burns a core while idle).
 * Everything is timed here, so that a call from Python costs nothing.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#define STREAM(p, v) _mm512_stream_si512((__m512i*)(p), (__m512i)(v))
#elif defined(__AVX2__)
#define WIDTH 32
#define STREAM(p, v) _mm256_stream_si256((__m256i*)(p), (__m256i)(v))
#else
#define WIDTH 16
#define STREAM(p, v) _mm_stream_si128((__m128i*)(p), (__m128i)(v))
#endif

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
#define LOOP(NAME, COMPUTE, PUT, FENCE)                                                       \
  static __attribute__((noinline)) void NAME(char* y, const char* const* x, size_t bytes) {   \
    size_t i = 0;                                                                             \
    for (; i + 4 * WIDTH <= bytes; i += 4 * WIDTH) {                                          \
      Vector a = COMPUTE(x, i), b = COMPUTE(x, i + WIDTH);                                    \
      Vector c = COMPUTE(x, i + 2 * WIDTH), d = COMPUTE(x, i + 3 * WIDTH);                    \
      PUT(y + i, a);                                                                          \
      PUT(y + i + WIDTH, b);                                                                  \
      PUT(y + i + 2 * WIDTH, c);                                                              \
      PUT(y + i + 3 * WIDTH, d);                                                              \
    }                                                                                         \
    for (; i + WIDTH <= bytes; i += WIDTH) PUT(y + i, COMPUTE(x, i));                         \
    if (i < bytes) {                                                                          \
      char tail[3][WIDTH] __attribute__((aligned(WIDTH))) = {{0}};                            \
      const char* const t[3] = {tail[0], tail[1], tail[2]};                                   \
      for (int k = 0; k < 3; ++k)                                                             \
        if (x[k]) memcpy(tail[k], x[k] + i, bytes - i);                                       \
      Vector last = COMPUTE(t, 0);                                                            \
      memcpy(y + i, &last, bytes - i);                                                        \
    }                                                                                         \
    FENCE;                                                                                    \
  }

LOOP(copy, COPY, STORE, (void)0)
LOOP(scale, SCALE, STORE, (void)0)
LOOP(combine2, COMBINE2, STORE, (void)0)
LOOP(combine3, COMBINE3, STORE, (void)0)
LOOP(copy_streaming, COPY, STREAM, _mm_sfence())
LOOP(scale_streaming, SCALE, STREAM, _mm_sfence())
LOOP(combine2_streaming, COMBINE2, STREAM, _mm_sfence())
LOOP(combine3_streaming, COMBINE3, STREAM, _mm_sfence())

typedef void (*Loop)(char*, const char* const*, size_t);

/* In the order of limit.py's names; the second of a pair has non-temporal stores. */
static const Loop loops[] = {copy,     copy_streaming,     scale,    scale_streaming,
                             combine2, combine2_streaming, combine3, combine3_streaming};

/* ------------------------------------------------------------------------------------------ */
/* Reading: the next step, and clearing the caches */

/* The sum of an array's 64-bit words; bytes left over count as one more. */
uint64_t limit_sum(const char* x, size_t bytes) {
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

/* ------------------------------------------------------------------------------------------ */
/* Threads */

#define MOST_THREADS 256
#define LINE 64

typedef struct {
  Loop loop; /* NULL: every thread reads the whole of x[0], to clear its caches */
  char* y;
  const char* x[3];
  size_t bytes;
  int threads;
} Job;

static struct {
  _Alignas(LINE) atomic_uint generation;
  _Alignas(LINE) atomic_int finished;
  _Alignas(LINE) atomic_int awake;
  atomic_int active; /* how many workers are to spin */
  Job job;
  int workers;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static volatile uint64_t sink;

static void share(const Job* job, int thread) {
  if (!job->loop) {
    sink = limit_sum(job->x[0], job->bytes);
    return;
  }
  size_t lines = (job->bytes + LINE - 1) / LINE;
  size_t begin = lines * (size_t)thread / (size_t)job->threads * LINE;
  size_t end = lines * (size_t)(thread + 1) / (size_t)job->threads * LINE;
  if (end > job->bytes) end = job->bytes;
  if (begin >= end) return;
  const char* x[3];
  for (int k = 0; k < 3; ++k) x[k] = job->x[k] ? job->x[k] + begin : NULL;
  job->loop(job->y + begin, x, end - begin);
}

static void* worker(void* argument) {
  int number = (int)(intptr_t)argument; /* from 1 on; 0 is the caller */
  for (;;) {
    pthread_mutex_lock(&pool.mutex);
    while (atomic_load(&pool.active) < number) pthread_cond_wait(&pool.wake, &pool.mutex);
    unsigned seen = atomic_load(&pool.generation);
    atomic_fetch_add(&pool.awake, 1);
    pthread_mutex_unlock(&pool.mutex);
    for (;;) {
      unsigned now = atomic_load_explicit(&pool.generation, memory_order_acquire);
      if (now != seen) {
        seen = now;
        share(&pool.job, number);
        atomic_fetch_add_explicit(&pool.finished, 1, memory_order_release);
      } else if (atomic_load_explicit(&pool.active, memory_order_relaxed) < number) {
        break;
      }
      _mm_pause();
    }
    atomic_fetch_sub(&pool.awake, 1);
  }
  return NULL;
}

/* Wake so many threads, the caller counted; returns how many there are. */
int limit_start(int threads) {
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  while (pool.workers < threads - 1) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, (void*)(intptr_t)(pool.workers + 1))) break;
    pthread_detach(thread);
    ++pool.workers;
  }
  if (threads - 1 > pool.workers) threads = pool.workers + 1;
  pthread_mutex_lock(&pool.mutex);
  atomic_store(&pool.active, threads - 1);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.mutex);
  while (atomic_load(&pool.awake) < threads - 1) _mm_pause();
  return threads;
}

/* Let them sleep: nothing may spin while somebody else is timed. */
void limit_stop(void) {
  atomic_store(&pool.active, 0);
  while (atomic_load(&pool.awake) > 0) _mm_pause();
}

static void dispatch(const Job* job) {
  if (job->threads == 1) {
    share(job, 0);
    return;
  }
  pool.job = *job;
  atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
  share(job, 0);
  while (atomic_load_explicit(&pool.finished, memory_order_acquire) < job->threads - 1)
    _mm_pause();
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds for all repeats of one loop; with `consume`, one thread then sums up the output.
 * Streaming needs y at a multiple of 64. Between limit_start(threads) and limit_stop(). */
double limit_run(int loop, int threads, char* y, const char* a, const char* b, const char* c,
                 size_t bytes, int64_t repeats, int consume) {
  Job job = {loops[loop], y, {a, b, c}, bytes, threads};
  double start = now();
  for (int64_t k = 0; k < repeats; ++k) {
    dispatch(&job);
    if (consume) sink = limit_sum(y, bytes);
    __asm__ volatile("" ::: "memory");
  }
  return now() - start;
}

/* Read a buffer larger than the caches, on every thread: what they held before is gone. */
void limit_sweep(const char* buffer, size_t bytes, int threads) {
  Job job = {NULL, NULL, {buffer, NULL, NULL}, bytes, threads};
  dispatch(&job);
}
