/* Adopts what a caller passes, as it lies in memory, for the core: NumPy's own arrays, Python numbers where
 * an input is declared as one, and exact torch tensors by DLPack's C exchange interface.
 */
#include "python.h"

#include <numpy/arrayscalars.h>
#include <stdlib.h>
#include <string.h>

/* From here on runtime/memory.py makes outputs, and python_blocks.c the memory of tensors. */
#define LARGE_OUTPUT_BYTES (INT64_C(32) << 20)

/* ---- dtypes -------------------------------------------------------------------------------------- */

static const struct {
  uint8_t code, bits;
  int number; /* NumPy's */
} dtypes[] = {
    {kDLBool, 8, NPY_BOOL},    {kDLInt, 8, NPY_INT8},      {kDLInt, 16, NPY_INT16},
    {kDLInt, 32, NPY_INT32},   {kDLInt, 64, NPY_INT64},    {kDLUInt, 8, NPY_UINT8},
    {kDLUInt, 16, NPY_UINT16}, {kDLUInt, 32, NPY_UINT32},  {kDLUInt, 64, NPY_UINT64},
    {kDLFloat, 16, NPY_HALF},  {kDLFloat, 32, NPY_FLOAT32}, {kDLFloat, 64, NPY_FLOAT64}};

/* The NumPy dtype of a declared one: a new reference, or NULL with an error. */
static PyArray_Descr* descr_of(DLDataType dtype) {
  for (size_t k = 0; k < sizeof(dtypes) / sizeof(dtypes[0]); ++k)
    if (dtypes[k].code == dtype.code && dtypes[k].bits == dtype.bits)
      return PyArray_DescrFromType(dtypes[k].number);
  PyObject* module = PyImport_ImportModule("ml_dtypes"); /* bfloat16, which NumPy itself lacks */
  PyObject* type = module ? PyObject_GetAttrString(module, "bfloat16") : NULL;
  PyArray_Descr* descr = NULL;
  if (type) PyArray_DescrConverter(type, &descr);
  Py_XDECREF(type);
  Py_XDECREF(module);
  return descr;
}

int relu_ops_expect(Expected* expected, const relu_ops_spec* spec) {
  expected->descr = descr_of(spec->dtype);
  if (!expected->descr) return -1;
  expected->number = expected->same = expected->descr->type_num;
  if (expected->number == NPY_LONG) expected->same = NPY_LONGLONG;
  if (expected->number == NPY_ULONG) expected->same = NPY_ULONGLONG;
  expected->dtype = spec->dtype;
  expected->itemsize = spec->dtype.bits / 8;
  expected->is_number = spec->rank == 0;
  return 0;
}

/* ---- arrays as they are -------------------------------------------------------------------------- */

static bool adopt_ndarray(Arrays* arrays, int k, PyArrayObject* array, int flags) {
  const Expected* expected = &arrays->self->expected[k];
  DLTensor* tensor = &arrays->tensors[k];
  int number = PyArray_TYPE(array), rank = PyArray_NDIM(array), have = PyArray_FLAGS(array);
  if ((number != expected->number && number != expected->same) || (have & flags) != flags ||
      !PyArray_ISNOTSWAPPED(array) || rank > MAX_RANK)
    return false;
  *tensor = (DLTensor){.data = PyArray_DATA(array),
                       .device = {kDLCPU, 0},
                       .ndim = rank,
                       .dtype = expected->dtype,
                       .shape = (int64_t*)PyArray_DIMS(array)};
  if (have & NPY_ARRAY_C_CONTIGUOUS) return true;
  const npy_intp* strides = PyArray_STRIDES(array);
  for (int d = 0; d < rank; ++d) {
    if (strides[d] % expected->itemsize != 0) return false;
    arrays->strides[k][d] = strides[d] / expected->itemsize;
  }
  tensor->strides = arrays->strides[k];
  return true;
}

