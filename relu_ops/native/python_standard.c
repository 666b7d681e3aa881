/* relu and leaky_relu as Python calls them: of an array, the operator for its dtype.
 *
 * A Standard is made of a Python function (standard.py), which finds or compiles the operator for an array that
 * was not met before and tells the Standard to remember it. What is usual is answered here: an exact NumPy
 * array of a dtype that was met. Everything else is the function's.
 */
#include "python.h"

#include <math.h>
#include <structmember.h>

/* The slope that everybody uses has kernels of its own. */
#define USUAL_SLOPE 0.01

enum { DTYPES = NPY_HALF + 1 }; /* NumPy's numbers of dtypes that are its own */

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  PyObject* function;
  bool has_slope;
  PyObject *usual[DTYPES], *sloped[DTYPES]; /* operators, by the number of the array's dtype */
} StandardObject;

/* The arguments of a call; borrowed, NULL where there is none. */
typedef struct {
  PyObject *x, *slope, *out;
} Arguments;

/* Read them by position and by name; false where that is the function's to do. */
static bool read_arguments(Arguments* read, const StandardObject* self, PyObject* const* arguments,
                           Py_ssize_t count, PyObject* names) {
  PyObject** const places[] = {&read->x, self->has_slope ? &read->slope : &read->out, &read->out};
  if (count < 1 || count > 2 + self->has_slope) return false;
  for (Py_ssize_t k = 0; k < count; ++k) *places[k] = arguments[k];
  for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); ++k) {
    PyObject* name = PyTuple_GET_ITEM(names, k);
    PyObject** place = name == relu_ops_known.out                        ? &read->out
                       : name == relu_ops_known.alpha && self->has_slope ? &read->slope
                                                                         : NULL;
    if (!place || *place) return false;
    *place = arguments[count + k];
  }
  if (read->out == Py_None) read->out = NULL;
  return true;
}

/* A slope as float32, which is what an ONNX attribute holds; NULL where the function must look at it. A new
 * reference. */
static PyObject* rounded_slope(PyObject* slope, int number) {
  if (!PyFloat_CheckExact(slope)) return NULL;
  float rounded = (float)PyFloat_AS_DOUBLE(slope);
  /* 65520 and more is infinite in float16. */
  if (!isfinite(rounded) || (number == NPY_HALF && fabsf(rounded) >= 65520.0f)) return NULL;
  return PyFloat_FromDouble((double)rounded);
}

/* Compute with an operator; without the GIL, another may take its place here, so that it is held. */
static PyObject* compute_with(PyObject* op, PyObject* const* inputs, size_t count, PyObject* out) {
  Py_INCREF(op);
  PyObject* result = relu_ops_fast_call(op, inputs, count, out, 0);
  Py_DECREF(op);
  return result;
}

/* Compute with the operator that is known; NULL, without an error, where the function must look. */
static PyObject* compute(StandardObject* self, const Arguments* given) {
  int number = PyArray_CheckExact(given->x) ? PyArray_TYPE((PyArrayObject*)given->x) : DTYPES;
  if (number >= DTYPES) return NULL;
  bool usual = !given->slope || (PyFloat_CheckExact(given->slope) &&
                                 PyFloat_AS_DOUBLE(given->slope) == USUAL_SLOPE);
  PyObject* op = usual ? self->usual[number] : self->sloped[number];
  if (!op) return NULL;
  if (usual) return compute_with(op, &given->x, 1, given->out);
  PyObject* slope = rounded_slope(given->slope, number);
  if (!slope) return NULL;
  PyObject* inputs[] = {given->x, slope};
  PyObject* result = compute_with(op, inputs, 2, given->out);
  Py_DECREF(slope);
  return result;
}

static PyObject* standard_vectorcall(PyObject* object, PyObject* const* arguments, size_t flags,
                                     PyObject* names) {
  StandardObject* self = (StandardObject*)object;
  Arguments given = {NULL, NULL, NULL};
  PyObject* result = NULL;
  if (read_arguments(&given, self, arguments, PyVectorcall_NARGS(flags), names))
    result = compute(self, &given);
  return result ? result : PyObject_Vectorcall(self->function, arguments, flags, names);
}

