/* Plans the loops over the arrays of a call: the same for every operator and device.
 *
 * Nothing is written before everything is checked: the arrays by check.c, where they overlap here.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "plan.h"
#include "shape.h"

static Plan* plan_at(void* block, const relu_ops_operator* op, int32_t device,
                     const relu_ops_options* options) {
  Plan* plan = (Plan*)block;
  plan->op = op;
  plan->device = device;
  plan->stride = (int64_t(*)[MAX_RANK])(plan + 1);
  plan->data = (char**)(plan->stride + op->operand_count);
  plan->spare = plan->data + op->operand_count;
  plan->next = NULL;
  plan->threads = options ? options->threads : 0;
  plan->host = options ? options->host : NULL;
  return plan;
}

/* The tensor of an operand; NULL for a constant. */
static const DLTensor* tensor_of(const relu_ops_operator* op, const DLTensor* inputs,
                                 const DLTensor* outputs, int32_t k) {
  if (k >= op->leaf_count) return &outputs[k - op->leaf_count];
  int32_t input = op->leaves[k].input;
  return input >= 0 ? &inputs[input] : NULL;
}

static char* data_of(const relu_ops_operator* op, const DLTensor* x, int32_t k) {
  return x ? (char*)address_of(x) : (char*)op->leaves[k].constant;
}

/* ---- where arrays overlap ------------------------------------------------------------------------ */

/* From the first byte of an array to the one past its last; nothing, where it is empty. */
typedef struct {
  uintptr_t low, past;
} Span;

static bool are_apart(Span a, Span b) {
  return a.past <= b.low || b.past <= a.low;
}

static Span span_of(const DLTensor* x, const char* data, int64_t itemsize) {
  Span span = {(uintptr_t)data, (uintptr_t)data + (uintptr_t)itemsize};
  int64_t compact = 1;
  if (is_empty(x->ndim, x->shape)) return (Span){0, 0};
  for (int32_t d = x->ndim - 1; d >= 0; --d) {
    int64_t stride = x->strides ? x->strides[d] : compact;
    if (x->shape[d] == 1) continue;
    int64_t reach = stride * (x->shape[d] - 1) * itemsize;
    if (reach < 0) span.low -= (uintptr_t)-reach;
    else span.past += (uintptr_t)reach;
    compact *= x->shape[d];
  }
  return span;
}

/* Of several outputs, each lies apart from the others and from every input: one may be written long before
 * what it overlaps is read. The plan's room for strides is used for the spans until it is planned: with 512
 * outputs there are 400,000 pairs. */
static relu_ops_status check_all_apart(Plan* plan, const DLTensor* inputs, const DLTensor* outputs) {
  const relu_ops_operator* op = plan->op;
  Span* spans = (Span*)plan->stride;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    const DLTensor* x = tensor_of(op, inputs, outputs, k);
    spans[k] = x ? span_of(x, data_of(op, x, k), op->itemsizes[k]) : (Span){0, 0};
  }
  for (int32_t out = op->leaf_count; out < op->operand_count; ++out)
    for (int32_t k = 0; k < out; ++k)
      if (!are_apart(spans[k], spans[out]))
        return relu_ops_refuse_overlap(op, out - op->leaf_count,
                                       k < op->leaf_count ? op->leaves[k].input : -1);
  return RELU_OPS_OK;
}

static Span planned_span(const Plan* plan, int32_t k) {
  int64_t itemsize = plan->op->itemsizes[k];
  Span span = {(uintptr_t)plan->data[k], (uintptr_t)plan->data[k] + (uintptr_t)itemsize};
  for (int32_t d = 0; d < plan->rank; ++d) {
    int64_t reach = plan->stride[k][d] * (plan->extent[d] - 1) * itemsize;
    if (reach < 0) span.low -= (uintptr_t)-reach;
    else span.past += (uintptr_t)reach;
  }
  return span;
}

/* Whether an operand is the output, element for element. */
static bool is_itself(const Plan* plan, int32_t k, int32_t out) {
  bool same = plan->data[k] == plan->data[out] && plan->op->itemsizes[k] == plan->op->itemsizes[out];
  for (int32_t d = 0; d < plan->rank; ++d)
    same &= plan->stride[k][d] == plan->stride[out][d] && plan->stride[out][d] != 0;
  return same;
}

