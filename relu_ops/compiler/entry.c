/* The tvm-ffi functions of every operator: they read arrays, have a plan made and run it.
 *
 * Two are of the arguments (inputs..., outputs..., and optionally the number of threads): `call`
 * computes, `bind` returns a function that computes on these same arrays again and again; `call_views`
 * and `bind_views` take the address of a description instead of arrays, for what DLPack cannot express.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "entry.h"
#include "plan.h"

/* ---- arguments --------------------------------------------------------------------------- */

static int view_of(View* view, const TVMFFIAny* argument, const char* name) {
  const DLTensor* tensor;
  if (argument->type_index == kTVMFFIDLTensorPtr) {
    tensor = (const DLTensor*)argument->v_ptr;
  } else if (argument->type_index == kTVMFFITensor) {
    tensor = (const DLTensor*)((const char*)argument->v_obj + sizeof(TVMFFIObject));
  } else {
    return relu_ops_refuse("TypeError", name, "is not an array");
  }
  if ((int32_t)tensor->device.device_type != relu_ops_device_type)
    return relu_ops_refuse("ValueError", name, "is in the memory of another device");
  view->data = (char*)tensor->data + tensor->byte_offset;
  view->shape = tensor->shape;
  view->strides = tensor->strides;
  view->rank = tensor->ndim;
  view->device = tensor->device.device_id;
  view->dtype = tensor->dtype;
  return 0;
}

static int give_none(TVMFFIAny* result) {
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

static int32_t array_count(void) { return OP.input_count + OP.output_count; }

static int prepare_from_arrays(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[OP.input_count + OP.output_count];
  if (count != array_count())
    return relu_ops_refuse("TypeError", "the call", "has the wrong number of arrays");
  for (int k = 0; k < OP.input_count; ++k)
    if (view_of(&views[k], &arguments[k], OP.inputs[k].name)) return -1;
  for (int k = 0; k < OP.output_count; ++k)
    if (view_of(&views[OP.input_count + k], &arguments[OP.input_count + k], OP.outputs[k].name))
      return -1;
  return relu_ops_prepare(plan, views, views + OP.input_count);
}

/* For each array: data, dtype code, bits, device, rank, then shape and strides. */
static int prepare_from_description(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[OP.input_count + OP.output_count];
  if (count != 1 || arguments[0].type_index != kTVMFFIInt)
    return relu_ops_refuse("TypeError", "the call", "takes the address of a description");
  const int64_t* at = (const int64_t*)(intptr_t)arguments[0].v_int64;
  for (int k = 0; k < OP.input_count + OP.output_count; ++k) {
    views[k].data = (char*)(intptr_t)at[0];
    views[k].dtype.code = (uint8_t)at[1];
    views[k].dtype.bits = (uint8_t)at[2];
    views[k].dtype.lanes = 1;
    views[k].device = (int32_t)at[3];
    views[k].rank = (int32_t)at[4];
    views[k].shape = at + 5;
    views[k].strides = at + 5 + at[4];
    at += 5 + 2 * at[4];
  }
  return relu_ops_prepare(plan, views, views + OP.input_count);
}

typedef int (*Prepare)(Plan* plan, const TVMFFIAny* arguments, int32_t count);

/* Prepare a call whose last argument may be the number of threads that it uses at most. */
static int prepare_call(Prepare from, Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  int32_t expected = from == prepare_from_description ? 1 : array_count();
  int64_t threads = 0;
  if (count == expected + 1 && arguments[expected].type_index == kTVMFFIInt) {
    threads = arguments[expected].v_int64;
    --count;
  }
  if (threads < 0 || threads > 256) return relu_ops_refuse("ValueError", "threads", "must be 1 to 256");
  if (from(plan, arguments, count)) return -1;
  for (; plan; plan = plan->next) plan->threads = (int32_t)threads;
  return 0;
}

/* ---- the end of an interpreter ----------------------------------------------------------- */

/* Tells whether the interpreter ends; set when its end is near, by the thread that ends it. A thread
 * that then comes back from here for the GIL is ended in the middle of tvm-ffi's C++ (pthread_exit
 * from PyEval_RestoreThread, CPython before 3.14), which aborts the process. So it waits for the
 * end, as CPython 3.14 lets it; but a second at most while the end has not come, since somebody
 * may be joining it. Whoever kept the GIL may go on. */
static int (*is_finalizing)(void) = NULL;
static pthread_t last_thread;

int relu_ops_leave(int code) {
  int (*ends)(void) = __atomic_load_n(&is_finalizing, __ATOMIC_ACQUIRE);
  if (__builtin_expect(!ends, 1) || pthread_self() == last_thread) return code;
  const struct timespec millisecond = {0, 1000000};
  for (int k = 0; k < 1000; ++k) {
    while (ends()) pause();
    nanosleep(&millisecond, NULL);
  }
  return code;
}

/* Called by the last thread when the interpreter is about to end, with the address of a function that
 * says whether it does. */
EXPORT int __tvm_ffi_end(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  if (count != 1 || arguments[0].type_index != kTVMFFIInt)
    return relu_ops_refuse("TypeError", "end", "takes an address");
  last_thread = pthread_self();
  int (*ends)(void) = (int (*)(void))(intptr_t)arguments[0].v_int64;
  __atomic_store_n(&is_finalizing, ends, __ATOMIC_RELEASE);
  return give_none(result);
}

/* ---- calls ------------------------------------------------------------------------------- */

static int call_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  int64_t block[relu_ops_plans_size() / sizeof(int64_t) + 1];
  Plan* plan = plan_at(block);
  if (prepare_call(from, plan, arguments, count)) return -1;
  give_none(result);
  return relu_ops_run(plan);
}

