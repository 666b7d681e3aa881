/* Checks arrays and plans the loops over them: the same for every operator and device.
 *
 * Nothing is written before everything is checked. An array that does not fit is an error that
 * names it; the Python runtime turns it into a full sentence.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#include "plan.h"

typedef struct {
  int32_t rank;
  int64_t extent[MAX_RANK];
} Shape;

/* ---- errors ------------------------------------------------------------------------------ */

int relu_ops_refuse(const char* kind, const char* name, const char* reason) {
  const char* parts[] = {OP.name, ": ", name, " ", reason};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 5);
  return -1;
}

/* ---- shapes ------------------------------------------------------------------------------ */

static const Seen AS_IT_IS = {0, 0, 1};

static int broadcast_into(Shape* to, int32_t rank, const int64_t* dims, Seen seen) {
  int32_t whole = rank + seen.trailing;
  if (whole > MAX_RANK) return -1;
  while (to->rank < whole) {
    memmove(to->extent + 1, to->extent, sizeof(int64_t) * (size_t)to->rank);
    to->extent[0] = 1;
    to->rank++;
  }
  for (int32_t d = 0; d < rank; ++d) {
    int64_t* extent = &to->extent[to->rank - whole + d];
    int64_t dim = dims[d] * (whole - 1 - d == seen.axis ? seen.block : 1);
    if (dim == 1 || dim == *extent) continue;
    if (*extent != 1) return -1;
    *extent = dim;
  }
  return 0;
}

static int shape_of(Shape* shape, Terms terms, const View* in) {
  shape->rank = 0;
  for (int k = 0; k < terms.count; ++k) {
    const Term* t = &terms.terms[k];
    const View* v = t->input < 0 ? NULL : &in[t->input];
    if (broadcast_into(shape, v ? v->rank : t->rank, v ? v->shape : t->dims, t->seen))
      return -1;
  }
  return 0;
}

static int check_dtype(const View* view, const char* name, uint8_t code, uint8_t bits) {
  if (view->dtype.code == code && view->dtype.bits == bits && view->dtype.lanes == 1) return 0;
  return relu_ops_refuse("TypeError", name, "has the wrong dtype");
}

static int check_input(const View* view, const InputSpec* spec, int64_t* symbols) {
  if (check_dtype(view, spec->name, spec->code, spec->bits)) return -1;
  if (view->rank > MAX_RANK) return relu_ops_refuse("ValueError", spec->name, "has too many dimensions");
  if (spec->rank < 0) return 0;
  if (view->rank != spec->rank) return relu_ops_refuse("ValueError", spec->name, "has the wrong rank");
  for (int d = 0; d < spec->rank; ++d) {
    int64_t declared = spec->dims[d], extent = view->shape[d];
    if (declared == FREE) continue;
    if (declared < FREE) {
      int64_t* symbol = &symbols[-2 - declared];
      if (*symbol < 0) *symbol = extent;
      declared = *symbol;
    }
    if (extent != declared) return relu_ops_refuse("ValueError", spec->name, "has the wrong shape");
  }
  return 0;
}

static int is_empty(int32_t rank, const int64_t* shape) {
  for (int32_t d = 0; d < rank; ++d)
    if (shape[d] == 0) return 1;
  return 0;
}

static int repeats_elements(const View* view) {
  if (!view->strides || is_empty(view->rank, view->shape)) return 0;
  for (int32_t d = 0; d < view->rank; ++d)
    if (view->strides[d] == 0 && view->shape[d] > 1) return 1;
  return 0;
}

static int check_output(const View* view, const OutputSpec* spec, const View* in) {
  Shape shape;
  if (shape_of(&shape, spec->shape, in))
    return relu_ops_refuse("ValueError", spec->name, "has inputs that do not broadcast together");
  if (view->rank != shape.rank ||
      memcmp(view->shape, shape.extent, sizeof(int64_t) * (size_t)shape.rank) != 0)
    return relu_ops_refuse("ValueError", spec->name, "has the wrong shape");
  if (repeats_elements(view))
    return relu_ops_refuse("ValueError", spec->name, "has several elements in one place");
  return 0;
}

/* True where an array in a view broadcasts into a shape, leading unit dimensions aside. */
static int fits(int32_t rank, const int64_t* dims, Seen seen, const Shape* into) {
  while (rank > 0 && rank + seen.trailing > into->rank && dims[0] == 1) --rank, ++dims;
  Shape both = *into;
  return rank + seen.trailing <= into->rank && !broadcast_into(&both, rank, dims, seen) &&
         memcmp(both.extent, into->extent, sizeof(int64_t) * (size_t)into->rank) == 0;
}

