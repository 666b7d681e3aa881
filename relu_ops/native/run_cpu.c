/* Runs plans on the CPU: chooses kernels, splits over threads, streams past the cache. */
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "check.h"
#include "plan.h"
#include "pool.h"
#include "settings.h"

/* Rows and columns that are run together. */
typedef struct {
  int64_t rows, columns;
} Block;

/* One pass, and how it is run. */
typedef struct {
  const Plan* plan;
  const relu_ops_operator* op;
  const Kernel* kernel;
  char* const* data; /* of a vector, by operand; NULL: it is none */
  const int64_t* inner;
  int64_t extent; /* of the dimension that is divided among threads */
  int32_t split;  /* which one that is */
  bool align;     /* rows are long enough to align the output where it is not */
  bool stream;
  Block block; /* or nothing: rows are run as they are */
} Pass;

/* How an operand lies inside a row: see compiler/patterns.py. */
static int64_t inner_stride(const Plan* plan, int32_t k) {
  return plan->rank > 0 ? plan->stride[k][plan->rank - 1] : 1;
}

/* From one row to the next, where there are rows: of rank 2 and more. */
static int64_t row_stride(const Plan* plan, int32_t k) {
  return plan->stride[k][plan->rank - 2];
}

/* The same of a vector, which has one row. */
static const int64_t no_rows[RELU_OPS_MOST_OPERANDS];

static const Kernel* choose_kernel(const relu_ops_operator* op, const int64_t* inner) {
  for (int32_t v = 0; v < op->kernel_count; ++v) {
    const int8_t* patterns = op->kernels[v].patterns;
    bool fits = true;
    for (int32_t k = 0; k < op->operand_count; ++k) fits &= patterns[k] < 0 || patterns[k] == inner[k];
    if (fits) return &op->kernels[v];
  }
  return &op->kernels[op->kernel_count - 1];
}

/* ---- tiles --------------------------------------------------------------------------------------- */

static int64_t at_most(int64_t most, int64_t n) {
  return n < most ? n : most;
}

static bool is_aligned(const char* out, int64_t unit) {
  return ((uintptr_t)out & (uintptr_t)(unit - 1)) == 0;
}

/* How many elements of an output lie before the next multiple of `unit` bytes. */
static int64_t until_aligned(const relu_ops_operator* op, const char* out, int64_t unit) {
  int64_t before = (int64_t)(-(uintptr_t)out & (uintptr_t)(unit - 1));
  return before / op->itemsizes[op->leaf_count];
}

/* A part of a row, and what comes after it. */
static void run_part(const Pass* pass, KernelCall call, char** at, const int64_t* row, const int64_t* inner,
                     int64_t n) {
  const relu_ops_operator* op = pass->op;
  if (n == 0) return;
  call(at, row, inner, 1, n);
  for (int32_t k = 0; k < op->operand_count; ++k) at[k] += n * inner[k] * op->itemsizes[k];
}

/* Row by row, the output aligned to vectors after a short head. */
static void run_aligned(const Pass* pass, char* const* data, const int64_t* row, const int64_t* inner,
                        int64_t rows, int64_t n) {
  const relu_ops_operator* op = pass->op;
  char* at[op->operand_count];
  for (int64_t r = 0; r < rows; ++r) {
    for (int32_t k = 0; k < op->operand_count; ++k) at[k] = data[k] + r * row[k] * op->itemsizes[k];
    int64_t head = at_most(n, until_aligned(op, at[op->leaf_count], op->vector_bytes));
    run_part(pass, pass->kernel->call, at, row, inner, head);
    run_part(pass, pass->kernel->call, at, row, inner, n - head);
  }
}

#define LINE_BYTES 64 /* of a cache */

/* Past the cache go whole lines alone: a line of which a part is stored otherwise reaches memory in pieces.
 * Rows of 512 float32 with a scale and a bias, 16 bytes beyond a line: 4M take 0.63 ms so and 0.85 where
 * vectors alone are aligned, 16M 2.8 and 3.2 (Intel Xeon, AVX-512, 2 threads, 2026-11-28). */
