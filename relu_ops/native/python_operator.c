/* Operators and bound calls as Python objects.
 *
 * A call has two ways. The fast one takes arrays that lie in memory as a kernel can read them
 * (python_arrays.c). Whatever it does not understand, and whatever the core refuses, goes the careful
 * way: Python code (runtime/operator.py), which converts what can be converted, or says what is wrong.
 * The fast way therefore never raises on its own account. Nothing is computed before everything is
 * checked, so that starting again is safe.
 */
#include "python.h"

#include <string.h>
#include <structmember.h>

/* Of an output: a call of so few takes some microseconds at most, and keeps the GIL: to release it costs
 * 30 ns, where a call of 16 takes 20 (AMD EPYC, Zen 4, 2026-11-22). */
#define FEW_ELEMENTS 8192

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

static bool are_few(const OperatorObject* self, const DLTensor* tensors) {
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

PyObject* relu_ops_fast_call(PyObject* op, PyObject* const* inputs, size_t count, PyObject* out,
                             int threads) {
  Arrays arrays;
  const OperatorObject* self = arrays.self = (OperatorObject*)op;
  if (count != (size_t)self->input_count || count + (size_t)self->output_count > MOST_FAST) return NULL;
  arrays.of_torch = false;
  PyObject* result = relu_ops_adopt(&arrays, inputs, out);
  relu_ops_status status = result ? compute(&arrays, threads) : RELU_OPS_OK;
  if (status) Py_CLEAR(result);
  if (!result) PyErr_Clear();
  if (status == RELU_OPS_DEVICE) relu_ops_raise(status); /* nothing is launched twice */
  return result;
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

static PyObject* call_either_way(PyObject* self, PyObject* const* arguments, size_t count,
                                 PyObject* names) {
  Keywords keywords = {NULL, 0};
  PyObject* result = NULL;
  if (read_keywords(&keywords, ((OperatorObject*)self)->on_device, arguments + count, names))
    result = relu_ops_fast_call(self, arguments, count, keywords.out, keywords.threads);
  return result || PyErr_Occurred() ? result
                                    : careful_call(self, arguments, count, names, "careful_call");
}

/* Who calls may have a mere loan of the operator and of the arguments, that ends as soon as the GIL is free:
 * a functools.partial that another thread changes meanwhile. */
static PyObject* operator_vectorcall(PyObject* self, PyObject* const* arguments, size_t flags,
                                     PyObject* names) {
  PyObject* held[MOST_FAST + 2]; /* two keywords */
  size_t count = (size_t)PyVectorcall_NARGS(flags);
  size_t all = count + (names ? (size_t)PyTuple_GET_SIZE(names) : 0);
  if (all > MOST_FAST + 2) return careful_call(self, arguments, count, names, "careful_call");
  Py_INCREF(self);
  for (size_t k = 0; k < all; ++k) held[k] = Py_NewRef(arguments[k]);
  PyObject* result = call_either_way(self, held, count, names);
  for (size_t k = 0; k < all; ++k) Py_DECREF(held[k]);
  Py_DECREF(self);
  return result;
}

static PyObject* operator_bind(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                               PyObject* names) {
  return careful_call(self, arguments, (size_t)count, names, "careful_bind");
}

/* compute(arrays, threads): on NumPy arrays as they lie; what the core refuses is raised. */
static PyObject* operator_compute(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject* arrays;
  relu_ops_options options = {0};
  if (!PyArg_ParseTuple(arguments, "O|i", &arrays, &options.threads)) return NULL;
  DLTensor* tensors = relu_ops_describe(self, arrays);
  if (!tensors) return NULL;
  bool few = are_few(self, tensors);
  PyThreadState* thread = few ? NULL : PyEval_SaveThread();
  relu_ops_status status = relu_ops_call(self->op, tensors, tensors + self->input_count, &options);
  if (thread) PyEval_RestoreThread(thread);
  PyMem_Free(tensors);
  if (status) return relu_ops_raise(status);
  Py_RETURN_NONE;
}

/* compute_on(rows, stream): on arrays of a device, as rows of relu_ops_capsule_row; what the core refuses is
 * raised. */
static PyObject* operator_compute_on(PyObject* object, PyObject* arguments) {
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

/* output_shapes(shapes): of the outputs, for inputs of some shapes. */
static PyObject* operator_output_shapes(PyObject* object, PyObject* given) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject* shapes = PySequence_Fast(given, "shapes must be a sequence of shapes");
  if (!shapes) return NULL;
  PyObject* result = NULL;
  size_t inputs = (size_t)self->input_count, outputs = (size_t)self->output_count;
  size_t room = inputs * (sizeof(DLTensor) + sizeof(int64_t[MAX_RANK])) +
                outputs * (sizeof(int32_t) + sizeof(int64_t[MAX_RANK]));
  DLTensor* tensors = PyMem_Calloc(1, room);
  int64_t(*extents)[MAX_RANK] = (int64_t(*)[MAX_RANK])(tensors + inputs);
  int32_t* ranks = (int32_t*)(extents + inputs + outputs);
  if (!tensors) {
    PyErr_NoMemory();
    goto done;
  }
  if ((size_t)PySequence_Fast_GET_SIZE(shapes) != inputs) {
    PyErr_Format(PyExc_ValueError, "shapes must be of %zu inputs", inputs);
    goto done;
  }
  for (size_t k = 0; k < inputs; ++k) {
    PyObject* shape = PySequence_Fast_GET_ITEM(shapes, k);
    if (!PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > MAX_RANK) {
      PyErr_Format(PyExc_ValueError, "a shape must be a tuple of at most %d extents", (int)MAX_RANK);
      goto done;
    }
    tensors[k].ndim = (int32_t)PyTuple_GET_SIZE(shape);
    tensors[k].dtype = self->expected[k].dtype;
    tensors[k].shape = extents[k];
    for (int32_t d = 0; d < tensors[k].ndim; ++d)
      extents[k][d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d));
  }
  if (PyErr_Occurred()) goto done;
  relu_ops_status status = relu_ops_output_shapes(self->op, tensors, ranks, extents + inputs);
  if (status) {
    relu_ops_raise(status);
    goto done;
  }
  result = PyList_New((Py_ssize_t)outputs);
  for (size_t k = 0; result && k < outputs; ++k) {
    PyObject* shape = PyTuple_New(ranks[k]);
    for (int32_t d = 0; shape && d < ranks[k]; ++d)
      PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(extents[inputs + k][d]));
    if (shape) PyList_SET_ITEM(result, (Py_ssize_t)k, shape);
    else Py_CLEAR(result);
  }
done:
  PyMem_Free(tensors);
  Py_DECREF(shapes);
  return result;
}

