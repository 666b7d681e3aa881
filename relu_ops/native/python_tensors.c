/* torch's tensors as the core takes them, by DLPack's C exchange interface.
 *
 * torch is never imported here: its types and functions are looked up once somebody passes a tensor. Only
 * exact tensors and parameters are adopted, that are what their memory holds; everything else goes the
 * careful way.
 */
#include "python.h"

#include <stdlib.h>
#include <string.h>

static struct {
  PyTypeObject *tensor, *parameter; /* torch's, once they were met; or NULL */
  const DLPackExchangeAPI* exchange;
  PyObject* is_grad_enabled; /* torch.is_grad_enabled */
} torch;

/* ---- what a tensor is asked ----------------------------------------------------------------------- */

/* DLPack hands out, without a word, the memory of a tensor that requires a gradient, and that of a negated
 * view as it lies: both are asked for. */
typedef struct {
  bool requires_grad, is_negative;
} Nature;

/* What Python would call, if torch.Tensor's attributes are made of what is expected. */
static PyGetSetDef *requires_grad, *address;
static PyMethodDef* is_neg;

/* What that comes to in torch's library: functions of a TensorImpl, and of a Tensor, which points to one. The
 * object of a tensor has the same pointer at `place`, which is found by looking for it; 0: these cannot be
 * used. op(tensor, out=tensor) of 16 float32 takes 0.30 us with them and 0.55 with the above (Intel Xeon,
 * 2026-11-28): is_neg lets go of the GIL. */
static struct {
  bool (*requires_grad)(const void* tensor);
  bool (*is_neg)(void* const* tensor);
  size_t place;
} library;

static void* tensor_in(PyObject* x, size_t place) {
  void* tensor;
  memcpy(&tensor, (const char*)x + place, sizeof(tensor));
  return tensor;
}

static bool ask_python(PyObject* x, Nature* nature) {
  PyObject* grad = requires_grad->get(x, requires_grad->closure);
  PyObject* negative = grad ? is_neg->ml_meth(x, NULL) : NULL;
  *nature = (Nature){grad == Py_True, negative == Py_True};
  Py_XDECREF(grad);
  Py_XDECREF(negative);
  return negative != NULL;
}

/* What a tensor is; false with an error. */
static inline bool ask(PyObject* x, Nature* nature) {
  void* tensor = library.place ? tensor_in(x, library.place) : NULL;
  if (!tensor) return ask_python(x, nature);
  *nature = (Nature){library.requires_grad(tensor), library.is_neg(&tensor)};
  return true;
}

/* Where the object of a tensor points to it; 0: nowhere. */
static size_t find_place(PyObject* x) {
  PyObject* number = address->get(x, address->closure);
  void* tensor = number ? PyLong_AsVoidPtr(number) : NULL;
  Py_XDECREF(number);
  size_t size = (size_t)Py_TYPE(x)->tp_basicsize, place = sizeof(PyObject);
  while (place + sizeof(void*) <= size && tensor_in(x, place) != tensor) place += sizeof(void*);
  return tensor && place + sizeof(void*) <= size ? place : 0;
}

/* Find the place, which must be one for some tensors, of whom the library must say what Python says. */
static void find_places(PyObject* tensors) {
  size_t place = 0;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(tensors); ++k) {
    PyObject* x = PyTuple_GET_ITEM(tensors, k);
    size_t here = Py_IS_TYPE(x, torch.tensor) ? find_place(x) : 0;
    if (!here || (k && here != place)) return;
    place = here;
    Nature is;
    void* tensor = tensor_in(x, place);
    if (!ask_python(x, &is) || library.requires_grad(tensor) != is.requires_grad ||
        library.is_neg(&tensor) != is.is_negative)
      return;
  }
  library.place = place;
}

static void meet_library(void) {
  library.requires_grad =
      (bool (*)(const void*))relu_ops_torch_function("_ZNK3c1010TensorImpl13requires_gradEv");
  library.is_neg = (bool (*)(void* const*))relu_ops_torch_function("_ZN2at6native6is_negERKNS_6TensorE");
  if (!library.requires_grad || !library.is_neg || !address) return;
  PyObject* tensors = relu_ops_call_careful("tensors_of_every_nature", NULL, 0);
  if (tensors && PyTuple_CheckExact(tensors)) find_places(tensors);
  Py_XDECREF(tensors);
}

/* ---- meeting torch -------------------------------------------------------------------------------- */

