/* Runs plans on CUDA devices: chooses kernels, shapes grids, launches on the caller's stream.
 *
 * What a thread computes is cuda/schedule.py's: planes, rows, and chunks of a row. */
#include "run_cuda.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "image.h"

enum {
  MOST_DEVICES = 64,
  WARP = 32,
  THREADS = 256,  /* of a block, as cuda/schedule.py has them */
  PLANE_RANK = 3, /* dimensions that planes are divided into, likewise */
  SCALARS = 12,   /* parameters after those of the operands, likewise */
};
#define MOST_GRID_X INT64_C(0x7fffffff)
#define MOST_GRID_YZ INT64_C(65535)

/* Names of a fat binary's own memory: constants, and an element for each operand that has none. */
#define CONSTANTS "relu_ops_constants"
#define SPARE "relu_ops_spare"

/* Code on one device. */
typedef struct {
  atomic_bool ready;
  CUcontext context;
  CUfunction* functions; /* by kernel */
  CUdeviceptr constants, spare;
  int64_t resident_threads; /* how many the whole device holds at once */
} OnDevice;

/* Code on devices. `op`: the first operator that has it, held for ever, as the code stays. */
typedef struct Loaded {
  struct Loaded* next;
  Digest digest;
  const relu_ops_operator* op;
  OnDevice devices[MOST_DEVICES];
} Loaded;

static Loaded* all; /* whoever looks at it, or prepares a device, holds the lock */
static pthread_mutex_t preparing = PTHREAD_MUTEX_INITIALIZER;

#define TRY(call, asked)                                                                             \
  do {                                                                                               \
    CUresult result_ = (call);                                                                       \
    if (result_) return relu_ops_refuse_on(driver, op->name, result_, asked, number);                \
  } while (0)

/* ---- devices -------------------------------------------------------------------------------------- */

static relu_ops_status enter(const Driver* driver, const relu_ops_operator* op, CUcontext context,
                             int32_t number, bool* entered) {
  CUcontext current = NULL;
  TRY(driver->context_get_current(&current), "asking for the current context");
  *entered = current != context;
  if (*entered) TRY(driver->context_push(context), "entering the context");
  return RELU_OPS_OK;
}

static void leave(const Driver* driver, bool entered) {
  CUcontext popped;
  if (entered) driver->context_pop(&popped);
}

/* Copy the constants. From pageable memory a copy may still be on its way when the driver returns (CUDA's
 * API synchronization behavior), and the streams of torch and CuPy do not wait for the default one, which
 * it is on. */
static relu_ops_status copy_constants(const Driver* driver, const relu_ops_operator* op, CUdeviceptr to,
                                      int32_t number) {
  for (int32_t k = 0; k < op->leaf_count; ++k) {
    size_t bytes = (size_t)relu_ops_constant_bytes(&op->leaves[k], op->itemsizes[k]);
    if (bytes == 0) continue;
    TRY(driver->copy_to_device(to + (CUdeviceptr)op->cuda.constant_at[k], op->leaves[k].constant, bytes),
        "copying the constants");
  }
  TRY(driver->stream_synchronize(NULL), "copying the constants");
  return RELU_OPS_OK;
}

/* A fat binary's own memory, which must have room for what is put there. */
static relu_ops_status find_memory(const Driver* driver, const relu_ops_operator* op, CUmodule module,
                                   const char* name, int64_t bytes, int32_t number, CUdeviceptr* memory) {
  size_t size = 0;
  TRY(driver->module_get_global(memory, &size, module, name), "looking up memory of the code");
  if (size >= (size_t)bytes) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: the code has %zu bytes for %s; it must have %" PRId64, op->name,
                       size, name, bytes);
}

/* A driver may put off loading a function until its first launch, which may be captured in a graph. Those
 * that can are told not to; older ones load what is asked for. */
static relu_ops_status find_functions(const Driver* driver, const relu_ops_operator* op, CUmodule module,
                                      OnDevice* device, int32_t number) {
  for (int32_t k = 0; k < op->kernel_count; ++k) {
    TRY(driver->module_get_function(&device->functions[k], module, op->cuda.kernels[k].name),
        "looking up a kernel");
    if (driver->function_load) TRY(driver->function_load(device->functions[k]), "loading a kernel");
  }
  return RELU_OPS_OK;
}