/* ---- bound calls --------------------------------------------------------------------------------- */

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  relu_ops_bound* bound;
  bool few;
  bool on_device;
  int32_t device;
  bool of_torch;       /* torch may tell the stream itself */
  PyObject* stream_of; /* on a device: gives the stream of each run; NULL: it is fixed */
  PyObject *arrays, *name, *inputs, *out;
} BoundObject;

/* Put a bound call on the stream that is current now; the status, or -1 with an error. */
static int run_on_current(const BoundObject* self) {
  void* stream = NULL;
  if (self->of_torch && relu_ops_torch_stream(self->device, &stream))
    return (int)relu_ops_run_on(self->bound, stream);
  PyObject* handle = PyObject_CallNoArgs(self->stream_of);
  if (handle) stream = PyLong_AsVoidPtr(handle);
  Py_XDECREF(handle);
  return PyErr_Occurred() ? -1 : (int)relu_ops_run_on(self->bound, stream);
}

static PyObject* run_on_device(BoundObject* self) {
  int status;
  Py_INCREF(self);
  if (self->stream_of) {
    status = run_on_current(self);
  } else {
    Py_BEGIN_ALLOW_THREADS
    status = (int)relu_ops_run(self->bound);
    Py_END_ALLOW_THREADS
  }
  Py_DECREF(self);
  if (status > 0) return relu_ops_raise((relu_ops_status)status);
  if (status < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject* bound_vectorcall(PyObject* object, PyObject* const* arguments, size_t flags,
                                  PyObject* names) {
  BoundObject* self = (BoundObject*)object;
  (void)arguments;
  if (PyVectorcall_NARGS(flags) || (names && PyTuple_GET_SIZE(names)))
    return relu_ops_call_careful("refuse_arguments", &object, 1);
  if (self->on_device) return run_on_device(self);
  if (self->few) {
    relu_ops_run(self->bound);
    Py_RETURN_NONE;
  }
  /* Who calls may have a mere loan of this object, that ends as soon as the GIL is free. */
  Py_INCREF(object);
  Py_BEGIN_ALLOW_THREADS
  relu_ops_run(self->bound);
  Py_END_ALLOW_THREADS
  Py_DECREF(object);
  Py_RETURN_NONE;
}

/* Bind arrays, and hold what has their memory. A new reference, or NULL with an error. */
static BoundObject* new_bound(OperatorObject* self, const DLTensor* tensors, const relu_ops_options* options,
                              PyObject* held, PyObject* inputs, PyObject* out) {
  relu_ops_bound* bound = NULL;
  relu_ops_status status =
      relu_ops_bind(self->op, tensors, tensors + self->input_count, options, &bound);
  if (status) return (BoundObject*)relu_ops_raise(status);
  BoundObject* call = (BoundObject*)relu_ops_known.bound_type->tp_alloc(relu_ops_known.bound_type, 0);
  if (!call) {
    relu_ops_free(bound);
    return NULL;
  }
  call->vectorcall = bound_vectorcall;
  call->bound = bound;
  call->arrays = Py_NewRef(held);
  call->name = Py_NewRef(self->name);
  call->inputs = Py_NewRef(inputs);
  call->out = Py_NewRef(out);
  return call;
}

/* bound(arrays, threads, inputs, out): a bound call on NumPy arrays, which it holds. */
static PyObject* operator_bound(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject *arrays, *inputs, *out;
  relu_ops_options options = {0};
  if (!PyArg_ParseTuple(arguments, "OiOO", &arrays, &options.threads, &inputs, &out)) return NULL;
  DLTensor* tensors = relu_ops_describe(self, arrays);
  if (!tensors) return NULL;
  BoundObject* call = new_bound(self, tensors, &options, arrays, inputs, out);
  if (call) call->few = are_few(self, tensors);
  PyMem_Free(tensors);
  return (PyObject*)call;
}

/* bound_on(rows, stream, stream_of, of_torch, inputs, out, held): a bound call on arrays of a device. stream:
 * a handle, or None where stream_of gives one at each run; of_torch: it is torch's current one. */
static PyObject* operator_bound_on(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject *rows, *stream, *stream_of, *inputs, *out, *held;
  int of_torch;
  if (!PyArg_ParseTuple(arguments, "OOOpOOO", &rows, &stream, &stream_of, &of_torch, &inputs, &out, &held))
    return NULL;
  relu_ops_options options = {.stream = stream == Py_None ? NULL : PyLong_AsVoidPtr(stream)};
  DLTensor* tensors = PyErr_Occurred() ? NULL : relu_ops_describe_rows(self, rows);
  if (!tensors) return NULL;
  BoundObject* call = new_bound(self, tensors, &options, held, inputs, out);
  if (call) {
    call->on_device = true;
    call->of_torch = of_torch;
    call->device = tensors[self->input_count].device.device_id;
    call->stream_of = stream == Py_None ? Py_NewRef(stream_of) : NULL;
  }
  PyMem_Free(tensors);
  return (PyObject*)call;
}

static int bound_traverse(PyObject* object, visitproc visit, void* arg) {
  BoundObject* self = (BoundObject*)object;
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->stream_of);
  Py_VISIT(self->arrays);
  Py_VISIT(self->inputs);
  Py_VISIT(self->out);
  return 0;
}

/* Nothing is cleared: the arrays must live as long as the call. What refers to it is cleared instead. */
static void bound_dealloc(PyObject* object) {
  BoundObject* self = (BoundObject*)object;
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  relu_ops_free(self->bound);
  Py_XDECREF(self->stream_of);
  Py_XDECREF(self->arrays);
  Py_XDECREF(self->name);
  Py_XDECREF(self->inputs);
  Py_XDECREF(self->out);
  type->tp_free(object);
  Py_DECREF(type);
}

static PyObject* bound_repr(PyObject* object) {
  return PyUnicode_FromFormat("<relu_ops.BoundCall of %U>", ((BoundObject*)object)->name);
}

static PyObject* bound_reduce(PyObject* object, PyObject* unused) {
  (void)unused;
  return relu_ops_call_careful("refuse_copies", &object, 1);
}

static PyMemberDef bound_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(BoundObject, vectorcall), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(BoundObject, name), READONLY, "The name of the operator."},
    {"inputs", T_OBJECT_EX, offsetof(BoundObject, inputs), READONLY,
     "The input arrays, as they were passed."},
    {"out", T_OBJECT_EX, offsetof(BoundObject, out), READONLY, "The output, or a tuple of outputs."},
    {NULL, 0, 0, 0, NULL}};

