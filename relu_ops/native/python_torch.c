/* Functions of tensors for interop/torch: computed at once where a call is nothing but its numbers.
 *
 * In company a call meets cold caches, and each question to torch costs. Asked from Python they took 15 to
 * 40 us after a matrix product of 256 x 256, as long as the operator itself on 64k to 256k elements (Intel
 * Xeon, 2026-11-28).
 */
#include "python.h"

#include <math.h>
#include <structmember.h>

enum { MOST_OPERATORS = 8 };

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  PyObject *listeners, *others, *levels, *level; /* see tensor_function_doc; an interned name */
  PyObject* operators[MOST_OPERATORS];
  int count;
} FunctionObject;

/* ---- who listens --------------------------------------------------------------------------------- */

/* What torch's own functions of Python ask, where they are found. */
static struct {
  int64_t (*dispatch_modes)(void);
  int64_t (*function_modes)(void);
  bool (*profiles)(void);
  void* const* (*traces)(void); /* a shared pointer, which begins with the pointer */
  bool known;
} asked;

static void meet(void) {
  uintptr_t (*find)(const char*) = relu_ops_torch_function;
  asked.dispatch_modes = (int64_t(*)(void))find("_ZN3c104impl20TorchDispatchModeTLS9stack_lenEv");
  asked.function_modes = (int64_t(*)(void))find("_ZN2at4impl22PythonTorchFunctionTLS9stack_lenEv");
  asked.profiles = (bool (*)(void))find("_ZN5torch8profiler4impl15profilerEnabledEv");
  asked.traces = (void* const* (*)(void))find("_ZN5torch3jit6tracer15getTracingStateEv");
  asked.known = asked.dispatch_modes && asked.function_modes && asked.profiles && asked.traces;
}

/* Whether a function says no; false with an error, or where it says anything else. */
static bool says_no(PyObject* function, PyObject* argument) {
  PyObject* answer = PyObject_Vectorcall(function, &argument, argument != NULL, NULL);
  bool no = answer && PyObject_IsTrue(answer) == 0;
  Py_XDECREF(answer);
  return no;
}

static bool all_say_no(PyObject* rows) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(rows); ++k) {
    PyObject* row = PyTuple_GET_ITEM(rows, k);
    if (!says_no(PyTuple_GET_ITEM(row, 0), PyTuple_GET_SIZE(row) > 1 ? PyTuple_GET_ITEM(row, 1) : NULL))
      return false;
  }
  return true;
}

/* Whether no level of forward derivatives is open. */
static bool is_level(const FunctionObject* self) {
  PyObject* level = PyDict_GetItemWithError(self->levels, self->level); /* borrowed */
  return level && PyLong_Check(level) && PyLong_AsLong(level) < 0;
}

static bool nothing_listens(const FunctionObject* self) {
  bool usual = asked.known ? !asked.dispatch_modes() && !asked.function_modes() && !asked.profiles() &&
                                 !*asked.traces()
                           : all_say_no(self->listeners);
  return usual && all_say_no(self->others) && is_level(self);
}

/* ---- calls --------------------------------------------------------------------------------------- */

/* The operator for arguments whose first is of a dtype; borrowed; NULL where it is not known yet. */
static PyObject* operator_for(const FunctionObject* self, DLDataType dtype) {
  for (int k = 0; k < self->count; ++k) {
    const Expected* expected = ((OperatorObject*)self->operators[k])->expected;
    if (expected->dtype.code == dtype.code && expected->dtype.bits == dtype.bits) return self->operators[k];
  }
  return NULL;
}

/* What is to be done about a call. */
typedef enum { COMPUTE, RECORD, ASK } Way;

/* Adopt the tensors of a call. */
static Way way_of(const FunctionObject* self, PyObject* const* arguments, size_t count, Arrays* arrays) {
  Way way = COMPUTE;
  for (size_t k = 0; k < count; ++k) {
    if (k > 0 && PyFloat_CheckExact(arguments[k])) continue;
    TensorKind kind = relu_ops_adopt_plain_tensor(arrays, (int)k, arguments[k]);
    if (kind == NO_PLAIN_TENSOR) return ASK;
    if (kind == WANTS_GRADIENT) way = RECORD;
  }
  return nothing_listens(self) ? way : ASK;
}

/* Adopt a slope as float32, which is what operators take; false where a dtype may not have it. */
static bool adopt_slope(Arrays* arrays, int k, PyObject* slope) {
  float narrow = (float)PyFloat_AS_DOUBLE(slope);
  return fabsf(narrow) < 65504.0f && relu_ops_adopt_double(arrays, k, (double)narrow);
}

/* Compute on tensors that were adopted, and the numbers among the arguments. */
static PyObject* computed(PyObject* operator, PyObject* const* arguments, size_t count, Arrays* arrays) {
  PyObject* held[MOST_FAST]; /* who calls may have a mere loan of them */
  const OperatorObject* wanted = arrays->self = (OperatorObject*)operator;
  if (wanted->on_device || count != (size_t)wanted->input_count ||
      count + (size_t)wanted->output_count > MOST_FAST)
    return NULL;
  for (size_t k = 0; k < count; ++k)
    if (PyFloat_CheckExact(arguments[k]) && !adopt_slope(arrays, (int)k, arguments[k])) return NULL;
  for (size_t k = 0; k < count; ++k) held[k] = Py_NewRef(arguments[k]);
  PyObject* result = relu_ops_call_on_tensors(arrays);
  for (size_t k = 0; k < count; ++k) Py_DECREF(held[k]);
  return result;
}

