/* See check.h. The order of the checks is the order in which a person would ask: what it is, where it is,
 * how large, and only then whether it goes together with the others. */
#include "check.h"

#include <inttypes.h>
#include <stdio.h>

#include "shape.h"

/* ---- what messages show -------------------------------------------------------------------------- */

/* An array of a call, and what messages call it. */
typedef struct {
  const relu_ops_operator* op;
  const relu_ops_spec* spec;
  const DLTensor* tensor;
  const char* role;
} Array;

/* By number: the inputs, then the outputs. */
static Array array_of(const relu_ops_operator* op, const DLTensor* inputs, const DLTensor* outputs,
                      int32_t k) {
  if (k < op->input_count) return (Array){op, &op->inputs[k], &inputs[k], ""};
  int32_t out = k - op->input_count;
  return (Array){op, &op->outputs[out], &outputs[out], "out for "};
}

static Text shape_text(int32_t rank, const int64_t* extents) {
  Text text = {.length = 0};
  relu_ops_append_shape(&text, rank, extents);
  return text;
}

static void append_dimension(Text* text, const relu_ops_operator* op, int64_t dim) {
  if (dim == FREE) relu_ops_append(text, "?");
  else if (dim < FREE) relu_ops_append(text, "%s", op->symbols[SYMBOL_OF(dim)]);
  else relu_ops_append(text, "%" PRId64, dim);
}

/* The shape that an input is declared with: (N, 4), (?,). */
static Text declared_text(const relu_ops_operator* op, const relu_ops_spec* spec) {
  Text text = {.length = 0};
  relu_ops_append(&text, "(");
  for (int32_t d = 0; d < spec->rank; ++d) {
    if (d) relu_ops_append(&text, ", ");
    append_dimension(&text, op, spec->dims[d]);
  }
  relu_ops_append(&text, spec->rank == 1 ? ",)" : ")");
  return text;
}

/* By DLPack's number of a kind of device. */
static const char* const DEVICES[] = {
    [kDLCPU] = "cpu",       [kDLCUDA] = "cuda",         [kDLCUDAHost] = "cuda_host",
    [kDLOpenCL] = "opencl", [kDLVulkan] = "vulkan",     [kDLMetal] = "metal",
    [kDLVPI] = "vpi",       [kDLROCM] = "rocm",         [kDLROCMHost] = "rocm_host",
    [kDLExtDev] = "ext_dev", [kDLCUDAManaged] = "cuda_managed", [kDLOneAPI] = "oneapi",
    [kDLWebGPU] = "webgpu", [kDLHexagon] = "hexagon",   [kDLMAIA] = "maia",
    [kDLTrn] = "trn",
};

typedef struct {
  char text[64];
} DeviceName;

static DeviceName device_name(DLDevice device) {
  DeviceName name;
  uint32_t type = (uint32_t)device.device_type;
  const char* kind = type < sizeof(DEVICES) / sizeof(*DEVICES) ? DEVICES[type] : NULL;
  if (kind) snprintf(name.text, sizeof(name.text), "%s:%" PRId32, kind, device.device_id);
  else snprintf(name.text, sizeof(name.text), "of DLPack's type %" PRIu32, type);
  return name;
}

/* ---- one array ----------------------------------------------------------------------------------- */

/* The device in whose memory an array is: the CPU's where that is only pinned for another one. */
static DLDevice home_of(const DLTensor* x) {
  bool is_pinned = x->device.device_type == kDLCUDAHost || x->device.device_type == kDLROCMHost;
  return is_pinned ? (DLDevice){kDLCPU, 0} : x->device;
}

