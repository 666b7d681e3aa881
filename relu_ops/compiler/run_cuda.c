/* Runs plans on CUDA devices: chooses kernels, shapes grids, launches on the caller's stream.
 *
 * Talks to CUDA's driver alone, whose functions the runtime hands over (`prepare`): a library needs
 * no CUDA runtime, and loads on a machine without a driver. A launch waits for nothing, allocates
 * nothing and copies nothing, so that it can be captured in a graph; what it needs on a device is
 * made once, when the device is prepared.
 */
#include <dlpack/dlpack.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "driver.h"
#include "kernel_cuda.h"
#include "plan.h"

#ifndef RELU_OPS_DEVICE_TYPE
#define RELU_OPS_DEVICE_TYPE kDLCUDA
#endif
const int32_t relu_ops_device_type = RELU_OPS_DEVICE_TYPE;

#define CUDA relu_ops_cuda
#define MAX_DEVICES 64
#define MAX_GRID_X INT64_C(0x7fffffff)
#define MAX_GRID_YZ INT64_C(65535)
#define WARP 32
#define PLANE_RANK 3

typedef struct {
  int ready;
  CUcontext context;
  CUfunction* functions; /* by kernel */
  CUdeviceptr constants, spare;
  int64_t resident_threads; /* how many the whole device holds at once */
} Device;

static Driver driver;
static int driver_ready = 0;
static Device devices[MAX_DEVICES];
static pthread_mutex_t preparing = PTHREAD_MUTEX_INITIALIZER;

/* ---- errors ------------------------------------------------------------------------------ */

static int fail(const char* kind, const char* what, const char* reason) {
  const char* parts[] = {OP.name, ": ", what, ": ", reason};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 5);
  return -1;
}

/* A refusal of the driver's, with what it was asked, the device and its architecture. */
static int refused(CUresult result, const char* asked, int32_t id) {
  const char* reason = NULL;
  char name[96] = "unknown", what[320];
  int major = 0, minor = 0;
  CUdevice device;
  if (!driver.device_get(&device, id)) {
    driver.device_get_name(name, sizeof(name), device);
    driver.device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    driver.device_get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
  }
  if (driver.get_error_string(result, &reason) || !reason) reason = "unknown error";
  snprintf(what, sizeof(what), "%s on cuda:%d (%s, sm_%d%d; built for %.120s) failed with error %d",
           asked, (int)id, name, major, minor, CUDA.architectures, result);
  return fail("RuntimeError", what, reason);
}

#define TRY(call, asked, id)                                       \
  do {                                                             \
    CUresult result_ = (call);                                     \
    if (result_) return refused(result_, asked, id);               \
  } while (0)

/* ---- devices ----------------------------------------------------------------------------- */

static int enter(const Device* device, int32_t id, int* entered) {
  CUcontext current = NULL;
  TRY(driver.context_get_current(&current), "asking for the current context", id);
  *entered = current != device->context;
  if (*entered) TRY(driver.context_push(device->context), "entering the context", id);
  return 0;
}

static void leave(int entered) {
  CUcontext popped;
  if (entered) driver.context_pop(&popped);
}

/* Load the code and fill the constants, in the device's context. */
static int fill(Device* device, int32_t id) {
  CUmodule module;
  size_t size;
  TRY(driver.module_load_data(&module, CUDA.image), "loading the code", id);
  TRY(driver.module_get_global(&device->spare, &size, module, DEVICE_SPARE), "loading the code", id);
  TRY(driver.module_get_global(&device->constants, &size, module, DEVICE_CONSTANTS),
      "loading the code", id);
  TRY(driver.copy_to_device(device->constants, CUDA.constants, (size_t)CUDA.constant_bytes),
      "copying the constants", id);
  /* From pageable memory the copy may still be on its way (CUDA's API synchronization behavior),
   * and the streams of torch and CuPy do not wait for the default one, which it is on. */
  TRY(driver.stream_synchronize(NULL), "copying the constants", id);
  for (int k = 0; k < CUDA.kernel_count; ++k) {
    TRY(driver.module_get_function(&device->functions[k], module, CUDA.kernels[k].name),
        "loading the code", id);
    /* A driver may put off loading a function until its first launch, which may be captured in a
     * graph. Those that can are told not to; older ones load what is asked for. */
    if (driver.function_load)
      TRY(driver.function_load(device->functions[k]), "loading the code", id);
  }
  return 0;
}