/* Bits of the float16 nearest to a float32, ties to even. */
static uint16_t half_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);  /* NaN */
  if (rest >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* rounds to infinity */
  int shift = rest < 0x38800000u ? 126 - (int)(rest >> 23) : 13; /* subnormals lose more bits */
  if (shift > 24) return (uint16_t)sign;
  uint32_t whole = rest < 0x38800000u ? (rest & 0x7FFFFFu) | 0x800000u : rest - 0x38000000u;
  uint32_t cut = whole & ((1u << shift) - 1), half = 1u << (shift - 1), kept = whole >> shift;
  return (uint16_t)(sign | (kept + (cut > half || (cut == half && (kept & 1)))));
}

/* Bits of the bfloat16 nearest to a float32, ties to even. */
static uint16_t bfloat16_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  if (x != x) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

/* Write a number in a dtype; false where that would round twice, or is none of the floats. */
static bool write_number(void* at, DLDataType dtype, double number) {
  float narrow = (float)number;
  bool exact = (double)narrow == number || number != number;
  if (dtype.code == kDLFloat && dtype.bits == 64) memcpy(at, &number, sizeof(number));
  else if (dtype.code == kDLFloat && dtype.bits == 32) memcpy(at, &narrow, sizeof(narrow));
  else if (exact && dtype.bits == 16 && (dtype.code == kDLFloat || dtype.code == kDLBfloat))
    *(uint16_t*)at = dtype.code == kDLFloat ? half_of(narrow) : bfloat16_of(narrow);
  else return false;
  return true;
}

static bool adopt_number(Arrays* arrays, int k, PyObject* x) {
  const Expected* expected = &arrays->self->expected[k];
  if (!expected->is_number) return false;
  double number;
  if (PyFloat_CheckExact(x)) number = PyFloat_AS_DOUBLE(x);
  else if (PyArray_IsScalar(x, Float) && expected->number == NPY_FLOAT32)
    number = (double)PyArrayScalar_VAL(x, Float);
  else return false;
  if (!write_number(&arrays->numbers[k], expected->dtype, number)) return false;
  arrays->tensors[k] = (DLTensor){.data = &arrays->numbers[k],
                                  .device = {kDLCPU, 0},
                                  .dtype = expected->dtype,
                                  .shape = arrays->shapes[k]};
  return true;
}

static bool adopt_inputs(Arrays* arrays, PyObject* const* inputs) {
  for (int k = 0; k < arrays->self->input_count; ++k) {
    bool adopted = PyArray_CheckExact(inputs[k])
                       ? adopt_ndarray(arrays, k, (PyArrayObject*)inputs[k], NPY_ARRAY_ALIGNED)
                       : adopt_number(arrays, k, inputs[k]);
    if (!adopted) return false;
  }
  return true;
}

static bool adopt_output(Arrays* arrays, int k, PyObject* out) {
  return PyArray_CheckExact(out) &&
         adopt_ndarray(arrays, k, (PyArrayObject*)out, NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE);
}

static bool same_shape(const DLTensor* tensor, int32_t rank, const int64_t* shape) {
  return tensor->ndim == rank && memcmp(tensor->shape, shape, sizeof(int64_t) * (size_t)rank) == 0;
}

/* A new array for an output, in the memory order of an input of the same shape: a new reference, or NULL,
 * perhaps with an error. */
static PyObject* new_array(const Arrays* arrays, int k, int32_t rank, int64_t* shape, PyObject* first) {
  const Expected* expected = &arrays->self->expected[k];
  int64_t bytes = expected->itemsize;
  for (int32_t d = 0; d < rank; ++d)
    if (__builtin_mul_overflow(bytes, shape[d], &bytes)) return NULL;
  if (bytes >= LARGE_OUTPUT_BYTES) return NULL;
  Py_INCREF(expected->descr);
  const DLTensor* like = &arrays->tensors[0];
  if (first && PyArray_CheckExact(first) && like->strides && same_shape(like, rank, shape))
    return PyArray_NewLikeArray((PyArrayObject*)first, NPY_KEEPORDER, expected->descr, 0);
  return PyArray_NewFromDescr(&PyArray_Type, expected->descr, rank, (npy_intp*)shape, NULL, NULL, 0,
                              NULL);
}