static PyMethodDef bound_methods[] = {{"__reduce__", bound_reduce, METH_NOARGS, NULL},
                                      {NULL, NULL, 0, NULL}};

PyDoc_STRVAR(bound_doc,
             "A call with its arrays converted once: calling it computes into the same outputs again.\n\n"
             "Attributes:\n"
             "    name: The name of the operator.\n"
             "    inputs: The input arrays, as they were passed.\n"
             "    out: The output, or a tuple of outputs.");

static PyType_Slot bound_slots[] = {{Py_tp_doc, (void*)bound_doc},
                                    {Py_tp_call, PyVectorcall_Call},
                                    {Py_tp_traverse, bound_traverse},
                                    {Py_tp_dealloc, bound_dealloc},
                                    {Py_tp_repr, bound_repr},
                                    {Py_tp_members, bound_members},
                                    {Py_tp_methods, bound_methods},
                                    {0, NULL}};

PyType_Spec relu_ops_bound_spec = {"relu_ops.BoundCall", sizeof(BoundObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                                     Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                 bound_slots};

/* ---- the type ------------------------------------------------------------------------------------ */

static int expect_all(OperatorObject* self) {
  int count = self->input_count + self->output_count;
  self->expected = PyMem_Calloc((size_t)count, sizeof(Expected));
  if (!self->expected) {
    PyErr_NoMemory();
    return -1;
  }
  for (int k = 0; k < count; ++k) {
    relu_ops_spec spec;
    if (k < self->input_count) relu_ops_input(self->op, k, &spec);
    else relu_ops_output(self->op, k - self->input_count, &spec);
    if (relu_ops_expect(&self->expected[k], &spec)) return -1;
  }
  return 0;
}

/* "cpu", or "cuda:0": a new reference, or NULL with an error. */
static PyObject* name_of_device(DLDevice device) {
  if (device.device_type == kDLCPU) return PyUnicode_FromString("cpu");
  return PyUnicode_FromFormat("cuda:%d", (int)device.device_id);
}

/* Whoever calls the class itself is told where operators come from. */
static PyObject* refuse_new(void) {
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) return NULL;
  PyErr_Clear();
  return relu_ops_call_careful("refuse_new", NULL, 0);
}

