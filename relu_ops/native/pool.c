/* See pool.h. */
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arch.h"
#include "bounds.h"

#define MAX_WORKERS (RELU_OPS_MOST_THREADS - 1)
#define SPIN_ROUNDS 4000 /* about 0.1 ms of pause instructions */

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

static struct {
  atomic_int owned;       /* a caller has a job in the pool */
  atomic_int workers;     /* threads that were started */
  atomic_int sleepers;    /* workers in the futex */
  atomic_ullong last_end, last_duration; /* when the last job ended, and its ticks */
  int64_t owed_bytes; /* moved in this burst without workers that a wake would have brought; the owner's */
  _Alignas(64) atomic_uint generation; /* counts jobs; what workers wait on */
  _Atomic(relu_ops_task) task;
  _Atomic(void*) argument;
  atomic_llong chunks;
  atomic_int participants; /* the caller and the workers that this job may use */
  _Alignas(64) atomic_llong finished;  /* chunks of this job that workers did */
  Share shares[MAX_WORKERS + 1];
  Bed beds[MAX_WORKERS + 1]; /* by the worker's number */
} pool;

static void futex(atomic_uint* word, int operation, unsigned value) {
  syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* ---- chunks -------------------------------------------------------------------------------------- */

/* Take a chunk of a share: its owner the first, a thief the last. -1: there is none left. */
static int64_t take(Share* share, unsigned generation, bool is_owner) {
  unsigned long long left = atomic_load(&share->left);
  for (;;) {
    unsigned begin = (unsigned)(left >> 16) & 0xFFFFu, end = (unsigned)left & 0xFFFFu;
    if ((unsigned)(left >> 32) != generation || begin == end) return -1;
    unsigned long long rest = is_owner ? left + (1u << 16) : left - 1;
    if (atomic_compare_exchange_weak(&share->left, &left, rest)) return is_owner ? begin : end - 1;
  }
}

/* Compute what is left of a share; the number of chunks that it were. */
static int64_t work_on(Share* share, unsigned generation, bool is_owner) {
  /* What is read here belongs to the job if a chunk of it can be taken: the job cannot end before
   * that chunk does. */
  relu_ops_task task = atomic_load(&pool.task);
  void* argument = atomic_load(&pool.argument);
  int64_t chunks = atomic_load(&pool.chunks), chunk, done = 0;
  while ((chunk = take(share, generation, is_owner)) >= 0) {
    task(argument, chunk, chunks);
    ++done;
  }
  return done;
}

/* What a worker does for a job: its own share in order, so that from call to call the same core
 * meets the same memory, then what others have not begun. */
static void work(unsigned generation, int self) {
  int participants = atomic_load(&pool.participants);
  for (int turn = 0; turn < participants; ++turn) {
    int p = self + turn < participants ? self + turn : self + turn - participants;
    int64_t done = work_on(&pool.shares[p], generation, turn == 0);
    if (done) atomic_fetch_add(&pool.finished, done);
  }
}

/* ---- sleeping ------------------------------------------------------------------------------------ */

#define MAX_PROCESSORS 4096

/* The number of the processor that this thread runs on. The system is asked: rdtscp is no part of any
 * x86-64 level, and a virtual machine without it ends whoever tries. */
static unsigned current_cpu(void) {
  unsigned number;
  if (syscall(SYS_getcpu, &number, NULL, NULL)) return MAX_PROCESSORS;
  return number;
}

/* Let a thread (0: this one) use a processor or not, and its others as before. False: it is so already,
 * or cannot be: a sandbox may refuse either call. */
static bool set_allowed(int thread, unsigned cpu, bool allowed) {
  unsigned long set[MAX_PROCESSORS / (8 * sizeof(long))] = {0}, bits = 8 * sizeof(long);
  if (cpu >= MAX_PROCESSORS) return false;
  long size = syscall(SYS_sched_getaffinity, thread, sizeof(set), set);
  bool is_allowed = (set[cpu / bits] >> cpu % bits & 1ul) != 0;
  if (size <= 0 || is_allowed == allowed) return false;
  set[cpu / bits] ^= 1ul << cpu % bits;
  return syscall(SYS_sched_setaffinity, thread, (unsigned long)size, set) == 0;
}

/* Wake all sleepers, but none on the caller's processor: they may not use it until they are awake. The
 * system puts a thread there, behind the caller, if it ran there last, or in a virtual machine if the
 * host has taken the other processors away while they were idle; and leaves it for milliseconds. Until
 * then two threads take as long as one. */
static void wake_sleepers(void) {
  unsigned cpu = current_cpu();
  int workers = atomic_load(&pool.workers);
  for (int w = 1; w <= workers; ++w) {
    Bed* bed = &pool.beds[w];
    if (atomic_exchange(&bed->held, 1)) continue; /* it is just going to sleep, or getting up */
    if (bed->sleeper && !bed->barred && set_allowed(bed->sleeper, cpu, false)) bed->barred = cpu + 1;
    atomic_store(&bed->held, 0);
  }
  futex(&pool.generation, FUTEX_WAKE, MAX_WORKERS);
}

static void hold(Bed* bed) {
  while (atomic_exchange(&bed->held, 1)) syscall(SYS_sched_yield);
}

/* Wait for another generation than the one that was seen. */
static void sleep_in(Bed* bed, unsigned seen, int thread) {
  hold(bed);
  bed->sleeper = thread;
  atomic_store(&bed->held, 0);
  atomic_fetch_add(&pool.sleepers, 1);
  futex(&pool.generation, FUTEX_WAIT, seen);
  atomic_fetch_sub(&pool.sleepers, 1);
  hold(bed);
  bed->sleeper = 0;
  if (bed->barred) set_allowed(0, bed->barred - 1, true);
  bed->barred = 0;
  atomic_store(&bed->held, 0);
}

/* ---- workers ------------------------------------------------------------------------------------- */

typedef struct {
  int number;
  unsigned generation;
} Worker;

static void* worker_main(void* start) {
  Worker worker = *(Worker*)start;
  unsigned seen = worker.generation;
  int thread = (int)syscall(SYS_gettid);
  free(start);
  for (;;) {
    unsigned now = atomic_load(&pool.generation);
    for (int round = 0; now == seen && round < SPIN_ROUNDS; ++round) {
      arch_pause();
      now = atomic_load(&pool.generation);
    }
    if (now == seen) {
      sleep_in(&pool.beds[worker.number], seen, thread);
      continue;
    }
    seen = now;
    if (worker.number < atomic_load(&pool.participants)) work(seen, worker.number);
  }
  return NULL;
}

/* A child has none of its parent's threads, and no job of theirs. */
static void forget_workers(void) {
  atomic_store(&pool.workers, 0);
  atomic_store(&pool.sleepers, 0);
  atomic_store(&pool.owned, 0);
  pool.owed_bytes = 0;
  for (int w = 0; w <= MAX_WORKERS; ++w) {
    pool.beds[w].sleeper = 0;
    pool.beds[w].barred = 0;
    atomic_store(&pool.beds[w].held, 0);
  }
}

static bool forks_are_safe;

static void watch_forks(void) {
  forks_are_safe = pthread_atfork(NULL, NULL, forget_workers) == 0;
}

/* Whether workers may be started: not where a child would believe that it has them. */
static bool may_start_workers(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  return forks_are_safe;
}

/* Start one more worker, which begins with the next job. */
static bool start_worker(const pthread_attr_t* attributes) {
  Worker* worker = malloc(sizeof(*worker));
  pthread_t thread;
  if (!worker) return false;
  worker->number = atomic_load(&pool.workers) + 1; /* the caller is 0 */
  worker->generation = atomic_load(&pool.generation);
  if (pthread_create(&thread, attributes, worker_main, worker)) {
    free(worker);
    return false;
  }
  atomic_fetch_add(&pool.workers, 1);
  return true;
}

/* Start what is missing of `wanted` workers; as many as the system lets us. */
static void start_workers(int wanted) {
  sigset_t all, before;
  if (atomic_load(&pool.workers) >= wanted || !may_start_workers()) return;
  sigfillset(&all); /* signals are the caller's business */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  while (atomic_load(&pool.workers) < wanted && start_worker(&attributes)) continue;
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int workers_awake(void) {
  return atomic_load(&pool.workers) - atomic_load(&pool.sleepers);
}

/* ---- jobs ---------------------------------------------------------------------------------------- */

/* Whether a job follows the last one so closely that the caller cannot have read an array of its size
 * in between, nor written one: a burst. Otherwise he may well have done so on his own thread, and half of
 * it would be, or have been, in another core's cache: relu of 64k float32 and a sum by one thread take
 * 18.9 us on two threads and 7.7 on one (without the sum 2.8 and 4.8), of 256k 48 and 35, of 512k 56 and
 * 67 (AMD EPYC, Zen 4, 2026-11-22). That sum reads half of the bytes, some 36 of them a tick of the
 * clock. Of a job that computes for long, where it leaves its output matters less. */
#define BURST_BYTES_PER_TICK 96
#define BURST_SHARE_OF_LAST 8
static bool is_burst(int64_t bytes, uint64_t now) {
  uint64_t between = now - atomic_load(&pool.last_end);
  return between <= (uint64_t)bytes / BURST_BYTES_PER_TICK ||
         between <= atomic_load(&pool.last_duration) / BURST_SHARE_OF_LAST;
}

/* Whether to wake or start workers. That costs the caller more than a short job does, so it is
 * done when the jobs of this burst have moved as many bytes as make up for it (the ski-rental
 * rule: never much worse than knowing in advance how many jobs are still to come). */
static bool is_time_to_wake(PoolUse use) {
  if (__builtin_add_overflow(pool.owed_bytes, use.bytes, &pool.owed_bytes)) pool.owed_bytes = INT64_MAX;
  return pool.owed_bytes >= use.wake_bytes;
}

static void run_alone(relu_ops_task task, void* argument, int64_t chunks) {
  for (int64_t chunk = 0; chunk < chunks; ++chunk) task(argument, chunk, chunks);
}

/* Share a job with whoever is awake, and with the others if they are to be woken. */
static void run_shared(relu_ops_task task, void* argument, int64_t chunks, int threads, bool wake) {
  unsigned generation = atomic_load(&pool.generation) + 1;
  atomic_store_explicit(&pool.task, task, memory_order_relaxed);
  atomic_store_explicit(&pool.argument, argument, memory_order_relaxed);
  atomic_store_explicit(&pool.chunks, chunks, memory_order_relaxed);
  atomic_store_explicit(&pool.participants, threads, memory_order_relaxed);
  atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
  for (int p = 0; p < threads; ++p) {
    unsigned long long begin = (unsigned long long)(chunks * p / threads);
    unsigned long long end = (unsigned long long)(chunks * (p + 1) / threads);
    unsigned long long left = (unsigned long long)generation << 32 | begin << 16 | end;
    atomic_store_explicit(&pool.shares[p].left, left, memory_order_relaxed);
  }
  atomic_store(&pool.generation, generation); /* publishes all of it, before sleepers is read */
  if (wake && atomic_load(&pool.sleepers) > 0) wake_sleepers();
  /* The caller's own chunks are not counted in memory that others write. */
  int64_t own = work_on(&pool.shares[0], generation, true);
  for (int p = 1; p < threads && own + atomic_load(&pool.finished) < chunks; ++p)
    own += work_on(&pool.shares[p], generation, false);
  for (int round = 0; own + atomic_load(&pool.finished) < chunks; ++round) {
    if (round < SPIN_ROUNDS) arch_pause();
    else syscall(SYS_sched_yield);
  }
}

/* Of the owner alone: whether to share a job, after the workers that it needs were started. */
static bool is_worth_sharing(PoolUse use, int threads, uint64_t now, bool* wake) {
  bool burst = is_burst(use.bytes, now), worth = burst || use.bytes >= use.wake_bytes;
  if (!burst) pool.owed_bytes = 0;
  *wake = worth && workers_awake() < threads - 1 && is_time_to_wake(use);
  if (*wake) start_workers(threads - 1);
  return worth && (*wake || workers_awake() > 0);
}

void relu_ops_parallel(relu_ops_task task, void* argument, int64_t chunks, PoolUse use) {
  int threads = use.threads > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : use.threads, nobody = 0;
  bool wake;
  if (threads < 2 || chunks < 2 || !atomic_compare_exchange_strong(&pool.owned, &nobody, 1)) {
    run_alone(task, argument, chunks);
    return;
  }
  uint64_t start = arch_clock(), end;
  if (is_worth_sharing(use, threads, start, &wake)) {
    run_shared(task, argument, chunks, threads, wake);
    atomic_store(&pool.owned, 0);
  } else {
    atomic_store(&pool.owned, 0);
    run_alone(task, argument, chunks);
  }
  end = arch_clock();
  atomic_store(&pool.last_duration, end - start);
  atomic_store(&pool.last_end, end);
}