/* New outputs for the inputs that were adopted: an array or a tuple, adopted too. */
static PyObject* new_outputs(Arrays* arrays, PyObject* first) {
  const OperatorObject* self = arrays->self;
  int count = self->output_count, at = self->input_count;
  int32_t ranks[MOST_FAST];
  int64_t shapes[MOST_FAST][MAX_RANK];
  if (relu_ops_output_shapes(self->op, arrays->tensors, ranks, shapes)) return NULL;
  if (count == 1) {
    PyObject* one = new_array(arrays, at, ranks[0], shapes[0], first);
    if (one && adopt_output(arrays, at, one)) return one;
    Py_XDECREF(one);
    return NULL;
  }
  PyObject* several = PyTuple_New(count);
  for (int k = 0; several && k < count; ++k) {
    PyObject* one = new_array(arrays, at + k, ranks[k], shapes[k], first);
    if (one) PyTuple_SET_ITEM(several, k, one);
    if (!one || !adopt_output(arrays, at + k, one)) Py_CLEAR(several);
  }
  return several;
}

/* Adopt what the caller passed for outputs; a new reference to it, or NULL. */
static PyObject* adopt_outputs(Arrays* arrays, PyObject* out) {
  int count = arrays->self->output_count, at = arrays->self->input_count;
  if (count == 1) return adopt_output(arrays, at, out) ? Py_NewRef(out) : NULL;
  if (!PyTuple_CheckExact(out) || PyTuple_GET_SIZE(out) != count) return NULL;
  for (int k = 0; k < count; ++k)
    if (!adopt_output(arrays, at + k, PyTuple_GET_ITEM(out, k))) return NULL;
  return Py_NewRef(out);
}

/* ---- torch --------------------------------------------------------------------------------------- */

static struct {
  PyTypeObject *tensor, *parameter; /* torch's, once they were met; or NULL */
  const DLPackExchangeAPI* exchange;
  PyGetSetDef* requires_grad; /* of torch.Tensor */
  PyMethodDef* is_neg;
  PyObject* is_grad_enabled; /* torch.is_grad_enabled */
} torch;

/* What torch.Tensor's attributes are made of, if they are what is expected. To call them directly takes less
 * time than by their names: op(tensor, out=tensor) of 16 float32 takes 484 and 549 ns (Intel Xeon,
 * 2026-11-28). */
