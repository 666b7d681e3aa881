/* An operator of ours as a custom operator of onnxruntime: what the host asks about it, shapes before there
 * are arrays, and calls, on the session's own threads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "onnxruntime.h"
#include "shape.h"

static const HostedOperator* hosted(const OrtCustomOp* face) {
  return (const HostedOperator*)(const void*)face;
}

/* ---- errors -------------------------------------------------------------------------------------- */

/* This thread's message as a status of the host. */
OrtStatus* relu_ops_refuse_host(const Host* host, relu_ops_status status) {
  bool is_argument = status == RELU_OPS_ARGUMENT || status == RELU_OPS_TYPE;
  char text[4096];
  const char* hint = relu_ops_hint();
  snprintf(text, sizeof(text), "%s%s%s", relu_ops_message(), hint ? "; " : "", hint ? hint : "");
  return host->create_status(is_argument ? ORT_INVALID_ARGUMENT : ORT_FAIL, text);
}

/* ---- types --------------------------------------------------------------------------------------- */

/* The types of an array that operators and onnxruntime both have. */
static const struct {
  DLDataTypeCode code;
  uint8_t bits;
  int type; /* of onnxruntime */
} TYPES[] = {
    {kDLFloat, 32, 1}, {kDLUInt, 8, 2},   {kDLInt, 8, 3},     {kDLUInt, 16, 4},
    {kDLInt, 16, 5},   {kDLInt, 32, 6},   {kDLInt, 64, 7},    {kDLBool, 8, 9},
    {kDLFloat, 16, 10}, {kDLFloat, 64, 11}, {kDLUInt, 32, 12}, {kDLUInt, 64, 13},
    {kDLBfloat, 16, 16},
};

/* 0, which is no type, for one that onnxruntime has not. */
static int type_of(DLDataType dtype) {
  for (size_t k = 0; k < sizeof(TYPES) / sizeof(*TYPES); ++k)
    if (TYPES[k].code == dtype.code && TYPES[k].bits == dtype.bits) return TYPES[k].type;
  return 0;
}

/* ---- what a host asks about an operator ---------------------------------------------------------- */

static const char* get_name(const OrtCustomOp* face) {
  return hosted(face)->name;
}

static const char* get_provider(const OrtCustomOp* face) {
  (void)face;
  return NULL; /* the CPU's */
}

static int get_input_type(const OrtCustomOp* face, size_t k) {
  return type_of(hosted(face)->op->inputs[k].dtype);
}

static size_t get_input_count(const OrtCustomOp* face) {
  return (size_t)hosted(face)->op->input_count;
}

static int get_output_type(const OrtCustomOp* face, size_t k) {
  return type_of(hosted(face)->op->outputs[k].dtype);
}

static size_t get_output_count(const OrtCustomOp* face) {
  return (size_t)hosted(face)->op->output_count;
}

/* Every input and output is required, lies where the provider computes, and none is variadic. */
static int required(const OrtCustomOp* face, size_t k) {
  (void)face, (void)k;
  return 0;
}

static int default_memory(const OrtCustomOp* face, size_t k) {
  (void)face, (void)k;
  return 0;
}

static int one(const OrtCustomOp* face) {
  (void)face;
  return 1;
}

static int any_version(const OrtCustomOp* face) {
  (void)face;
  return INT32_MAX;
}

/* The one output may be an input's memory: onnxruntime takes what has its shape and the size of its
 * elements, and is used by nothing else; see relu_ops_call. It does not say which operator it asks about,
 * and passes over inputs that there are not. */
static int in_place_inputs[] = {0, 1, 2, 3, 4, 5, 6, 7};
static int in_place_outputs[] = {0, 0, 0, 0, 0, 0, 0, 0};

static size_t get_in_place(int** inputs, int** outputs) {
  *inputs = in_place_inputs;
  *outputs = in_place_outputs;
  return sizeof(in_place_inputs) / sizeof(*in_place_inputs);
}

static void release_in_place(int* inputs, int* outputs) {
  (void)inputs, (void)outputs;
}

/* ---- shapes, before there are arrays ------------------------------------------------------------- */

/* An extent; or -1 and a symbol; or -1 and "", of which nothing is known. */
typedef struct {
  int64_t extent;
  const char* symbol;
} Dim;

typedef struct {
  size_t rank;
  Dim dims[MAX_RANK];
} DimShape;

static const Dim unit_dim = {1, ""};

static Dim broadcast_dim(Dim a, Dim b) {
  if (a.extent == 1) return b;
  if (b.extent == 1) return a;
  if (a.extent >= 0) return a;
  if (b.extent >= 0) return b;
  return strcmp(a.symbol, b.symbol) == 0 ? a : (Dim){-1, ""};
}

