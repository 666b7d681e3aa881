/* See by_hand.h. Also the program: test_runtime [NAME], which runs the test of that name, or all.
 *
 * tests/test_native.py builds it in several ways and runs each test in a process of its own. */
#include "by_hand.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../../relu_ops/native/mapping.h"
#include "../../../relu_ops/native/plan.h"

/* ---- checking ------------------------------------------------------------------------------------ */

enum { SKIPPED = 77 }; /* as Automake has it */

static const char* running = "";

_Noreturn void fail_at(const char* file, int line, const char* condition) {
  fprintf(stderr, "%s: %s, line %d: %s (last message: %s)\n", running, file, line, condition,
          relu_ops_message());
  _exit(1);
}

_Noreturn void skip(const char* reason) {
  fprintf(stderr, "%s: skipped: %s\n", running, reason);
  _exit(SKIPPED);
}

static const char* or_null(const char* text) {
  return text ? text : "NULL";
}

void check_text(const char* file, int line, const char* found, const char* wanted) {
  if ((!found && !wanted) || (found && wanted && strcmp(found, wanted) == 0)) return;
  fprintf(stderr, "%s: %s, line %d: found \"%s\", wanted \"%s\"\n", running, file, line, or_null(found),
          or_null(wanted));
  _exit(1);
}

/* ---- the process --------------------------------------------------------------------------------- */

void use(int count, int64_t parallel, int64_t stream, int64_t wake) {
  const relu_ops_settings settings = {count, parallel, stream, wake};
  CHECK(relu_ops_set_settings(&settings) == RELU_OPS_OK);
}

int threads_of_process(void) {
  struct stat tasks;
  CHECK(stat("/proc/self/task", &tasks) == 0);
  return (int)tasks.st_nlink - 2;
}

void pause_for(long milliseconds) {
  struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&pause, NULL);
}

typedef struct {
  relu_ops_task task;
  void* argument;
  int64_t chunks;
  atomic_llong left;
} HostJob;

static void* host_thread(void* argument) {
  HostJob* job = argument;
  long long chunk;
  while ((chunk = atomic_fetch_sub(&job->left, 1) - 1) >= 0) job->task(job->argument, chunk, job->chunks);
  return NULL;
}

atomic_llong host_chunks;

static void run_on_host(void* host, relu_ops_task task, void* argument, int64_t chunks) {
  HostJob job = {task, argument, chunks, chunks};
  pthread_t other;
  atomic_store(&host_chunks, chunks);
  CHECK(host == &host_chunks && pthread_create(&other, NULL, host_thread, &job) == 0);
  host_thread(&job);
  pthread_join(other, NULL);
}

const relu_ops_host_threads HOST = {run_on_host, &host_chunks, 3};

/* ---- kernels ------------------------------------------------------------------------------------- */

atomic_llong streamed, called, helped;
atomic_ullong modes_seen;
atomic_int late;

/* Every element: the sum of the leaves, and one. All numbers are small integers, so that it is exact. */
static void add_up(int leaves, char* const* data, const int64_t* row, const int64_t* inner, int64_t rows,
                   int64_t n) {
  atomic_fetch_add(&called, 1);
  bool is_worker = syscall(SYS_gettid) != getpid();
  if (is_worker) atomic_fetch_add(&helped, 1);
  if (atomic_load(&late) == (is_worker ? LATE_WORKERS : LATE_CALLER)) pause_for(5);
  atomic_fetch_or(&modes_seen, arch_float_mode() & STRANGE);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) {
      float sum = 1;
      for (int k = 0; k < leaves; ++k) sum += ((const float*)data[k])[r * row[k] + i * inner[k]];
      ((float*)data[leaves])[r * row[leaves] + i * inner[leaves]] = sum;
    }
}

/* What a kernel of a pattern may rely on. */
static void check_pattern(const int8_t* pattern, int operands, const int64_t* inner) {
  for (int k = 0; k < operands; ++k) CHECK(pattern[k] < 0 || pattern[k] == inner[k]);
}

/* Whole cache lines, in every row. */
static void check_stream(const char* out, int64_t row, int64_t rows, int64_t n) {
  const int64_t line = 64 / sizeof(float);
  CHECK((uintptr_t)out % 64 == 0 && n % line == 0 && (rows == 1 || row % line == 0));
  atomic_fetch_add(&streamed, rows * n);
}

static const int8_t ALIKE[MOST_LEAVES + 1] = {1, 1, 1, 1}, ANY[MOST_LEAVES + 1] = {-1, -1, -1, -1};
static const int8_t SCALED[MOST_LEAVES + 1] = {1, 0, 1};

