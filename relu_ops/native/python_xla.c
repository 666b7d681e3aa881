/* Operators as a foreign function of XLA, for JAX: one handler, which finds the operator by its number.
 *
 * XLA's interface is a C header inside jaxlib (xla/ffi/api/c_api.h), which is needed to build nothing here:
 * what is used of it is declared below, under its names. Fields are only ever added behind these.
 */
#include "python.h"

#include <string.h>
#include <sys/mman.h>

#include "python_xla.h"

/* ---- what is used of XLA's c_api.h ---------------------------------------------------------------- */

typedef struct XLA_FFI_Extension_Base {
  size_t struct_size;
  int type; /* 1: metadata is asked for */
  struct XLA_FFI_Extension_Base* next;
} XLA_FFI_Extension_Base;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  int major_version, minor_version;
} XLA_FFI_Api_Version;

typedef struct {
  size_t struct_size;
  XLA_FFI_Api_Version api_version;
  uint32_t traits;
} XLA_FFI_Metadata;

typedef struct {
  XLA_FFI_Extension_Base extension_base;
  XLA_FFI_Metadata* metadata;
} XLA_FFI_Metadata_Extension;

typedef struct XLA_FFI_Error XLA_FFI_Error;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  const char* message;
  int errc;
} XLA_FFI_Error_Create_Args;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  XLA_FFI_Api_Version api_version;
  const void* internal_api;
  XLA_FFI_Error* (*create_error)(XLA_FFI_Error_Create_Args*);
} XLA_FFI_Api;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  int dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
} XLA_FFI_Buffer;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  int64_t size;
  int* types;
  void** items;
} XLA_FFI_Args, XLA_FFI_Rets;

typedef struct {
  const char* ptr;
  size_t len;
} XLA_FFI_ByteSpan;

typedef struct {
  int dtype;
  void* value;
} XLA_FFI_Scalar;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  int64_t size;
  int* types;
  XLA_FFI_ByteSpan** names;
  void** attrs;
} XLA_FFI_Attrs;

typedef struct {
  size_t struct_size;
  XLA_FFI_Extension_Base* extension_start;
  const XLA_FFI_Api* api;
  void* ctx;
  int stage;
  XLA_FFI_Args args;
  XLA_FFI_Rets rets;
  XLA_FFI_Attrs attrs;
} XLA_FFI_CallFrame;

enum { METADATA = 1, SCALAR = 3, S64 = 5, INVALID_ARGUMENT = 3, NOT_FOUND = 5 };

/* ---- the operators that JAX may call -------------------------------------------------------------- */

enum { MOST_OPERATORS = 4096, MOST_BUFFERS = 64 };

static struct {
  int64_t number;
  const relu_ops_operator* op;
} table[MOST_OPERATORS];
static int table_size; /* written with the interpreter's lock; read by XLA's threads, entries before it */
static int api_version[2];

static const relu_ops_operator* find(int64_t number) {
  int size = __atomic_load_n(&table_size, __ATOMIC_ACQUIRE);
  for (int k = 0; k < size; ++k)
    if (table[k].number == number) return table[k].op;
  return NULL;
}

PyObject* relu_ops_xla_register(PyObject* module, PyObject* arguments) {
  (void)module;
  long long number;
  PyObject* operator;
  if (!PyArg_ParseTuple(arguments, "LO!", &number, relu_ops_known.operator_type, &operator)) return NULL;
  if (find(number)) Py_RETURN_NONE;
  if (table_size == MOST_OPERATORS) {
    PyErr_SetString(PyExc_RuntimeError, "too many operators for XLA: at most 4096 in a process");
    return NULL;
  }
  table[table_size].number = number;
  table[table_size].op = ((OperatorObject*)Py_NewRef(operator))->op; /* for good: code of XLA may have it */
  __atomic_store_n(&table_size, table_size + 1, __ATOMIC_RELEASE);
  Py_RETURN_NONE;
}

/* ---- a call --------------------------------------------------------------------------------------- */

/* DLPack's code and bits of XLA's element types, by number; {0, 0} where relu_ops has none. */
static const DLDataType types[] = {
    [1] = {kDLBool, 8, 1},   [2] = {kDLInt, 8, 1},     [3] = {kDLInt, 16, 1},   [4] = {kDLInt, 32, 1},
    [5] = {kDLInt, 64, 1},   [6] = {kDLUInt, 8, 1},    [7] = {kDLUInt, 16, 1},  [8] = {kDLUInt, 32, 1},
    [9] = {kDLUInt, 64, 1},  [10] = {kDLFloat, 16, 1}, [11] = {kDLFloat, 32, 1}, [12] = {kDLFloat, 64, 1},
    [16] = {kDLBfloat, 16, 1},
};
enum { TYPES = sizeof types / sizeof *types };

