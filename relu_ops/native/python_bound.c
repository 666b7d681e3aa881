/* Bound calls: an operator with its arrays, converted once. */
#include "python.h"

#include <structmember.h>

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
PyObject* relu_ops_method_bound(PyObject* object, PyObject* arguments) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject *arrays, *inputs, *out;
  relu_ops_options options = {0};
  if (!PyArg_ParseTuple(arguments, "OiOO", &arrays, &options.threads, &inputs, &out)) return NULL;
  DLTensor* tensors = relu_ops_describe(self, arrays);
  if (!tensors) return NULL;
  BoundObject* call = new_bound(self, tensors, &options, arrays, inputs, out);
  if (call) call->few = relu_ops_are_few(self, tensors);
  PyMem_Free(tensors);
  return (PyObject*)call;
}

/* bound_on(rows, stream, stream_of, of_torch, inputs, out, held): a bound call on arrays of a device. stream:
 * a handle, or None where stream_of gives one at each run; of_torch: it is torch's current one. */
PyObject* relu_ops_method_bound_on(PyObject* object, PyObject* arguments) {
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