/* The only output may be an input's own memory, element for element; any other overlap is refused. */
static relu_ops_status check_overlap(const Plan* plan) {
  const relu_ops_operator* op = plan->op;
  int32_t out = op->leaf_count;
  Span written = planned_span(plan, out);
  for (int32_t k = 0; k < out; ++k) {
    if (op->leaves[k].input < 0 || are_apart(planned_span(plan, k), written)) continue;
    if (!is_itself(plan, k, out)) return relu_ops_refuse_overlap(op, 0, op->leaves[k].input);
  }
  return RELU_OPS_OK;
}

/* ---- planning ------------------------------------------------------------------------------------ */

/* Strides of an operand along the dimensions of the iteration. */
static void lay_out(int64_t* stride, const Shape* iteration, int32_t rank, const int64_t* dims,
                    const int64_t* strides, Seen seen) {
  int64_t compact = 1;
  for (int32_t d = 0; d < iteration->rank; ++d) stride[d] = 0;
  for (int32_t d = rank - 1; d >= 0; --d) {
    if (dims[d] != 1) {
      /* Every operand broadcasts into the iteration, leading unit dimensions aside. */
      stride[iteration->rank - rank - seen.trailing + d] = strides ? strides[d] : compact;
    }
    compact *= dims[d];
  }
}

/* True where dimension a should be outside of b: by the first operand that tells them apart. */
static bool is_outer(const Plan* plan, int32_t a, int32_t b) {
  for (int32_t k = plan->op->operand_count - 1; k >= 0; --k) { /* outputs first */
    int64_t x = llabs(plan->stride[k][a]), y = llabs(plan->stride[k][b]);
    if (x != 0 && y != 0 && x != y) return x > y;
  }
  return false;
}

static void swap_dims(Plan* plan, int32_t a, int32_t b) {
  int64_t t = plan->extent[a];
  plan->extent[a] = plan->extent[b];
  plan->extent[b] = t;
  for (int32_t k = 0; k < plan->op->operand_count; ++k) {
    t = plan->stride[k][a];
    plan->stride[k][a] = plan->stride[k][b];
    plan->stride[k][b] = t;
  }
}

/* Drop unit dimensions, order the rest by stride, merge what lies alike in every operand. */
static void collapse(Plan* plan) {
  int32_t operands = plan->op->operand_count, rank = 0, last = 0;
  for (int32_t d = 0; d < plan->rank; ++d)
    if (plan->extent[d] != 1) swap_dims(plan, rank++, d);
  for (int32_t d = 1; d < rank; ++d)
    for (int32_t e = d; e > 0 && is_outer(plan, e, e - 1); --e) swap_dims(plan, e, e - 1);
  for (int32_t d = 1; d < rank; ++d) {
    bool alike = true;
    for (int32_t k = 0; k < operands; ++k)
      alike &= plan->stride[k][last] == plan->stride[k][d] * plan->extent[d];
    if (!alike) {
      swap_dims(plan, ++last, d);
      continue;
    }
    plan->extent[last] *= plan->extent[d];
    for (int32_t k = 0; k < operands; ++k) plan->stride[k][last] = plan->stride[k][d];
  }
  plan->rank = rank ? last + 1 : 0;
}

/* Let an operand read or write one spare element, wherever the iteration is. */
static void spare(Plan* plan, int32_t k) {
  plan->data[k] = (char*)plan->spare + k * (int32_t)sizeof(int64_t);
  memset(plan->data[k], 0, sizeof(int64_t));
  memset(plan->stride[k], 0, sizeof(plan->stride[k]));
}

/* Split dimension d into blocks: outside over the blocks, inside over the elements of one. */
static void split_dim(Plan* plan, int32_t d, int32_t axis, int64_t block) {
  const relu_ops_operator* op = plan->op;
  size_t right = sizeof(int64_t) * (size_t)(plan->rank - d);
  memmove(plan->extent + d + 1, plan->extent + d, right);
  plan->extent[d] /= block;
  plan->extent[d + 1] = block;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    int64_t* stride = plan->stride[k];
    memmove(stride + d + 1, stride + d, right);
    bool repeated = k < op->leaf_count && op->leaves[k].seen.block == block &&
                    op->leaves[k].seen.axis == axis && block > 1;
    if (repeated) stride[d + 1] = 0;
    else stride[d] *= block;
  }
  plan->rank++;
}