/* Operator(handle, name=None, target=None, bundle=None, cuda=-1): for the CUDA device of a number, or for
 * the CPU. Loading code into a device takes milliseconds, without the GIL. */
static PyObject* operator_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static char* names[] = {"handle", "name", "target", "bundle", "cuda", NULL};
  PyObject *handle, *bundle = Py_None;
  const char *name = NULL, *target = NULL;
  int cuda = -1;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!|zzOi", names, relu_ops_known.bundle_type, &handle,
                                   &name, &target, &bundle, &cuda))
    return refuse_new();
  relu_ops_operator* op;
  relu_ops_status status;
  if (cuda < 0) {
    status = relu_ops_load(((BundleObject*)handle)->bundle, name, target, &op);
  } else {
    Py_BEGIN_ALLOW_THREADS
    status = relu_ops_load_on(((BundleObject*)handle)->bundle, name, target, (DLDevice){kDLCUDA, cuda}, &op);
    Py_END_ALLOW_THREADS
  }
  if (status) return relu_ops_raise(status);
  OperatorObject* self = (OperatorObject*)type->tp_alloc(type, 0);
  if (!self) {
    relu_ops_release(op);
    return NULL;
  }
  self->vectorcall = operator_vectorcall;
  self->op = op;
  self->input_count = relu_ops_input_count(op);
  self->output_count = relu_ops_output_count(op);
  self->name = PyUnicode_FromString(relu_ops_name(op));
  self->target = PyUnicode_FromString(relu_ops_target(op));
  self->wanted = target ? PyUnicode_FromString(target) : Py_NewRef(Py_None);
  self->bundle = Py_NewRef(bundle);
  self->on_device = relu_ops_device(op).device_type != kDLCPU;
  self->device = name_of_device(relu_ops_device(op));
  if (!self->name || !self->target || !self->wanted || !self->device || expect_all(self)) Py_CLEAR(self);
  return (PyObject*)self;
}

