/* The limit: loops that move the bytes of an operator and do next to nothing else.
 *
 * Each level has its own, with its widest vectors; whoever calls chooses one that the processor has.
 * Ordinary and non-temporal stores; one thread, or several that spin for their next job between start
 * and stop, which is the cheapest dispatch there is (and nothing to ship: it burns a core while idle).
 * Everything is timed here, so that a call from Python costs nothing.
 *
 * Compiled once, with the package. Loops must stay loops (-fno-tree-loop-distribute-patterns:
 * no call of memcpy), compute what is written (no fast math), and begin at cache lines
 * (-falign-loops=64).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "../native/arch.h"
#include "../native/bounds.h"

#define EXPORT __attribute__((visibility("default")))

#define JOINED(a, b) a##_##b
#define NAMED(name, level) JOINED(name, level) /* of what `level` stands for, as in the next */

typedef void (*Loop)(char*, const char* const*, size_t);
typedef uint64_t (*Sum)(const char*, size_t);

#define LOOPS 8

typedef struct {
  const char* name;
  Sum sum;
  Loop loops[LOOPS];
} Level;

#include ARCH_LIMIT

#define LEVELS ((int)(sizeof levels / sizeof *levels))

/* The number of a level, by its name; -1 where there is none. */
EXPORT int limit_level(const char* name) {
  for (int k = 0; k < LEVELS; ++k)
    if (!strcmp(levels[k]->name, name)) return k;
  return -1;
}

/* ------------------------------------------------------------------------------------------ */
/* Threads */

#define MOST_THREADS RELU_OPS_MOST_THREADS
#define LINE 64

typedef struct {
  Loop loop; /* NULL: every thread reads the whole of x[0], to clear its caches */
  Sum sum;
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
    sink = job->sum(job->x[0], job->bytes);
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
      arch_pause();
    }
    atomic_fetch_sub(&pool.awake, 1);
  }
  return NULL;
}

/* Wake so many threads, the caller counted; returns how many there are. */
EXPORT int limit_start(int threads) {
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
  while (atomic_load(&pool.awake) < threads - 1) arch_pause();
  return threads;
}

/* Let them sleep: nothing may spin while somebody else is timed. */
EXPORT void limit_stop(void) {
  atomic_store(&pool.active, 0);
  while (atomic_load(&pool.awake) > 0) arch_pause();
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
    arch_pause();
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds for all repeats of one loop of a level, by number; with `consume`, one thread then sums up the
 * output. Streaming needs y at a multiple of 64. Between limit_start(threads) and limit_stop(). */
EXPORT double limit_run(int level, int loop, int threads, char* y, const char* a, const char* b,
                        const char* c, size_t bytes, int64_t repeats, int consume) {
  const Level* chosen = levels[level];
  Job job = {chosen->loops[loop], chosen->sum, y, {a, b, c}, bytes, threads};
  double start = now();
  for (int64_t k = 0; k < repeats; ++k) {
    dispatch(&job);
    if (consume) sink = job.sum(y, bytes);
    __asm__ volatile("" ::: "memory");
  }
  return now() - start;
}

/* Read a buffer larger than the caches, on every thread: what they held before is gone. */
EXPORT void limit_sweep(int level, const char* buffer, size_t bytes, int threads) {
  Job job = {NULL, levels[level]->sum, NULL, {buffer, NULL, NULL}, bytes, threads};
  dispatch(&job);
}