/* Give every dimension that a leaf repeats in blocks a dimension for the block. The dimensions
 * left of it go first, since each split moves what lies left of it. */
static relu_ops_status split_blocks(Plan* plan) {
  const relu_ops_operator* op = plan->op;
  int32_t whole = plan->rank;
  for (int32_t axis = whole - 1; axis >= 0; --axis)
    for (int32_t k = 0; k < op->leaf_count; ++k) {
      Seen seen = op->leaves[k].seen;
      int32_t d = whole - 1 - axis + (plan->rank - whole);
      if (seen.block < 2 || seen.axis != axis || plan->extent[d] % seen.block != 0) continue;
      if (plan->rank == MAX_RANK)
        return relu_ops_fail(RELU_OPS_ARGUMENT,
                             "%s: with a dimension for each that is read in blocks, the inputs have more "
                             "than %d dimensions, which is the most that is supported",
                             op->name, MAX_RANK);
      split_dim(plan, d, axis, seen.block);
      break;
    }
  return RELU_OPS_OK;
}

/* As many as there can be, where outputs of several shapes make it more. */
static int64_t bytes_moved(const Plan* plan) {
  int64_t elements = 1, itemsizes = 0, bytes;
  bool fit = true;
  for (int32_t d = 0; d < plan->rank; ++d)
    fit &= !__builtin_mul_overflow(elements, plan->extent[d], &elements);
  for (int32_t k = 0; k < plan->op->operand_count; ++k)
    if (plan->rank == 0 || plan->stride[k][0] != 0) itemsizes += plan->op->itemsizes[k];
  return fit && !__builtin_mul_overflow(elements, itemsizes, &bytes) ? bytes : INT64_MAX;
}

/* Plan one pass over an iteration: for all outputs, or for the only one. What an iteration does
 * not reach, or what is empty, cannot matter to the outputs that it computes: it is spared. */
static relu_ops_status plan_pass(Plan* plan, const DLTensor* inputs, const DLTensor* outputs,
                                 const Shape* iteration, int32_t only) {
  const relu_ops_operator* op = plan->op;
  plan->rank = iteration->rank;
  for (int32_t d = 0; d < plan->rank; ++d)
    plan->extent[d] = iteration->extent[d] == 0 ? 1 : iteration->extent[d];
  bool written = false;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    const Leaf* leaf = k < op->leaf_count ? &op->leaves[k] : NULL;
    const DLTensor* x = tensor_of(op, inputs, outputs, k);
    int32_t rank = x ? x->ndim : leaf->rank;
    const int64_t* dims = x ? x->shape : leaf->dims;
    Seen seen = leaf ? leaf->seen : AS_IT_IS;
    bool other = !leaf && only >= 0 && only != k - op->leaf_count;
    if (other || is_empty(rank, dims) || !fits(rank, dims, seen, iteration)) {
      spare(plan, k);
      continue;
    }
    written |= !leaf;
    plan->data[k] = data_of(op, x, k);
    lay_out(plan->stride[k], iteration, rank, dims, x ? x->strides : NULL, seen);
  }
  if (!written) {
    plan->rank = -1; /* nothing to compute */
    return RELU_OPS_OK;
  }
  relu_ops_status status = split_blocks(plan);
  if (status) return status;
  collapse(plan);
  plan->bytes = bytes_moved(plan);
  return op->output_count == 1 ? check_overlap(plan) : RELU_OPS_OK;
}