static int operator_traverse(PyObject* object, visitproc visit, void* arg) {
  OperatorObject* self = (OperatorObject*)object;
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->bundle);
  Py_VISIT(self->inputs);
  Py_VISIT(self->outputs);
  return 0;
}

static void operator_dealloc(PyObject* object) {
  OperatorObject* self = (OperatorObject*)object;
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  if (self->weak_references) PyObject_ClearWeakRefs(object);
  relu_ops_release(self->op);
  for (int k = 0; self->expected && k < self->input_count + self->output_count; ++k)
    Py_XDECREF(self->expected[k].descr);
  PyMem_Free(self->expected);
  Py_XDECREF(self->name);
  Py_XDECREF(self->target);
  Py_XDECREF(self->wanted);
  Py_XDECREF(self->device);
  Py_XDECREF(self->bundle);
  Py_XDECREF(self->inputs);
  Py_XDECREF(self->outputs);
  type->tp_free(object);
  Py_DECREF(type);
}

/* A spec as (name, dtype, shape), for runtime/operator.py: the shape is None, or a tuple of extents, names
 * and Nones. */
static PyObject* spec_row(const OperatorObject* self, const relu_ops_spec* spec) {
  PyObject* shape = spec->rank < 0 ? Py_NewRef(Py_None) : PyTuple_New(spec->rank);
  for (int32_t d = 0; shape && d < spec->rank; ++d) {
    int64_t dim = spec->dims[d];
    PyObject* extent = dim >= 0    ? PyLong_FromLongLong(dim)
                       : dim == -1 ? Py_NewRef(Py_None)
                                   : PyUnicode_FromString(relu_ops_symbol(self->op, (int32_t)(-2 - dim)));
    if (extent) PyTuple_SET_ITEM(shape, d, extent);
    else Py_CLEAR(shape);
  }
  return shape ? Py_BuildValue("(siiN)", spec->name, spec->dtype.code, spec->dtype.bits, shape) : NULL;
}