/* Broadcast a shape with that of an array in a view: as broadcast_into of shape.h does it with extents. */
static bool broadcast_dims(DimShape* to, const DimShape* from, Seen seen) {
  size_t whole = from->rank + (size_t)seen.trailing;
  if (whole > MAX_RANK) return false;
  while (to->rank < whole) {
    memmove(to->dims + 1, to->dims, sizeof(*to->dims) * to->rank);
    to->dims[0] = unit_dim;
    to->rank++;
  }
  for (size_t d = 0; d < from->rank; ++d) {
    Dim dim = from->dims[d], *into = &to->dims[to->rank - whole + d];
    if (whole - 1 - d == (size_t)seen.axis && seen.block > 1)
      dim = (Dim){dim.extent < 0 ? -1 : dim.extent * seen.block, ""};
    *into = broadcast_dim(*into, dim);
  }
  return true;
}

/* Whether a host refused something; what it says of that is let go. */
static bool refused(const Host* host, OrtStatus* status) {
  if (status) host->release_status(status);
  return status != NULL;
}

/* What is known of an input. False where that is nothing: an array without a shape looks to us like a
 * single number. */
static bool infer_input(const HostedOperator* h, const OrtShapeInferContext* context, int32_t k,
                        DimShape* shape) {
  OrtTensorTypeAndShapeInfo* info; /* the context's */
  int64_t extents[MAX_RANK];
  const char* symbols[MAX_RANK];
  const Host* host = h->host;
  if (refused(host, host->get_inferred(context, (size_t)k, &info))) return false;
  if (refused(host, host->get_rank(info, &shape->rank))) return false;
  if (shape->rank > MAX_RANK || (shape->rank == 0 && h->op->inputs[k].rank != 0)) return false;
  if (refused(host, host->get_dimensions(info, extents, shape->rank)) ||
      refused(host, host->get_symbols(info, symbols, shape->rank)))
    return false;
  for (size_t d = 0; d < shape->rank; ++d) shape->dims[d] = (Dim){extents[d], symbols[d]};
  return true;
}

static DimShape constant_shape(const Term* term) {
  DimShape shape = {.rank = (size_t)term->rank};
  for (size_t d = 0; d < shape.rank; ++d) shape.dims[d] = (Dim){term->dims[d], ""};
  return shape;
}

static bool infer_output(const HostedOperator* h, const OrtShapeInferContext* context, Terms terms,
                         DimShape* shape) {
  shape->rank = 0;
  for (int32_t k = 0; k < terms.count; ++k) {
    const Term* term = &terms.terms[k];
    DimShape seen;
    if (term->input < 0) seen = constant_shape(term);
    else if (!infer_input(h, context, term->input, &seen)) return false;
    if (!broadcast_dims(shape, &seen, term->seen)) return false;
  }
  return true;
}

/* onnxruntime takes dimensions of one name for equal, and has no word for one that is not known: each gets a
 * name that no other has. */
static OrtStatus* set_dims(const Host* host, OrtTensorTypeAndShapeInfo* info, const DimShape* shape) {
  static atomic_uint unknown;
  int64_t extents[MAX_RANK];
  const char* symbols[MAX_RANK];
  char names[MAX_RANK][32];
  for (size_t d = 0; d < shape->rank; ++d) {
    extents[d] = shape->dims[d].extent;
    symbols[d] = shape->dims[d].symbol;
    if (extents[d] >= 0 || symbols[d][0]) continue;
    snprintf(names[d], sizeof(names[d]), "relu_ops_unknown_%u", atomic_fetch_add(&unknown, 1));
    symbols[d] = names[d];
  }
  OrtStatus* status = host->set_dimensions(info, extents, shape->rank);
  return status ? status : host->set_symbols(info, symbols, shape->rank);
}

static OrtStatus* set_output(const HostedOperator* h, const OrtShapeInferContext* context, int32_t k,
                             const DimShape* shape) {
  const Host* host = h->host;
  OrtTensorTypeAndShapeInfo* info;
  OrtStatus* status = host->create_info(&info);
  if (status) return status;
  status = host->set_element_type(info, type_of(h->op->outputs[k].dtype));
  if (!status) status = set_dims(host, info, shape);
  if (!status) status = host->set_inferred(context, (size_t)k, info);
  host->release_info(info);
  return status;
}

static OrtStatus* infer_shapes(const OrtCustomOp* face, OrtShapeInferContext* context) {
  const HostedOperator* h = hosted(face);
  OrtStatus* status = NULL;
  for (int32_t k = 0; !status && k < h->op->output_count; ++k) {
    DimShape shape;
    if (infer_output(h, context, h->op->output_terms[k], &shape)) status = set_output(h, context, k, &shape);
  }
  return status;
}

/* ---- computing ----------------------------------------------------------------------------------- */