/* One pass for all outputs, or one for each where their shapes do not broadcast together. */
static relu_ops_status plan_passes(Plan* plan, const DLTensor* inputs, const DLTensor* outputs) {
  const relu_ops_operator* op = plan->op;
  Shape iteration = {0, {0}};
  bool together = true;
  for (int32_t k = 0; together && k < op->output_count; ++k)
    together = broadcast_into(&iteration, outputs[k].ndim, outputs[k].shape, AS_IT_IS) == TOGETHER;
  if (together) return plan_pass(plan, inputs, outputs, &iteration, -1);
  relu_ops_status status = RELU_OPS_OK;
  const relu_ops_options same = {.threads = plan->threads, .host = plan->host};
  for (int32_t k = 0; !status && k < op->output_count; ++k) {
    if (k) plan = plan->next = plan_at((char*)plan + plan_size(op), op, plan->device, &same);
    Shape own = {0, {0}};
    broadcast_into(&own, outputs[k].ndim, outputs[k].shape, AS_IT_IS);
    status = plan_pass(plan, inputs, outputs, &own, k);
  }
  return status;
}

/* ---- vectors ------------------------------------------------------------------------------------- */

/* Whether something is seen as it is, and is no array constant. */
static bool is_plain(int32_t input, int32_t rank, Seen seen) {
  return seen.trailing == 0 && seen.block == 1 && (input >= 0 || rank == 0);
}

static bool are_plain(Terms terms) {
  for (int32_t t = 0; t < terms.count; ++t)
    if (!is_plain(terms.terms[t].input, terms.terms[t].rank, terms.terms[t].seen)) return false;
  return true;
}

/* Whether a shape is that of the arrays, where they all have one, and not that of a single number. */
static bool have_array(const relu_ops_operator* op, Terms terms) {
  for (int32_t t = 0; t < terms.count; ++t)
    if (terms.terms[t].input >= 0 && !is_number(&op->inputs[terms.terms[t].input])) return true;
  return false;
}

static bool takes_vectors(const relu_ops_operator* op) {
  bool answer = true;
  for (int32_t k = 0; k < op->leaf_count; ++k)
    answer &= is_plain(op->leaves[k].input, op->leaves[k].rank, op->leaves[k].seen);
  for (int32_t k = 0; k < op->output_count; ++k)
    answer &= are_plain(op->output_terms[k]) && have_array(op, op->output_terms[k]);
  for (int32_t k = 0; k < op->requirement_count; ++k) {
    Terms terms = op->requirements[k].terms, into = op->requirements[k].into;
    answer &= are_plain(terms) && are_plain(into) && (!have_array(op, terms) || have_array(op, into));
  }
  return answer;
}

void relu_ops_find_vectors(relu_ops_operator* op) {
  op->takes_any_shape = op->takes_vectors = takes_vectors(op);
  for (int32_t k = 0; k < op->input_count; ++k) op->takes_any_shape &= op->inputs[k].rank <= 0;
  relu_ops_find_short_vectors(op);
}

/* Plan one pass over arrays that are alike, as a vector: what plan_pass would come to. */
static relu_ops_status plan_vector(Plan* plan, const DLTensor* inputs, const DLTensor* outputs,
                                   int64_t elements) {
  const relu_ops_operator* op = plan->op;
  plan->rank = elements > 1;
  plan->extent[0] = elements;
  for (int32_t k = 0; k < op->operand_count; ++k) {
    const DLTensor* x = tensor_of(op, inputs, outputs, k);
    plan->data[k] = data_of(op, x, k);
    plan->stride[k][0] = k >= op->leaf_count || (x && !is_number(&op->inputs[op->leaves[k].input]));
  }
  plan->bytes = bytes_moved(plan);
  return op->output_count == 1 ? check_overlap(plan) : RELU_OPS_OK;
}

/* ---- all of a call ------------------------------------------------------------------------------- */

relu_ops_status relu_ops_prepare(void* block, const relu_ops_operator* op, const DLTensor* inputs,
                                 const DLTensor* outputs, const relu_ops_options* options) {
  relu_ops_status status = options ? relu_ops_check_options(op, options) : RELU_OPS_OK;
  if (status) return status;
  int64_t alike = op->takes_vectors ? relu_ops_alike_elements(op, inputs, outputs) : 0;
  if (!alike) status = relu_ops_check_arrays(op, inputs, outputs);
  if (status) return status;
  Plan* plan = plan_at(block, op, outputs[0].device.device_id, options);
  if (op->output_count > 1) status = check_all_apart(plan, inputs, outputs);
  if (status) return status;
  return alike ? plan_vector(plan, inputs, outputs, alike) : plan_passes(plan, inputs, outputs);
}