static relu_ops_status fill(const Driver* driver, const relu_ops_operator* op, CUmodule module,
                            OnDevice* device, int32_t number) {
  relu_ops_status status = find_memory(driver, op, module, SPARE, op->operand_count * (int64_t)sizeof(int64_t),
                                       number, &device->spare);
  if (!status)
    status = find_memory(driver, op, module, CONSTANTS, op->cuda.constant_bytes, number, &device->constants);
  if (!status) status = copy_constants(driver, op, device->constants, number);
  return status ? status : find_functions(driver, op, module, device, number);
}

/* In the device's context: load the code. */
static relu_ops_status load_code(const Driver* driver, const relu_ops_operator* op, OnDevice* device,
                                 int32_t number) {
  CUmodule module;
  TRY(driver->module_load_data(&module, op->cuda.binary), "loading the code");
  relu_ops_status status = fill(driver, op, module, device, number);
  if (status) driver->module_unload(module);
  return status;
}

static relu_ops_status open_device(const Driver* driver, const relu_ops_operator* op, OnDevice* device,
                                   int32_t number) {
  Gpu gpu;
  int processors, threads;
  relu_ops_status status = relu_ops_find_gpu(driver, number, &gpu);
  if (status) return status;
  TRY(driver->device_get_attribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, gpu.handle),
      "asking for its size");
  TRY(driver->device_get_attribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, gpu.handle),
      "asking for its size");
  device->resident_threads = (int64_t)processors * threads;
  if (!device->functions) device->functions = calloc((size_t)op->kernel_count, sizeof(CUfunction));
  if (!device->functions) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory for a device", op->name);
  if (!device->context)
    TRY(driver->primary_context_retain(&device->context, gpu.handle), "opening the device");
  return RELU_OPS_OK;
}

static relu_ops_status prepare_locked(const Driver* driver, const relu_ops_operator* op, OnDevice* device,
                                      int32_t number) {
  bool entered;
  relu_ops_status status = open_device(driver, op, device, number);
  if (!status) status = enter(driver, op, device->context, number, &entered);
  if (status) return status;
  status = load_code(driver, op, device, number);
  leave(driver, entered);
  return status;
}

/* A device that is ready to launch on. */
static relu_ops_status find_device(const Driver* driver, const relu_ops_operator* op, int32_t number,
                                   OnDevice** device) {
  if (number < 0 || number >= MOST_DEVICES)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: devices are numbered from 0 to %d (not %" PRId32 ")", op->name,
                         MOST_DEVICES - 1, number);
  *device = &op->cuda.loaded->devices[number];
  if (atomic_load_explicit(&(*device)->ready, memory_order_acquire)) return RELU_OPS_OK;
  pthread_mutex_lock(&preparing);
  relu_ops_status status = RELU_OPS_OK;
  if (!atomic_load(&(*device)->ready))
    status = prepare_locked(driver, op->cuda.loaded->op, *device, number);
  if (!status) atomic_store_explicit(&(*device)->ready, true, memory_order_release);
  pthread_mutex_unlock(&preparing);
  return status;
}

/* ---- code that is there already ------------------------------------------------------------------- */

/* What decides the code on a device: the fat binary and, in their order, kernels and constants. */
static relu_ops_status digest_of(const relu_ops_operator* op, Digest* digest) {
  size_t rows = 1 + (size_t)op->kernel_count + (size_t)op->leaf_count;
  Digest* parts = calloc(rows, sizeof(*parts));
  if (!parts) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to load it", op->name);
  const FatBinary* binary = op->cuda.binary;
  Digest* part = parts;
  *part++ = relu_ops_sha256(binary, sizeof(*binary) + binary->size);
  for (int32_t k = 0; k < op->kernel_count; ++k)
    *part++ = relu_ops_sha256(op->cuda.kernels[k].name, strlen(op->cuda.kernels[k].name));
  for (int32_t k = 0; k < op->leaf_count; ++k) {
    size_t bytes = (size_t)relu_ops_constant_bytes(&op->leaves[k], op->itemsizes[k]);
    *part++ = relu_ops_sha256(bytes ? op->leaves[k].constant : (const void*)"", bytes);
  }
  *digest = relu_ops_sha256(parts, rows * sizeof(*parts));
  free(parts);
  return RELU_OPS_OK;
}

/* The code of a digest, made known for an operator where nobody has it yet; NULL: there is no memory. */
static Loaded* known_locked(const relu_ops_operator* op, const Digest* digest) {
  for (Loaded* loaded = all; loaded; loaded = loaded->next)
    if (strcmp(loaded->digest.hex, digest->hex) == 0) return loaded;
  Loaded* made = calloc(1, sizeof(*made));
  if (!made) return NULL;
  made->digest = *digest;
  made->op = op;
  made->next = all;
  relu_ops_hold(op);
  return all = made;
}

