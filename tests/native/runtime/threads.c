/* How plans are run: streaming, threads of ours and of a host, forks. */
#include "by_hand.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- how it is run -------------------------------------------------------------------------------- */

static void streaming(void) {
  relu_ops_operator* op = sum_of(1);
  int64_t bytes = 2 * (LARGE - 1) * (int64_t)sizeof(float);
  for (int count = 1; count <= 3; count += 2) {
    use(count, 0, bytes + 1, 0);
    call_large_with(op, NULL);
    CHECK(atomic_load(&streamed) == 0); /* one byte too few */
    use(count, 0, bytes, 0);
    call_large_with(op, NULL);
    /* All but the heads that align it, one a chunk. */
    CHECK(atomic_load(&streamed) > LARGE - 1 - 4 * count * VECTOR_BYTES / 4);
    atomic_store(&streamed, 0);
  }
  drop(op);
}

static void host_threads(void) {
  relu_ops_operator* op = sum_of(1);
  relu_ops_options options = {.host = &HOST};
  use(1, NEVER, NEVER, 0);
  call_large_with(op, &options);
  CHECK(atomic_load(&host_chunks) == 0); /* too small */
  use(1, 0, NEVER, 0); /* how many threads the process's pool uses is not the host's number */
  call_large_with(op, &options);
  CHECK(atomic_load(&host_chunks) == 3);
  options.threads = 2;
  call_large_with(op, &options);
  CHECK(atomic_load(&host_chunks) == 2);
  options.threads = 1;
  atomic_store(&host_chunks, 0);
  call_large_with(op, &options);
  CHECK(atomic_load(&host_chunks) == 0);
  drop(op);
}

/* The calling thread's mode of computing comes back, and no kernel meets it. */
static void float_modes(void) {
  relu_ops_operator* op = sum_of(1);
  ArchFloatMode before = arch_float_mode();
  use(2, 0, NEVER, 0);
  arch_set_float_mode(before | STRANGE);
  ArchFloatMode strange = arch_float_mode(); /* less what this processor has not */
  DLTensor x = tensor(large_in, 1, DIMS(LARGE - 1)), y = tensor(large_out, 1, DIMS(LARGE - 1));
  relu_ops_status status = relu_ops_call(op, &x, &y, NULL);
  ArchFloatMode after = arch_float_mode();
  use(1, NEVER, NEVER, NEVER);
  x = tensor(A, 1, DIMS(16)), y = tensor(Y, 1, DIMS(16));
  arch_set_float_mode(strange);
  relu_ops_status of_few = relu_ops_call(op, &x, &y, NULL);
  ArchFloatMode after_few = arch_float_mode();
  arch_set_float_mode(before);
  CHECK(strange != before && status == RELU_OPS_OK && of_few == RELU_OPS_OK);
  CHECK(((after ^ strange) & KEPT) == 0 && ((after_few ^ strange) & KEPT) == 0);
  CHECK(atomic_load(&modes_seen) == 0);
  drop(op);
}

/* ---- threads ------------------------------------------------------------------------------------- */

static void the_pool_starts_what_it_needs(void) {
  relu_ops_operator* op = sum_of(1);
  int before = threads_of_process();
  use(1, 0, NEVER, 0);
  call_large_with(op, NULL);
  CHECK(threads_of_process() == before);
  use(3, NEVER, NEVER, 0);
  call_large_with(op, NULL);
  CHECK(threads_of_process() == before);
  use(3, 0, NEVER, NEVER); /* it never pays */
  for (int k = 0; k < 10; ++k) call_large_with(op, NULL);
  CHECK(threads_of_process() == before);
  use(3, 0, NEVER, 0);
  for (int k = 0; k < 50; ++k) call_large_with(op, NULL);
  CHECK(threads_of_process() == before + 2);
  const relu_ops_options more = {.threads = 4};
  call_large_with(op, &more);
  CHECK(threads_of_process() == before + 3);
  drop(op);
}