static int run_bound(void* plan, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)arguments;
  if (count != 0) return relu_ops_refuse("TypeError", "the bound call", "takes no arguments");
  give_none(result);
  int code = relu_ops_run((const Plan*)plan);
  return ((const Plan*)plan)->keeps_gil ? code : relu_ops_leave(code);
}

/* Make a function of a prepared plan, whose memory is its own from then on. */
static int give_bound(Plan* plan, TVMFFIAny* result) {
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionCreate(plan, run_bound, free, &function)) return -1;
  result->type_index = kTVMFFIFunction;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)function;
  return 0;
}

/* A prepared plan in memory of its own, or NULL. */
static Plan* new_plan(Prepare from, const TVMFFIAny* arguments, int32_t count) {
  void* block = malloc(relu_ops_plans_size());
  if (!block) {
    relu_ops_refuse("MemoryError", "the call", "cannot be bound: no memory");
    return NULL;
  }
  Plan* plan = plan_at(block);
  if (prepare_call(from, plan, arguments, count) == 0) return plan;
  free(plan);
  return NULL;
}

Plan* relu_ops_new_plan(const int64_t* description, int64_t threads) {
  TVMFFIAny arguments[2] = {{.type_index = kTVMFFIInt}, {.type_index = kTVMFFIInt}};
  arguments[0].v_int64 = (int64_t)(intptr_t)description;
  arguments[1].v_int64 = threads;
  return new_plan(prepare_from_description, arguments, 2);
}

static int bind_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  Plan* plan = new_plan(from, arguments, count);
  if (!plan) return -1;
  if (give_bound(plan, result) == 0) return 0;
  free(plan);
  return -1;
}

#define DEFINE(name, action, source)                                                           \
  EXPORT int __tvm_ffi_##name(void* self, const TVMFFIAny* arguments, int32_t count,           \
                              TVMFFIAny* result) {                                             \
    (void)self;                                                                                \
    return relu_ops_leave(action(source, arguments, count, result));                           \
  }

DEFINE(call, call_now, prepare_from_arrays)
DEFINE(bind, bind_now, prepare_from_arrays)
DEFINE(call_views, call_now, prepare_from_description)
DEFINE(bind_views, bind_now, prepare_from_description)

/* ---- settings ---------------------------------------------------------------------------- */

/* How operators of this library run from now on: what relu_ops_configure takes, the number of elements
 * up to which a call keeps the GIL, and the address of a Python, which is copied. A newer runtime may
 * have more to say: it is not understood here, and not needed. */
enum { SETTINGS = 6 };

EXPORT int __tvm_ffi_configure(void* self, const TVMFFIAny* arguments, int32_t count,
                               TVMFFIAny* result) {
  (void)self;
  int64_t values[SETTINGS];
  if (count < SETTINGS) return relu_ops_refuse("TypeError", "configure", "takes six integers");
  for (int k = 0; k < SETTINGS; ++k) {
    if (arguments[k].type_index != kTVMFFIInt || arguments[k].v_int64 < 0)
      return relu_ops_refuse("TypeError", "configure", "takes six integers");
    values[k] = arguments[k].v_int64;
  }
  relu_ops_configure((int)(values[0] < 256 ? values[0] : 256), values[1], values[2], values[3]);
  relu_ops_few_elements = values[4];
  relu_ops_meet_python((const void*)(intptr_t)values[5]);
  return give_none(result);
}
