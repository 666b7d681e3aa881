/* Calls of operators.
 *
 * A call has two ways. The fast one takes arrays that lie in memory as a kernel can read them
 * (python_arrays.c). Whatever it does not understand, and whatever the core refuses, goes the careful
 * way: Python code (runtime/operator.py), which converts what can be converted, or says what is wrong.
 * The fast way therefore never raises on its own account. Nothing is computed before everything is
 * checked, so that starting again is safe.
 */
#include "python.h"

#include <string.h>

static int64_t elements_of(const DLTensor* tensor) {
  int64_t elements = 1;
  for (int32_t d = 0; d < tensor->ndim; ++d)
    if (__builtin_mul_overflow(elements, tensor->shape[d], &elements)) return INT64_MAX;
  return elements;
}

/* The elements of the largest output, of the tensors of a call. */
static int64_t most_elements(const OperatorObject* self, const DLTensor* tensors) {
  int64_t most = 0;
  for (int k = 0; k < self->output_count; ++k) {
    int64_t elements = elements_of(&tensors[self->input_count + k]);
    if (elements > most) most = elements;
  }
  return most;
}

bool relu_ops_are_few(const OperatorObject* self, const DLTensor* tensors) {
  return most_elements(self, tensors) <= FEW_ELEMENTS;
}

/* Take shapes and strides out of the arrays: without the GIL others may reshape those. */
static void own_shapes(Arrays* arrays, int count) {
  for (int k = 0; k < count; ++k) {
    DLTensor* tensor = &arrays->tensors[k];
    size_t size = sizeof(int64_t) * (size_t)tensor->ndim;
    if (tensor->shape != arrays->shapes[k]) memcpy(arrays->shapes[k], tensor->shape, size);
    if (tensor->strides && tensor->strides != arrays->strides[k])
      memcpy(arrays->strides[k], tensor->strides, size);
    tensor->shape = arrays->shapes[k];
    if (tensor->strides) tensor->strides = arrays->strides[k];
  }
}

/* Compute on arrays that were adopted; keeps the GIL for few elements on the CPU. */
static relu_ops_status compute(Arrays* arrays, int threads) {
  const OperatorObject* self = arrays->self;
  const DLTensor* outputs = arrays->tensors + self->input_count;
  relu_ops_options options = {.threads = threads, .stream = self->on_device ? arrays->stream : NULL};
  relu_ops_host_threads host;
  int64_t elements = most_elements(self, arrays->tensors);
  if (arrays->of_torch) relu_ops_use_torch_threads(&options, &host, elements);
  const relu_ops_options* given = options.threads || options.host || self->on_device ? &options : NULL;
  if (!self->on_device && elements <= FEW_ELEMENTS)
    return relu_ops_call(self->op, arrays->tensors, outputs, given);
  own_shapes(arrays, self->input_count + self->output_count);
  relu_ops_status status;
  Py_BEGIN_ALLOW_THREADS
  status = relu_ops_call(self->op, arrays->tensors, outputs, given);
  Py_END_ALLOW_THREADS
  return status;
}

/* ---- calls --------------------------------------------------------------------------------------- */

typedef struct {
  PyObject* out; /* borrowed; NULL: none was given */
  int threads;   /* 0: none was given */
} Keywords;

static bool is_name(PyObject* name, PyObject* wanted) {
  return name == wanted || PyUnicode_Compare(name, wanted) == 0;
}

/* Read keywords; false where the careful way is to look at them. A device takes a stream where the CPU takes
 * a number of threads. */
static bool read_keywords(Keywords* keywords, bool on_device, PyObject* const* values, PyObject* names) {
  for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); ++k) {
    PyObject *name = PyTuple_GET_ITEM(names, k), *value = values[k];
    if (is_name(name, relu_ops_known.out)) {
      keywords->out = value == Py_None ? NULL : value;
    } else if (on_device) {
      if (value != Py_None || !is_name(name, relu_ops_known.stream)) return false;
    } else if (!is_name(name, relu_ops_known.threads)) {
      return false;
    } else if (value != Py_None) {
      if (!PyLong_CheckExact(value)) return false;
      long count = PyLong_AsLong(value);
      if (count < 1 || count > RELU_OPS_MOST_THREADS) {
        PyErr_Clear();
        return false;
      }
      keywords->threads = (int)count;
    }
  }
  return true;
}

/* Compute on vectors, with the GIL all the time; NULL, without an error, where they are none. */
static inline PyObject* call_on_vectors(const OperatorObject* self, PyObject* const* inputs, size_t count,
                                        PyObject* out, int threads) {
  if (!self->takes_vectors || count != (size_t)self->input_count || threads) return NULL;
  PyObject* result = relu_ops_call_on_vectors(self, inputs, out);
  if (!result) PyErr_Clear();
  return result;
}

/* Compute a result that was adopted; NULL where it could not be. */
static PyObject* computed(Arrays* arrays, PyObject* result, int threads) {
  relu_ops_status status = result ? compute(arrays, threads) : RELU_OPS_OK;
  if (status) Py_CLEAR(result);
  if (!result) PyErr_Clear();
  if (status == RELU_OPS_DEVICE) relu_ops_raise(status); /* nothing is launched twice */
  return result;
}

PyObject* relu_ops_call_on_tensors(Arrays* arrays) {
  arrays->of_torch = true;
  return computed(arrays, relu_ops_new_tensors(arrays), 0);
}

