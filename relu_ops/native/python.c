/* The Python face: the module `relu_ops.native._python`, a thin layer over the core's public interface.
 *
 * Here: bundles, settings, errors and the module itself. python_operator.c has operators, python_call.c calls
 * them, python_bound.c binds them; python_arrays.c has the arrays of a call, python_tensors.c those
 * that are torch's.
 */
#define RELU_OPS_IMPORTS_NUMPY
#include "python.h"
#include "python_xla.h"

#include <string.h>

struct Known relu_ops_known;

/* ---- errors -------------------------------------------------------------------------------------- */

/* Raise what the core said last, as the class of relu_ops.errors that a status means. NULL. */
PyObject* relu_ops_raise(relu_ops_status status) {
  static const char* const classes[] = {
      [RELU_OPS_ARGUMENT] = "ArgumentError", [RELU_OPS_TYPE] = "ArgumentTypeError",
      [RELU_OPS_BUNDLE] = "BundleError",     [RELU_OPS_TARGET] = "TargetError",
      [RELU_OPS_DEVICE] = "DeviceError",     [RELU_OPS_SYSTEM] = "SystemRefusalError"};
  const char *message = relu_ops_message(), *hint = relu_ops_hint();
  if (status == RELU_OPS_MEMORY) return PyErr_Format(PyExc_MemoryError, "%s", message);
  PyObject* errors = PyImport_ImportModule("relu_ops.errors");
  if (!errors) return NULL;
  PyObject* kind = PyObject_GetAttrString(errors, classes[status]);
  Py_DECREF(errors);
  if (!kind) return NULL;
  PyObject* error = PyObject_CallFunction(kind, "sz", message, hint); /* NULL becomes None */
  if (error) PyErr_SetObject(kind, error);
  Py_XDECREF(error);
  Py_DECREF(kind);
  return NULL;
}

/* Call a function of runtime/operator.py, with a new reference to its result. */
PyObject* relu_ops_call_careful(const char* name, PyObject* const* arguments, size_t count) {
  PyObject* module = PyImport_ImportModule("relu_ops.runtime.operator");
  if (!module) return NULL;
  PyObject* function = PyObject_GetAttrString(module, name);
  Py_DECREF(module);
  if (!function) return NULL;
  PyObject* result = PyObject_Vectorcall(function, arguments, count, NULL);
  Py_DECREF(function);
  return result;
}

/* ---- bundles ------------------------------------------------------------------------------------- */

/* A Python object for a bundle, which it owns from then on; or NULL with an error. */
static PyObject* bundle_object(relu_ops_status status, relu_ops_bundle* bundle) {
  if (status) return relu_ops_raise(status);
  PyTypeObject* type = relu_ops_known.bundle_type;
  BundleObject* self = (BundleObject*)type->tp_alloc(type, 0);
  if (self) self->bundle = bundle;
  else relu_ops_close(bundle);
  return (PyObject*)self;
}

static void bundle_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  relu_ops_close(((BundleObject*)self)->bundle);
  type->tp_free(self);
  Py_DECREF(type);
}

/* read_bundle(path, digest=None): of a directory. */
static PyObject* read_bundle(PyObject* module, PyObject* arguments) {
  PyObject* path;
  const char* digest = NULL;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "O&|z", PyUnicode_FSConverter, &path, &digest)) return NULL;
  relu_ops_bundle* bundle = NULL;
  relu_ops_status status;
  Py_BEGIN_ALLOW_THREADS
  status = relu_ops_open(PyBytes_AS_STRING(path), digest, &bundle);
  Py_END_ALLOW_THREADS
  Py_DECREF(path);
  return bundle_object(status, bundle);
}

/* Lay the files of a dictionary out for the core; false with an error. */
static bool lay_out_files(PyObject* files, const char** names, const void** bytes, size_t* sizes) {
  PyObject *name, *content;
  Py_ssize_t at = 0;
  for (size_t k = 0; PyDict_Next(files, &at, &name, &content); ++k) {
    names[k] = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    if (!names[k] || !PyBytes_Check(content)) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "files must be a dict of str to bytes");
      return false;
    }
    bytes[k] = PyBytes_AS_STRING(content);
    sizes[k] = (size_t)PyBytes_GET_SIZE(content);
  }
  return true;
}

