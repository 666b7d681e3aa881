/* Runs plans on the CPU: chooses kernels, splits over threads, streams past the cache. */
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

#include "plan.h"
#include "pool.h"

const int32_t relu_ops_device_type = kDLCPU;

static int default_threads = 1;
static int64_t parallel_bytes = INT64_MAX, stream_bytes = INT64_MAX, wake_bytes = 0;

void relu_ops_configure(int threads, int64_t parallel, int64_t stream, int64_t wake) {
  default_threads = threads;
  parallel_bytes = parallel;
  stream_bytes = stream;
  wake_bytes = wake;
}

/* Rows and columns that are run together. */
typedef struct {
  int64_t rows, columns;
} Block;

/* One pass, and how it is run. */
typedef struct {
  const Plan* plan;
  const Kernel* kernel;
  int32_t split; /* the dimension that is divided among threads */
  int align;     /* rows are long enough to align the output where it is not */
  Block block;   /* or nothing: rows are run as they are */
  int stream;
} Pass;

/* How an operand lies inside a row: see schedule_x86.py. */
static int64_t inner_stride(const Plan* plan, int k) {
  return plan->rank > 0 ? plan->stride[k][plan->rank - 1] : 1;
}

static int64_t row_stride(const Plan* plan, int k) {
  return plan->rank > 1 ? plan->stride[k][plan->rank - 2] : 0;
}

static const Kernel* choose_kernel(const Plan* plan) {
  for (int v = 0; v < OP.kernel_count; ++v) {
    int fits = 1;
    for (int k = 0; k < OP.operand_count; ++k)
      fits &= OP.kernels[v].patterns[k] < 0 || OP.kernels[v].patterns[k] == inner_stride(plan, k);
    if (fits) return &OP.kernels[v];
  }
  return &OP.kernels[OP.kernel_count - 1];
}

/* How far an output lies beyond a multiple of a vector. */
static int64_t beyond_vector(const char* out) {
  return (int64_t)((uintptr_t)out & (uintptr_t)(OP.vector_bytes - 1));
}

/* Row by row, the output aligned to vectors after a short head: streaming stores need that. */
static void run_aligned(const Pass* pass, char* const* data, const int64_t* row,
                        const int64_t* inner, int64_t rows, int64_t n) {
  const Kernel* kernel = pass->kernel;
  KernelCall body = pass->stream ? kernel->stream : kernel->call;
  char* at[OP.operand_count];
  int out = OP.leaf_count;
  for (int64_t r = 0; r < rows; ++r) {
    for (int k = 0; k < OP.operand_count; ++k) at[k] = data[k] + r * row[k] * OP.itemsizes[k];
    int64_t beyond = beyond_vector(at[out]);
    int64_t head = beyond ? (OP.vector_bytes - beyond) / OP.itemsizes[out] : 0;
    if (head > n) head = n;
    if (head) kernel->call(at, row, inner, 1, head);
    for (int k = 0; k < OP.operand_count; ++k) at[k] += head * inner[k] * OP.itemsizes[k];
    if (n > head) body(at, row, inner, 1, n - head);
  }
}