static void run_streamed(const Pass* pass, char* const* data, const int64_t* row, const int64_t* inner,
                         int64_t rows, int64_t n) {
  const relu_ops_operator* op = pass->op;
  const Kernel* kernel = pass->kernel;
  int32_t out = op->leaf_count;
  int64_t line = LINE_BYTES / op->itemsizes[out];
  if (is_aligned(data[out], LINE_BYTES) && n % line == 0 && row[out] % line == 0) {
    kernel->stream(data, row, inner, rows, n);
    return;
  }
  char* at[op->operand_count];
  for (int64_t r = 0; r < rows; ++r) {
    for (int32_t k = 0; k < op->operand_count; ++k) at[k] = data[k] + r * row[k] * op->itemsizes[k];
    int64_t head = at_most(n, until_aligned(op, at[out], LINE_BYTES)), whole = (n - head) / line * line;
    run_part(pass, kernel->call, at, row, inner, head);
    run_part(pass, kernel->stream, at, row, inner, whole);
    run_part(pass, kernel->call, at, row, inner, n - head - whole);
  }
}

/* A transposed input is read in blocks, whose lines stay in the first-level cache until all of each is
 * used: relu of 4096 x 4096 float32 takes 27 to 31 ms so and 122 row by row; of 128 x 512, 27 and 38 us
 * (AMD EPYC, Zen 4, one thread, 2026-11-21). Wider blocks lose where rows lie a multiple of 4 KiB
 * apart, smaller ones to the overhead of a call. What fits in that cache needs none. */
static const Block across = {32, 16};
#define ACROSS_FROM_BYTES (64 << 10)

/* So are rows that meet the same row vectors (a scale, a bias), where each fills half that cache and
 * more: scale_bias_leaky_relu of 64 x 4096 float32 takes 33 us so and 43 to 46 row by row, prelu 25
 * and 33 (on the same machine). Shorter ones gain nothing; calls that move 8 MiB still gain, those that
 * move 32, as much as the last-level cache holds, take up to 1.6 times as long. */
#define SHARED_FROM_BYTES (16 << 10)
#define SHARED_BLOCK_BYTES (4 << 10)
#define SHARED_BLOCK_ROWS 64

static Block choose_block(const Plan* plan, int64_t stream_bytes) {
  const relu_ops_operator* op = plan->op;
  const Block none = {0, 0};
  int64_t itemsize = 0;
  if (plan->rank < 2) return none;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    int64_t row = llabs(row_stride(plan, k)), inner = llabs(inner_stride(plan, k));
    if (row && row < inner) return plan->bytes >= ACROSS_FROM_BYTES ? across : none;
    if (!row && inner == 1 && op->itemsizes[k] > itemsize) itemsize = op->itemsizes[k];
  }
  bool is_long = plan->extent[plan->rank - 1] * itemsize >= SHARED_FROM_BYTES;
  if (!is_long || plan->bytes >= stream_bytes / SHARED_PER_STREAM) return none;
  return (Block){SHARED_BLOCK_ROWS, SHARED_BLOCK_BYTES / itemsize};
}

/* The first columns are so many that the others begin with an aligned output, if its rows are alike. */
static void run_blocks(const Pass* pass, char* const* data, const int64_t* row, const int64_t* inner,
                       int64_t rows, int64_t n) {
  const relu_ops_operator* op = pass->op;
  char* at[op->operand_count];
  int32_t out = op->leaf_count;
  int64_t head = pass->align ? until_aligned(op, data[out], op->vector_bytes) : 0;
  int64_t beyond = head ? op->vector_bytes / op->itemsizes[out] - head : 0;
  for (int64_t r = 0; r < rows; r += pass->block.rows)
    for (int64_t c = 0, some; c < n; c += some) {
      some = at_most(pass->block.columns - (c ? 0 : beyond), n - c);
      for (int32_t k = 0; k < op->operand_count; ++k)
        at[k] = data[k] + (r * row[k] + c * inner[k]) * op->itemsizes[k];
      pass->kernel->call(at, row, inner, at_most(pass->block.rows, rows - r), some);
    }
}

/* One tile: the two innermost dimensions. */
static void run_tile(const Pass* pass, char* const* data, const int64_t* row, const int64_t* inner,
                     int64_t rows, int64_t n) {
  const relu_ops_operator* op = pass->op;
  if (pass->stream) run_streamed(pass, data, row, inner, rows, n);
  else if (pass->block.rows) run_blocks(pass, data, row, inner, rows, n);
  else if (pass->align && !is_aligned(data[op->leaf_count], op->vector_bytes))
    run_aligned(pass, data, row, inner, rows, n);
  else pass->kernel->call(data, row, inner, rows, n);
}