/* open_files(shown, files, digest=None): of a dictionary of bytes. */
static PyObject* open_files(PyObject* module, PyObject* arguments) {
  PyObject* files;
  const char *shown, *digest = NULL;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "sO!|z", &shown, &PyDict_Type, &files, &digest)) return NULL;
  size_t count = (size_t)PyDict_GET_SIZE(files);
  const char** names = PyMem_Calloc(3 * count + 1, sizeof(void*));
  if (!names) return PyErr_NoMemory();
  const void** bytes = (const void**)(names + count);
  size_t* sizes = (size_t*)(bytes + count);
  PyObject* result = NULL;
  if (lay_out_files(files, names, bytes, sizes)) {
    relu_ops_bundle* bundle = NULL;
    relu_ops_status status = relu_ops_open_files(shown, count, names, bytes, sizes, digest, &bundle);
    result = bundle_object(status, bundle);
  }
  PyMem_Free(names);
  return result;
}

/* open_image(shown, image, digest=None): of the bytes of one image. */
static PyObject* open_image(PyObject* module, PyObject* arguments) {
  Py_buffer image;
  const char *shown, *digest = NULL;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "sy*|z", &shown, &image, &digest)) return NULL;
  relu_ops_bundle* bundle = NULL;
  relu_ops_status status = relu_ops_open_image(shown, image.buf, (size_t)image.len, digest, &bundle);
  PyBuffer_Release(&image);
  return bundle_object(status, bundle);
}

static PyObject* bundle_digest(PyObject* self, void* unused) {
  (void)unused;
  return PyUnicode_FromString(relu_ops_digest(((BundleObject*)self)->bundle));
}

static PyObject* bundle_files(PyObject* self, void* unused) {
  const relu_ops_bundle* bundle = ((BundleObject*)self)->bundle;
  PyObject* files = PyDict_New();
  (void)unused;
  for (size_t k = 0; files && k < relu_ops_file_count(bundle); ++k) {
    const char* name;
    const void* bytes;
    size_t size;
    relu_ops_file(bundle, k, &name, &bytes, &size);
    PyObject* content = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size);
    if (!content || PyDict_SetItemString(files, name, content)) Py_CLEAR(files);
    Py_XDECREF(content);
  }
  return files;
}

/* A tuple of the texts that a function of the core gives by number. */
static PyObject* texts(const relu_ops_bundle* bundle, size_t count,
                       const char* (*text_of)(const relu_ops_bundle*, size_t)) {
  PyObject* tuple = PyTuple_New((Py_ssize_t)count);
  for (size_t k = 0; tuple && k < count; ++k) {
    PyObject* text = PyUnicode_FromString(text_of(bundle, k));
    if (text) PyTuple_SET_ITEM(tuple, (Py_ssize_t)k, text);
    else Py_CLEAR(tuple);
  }
  return tuple;
}

static PyObject* bundle_targets(PyObject* self, void* unused) {
  const relu_ops_bundle* bundle = ((BundleObject*)self)->bundle;
  (void)unused;
  return texts(bundle, relu_ops_target_count(bundle), relu_ops_target_name);
}

static PyObject* bundle_operators(PyObject* self, void* unused) {
  const relu_ops_bundle* bundle = ((BundleObject*)self)->bundle;
  (void)unused;
  return texts(bundle, relu_ops_operator_count(bundle), relu_ops_operator_name);
}

/* The features of this machine's processor, as a frozenset. */
static PyObject* processor_features(PyObject* module, PyObject* unused) {
  PyObject* set = PyFrozenSet_New(NULL);
  const char* feature;
  (void)module;
  (void)unused;
  for (size_t k = 0; set && (feature = relu_ops_processor_feature(k)); ++k) {
    PyObject* text = PyUnicode_FromString(feature);
    if (!text || PySet_Add(set, text)) Py_CLEAR(set);
    Py_XDECREF(text);
  }
  return set;
}