/* A call's arrays: the inputs, then the outputs. */
typedef struct {
  DLTensor* tensors;
  int64_t (*shapes)[MAX_RANK];
  int32_t* ranks; /* of outputs */
} Arrays;

/* Arrays of usual operators lie on the stack. */
#define STACK_ARRAYS 16

/* How many bytes a thread must have to do, where there are several: as many as make a call of ours use two,
 * see settings.c. */
#define BYTES_PER_THREAD (32 << 10)

static OrtStatus* read_shape(const HostedOperator* h, const OrtValue* value, const relu_ops_spec* spec,
                             DLTensor* tensor, int64_t* room) {
  const Host* host = h->host;
  OrtTensorTypeAndShapeInfo* info;
  size_t rank;
  OrtStatus* status = host->get_info(value, &info);
  if (status) return status;
  status = host->get_rank(info, &rank);
  if (!status && rank > MAX_RANK) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: %s has %zu dimensions; at most %d are supported", h->op->name,
                  spec->name, rank, MAX_RANK);
    status = relu_ops_refuse_host(host, RELU_OPS_ARGUMENT);
  }
  if (!status) status = host->get_dimensions(info, room, rank);
  host->release_info(info);
  if (status) return status;
  tensor->ndim = (int32_t)rank;
  tensor->shape = room;
  return NULL;
}

/* From version 24 on a shape is where the host has it, and nothing is allocated to read it. */
static OrtStatus* refer_to_shape(const Host* host, const OrtValue* value, DLTensor* tensor) {
  int type;
  const int64_t* dims;
  size_t rank;
  OrtStatus* status = host->refer_to_shape(value, &type, &dims, &rank);
  if (status) return status;
  tensor->ndim = (int32_t)rank;
  tensor->shape = (int64_t*)dims; /* which nobody writes */
  return NULL;
}

static OrtStatus* take_input(const HostedOperator* h, OrtKernelContext* context, int32_t k, Arrays arrays) {
  const relu_ops_spec* spec = &h->op->inputs[k];
  DLTensor* tensor = &arrays.tensors[k];
  const OrtValue* value;
  OrtStatus* status = h->host->get_input(context, (size_t)k, &value);
  if (status) return status;
  *tensor = (DLTensor){.device = {kDLCPU, 0}, .dtype = spec->dtype};
  status = h->host->refer_to_shape ? refer_to_shape(h->host, value, tensor)
                                   : read_shape(h, value, spec, tensor, arrays.shapes[k]);
  return status ? status : h->host->get_data((OrtValue*)value, &tensor->data);
}

static OrtStatus* make_output(const HostedOperator* h, OrtKernelContext* context, int32_t k, Arrays arrays) {
  int32_t number = h->op->input_count + k;
  DLTensor* tensor = &arrays.tensors[number];
  *tensor = (DLTensor){.device = {kDLCPU, 0}, .dtype = h->op->outputs[k].dtype};
  tensor->ndim = arrays.ranks[k];
  tensor->shape = arrays.shapes[number];
  OrtValue* value;
  OrtStatus* status =
      h->host->get_output(context, (size_t)k, tensor->shape, (size_t)tensor->ndim, &value);
  return status ? status : h->host->get_data(value, &tensor->data);
}

/* A call that the host's threads share. */
typedef struct {
  const Host* host;
  OrtKernelContext* context;
  relu_ops_task task;
  void* argument;
  int64_t chunks;
  OrtStatus* status;
} Shared;

static void run_one(void* shared, size_t chunk) {
  const Shared* s = shared;
  s->task(s->argument, (int64_t)chunk, s->chunks);
}

static void run_shared(void* host, relu_ops_task task, void* argument, int64_t chunks) {
  Shared* s = host;
  s->task = task;
  s->argument = argument;
  s->chunks = chunks;
  if (!s->status) s->status = s->host->parallel_for(s->context, run_one, (size_t)chunks, 0, s);
}

static int64_t bytes_of(const DLTensor* x) {
  int64_t bytes = x->dtype.bits / 8;
  for (int32_t d = 0; d < x->ndim; ++d)
    if (__builtin_mul_overflow(bytes, x->shape[d], &bytes)) return INT32_MAX;
  return bytes < INT32_MAX ? bytes : INT32_MAX; /* enough for every thread */
}

/* How many threads a call is divided for. Whether the session has as many is not for us to know; a chunk
 * that nobody else takes costs 0.1 us. */
static int32_t threads_of(const HostedOperator* h, Arrays arrays) {
  int32_t count = h->op->input_count + h->op->output_count;
  int64_t bytes = 0;
  for (int32_t k = 0; k < count; ++k) bytes += bytes_of(&arrays.tensors[k]);
  int64_t threads = bytes / BYTES_PER_THREAD;
  return threads < 1 ? 1 : threads < h->threads ? (int32_t)threads : h->threads;
}

