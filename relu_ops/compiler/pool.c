/* See pool.h. */
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>
#include <xmmintrin.h>

/* glibc 2.34 moved this into libc under a new version; the old one is there on every system.
 * Whatever else is called here has kept its old version (pthread_sigmask has not). */
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");

#define MAX_WORKERS 255
#define SPIN_ROUNDS 4000 /* about 0.1 ms of pause instructions */
#define REGISTERED_NAME "relu_ops.pool.1"

typedef struct {
  atomic_int owned;            /* a caller has a job in the pool */
  atomic_int workers;          /* threads that were started */
  atomic_uint generation;      /* counts jobs; what workers wait on */
  atomic_int sleepers;         /* workers in the futex */
  atomic_ullong claim;         /* generation << 32 | next chunk */
  atomic_llong finished;       /* chunks of this job that are done */
  _Atomic(PoolTask) task;
  _Atomic(void*) argument;
  atomic_llong chunks;
  atomic_int wanted;           /* workers that this job may use */
} Pool;

static Pool own_pool;
static Pool* _Atomic shared_pool;

static void futex(atomic_uint* word, int operation, unsigned value) {
  syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Compute chunks of one job until none is left to claim. */
static void work(Pool* pool, unsigned generation) {
  for (;;) {
    unsigned long long seen = atomic_load(&pool->claim);
    PoolTask task = atomic_load(&pool->task);
    void* argument = atomic_load(&pool->argument);
    long long chunks = atomic_load(&pool->chunks), chunk = (long long)(seen & 0xFFFFFFFFu);
    if ((unsigned)(seen >> 32) != generation || chunk >= chunks) return;
    /* Success means that the job is still the one that was read: it cannot end before this
     * chunk does. */
    if (!atomic_compare_exchange_weak(&pool->claim, &seen, seen + 1)) continue;
    task(argument, chunk, chunks);
    atomic_fetch_add(&pool->finished, 1);
  }
}

typedef struct {
  Pool* pool;
  int number;
  unsigned generation;
} Worker;

static void* worker_main(void* start) {
  Worker worker = *(Worker*)start;
  Pool* pool = worker.pool;
  unsigned seen = worker.generation;
  free(start);
  for (;;) {
    unsigned now = atomic_load(&pool->generation);
    for (int round = 0; now == seen && round < SPIN_ROUNDS; ++round) {
      _mm_pause();
      now = atomic_load(&pool->generation);
    }
    if (now == seen) {
      atomic_fetch_add(&pool->sleepers, 1);
      futex(&pool->generation, FUTEX_WAIT, seen);
      atomic_fetch_sub(&pool->sleepers, 1);
      continue;
    }
    seen = now;
    if (worker.number < atomic_load(&pool->wanted)) work(pool, seen);
  }
  return NULL;
}

/* Start what is missing of `wanted` workers; as many as the system lets us. */
static void start_workers(Pool* pool, int wanted) {
  if (wanted > MAX_WORKERS) wanted = MAX_WORKERS;
  sigset_t all, before;
  if (atomic_load(&pool->workers) >= wanted) return;
  sigfillset(&all); /* signals are the caller's business */
  sigprocmask(SIG_SETMASK, &all, &before); /* on Linux, of this thread */
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (atomic_load(&pool->workers) < wanted) {
    Worker* worker = (Worker*)malloc(sizeof(Worker));
    pthread_t thread;
    if (!worker) break;
    worker->pool = pool;
    worker->number = atomic_load(&pool->workers);
    worker->generation = atomic_load(&pool->generation);
    if (pthread_create(&thread, &attributes, worker_main, worker)) {
      free(worker);
      break;
    }
    atomic_fetch_add(&pool->workers, 1);
  }
  pthread_attr_destroy(&attributes);
  sigprocmask(SIG_SETMASK, &before, NULL);
}

/* A child has none of its parent's threads, and no job of theirs. */
static void forget_workers(void) {
  atomic_store(&own_pool.workers, 0);
  atomic_store(&own_pool.sleepers, 0);
  atomic_store(&own_pool.owned, 0);
}

static int give_pool(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)arguments;
  (void)count;
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = (int64_t)(intptr_t)self;
  return 0;
}

/* The pool of the process: of whichever library came first. */
static Pool* find_pool(void) {
  Pool* pool = atomic_load(&shared_pool);
  if (pool) return pool;
  TVMFFIByteArray name = {REGISTERED_NAME, sizeof(REGISTERED_NAME) - 1};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionGetGlobal(&name, &function) == 0 && !function) {
    TVMFFIObjectHandle mine = NULL;
    if (TVMFFIFunctionCreate(&own_pool, give_pool, NULL, &mine) == 0) {
      if (TVMFFIFunctionSetGlobal(&name, mine, 0) == 0) pthread_atfork(NULL, NULL, forget_workers);
      TVMFFIObjectDecRef(mine);
    }
    function = NULL;
    TVMFFIFunctionGetGlobal(&name, &function);
  }
  pool = &own_pool;
  TVMFFIAny found = {0};
  if (function) {
    if (TVMFFIFunctionCall(function, NULL, 0, &found) == 0) pool = (Pool*)(intptr_t)found.v_int64;
    TVMFFIObjectDecRef(function);
  }
  atomic_store(&shared_pool, pool);
  return pool;
}

void relu_ops_parallel(PoolTask task, void* argument, int64_t chunks, int threads) {
  Pool* pool = threads > 1 && chunks > 1 ? find_pool() : NULL;
  int nobody = 0;
  if (!pool || !atomic_compare_exchange_strong(&pool->owned, &nobody, 1)) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) task(argument, chunk, chunks);
    return;
  }
  start_workers(pool, threads - 1);
  unsigned generation = atomic_load(&pool->generation) + 1;
  /* First of all nothing can be claimed: a worker that is late for the last job, which ended at a
   * lower chunk than this one may, would otherwise take a chunk of this one under its number. */
  atomic_store(&pool->claim, (unsigned long long)generation << 32 | 0xFFFFFFFFu);
  atomic_store(&pool->task, task);
  atomic_store(&pool->argument, argument);
  atomic_store(&pool->chunks, chunks);
  atomic_store(&pool->finished, 0);
  atomic_store(&pool->wanted, threads - 1);
  atomic_store(&pool->claim, (unsigned long long)generation << 32);
  atomic_store(&pool->generation, generation);
  if (atomic_load(&pool->sleepers) > 0) futex(&pool->generation, FUTEX_WAKE, MAX_WORKERS);
  work(pool, generation);
  for (int round = 0; atomic_load(&pool->finished) < chunks; ++round) {
    if (round < SPIN_ROUNDS) _mm_pause();
    else syscall(SYS_sched_yield);
  }
  atomic_store(&pool->owned, 0);
}