/* ---- ranges -------------------------------------------------------------------------------------- */

/* Move every operand by some steps along a dimension. */
static void advance(const Plan* plan, char** data, int32_t dim, int64_t steps) {
  for (int32_t k = 0; k < plan->op->operand_count; ++k)
    data[k] += steps * plan->stride[k][dim] * plan->op->itemsizes[k];
}

/* The tiles of a range of the split dimension, one after another: of rank 2 and more. */
static void run_tiles(const Pass* pass, int64_t begin, int64_t end) {
  const Plan* plan = pass->plan;
  int32_t rank = plan->rank, count = pass->op->operand_count;
  int64_t extent[MAX_RANK], index[MAX_RANK], row[count], inner[count];
  char* data[count];
  for (int32_t k = 0; k < count; ++k) {
    inner[k] = inner_stride(plan, k);
    row[k] = row_stride(plan, k);
  }
  memcpy(extent, plan->extent, sizeof(int64_t) * (size_t)rank);
  memcpy(data, plan->data, sizeof(data));
  memset(index, 0, sizeof(int64_t) * (size_t)rank);
  extent[pass->split] = end - begin;
  advance(plan, data, pass->split, begin);
  for (;;) {
    run_tile(pass, data, row, inner, extent[rank - 2], extent[rank - 1]);
    int32_t d = rank - 3;
    for (; d >= 0; --d) {
      advance(plan, data, d, 1);
      if (++index[d] < extent[d]) break;
      advance(plan, data, d, -extent[d]);
      index[d] = 0;
    }
    if (d < 0) break;
  }
}

/* A vector takes less time than its tiles to set up: one of 16 elements 20 ns so and 35 with them (AMD EPYC,
 * Zen 4, 2026-11-22). */
static void run_vector(const Pass* pass, int64_t begin, int64_t end) {
  const relu_ops_operator* op = pass->op;
  char* data[op->operand_count];
  if (begin == 0) {
    run_tile(pass, pass->data, no_rows, pass->inner, 1, end);
    return;
  }
  for (int32_t k = 0; k < op->operand_count; ++k)
    data[k] = pass->data[k] + begin * pass->inner[k] * op->itemsizes[k];
  run_tile(pass, data, no_rows, pass->inner, 1, end - begin);
}

static void run_range(const Pass* pass, int64_t begin, int64_t end) {
  if (pass->data) run_vector(pass, begin, end);
  else run_tiles(pass, begin, end);
  if (pass->stream) arch_store_fence();
}

/* The contract has no flush-to-zero and one rounding mode, whatever the calling thread set. */
static void run_exactly(const Pass* pass, int64_t begin, int64_t end) {
  ArchFloatMode caller = arch_float_mode(), wanted = arch_exact_float_mode(caller);
  if (caller != wanted) arch_set_float_mode(wanted);
  run_range(pass, begin, end);
  if (caller != wanted) arch_set_float_mode(caller);
}

/* ---- threads ------------------------------------------------------------------------------------- */

/* Chunks of a dimension end at multiples of GRAIN elements, where there are as many. */
#define GRAIN 1024
static int64_t boundary(int64_t extent, int64_t chunk, int64_t chunks) {
  int64_t at = extent / chunks * chunk + extent % chunks * chunk / chunks;
  return chunk < chunks && extent >= GRAIN * chunks ? at / GRAIN * GRAIN : at;
}

static void run_chunk(void* argument, int64_t chunk, int64_t chunks) {
  const Pass* pass = (const Pass*)argument;
  int64_t begin = boundary(pass->extent, chunk, chunks), end = boundary(pass->extent, chunk + 1, chunks);
  if (begin < end) run_exactly(pass, begin, end);
}

/* The outermost dimension that has enough for every thread, or else the longest. */
static int32_t choose_split(const Plan* plan, int64_t chunks) {
  int32_t longest = 0;
  for (int32_t d = 0; d < plan->rank; ++d) {
    if (plan->extent[d] >= chunks) return d;
    if (plan->extent[d] > plan->extent[longest]) longest = d;
  }
  return longest;
}