/* A type's attribute, if it is a descriptor of some kind; borrowed. NULL, without an error, if not. */
static PyObject* descriptor_of(PyObject* type, const char* name, PyTypeObject* kind) {
  PyObject* found = PyObject_GetAttrString(type, name);
  if (!found) PyErr_Clear();
  Py_XDECREF(found); /* the type has it */
  return found && Py_IS_TYPE(found, kind) ? found : NULL;
}

static PyGetSetDef* getset_of(PyObject* type, const char* name) {
  PyObject* found = descriptor_of(type, name, &PyGetSetDescr_Type);
  return found ? ((PyGetSetDescrObject*)found)->d_getset : NULL;
}

static PyMethodDef* method_of(PyObject* type, const char* name) {
  PyObject* found = descriptor_of(type, name, &PyMethodDescr_Type);
  return found ? ((PyMethodDescrObject*)found)->d_method : NULL;
}

static bool meet_attributes(PyObject* module, PyObject* tensor) {
  torch.is_grad_enabled = PyObject_GetAttrString(module, "is_grad_enabled");
  requires_grad = getset_of(tensor, "requires_grad");
  is_neg = method_of(tensor, "is_neg");
  address = getset_of(tensor, "_cdata");
  return torch.is_grad_enabled && requires_grad && is_neg && is_neg->ml_flags == METH_NOARGS;
}

/* Look torch up among the imported modules: its exact types, and DLPack's C interface to them. */
static bool meet_torch(void) {
  PyObject* modules = PyImport_GetModuleDict(); /* borrowed */
  PyObject* module = modules ? PyDict_GetItemString(modules, "torch") : NULL;
  PyObject* tensor = module ? PyObject_GetAttrString(module, "Tensor") : NULL;
  PyObject* capsule = tensor ? PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__") : NULL;
  PyObject* nn = capsule ? PyObject_GetAttrString(module, "nn") : NULL;
  PyObject* parameter = nn ? PyObject_GetAttrString(nn, "Parameter") : NULL;
  const DLPackExchangeAPI* exchange =
      parameter && PyCapsule_CheckExact(capsule) ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
                                                 : NULL;
  bool usable = exchange && exchange->header.version.major == DLPACK_MAJOR_VERSION &&
                exchange->dltensor_from_py_object_no_sync &&
                exchange->managed_tensor_to_py_object_no_sync && meet_attributes(module, tensor);
  if (usable) {
    torch.exchange = exchange;
    torch.parameter = (PyTypeObject*)Py_NewRef(parameter);
    torch.tensor = (PyTypeObject*)Py_NewRef(tensor);
    relu_ops_meet_torch_threads(module);
    meet_library();
  }
  Py_XDECREF(parameter);
  Py_XDECREF(nn);
  Py_XDECREF(capsule);
  Py_XDECREF(tensor);
  PyErr_Clear();
  return usable;
}

bool relu_ops_torch_stream(int32_t device, void** stream) {
  if ((!torch.tensor && !meet_torch()) || !torch.exchange->current_work_stream) return false;
  return torch.exchange->current_work_stream(kDLCUDA, device, stream) == 0;
}

bool relu_ops_is_tensor(PyObject* x) {
  PyTypeObject* type = Py_TYPE(x);
  if (torch.tensor) return type == torch.tensor || type == torch.parameter;
  bool named = !strcmp(type->tp_name, "Tensor") || !strcmp(type->tp_name, "Parameter");
  return named && meet_torch() && (type == torch.tensor || type == torch.parameter);
}

/* ---- one tensor ----------------------------------------------------------------------------------- */

/* Whether a gradient is to be recorded of what is read. */
static bool wants_gradient(const Nature* nature) {
  if (!nature->requires_grad) return false;
  PyObject* recorded = PyObject_CallNoArgs(torch.is_grad_enabled);
  bool wants = recorded != Py_False;
  Py_XDECREF(recorded);
  return wants;
}

/* Whether a tensor is what its memory holds, and nobody wants its gradient: one that is written may require
 * none. What is not goes the careful way, which resolves or refuses. */
static bool is_plain(PyObject* x, bool written) {
  Nature nature;
  if (!ask(x, &nature) || nature.is_negative) return false;
  return written ? !nature.requires_grad : !wants_gradient(&nature);
}

static bool is_compact(const DLTensor* tensor) {
  int64_t compact = 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; --d) {
    if (tensor->shape[d] != 1 && tensor->strides[d] != compact) return false;
    compact *= tensor->shape[d];
  }
  return true;
}

