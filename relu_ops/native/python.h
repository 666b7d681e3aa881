/* What the files of the Python face have of each other. */
#ifndef RELU_OPS_PYTHON_H_
#define RELU_OPS_PYTHON_H_

#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL relu_ops_numpy
#ifndef RELU_OPS_IMPORTS_NUMPY /* python.c does, for all of them */
#define NO_IMPORT_ARRAY
#endif
#include <Python.h>
#include <numpy/arrayobject.h>
#include <stdbool.h>

#include "include/relu_ops.h"
#include "bounds.h"

enum {
  MOST_FAST = 8, /* arrays of a call; more go the careful way */
  MAX_RANK = RELU_OPS_MAX_RANK
};

/* Of an output: a call of so few takes some microseconds at most, and keeps the GIL: to release it costs
 * 30 ns, where a call of 16 takes 20 (AMD EPYC, Zen 4, 2026-11-22). */
#define FEW_ELEMENTS 8192

/* From here on runtime/memory.py makes outputs, and python_blocks.c the memory of tensors. */
#define LARGE_OUTPUT_BYTES (INT64_C(32) << 20)

/* What the module knows, from its start on. */
struct Known {
  PyObject *out, *threads, *stream, *alpha; /* interned names of keywords */
  PyTypeObject *operator_type, *bound_type, *bundle_type, *standard_type, *tensor_function_type;
};
extern struct Known relu_ops_known;

typedef struct {
  PyObject_HEAD
  relu_ops_bundle* bundle;
} BundleObject;

/* What an operator expects of an array. */
typedef struct {
  PyArray_Descr* descr;
  int number; /* NumPy's, of the dtype */
  int same;   /* another number of the same dtype (long and long long), or the same */
  DLDataType dtype;
  int64_t itemsize;
  bool is_number; /* declared as one number: a Python float is as good as an array */
} Expected;

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  relu_ops_operator* op;
  int input_count, output_count;
  Expected* expected; /* inputs, then outputs */
  PyObject *name, *target, *wanted, *device, *bundle, *inputs, *outputs;
  PyObject* weak_references;
  bool on_device; /* it runs on a CUDA device, and its arrays lie there */
  bool takes_vectors; /* on the CPU, of any shape, and it has one output */
} OperatorObject;

/* The arrays of one call as the core takes them, inputs then outputs, and room for what they point to. */
typedef struct {
  const OperatorObject* self;
  DLTensor tensors[MOST_FAST];
  int64_t shapes[MOST_FAST][MAX_RANK], strides[MOST_FAST][MAX_RANK];
  double numbers[MOST_FAST];
  void* stream; /* on a device: where the call is put */
  bool of_torch; /* tensors in the CPU's memory */
} Arrays;

/* Raise what the core said last, as the class of relu_ops.errors that a status means. NULL. */
PyObject* relu_ops_raise(relu_ops_status status);

/* Call a function of runtime/operator.py: a new reference to its result, or NULL with an error. */
PyObject* relu_ops_call_careful(const char* name, PyObject* const* arguments, size_t count);

/* Fill in what an operator expects of the arrays of a spec; -1 with an error. */
int relu_ops_expect(Expected* expected, const relu_ops_spec* spec);

/* Adopt the arrays of a call (as many as the operator has inputs; out may be NULL). A new reference to the
 * result: `out`, or a new array or tensor, or a tuple of them; or NULL, perhaps with an error, where the
 * careful way must look. */
PyObject* relu_ops_adopt(Arrays* arrays, PyObject* const* inputs, PyObject* out);

/* Adopt a Python number, or a double, for an input that is declared as one; false where it is none, or its
 * dtype would round it twice. */
bool relu_ops_adopt_number(Arrays* arrays, int k, PyObject* x);
bool relu_ops_adopt_double(Arrays* arrays, int k, double x);

/* Whether something is exactly torch's tensor or parameter, no subclass that means something else. */
bool relu_ops_is_tensor(PyObject* x);

/* The same as relu_ops_adopt, of tensors: in the CPU's memory, and on the operator's device. */
PyObject* relu_ops_adopt_tensors(Arrays* arrays, PyObject* const* inputs, PyObject* out);
PyObject* relu_ops_adopt_device_tensors(Arrays* arrays, PyObject* const* inputs, PyObject* out);

/* Compute on a few elements of NumPy's own arrays, all compact and of one shape (and numbers, where an input
 * is declared as one), for an operator that takes vectors. A new reference to the result; NULL, perhaps with
 * an error, where it is anything else. */