static PyObject* function_vectorcall(PyObject* object, PyObject* const* arguments, size_t flags,
                                     PyObject* names) {
  FunctionObject* self = (FunctionObject*)object;
  size_t count = (size_t)PyVectorcall_NARGS(flags);
  Arrays arrays;
  if (names || count < 1 || count > MOST_FAST) Py_RETURN_NONE;
  Way way = way_of(self, arguments, count, &arrays);
  PyErr_Clear(); /* whoever is asked with care says it */
  if (way == RECORD) return Py_NewRef(Py_NotImplemented);
  PyObject* operator = way == COMPUTE ? operator_for(self, arrays.tensors[0].dtype) : NULL;
  PyObject* result = operator ? computed(operator, arguments, count, &arrays) : NULL;
  PyErr_Clear();
  return result ? result : Py_NewRef(Py_None);
}

/* ---- the type ------------------------------------------------------------------------------------ */

static bool are_rows(PyObject* rows) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(rows); ++k)
    if (!PyTuple_Check(PyTuple_GET_ITEM(rows, k)) || PyTuple_GET_SIZE(PyTuple_GET_ITEM(rows, k)) < 1)
      return false;
  return true;
}

static PyObject* function_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static char* names[] = {"listeners", "others", "levels", NULL};
  PyObject *listeners, *others, *levels;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!O!", names, &PyTuple_Type, &listeners,
                                   &PyTuple_Type, &others, &PyDict_Type, &levels))
    return NULL;
  if (!are_rows(listeners) || !are_rows(others)) {
    PyErr_SetString(PyExc_TypeError, "listeners must be tuples of a function, and perhaps its argument");
    return NULL;
  }
  if (!asked.known) meet();
  FunctionObject* self = (FunctionObject*)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->vectorcall = function_vectorcall;
  self->listeners = Py_NewRef(listeners);
  self->others = Py_NewRef(others);
  self->levels = Py_NewRef(levels);
  self->level = PyUnicode_InternFromString("_current_level");
  if (!self->level) Py_CLEAR(self);
  return (PyObject*)self;
}

/* remember(operator): the one for the dtype of its first input. */
static PyObject* function_remember(PyObject* object, PyObject* operator) {
  FunctionObject* self = (FunctionObject*)object;
  if (!PyObject_TypeCheck(operator, relu_ops_known.operator_type) ||
      ((OperatorObject*)operator)->input_count < 1) {
    PyErr_SetString(PyExc_TypeError, "operator must be an Operator that has inputs");
    return NULL;
  }
  if (!operator_for(self, ((OperatorObject*)operator)->expected->dtype) && self->count < MOST_OPERATORS)
    self->operators[self->count++] = Py_NewRef(operator);
  Py_RETURN_NONE;
}

static int function_traverse(PyObject* object, visitproc visit, void* arg) {
  FunctionObject* self = (FunctionObject*)object;
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->listeners);
  Py_VISIT(self->others);
  Py_VISIT(self->levels);
  for (int k = 0; k < self->count; ++k) Py_VISIT(self->operators[k]);
  return 0;
}

static void function_dealloc(PyObject* object) {
  FunctionObject* self = (FunctionObject*)object;
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  Py_XDECREF(self->listeners);
  Py_XDECREF(self->others);
  Py_XDECREF(self->levels);
  Py_XDECREF(self->level);
  for (int k = 0; k < self->count; ++k) Py_DECREF(self->operators[k]);
  type->tp_free(object);
  Py_DECREF(type);
}

static PyMemberDef function_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FunctionObject, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};

static PyMethodDef function_methods[] = {
    {"remember", function_remember, METH_O, "Know an operator, by the dtype of its first input."},
    {NULL, NULL, 0, NULL}};

PyDoc_STRVAR(tensor_function_doc,
             "TensorFunction(listeners, others, levels)\n--\n\n"
             "Operators, by dtype, as one function of torch's tensors (and floats behind the first).\n\n"
             "Calling it gives the result; NotImplemented where a gradient is to be recorded; None where\n"
             "somebody listens, or the arguments are anything but plain tensors of the CPU, without gaps.\n\n"
             "Args:\n"
             "    listeners: Whether there is a dispatch mode, a function mode, a profiler or a trace:\n"
             "        each a (function,) or a (function, argument). Asked where torch's own are not found.\n"
             "    others: Likewise, who else may listen.\n"
             "    levels: A dictionary whose _current_level is below 0 where nothing is derived forward.");

static PyType_Slot function_slots[] = {{Py_tp_doc, (void*)tensor_function_doc},
                                       {Py_tp_new, function_new},
                                       {Py_tp_call, PyVectorcall_Call},
                                       {Py_tp_traverse, function_traverse},
                                       {Py_tp_dealloc, function_dealloc},
                                       {Py_tp_members, function_members},
                                       {Py_tp_methods, function_methods},
                                       {0, NULL}};

PyType_Spec relu_ops_tensor_function_spec = {"relu_ops.native.TensorFunction", sizeof(FunctionObject), 0,
                                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC |
                                                 Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
                                             function_slots};