relu_ops_status relu_ops_prepare_device(relu_ops_operator* op, int32_t number) {
  const Driver* driver;
  Digest digest;
  OnDevice* device;
  relu_ops_status status = relu_ops_find_driver(&driver);
  if (!status) status = digest_of(op, &digest);
  if (status) return status;
  pthread_mutex_lock(&preparing);
  op->cuda.loaded = known_locked(op, &digest);
  pthread_mutex_unlock(&preparing);
  if (!op->cuda.loaded) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to load it", op->name);
  op->cuda.device = number;
  return find_device(driver, op, number, &device);
}

/* ---- the shape of a launch ------------------------------------------------------------------------ */

/* A plan as columns, rows, planes, and dimensions that are looped over here. */
typedef struct {
  const CudaKernel* kernel;
  int64_t first, chunks, rows;
  int32_t plane_dim[PLANE_RANK]; /* the plan's dimensions, outermost first, or -1 */
  int64_t plane[PLANE_RANK];     /* their extents; the outermost one may be cut */
  int32_t outer;                 /* the outermost one, or -1 */
  int64_t batch, inner;          /* how much of it fits a launch, and planes inside of it */
  int32_t looped;                /* how many of the plan's dimensions are left */
  int64_t columns, span, step_columns, step_rows, tile_columns, tile_rows;
} LaunchShape;

/* What all launches of a pass have. */
typedef struct {
  const Driver* driver;
  const Plan* plan;
  const OnDevice* device;
  CUstream stream;
  LaunchShape shape;
} Pass;

static int64_t inner_stride(const Plan* plan, int32_t k) {
  return plan->rank > 0 ? plan->stride[k][plan->rank - 1] : 1;
}

static int64_t row_length(const Plan* plan) {
  return plan->rank > 0 ? plan->extent[plan->rank - 1] : 1;
}

/* Elements from the start of a chunk to that of the rows; -1 where operands or rows disagree. */
static int64_t common_first(const CudaKernel* kernel, const Plan* plan, char* const* data) {
  int64_t first = -1;
  for (int32_t k = 0; k < plan->op->operand_count; ++k) {
    if (kernel->patterns[k] != 1) continue;
    int64_t own = (int64_t)((uintptr_t)data[k] / plan->op->itemsizes[k]) & (kernel->lanes - 1);
    if (first >= 0 && own != first) return -1;
    first = own;
    for (int32_t d = 0; d + 1 < plan->rank; ++d)
      if (plan->stride[k][d] % kernel->lanes != 0) return -1;
  }
  return first;
}

static bool fits(const CudaKernel* kernel, const Plan* plan) {
  for (int32_t k = 0; k < plan->op->operand_count; ++k)
    if (kernel->patterns[k] != inner_stride(plan, k)) return false;
  return true;
}

static void choose_kernel(LaunchShape* shape, const Plan* plan, char* const* data) {
  const relu_ops_operator* op = plan->op;
  int64_t n = row_length(plan);
  for (int32_t v = 0; v + 1 < op->kernel_count; ++v) {
    const CudaKernel* kernel = &op->cuda.kernels[v];
    shape->first = fits(kernel, plan) ? common_first(kernel, plan, data) : -1;
    if (shape->first < 0) continue;
    shape->kernel = kernel;
    shape->chunks = (shape->first + n + kernel->lanes - 1) / kernel->lanes;
    return;
  }
  shape->kernel = &op->cuda.kernels[op->kernel_count - 1];
  shape->first = 0;
  shape->chunks = n;
}

/* The threads of a block along a row: a power of two that leaves few idle. */
static int64_t threads_along(int64_t chunks) {
  int64_t best = THREADS, least = INT64_MAX;
  if (chunks < WARP) {
    for (best = 1; best < chunks;) best *= 2;
    return best;
  }
  for (int64_t x = THREADS; x >= WARP; x /= 2) {
    int64_t padded = (chunks + x - 1) / x * x;
    if (padded < least) least = padded, best = x;
  }
  return best;
}