PyObject* relu_ops_call_on_vectors(const OperatorObject* self, PyObject* const* inputs, PyObject* out);

/* Memory for one large tensor: see python_blocks.c. Nothing, where base is NULL. */
typedef struct {
  void* base;
  size_t size;
} LargeBlock;
LargeBlock relu_ops_take_block(size_t bytes);
void* relu_ops_block_data(LargeBlock block);
void relu_ops_give_block_back(LargeBlock block);

/* See python_torch_threads.c. Watch for forks, from the module's start on: not 0 where that cannot be. */
int relu_ops_watch_forks(void);

/* A function of torch's library, or of one that it uses, as torch is bound to it; 0: there is none. */
uintptr_t relu_ops_torch_function(const char* name);

/* Find the threads of torch, once it was met. */
void relu_ops_meet_torch_threads(PyObject* torch);

/* Let a call on tensors of torch use torch's threads: complete its options, whose `threads` are what the
 * caller gave. elements: of its largest output. host must live as long as options. */
void relu_ops_use_torch_threads(relu_ops_options* options, relu_ops_host_threads* host, int64_t elements);

/* What somebody's argument is to torch. */
typedef enum {
  PLAIN_TENSOR,   /* exactly a tensor or a parameter, in the CPU's memory, without gaps */
  WANTS_GRADIENT, /* such a one, whose gradient is to be recorded */
  NO_PLAIN_TENSOR /* perhaps with an error */
} TensorKind;

/* Adopt one, and what it is; no plain one is adopted. */
TensorKind relu_ops_adopt_plain_tensor(Arrays* arrays, int k, PyObject* x);

/* New tensors for the inputs that were adopted: a tensor or a tuple, adopted too. A new reference, or NULL,
 * perhaps with an error. */
PyObject* relu_ops_new_tensors(Arrays* arrays);

/* Compute on tensors that were adopted: new ones, as of relu_ops_fast_call. */
PyObject* relu_ops_call_on_tensors(Arrays* arrays);

/* The stream that torch has set for a device; false where that cannot be told. */
bool relu_ops_torch_stream(int32_t device, void** stream);

/* What a capsule of DLPack holds, as a row for relu_ops_describe_rows: (address, code, bits, lanes, type and
 * number of the device, shape, strides or None), and whether it may only be read. The capsule stays whose it
 * is: it must live as long as the row is used. */
PyObject* relu_ops_capsule_row(PyObject* module, PyObject* capsule);

/* Tensors of a tuple of such rows, inputs then outputs. NULL with an error. To be freed by PyMem_Free. */
DLTensor* relu_ops_describe_rows(const OperatorObject* self, PyObject* rows);

/* Describe a tuple of NumPy arrays, inputs then outputs, as they lie. NULL with an error. To be freed by
 * PyMem_Free. */
DLTensor* relu_ops_describe(const OperatorObject* self, PyObject* arrays);

/* Call an operator the fast way; out: NULL, where the caller passed none; threads: 0 likewise. A new
 * reference to the result; NULL, without an error, where the careful way must look; NULL with one where a
 * device failed, which may have begun. */
PyObject* relu_ops_fast_call(PyObject* op, PyObject* const* inputs, size_t count, PyObject* out,
                             int threads);

/* Whether every output has few elements, of the tensors of a call: so few that it keeps the GIL. */
bool relu_ops_are_few(const OperatorObject* self, const DLTensor* tensors);

/* What an operator can do, as slots and methods of its type. */
PyObject* relu_ops_operator_vectorcall(PyObject* self, PyObject* const* arguments, size_t flags,
                                       PyObject* names);
PyObject* relu_ops_method_compute(PyObject* self, PyObject* arguments);
PyObject* relu_ops_method_compute_on(PyObject* self, PyObject* arguments);
PyObject* relu_ops_method_bind(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                               PyObject* names);
PyObject* relu_ops_method_bound(PyObject* self, PyObject* arguments);
PyObject* relu_ops_method_bound_on(PyObject* self, PyObject* arguments);

extern PyType_Spec relu_ops_operator_spec, relu_ops_bound_spec, relu_ops_standard_spec,
    relu_ops_tensor_function_spec;

/* See python_tvm_ffi.c. */
PyObject* relu_ops_packed(PyObject* module, PyObject* arguments);

#endif