/* Compute on arrays that need not be vectors; as of relu_ops_fast_call. */
static PyObject* call_on_arrays(const OperatorObject* self, PyObject* const* inputs, size_t count,
                                PyObject* out, int threads) {
  if (count != (size_t)self->input_count || count + (size_t)self->output_count > MOST_FAST) return NULL;
  Arrays arrays;
  arrays.self = self;
  arrays.of_torch = false;
  return computed(&arrays, relu_ops_adopt(&arrays, inputs, out), threads);
}

PyObject* relu_ops_fast_call(PyObject* op, PyObject* const* inputs, size_t count, PyObject* out,
                             int threads) {
  const OperatorObject* self = (OperatorObject*)op;
  PyObject* result = call_on_vectors(self, inputs, count, out, threads);
  return result ? result : call_on_arrays(self, inputs, count, out, threads);
}

/* The careful way, for the same arguments: careful_call(op, inputs, keywords). */
static PyObject* careful_call(PyObject* self, PyObject* const* arguments, size_t count,
                              PyObject* names, const char* function) {
  PyObject *inputs = PyTuple_New((Py_ssize_t)count), *keywords = PyDict_New(), *result = NULL;
  for (size_t k = 0; inputs && k < count; ++k)
    PyTuple_SET_ITEM(inputs, (Py_ssize_t)k, Py_NewRef(arguments[k]));
  bool failed = !inputs || !keywords;
  for (Py_ssize_t k = 0; !failed && names && k < PyTuple_GET_SIZE(names); ++k)
    failed = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, k), arguments[count + (size_t)k]) < 0;
  if (!failed) result = relu_ops_call_careful(function, (PyObject*[]){self, inputs, keywords}, 3);
  Py_XDECREF(inputs);
  Py_XDECREF(keywords);
  return result;
}

/* Who calls may have a mere loan of the operator and of the arguments, that ends as soon as the GIL is free:
 * a functools.partial that another thread changes meanwhile. */
static PyObject* call_holding(PyObject* self, PyObject* const* arguments, size_t count, PyObject* names,
                              const Keywords* keywords) {
  PyObject* held[MOST_FAST + 2]; /* two keywords */
  size_t all = count + (names ? (size_t)PyTuple_GET_SIZE(names) : 0);
  if (all > MOST_FAST + 2) return careful_call(self, arguments, count, names, "careful_call");
  Py_INCREF(self);
  for (size_t k = 0; k < all; ++k) held[k] = Py_NewRef(arguments[k]);
  PyObject* result = call_on_arrays((OperatorObject*)self, held, count, keywords->out, keywords->threads);
  if (!result && !PyErr_Occurred()) result = careful_call(self, held, count, names, "careful_call");
  for (size_t k = 0; k < all; ++k) Py_DECREF(held[k]);
  Py_DECREF(self);
  return result;
}

PyObject* relu_ops_operator_vectorcall(PyObject* object, PyObject* const* arguments, size_t flags,
                                       PyObject* names) {
  const OperatorObject* self = (OperatorObject*)object;
  size_t count = (size_t)PyVectorcall_NARGS(flags);
  Keywords keywords = {NULL, 0};
  if (!read_keywords(&keywords, self->on_device, arguments + count, names))
    return careful_call(object, arguments, count, names, "careful_call");
  PyObject* result = call_on_vectors(self, arguments, count, keywords.out, keywords.threads);
  return result ? result : call_holding(object, arguments, count, names, &keywords);
}

PyObject* relu_ops_method_bind(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                               PyObject* names) {
  return careful_call(self, arguments, (size_t)count, names, "careful_bind");
}

/* compute(arrays, threads): on NumPy arrays as they lie; what the core refuses is raised. */
PyObject* relu_ops_method_compute(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject* arrays;
  relu_ops_options options = {0};
  if (!PyArg_ParseTuple(arguments, "O|i", &arrays, &options.threads)) return NULL;
  DLTensor* tensors = relu_ops_describe(self, arrays);
  if (!tensors) return NULL;
  bool few = relu_ops_are_few(self, tensors);
  PyThreadState* thread = few ? NULL : PyEval_SaveThread();
  relu_ops_status status = relu_ops_call(self->op, tensors, tensors + self->input_count, &options);
  if (thread) PyEval_RestoreThread(thread);
  PyMem_Free(tensors);
  if (status) return relu_ops_raise(status);
  Py_RETURN_NONE;
}

/* compute_on(rows, stream): on arrays of a device, as rows of relu_ops_capsule_row; what the core refuses is
 * raised. */
PyObject* relu_ops_method_compute_on(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject* rows;
  unsigned long long stream;
  if (!PyArg_ParseTuple(arguments, "OK", &rows, &stream)) return NULL;
  DLTensor* tensors = relu_ops_describe_rows(self, rows);
  if (!tensors) return NULL;
  relu_ops_options options = {.stream = (void*)(uintptr_t)stream};
  relu_ops_status status;
  Py_BEGIN_ALLOW_THREADS
  status = relu_ops_call(self->op, tensors, tensors + self->input_count, &options);
  Py_END_ALLOW_THREADS
  PyMem_Free(tensors);
  if (status) return relu_ops_raise(status);
  Py_RETURN_NONE;
}