/* All lie in the memory of one device, the operator's. */
static relu_ops_status check_device(const Array* a, const Array* first) {
  DLDevice home = home_of(a->tensor), wanted = home_of(first->tensor);
  const char *name = a->op->name, *array = a->spec->name;
  if ((int32_t)home.device_type != a->op->device_type) {
    bool on_cpu = a->op->device_type == kDLCPU;
    DLDevice runs_on = {(DLDeviceType)a->op->device_type, a->op->cuda.device};
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s is in the memory of device %s; this operator runs on %s",
                  name, a->role, array, device_name(home).text,
                  on_cpu ? "the CPU" : device_name(runs_on).text);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "copy it there first, or load an image for that device");
  }
  if (home.device_id == wanted.device_id) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s is on %s; %s%s is on %s: all arrays must be on one device",
                name, a->role, array, device_name(home).text, first->role, first->spec->name,
                device_name(wanted).text);
  return relu_ops_advise(RELU_OPS_ARGUMENT, "copy one of them to the device of the other");
}

static bool same_dtype(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

static relu_ops_status check_dtype(const Array* a) {
  if (same_dtype(a->tensor->dtype, a->spec->dtype)) return RELU_OPS_OK;
  DtypeName wanted = relu_ops_dtype_name(a->spec->dtype);
  relu_ops_fail(RELU_OPS_TYPE, "%s: %s%s.dtype must be %s (not %s)", a->op->name, a->role, a->spec->name,
                wanted.text, relu_ops_dtype_name(a->tensor->dtype).text);
  if (a->role[0]) return RELU_OPS_TYPE;
  return relu_ops_advise(RELU_OPS_TYPE, "convert it to %s first", wanted.text);
}

static relu_ops_status check_rank(const Array* a) {
  const DLTensor* x = a->tensor;
  const char *name = a->op->name, *array = a->spec->name;
  if (x->ndim > MAX_RANK) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s has %" PRId32 " dimensions; at most %d are supported", name,
                  a->role, array, x->ndim, MAX_RANK);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "reshape it first: dimensions that lie together can be one");
  }
  if (x->ndim < 0)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s has %" PRId32 " dimensions; it must have 0 to %d",
                         name, a->role, array, x->ndim, MAX_RANK);
  if (x->ndim > 0 && !x->shape)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s has no shape: for %" PRId32 " dimensions it is NULL",
                         name, a->role, array, x->ndim);
  return RELU_OPS_OK;
}

/* Whether an array of a shape is larger than any memory. One without elements counts as if it had one in
 * each dimension that is empty: its strides must not wrap either. */
static bool is_too_large(int32_t rank, const int64_t* extents, int64_t itemsize) {
  int64_t bytes = itemsize;
  for (int32_t d = 0; d < rank; ++d)
    if (__builtin_mul_overflow(bytes, extents[d] > 1 ? extents[d] : 1, &bytes)) return true;
  return false;
}

static relu_ops_status check_extents(const Array* a) {
  const DLTensor* x = a->tensor;
  for (int32_t d = 0; d < x->ndim; ++d)
    if (x->shape[d] < 0)
      return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s.shape must not be negative (not %s)", a->op->name,
                           a->role, a->spec->name, shape_text(x->ndim, x->shape).text);
  if (!is_too_large(x->ndim, x->shape, itemsize_of(a->spec))) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s of shape %s is larger than any memory", a->op->name,
                       a->role, a->spec->name, shape_text(x->ndim, x->shape).text);
}

/* Bytes from the first element of an array to any other, at most: what sums of strides stay below. */
#define FURTHEST (INT64_C(1) << 62)

static bool reaches_too_far(const DLTensor* x, int64_t itemsize) {
  int64_t reach = 0, most = FURTHEST / itemsize;
  for (int32_t d = 0; d < x->ndim; ++d) {
    int64_t stride = x->strides[d], steps;
    if (x->shape[d] < 2 || stride == 0) continue;
    if (stride < -most || stride > most) return true;
    if (__builtin_mul_overflow(x->shape[d] - 1, stride < 0 ? -stride : stride, &steps)) return true;
    if (steps > most - reach) return true;
    reach += steps;
  }
  return false;
}

