/* An operator as a function of tvm-ffi: called by TVM, JAX and C++ without Python.
 *
 * Only tvm-ffi's header is used here. Where its library is, Python knows (interop/tvm_ffi.py): it hands us
 * the address of the one function that is called, and makes a function object of what it gets. */
#include "python.h"

#include <tvm/ffi/c_api.h>

typedef void (*SetRaised)(const char* kind, const char* message);

/* What a function calls, and how it says what is wrong. */
typedef struct {
  relu_ops_operator* op;
  SetRaised set_raised;
} Packed;

static int refuse(const Packed* self, const char* kind) {
  char text[4096];
  const char* hint = relu_ops_hint();
  snprintf(text, sizeof(text), "%s%s%s", relu_ops_message(), hint ? "\nhint: " : "", hint ? hint : "");
  self->set_raised(kind, text);
  return -1;
}

static const char* kind_of(relu_ops_status status) {
  if (status == RELU_OPS_TYPE) return "TypeError";
  if (status == RELU_OPS_ARGUMENT) return "ValueError";
  return status == RELU_OPS_MEMORY ? "MemoryError" : "RuntimeError";
}

/* The tensor of an argument; NULL for something else. */
static const DLTensor* tensor_of(const TVMFFIAny* argument) {
  if (argument->type_index == kTVMFFIDLTensorPtr) return argument->v_ptr;
  if (argument->type_index != kTVMFFITensor) return NULL;
  return (const DLTensor*)(const void*)(argument->v_obj + 1);
}

static int refuse_arguments(const Packed* self, int32_t count) {
  char text[512];
  snprintf(text, sizeof(text), "%s takes %d tensors, %d inputs and %d outputs (it was given %d arguments)",
           relu_ops_name(self->op), relu_ops_input_count(self->op) + relu_ops_output_count(self->op),
           relu_ops_input_count(self->op), relu_ops_output_count(self->op), count);
  self->set_raised("TypeError", text);
  return -1;
}

static int refuse_argument(const Packed* self, int32_t number) {
  char text[512];
  snprintf(text, sizeof(text), "%s: argument %d must be a tensor", relu_ops_name(self->op), number);
  self->set_raised("TypeError", text);
  return -1;
}

/* Inputs, then outputs: all are tensors that the caller has. */
static int call(void* handle, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  const Packed* self = handle;
  int32_t inputs = relu_ops_input_count(self->op), wanted = inputs + relu_ops_output_count(self->op);
  if (count != wanted) return refuse_arguments(self, count);
  DLTensor tensors[wanted];
  for (int32_t k = 0; k < wanted; ++k) {
    const DLTensor* tensor = tensor_of(&arguments[k]);
    if (!tensor) return refuse_argument(self, k);
    tensors[k] = *tensor;
  }
  relu_ops_status status = relu_ops_call(self->op, tensors, tensors + inputs, NULL);
  if (status) return refuse(self, kind_of(status));
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

static void drop(void* handle) {
  Packed* self = handle;
  relu_ops_release(self->op);
  free(self);
}

/* (bundle, name, target, address of TVMFFIErrorSetRaisedFromCStr) -> addresses: of what a function is called
 * with, of its call and of what frees it. The caller makes a function of them, which then owns the first. */
PyObject* relu_ops_packed(PyObject* module, PyObject* arguments) {
  (void)module;
  PyObject *bundle, *address;
  const char *name, *target;
  if (!PyArg_ParseTuple(arguments, "O!ssO!", relu_ops_known.bundle_type, &bundle, &name, &target, &PyLong_Type,
                        &address))
    return NULL;
  void* set_raised = PyLong_AsVoidPtr(address);
  if (!set_raised) return NULL;
  Packed* self = malloc(sizeof(*self));
  if (!self) return PyErr_NoMemory();
  relu_ops_status status = relu_ops_load(((BundleObject*)bundle)->bundle, name, target, &self->op);
  if (status) {
    free(self);
    return relu_ops_raise(status);
  }
  self->set_raised = (SetRaised)(uintptr_t)set_raised;
  return Py_BuildValue("KKK", (unsigned long long)(uintptr_t)self, (unsigned long long)(uintptr_t)call,
                       (unsigned long long)(uintptr_t)drop);
}