/* Standard(function, has_slope) */
static PyObject* standard_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  PyObject* function;
  int has_slope;
  if (!PyArg_ParseTuple(arguments, "Op", &function, &has_slope)) return NULL;
  if (keywords && PyDict_GET_SIZE(keywords)) {
    PyErr_SetString(PyExc_TypeError, "Standard takes no keywords");
    return NULL;
  }
  StandardObject* self = (StandardObject*)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->vectorcall = standard_vectorcall;
  self->function = Py_NewRef(function);
  self->has_slope = has_slope;
  return (PyObject*)self;
}

/* remember(number, operator, takes_slope): the operator for arrays of NumPy's dtype of that number. */
static PyObject* standard_remember(PyObject* object, PyObject* arguments) {
  StandardObject* self = (StandardObject*)object;
  PyObject* op;
  int number, takes_slope;
  if (!PyArg_ParseTuple(arguments, "iO!p", &number, relu_ops_known.operator_type, &op, &takes_slope))
    return NULL;
  if (number >= 0 && number < DTYPES) {
    PyObject** place = takes_slope ? &self->sloped[number] : &self->usual[number];
    Py_XSETREF(*place, Py_NewRef(op));
  }
  Py_RETURN_NONE;
}

static int standard_traverse(PyObject* object, visitproc visit, void* arg) {
  StandardObject* self = (StandardObject*)object;
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->function);
  for (int k = 0; k < DTYPES; ++k) {
    Py_VISIT(self->usual[k]);
    Py_VISIT(self->sloped[k]);
  }
  return 0;
}

static int standard_clear(PyObject* object) {
  StandardObject* self = (StandardObject*)object;
  for (int k = 0; k < DTYPES; ++k) {
    Py_CLEAR(self->usual[k]);
    Py_CLEAR(self->sloped[k]);
  }
  return 0;
}

static void standard_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  standard_clear(object);
  Py_XDECREF(((StandardObject*)object)->function);
  type->tp_free(object);
  Py_DECREF(type);
}

/* Whatever else is asked (its name, its module, its signature) is the function's. */
static PyObject* standard_getattr(PyObject* object, PyObject* name) {
  bool is_module = PyUnicode_CompareWithASCIIString(name, "__module__") == 0;
  PyObject* own = is_module ? NULL : PyObject_GenericGetAttr(object, name);
  if (own || (!is_module && !PyErr_ExceptionMatches(PyExc_AttributeError))) return own;
  PyErr_Clear();
  return PyObject_GetAttr(((StandardObject*)object)->function, name);
}

static PyObject* standard_doc(PyObject* object, void* unused) {
  (void)unused;
  return PyObject_GetAttrString(((StandardObject*)object)->function, "__doc__");
}

static PyObject* standard_reduce(PyObject* object, PyObject* unused) {
  (void)unused;
  return PyObject_GetAttrString(((StandardObject*)object)->function, "__qualname__");
}

static PyObject* standard_repr(PyObject* object) {
  return PyObject_Repr(((StandardObject*)object)->function);
}

static PyMemberDef standard_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(StandardObject, vectorcall), READONLY, NULL},
    {"__wrapped__", T_OBJECT_EX, offsetof(StandardObject, function), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};

static PyGetSetDef standard_properties[] = {{"__doc__", standard_doc, NULL, NULL, NULL},
                                            {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef standard_methods[] = {
    {"remember", standard_remember, METH_VARARGS,
     "Remember an operator: (number of NumPy's dtype, operator, whether it takes the slope)."},
    {"__reduce__", standard_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyType_Slot standard_slots[] = {{Py_tp_new, standard_new},
                                       {Py_tp_call, PyVectorcall_Call},
                                       {Py_tp_traverse, standard_traverse},
                                       {Py_tp_clear, standard_clear},
                                       {Py_tp_dealloc, standard_dealloc},
                                       {Py_tp_getattro, standard_getattr},
                                       {Py_tp_repr, standard_repr},
                                       {Py_tp_members, standard_members},
                                       {Py_tp_getset, standard_properties},
                                       {Py_tp_methods, standard_methods},
                                       {0, NULL}};

PyType_Spec relu_ops_standard_spec = {"relu_ops.native.Standard", sizeof(StandardObject), 0,
                                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                          Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
                                      standard_slots};