static int check_requirement(const Requirement* requirement, const View* in) {
  Shape terms, into;
  if (shape_of(&terms, requirement->terms, in) || shape_of(&into, requirement->into, in))
    return relu_ops_refuse("ValueError", requirement->what, "does not broadcast");
  if (!fits(terms.rank, terms.extent, AS_IT_IS, &into))
    return relu_ops_refuse("ValueError", requirement->what, "does not broadcast into its target");
  return 0;
}

/* All arrays lie on one device, which is the plan's. */
static int check_device(Plan* plan, const View* in, const View* out) {
  int32_t count = OP.input_count + OP.output_count;
  for (int k = 0; k < count; ++k) {
    const View* view = k < OP.input_count ? &in[k] : &out[k - OP.input_count];
    const char* name = k < OP.input_count ? OP.inputs[k].name : OP.outputs[k - OP.input_count].name;
    if (k == 0) plan->device = view->device;
    if (view->device != plan->device)
      return relu_ops_refuse("ValueError", name, "is on another device than the arrays before it");
  }
  return 0;
}

/* ---- planning ---------------------------------------------------------------------------- */

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
static int is_outer(const Plan* plan, int32_t a, int32_t b) {
  for (int k = OP.operand_count - 1; k >= 0; --k) { /* outputs first */
    int64_t x = llabs(plan->stride[k][a]), y = llabs(plan->stride[k][b]);
    if (x != 0 && y != 0 && x != y) return x > y;
  }
  return 0;
}

static void swap_dims(Plan* plan, int32_t a, int32_t b) {
  int64_t t = plan->extent[a];
  plan->extent[a] = plan->extent[b];
  plan->extent[b] = t;
  for (int k = 0; k < OP.operand_count; ++k) {
    t = plan->stride[k][a];
    plan->stride[k][a] = plan->stride[k][b];
    plan->stride[k][b] = t;
  }
}

/* Drop unit dimensions, order the rest by stride, merge what lies alike in every operand. */
static void collapse(Plan* plan) {
  int32_t rank = 0;
  for (int32_t d = 0; d < plan->rank; ++d)
    if (plan->extent[d] != 1) swap_dims(plan, rank++, d);
  for (int32_t d = 1; d < rank; ++d)
    for (int32_t e = d; e > 0 && is_outer(plan, e, e - 1); --e) swap_dims(plan, e, e - 1);
  int32_t last = 0;
  for (int32_t d = 1; d < rank; ++d) {
    int alike = 1;
    for (int k = 0; k < OP.operand_count; ++k)
      alike &= plan->stride[k][last] == plan->stride[k][d] * plan->extent[d];
    if (!alike) {
      swap_dims(plan, ++last, d);
      continue;
    }
    plan->extent[last] *= plan->extent[d];
    for (int k = 0; k < OP.operand_count; ++k) plan->stride[k][last] = plan->stride[k][d];
  }
  plan->rank = rank ? last + 1 : 0;
}

static void extent_in_bytes(const Plan* plan, int k, const char** low, const char** high) {
  const char *first = plan->data[k], *past = plan->data[k] + OP.itemsizes[k];
  for (int32_t d = 0; d < plan->rank; ++d) {
    int64_t reach = plan->stride[k][d] * (plan->extent[d] - 1) * OP.itemsizes[k];
    if (reach < 0) first += reach;
    else past += reach;
  }
  *low = first;
  *high = past;
}

/* An output may be an input's own memory, element for element; any other overlap is refused. */
static int check_overlap(const Plan* plan) {
  for (int out = OP.leaf_count; out < OP.operand_count; ++out) {
    const char *low, *high;
    extent_in_bytes(plan, out, &low, &high);
    for (int k = 0; k < out; ++k) {
      const char *other_low, *other_high;
      extent_in_bytes(plan, k, &other_low, &other_high);
      if (other_high <= low || high <= other_low) continue;
      int same = OP.output_count == 1 && plan->data[k] == plan->data[out] &&
                 OP.itemsizes[k] == OP.itemsizes[out];
      for (int32_t d = 0; d < plan->rank; ++d)
        same &= plan->stride[k][d] == plan->stride[out][d] && plan->stride[out][d] != 0;
      const char* name = OP.outputs[out - OP.leaf_count].name;
      if (!same) return relu_ops_refuse("ValueError", name, "overlaps another array");
    }
  }
  return 0;
}