static int prepare_locked(Device* device, int32_t id) {
  CUdevice handle;
  int processors, threads, entered;
  TRY(driver.device_get(&handle, id), "opening the device", id);
  TRY(driver.device_get_attribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, handle),
      "asking for its size", id);
  TRY(driver.device_get_attribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
                                  handle),
      "asking for its size", id);
  device->resident_threads = (int64_t)processors * threads;
  if (!device->functions)
    device->functions = (CUfunction*)calloc((size_t)CUDA.kernel_count, sizeof(CUfunction));
  if (!device->functions) return fail("MemoryError", "the device", "no memory");
  if (!device->context)
    TRY(driver.primary_context_retain(&device->context, handle), "opening the device", id);
  if (enter(device, id, &entered)) return -1;
  int result = fill(device, id);
  leave(entered);
  return result;
}

/* A device that is ready to launch on, or NULL with an error set. */
static const Device* device_of(int32_t id) {
  if (id < 0 || id >= MAX_DEVICES) {
    fail("ValueError", "the device", "is out of range");
    return NULL;
  }
  Device* device = &devices[id];
  if (__atomic_load_n(&device->ready, __ATOMIC_ACQUIRE)) return device;
  if (!driver_ready) {
    fail("RuntimeError", "the device", "no driver was handed over (load prepares it)");
    return NULL;
  }
  pthread_mutex_lock(&preparing);
  int failed = !device->ready && prepare_locked(device, id);
  if (!failed) __atomic_store_n(&device->ready, 1, __ATOMIC_RELEASE);
  pthread_mutex_unlock(&preparing);
  return failed ? NULL : device;
}

typedef void* (*Lookup)(void* library, const char* name);

static int find_driver(Lookup lookup, void* library) {
#define FIND(result, field, name, parameters)                        \
  driver.field = (result(*) parameters)lookup(library, name);        \
  if (!driver.field) return fail("RuntimeError", "the driver lacks", name);
  DRIVER_FUNCTIONS(FIND)
#undef FIND
#define FIND(result, field, name, parameters) \
  driver.field = (result(*) parameters)lookup(library, name);
  NEWER_DRIVER_FUNCTIONS(FIND)
#undef FIND
  driver_ready = 1;
  return 0;
}

/* ---- the shape of a launch --------------------------------------------------------------- */

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
} Shape;

static int64_t inner_stride(const Plan* plan, int k) {
  return plan->rank > 0 ? plan->stride[k][plan->rank - 1] : 1;
}

/* Elements from the start of a chunk to that of the rows; -1 where operands or rows disagree. */
static int64_t common_first(const CudaKernel* kernel, const Plan* plan, char* const* data) {
  int64_t first = -1;
  for (int k = 0; k < OP.operand_count; ++k) {
    if (kernel->patterns[k] != 1) continue;
    int64_t own = (int64_t)((uintptr_t)data[k] / OP.itemsizes[k]) & (kernel->lanes - 1);
    if (first >= 0 && own != first) return -1;
    first = own;
    for (int32_t d = 0; d + 1 < plan->rank; ++d)
      if (plan->stride[k][d] % kernel->lanes != 0) return -1;
  }
  return first;
}

static void choose_kernel(Shape* shape, const Plan* plan, char* const* data) {
  int64_t n = plan->rank > 0 ? plan->extent[plan->rank - 1] : 1;
  for (int v = 0; v + 1 < CUDA.kernel_count; ++v) {
    const CudaKernel* kernel = &CUDA.kernels[v];
    int fits = 1;
    for (int k = 0; k < OP.operand_count; ++k)
      fits &= kernel->patterns[k] == inner_stride(plan, k);
    shape->first = fits ? common_first(kernel, plan, data) : -1;
    if (shape->first < 0) continue;
    shape->kernel = kernel;
    shape->chunks = (shape->first + n + kernel->lanes - 1) / kernel->lanes;
    return;
  }
  shape->kernel = &CUDA.kernels[CUDA.kernel_count - 1];
  shape->first = 0;
  shape->chunks = n;
}

/* The threads of a block along a row: a power of two that leaves few idle. */
static int64_t threads_along(int64_t chunks) {
  int64_t best = CUDA.threads, least = INT64_MAX;
  if (chunks < WARP) {
    for (best = 1; best < chunks;) best *= 2;
    return best;
  }
  for (int64_t x = CUDA.threads; x >= WARP; x /= 2) {
    int64_t padded = (chunks + x - 1) / x * x;
    if (padded < least) least = padded, best = x;
  }
  return best;
}