/* choose(architecture=None, features=None): the best target for a machine; this one where None. */
static PyObject* bundle_choose(PyObject* self, PyObject* arguments) {
  const char *architecture = NULL, *target = NULL;
  PyObject* given = Py_None;
  if (!PyArg_ParseTuple(arguments, "|zO", &architecture, &given)) return NULL;
  PyObject* features = given == Py_None ? processor_features(NULL, NULL)
                                        : PySequence_Fast(given, "features must be texts");
  PyObject* list = features ? PySequence_List(features) : NULL;
  Py_XDECREF(features);
  size_t count = list ? (size_t)PyList_GET_SIZE(list) : 0;
  const char** names = list ? PyMem_Calloc(count + 1, sizeof(char*)) : NULL;
  bool failed = !names;
  for (size_t k = 0; !failed && k < count; ++k)
    failed = !(names[k] = PyUnicode_AsUTF8(PyList_GET_ITEM(list, (Py_ssize_t)k)));
  PyObject* result = NULL;
  if (!failed) {
    relu_ops_status status =
        relu_ops_choose(((BundleObject*)self)->bundle, architecture, names, count, &target);
    result = status ? relu_ops_raise(status) : PyUnicode_FromString(target);
  }
  PyMem_Free(names);
  Py_XDECREF(list);
  return result;
}