/* The tensors that an operator declares, made once by runtime/operator.py. */
static PyObject* declared(OperatorObject* self, int count, PyObject** kept,
                          relu_ops_status (*spec_of)(const relu_ops_operator*, int32_t,
                                                     relu_ops_spec*)) {
  if (*kept) return Py_NewRef(*kept);
  PyObject* rows = PyTuple_New(count);
  for (int k = 0; rows && k < count; ++k) {
    relu_ops_spec spec;
    spec_of(self->op, k, &spec);
    PyObject* row = spec_row(self, &spec);
    if (row) PyTuple_SET_ITEM(rows, k, row);
    else Py_CLEAR(rows);
  }
  PyObject* tensors = rows ? relu_ops_call_careful("declared_tensors", &rows, 1) : NULL;
  Py_XDECREF(rows);
  if (tensors && !*kept) *kept = Py_NewRef(tensors);
  return tensors;
}

static PyObject* operator_inputs(PyObject* object, void* unused) {
  OperatorObject* self = (OperatorObject*)object;
  (void)unused;
  return declared(self, self->input_count, &self->inputs, relu_ops_input);
}

static PyObject* operator_outputs(PyObject* object, void* unused) {
  OperatorObject* self = (OperatorObject*)object;
  (void)unused;
  return declared(self, self->output_count, &self->outputs, relu_ops_output);
}

/* What Python code says of an operator: the function of runtime/operator.py that `name` names. */
static PyObject* operator_described(PyObject* self, void* name) { return relu_ops_call_careful(name, &self, 1); }
static PyObject* operator_repr(PyObject* self) { return relu_ops_call_careful("representation", &self, 1); }
static PyObject* operator_reduce(PyObject* self, PyObject* unused) {
  (void)unused;
  return relu_ops_call_careful("reduced", &self, 1);
}

static PyObject* operator_token(PyObject* self, PyObject* unused) {
  (void)unused;
  return relu_ops_call_careful("token", &self, 1);
}

/* An operator never changes, so that a copy of it is itself. */
static PyObject* operator_copy(PyObject* self, PyObject* unused) {
  (void)unused;
  return Py_NewRef(self);
}

static PyMemberDef operator_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(OperatorObject, vectorcall), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(OperatorObject, weak_references), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(OperatorObject, name), READONLY, "The name of the operator."},
    {"__name__", T_OBJECT_EX, offsetof(OperatorObject, name), READONLY, NULL},
    {"target", T_OBJECT_EX, offsetof(OperatorObject, target), READONLY,
     "The target whose image is loaded."},
    {"wanted_target", T_OBJECT_EX, offsetof(OperatorObject, wanted), READONLY,
     "The target that was asked for, or None."},
    {"device", T_OBJECT_EX, offsetof(OperatorObject, device), READONLY,
     "Where it runs: \"cpu\", or a CUDA device such as \"cuda:0\"."},
    {"bundle", T_OBJECT_EX, offsetof(OperatorObject, bundle), READONLY, "The bundle it came from."},
    {NULL, 0, 0, 0, NULL}};

static PyGetSetDef operator_properties[] = {
    {"inputs", operator_inputs, NULL, "Name, dtype and shape of every input.", NULL},
    {"outputs", operator_outputs, NULL, "Name, dtype and shape of every output.", NULL},
    {"__signature__", operator_described, NULL, NULL, "signature"},
    {NULL, NULL, NULL, NULL, NULL}};

PyDoc_STRVAR(bind_doc,
             "bind($self, /, *inputs, out=None, threads=None, stream=None)\n--\n\n"
             "Convert the arguments once; the returned call computes on them as often as wanted.\n\n"
             "The arrays are kept alive, and read and written where they are: an array that would have\n"
             "to be copied (misaligned, foreign byte order, overlapping `out` in part) is refused.\n\n"
             "Args:\n"
             "    *inputs: As for a call.\n"
             "    out: As for a call; made where it is not given.\n"
             "    threads: As for a call.\n"
             "    stream: As for a call; where none is given, each run goes to the one that is then\n"
             "        current.\n\n"
             "Raises:\n"
             "    ArgumentTypeError: As for a call.\n"
             "    ArgumentError: As for a call, or an array would have to be copied.");