static relu_ops_status check_strides(const Array* a) {
  const DLTensor* x = a->tensor;
  if (!x->strides || is_empty(x->ndim, x->shape) || !reaches_too_far(x, itemsize_of(a->spec)))
    return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_ARGUMENT,
                       "%s: %s%s reaches beyond any memory (shape %s, strides in elements %s)", a->op->name,
                       a->role, a->spec->name, shape_text(x->ndim, x->shape).text,
                       shape_text(x->ndim, x->strides).text);
}

static relu_ops_status check_data(const Array* a) {
  const DLTensor* x = a->tensor;
  int64_t itemsize = itemsize_of(a->spec);
  if (is_empty(x->ndim, x->shape)) return RELU_OPS_OK;
  if (!x->data) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s has elements (its shape is %s) and no data: they are at NULL",
                  a->op->name, a->role, a->spec->name, shape_text(x->ndim, x->shape).text);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "let its data point to the first of its elements");
  }
  if (address_of(x) % (uintptr_t)itemsize == 0) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_ARGUMENT,
                "%s: %s%s lies at an address that is no multiple of %" PRId64 ", the size of its elements",
                a->op->name, a->role, a->spec->name, itemsize);
  return relu_ops_advise(RELU_OPS_ARGUMENT, "copy it to where it is aligned");
}

static relu_ops_status check_array(const Array* a, const Array* first) {
  relu_ops_status status = check_device(a, first);
  if (!status) status = check_dtype(a);
  if (!status) status = check_rank(a);
  if (!status) status = check_extents(a);
  if (!status) status = check_strides(a);
  if (!status) status = check_data(a);
  return status;
}

/* ---- declared shapes ----------------------------------------------------------------------------- */

/* What a declared dimension must be, and where that was said: by an input that has the same symbol before,
 * or NULL where the model has the number itself. Inputs are asked in order, so that there is one: at the
 * latest the dimension itself. */
static int64_t wanted_extent(const relu_ops_operator* op, const DLTensor* inputs, int64_t dim,
                             const char** source) {
  *source = NULL;
  for (int32_t k = 0; dim < FREE && k < op->input_count; ++k)
    for (int32_t d = 0; d < op->inputs[k].rank; ++d)
      if (op->inputs[k].dims[d] == dim) {
        *source = op->inputs[k].name;
        return inputs[k].shape[d];
      }
  return dim;
}

/* The first dimension of an input that is not as declared, or its rank where none is wrong. */
static inline int32_t wrong_dimension(const relu_ops_operator* op, const DLTensor* inputs, int32_t k) {
  const relu_ops_spec* spec = &op->inputs[k];
  const char* source;
  int32_t d = 0;
  for (; d < spec->rank; ++d) {
    int64_t dim = spec->dims[d];
    if (dim != FREE && wanted_extent(op, inputs, dim, &source) != inputs[k].shape[d]) break;
  }
  return d;
}

static inline bool is_as_declared(const relu_ops_operator* op, const DLTensor* inputs, int32_t k) {
  const relu_ops_spec* spec = &op->inputs[k];
  if (spec->rank < 0) return true;
  return inputs[k].ndim == spec->rank && wrong_dimension(op, inputs, k) == spec->rank;
}

static relu_ops_status check_declared(const relu_ops_operator* op, const DLTensor* inputs, int32_t k) {
  if (is_as_declared(op, inputs, k)) return RELU_OPS_OK;
  const relu_ops_spec* spec = &op->inputs[k];
  const DLTensor* x = &inputs[k];
  Text declared = declared_text(op, spec), given = shape_text(x->ndim, x->shape);
  const char* source = NULL;
  int64_t dim = x->ndim == spec->rank ? spec->dims[wrong_dimension(op, inputs, k)] : FREE;
  int64_t wanted = wanted_extent(op, inputs, dim, &source);
  if (!source)
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s.shape must be %s (not %s)", op->name, spec->name, declared.text,
                  given.text);
  else
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s.shape must be %s with %s = %" PRId64 ", as %s has it (not %s)",
                  op->name, spec->name, declared.text, op->symbols[SYMBOL_OF(dim)], wanted, source,
                  given.text);
  return relu_ops_advise(RELU_OPS_ARGUMENT,
                         "the model declares this: reshape the array, or declare another and build again");
}

