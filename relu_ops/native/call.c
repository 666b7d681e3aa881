/* Operators in use: what they are, calls, bound calls. */
#include <inttypes.h>
#include <stdlib.h>

#include "plan.h"
#include "run_cuda.h"
#include "shape.h"

/* ---- what an operator is ------------------------------------------------------------------------- */

const char* relu_ops_name(const relu_ops_operator* op) {
  return op->name;
}

const char* relu_ops_target(const relu_ops_operator* op) {
  return op->target;
}

DLDevice relu_ops_device(const relu_ops_operator* op) {
  return (DLDevice){(DLDeviceType)op->device_type, op->cuda.device};
}

int32_t relu_ops_input_count(const relu_ops_operator* op) {
  return op->input_count;
}

int32_t relu_ops_output_count(const relu_ops_operator* op) {
  return op->output_count;
}

static relu_ops_status give_spec(const relu_ops_operator* op, const char* what, int32_t count,
                                 const relu_ops_spec* specs, int32_t number, relu_ops_spec* spec) {
  if (number < 0 || number >= count)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: there is no %s number %" PRId32 ": it has %" PRId32
                         ", numbered from 0", op->name, what, number, count);
  *spec = specs[number];
  return RELU_OPS_OK;
}

relu_ops_status relu_ops_input(const relu_ops_operator* op, int32_t number, relu_ops_spec* spec) {
  return give_spec(op, "input", op->input_count, op->inputs, number, spec);
}

relu_ops_status relu_ops_output(const relu_ops_operator* op, int32_t number, relu_ops_spec* spec) {
  return give_spec(op, "output", op->output_count, op->outputs, number, spec);
}

const char* relu_ops_symbol(const relu_ops_operator* op, int32_t number) {
  return number >= 0 && number < op->symbol_count ? op->symbols[number] : NULL;
}

/* ---- calls --------------------------------------------------------------------------------------- */

/* Plans of usual operators lie on the stack: of one output and 54 leaves, or of 4 and 8. */
#define STACK_BYTES 8192

/* Room for the plans of a call. Outputs of one shape are computed in one pass, without a plan each: 512 of
 * as many inputs would need 75 MB. */
static size_t room_for(const relu_ops_operator* op, const DLTensor* outputs) {
  for (int32_t k = 1; k < op->output_count; ++k)
    if (!same_shape(&outputs[k], &outputs[0])) return plans_size(op);
  return plan_size(op);
}

static relu_ops_status refuse_memory(const relu_ops_operator* op, size_t size) {
  return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory for the plan of a call (%zu bytes)", op->name,
                       size);
}

/* Compute what was planned, or put it on a stream. */
static relu_ops_status run(const Plan* plan, void* stream) {
  if (is_for_cuda(plan->op)) return relu_ops_run_cuda(plan, stream);
  relu_ops_run_cpu(plan);
  return RELU_OPS_OK;
}

static relu_ops_status call_in(void* block, const relu_ops_operator* op, const DLTensor* inputs,
                               const DLTensor* outputs, const relu_ops_options* options) {
  relu_ops_status status = relu_ops_prepare(block, op, inputs, outputs, options);
  return status ? status : run(block, options ? options->stream : NULL);
}

static relu_ops_status call_large(const relu_ops_operator* op, const DLTensor* inputs,
                                  const DLTensor* outputs, const relu_ops_options* options) {
  size_t size = room_for(op, outputs);
  void* block = malloc(size);
  if (!block) return refuse_memory(op, size);
  relu_ops_status status = call_in(block, op, inputs, outputs, options);
  free(block);
  return status;
}

/* Whether there is nothing about a call's options that a few elements would have to heed or refuse. */
static bool are_usual(const relu_ops_options* options) {
  if (!options) return true;
  const relu_ops_host_threads* host = options->host;
  return host && host->run && host->count > 0 && !options->threads && !options->stream;
}