TensorKind relu_ops_adopt_plain_tensor(Arrays* arrays, int k, PyObject* x) {
  DLTensor* tensor = &arrays->tensors[k];
  Nature nature;
  if (!relu_ops_is_tensor(x) || !ask(x, &nature) || nature.is_negative ||
      torch.exchange->dltensor_from_py_object_no_sync(x, tensor))
    return NO_PLAIN_TENSOR;
  if (tensor->device.device_type != kDLCPU || tensor->ndim > MAX_RANK ||
      (tensor->strides && !is_compact(tensor)))
    return NO_PLAIN_TENSOR;
  tensor->strides = NULL;
  return wants_gradient(&nature) ? WANTS_GRADIENT : PLAIN_TENSOR;
}

static bool adopt_tensor(Arrays* arrays, int k, PyObject* x, bool written) {
  DLTensor* tensor = &arrays->tensors[k];
  if (!relu_ops_is_tensor(x) || !is_plain(x, written) ||
      torch.exchange->dltensor_from_py_object_no_sync(x, tensor))
    return false;
  if (tensor->ndim > MAX_RANK) return false;
  if (tensor->strides && is_compact(tensor)) tensor->strides = NULL;
  return true;
}

/* ---- new tensors ---------------------------------------------------------------------------------- */

/* A tensor's memory, and what DLPack says of it. torch's own allocator for DLPack makes a tensor first, and
 * another of that: op(tensor) of 16 float32 takes 0.65 us with this and the attributes above, and took 1.05
 * with neither (Intel Xeon, 2026-11-28). */
typedef struct {
  DLManagedTensorVersioned managed; /* torch gives it back by `deleter` */
  void* apart;                      /* or NULL */
  LargeBlock large;                 /* or nothing */
  int64_t shape[MAX_RANK], strides[MAX_RANK];
} Block; /* of neither: the memory is behind it */

#define TENSOR_ALIGNMENT 64

/* From so many bytes on memory is asked for as torch asks for it: then what its tensors left is taken again,
 * while the caches hold it. relu of 1M float32 after a matrix product takes 0.19 ms there, and up to 0.31
 * elsewhere (Intel Xeon, 2 threads, 2026-11-28). */
#define APART_BYTES (INT64_C(16) << 10)

static void give_memory_back(void* apart, LargeBlock large) {
  free(apart);
  if (large.base) relu_ops_give_block_back(large);
}

static void free_block(DLManagedTensorVersioned* managed) {
  Block* block = managed->manager_ctx;
  give_memory_back(block->apart, block->large);
  free(block);
}

/* Memory of some bytes, and room for a Block; NULL where there is none. */
static Block* new_memory(int64_t bytes, void** data) {
  void* apart = NULL;
  LargeBlock large = {NULL, 0};
  size_t behind = bytes < APART_BYTES ? TENSOR_ALIGNMENT + (size_t)bytes : 0;
  if (bytes >= LARGE_OUTPUT_BYTES) large = relu_ops_take_block((size_t)bytes);
  else if (!behind && posix_memalign(&apart, TENSOR_ALIGNMENT, (size_t)bytes)) return NULL;
  Block* block = behind || apart || large.base ? malloc(sizeof(Block) + behind) : NULL;
  if (!block) {
    give_memory_back(apart, large);
    return NULL;
  }
  uintptr_t past = (uintptr_t)(block + 1) + TENSOR_ALIGNMENT - 1;
  if (behind) *data = (void*)(past / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT);
  else *data = apart ? apart : relu_ops_block_data(large);
  block->apart = apart;
  block->large = large;
  return block;
}

static Block* new_block(const Expected* expected, int32_t rank, const int64_t* shape) {
  int64_t bytes = expected->itemsize, stride = 1;
  for (int32_t d = 0; d < rank; ++d)
    if (__builtin_mul_overflow(bytes, shape[d], &bytes)) return NULL;
  void* data;
  Block* block = new_memory(bytes, &data);
  if (!block) return NULL;
  block->managed = (DLManagedTensorVersioned){
      .version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION},
      .manager_ctx = block,
      .deleter = free_block,
      .dl_tensor = {.data = data,
                    .device = {kDLCPU, 0},
                    .ndim = rank,
                    .dtype = expected->dtype,
                    .shape = block->shape,
                    .strides = block->strides}};
  for (int32_t d = rank - 1; d >= 0; --d) {
    block->shape[d] = shape[d];
    block->strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  return block;
}