/* ---- shapes together ----------------------------------------------------------------------------- */

#define ALIGNED "shapes are aligned at their last dimension; there, extents must be equal, or 1"

static relu_ops_status refuse_terms(const relu_ops_operator* op, Terms terms, const DLTensor* inputs,
                                    Broadcast found) {
  if (found == TOO_MANY_DIMENSIONS)
    return relu_ops_fail(RELU_OPS_ARGUMENT,
                         "%s: with the dimensions that the model appends, the inputs have more than %d "
                         "dimensions, which is the most that is supported",
                         op->name, MAX_RANK);
  Text named = {.length = 0};
  for (int32_t k = 0; k < terms.count; ++k) {
    const Term* term = &terms.terms[k];
    bool is_input = term->input >= 0;
    relu_ops_append(&named, "%s%s ", k ? ", " : "", is_input ? op->inputs[term->input].name : "a constant");
    relu_ops_append_shape(&named, is_input ? inputs[term->input].ndim : term->rank,
                          is_input ? inputs[term->input].shape : term->dims);
  }
  relu_ops_fail(RELU_OPS_ARGUMENT, "%s: these shapes do not broadcast together: %s", op->name, named.text);
  return relu_ops_advise(RELU_OPS_ARGUMENT, ALIGNED);
}

static relu_ops_status shape_of(Shape* shape, const relu_ops_operator* op, Terms terms,
                                const DLTensor* inputs) {
  Broadcast found = broadcast_terms(shape, terms, inputs);
  return found == TOGETHER ? RELU_OPS_OK : refuse_terms(op, terms, inputs, found);
}

static relu_ops_status check_requirement(const relu_ops_operator* op, const Requirement* requirement,
                                         const DLTensor* inputs) {
  Shape terms, into;
  relu_ops_status status = shape_of(&terms, op, requirement->terms, inputs);
  if (!status) status = shape_of(&into, op, requirement->into, inputs);
  if (status || fits(terms.rank, terms.extent, AS_IT_IS, &into)) return status;
  relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s of shape %s must broadcast into %s", op->name, requirement->what,
                shape_text(terms.rank, terms.extent).text, shape_text(into.rank, into.extent).text);
  return relu_ops_advise(RELU_OPS_ARGUMENT, ALIGNED);
}

static relu_ops_status check_input_shapes(const relu_ops_operator* op, const DLTensor* inputs) {
  relu_ops_status status = RELU_OPS_OK;
  for (int32_t k = 0; !status && k < op->input_count; ++k) status = check_declared(op, inputs, k);
  for (int32_t k = 0; !status && k < op->requirement_count; ++k)
    status = check_requirement(op, &op->requirements[k], inputs);
  return status;
}

/* True where an array has several elements in one place: a dimension that does not move. */
static bool repeats_elements(const DLTensor* x) {
  if (!x->strides || is_empty(x->ndim, x->shape)) return false;
  for (int32_t d = 0; d < x->ndim; ++d)
    if (x->strides[d] == 0 && x->shape[d] > 1) return true;
  return false;
}