static XLA_FFI_Error* fail(const XLA_FFI_CallFrame* frame, int code, const char* message) {
  XLA_FFI_Error_Create_Args arguments = {sizeof arguments, NULL, message, code};
  return frame->api->create_error(&arguments);
}

static XLA_FFI_Error* say_metadata(XLA_FFI_Metadata* metadata) {
  metadata->api_version.major_version = api_version[0];
  metadata->api_version.minor_version = api_version[1];
  metadata->traits = 0;
  return NULL;
}

static bool read_number(const XLA_FFI_Attrs* attrs, int64_t* number) {
  if (attrs->size != 1 || attrs->types[0] != SCALAR) return false;
  const XLA_FFI_Scalar* scalar = attrs->attrs[0];
  if (scalar->dtype != S64) return false;
  memcpy(number, scalar->value, sizeof *number);
  return true;
}

static void describe(DLTensor* tensor, const XLA_FFI_Buffer* buffer) {
  DLDataType none = {0, 0, 0};
  bool known = buffer->dtype >= 0 && buffer->dtype < TYPES;
  *tensor = (DLTensor){.data = buffer->data,
                       .device = {kDLCPU, 0},
                       .ndim = (int32_t)buffer->rank,
                       .dtype = known ? types[buffer->dtype] : none,
                       .shape = buffer->dims};
}

/* XLA maps the memory of a large result anew for each call, and most of a call's time goes into its pages:
 * leaky_relu of 16M float32 takes 9 ms in huge pages, where the system lets a program ask for them, and 20
 * without, whoever computes it (Intel Xeon, 2 threads, 2026-11-28). Stores past the cache lose in small pages,
 * which the system has just written there: 21.8 ms against 17.5. */
#define HUGE_PAGE ((uintptr_t)2 << 20)
#define LARGE_BYTES ((uintptr_t)32 << 20) /* smaller ones are the heap's, and used again */

static void ask_for_huge_pages(const DLTensor* output) {
  uintptr_t bytes = output->dtype.bits / 8u;
  for (int32_t d = 0; d < output->ndim; ++d) bytes *= (uintptr_t)output->shape[d];
  uintptr_t begin = ((uintptr_t)output->data + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  uintptr_t end = ((uintptr_t)output->data + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (bytes >= LARGE_BYTES && begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
}

static XLA_FFI_Error* handle(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start && frame->extension_start->type == METADATA)
    return say_metadata(((XLA_FFI_Metadata_Extension*)frame->extension_start)->metadata);
  int64_t number;
  const relu_ops_operator* op = read_number(&frame->attrs, &number) ? find(number) : NULL;
  if (!op)
    return fail(frame, NOT_FOUND,
                "relu_ops: this process has no such operator: wrap the same graph with "
                "relu_ops.interop.jax.wrap before an exported function is called");
  DLTensor tensors[MOST_BUFFERS];
  int64_t inputs = frame->args.size, outputs = frame->rets.size;
  if (inputs != relu_ops_input_count(op) || outputs != relu_ops_output_count(op) ||
      inputs + outputs > MOST_BUFFERS)
    return fail(frame, INVALID_ARGUMENT, "relu_ops: the number of arrays is not the operator's, or above 64");
  for (int64_t k = 0; k < inputs; ++k) describe(&tensors[k], frame->args.items[k]);
  for (int64_t k = 0; k < outputs; ++k) {
    describe(&tensors[inputs + k], frame->rets.items[k]);
    ask_for_huge_pages(&tensors[inputs + k]);
  }
  if (relu_ops_call(op, tensors, tensors + inputs, NULL))
    return fail(frame, INVALID_ARGUMENT, relu_ops_message());
  return NULL;
}

PyObject* relu_ops_xla_handler(PyObject* module, PyObject* arguments) {
  (void)module;
  if (!PyArg_ParseTuple(arguments, "ii", &api_version[0], &api_version[1])) return NULL;
  return PyCapsule_New((void*)(uintptr_t)handle, NULL, NULL);
}