static PyMethodDef operator_methods[] = {
    {"bind", (PyCFunction)(void (*)(void))operator_bind, METH_FASTCALL | METH_KEYWORDS, bind_doc},
    {"compute", operator_compute, METH_VARARGS,
     "Compute on a tuple of NumPy arrays as they lie, inputs then outputs."},
    {"bound", operator_bound, METH_VARARGS, "A bound call on a tuple of NumPy arrays as they lie."},
    {"compute_on", operator_compute_on, METH_VARARGS,
     "Compute on rows of capsule_row, inputs then outputs, on a stream."},
    {"bound_on", operator_bound_on, METH_VARARGS, "A bound call on rows of capsule_row."},
    {"output_shapes", operator_output_shapes, METH_O,
     "The shapes of the outputs, for inputs of some shapes."},
    {"__copy__", operator_copy, METH_NOARGS, NULL},
    {"__deepcopy__", operator_copy, METH_O, NULL},
    {"__reduce__", operator_reduce, METH_NOARGS, NULL},
    {"__dask_tokenize__", operator_token, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

PyDoc_STRVAR(
    operator_doc,
    "A compiled operator. Made by `relu_ops.load` and `relu_ops.compile`.\n\n"
    "Call it with arrays: `y = op(x)`, `op(x, out=y)`, in place `op(x, out=x)`; with several outputs\n"
    "`out` is a sequence and so is the result. NumPy in, NumPy out; torch in, torch out; anything\n"
    "else that speaks DLPack on the CPU is taken, and gives NumPy arrays. What carries more\n"
    "than numbers, which a result would lose (masked elements, nulls, a gradient, a unit), is refused.\n"
    "On a CUDA device: torch, CuPy and JAX arrays that lie there, or any by DLPack; the result is of\n"
    "the kind of the first, and the call is put on the current stream of that kind, or on `stream`.\n\n"
    "A call takes one array per input, of its dtype and of a shape that the model allows; Python\n"
    "numbers and sequences are converted. `out` is where to write: an array (a sequence of them for\n"
    "several outputs) of the output's dtype and shape; it may be an input, and an input that it\n"
    "overlaps otherwise is read as it was before. `threads` is how many threads this call uses at\n"
    "most, 1 to 256; None for the process's default (`relu_ops.set_num_threads`). A device takes\n"
    "`stream` in its place: a handle, or a stream of torch or CuPy. It returns the\n"
    "output, or a tuple of outputs: `out` where it was given. It raises `ArgumentTypeError` where an\n"
    "argument has the wrong type or dtype, and `ArgumentError` where one has the wrong shape or\n"
    "device, or there are too many, or threads is out of range; and `DeviceError` where a device\n"
    "failed.\n\n"
    "Attributes:\n"
    "    name: The name of the operator.\n"
    "    inputs: Name, dtype and shape of every input.\n"
    "    outputs: The same of every output.\n"
    "    target: The target whose image is loaded.\n"
    "    device: Where it runs: \"cpu\", or a CUDA device such as \"cuda:0\".\n"
    "    bundle: The bundle it came from.");

static PyType_Slot operator_slots[] = {{Py_tp_doc, (void*)operator_doc},
                                       {Py_tp_new, operator_new},
                                       {Py_tp_call, PyVectorcall_Call},
                                       {Py_tp_traverse, operator_traverse},
                                       {Py_tp_dealloc, operator_dealloc},
                                       {Py_tp_repr, operator_repr},
                                       {Py_tp_members, operator_members},
                                       {Py_tp_getset, operator_properties},
                                       {Py_tp_methods, operator_methods},
                                       {0, NULL}};

PyType_Spec relu_ops_operator_spec = {"relu_ops.Operator", sizeof(OperatorObject), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
                                        Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
                                    operator_slots};