/* Up to three dimensions of at most 65535 planes together; the outermost may be cut into parts. */
static void divide_planes(LaunchShape* shape, const Plan* plan) {
  shape->looped = plan->rank > 2 ? plan->rank - 2 : 0;
  shape->outer = -1;
  shape->batch = shape->inner = 1;
  for (int32_t d = PLANE_RANK - 1; d >= 0; --d) {
    int64_t room = MOST_GRID_YZ / (shape->inner * shape->batch);
    shape->plane_dim[d] = -1;
    shape->plane[d] = 1;
    if (shape->looped == 0 || room < 2) continue;
    shape->outer = shape->plane_dim[d] = --shape->looped;
    shape->inner *= shape->batch;
    int64_t extent = plan->extent[shape->outer];
    /* Once it is cut, no room is left for a further one. */
    shape->batch = shape->plane[d] = extent < room ? extent : room;
  }
}

/* A thread takes several chunks only where every thread of the device has as many to do, and only along a
 * direction that has them. */
static void shape_tiles(LaunchShape* shape, int64_t resident_threads) {
  int64_t x = threads_along(shape->chunks), y = THREADS / x, unroll = shape->kernel->unroll;
  bool along_row = shape->chunks >= x * unroll, along_column = shape->rows >= y * unroll;
  int64_t planes = shape->batch * shape->inner, work;
  bool plenty = __builtin_mul_overflow(shape->chunks, shape->rows * planes, &work) ||
                work >= unroll * resident_threads;
  shape->columns = x;
  shape->span = plenty && (along_row || along_column) ? unroll : 1;
  along_column = !along_row && shape->span > 1;
  shape->step_columns = along_column ? 0 : x;
  shape->step_rows = along_column ? y : 0;
  shape->tile_columns = along_column ? x : x * shape->span;
  shape->tile_rows = along_column ? y * shape->span : y;
}

static void shape_launch(LaunchShape* shape, const Plan* plan, char* const* data, int64_t resident_threads) {
  choose_kernel(shape, plan, data);
  divide_planes(shape, plan);
  shape->rows = plan->rank > 1 ? plan->extent[plan->rank - 2] : 1;
  shape_tiles(shape, resident_threads);
}

/* ---- launching ------------------------------------------------------------------------------------ */

static int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

/* Strides of rows and planes count chunks for operands that are contiguous in a row, else elements. */
static int64_t unit_of(const CudaKernel* kernel, int32_t k) {
  return kernel->patterns[k] == 1 ? kernel->lanes : 1;
}

/* What stands for each operand: where it lies, its strides of rows, planes and, for the last kernel,
 * elements. Returns where the scalars go. */
static int64_t* put_operands(const Pass* pass, char* const* data, int64_t* slot) {
  const Plan* plan = pass->plan;
  const LaunchShape* shape = &pass->shape;
  const CudaKernel* kernel = shape->kernel;
  int32_t count = plan->op->operand_count, last = plan->rank - 1;
  for (int32_t k = 0; k < count; ++k) {
    int64_t before = kernel->patterns[k] == 1 ? shape->first * plan->op->itemsizes[k] : 0;
    *slot++ = (int64_t)(intptr_t)(data[k] - before);
  }
  for (int32_t k = 0; k < count; ++k)
    *slot++ = last > 0 ? plan->stride[k][last - 1] / unit_of(kernel, k) : 0;
  for (int32_t k = 0; k < count; ++k)
    for (int32_t d = 0; d < PLANE_RANK; ++d)
      *slot++ = shape->plane_dim[d] < 0 ? 0 : plan->stride[k][shape->plane_dim[d]] / unit_of(kernel, k);
  bool strided = kernel == &plan->op->cuda.kernels[plan->op->kernel_count - 1];
  for (int32_t k = 0; strided && k < count; ++k) *slot++ = inner_stride(plan, k);
  return slot;
}

static int64_t log2_of(int64_t power) {
  int64_t log2 = 0;
  while (INT64_C(1) << log2 < power) ++log2;
  return log2;
}