static relu_ops_status check_output(const Array* a, int32_t k, const DLTensor* inputs) {
  const DLTensor* out = a->tensor;
  Shape shape;
  relu_ops_status status = shape_of(&shape, a->op, a->op->output_terms[k], inputs);
  if (status) return status;
  if (out->ndim != shape.rank || !same_extents(shape.rank, out->shape, shape.extent))
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s.shape must be %s (not %s)", a->op->name, a->role,
                         a->spec->name, shape_text(shape.rank, shape.extent).text,
                         shape_text(out->ndim, out->shape).text);
  if (!repeats_elements(out)) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s%s has several elements in one place (strides in elements %s)",
                a->op->name, a->role, a->spec->name, shape_text(out->ndim, out->strides).text);
  return relu_ops_advise(RELU_OPS_ARGUMENT, "pass an array whose elements lie apart");
}

/* ---- all of a call ------------------------------------------------------------------------------- */

relu_ops_status relu_ops_check_arrays(const relu_ops_operator* op, const DLTensor* inputs,
                                      const DLTensor* outputs) {
  relu_ops_status status = RELU_OPS_OK;
  const Array first = array_of(op, inputs, outputs, 0);
  for (int32_t k = 0; !status && k < op->input_count + op->output_count; ++k) {
    Array a = array_of(op, inputs, outputs, k);
    status = check_array(&a, &first);
  }
  if (!status) status = check_input_shapes(op, inputs);
  for (int32_t k = 0; !status && k < op->output_count; ++k) {
    Array a = array_of(op, inputs, outputs, op->input_count + k);
    status = check_output(&a, k, inputs);
  }
  return status;
}

relu_ops_status relu_ops_check_options(const relu_ops_operator* op, const relu_ops_options* options) {
  if (options->threads < 0 || options->threads > RELU_OPS_MOST_THREADS)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "threads must be 1 to %d (not %" PRId32 ")",
                         RELU_OPS_MOST_THREADS, options->threads);
  if (options->stream && op->device_type == kDLCPU) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: stream must be NULL: this operator runs on the CPU", op->name);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "on the CPU the work is done when the call returns");
  }
  if ((options->threads || options->host) && op->device_type != kDLCPU) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: threads must be 0, and host NULL: this operator runs on a device",
                  op->name);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "pass the stream that it is put on");
  }
  if (options->host && (options->host->count < 1 || !options->host->run))
    return relu_ops_fail(RELU_OPS_ARGUMENT,
                         "%s: a host's threads must be at least 1, with a function that runs them (not "
                         "%" PRId32 "%s)",
                         op->name, options->host->count, options->host->run ? "" : ", NULL");
  return RELU_OPS_OK;
}

relu_ops_status relu_ops_refuse_overlap(const relu_ops_operator* op, int32_t output, int32_t input) {
  if (input < 0)
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: the outputs must not overlap or interleave in memory", op->name);
  else
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: out for %s must not overlap %s in memory%s", op->name,
                  op->outputs[output].name, op->inputs[input].name,
                  op->output_count == 1 ? ", unless it is the same, element for element" : "");
  return relu_ops_advise(RELU_OPS_ARGUMENT, "pass arrays that lie apart");
}

/* ---- arrays that are alike ------------------------------------------------------------------------ */

/* The number of elements of an array; 0 where its shape is none that an array can have, or empty. */
static inline int64_t count_elements(const DLTensor* x) {
  int64_t elements = 1;
  if (x->ndim < 0 || x->ndim > MAX_RANK || (x->ndim > 0 && !x->shape)) return 0;
  for (int32_t d = 0; d < x->ndim; ++d)
    if (x->shape[d] < 1 || __builtin_mul_overflow(elements, x->shape[d], &elements)) return 0;
  return elements <= INT64_MAX / (int64_t)sizeof(int64_t) ? elements : 0;
}

static inline bool is_compact(const DLTensor* x) {
  if (!x->strides) return true;
  int64_t compact = 1;
  for (int32_t d = x->ndim - 1; d >= 0; --d) {
    if (x->shape[d] != 1 && x->strides[d] != compact) return false;
    compact *= x->shape[d];
  }
  return true;
}