/* A new tensor for an output, adopted; a new reference, or NULL. */
static PyObject* new_tensor(Arrays* arrays, int k, int32_t rank, const int64_t* shape) {
  Block* block = new_block(&arrays->self->expected[k], rank, shape);
  PyObject* tensor = NULL;
  if (!block) return NULL;
  arrays->tensors[k] = block->managed.dl_tensor;
  arrays->tensors[k].shape = arrays->shapes[k];
  arrays->tensors[k].strides = NULL;
  memcpy(arrays->shapes[k], shape, sizeof(int64_t) * (size_t)rank);
  if (torch.exchange->managed_tensor_to_py_object_no_sync(&block->managed, (void**)&tensor)) return NULL;
  return tensor;
}

PyObject* relu_ops_new_tensors(Arrays* arrays) {
  int count = arrays->self->output_count, at = arrays->self->input_count;
  int32_t ranks[MOST_FAST];
  int64_t shapes[MOST_FAST][MAX_RANK];
  if (relu_ops_output_shapes(arrays->self->op, arrays->tensors, ranks, shapes)) return NULL;
  if (count == 1) return new_tensor(arrays, at, ranks[0], shapes[0]);
  PyObject* several = PyTuple_New(count);
  for (int k = 0; several && k < count; ++k) {
    PyObject* one = new_tensor(arrays, at + k, ranks[k], shapes[k]);
    if (one) PyTuple_SET_ITEM(several, k, one);
    else Py_CLEAR(several);
  }
  return several;
}

/* Adopt the tensors that the caller passed for outputs; a new reference to what he passed, or NULL. */
static PyObject* adopt_out_tensors(Arrays* arrays, PyObject* out) {
  int count = arrays->self->output_count, at = arrays->self->input_count;
  if (count == 1) return adopt_tensor(arrays, at, out, true) ? Py_NewRef(out) : NULL;
  if (!PyTuple_CheckExact(out) || PyTuple_GET_SIZE(out) != count) return NULL;
  for (int k = 0; k < count; ++k)
    if (!adopt_tensor(arrays, at + k, PyTuple_GET_ITEM(out, k), true)) return NULL;
  return Py_NewRef(out);
}

PyObject* relu_ops_adopt_tensors(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
  for (int k = 0; k < arrays->self->input_count; ++k)
    if (!adopt_tensor(arrays, k, inputs[k], false) && !relu_ops_adopt_number(arrays, k, inputs[k]))
      return NULL;
  arrays->of_torch = true;
  return out ? adopt_out_tensors(arrays, out) : relu_ops_new_tensors(arrays);
}

/* ---- on a device ---------------------------------------------------------------------------------- */

static void forget(void* context, const char* kind, const char* message) {
  (void)context, (void)kind, (void)message; /* whoever is asked again, with care, says it */
}

/* A new tensor on the device of the first input, by torch's allocator, which orders its memory by torch's
 * current stream; adopted. A new reference, or NULL. */
static PyObject* new_device_tensor(Arrays* arrays, int k, int32_t rank, int64_t* shape) {
  DLTensor prototype = {.device = arrays->tensors[0].device,
                        .ndim = rank,
                        .dtype = arrays->self->expected[k].dtype,
                        .shape = shape};
  DLManagedTensorVersioned* managed = NULL;
  PyObject* tensor = NULL;
  if (!torch.exchange->managed_tensor_allocator ||
      torch.exchange->managed_tensor_allocator(&prototype, &managed, NULL, forget))
    return NULL;
  arrays->tensors[k] = managed->dl_tensor;
  arrays->tensors[k].shape = arrays->shapes[k];
  arrays->tensors[k].strides = NULL;
  memcpy(arrays->shapes[k], shape, sizeof(int64_t) * (size_t)rank);
  if (torch.exchange->managed_tensor_to_py_object_no_sync(managed, (void**)&tensor)) return NULL;
  return tensor;
}

/* Tensors on a device, and torch's stream there. */
PyObject* relu_ops_adopt_device_tensors(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
  const OperatorObject* self = arrays->self;
  int at = self->input_count;
  if (at == 0 || self->output_count != 1) return NULL;
  for (int k = 0; k < at; ++k)
    if (!adopt_tensor(arrays, k, inputs[k], false)) return NULL;
  DLDevice device = arrays->tensors[0].device;
  if (device.device_type != kDLCUDA || !relu_ops_torch_stream(device.device_id, &arrays->stream)) return NULL;
  if (out) return adopt_tensor(arrays, at, out, true) ? Py_NewRef(out) : NULL;
  int32_t rank;
  int64_t shape[1][MAX_RANK];
  if (relu_ops_output_shapes(self->op, arrays->tensors, &rank, shape)) return NULL;
  return new_device_tensor(arrays, at, rank, shape[0]);
}
