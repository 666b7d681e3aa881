/* See pool.h. */
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>
#include <x86intrin.h>

/* glibc 2.34 moved this into libc under a new version; the old one is there on every system.
 * Whatever else is called here has kept its old version (pthread_sigmask has not). */
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");

/* What pthread_atfork tells libraries apart by. The start files would define it; a library of ours
 * has none, so that opening it runs no code. */
__attribute__((visibility("hidden"))) void* __dso_handle = &__dso_handle;

#define MAX_WORKERS 255
#define SPIN_ROUNDS 4000 /* about 0.1 ms of pause instructions */
#define REGISTERED_NAME "relu_ops.pool.4"

/* The chunks that one participant has left: generation << 32 | begin << 16 | end. */
typedef struct {
  _Alignas(64) atomic_ullong left;
} Share;

/* Where a worker sleeps. Who reads or changes the rest of it holds it. */
typedef struct {
  atomic_int held;
  int sleeper;     /* the worker's thread; 0: it is awake */
  unsigned barred; /* the processor that was taken from it until it is awake, plus one; or 0 */
} Bed;

typedef struct {
  atomic_int owned;       /* a caller has a job in the pool */
  atomic_int workers;     /* threads that were started */
  atomic_int sleepers;    /* workers in the futex */
  atomic_ullong last_end, last_duration; /* when the last job ended, and its ticks */
  int64_t owed_bytes;      /* moved in this burst without workers that a wake would have brought */
  _Alignas(64) atomic_uint generation; /* counts jobs; what workers wait on */
  _Atomic(PoolTask) task;
  _Atomic(void*) argument;
  atomic_llong chunks;
  atomic_int participants; /* the caller and the workers that this job may use */
  _Alignas(64) atomic_llong finished;  /* chunks of this job that workers did */
  Share shares[MAX_WORKERS + 1];
  Bed beds[MAX_WORKERS + 1]; /* by the worker's number */
} Pool;

static Pool own_pool;
static Pool* _Atomic shared_pool;

