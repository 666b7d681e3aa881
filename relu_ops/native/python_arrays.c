/* Adopts what a caller passes, as it lies in memory, for the core: NumPy's own arrays, and Python numbers
 * where an input is declared as one; and describes what others pass by DLPack. See python_tensors.c for
 * torch.
 */
#include "python.h"

#include <numpy/arrayscalars.h>
#include <stdlib.h>
#include <string.h>

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

/* Describe memory of the CPU without gaps, member by member: a compiler clears a whole structure by a string
 * instruction, which costs 5 ns each time (Intel Xeon, 2026-11-28). */
static inline void describe(DLTensor* tensor, void* data, DLDataType dtype, int32_t rank, int64_t* shape) {
  tensor->data = data;
  tensor->device.device_type = kDLCPU;
  tensor->device.device_id = 0;
  tensor->ndim = rank;
  tensor->dtype = dtype;
  tensor->shape = shape;
  tensor->strides = NULL;
  tensor->byte_offset = 0;
}

/* Whether an array is of what is expected, has some flags, and as many dimensions as the core allows. */
static inline bool is_expected(const Expected* expected, PyArrayObject* array, int flags) {
  int number = PyArray_TYPE(array);
  return (number == expected->number || number == expected->same) &&
         (PyArray_FLAGS(array) & flags) == flags && PyArray_ISNOTSWAPPED(array) &&
         PyArray_NDIM(array) <= MAX_RANK;
}

static bool adopt_ndarray(Arrays* arrays, int k, PyArrayObject* array, int flags) {
  const Expected* expected = &arrays->self->expected[k];
  DLTensor* tensor = &arrays->tensors[k];
  int rank = PyArray_NDIM(array), have = PyArray_FLAGS(array);
  if (!is_expected(expected, array, flags)) return false;
  describe(tensor, PyArray_DATA(array), expected->dtype, rank, (int64_t*)PyArray_DIMS(array));
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

/* Write a Python number, or NumPy's float32, for an input that is declared as one; false where it is none. */
static bool take_number(void* at, const Expected* expected, PyObject* x) {
  double number;
  if (!expected->is_number) return false;
  if (PyFloat_CheckExact(x)) number = PyFloat_AS_DOUBLE(x);
  else if (PyArray_IsScalar(x, Float) && expected->number == NPY_FLOAT32)
    number = (double)PyArrayScalar_VAL(x, Float);
  else return false;
  return write_number(at, expected->dtype, number);
}

static void describe_number(Arrays* arrays, int k) {
  describe(&arrays->tensors[k], &arrays->numbers[k], arrays->self->expected[k].dtype, 0, arrays->shapes[k]);
}

bool relu_ops_adopt_number(Arrays* arrays, int k, PyObject* x) {
  if (!take_number(&arrays->numbers[k], &arrays->self->expected[k], x)) return false;
  describe_number(arrays, k);
  return true;
}

bool relu_ops_adopt_double(Arrays* arrays, int k, double x) {
  const Expected* expected = &arrays->self->expected[k];
  if (!expected->is_number || !write_number(&arrays->numbers[k], expected->dtype, x)) return false;
  describe_number(arrays, k);
  return true;
}

static bool adopt_inputs(Arrays* arrays, PyObject* const* inputs) {
  for (int k = 0; k < arrays->self->input_count; ++k) {
    bool adopted = PyArray_CheckExact(inputs[k])
                       ? adopt_ndarray(arrays, k, (PyArrayObject*)inputs[k], NPY_ARRAY_ALIGNED)
                       : relu_ops_adopt_number(arrays, k, inputs[k]);
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

/* ---- vectors ------------------------------------------------------------------------------------- */

#define COMPACT (NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED)

/* PyArray_SAMESHAPE, without its call: 3 ns of the 55 that op(x, out=y) takes on 16 elements. */
static bool same_dims(PyArrayObject* x, PyArrayObject* y) {
  bool same = PyArray_NDIM(x) == PyArray_NDIM(y);
  for (int d = 0; same && d < PyArray_NDIM(x); ++d) same = PyArray_DIM(x, d) == PyArray_DIM(y, d);
  return same;
}

/* Where the inputs lie; the first that is no number: all of its shape. NULL where they are no vectors. */
static PyArrayObject* place_inputs(const OperatorObject* self, PyObject* const* inputs, void** data,
                                   double* numbers) {
  PyArrayObject* model = NULL;
  for (int k = 0; k < self->input_count; ++k) {
    const Expected* expected = &self->expected[k];
    PyArrayObject* array = (PyArrayObject*)inputs[k];
    if (!PyArray_CheckExact(inputs[k])) {
      if (!take_number(&numbers[k], expected, inputs[k])) return NULL;
      data[k] = &numbers[k];
      continue;
    }
    if (!is_expected(expected, array, COMPACT)) return NULL;
    data[k] = PyArray_DATA(array);
    if (expected->is_number ? PyArray_NDIM(array) != 0 : model && !same_dims(array, model)) return NULL;
    if (!expected->is_number) model = array;
  }
  return model;
}

/* The output of a call on vectors: what was passed, or a new array; a new reference, or NULL. */
static PyObject* vector_output(const Expected* expected, PyArrayObject* model, PyObject* out) {
  if (out) {
    bool fits = PyArray_CheckExact(out) &&
                is_expected(expected, (PyArrayObject*)out, COMPACT | NPY_ARRAY_WRITEABLE) &&
                same_dims((PyArrayObject*)out, model);
    return fits ? Py_NewRef(out) : NULL;
  }
  Py_INCREF(expected->descr);
  return PyArray_NewFromDescr(&PyArray_Type, expected->descr, PyArray_NDIM(model), PyArray_DIMS(model), NULL,
                              NULL, 0, NULL);
}

PyObject* relu_ops_call_on_vectors(const OperatorObject* self, PyObject* const* inputs, PyObject* out) {
  void* data[MOST_FAST];
  double numbers[MOST_FAST];
  PyArrayObject* model = place_inputs(self, inputs, data, numbers);
  if (!model) return NULL;
  int64_t elements = 1;
  for (int d = 0; d < PyArray_NDIM(model); ++d) elements *= PyArray_DIM(model, d);
  if (elements > FEW_ELEMENTS) return NULL;
  PyObject* result = vector_output(&self->expected[self->input_count], model, out);
  if (!result) return NULL;
  data[self->input_count] = PyArray_DATA((PyArrayObject*)result);
  if (relu_ops_call_vectors(self->op, data, elements, NULL)) Py_CLEAR(result);
  return result;
}

/* ---- all of a call ------------------------------------------------------------------------------- */

PyObject* relu_ops_adopt(Arrays* arrays, PyObject* const* inputs, PyObject* out) {
  if (arrays->self->on_device) return relu_ops_adopt_device_tensors(arrays, inputs, out);
  PyObject* first = arrays->self->input_count ? inputs[0] : NULL;
  if (adopt_inputs(arrays, inputs))
    return out ? adopt_outputs(arrays, out) : new_outputs(arrays, first);
  return first && relu_ops_is_tensor(first) ? relu_ops_adopt_tensors(arrays, inputs, out) : NULL;
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