#define KERNEL(name, leaves, pattern, streams)                                                   \
  static void name(char* const* data, const int64_t* row, const int64_t* inner, int64_t rows,    \
                   int64_t n) {                                                                  \
    check_pattern(pattern, leaves + 1, inner);                                                   \
    if (streams) check_stream(data[leaves], row[leaves], rows, n);                               \
    add_up(leaves, data, row, inner, rows, n);                                                   \
  }

KERNEL(one_alike, 1, ALIKE, 0)
KERNEL(one_stream, 1, ALIKE, 1)
KERNEL(one_any, 1, ANY, 0)
KERNEL(two_alike, 2, ALIKE, 0)
KERNEL(two_stream, 2, ALIKE, 1)
KERNEL(two_scaled, 2, SCALED, 0)
KERNEL(two_scaled_stream, 2, SCALED, 1)
KERNEL(two_any, 2, ANY, 0)
KERNEL(three_alike, 3, ALIKE, 0)
KERNEL(three_stream, 3, ALIKE, 1)
KERNEL(three_any, 3, ANY, 0)

static const Kernel ONE[] = {{one_alike, one_stream, ALIKE}, {one_any, NULL, ANY}};
static const Kernel TWO[] = {{two_alike, two_stream, ALIKE},
                             {two_scaled, two_scaled_stream, SCALED},
                             {two_any, NULL, ANY}};
static const Kernel THREE[] = {{three_alike, three_stream, ALIKE}, {three_any, NULL, ANY}};

/* As many outputs as inputs, each output one more than its own input. Where the shapes differ, several
 * threads may write the same number to one element: they are not watched while they do. */
static int many;
__attribute__((no_sanitize("thread"))) static void one_more_each(char* const* data, const int64_t* row,
                                                                 const int64_t* inner, int64_t rows,
                                                                 int64_t n) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i)
      for (int k = 0; k < many; ++k)
        ((float*)data[many + k])[r * row[many + k] + i * inner[many + k]] =
            ((const float*)data[k])[r * row[k] + i * inner[k]] + 1;
}

/* ---- operators ----------------------------------------------------------------------------------- */

static char* name_of(char letter, int number) {
  char* name = malloc(16);
  snprintf(name, 16, number < 26 ? "%c" : "%c%d", number < 26 ? letter + number : letter, number);
  return name;
}

void drop(relu_ops_operator* op) {
  for (int32_t k = 0; k < op->input_count; ++k) free((void*)op->inputs[k].name);
  for (int32_t k = 0; k < op->output_count; ++k) free((void*)op->outputs[k].name);
  for (int32_t k = 0; k < op->output_count; ++k) free((void*)op->output_terms[k].terms);
  free((void*)op->inputs);
  free((void*)op->outputs);
  free((void*)op->output_terms);
  free((void*)op->leaves);
  free((void*)op->itemsizes);
  CHECK(atomic_load(&op->references) == 1);
  relu_ops_release(op);
}

relu_ops_operator* new_operator(int inputs, int outputs, bool apart, const Kernel* kernels,
                                int kernel_count) {
  relu_ops_operator* op = calloc(1, sizeof(*op));
  relu_ops_spec* specs[] = {calloc((size_t)inputs + 1, sizeof(relu_ops_spec)),
                            calloc((size_t)outputs, sizeof(relu_ops_spec))};
  Leaf* leaves = calloc((size_t)inputs, sizeof(Leaf));
  Terms* shapes = calloc((size_t)outputs, sizeof(Terms));
  uint8_t* itemsizes = malloc((size_t)(inputs + outputs));
  for (int k = 0; k < inputs; ++k) specs[0][k] = (relu_ops_spec){name_of('a', k), FLOAT32, -1, NULL};
  for (int k = 0; k < outputs; ++k)
    specs[1][k] = (relu_ops_spec){outputs > 2 ? name_of('y', k + 26) : name_of('y', k), FLOAT32, -1, NULL};
  for (int k = 0; k < inputs; ++k) leaves[k] = (Leaf){.seen = PLAIN, .input = k};
  for (int k = 0; k < outputs; ++k) {
    int count = apart ? 1 : inputs;
    Term* terms = calloc((size_t)count, sizeof(Term));
    for (int t = 0; t < count; ++t) terms[t] = (Term){.seen = PLAIN, .input = apart ? k : t};
    shapes[k] = (Terms){count, terms};
  }
  memset(itemsizes, 4, (size_t)(inputs + outputs));
  atomic_init(&op->references, 1);
  op->mapping = relu_ops_new_mapping(4096, true);
  op->name = "f";
  op->target = "by-hand";
  op->device_type = kDLCPU;
  op->input_count = op->leaf_count = inputs;
  op->output_count = outputs;
  op->operand_count = inputs + outputs;
  op->kernel_count = kernel_count;
  op->inputs = specs[0];
  op->outputs = specs[1];
  op->output_terms = shapes;
  op->leaves = leaves;
  op->itemsizes = itemsizes;
  op->kernels = kernels;
  op->vector_bytes = VECTOR_BYTES;
  op->element_bytes = 4 * (inputs + outputs);
  relu_ops_find_vectors(op);
  return op;
}