static void futex(atomic_uint* word, int operation, unsigned value) {
  syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Take a chunk of a share: its owner the first, a thief the last. -1: there is none left. */
static int64_t take(Share* share, unsigned generation, int is_owner) {
  unsigned long long left = atomic_load(&share->left);
  for (;;) {
    unsigned begin = (unsigned)(left >> 16) & 0xFFFFu, end = (unsigned)left & 0xFFFFu;
    if ((unsigned)(left >> 32) != generation || begin == end) return -1;
    unsigned long long rest = is_owner ? left + (1u << 16) : left - 1;
    if (atomic_compare_exchange_weak(&share->left, &left, rest)) return is_owner ? begin : end - 1;
  }
}

/* Compute what is left of a share; the number of chunks that it were. */
static int64_t work_on(Pool* pool, Share* share, unsigned generation, int is_owner) {
  /* What is read here belongs to the job if a chunk of it can be taken: the job cannot end before
   * that chunk does. */
  PoolTask task = atomic_load(&pool->task);
  void* argument = atomic_load(&pool->argument);
  int64_t chunks = atomic_load(&pool->chunks), chunk, done = 0;
  while ((chunk = take(share, generation, is_owner)) >= 0) {
    task(argument, chunk, chunks);
    ++done;
  }
  return done;
}

/* What a worker does for a job: its own share in order, so that from call to call the same core
 * meets the same memory, then what others have not begun. */
static void work(Pool* pool, unsigned generation, int self) {
  int participants = atomic_load(&pool->participants);
  for (int turn = 0; turn < participants; ++turn) {
    int p = self + turn < participants ? self + turn : self + turn - participants;
    int64_t done = work_on(pool, &pool->shares[p], generation, turn == 0);
    if (done) atomic_fetch_add(&pool->finished, done);
  }
}

#define MAX_PROCESSORS 4096

/* The number of the processor that this thread runs on. The system is asked: rdtscp is no part of any
 * x86-64 level, and a virtual machine without it ends whoever tries. */
static unsigned current_cpu(void) {
  unsigned number;
  if (syscall(SYS_getcpu, &number, NULL, NULL)) return MAX_PROCESSORS;
  return number;
}

/* Let a thread (0: this one) use a processor or not, and its others as before. -1: it is so already,
 * or cannot be. */
static int set_allowed(int thread, unsigned cpu, int allowed) {
  unsigned long set[MAX_PROCESSORS / (8 * sizeof(long))] = {0}, bits = 8 * sizeof(long);
  if (cpu >= MAX_PROCESSORS) return -1;
  long size = syscall(SYS_sched_getaffinity, thread, sizeof(set), set);
  int is_allowed = (set[cpu / bits] >> cpu % bits & 1ul) != 0;
  if (size <= 0 || is_allowed == allowed) return -1;
  set[cpu / bits] ^= 1ul << cpu % bits;
  return (int)syscall(SYS_sched_setaffinity, thread, (unsigned long)size, set);
}

/* Wake all sleepers, but none on the caller's processor: they may not use it until they are awake. The
 * system puts a thread there, behind the caller, if it ran there last, or in a virtual machine if the
 * host has taken the other processors away while they were idle; and leaves it for milliseconds. Until
 * then two threads take as long as one. */
static void wake_sleepers(Pool* pool) {
  unsigned cpu = current_cpu();
  int workers = atomic_load(&pool->workers);
  for (int w = 1; w <= workers; ++w) {
    Bed* bed = &pool->beds[w];
    if (atomic_exchange(&bed->held, 1)) continue; /* it is just going to sleep, or getting up */
    if (bed->sleeper && !bed->barred && set_allowed(bed->sleeper, cpu, 0) == 0)
      bed->barred = cpu + 1;
    atomic_store(&bed->held, 0);
  }
  futex(&pool->generation, FUTEX_WAKE, MAX_WORKERS);
}

static void hold(Bed* bed) {
  while (atomic_exchange(&bed->held, 1)) syscall(SYS_sched_yield);
}

/* Wait for another generation than the one that was seen. */
static void sleep_in(Bed* bed, Pool* pool, unsigned seen, int thread) {
  hold(bed);
  bed->sleeper = thread;
  atomic_store(&bed->held, 0);
  atomic_fetch_add(&pool->sleepers, 1);
  futex(&pool->generation, FUTEX_WAIT, seen);
  atomic_fetch_sub(&pool->sleepers, 1);
  hold(bed);
  bed->sleeper = 0;
  if (bed->barred) set_allowed(0, bed->barred - 1, 1);
  bed->barred = 0;
  atomic_store(&bed->held, 0);
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
  int thread = (int)syscall(SYS_gettid);
  free(start);
  for (;;) {
    unsigned now = atomic_load(&pool->generation);
    for (int round = 0; now == seen && round < SPIN_ROUNDS; ++round) {
      _mm_pause();
      now = atomic_load(&pool->generation);
    }
    if (now == seen) {
      sleep_in(&pool->beds[worker.number], pool, seen, thread);
      continue;
    }
    seen = now;
    if (worker.number < atomic_load(&pool->participants)) work(pool, seen, worker.number);
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
    worker->number = atomic_load(&pool->workers) + 1; /* the caller is 0 */
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
  memset(own_pool.beds, 0, sizeof(own_pool.beds));
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

static int workers_awake(Pool* pool) {
  return atomic_load(&pool->workers) - atomic_load(&pool->sleepers);
}

/* Whether a job follows the last one so closely that the caller cannot have read an array of its size
 * in between, nor written one: a burst. Otherwise he may well have done so on his own thread, and half of
 * it would be, or have been, in another core's cache: relu of 64k float32 and a sum by one thread take
 * 18.9 us on two threads and 7.7 on one (without the sum 2.8 and 4.8), of 256k 48 and 35, of 512k 56 and
 * 67 (AMD EPYC, Zen 4, 2026-11-22). That sum reads half of the bytes, some 36 of them a tick of the time
 * stamp counter. Of a job that computes for long, where it leaves its output matters less. */
#define BURST_BYTES_PER_TICK 96
#define BURST_SHARE_OF_LAST 8
static int is_burst(const Pool* pool, int64_t bytes, unsigned long long now) {
  unsigned long long between = now - atomic_load(&pool->last_end);
  return between <= (unsigned long long)bytes / BURST_BYTES_PER_TICK ||
         between <= atomic_load(&pool->last_duration) / BURST_SHARE_OF_LAST;
}

/* Whether to wake or start workers. That costs the caller more than a short job does, so it is
 * done when the jobs of this burst have moved as many bytes as make up for it (the ski-rental
 * rule: never much worse than knowing in advance how many jobs are still to come). */
static int is_time_to_wake(Pool* pool, PoolUse use) {
  pool->owed_bytes += use.bytes;
  return pool->owed_bytes >= use.wake_bytes;
}

static void run_alone(PoolTask task, void* argument, int64_t chunks) {
  for (int64_t chunk = 0; chunk < chunks; ++chunk) task(argument, chunk, chunks);
}

/* Share a job with whoever is awake, and with the others if they are to be woken. */
static void run_shared(Pool* pool, PoolTask task, void* argument, int64_t chunks, int threads,
                       int wake) {
  unsigned generation = atomic_load(&pool->generation) + 1;
  atomic_store_explicit(&pool->task, task, memory_order_relaxed);
  atomic_store_explicit(&pool->argument, argument, memory_order_relaxed);
  atomic_store_explicit(&pool->chunks, chunks, memory_order_relaxed);
  atomic_store_explicit(&pool->participants, threads, memory_order_relaxed);
  atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
  for (int p = 0; p < threads; ++p) {
    unsigned long long begin = (unsigned long long)(chunks * p / threads);
    unsigned long long end = (unsigned long long)(chunks * (p + 1) / threads);
    unsigned long long left = (unsigned long long)generation << 32 | begin << 16 | end;
    atomic_store_explicit(&pool->shares[p].left, left, memory_order_relaxed);
  }
  atomic_store(&pool->generation, generation); /* publishes all of it, before sleepers is read */
  if (wake && atomic_load(&pool->sleepers) > 0) wake_sleepers(pool);
  /* The caller's own chunks are not counted in memory that others write. */
  int64_t own = work_on(pool, &pool->shares[0], generation, 1);
  for (int p = 1; p < threads && own + atomic_load(&pool->finished) < chunks; ++p)
    own += work_on(pool, &pool->shares[p], generation, 0);
  for (int round = 0; own + atomic_load(&pool->finished) < chunks; ++round) {
    if (round < SPIN_ROUNDS) _mm_pause();
    else syscall(SYS_sched_yield);
  }
}

void relu_ops_parallel(PoolTask task, void* argument, int64_t chunks, PoolUse use) {
  int threads = use.threads > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : use.threads;
  Pool* pool = threads > 1 && chunks > 1 ? find_pool() : NULL;
  int nobody = 0;
  if (!pool || !atomic_compare_exchange_strong(&pool->owned, &nobody, 1)) {
    run_alone(task, argument, chunks);
    return;
  }
  unsigned long long start = __rdtsc(), end;
  int burst = is_burst(pool, use.bytes, start), shared = burst || use.bytes >= use.wake_bytes;
  if (!burst) pool->owed_bytes = 0;
  int wake = shared && workers_awake(pool) < threads - 1 && is_time_to_wake(pool, use);
  if (wake) start_workers(pool, threads - 1);
  if (shared && (wake || workers_awake(pool) > 0)) {
    run_shared(pool, task, argument, chunks, threads, wake);
    atomic_store(&pool->owned, 0);
  } else {
    atomic_store(&pool->owned, 0);
    run_alone(task, argument, chunks);
  }
  end = __rdtsc();
  atomic_store(&pool->last_duration, end - start);
  atomic_store(&pool->last_end, end);
}