/* Launch the kernel on some rows and planes; data is where they begin. */
static relu_ops_status launch(const Pass* pass, char* const* data, int64_t rows, int64_t cut) {
  const Driver* driver = pass->driver;
  const LaunchShape* shape = &pass->shape;
  const relu_ops_operator* op = pass->plan->op;
  int32_t number = pass->plan->device;
  int64_t planes = cut * shape->inner, n = row_length(pass->plan);
  int64_t slots[(3 + PLANE_RANK) * op->operand_count + SCALARS];
  void* parameters[(3 + PLANE_RANK) * op->operand_count + SCALARS];
  int64_t* slot = put_operands(pass, data, slots);
  const int64_t scalars[SCALARS] = {
      rows, shape->first, shape->first + n, log2_of(shape->columns), shape->tile_columns, shape->step_columns,
      shape->tile_rows, shape->step_rows, shape->span, planes, shape->plane[1], shape->plane[2]};
  memcpy(slot, scalars, sizeof(scalars));
  for (int64_t i = 0; i < slot + SCALARS - slots; ++i) parameters[i] = &slots[i];
  int64_t x = ceil_div(shape->chunks, shape->tile_columns), y = ceil_div(rows, shape->tile_rows);
  if (x > MOST_GRID_X)
    return relu_ops_fail(RELU_OPS_DEVICE, "%s: rows of %" PRId64 " elements are too long for one launch",
                         op->name, n);
  TRY(driver->launch_kernel(pass->device->functions[shape->kernel - op->cuda.kernels], (unsigned)x,
                            (unsigned)y, (unsigned)planes, THREADS, 1, 1, 0, pass->stream, parameters, NULL),
      "launching a kernel");
  return RELU_OPS_OK;
}

/* Launch on all rows and planes below the looped dimensions, as few times as the grid allows. */
static relu_ops_status launch_box(const Pass* pass, char* const* data) {
  const Plan* plan = pass->plan;
  const LaunchShape* shape = &pass->shape;
  char* at[plan->op->operand_count];
  int64_t most_rows = MOST_GRID_YZ * shape->tile_rows;
  int64_t extent = shape->outer < 0 ? 1 : plan->extent[shape->outer];
  for (int64_t plane = 0; plane < extent; plane += shape->batch)
    for (int64_t row = 0; row < shape->rows; row += most_rows) {
      int64_t rows = shape->rows - row < most_rows ? shape->rows - row : most_rows;
      int64_t cut = extent - plane < shape->batch ? extent - plane : shape->batch;
      for (int32_t k = 0; k < plan->op->operand_count; ++k) {
        int64_t skipped = shape->outer < 0 ? 0 : plane * plan->stride[k][shape->outer];
        if (plan->rank > 1) skipped += row * plan->stride[k][plan->rank - 2];
        at[k] = data[k] + skipped * plan->op->itemsizes[k];
      }
      relu_ops_status status = launch(pass, at, rows, cut);
      if (status) return status;
    }
  return RELU_OPS_OK;
}

/* The addresses of a plan's operands in the device's memory. */
static void place(char** data, const Plan* plan, const OnDevice* device) {
  const relu_ops_operator* op = plan->op;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    int64_t at = k * (int64_t)sizeof(int64_t);
    bool is_constant = k < op->leaf_count && op->leaves[k].input < 0;
    data[k] = plan->data[k];
    if (plan->data[k] == (char*)plan->spare + at) data[k] = (char*)device->spare + at;
    else if (is_constant) data[k] = (char*)device->constants + op->cuda.constant_at[k];
  }
}

/* Step to the next box of the looped dimensions; false after the last. */
static bool next_box(const Pass* pass, char** data, int64_t* index) {
  const Plan* plan = pass->plan;
  for (int32_t d = pass->shape.looped - 1; d >= 0; --d) {
    bool ended = ++index[d] == plan->extent[d];
    for (int32_t k = 0; k < plan->op->operand_count; ++k)
      data[k] += plan->stride[k][d] * plan->op->itemsizes[k] * (ended ? 1 - plan->extent[d] : 1);
    if (!ended) return true;
    index[d] = 0;
  }
  return false;
}

static relu_ops_status run_pass(Pass* pass) {
  const Plan* plan = pass->plan;
  if (plan->rank < 0) return RELU_OPS_OK;
  char* data[plan->op->operand_count];
  int64_t index[MAX_RANK] = {0};
  place(data, plan, pass->device);
  shape_launch(&pass->shape, plan, data, pass->device->resident_threads);
  relu_ops_status status;
  do status = launch_box(pass, data);
  while (!status && next_box(pass, data, index));
  return status;
}

relu_ops_status relu_ops_run_cuda(const Plan* plan, void* stream) {
  const Driver* driver;
  OnDevice* device;
  bool entered;
  relu_ops_status status = relu_ops_find_driver(&driver);
  if (!status) status = find_device(driver, plan->op, plan->device, &device);
  if (!status) status = enter(driver, plan->op, device->context, plan->device, &entered);
  if (status) return status;
  for (; plan && !status; plan = plan->next) {
    Pass pass = {.driver = driver, .plan = plan, .device = device, .stream = stream};
    status = run_pass(&pass);
  }
  leave(driver, entered);
  return status;
}