/* Let an operand read or write one spare element, wherever the iteration is. */
static void spare(Plan* plan, int k) {
  plan->data[k] = (char*)plan->spare + k * (int)sizeof(int64_t);
  memset(plan->data[k], 0, sizeof(int64_t));
  memset(plan->stride[k], 0, sizeof(plan->stride[k]));
}

/* Split dimension d into blocks: outside over the blocks, inside over the elements of one. */
static void split_dim(Plan* plan, int32_t d, int32_t axis, int64_t block) {
  memmove(plan->extent + d + 1, plan->extent + d, sizeof(int64_t) * (size_t)(plan->rank - d));
  plan->extent[d] /= block;
  plan->extent[d + 1] = block;
  for (int k = 0; k < OP.operand_count; ++k) {
    int64_t* stride = plan->stride[k];
    memmove(stride + d + 1, stride + d, sizeof(int64_t) * (size_t)(plan->rank - d));
    int repeated = k < OP.leaf_count && OP.leaves[k].seen.block == block &&
                   OP.leaves[k].seen.axis == axis && block > 1;
    if (repeated) stride[d + 1] = 0;
    else stride[d] *= block;
  }
  plan->rank++;
}

/* Give every dimension that a leaf repeats in blocks a dimension for the block. The dimensions
 * left of it go first, since each split moves what lies left of it. */
static int split_blocks(Plan* plan) {
  int32_t whole = plan->rank;
  for (int32_t axis = whole - 1; axis >= 0; --axis)
    for (int k = 0; k < OP.leaf_count; ++k) {
      Seen seen = OP.leaves[k].seen;
      int32_t d = whole - 1 - axis + (plan->rank - whole);
      if (seen.block < 2 || seen.axis != axis || plan->extent[d] % seen.block != 0) continue;
      if (plan->rank == MAX_RANK) return -1;
      split_dim(plan, d, axis, seen.block);
      break;
    }
  return 0;
}

static int64_t bytes_moved(const Plan* plan) {
  int64_t elements = 1, bytes = 0;
  for (int32_t d = 0; d < plan->rank; ++d) elements *= plan->extent[d];
  for (int k = 0; k < OP.operand_count; ++k)
    if (plan->rank == 0 || plan->stride[k][0] != 0) bytes += elements * OP.itemsizes[k];
  return bytes;
}

/* Plan one pass over an iteration: for all outputs, or for the only one. What an iteration does
 * not reach, or what is empty, cannot matter to the outputs that it computes: it is spared. */
static int plan_pass(Plan* plan, const View* in, const View* out, const Shape* iteration,
                     int only) {
  plan->rank = iteration->rank;
  for (int32_t d = 0; d < plan->rank; ++d)
    plan->extent[d] = iteration->extent[d] == 0 ? 1 : iteration->extent[d];
  int written = 0;
  for (int k = 0; k < OP.operand_count; ++k) {
    const Leaf* leaf = k < OP.leaf_count ? &OP.leaves[k] : NULL;
    const View* v = !leaf ? &out[k - OP.leaf_count] : leaf->input >= 0 ? &in[leaf->input] : NULL;
    int32_t rank = v ? v->rank : leaf->rank;
    const int64_t* dims = v ? v->shape : leaf->dims;
    Seen seen = leaf ? leaf->seen : AS_IT_IS;
    int other = !leaf && only >= 0 && only != k - OP.leaf_count;
    if (other || is_empty(rank, dims) || !fits(rank, dims, seen, iteration)) {
      spare(plan, k);
      continue;
    }
    written |= !leaf;
    plan->data[k] = v ? v->data : (char*)leaf->constant;
    lay_out(plan->stride[k], iteration, rank, dims, v ? v->strides : NULL, seen);
  }
  if (!written) {
    plan->rank = -1; /* nothing to compute */
    return 0;
  }
  if (split_blocks(plan)) return relu_ops_refuse("ValueError", "the inputs", "have too many dimensions");
  collapse(plan);
  plan->bytes = bytes_moved(plan);
  return check_overlap(plan);
}

int64_t relu_ops_few_elements = 0;

static int has_few_elements(const View* view) {
  int64_t elements = 1;
  for (int32_t d = 0; d < view->rank; ++d)
    if (__builtin_mul_overflow(elements, view->shape[d], &elements)) return 0;
  return elements <= relu_ops_few_elements;
}

