/* Runs plans on the CPU: chooses kernels, splits over threads, streams past the cache. */
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <string.h>
#include <xmmintrin.h>

#include "plan.h"
#include "pool.h"

const int32_t relu_ops_device_type = kDLCPU;

static int threads = 1;
static int64_t parallel_bytes = INT64_MAX, stream_bytes = INT64_MAX;

static const Kernel* choose_kernel(const int64_t* inner) {
  for (int v = 0; v < OP.kernel_count; ++v) {
    int fits = 1;
    for (int k = 0; k < OP.operand_count; ++k)
      fits &= OP.kernels[v].patterns[k] < 0 || OP.kernels[v].patterns[k] == inner[k];
    if (fits) return &OP.kernels[v];
  }
  return &OP.kernels[OP.kernel_count - 1];
}

/* Row by row, the output aligned for streaming stores after a short head. */
static void run_streaming(const Kernel* kernel, char* const* data, const int64_t* row,
                          const int64_t* inner, int64_t rows, int64_t n) {
  char* at[OP.operand_count];
  int out = OP.leaf_count;
  for (int64_t r = 0; r < rows; ++r) {
    for (int k = 0; k < OP.operand_count; ++k) at[k] = data[k] + r * row[k] * OP.itemsizes[k];
    int64_t beyond = (int64_t)((uintptr_t)at[out] & (uintptr_t)(OP.vector_bytes - 1));
    int64_t head = beyond ? (OP.vector_bytes - beyond) / OP.itemsizes[out] : 0;
    if (head > n) head = n;
    if (head) kernel->call(at, row, inner, 1, head);
    for (int k = 0; k < OP.operand_count; ++k) at[k] += head * inner[k] * OP.itemsizes[k];
    if (n > head) kernel->stream(at, row, inner, 1, n - head);
  }
}

static void run_nest(const Plan* plan, int stream) {
  int64_t row[OP.operand_count], inner[OP.operand_count], index[MAX_RANK] = {0};
  char* data[OP.operand_count];
  int32_t rank = plan->rank;
  int64_t n = rank > 0 ? plan->extent[rank - 1] : 1;
  int64_t rows = rank > 1 ? plan->extent[rank - 2] : 1;
  for (int k = 0; k < OP.operand_count; ++k) {
    inner[k] = rank > 0 ? plan->stride[k][rank - 1] : 1;
    row[k] = rank > 1 ? plan->stride[k][rank - 2] : 0;
    data[k] = plan->data[k];
  }
  const Kernel* kernel = choose_kernel(inner);
  /* Short rows would be all head and tail; between elements no store is ever aligned. */
  int64_t itemsize = OP.itemsizes[OP.leaf_count];
  int aligned = (uintptr_t)data[OP.leaf_count] % (uintptr_t)itemsize == 0;
  stream = stream && kernel->stream && aligned && n * itemsize >= 8 * OP.vector_bytes;
  for (;;) {
    if (stream) run_streaming(kernel, data, row, inner, rows, n);
    else kernel->call(data, row, inner, rows, n);
    int32_t d = rank - 3;
    for (; d >= 0; --d) {
      for (int k = 0; k < OP.operand_count; ++k) data[k] += plan->stride[k][d] * OP.itemsizes[k];
      if (++index[d] < plan->extent[d]) break;
      for (int k = 0; k < OP.operand_count; ++k)
        data[k] -= plan->stride[k][d] * plan->extent[d] * OP.itemsizes[k];
      index[d] = 0;
    }
    if (d < 0) break;
  }
  if (stream) _mm_sfence();
}

/* The contract has no flush-to-zero and one rounding mode, whatever the calling thread set. */
static void run_exactly(const Plan* plan, int stream) {
  unsigned int caller = _mm_getcsr();
  unsigned int wanted = (caller & ~0xE040u) | 0x1F80u;
  if (caller != wanted) _mm_setcsr(wanted);
  run_nest(plan, stream);
  if (caller != wanted) _mm_setcsr(caller);
}

/* Bytes that a plan moves: each operand once, a broadcast one not at all. */
static int64_t bytes_moved(const Plan* plan) {
  int64_t elements = 1, bytes = 0;
  for (int32_t d = 0; d < plan->rank; ++d) elements *= plan->extent[d];
  for (int k = 0; k < OP.operand_count; ++k)
    if (plan->rank == 0 || plan->stride[k][0] != 0) bytes += elements * OP.itemsizes[k];
  return bytes;
}

typedef struct {
  const Plan* plan;
  int32_t dim;
  int stream;
} Split;

/* Chunks of a dimension end at multiples of GRAIN elements, where there are as many. */
#define GRAIN 1024
static int64_t boundary(int64_t extent, int64_t chunk, int64_t chunks) {
  int64_t at = extent / chunks * chunk + extent % chunks * chunk / chunks;
  return chunk < chunks && extent >= GRAIN * chunks ? at / GRAIN * GRAIN : at;
}

static void run_chunk(void* argument, int64_t chunk, int64_t chunks) {
  const Split* split = (const Split*)argument;
  int64_t block[plan_size() / sizeof(int64_t) + 1];
  Plan* part = plan_at(block);
  int64_t extent = split->plan->extent[split->dim];
  int64_t begin = boundary(extent, chunk, chunks), end = boundary(extent, chunk + 1, chunks);
  if (begin == end) return;
  part->rank = split->plan->rank;
  memcpy(part->extent, split->plan->extent, sizeof(part->extent));
  part->extent[split->dim] = end - begin;
  for (int k = 0; k < OP.operand_count; ++k) {
    memcpy(part->stride[k], split->plan->stride[k], sizeof(part->stride[k]));
    part->data[k] =
        split->plan->data[k] + begin * part->stride[k][split->dim] * OP.itemsizes[k];
  }
  run_exactly(part, split->stream);
}

static void run_pass(const Plan* plan) {
  if (plan->rank < 0) return;
  int64_t bytes = bytes_moved(plan);
  Split split = {plan, 0, bytes >= stream_bytes};
  if (bytes < parallel_bytes || threads < 2 || plan->rank == 0) {
    run_exactly(plan, split.stream);
    return;
  }
  for (int32_t d = 1; d < plan->rank; ++d)
    if (plan->extent[split.dim] < threads && plan->extent[d] > plan->extent[split.dim])
      split.dim = d;
  int64_t chunks = 4 * (int64_t)threads; /* more than threads: whoever is late does less */
  if (chunks > plan->extent[split.dim]) chunks = plan->extent[split.dim];
  relu_ops_parallel(run_chunk, &split, chunks, threads);
}

int relu_ops_run(const Plan* plan) {
  for (; plan; plan = plan->next) run_pass(plan);
  return 0;
}

void relu_ops_configure(int count, int64_t parallel, int64_t stream) {
  threads = count;
  parallel_bytes = parallel;
  stream_bytes = stream;
}