static PyGetSetDef bundle_properties[] = {
    {"digest", bundle_digest, NULL, "The sha256 of SHA256SUMS.", NULL},
    {"files", bundle_files, NULL, "A new dictionary of the files' bytes.", NULL},
    {"targets", bundle_targets, NULL, "The targets that it has an image for.", NULL},
    {"operators", bundle_operators, NULL, "The names of its operators.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef bundle_methods[] = {
    {"choose", bundle_choose, METH_VARARGS,
     "The best target for a machine: its architecture and features; this one's where None."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot bundle_slots[] = {
    {Py_tp_doc, "A bundle whose files were read and checked against their digests."},
    {Py_tp_dealloc, bundle_dealloc},
    {Py_tp_getset, bundle_properties},
    {Py_tp_methods, bundle_methods},
    {0, NULL}};

static PyType_Spec bundle_spec = {
    "relu_ops.native.Bundle", sizeof(BundleObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, bundle_slots};

/* ---- settings ------------------------------------------------------------------------------------ */

static PyObject* settings_tuple(relu_ops_status status, const relu_ops_settings* settings) {
  if (status) return relu_ops_raise(status);
  return Py_BuildValue("(iLLL)", settings->threads, (long long)settings->parallel_bytes,
                       (long long)settings->stream_bytes, (long long)settings->wake_bytes);
}

static PyObject* default_settings(PyObject* module, PyObject* unused) {
  relu_ops_settings settings;
  (void)module;
  (void)unused;
  return settings_tuple(relu_ops_default_settings(&settings), &settings);
}

static PyObject* get_settings(PyObject* module, PyObject* unused) {
  relu_ops_settings settings;
  (void)module;
  (void)unused;
  return settings_tuple(relu_ops_get_settings(&settings), &settings);
}

/* set_settings(threads, parallel_bytes, stream_bytes, wake_bytes) */
static PyObject* set_settings(PyObject* module, PyObject* arguments) {
  long long parallel, stream, wake;
  relu_ops_settings settings;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "iLLL", &settings.threads, &parallel, &stream, &wake)) return NULL;
  settings.parallel_bytes = parallel;
  settings.stream_bytes = stream;
  settings.wake_bytes = wake;
  relu_ops_status status = relu_ops_set_settings(&settings);
  if (status) return relu_ops_raise(status);
  Py_RETURN_NONE;
}

/* ---- the module ---------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"read_bundle", read_bundle, METH_VARARGS, "Read and check a bundle: (path, digest=None)."},
    {"open_files", open_files, METH_VARARGS,
     "Check a bundle that is in memory: (shown, files, digest=None)."},
    {"open_image", open_image, METH_VARARGS, "Open one image: (shown, image, digest=None)."},
    {"capsule_row", relu_ops_capsule_row, METH_O,
     "What a capsule of DLPack holds: (address, code, bits, lanes, type of device, its number, shape, "
     "strides or None, whether it is read-only)."},
    {"processor_features", processor_features, METH_NOARGS,
     "The features of this machine's processor, as Linux names them."},
    {"default_settings", default_settings, METH_NOARGS,
     "(threads, parallel_bytes, stream_bytes, wake_bytes), as they are unless set."},
    {"get_settings", get_settings, METH_NOARGS, "Those in force."},
    {"set_settings", set_settings, METH_VARARGS, "Set them."},
    {"xla_register", relu_ops_xla_register, METH_VARARGS,
     "Let XLA's handler find an operator: (number, operator)."},
    {"xla_handler", relu_ops_xla_handler, METH_VARARGS, "XLA's handler, of an interface: (major, minor)."},
    {"packed", relu_ops_packed, METH_VARARGS, "An operator for tvm-ffi: see interop/tvm_ffi.py."},
    {NULL, NULL, 0, NULL}};

/* The bounds of bounds.h by name: what an image may hold. */
static PyObject* limits(void) {
  static const struct {
    const char* name;
    int value;
  } rows[] = {
#define ROW(name, value, what) {#name, value},
      RELU_OPS_LIMITS(ROW)
#undef ROW
  };
  PyObject* bounds = PyDict_New();
  for (size_t k = 0; bounds && k < sizeof(rows) / sizeof(rows[0]); ++k) {
    PyObject* value = PyLong_FromLong(rows[k].value);
    if (!value || PyDict_SetItemString(bounds, rows[k].name, value)) Py_CLEAR(bounds);
    Py_XDECREF(value);
  }
  return bounds;
}

static int add_type(PyObject* module, PyType_Spec* spec, PyTypeObject** type) {
  *type = (PyTypeObject*)PyType_FromModuleAndSpec(module, spec, NULL);
  return *type ? PyModule_AddType(module, *type) : -1;
}

static int start(PyObject* module) {
  import_array1(-1);
  relu_ops_status status = relu_ops_require(RELU_OPS_API);
  if (status) {
    PyErr_SetString(PyExc_ImportError, relu_ops_message());
    return -1;
  }
  relu_ops_known.out = PyUnicode_InternFromString("out");
  relu_ops_known.threads = PyUnicode_InternFromString("threads");
  relu_ops_known.stream = PyUnicode_InternFromString("stream");
  relu_ops_known.alpha = PyUnicode_InternFromString("alpha");
  if (!relu_ops_known.out || !relu_ops_known.threads || !relu_ops_known.stream || !relu_ops_known.alpha)
    return -1;
  if (add_type(module, &bundle_spec, &relu_ops_known.bundle_type) ||
      add_type(module, &relu_ops_operator_spec, &relu_ops_known.operator_type) ||
      add_type(module, &relu_ops_bound_spec, &relu_ops_known.bound_type) ||
      add_type(module, &relu_ops_standard_spec, &relu_ops_known.standard_type) ||
      add_type(module, &relu_ops_tensor_function_spec, &relu_ops_known.tensor_function_type))
    return -1;
  if (relu_ops_watch_forks()) {
    PyErr_NoMemory();
    return -1;
  }
  PyObject* bounds = limits();
  if (!bounds || PyModule_AddObjectRef(module, "LIMITS", bounds)) return -1;
  Py_DECREF(bounds);
  return PyModule_AddStringConstant(module, "VERSION", relu_ops_version());
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, start},
#ifdef Py_mod_multiple_interpreters
                                   {Py_mod_multiple_interpreters,
                                    Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* as NumPy */
#endif
#ifdef Py_mod_gil
                                   {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                                   {0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "relu_ops.native._python",
                                    .m_doc = "The Python face of the native core.",
                                    .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__python(void) { return PyModuleDef_Init(&module); }