/* A large job has more chunks than threads: whoever is late does less. A chunk costs 0.1 us. */
#define MOST_CHUNKS_PER_THREAD 4
#define CHUNK_BYTES (2 << 20)
static int64_t chunks_of(const Plan* plan, int threads) {
  int64_t each = plan->bytes / threads / CHUNK_BYTES;
  if (each < 1) each = 1;
  return threads * at_most(MOST_CHUNKS_PER_THREAD, each);
}

/* How many threads a call may use. A host says how many it has; the process's number is the pool's. */
static int threads_of(const Plan* plan, const relu_ops_settings* settings) {
  int most = plan->threads ? plan->threads : plan->host ? RELU_OPS_MOST_THREADS : settings->threads;
  return plan->host && plan->host->count < most ? plan->host->count : most;
}

/* A pass for several threads. Of a vector of few operands all that a chunk takes is here: what the caller wrote
 * comes to another thread from his cache, line after line where one points to the next. relu of 64k float32 on
 * two threads of torch takes 0.92 to 0.97 of torch's own time so, and 0.99 to 1.03 where they read the plan
 * (Intel Xeon, 2026-11-28). */
typedef struct {
  _Alignas(LINE_BYTES) Pass pass;
  char* data[SHORT_OPERANDS];
  int64_t inner[SHORT_OPERANDS];
} SharedPass;

static void keep_vector(SharedPass* shared) {
  Pass* pass = &shared->pass;
  if (!pass->data || pass->op->operand_count > SHORT_OPERANDS) return;
  for (int32_t k = 0; k < pass->op->operand_count; ++k) {
    shared->data[k] = pass->data[k];
    shared->inner[k] = pass->inner[k];
  }
  pass->data = shared->data;
  pass->inner = shared->inner;
}

/* A host's threads are its own: whether they sleep is not for us to know. */
static void run_split(const Pass* whole, int threads, int64_t wake_bytes) {
  const Plan* plan = whole->plan;
  int64_t chunks = chunks_of(plan, threads);
  SharedPass shared;
  Pass* pass = &shared.pass;
  *pass = *whole;
  keep_vector(&shared);
  pass->split = choose_split(plan, chunks);
  pass->extent = plan->extent[pass->split];
  chunks = at_most(pass->extent, chunks);
  if (plan->host) plan->host->run(plan->host->host, run_chunk, pass, chunks);
  else relu_ops_parallel(run_chunk, pass, chunks, (PoolUse){threads, plan->bytes, wake_bytes});
}

/* ---- passes -------------------------------------------------------------------------------------- */

/* Bytes of a row from which on it gains from aligned stores. NumPy's large arrays lie 16 bytes beyond a
 * multiple of 32: relu of 2048 float32 takes 0.22 us on them without and 0.19 with a head that aligns,
 * of 1M 97 and 88 us, as on aligned ones (AMD EPYC, Zen 4, one thread, 2026-11-21). */
#define ALIGN_BYTES 4096

/* Aligning needs a kernel of whole vectors, and whole elements in rows that are not all head and tail. */
static bool can_align(const Plan* plan, const Kernel* kernel, int64_t least_bytes) {
  const relu_ops_operator* op = plan->op;
  int64_t itemsize = op->itemsizes[op->leaf_count];
  int64_t n = plan->rank > 0 ? plan->extent[plan->rank - 1] : 1;
  return n * itemsize >= least_bytes && kernel->stream &&
         is_aligned(plan->data[op->leaf_count], itemsize);
}

static void run_pass(const Plan* plan) {
  if (plan->rank < 0) return;
  const relu_ops_settings none = {1, INT64_MAX, INT64_MAX, INT64_MAX};
  const relu_ops_settings settings =
      relu_ops_settings_matter(plan->bytes) ? relu_ops_current_settings() : none;
  const relu_ops_operator* op = plan->op;
  int64_t inner[op->operand_count];
  for (int32_t k = 0; k < op->operand_count; ++k) inner[k] = inner_stride(plan, k);
  Pass pass = {.plan = plan, .op = op, .kernel = choose_kernel(op, inner)};
  if (plan->rank < 2) pass.data = plan->data, pass.inner = inner;
  pass.block = choose_block(plan, settings.stream_bytes);
  pass.align = can_align(plan, pass.kernel, ALIGN_BYTES);
  pass.stream = plan->bytes >= settings.stream_bytes &&
                can_align(plan, pass.kernel, 8 * LINE_BYTES);
  int threads = threads_of(plan, &settings);
  if (plan->bytes < settings.parallel_bytes || threads < 2 || plan->rank == 0)
    run_exactly(&pass, 0, plan->rank > 0 ? plan->extent[0] : 1);
  else run_split(&pass, threads, settings.wake_bytes);
}