relu_ops_status relu_ops_call(const relu_ops_operator* op, const DLTensor* inputs, const DLTensor* outputs,
                              const relu_ops_options* options) {
  if (are_usual(options) && relu_ops_run_short(op, inputs, outputs)) return RELU_OPS_OK;
  if (plans_size(op) > STACK_BYTES) return call_large(op, inputs, outputs, options);
  _Alignas(Plan) unsigned char block[STACK_BYTES];
  return call_in(block, op, inputs, outputs, options);
}

/* ---- calls on vectors ---------------------------------------------------------------------------- */

/* Call with vectors as the tensors that they are. tensors: room for one each. */
static relu_ops_status call_as_tensors(const relu_ops_operator* op, void* const* data, int64_t* elements,
                                       const relu_ops_options* options, DLTensor* tensors) {
  for (int32_t k = 0; k < op->input_count + op->output_count; ++k) {
    const relu_ops_spec* spec = k < op->input_count ? &op->inputs[k] : &op->outputs[k - op->input_count];
    tensors[k] = (DLTensor){.data = data[k],
                            .device = relu_ops_device(op),
                            .ndim = spec->rank != 0,
                            .dtype = spec->dtype,
                            .shape = elements};
  }
  return relu_ops_call(op, tensors, tensors + op->input_count, options);
}

static relu_ops_status call_long_vectors(const relu_ops_operator* op, void* const* data, int64_t elements,
                                         const relu_ops_options* options) {
  DLTensor few[SHORT_OPERANDS] = {{.data = NULL}};
  size_t count = (size_t)op->input_count + (size_t)op->output_count;
  DLTensor* tensors = count > SHORT_OPERANDS ? calloc(count, sizeof(*tensors)) : few;
  if (!tensors) return refuse_memory(op, count * sizeof(*tensors));
  relu_ops_status status = call_as_tensors(op, data, &elements, options, tensors);
  if (tensors != few) free(tensors);
  return status;
}

relu_ops_status relu_ops_call_vectors(const relu_ops_operator* op, void* const* data, int64_t elements,
                                      const relu_ops_options* options) {
  if (!op->takes_any_shape) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "%s: its model has arrays of shapes that vectors do not have", op->name);
    return relu_ops_advise(RELU_OPS_ARGUMENT, "pass tensors, to relu_ops_call");
  }
  if (are_usual(options) && relu_ops_run_short_vectors(op, data, elements)) return RELU_OPS_OK;
  return call_long_vectors(op, data, elements, options);
}

/* ---- bound calls --------------------------------------------------------------------------------- */

struct relu_ops_bound {
  const relu_ops_operator* op;
  void* stream;
  Plan plan[]; /* the first, and what belongs to it and its followers */
};

static relu_ops_bound* new_bound(const relu_ops_operator* op, size_t size, void* stream) {
  relu_ops_bound* bound = malloc(sizeof(*bound) + size);
  if (!bound) return NULL;
  bound->op = op;
  bound->stream = stream;
  relu_ops_hold(op);
  return bound;
}

relu_ops_status relu_ops_bind(const relu_ops_operator* op, const DLTensor* inputs, const DLTensor* outputs,
                              const relu_ops_options* options, relu_ops_bound** bound) {
  size_t size = room_for(op, outputs);
  relu_ops_bound* made = new_bound(op, size, options ? options->stream : NULL);
  if (!made) return refuse_memory(op, size);
  relu_ops_status status = relu_ops_prepare(made->plan, op, inputs, outputs, options);
  if (status) relu_ops_free(made);
  else *bound = made;
  return status;
}

relu_ops_status relu_ops_run(const relu_ops_bound* bound) {
  return run(bound->plan, bound->stream);
}

relu_ops_status relu_ops_run_on(const relu_ops_bound* bound, void* stream) {
  if (is_for_cuda(bound->op)) return run(bound->plan, stream);
  return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: runs on the CPU, where there are no streams", bound->op->name);
}

void relu_ops_free(relu_ops_bound* bound) {
  if (!bound) return;
  relu_ops_release((relu_ops_operator*)bound->op);
  free(bound);
}