/* Up to three dimensions of at most 65535 planes together; the outermost may be cut into parts. */
static void divide_planes(Shape* shape, const Plan* plan) {
  shape->looped = plan->rank > 2 ? plan->rank - 2 : 0;
  shape->outer = -1;
  shape->batch = shape->inner = 1;
  for (int d = PLANE_RANK - 1; d >= 0; --d) {
    int64_t room = MAX_GRID_YZ / (shape->inner * shape->batch);
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

static void shape_launch(Shape* shape, const Plan* plan, char* const* data,
                         const Device* device) {
  choose_kernel(shape, plan, data);
  divide_planes(shape, plan);
  shape->rows = plan->rank > 1 ? plan->extent[plan->rank - 2] : 1;
  int64_t x = threads_along(shape->chunks), y = CUDA.threads / x, unroll = shape->kernel->unroll;
  /* A thread takes several chunks only where every thread of the device has as many to do, and
   * only along a direction that has them. */
  int along_row = shape->chunks >= x * unroll, along_column = shape->rows >= y * unroll;
  int64_t planes = shape->batch * shape->inner;
  int plenty = shape->chunks * shape->rows * planes >= unroll * device->resident_threads;
  shape->columns = x;
  shape->span = plenty && (along_row || along_column) ? unroll : 1;
  along_column = !along_row && shape->span > 1;
  shape->step_columns = along_column ? 0 : x;
  shape->step_rows = along_column ? y : 0;
  shape->tile_columns = along_column ? x : x * shape->span;
  shape->tile_rows = along_column ? y * shape->span : y;
}

/* ---- launching --------------------------------------------------------------------------- */

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Launch the kernel on some rows and planes; data is where they begin. */
static int launch(const Shape* shape, const Plan* plan, char* const* data, int64_t rows,
                  int64_t cut, const Device* device, CUstream stream) {
  const CudaKernel* kernel = shape->kernel;
  int32_t last = plan->rank - 1, count = OP.operand_count;
  int64_t slots[(2 + PLANE_RANK + 1) * count + 12], *slot = slots;
  int64_t n = last >= 0 ? plan->extent[last] : 1;
  for (int k = 0; k < count; ++k) {
    int64_t before = kernel->patterns[k] == 1 ? shape->first * OP.itemsizes[k] : 0;
    *slot++ = (int64_t)(intptr_t)(data[k] - before);
  }
  for (int k = 0; k < count; ++k) {
    int64_t unit = kernel->patterns[k] == 1 ? kernel->lanes : 1;
    *slot++ = last > 0 ? plan->stride[k][last - 1] / unit : 0;
  }
  for (int k = 0; k < count; ++k)
    for (int d = 0; d < PLANE_RANK; ++d) {
      int64_t unit = kernel->patterns[k] == 1 ? kernel->lanes : 1;
      *slot++ = shape->plane_dim[d] < 0 ? 0 : plan->stride[k][shape->plane_dim[d]] / unit;
    }
  for (int k = 0; kernel->strided && k < count; ++k) *slot++ = inner_stride(plan, k);
  int log2 = 0;
  while ((INT64_C(1) << log2) < shape->columns) ++log2;
  int64_t planes = cut * shape->inner;
  int64_t scalars[] = {
      rows,           shape->first,        shape->first + n, log2,
      shape->tile_columns, shape->step_columns, shape->tile_rows, shape->step_rows,
      shape->span,    planes,              shape->plane[1],  shape->plane[2],
  };
  memcpy(slot, scalars, sizeof(scalars));
  slot += sizeof(scalars) / sizeof(*scalars);
  void* parameters[sizeof(slots) / sizeof(*slots)];
  for (int64_t i = 0; i < slot - slots; ++i) parameters[i] = &slots[i];
  int64_t x = ceil_div(shape->chunks, shape->tile_columns), y = ceil_div(rows, shape->tile_rows);
  if (x > MAX_GRID_X) return fail("ValueError", "the arrays", "are too large for one launch");
  TRY(driver.launch_kernel(device->functions[kernel - CUDA.kernels], (unsigned)x, (unsigned)y,
                           (unsigned)planes, (unsigned)CUDA.threads, 1, 1, 0, stream, parameters,
                           NULL),
      "launching a kernel", plan->device);
  return 0;
}

/* Launch on all rows and planes below the looped dimensions, as few times as the grid allows. */
static int launch_box(const Shape* shape, const Plan* plan, char* const* data,
                      const Device* device, CUstream stream) {
  char* at[OP.operand_count];
  int64_t most_rows = MAX_GRID_YZ * shape->tile_rows;
  int64_t extent = shape->outer < 0 ? 1 : plan->extent[shape->outer];
  for (int64_t plane = 0; plane < extent; plane += shape->batch)
    for (int64_t row = 0; row < shape->rows; row += most_rows) {
      int64_t rows = shape->rows - row < most_rows ? shape->rows - row : most_rows;
      int64_t cut = extent - plane < shape->batch ? extent - plane : shape->batch;
      for (int k = 0; k < OP.operand_count; ++k) {
        int64_t skipped = shape->outer < 0 ? 0 : plane * plan->stride[k][shape->outer];
        if (plan->rank > 1) skipped += row * plan->stride[k][plan->rank - 2];
        at[k] = data[k] + skipped * OP.itemsizes[k];
      }
      if (launch(shape, plan, at, rows, cut, device, stream)) return -1;
    }
  return 0;
}

/* The addresses of a plan's operands in the device's memory. */
static int place(char** data, const Plan* plan, const Device* device) {
  for (int k = 0; k < OP.operand_count; ++k) {
    int64_t at = k * (int64_t)sizeof(int64_t);
    int constant = k < OP.leaf_count && OP.leaves[k].input < 0;
    if (plan->data[k] == (char*)plan->spare + at) data[k] = (char*)device->spare + at;
    else if (constant) data[k] = (char*)device->constants + (plan->data[k] - (char*)CUDA.constants);
    else data[k] = plan->data[k];
    if ((uintptr_t)data[k] % OP.itemsizes[k] != 0) {
      int32_t out = k - OP.leaf_count;
      const char* name = out >= 0 ? OP.outputs[out].name : OP.inputs[OP.leaves[k].input].name;
      return fail("ValueError", name, "lies between the places where its elements may begin");
    }
  }
  return 0;
}

static int run_pass(const Plan* plan, const Device* device, CUstream stream) {
  if (plan->rank < 0) return 0;
  char* data[OP.operand_count];
  Shape shape;
  if (place(data, plan, device)) return -1;
  shape_launch(&shape, plan, data, device);
  int64_t index[MAX_RANK] = {0};
  for (;;) {
    if (launch_box(&shape, plan, data, device, stream)) return -1;
    int32_t d = shape.looped - 1;
    for (; d >= 0; --d) {
      for (int k = 0; k < OP.operand_count; ++k) data[k] += plan->stride[k][d] * OP.itemsizes[k];
      if (++index[d] < plan->extent[d]) break;
      for (int k = 0; k < OP.operand_count; ++k)
        data[k] -= plan->stride[k][d] * plan->extent[d] * OP.itemsizes[k];
      index[d] = 0;
    }
    if (d < 0) return 0;
  }
}

int relu_ops_run(const Plan* plan) {
  int entered, failed = 0;
  const Device* device = device_of(plan->device);
  if (!device || enter(device, plan->device, &entered)) return -1;
  CUstream stream = (CUstream)TVMFFIEnvGetStream(kDLCUDA, plan->device);
  for (; plan && !failed; plan = plan->next) failed = run_pass(plan, device, stream);
  leave(entered);
  return failed;
}

/* Threads and caches of the CPU: nothing to configure. */
void relu_ops_configure(int threads, int64_t parallel_bytes, int64_t stream_bytes,
                        int64_t wake_bytes) {
  (void)threads, (void)parallel_bytes, (void)stream_bytes, (void)wake_bytes;
}

/* Make a device ready: its number, and where to look the driver's functions up (the addresses of
 * dlsym, and the handle of libcuda). */
EXPORT int __tvm_ffi_prepare(void* self, const TVMFFIAny* arguments, int32_t count,
                             TVMFFIAny* result) {
  (void)self;
  for (int k = 0; k < count; ++k)
    if (arguments[k].type_index != kTVMFFIInt) count = 0;
  if (count != 3) return fail("TypeError", "prepare", "takes three integers");
  Lookup lookup = (Lookup)(intptr_t)arguments[1].v_int64;
  if (!driver_ready && find_driver(lookup, (void*)(intptr_t)arguments[2].v_int64)) return -1;
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return device_of((int32_t)arguments[0].v_int64) ? 0 : -1;
}