static double seconds_of(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Workers that have nothing to do sleep, and are woken by the next call that is worth it. */
static void sleepers_are_woken(void) {
  relu_ops_operator* op = sum_of(1);
  use(2, 0, NEVER, 0);
  call_large_with(op, NULL);
  for (int turn = 0; turn < 3; ++turn) {
    double began = seconds_of(CLOCK_MONOTONIC);
    atomic_store(&helped, 0);
    while (atomic_load(&helped) == 0) { /* where the machine is busy, some calls find nobody in time */
      CHECK(seconds_of(CLOCK_MONOTONIC) < began + 20);
      pause_for(5);
      call_large_with(op, NULL);
    }
  }
  pause_for(20);
  double used = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  pause_for(300);
  CHECK(seconds_of(CLOCK_PROCESS_CPUTIME_ID) < used + 0.1);
  drop(op);
}

/* Whoever is done takes chunks from who is late: of eight chunks each has four. Until both ways were seen:
 * where the machine is busy, somebody else may be later. */
static void late_threads_lose_chunks(void) {
  enum { N = 1 << 21, CHUNKS = 8 };
  relu_ops_operator* op = sum_of(1);
  float* x = malloc(sizeof(float) * N);
  float* y = aligned_alloc(VECTOR_BYTES, sizeof(float) * N); /* so that a chunk is one call of a kernel */
  DLTensor from = tensor(x, 1, DIMS(N)), to = tensor(y, 1, DIMS(N));
  bool caller_lost = false, worker_lost = false;
  use(2, 0, NEVER, 0);
  for (int k = 0; k < N; ++k) x[k] = (float)(k % 1000);
  for (int turn = 0; turn < 6 || !caller_lost || !worker_lost; ++turn) {
    CHECK(turn < 200);
    memset(y, 0, sizeof(float) * N);
    atomic_store(&called, 0);
    atomic_store(&helped, 0);
    atomic_store(&late, turn % 2 ? LATE_WORKERS : LATE_CALLER);
    CHECK(relu_ops_call(op, &from, &to, NULL) == RELU_OPS_OK);
    CHECK(atomic_load(&called) == CHUNKS);
    long long by_worker = atomic_load(&helped);
    if (turn % 2) worker_lost |= by_worker > 0 && by_worker < CHUNKS / 2;
    else caller_lost |= by_worker > CHUNKS / 2;
    for (int k = 0; k < N; ++k) CHECK(y[k] == (float)(k % 1000 + 1));
  }
  free(y);
  free(x);
  drop(op);
}

/* Of 100 chunks each has ten elements or eleven, fewer than a head that aligns the output may have. */
static void heads_end_where_short_rows_end(void) {
  enum { N = 1025 };
  relu_ops_operator* op = sum_of(1);
  const relu_ops_options options = {.threads = 100};
  float* first = (float*)(((uintptr_t)large_out + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
  use(1, 0, NEVER, NEVER); /* the caller does them all */
  for (int offset = 0; offset < VECTOR_BYTES / 4; ++offset) {
    float* out = first + offset;
    DLTensor x = tensor(large_in, 1, DIMS(N)), y = tensor(out, 1, DIMS(N));
    fill_large();
    CHECK(relu_ops_call(op, &x, &y, &options) == RELU_OPS_OK);
    for (int k = 0; k < N; ++k) CHECK(out[k] == (float)(k % 1000 + 1));
    for (int k = N; k < N + VECTOR_BYTES; ++k) CHECK(out[k] == -1);
  }
  drop(op);
}

/* The thresholds hold for the smallest arrays too, whatever way is taken for them. */
static void small_calls_heed_the_settings(void) {
  relu_ops_operator* op = sum_of(1);
  DLTensor x = tensor(A, 1, DIMS(16)), y = tensor(Y, 1, DIMS(16));
  for (int count = 1; count <= 3; ++count) {
    use(count, count == 1 ? NEVER : 0, NEVER, NEVER);
    atomic_store(&called, 0);
    CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK && atomic_load(&called) == count);
    use(count, 129, NEVER, NEVER); /* it moves 128 */
    atomic_store(&called, 0);
    CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK && atomic_load(&called) == 1);
  }
  drop(op);
}

typedef struct {
  const relu_ops_operator* op;
  int number;
} Caller;

static void* call_often(void* argument) {
  const Caller* caller = argument;
  enum { N = 5000 };
  float* x = malloc(sizeof(float) * N);
  float* y = malloc(sizeof(float) * N);
  DLTensor from = tensor(x, 1, DIMS(N)), to = tensor(y, 1, DIMS(N));
  for (int turn = 0; turn < 60; ++turn) {
    for (int k = 0; k < N; ++k) x[k] = (float)(k + caller->number), y[k] = -1;
    if (turn % 8 == caller->number % 8) use(1 + turn % 3, turn % 2 ? 0 : 4 * N, turn % 5 ? NEVER : 0, 0);
    relu_ops_settings settings;
    CHECK(relu_ops_get_settings(&settings) == RELU_OPS_OK && settings.threads >= 1);
    CHECK(relu_ops_call(caller->op, &from, &to, NULL) == RELU_OPS_OK);
    for (int k = 0; k < N; ++k) CHECK(y[k] == (float)(k + caller->number + 1));
    if (turn % 10 == 0) {
      to.dtype = INT8; /* each thread has a message of its own */
      REFUSED(relu_ops_call(caller->op, &from, &to, NULL), RELU_OPS_TYPE,
              "f: out for y.dtype must be float32 (not int8)", NULL);
      to.dtype = FLOAT32;
    }
  }
  free(y);
  free(x);
  return NULL;
}

static void callers_at_once(void) {
  enum { CALLERS = 6 };
  relu_ops_operator* op = sum_of(1);
  pthread_t threads_[CALLERS];
  Caller callers[CALLERS];
  for (int k = 0; k < CALLERS; ++k) {
    callers[k] = (Caller){op, k};
    CHECK(pthread_create(&threads_[k], NULL, call_often, &callers[k]) == 0);
  }
  for (int k = 0; k < CALLERS; ++k) pthread_join(threads_[k], NULL);
  drop(op);
}

/* ---- forks --------------------------------------------------------------------------------------- */

/* Wait for a child, 20 seconds at most; 0 where all went well. */
static int outcome_of(pid_t child) {
  int status = 0;
  for (int k = 0; k < 20000; ++k) {
    if (waitpid(child, &status, WNOHANG) == child) return status;
    pause_for(1);
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  fail_at(__FILE__, __LINE__, "a child hangs");
}

static const char no_children[] = "ThreadSanitizer takes no threads in children of a process that has some";

/* Wake the worker, and call again at once, while it is awake, in a way that would not wake it. Until it has
 * helped: where the machine is busy, it may come too late now and then. */
static void await_help(const relu_ops_operator* op) {
  DLTensor x = tensor(large_in, 1, DIMS(LARGE - 1)), y = tensor(large_out, 1, DIMS(LARGE - 1));
  double began = seconds_of(CLOCK_MONOTONIC);
  do {
    CHECK(seconds_of(CLOCK_MONOTONIC) < began + 20);
    use(2, 0, NEVER, 0);
    CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
    use(2, 0, NEVER, NEVER);
    atomic_store(&helped, 0);
    CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  } while (atomic_load(&helped) == 0);
}

/* A child of a process whose worker is at work, or sleeps. */
static void be_a_child(const relu_ops_operator* op) {
  int before = threads_of_process();
  relu_ops_settings settings;
  for (int k = 0; k < 20; ++k) call_large_with(op, NULL);
  CHECK(threads_of_process() == before + 1);
  CHECK(relu_ops_get_settings(&settings) == RELU_OPS_OK && settings.threads == 2);
  await_help(op);
  _exit(0);
}

static void children_start_their_own_workers(void) {
  if (WATCHES_THREADS) skip(no_children);
  relu_ops_operator* op = sum_of(1);
  use(2, 0, NEVER, 0);
  for (int turn = 0; turn < 6; ++turn) {
    for (int k = 0; k < 20; ++k) call_large_with(op, NULL);
    if (turn % 2) pause_for(20);
    pid_t child = fork();
    if (child == 0) be_a_child(op);
    CHECK(outcome_of(child) == 0);
  }
  drop(op);
}

static atomic_bool enough;

static void* keep_calling(void* argument) {
  const relu_ops_operator* op = argument;
  enum { N = 40000 };
  float* y = malloc(sizeof(float) * N);
  DLTensor from = tensor(large_in, 1, DIMS(N)), to = tensor(y, 1, DIMS(N));
  while (!atomic_load(&enough)) CHECK(relu_ops_call(op, &from, &to, NULL) == RELU_OPS_OK);
  free(y);
  return NULL;
}

/* A child that is forked while another thread has a job in the pool has neither the thread nor the job. */
static void forks_during_a_job(void) {
  if (WATCHES_THREADS) skip(no_children);
  relu_ops_operator* op = sum_of(1);
  pthread_t busy;
  fill_large();
  use(2, 0, NEVER, 0);
  CHECK(pthread_create(&busy, NULL, keep_calling, op) == 0);
  for (int turn = 0; turn < 30; ++turn) {
    pid_t child = fork();
    if (child == 0) {
      int before = threads_of_process();
      for (int k = 0; k < 5; ++k) call_large_with(op, NULL);
      CHECK(threads_of_process() == before + 1);
      _exit(0);
    }
    CHECK(outcome_of(child) == 0);
  }
  atomic_store(&enough, true);
  pthread_join(busy, NULL);
  drop(op);
}

const Test THREADS[] = {
    {"streaming", streaming},
    {"host_threads", host_threads},
    {"float_modes", float_modes},
    {"the_pool_starts_what_it_needs", the_pool_starts_what_it_needs},
    {"sleepers_are_woken", sleepers_are_woken},
    {"late_threads_lose_chunks", late_threads_lose_chunks},
    {"heads_end_where_short_rows_end", heads_end_where_short_rows_end},
    {"small_calls_heed_the_settings", small_calls_heed_the_settings},
    {"callers_at_once", callers_at_once},
    {"children_start_their_own_workers", children_start_their_own_workers},
    {"forks_during_a_job", forks_during_a_job},
    {NULL, NULL},
};