static OrtStatus* compute_arrays(const HostedOperator* h, OrtKernelContext* context, Arrays arrays) {
  const relu_ops_operator* op = h->op;
  int64_t (*shapes)[MAX_RANK] = arrays.shapes + op->input_count;
  OrtStatus* failed = NULL;
  for (int32_t k = 0; !failed && k < op->input_count; ++k) failed = take_input(h, context, k, arrays);
  if (failed) return failed;
  relu_ops_status status = relu_ops_output_shapes(op, arrays.tensors, arrays.ranks, shapes);
  if (status) return relu_ops_refuse_host(h->host, status);
  for (int32_t k = 0; !failed && k < op->output_count; ++k) failed = make_output(h, context, k, arrays);
  if (failed) return failed;
  Shared shared = {.host = h->host, .context = context};
  relu_ops_host_threads threads = {run_shared, &shared, threads_of(h, arrays)};
  relu_ops_options options = {.host = &threads};
  status = relu_ops_call(op, arrays.tensors, arrays.tensors + op->input_count, &options);
  return status ? relu_ops_refuse_host(h->host, status) : shared.status;
}

static OrtStatus* compute_many(const HostedOperator* h, OrtKernelContext* context, size_t count) {
  struct {
    DLTensor tensor;
    int64_t shape[MAX_RANK];
    int64_t rank;
  } each;
  unsigned char* block = malloc(count * sizeof(each));
  if (!block) {
    relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory for %zu arrays", h->op->name, count);
    return relu_ops_refuse_host(h->host, RELU_OPS_MEMORY);
  }
  Arrays arrays = {.tensors = (DLTensor*)(void*)block};
  arrays.shapes = (int64_t (*)[MAX_RANK])(void*)(arrays.tensors + count);
  arrays.ranks = (int32_t*)(void*)(arrays.shapes + count);
  OrtStatus* status = compute_arrays(h, context, arrays);
  free(block);
  return status;
}

static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const HostedOperator* h = kernel;
  size_t count = (size_t)h->op->input_count + (size_t)h->op->output_count;
  if (count > STACK_ARRAYS) return compute_many(h, context, count);
  DLTensor tensors[STACK_ARRAYS];
  int64_t shapes[STACK_ARRAYS][MAX_RANK];
  int32_t ranks[STACK_ARRAYS];
  return compute_arrays(h, context, (Arrays){tensors, shapes, ranks});
}

/* A node has nothing of its own. */
static OrtStatus* create_kernel(const OrtCustomOp* face, const OrtFunction* api, const OrtKernelInfo* info,
                                void** kernel) {
  (void)api, (void)info;
  *kernel = (void*)face;
  return NULL;
}

static void destroy_kernel(void* kernel) {
  (void)kernel;
}

/* ---- the face ------------------------------------------------------------------------------------ */

static OrtCustomOp face_of(const Host* host, const relu_ops_operator* op) {
  bool in_place = op->output_count == 1;
  return (OrtCustomOp){
      .version = host->version < ORT_IN_PLACE_FROM ? ORT_OLDEST : ORT_IN_PLACE_FROM,
      .get_name = get_name,
      .get_provider = get_provider,
      .get_input_type = get_input_type,
      .get_input_count = get_input_count,
      .get_output_type = get_output_type,
      .get_output_count = get_output_count,
      .destroy_kernel = destroy_kernel,
      .get_input_characteristic = required,
      .get_output_characteristic = required,
      .get_input_memory = default_memory,
      .get_variadic_input_least = one,
      .get_variadic_input_homogeneous = one,
      .get_variadic_output_least = one,
      .get_variadic_output_homogeneous = one,
      .create_kernel_v2 = create_kernel,
      .compute_v2 = compute,
      .infer_shapes = infer_shapes,
      .get_start_version = one,
      .get_end_version = any_version,
      .get_in_place = in_place ? get_in_place : NULL,
      .release_in_place = in_place ? release_in_place : NULL,
  };
}

static relu_ops_status check_types(const relu_ops_operator* op, const relu_ops_spec* specs, int32_t count) {
  for (int32_t k = 0; k < count; ++k)
    if (type_of(specs[k].dtype) == 0)
      return relu_ops_fail(RELU_OPS_TYPE, "%s: %s is of %s, which onnxruntime has not", op->name,
                           specs[k].name, relu_ops_dtype_name(specs[k].dtype).text);
  return RELU_OPS_OK;
}

relu_ops_status relu_ops_host_operator(HostedOperator* h, const Host* host, const relu_ops_operator* op,
                                       int32_t threads) {
  relu_ops_status status = check_types(op, op->inputs, op->input_count);
  if (!status) status = check_types(op, op->outputs, op->output_count);
  if (status) return status;
  h->face = face_of(host, op);
  h->host = host;
  h->op = op;
  h->threads = threads;
  return RELU_OPS_OK;
}
