/* Operators as Python objects: what they are, say of themselves, and can do. python_call.c calls them,
 * python_bound.c binds them. */
#include "python.h"

#include <structmember.h>

/* ---- making and unmaking ------------------------------------------------------------------------- */

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

/* Whether an operator computes one output of vectors, on the CPU: asked with empty ones. */
static bool takes_vectors(const OperatorObject* self) {
  double number = 0;
  void* data[MOST_FAST];
  for (int k = 0; k < MOST_FAST; ++k) data[k] = &number;
  return !self->on_device && self->output_count == 1 && self->input_count < MOST_FAST &&
         relu_ops_call_vectors(self->op, data, 0, NULL) == RELU_OPS_OK;
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
  self->vectorcall = relu_ops_operator_vectorcall;
  self->op = op;
  self->input_count = relu_ops_input_count(op);
  self->output_count = relu_ops_output_count(op);
  self->name = PyUnicode_FromString(relu_ops_name(op));
  self->target = PyUnicode_FromString(relu_ops_target(op));
  self->wanted = target ? PyUnicode_FromString(target) : Py_NewRef(Py_None);
  self->bundle = Py_NewRef(bundle);
  self->on_device = relu_ops_device(op).device_type != kDLCPU;
  self->takes_vectors = takes_vectors(self);
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

/* ---- what it declares ---------------------------------------------------------------------------- */

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

/* ---- shapes of outputs --------------------------------------------------------------------------- */

/* Read a shape of an input; false with an error. */
static bool read_shape(PyObject* shape, DLTensor* tensor) {
  if (!PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > MAX_RANK) {
    PyErr_Format(PyExc_ValueError, "a shape must be a tuple of at most %d extents", (int)MAX_RANK);
    return false;
  }
  tensor->ndim = (int32_t)PyTuple_GET_SIZE(shape);
  for (int32_t d = 0; d < tensor->ndim; ++d)
    tensor->shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d));
  return !PyErr_Occurred();
}

/* Describe inputs of some shapes, a sequence as PySequence_Fast gives it; false with an error. */
static bool read_shapes(const OperatorObject* self, PyObject* shapes, DLTensor* tensors,
                        int64_t (*extents)[MAX_RANK]) {
  if (PySequence_Fast_GET_SIZE(shapes) != self->input_count) {
    PyErr_Format(PyExc_ValueError, "shapes must be of %d inputs", self->input_count);
    return false;
  }
  for (int k = 0; k < self->input_count; ++k) {
    tensors[k].dtype = self->expected[k].dtype;
    tensors[k].shape = extents[k];
    if (!read_shape(PySequence_Fast_GET_ITEM(shapes, k), &tensors[k])) return false;
  }
  return true;
}

static PyObject* shape_tuple(int32_t rank, const int64_t* extents) {
  PyObject* shape = PyTuple_New(rank);
  for (int32_t d = 0; shape && d < rank; ++d) PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(extents[d]));
  return shape;
}

/* A list of shapes; NULL with an error. */
static PyObject* shape_list(int count, const int32_t* ranks, int64_t (*extents)[MAX_RANK]) {
  PyObject* shapes = PyList_New(count);
  for (int k = 0; shapes && k < count; ++k) {
    PyObject* shape = shape_tuple(ranks[k], extents[k]);
    if (shape) PyList_SET_ITEM(shapes, k, shape);
    else Py_CLEAR(shapes);
  }
  return shapes;
}

/* output_shapes(shapes): of the outputs, for inputs of some shapes. */
static PyObject* operator_output_shapes(PyObject* object, PyObject* given) {
  OperatorObject* self = (OperatorObject*)object;
  PyObject* shapes = PySequence_Fast(given, "shapes must be a sequence of shapes");
  if (!shapes) return NULL;
  size_t inputs = (size_t)self->input_count, outputs = (size_t)self->output_count;
  size_t room = inputs * (sizeof(DLTensor) + sizeof(int64_t[MAX_RANK])) +
                outputs * (sizeof(int32_t) + sizeof(int64_t[MAX_RANK]));
  DLTensor* tensors = PyMem_Calloc(1, room);
  int64_t(*extents)[MAX_RANK] = (int64_t(*)[MAX_RANK])(tensors + inputs);
  int32_t* ranks = (int32_t*)(extents + inputs + outputs);
  PyObject* result = NULL;
  if (!tensors) PyErr_NoMemory();
  else if (read_shapes(self, shapes, tensors, extents)) {
    relu_ops_status status = relu_ops_output_shapes(self->op, tensors, ranks, extents + inputs);
    result = status ? relu_ops_raise(status) : shape_list(self->output_count, ranks, extents + inputs);
  }
  PyMem_Free(tensors);
  Py_DECREF(shapes);
  return result;
}

/* ---- what Python code says of it ------------------------------------------------------------------ */

/* The function of runtime/operator.py that `name` names. */
static PyObject* operator_described(PyObject* self, void* name) {
  return relu_ops_call_careful(name, &self, 1);
}

static PyObject* operator_repr(PyObject* self) {
  return relu_ops_call_careful("representation", &self, 1);
}

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

/* ---- the type ------------------------------------------------------------------------------------ */

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
    {"bind", (PyCFunction)(void (*)(void))relu_ops_method_bind, METH_FASTCALL | METH_KEYWORDS, bind_doc},
    {"compute", relu_ops_method_compute, METH_VARARGS,
     "Compute on a tuple of NumPy arrays as they lie, inputs then outputs."},
    {"bound", relu_ops_method_bound, METH_VARARGS, "A bound call on a tuple of NumPy arrays as they lie."},
    {"compute_on", relu_ops_method_compute_on, METH_VARARGS,
     "Compute on rows of capsule_row, inputs then outputs, on a stream."},
    {"bound_on", relu_ops_method_bound_on, METH_VARARGS, "A bound call on rows of capsule_row."},
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