static inline bool is_right(const DLTensor* x, const DLTensor* first, const relu_ops_spec* spec,
                     int32_t device_type) {
  return same_dtype(x->dtype, spec->dtype) && (int32_t)x->device.device_type == device_type &&
         x->device.device_id == first->device.device_id && x->data &&
         (address_of(x) & (uintptr_t)(itemsize_of(spec) - 1)) == 0;
}

int64_t relu_ops_alike_elements(const relu_ops_operator* op, const DLTensor* inputs,
                                const DLTensor* outputs) {
  const DLTensor* first = &outputs[0];
  int64_t elements = count_elements(first);
  if (elements == 0) return 0;
  for (int32_t k = 0; k < op->input_count; ++k) {
    const DLTensor* x = &inputs[k];
    if (!is_right(x, first, &op->inputs[k], op->device_type)) return 0;
    if (is_number(&op->inputs[k]) ? x->ndim != 0 : !same_shape(x, first) || !is_compact(x)) return 0;
    if (!is_as_declared(op, inputs, k)) return 0;
  }
  for (int32_t k = 0; k < op->output_count; ++k) {
    const DLTensor* out = &outputs[k];
    if (!is_right(out, first, &op->outputs[k], op->device_type)) return 0;
    if (!same_shape(out, first) || !is_compact(out)) return 0;
  }
  return elements;
}

/* ---- shapes alone -------------------------------------------------------------------------------- */

/* The first array, where all others have its shape, and every input is as declared: then outputs of vectors
 * have that shape too. NULL otherwise. */
static const DLTensor* find_model(const relu_ops_operator* op, const DLTensor* inputs) {
  const DLTensor* model = NULL;
  for (int32_t k = 0; k < op->input_count; ++k) {
    const DLTensor* x = &inputs[k];
    if (is_number(&op->inputs[k]) ? x->ndim != 0 : model && !same_shape(x, model)) return NULL;
    if (!model && !is_number(&op->inputs[k])) {
      if (count_elements(x) == 0) return NULL;
      model = x;
    }
    if (!is_as_declared(op, inputs, k)) return NULL;
  }
  return model;
}

static relu_ops_status find_output_shape(const relu_ops_operator* op, int32_t k, const DLTensor* inputs,
                                         Shape* shape) {
  relu_ops_status status = shape_of(shape, op, op->output_terms[k], inputs);
  if (status || !is_too_large(shape->rank, shape->extent, itemsize_of(&op->outputs[k]))) return status;
  return relu_ops_fail(RELU_OPS_ARGUMENT, "the output %s of shape %s is larger than any memory",
                       op->outputs[k].name, shape_text(shape->rank, shape->extent).text);
}

static void give_shape(int32_t rank, const int64_t* extents, int32_t* to_rank, int64_t* to) {
  *to_rank = rank;
  for (int32_t d = 0; d < rank; ++d) to[d] = extents[d];
}

relu_ops_status relu_ops_output_shapes(const relu_ops_operator* op, const DLTensor* inputs, int32_t* ranks,
                                       int64_t (*shapes)[RELU_OPS_MAX_RANK]) {
  const DLTensor* model = op->takes_vectors ? find_model(op, inputs) : NULL;
  if (model) {
    for (int32_t k = 0; k < op->output_count; ++k)
      give_shape(model->ndim, model->shape, &ranks[k], shapes[k]);
    return RELU_OPS_OK;
  }
  relu_ops_status status = RELU_OPS_OK;
  for (int32_t k = 0; !status && k < op->input_count; ++k) {
    Array a = array_of(op, inputs, NULL, k);
    status = check_rank(&a);
    if (!status) status = check_extents(&a);
  }
  if (!status) status = check_input_shapes(op, inputs);
  for (int32_t k = 0; !status && k < op->output_count; ++k) {
    Shape shape;
    status = find_output_shape(op, k, inputs, &shape);
    if (!status) give_shape(shape.rank, shape.extent, &ranks[k], shapes[k]);
  }
  return status;
}