static int is_plain(int16_t input, int16_t rank, Seen seen) {
  return seen.trailing == 0 && seen.block == 1 && (input >= 0 || rank == 0);
}

/* Whether the operator sees its inputs as they are, and beside them single numbers alone: then arrays
 * of one shape are as good as vectors. */
static int takes_vectors(void) {
  static int known = -1; /* whoever asks first finds the same */
  int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (answer >= 0) return answer;
  answer = OP.requirement_count == 0;
  for (int k = 0; k < OP.leaf_count; ++k)
    answer &= is_plain(OP.leaves[k].input, OP.leaves[k].rank, OP.leaves[k].seen);
  for (int k = 0; k < OP.output_count; ++k) {
    int inputs = 0;
    for (int t = 0; t < OP.outputs[k].shape.count; ++t) {
      const Term* term = &OP.outputs[k].shape.terms[t];
      answer &= is_plain(term->input, term->rank, term->seen);
      inputs += term->input >= 0;
    }
    answer &= inputs > 0;
  }
  __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
  return answer;
}

/* Whether all arrays are compact and of one shape. */
static int are_alike(const View* in, const View* out) {
  const View* first = &out[0];
  for (int k = 0; k < OP.input_count + OP.output_count; ++k) {
    const View* view = k < OP.input_count ? &in[k] : &out[k - OP.input_count];
    if (view->strides || view->rank != first->rank) return 0;
    for (int32_t d = 0; d < first->rank; ++d)
      if (view->shape[d] != first->shape[d]) return 0;
  }
  return 1;
}

/* Plan one pass over arrays that are alike, as a vector: what plan_pass would come to. */
static int plan_vector(Plan* plan, const View* in, const View* out) {
  if (is_empty(out->rank, out->shape)) {
    plan->rank = -1;
    return 0;
  }
  int64_t n = 1;
  for (int32_t d = 0; d < out->rank; ++d) n *= out->shape[d];
  plan->rank = n > 1;
  plan->extent[0] = n;
  for (int k = 0; k < OP.operand_count; ++k) {
    const Leaf* leaf = k < OP.leaf_count ? &OP.leaves[k] : NULL;
    const View* v = !leaf ? &out[k - OP.leaf_count] : leaf->input >= 0 ? &in[leaf->input] : NULL;
    plan->data[k] = v ? v->data : (char*)leaf->constant;
    plan->stride[k][0] = v != NULL;
  }
  plan->bytes = bytes_moved(plan);
  return check_overlap(plan);
}

/* Check the arrays and plan the call: one pass for all outputs, or one for each where their shapes
 * do not broadcast together. */
int relu_ops_prepare(Plan* plan, const View* in, const View* out) {
  int64_t symbols[OP.symbol_count + 1];
  if (check_device(plan, in, out)) return -1;
  for (int k = 0; k < OP.symbol_count; ++k) symbols[k] = -1;
  for (int k = 0; k < OP.input_count; ++k)
    if (check_input(&in[k], &OP.inputs[k], symbols)) return -1;
  plan->keeps_gil = relu_ops_device_type == kDLCPU;
  for (int k = 0; k < OP.output_count; ++k) {
    const OutputSpec* spec = &OP.outputs[k];
    if (check_dtype(&out[k], spec->name, spec->code, spec->bits)) return -1;
    plan->keeps_gil &= has_few_elements(&out[k]);
  }
  if (takes_vectors() && are_alike(in, out)) return plan_vector(plan, in, out);
  Shape iteration = {0, {0}};
  int apart = 0;
  for (int k = 0; k < OP.output_count; ++k) {
    if (check_output(&out[k], &OP.outputs[k], in)) return -1;
    apart |= broadcast_into(&iteration, out[k].rank, out[k].shape, AS_IT_IS);
  }
  for (int k = 0; k < OP.requirement_count; ++k)
    if (check_requirement(&OP.requirements[k], in)) return -1;
  if (!apart) return plan_pass(plan, in, out, &iteration, -1);
  for (int k = 0; k < OP.output_count; ++k) {
    Shape own = {0, {0}};
    broadcast_into(&own, out[k].rank, out[k].shape, AS_IT_IS);
    if (plan_pass(plan, in, out, &own, k)) return -1;
    if (k + 1 < OP.output_count) {
      int32_t device = plan->device;
      plan = plan->next = plan_at((char*)plan + plan_size());
      plan->device = device;
    }
  }
  return 0;
}