relu_ops_operator* sum_of(int leaves) {
  if (leaves == 1) return new_operator(1, 1, false, ONE, 2);
  if (leaves == 2) return new_operator(2, 1, false, TWO, 3);
  return new_operator(3, 1, false, THREE, 2);
}

relu_ops_operator* each_of(int count, bool apart) {
  static int8_t any[RELU_OPS_MOST_OPERANDS];
  static const Kernel kernels[] = {{one_more_each, NULL, any}};
  memset(any, -1, sizeof(any));
  many = count;
  return new_operator(count, count, apart, kernels, 1);
}

void declare(relu_ops_operator* op, int32_t input, int32_t rank, const int64_t* dims) {
  static const char* const names[] = {"N", "M"};
  relu_ops_spec* spec = (relu_ops_spec*)&op->inputs[input];
  spec->rank = rank;
  spec->dims = dims;
  op->symbol_count = 2;
  op->symbols = names;
}

/* ---- tensors ------------------------------------------------------------------------------------- */

float A[64], B[64], Y[64], Z[64];
float large_in[LARGE + 64], large_out[LARGE + 64];

DLTensor tensor(void* data, int32_t rank, const int64_t* shape) {
  return (DLTensor){.data = data,
                    .device = {kDLCPU, 0},
                    .ndim = rank,
                    .dtype = FLOAT32,
                    .shape = (int64_t*)shape};
}

DLTensor strided(void* data, int32_t rank, const int64_t* shape, const int64_t* strides) {
  DLTensor x = tensor(data, rank, shape);
  x.strides = (int64_t*)strides;
  return x;
}

void fill_large(void) {
  for (int k = 0; k < LARGE; ++k) large_in[k] = (float)(k % 1000), large_out[k] = -1;
}

static void check_large(int64_t n) {
  for (int64_t k = 0; k < n; ++k) CHECK(large_out[k] == (float)(k % 1000 + 1));
  CHECK(large_out[n] == -1);
}

void call_large_with(const relu_ops_operator* op, const relu_ops_options* options) {
  DLTensor x = tensor(large_in, 1, DIMS(LARGE - 1)), y = tensor(large_out, 1, DIMS(LARGE - 1));
  fill_large();
  CHECK(relu_ops_call(op, &x, &y, options) == RELU_OPS_OK);
  check_large(LARGE - 1);
}

/* ---- all of them --------------------------------------------------------------------------------- */

static void* tell_number(void* number) {
  *(long*)number = syscall(SYS_gettid);
  return NULL;
}

/* With the first thread a sanitizer starts its own; a thread that was joined is listed for a while. Both are
 * over before threads are counted. */
static void settle_threads(void) {
  pthread_t first;
  long number;
  char folder[64];
  struct stat found;
  CHECK(pthread_create(&first, NULL, tell_number, &number) == 0 && pthread_join(first, NULL) == 0);
  snprintf(folder, sizeof(folder), "/proc/self/task/%ld", number);
  while (stat(folder, &found) == 0) pause_for(1);
}

static void run_test(const Test* test) {
  running = test->name;
  settle_threads();
  test->run();
}

/* Run a test in a process of its own: settings and the pool are the process's. */
static bool passes(const Test* test) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    run_test(test);
    exit(0);
  }
  waitpid(child, &status, 0);
  bool passed = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == SKIPPED);
  if (!passed) fprintf(stderr, "%s: failed\n", test->name);
  return passed;
}

int main(int argc, char** argv) {
  static const Test* const tables[] = {PLANS, REFUSALS, VECTORS, THREADS, SETTINGS};
  int failed = 0, run = 0;
  for (size_t t = 0; t < sizeof(tables) / sizeof(*tables); ++t)
    for (const Test* test = tables[t]; test->name; ++test) {
      if (argc == 2 && strcmp(test->name, argv[1]) != 0) continue;
      ++run;
      if (argc == 2) run_test(test);
      else failed += !passes(test);
    }
  if (argc != 2 || !run) fprintf(stderr, "%d of %d tests failed\n", failed, run);
  return failed > 0 || !run;
}