/* Move every operand by some steps along a dimension. */
static void advance(const Plan* plan, char** data, int32_t dim, int64_t steps) {
  for (int k = 0; k < OP.operand_count; ++k)
    data[k] += steps * plan->stride[k][dim] * OP.itemsizes[k];
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

static Block choose_block(const Plan* plan) {
  const Block none = {0, 0};
  int64_t itemsize = 0;
  if (plan->rank < 2) return none;
  for (int k = 0; k < OP.operand_count; ++k) {
    int64_t row = llabs(row_stride(plan, k)), inner = llabs(inner_stride(plan, k));
    if (row && row < inner) return plan->bytes >= ACROSS_FROM_BYTES ? across : none;
    if (!row && inner == 1 && OP.itemsizes[k] > itemsize) itemsize = OP.itemsizes[k];
  }
  int is_long = plan->extent[plan->rank - 1] * itemsize >= SHARED_FROM_BYTES;
  if (!is_long || plan->bytes >= stream_bytes / 4) return none;
  return (Block){SHARED_BLOCK_ROWS, SHARED_BLOCK_BYTES / itemsize};
}

static int64_t at_most(int64_t most, int64_t n) { return n < most ? n : most; }

/* The first columns are so many that the others begin with an aligned output, if its rows are alike. */
static void run_blocks(const Pass* pass, char* const* data, const int64_t* row,
                       const int64_t* inner, int64_t rows, int64_t n) {
  char* at[OP.operand_count];
  int out = OP.leaf_count;
  int64_t beyond = pass->align ? beyond_vector(data[out]) / OP.itemsizes[out] : 0;
  for (int64_t r = 0; r < rows; r += pass->block.rows)
    for (int64_t c = 0, some; c < n; c += some) {
      some = at_most(pass->block.columns - (c ? 0 : beyond), n - c);
      for (int k = 0; k < OP.operand_count; ++k)
        at[k] = data[k] + (r * row[k] + c * inner[k]) * OP.itemsizes[k];
      pass->kernel->call(at, row, inner, at_most(pass->block.rows, rows - r), some);
    }
}

/* One tile: the two innermost dimensions. */
static void run_tile(const Pass* pass, char* const* data, const int64_t* row, const int64_t* inner,
                     int64_t rows, int64_t n) {
  if (pass->stream) run_aligned(pass, data, row, inner, rows, n);
  else if (pass->block.rows) run_blocks(pass, data, row, inner, rows, n);
  else if (pass->align && beyond_vector(data[OP.leaf_count]))
    run_aligned(pass, data, row, inner, rows, n);
  else pass->kernel->call(data, row, inner, rows, n);
}

/* The tiles of a range of the split dimension, one after another. */
static void run_tiles(const Pass* pass, const int64_t* row, const int64_t* inner, int64_t begin,
                      int64_t end) {
  const Plan* plan = pass->plan;
  int32_t rank = plan->rank;
  int64_t extent[MAX_RANK], index[MAX_RANK];
  char* data[OP.operand_count];
  memcpy(extent, plan->extent, sizeof(int64_t) * (size_t)rank);
  memcpy(data, plan->data, sizeof(data));
  memset(index, 0, sizeof(int64_t) * (size_t)rank);
  extent[pass->split] = end - begin;
  advance(plan, data, pass->split, begin);
  int64_t n = extent[rank - 1], rows = rank > 1 ? extent[rank - 2] : 1;
  for (;;) {
    run_tile(pass, data, row, inner, rows, n);
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

/* A range of the split dimension. A small vector takes less time than its tiles to set up: one of 16
 * elements 20 ns so and 35 with them (AMD EPYC, Zen 4, 2026-11-22). */
static void run_range(const Pass* pass, int64_t begin, int64_t end) {
  const Plan* plan = pass->plan;
  int64_t row[OP.operand_count], inner[OP.operand_count];
  for (int k = 0; k < OP.operand_count; ++k) {
    inner[k] = inner_stride(plan, k);
    row[k] = row_stride(plan, k);
  }
  if (plan->rank < 2 && begin == 0) run_tile(pass, plan->data, row, inner, 1, end);
  else run_tiles(pass, row, inner, begin, end);
  if (pass->stream) _mm_sfence();
}

/* The contract has no flush-to-zero and one rounding mode, whatever the calling thread set. */
static void run_exactly(const Pass* pass, int64_t begin, int64_t end) {
  unsigned int caller = _mm_getcsr();
  unsigned int wanted = (caller & ~0xE040u) | 0x1F80u;
  if (caller != wanted) _mm_setcsr(wanted);
  run_range(pass, begin, end);
  if (caller != wanted) _mm_setcsr(caller);
}

/* Chunks of a dimension end at multiples of GRAIN elements, where there are as many. */
#define GRAIN 1024
static int64_t boundary(int64_t extent, int64_t chunk, int64_t chunks) {
  int64_t at = extent / chunks * chunk + extent % chunks * chunk / chunks;
  return chunk < chunks && extent >= GRAIN * chunks ? at / GRAIN * GRAIN : at;
}

static void run_chunk(void* argument, int64_t chunk, int64_t chunks) {
  const Pass* pass = (const Pass*)argument;
  int64_t extent = pass->plan->extent[pass->split];
  int64_t begin = boundary(extent, chunk, chunks), end = boundary(extent, chunk + 1, chunks);
  if (begin < end) run_exactly(pass, begin, end);
}

/* Bytes of a row from which on it gains from aligned stores. NumPy's large arrays lie 16 bytes beyond a
 * multiple of 32: relu of 2048 float32 takes 0.22 us on them without and 0.19 with a head that aligns,
 * of 1M 97 and 88 us, as on aligned ones (AMD EPYC, Zen 4, one thread, 2026-11-21). */
#define ALIGN_BYTES 4096

/* Aligning needs a kernel of whole vectors, and whole elements in rows that are not all head and tail. */
static int can_align(const Plan* plan, const Kernel* kernel, int64_t least_bytes) {
  int64_t itemsize = OP.itemsizes[OP.leaf_count];
  int64_t n = plan->rank > 0 ? plan->extent[plan->rank - 1] : 1;
  return n * itemsize >= least_bytes && kernel->stream &&
         ((uintptr_t)plan->data[OP.leaf_count] & (uintptr_t)(itemsize - 1)) == 0;
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
  return threads * (each < MOST_CHUNKS_PER_THREAD ? each : MOST_CHUNKS_PER_THREAD);
}

static void run_pass(const Plan* plan) {
  if (plan->rank < 0) return;
  Pass pass = {.plan = plan, .kernel = choose_kernel(plan)};
  pass.block = choose_block(plan);
  pass.align = can_align(plan, pass.kernel, ALIGN_BYTES);
  pass.stream = plan->bytes >= stream_bytes && can_align(plan, pass.kernel, 8 * OP.vector_bytes);
  int threads = plan->threads ? plan->threads : default_threads;
  if (plan->bytes < parallel_bytes || threads < 2 || plan->rank == 0) {
    run_exactly(&pass, 0, plan->rank > 0 ? plan->extent[0] : 1);
    return;
  }
  int64_t chunks = chunks_of(plan, threads);
  pass.split = choose_split(plan, chunks);
  int64_t extent = plan->extent[pass.split];
  PoolUse use = {threads, plan->bytes, wake_bytes};
  relu_ops_parallel(run_chunk, &pass, chunks < extent ? chunks : extent, use);
}

int relu_ops_run(const Plan* plan) {
  for (; plan; plan = plan->next) run_pass(plan);
  return 0;
}