static bool meet_attributes(PyObject* module, PyObject* tensor) {
  torch.is_grad_enabled = PyObject_GetAttrString(module, "is_grad_enabled");
  PyObject* grad = PyObject_GetAttrString(tensor, "requires_grad");
  PyObject* negated = PyObject_GetAttrString(tensor, "is_neg");
  if (grad && Py_IS_TYPE(grad, &PyGetSetDescr_Type))
    torch.requires_grad = ((PyGetSetDescrObject*)grad)->d_getset;
  if (negated && Py_IS_TYPE(negated, &PyMethodDescr_Type))
    torch.is_neg = ((PyMethodDescrObject*)negated)->d_method;
  Py_XDECREF(grad);
  Py_XDECREF(negated);
  bool met = torch.is_grad_enabled && torch.requires_grad && torch.is_neg;
  return met && torch.is_neg->ml_flags == METH_NOARGS;
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

/* Whether something is exactly torch's tensor or parameter, no subclass that means something else. */
static bool is_tensor(PyObject* x) {
  PyTypeObject* type = Py_TYPE(x);
  if (torch.tensor) return type == torch.tensor || type == torch.parameter;
  bool named = !strcmp(type->tp_name, "Tensor") || !strcmp(type->tp_name, "Parameter");
  return named && meet_torch() && (type == torch.tensor || type == torch.parameter);
}

/* Whether nobody wants the gradient of a tensor: it requires none, or it is read and none is recorded. */
static bool is_without_gradient(PyObject* x, bool written) {
  PyObject* grad = torch.requires_grad->get(x, torch.requires_grad->closure);
  PyObject* recorded = grad == Py_True && !written ? PyObject_CallNoArgs(torch.is_grad_enabled) : NULL;
  bool without = grad == Py_False || recorded == Py_False;
  Py_XDECREF(recorded);
  Py_XDECREF(grad);
  return without;
}

/* Whether a tensor is what its memory holds: torch hands out one that requires a gradient without a word,
 * and a negated view with its data as they lie. Both go the careful way, which resolves or refuses. */
static bool is_plain(PyObject* x, bool written) {
  bool plain = is_without_gradient(x, written);
  PyObject* negated = plain ? torch.is_neg->ml_meth(x, NULL) : NULL;
  plain = negated == Py_False;
  Py_XDECREF(negated);
  return plain;
}

static bool is_compact(const DLTensor* tensor) {
  int64_t compact = 1;
  for (int32_t d = tensor->ndim - 1; d >= 0; --d) {
    if (tensor->shape[d] != 1 && tensor->strides[d] != compact) return false;
    compact *= tensor->shape[d];
  }
  return true;
}

TensorKind relu_ops_tensor_kind(PyObject* x, DLDataType* dtype) {
  DLTensor tensor;
  if (!is_tensor(x) || torch.exchange->dltensor_from_py_object_no_sync(x, &tensor)) return NO_PLAIN_TENSOR;
  if (tensor.device.device_type != kDLCPU || (tensor.strides && !is_compact(&tensor))) return NO_PLAIN_TENSOR;
  if (dtype) *dtype = tensor.dtype;
  return is_without_gradient(x, false) ? PLAIN_TENSOR : WANTS_GRADIENT;
}

static bool adopt_tensor(Arrays* arrays, int k, PyObject* x, bool written) {
  DLTensor* tensor = &arrays->tensors[k];
  if (!is_tensor(x) || !is_plain(x, written) || torch.exchange->dltensor_from_py_object_no_sync(x, tensor))
    return false;
  if (tensor->ndim > MAX_RANK) return false;
  if (tensor->strides && is_compact(tensor)) tensor->strides = NULL;
  return true;
}

/* Memory for a tensor, and what DLPack says of it: one block, or two for a large one, which torch gives back
 * by `deleter`. torch's own allocator for DLPack makes a tensor first, and another of that: op(tensor) of 16
 * float32 takes 0.65 us with this and the attributes above, and took 1.05 with neither (Intel Xeon,
 * 2026-11-28). */
typedef struct {
  DLManagedTensorVersioned managed;
  LargeBlock large; /* or nothing: the memory is behind this */
  int64_t shape[MAX_RANK], strides[MAX_RANK];
} Block;

#define TENSOR_ALIGNMENT 64

static void free_block(DLManagedTensorVersioned* managed) {
  Block* block = managed->manager_ctx;
  if (block->large.base) relu_ops_give_block_back(block->large);
  free(block);
}

/* Memory of some bytes, and room for a Block; NULL where there is none. */
static Block* new_memory(int64_t bytes, void** data) {
  bool is_large = bytes >= LARGE_OUTPUT_BYTES;
  Block* block = malloc(sizeof(Block) + (is_large ? 0 : TENSOR_ALIGNMENT + (size_t)bytes));
  if (!block) return NULL;
  uintptr_t past = (uintptr_t)(block + 1) + TENSOR_ALIGNMENT - 1;
  *data = (void*)(past / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT);
  block->large = (LargeBlock){NULL, 0};
  if (!is_large) return block;
  block->large = relu_ops_take_block((size_t)bytes);
  *data = relu_ops_block_data(block->large);
  if (block->large.base) return block;
  free(block);
  return NULL;
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
static PyObject* device_result(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
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

/* New tensors for the inputs that were adopted: a tensor or a tuple, adopted too. */
static PyObject* new_tensors(Arrays* arrays) {
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

static PyObject* tensor_result(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
  for (int k = 0; k < arrays->self->input_count; ++k)
    if (!adopt_tensor(arrays, k, inputs[k], false) && !adopt_number(arrays, k, inputs[k])) return NULL;
  arrays->of_torch = true;
  return out ? adopt_out_tensors(arrays, out) : new_tensors(arrays);
}

/* ---- all of a call ------------------------------------------------------------------------------- */

PyObject* relu_ops_adopt(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
  if (arrays->self->on_device) return device_result(arrays, inputs, out);
  PyObject* first = arrays->self->input_count ? inputs[0] : NULL;
  if (adopt_inputs(arrays, inputs))
    return out ? adopt_outputs(arrays, out) : new_outputs(arrays, first);
  return first && is_tensor(first) ? tensor_result(arrays, inputs, out) : NULL;
}

/* Describe NumPy arrays, inputs then outputs, as they lie. NULL with an error. Free by PyMem_Free. */
DLTensor* relu_ops_describe(const OperatorObject* self, PyObject* arrays) {
  Py_ssize_t count = self->input_count + self->output_count;
  if (!PyTuple_CheckExact(arrays) || PyTuple_GET_SIZE(arrays) != count) {
    PyErr_Format(PyExc_TypeError, "arrays must be a tuple of %zd", count);
    return NULL;
  }
  size_t room = sizeof(DLTensor) + 2 * sizeof(int64_t[MAX_RANK]);
  DLTensor* tensors = PyMem_Calloc((size_t)count, room);
  if (!tensors) return (DLTensor*)PyErr_NoMemory();
  int64_t* numbers = (int64_t*)(tensors + count);
  for (Py_ssize_t k = 0; k < count; ++k, numbers += 2 * MAX_RANK) {
    PyArrayObject* array = (PyArrayObject*)PyTuple_GET_ITEM(arrays, k);
    const Expected* expected = &self->expected[k];
    if (!PyArray_Check(array) || PyArray_NDIM(array) > MAX_RANK ||
        (PyArray_TYPE(array) != expected->number && PyArray_TYPE(array) != expected->same)) {
      PyErr_Format(PyExc_TypeError, "arrays[%zd] must be a NumPy array of the declared dtype", k);
      PyMem_Free(tensors);
      return NULL;
    }
    tensors[k] = (DLTensor){.data = PyArray_DATA(array),
                            .device = {kDLCPU, 0},
                            .ndim = PyArray_NDIM(array),
                            .dtype = expected->dtype,
                            .shape = numbers,
                            .strides = numbers + MAX_RANK};
    for (int d = 0; d < PyArray_NDIM(array); ++d) {
      numbers[d] = PyArray_DIM(array, d);
      numbers[MAX_RANK + d] = PyArray_STRIDE(array, d) / expected->itemsize;
    }
    if (PyArray_IS_C_CONTIGUOUS(array)) tensors[k].strides = NULL;
  }
  return tensors;
}

/* ---- arrays by DLPack ---------------------------------------------------------------------------- */

/* Numbers as a tuple. */
static PyObject* tuple_of(int32_t count, const int64_t* numbers) {
  PyObject* tuple = PyTuple_New(count);
  for (int32_t d = 0; tuple && d < count; ++d) {
    PyObject* number = PyLong_FromLongLong(numbers[d]);
    if (number) PyTuple_SET_ITEM(tuple, d, number);
    else Py_CLEAR(tuple);
  }
  return tuple;
}

static PyObject* row_of(const DLTensor* x, bool read_only) {
  PyObject* shape = tuple_of(x->ndim, x->shape);
  PyObject* strides = x->strides ? tuple_of(x->ndim, x->strides) : Py_NewRef(Py_None);
  if (!shape || !strides) {
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return NULL;
  }
  return Py_BuildValue("(KiiiiiNNN)", (unsigned long long)(uintptr_t)x->data + x->byte_offset, x->dtype.code,
                       x->dtype.bits, x->dtype.lanes, (int)x->device.device_type, x->device.device_id, shape,
                       strides, PyBool_FromLong(read_only));
}

PyObject* relu_ops_capsule_row(PyObject* module, PyObject* capsule) {
  (void)module;
  if (PyCapsule_IsValid(capsule, "dltensor")) {
    const DLManagedTensor* managed = PyCapsule_GetPointer(capsule, "dltensor");
    return row_of(&managed->dl_tensor, false);
  }
  const DLManagedTensorVersioned* managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
  if (!managed) return NULL;
  if (managed->version.major == DLPACK_MAJOR_VERSION)
    return row_of(&managed->dl_tensor, managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY);
  PyErr_Format(PyExc_BufferError, "its DLPack has version %u; this relu_ops knows %d",
               managed->version.major, DLPACK_MAJOR_VERSION);
  return NULL;
}

/* Copy a tuple of integers; -1 with an error. */
static int read_numbers(PyObject* tuple, int64_t* numbers) {
  if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) > MAX_RANK) {
    PyErr_Format(PyExc_ValueError, "it has %zd dimensions; at most %d are supported",
                 PyTuple_CheckExact(tuple) ? PyTuple_GET_SIZE(tuple) : -1, (int)MAX_RANK);
    return -1;
  }
  for (Py_ssize_t d = 0; d < PyTuple_GET_SIZE(tuple); ++d)
    numbers[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, d));
  return PyErr_Occurred() ? -1 : 0;
}

/* Read a row into a tensor, with room for 2 * MAX_RANK numbers; -1 with an error. */
static int read_row(DLTensor* tensor, PyObject* row, int64_t* numbers) {
  unsigned long long address;
  int code, bits, lanes, type, device, read_only;
  PyObject *shape, *strides;
  if (!PyArg_ParseTuple(row, "KiiiiiOOp", &address, &code, &bits, &lanes, &type, &device, &shape, &strides,
                        &read_only))
    return -1;
  *tensor = (DLTensor){.data = (void*)(uintptr_t)address,
                       .device = {(DLDeviceType)type, device},
                       .dtype = {(uint8_t)code, (uint8_t)bits, (uint16_t)lanes},
                       .shape = numbers};
  if (read_numbers(shape, numbers)) return -1;
  tensor->ndim = (int32_t)PyTuple_GET_SIZE(shape);
  if (strides == Py_None) return 0;
  tensor->strides = numbers + MAX_RANK;
  if (read_numbers(strides, tensor->strides)) return -1;
  if (PyTuple_GET_SIZE(strides) == tensor->ndim) return 0;
  PyErr_SetString(PyExc_ValueError, "it must have a stride for each dimension");
  return -1;
}

DLTensor* relu_ops_describe_rows(const OperatorObject* self, PyObject* rows) {
  Py_ssize_t count = self->input_count + self->output_count;
  if (!PyTuple_CheckExact(rows) || PyTuple_GET_SIZE(rows) != count) {
    PyErr_Format(PyExc_TypeError, "rows must be a tuple of %zd", count);
    return NULL;
  }
  DLTensor* tensors = PyMem_Calloc((size_t)count, sizeof(DLTensor) + 2 * sizeof(int64_t[MAX_RANK]));
  if (!tensors) return (DLTensor*)PyErr_NoMemory();
  int64_t* numbers = (int64_t*)(tensors + count);
  for (Py_ssize_t k = 0; k < count; ++k, numbers += 2 * MAX_RANK)
    if (read_row(&tensors[k], PyTuple_GET_ITEM(rows, k), numbers)) {
      PyMem_Free(tensors);
      return NULL;
    }
  return tensors;
}