/* ---- short vectors ------------------------------------------------------------------------------- */

void relu_ops_find_short_vectors(relu_ops_operator* op) {
  ShortVectors* vectors = &op->short_vectors;
  vectors->call = NULL;
  if (!op->takes_vectors || op->output_count != 1 || is_for_cuda(op) || op->operand_count > SHORT_OPERANDS ||
      op->input_count >= SHORT_OPERANDS)
    return;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    int32_t input = k < op->leaf_count ? op->leaves[k].input : -1;
    vectors->inner[k] = k == op->leaf_count || (input >= 0 && !is_number(&op->inputs[input]));
  }
  vectors->call = choose_kernel(op, vectors->inner)->call;
}

/* Whether so many elements take no more than one kernel on one thread. */
static inline bool is_short(const relu_ops_operator* op, int64_t elements) {
  return op->short_vectors.call && elements > 0 && elements < ALIGN_BYTES &&
         elements * op->itemsizes[op->leaf_count] < ALIGN_BYTES &&
         !relu_ops_settings_matter(elements * op->element_bytes);
}

/* Where the operands of short vectors lie; false where one is not aligned, or where the output overlaps one
 * otherwise than element for element. */
static inline bool place_vectors(char** data, const relu_ops_operator* op, void* const* arrays,
                                 int64_t elements) {
  int32_t last = op->leaf_count;
  uintptr_t out = (uintptr_t)arrays[op->input_count], out_size = op->itemsizes[last];
  uintptr_t past = out + (uintptr_t)elements * out_size;
  if (!out || (out & (out_size - 1))) return false;
  data[last] = (char*)out;
  for (int32_t k = 0; k < last; ++k) {
    const Leaf* leaf = &op->leaves[k];
    data[k] = (char*)leaf->constant;
    if (leaf->input < 0) continue;
    uintptr_t at = (uintptr_t)arrays[leaf->input], size = op->itemsizes[k];
    bool moves = op->short_vectors.inner[k];
    bool apart = at + (moves ? (uintptr_t)elements * size : size) <= out || past <= at;
    if (!at || (at & (size - 1)) || !(apart || (at == out && moves && size == out_size))) return false;
    data[k] = (char*)at;
  }
  return true;
}

static inline bool run_short_vectors(const relu_ops_operator* op, void* const* arrays, int64_t elements) {
  char* data[SHORT_OPERANDS];
  if (!place_vectors(data, op, arrays, elements)) return false;
  ArchFloatMode caller = arch_float_mode(), wanted = arch_exact_float_mode(caller);
  if (caller != wanted) arch_set_float_mode(wanted);
  op->short_vectors.call(data, no_rows, op->short_vectors.inner, 1, elements);
  if (caller != wanted) arch_set_float_mode(caller);
  return true;
}

bool relu_ops_run_short_vectors(const relu_ops_operator* op, void* const* data, int64_t elements) {
  return is_short(op, elements) && run_short_vectors(op, data, elements);
}

bool relu_ops_run_short(const relu_ops_operator* op, const DLTensor* inputs, const DLTensor* outputs) {
  if (!op->short_vectors.call) return false;
  int64_t elements = relu_ops_alike_elements(op, inputs, outputs);
  if (!is_short(op, elements)) return false;
  void* arrays[SHORT_OPERANDS];
  for (int32_t k = 0; k < op->input_count; ++k) arrays[k] = (void*)address_of(&inputs[k]);
  arrays[op->input_count] = (void*)address_of(&outputs[0]);
  return run_short_vectors(op, arrays, elements);
}

void relu_ops_run_cpu(const Plan* plan) {
  for (; plan; plan = plan->next) run_pass(plan);
}
