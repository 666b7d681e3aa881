/* The host side of every operator: checks arrays and plans loops; a run_*.c runs them.
 *
 * The same for all operators; a generated C file holds the tables of one: its inputs, outputs,
 * leaves, requirements and kernels, as entry.h declares them. Exports two tvm-ffi functions of the
 * arguments (inputs..., outputs..., and optionally the number of threads): `call` computes, `bind`
 * returns a function that computes on these same arrays again and again; `call_views` and
 * `bind_views`, which take the address of a description instead of arrays, for what DLPack cannot
 * express; and two functions by Python's own convention, which takes half as long: relu_ops_compute,
 * which reads NumPy arrays where they lie, and relu_ops_bound, which is bind_views.
 *
 * Nothing is written before everything is checked. An array that does not fit is an error that
 * names it; the Python runtime turns it into a full sentence.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "plan.h"

#define EXPORT __attribute__((visibility("default")))

/* An array as it was passed. Strides are in elements; NULL means compact. */
typedef struct {
  char* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t rank, device;
  DLDataType dtype;
} View;

typedef struct {
  int32_t rank;
  int64_t extent[MAX_RANK];
} Shape;

/* Room for one plan, or one per output: see prepare. */
static size_t plans_size(void) { return plan_size() * (size_t)OP.output_count; }

/* ---- errors ------------------------------------------------------------------------------ */

static int refuse(const char* kind, const char* name, const char* reason) {
  const char* parts[] = {OP.name, ": ", name, " ", reason};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 5);
  return -1;
}

static const Seen AS_IT_IS = {0, 0, 1};

/* ---- shapes ------------------------------------------------------------------------------ */

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
  return refuse("TypeError", name, "has the wrong dtype");
}

static int check_input(const View* view, const InputSpec* spec, int64_t* symbols) {
  if (check_dtype(view, spec->name, spec->code, spec->bits)) return -1;
  if (view->rank > MAX_RANK) return refuse("ValueError", spec->name, "has too many dimensions");
  if (spec->rank < 0) return 0;
  if (view->rank != spec->rank) return refuse("ValueError", spec->name, "has the wrong rank");
  for (int d = 0; d < spec->rank; ++d) {
    int64_t declared = spec->dims[d], extent = view->shape[d];
    if (declared == FREE) continue;
    if (declared < FREE) {
      int64_t* symbol = &symbols[-2 - declared];
      if (*symbol < 0) *symbol = extent;
      declared = *symbol;
    }
    if (extent != declared) return refuse("ValueError", spec->name, "has the wrong shape");
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
    return refuse("ValueError", spec->name, "has inputs that do not broadcast together");
  if (view->rank != shape.rank ||
      memcmp(view->shape, shape.extent, sizeof(int64_t) * (size_t)shape.rank) != 0)
    return refuse("ValueError", spec->name, "has the wrong shape");
  if (repeats_elements(view))
    return refuse("ValueError", spec->name, "has several elements in one place");
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
    return refuse("ValueError", requirement->what, "does not broadcast");
  if (!fits(terms.rank, terms.extent, AS_IT_IS, &into))
    return refuse("ValueError", requirement->what, "does not broadcast into its target");
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
      return refuse("ValueError", name, "is on another device than the arrays before it");
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
      if (!same) return refuse("ValueError", name, "overlaps another array");
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
  if (split_blocks(plan)) return refuse("ValueError", "the inputs", "have too many dimensions");
  collapse(plan);
  plan->bytes = bytes_moved(plan);
  return check_overlap(plan);
}

/* Up to so many elements a call keeps the GIL: see runtime/library.py. */
static int64_t few_elements = 0;

static int has_few_elements(const View* view) {
  int64_t elements = 1;
  for (int32_t d = 0; d < view->rank; ++d)
    if (__builtin_mul_overflow(elements, view->shape[d], &elements)) return 0;
  return elements <= few_elements;
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
 * do not broadcast together. `plan` has room for plans_size(). */
static int prepare(Plan* plan, const View* in, const View* out) {
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

/* ---- tvm-ffi ----------------------------------------------------------------------------- */

static int view_of(View* view, const TVMFFIAny* argument, const char* name) {
  const DLTensor* tensor;
  if (argument->type_index == kTVMFFIDLTensorPtr) {
    tensor = (const DLTensor*)argument->v_ptr;
  } else if (argument->type_index == kTVMFFITensor) {
    tensor = (const DLTensor*)((const char*)argument->v_obj + sizeof(TVMFFIObject));
  } else {
    return refuse("TypeError", name, "is not an array");
  }
  if ((int32_t)tensor->device.device_type != relu_ops_device_type)
    return refuse("ValueError", name, "is in the memory of another device");
  view->data = (char*)tensor->data + tensor->byte_offset;
  view->shape = tensor->shape;
  view->strides = tensor->strides;
  view->rank = tensor->ndim;
  view->device = tensor->device.device_id;
  view->dtype = tensor->dtype;
  return 0;
}

static int32_t array_count(void) { return OP.input_count + OP.output_count; }

static int prepare_from_arrays(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[OP.input_count + OP.output_count];
  if (count != array_count())
    return refuse("TypeError", "the call", "has the wrong number of arrays");
  for (int k = 0; k < OP.input_count; ++k)
    if (view_of(&views[k], &arguments[k], OP.inputs[k].name)) return -1;
  for (int k = 0; k < OP.output_count; ++k)
    if (view_of(&views[OP.input_count + k], &arguments[OP.input_count + k], OP.outputs[k].name)) return -1;
  return prepare(plan, views, views + OP.input_count);
}

/* For each array: data, dtype code, bits, device, rank, then shape and strides. */
static int prepare_from_description(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[OP.input_count + OP.output_count];
  if (count != 1 || arguments[0].type_index != kTVMFFIInt)
    return refuse("TypeError", "the call", "takes the address of a description");
  const int64_t* at = (const int64_t*)(intptr_t)arguments[0].v_int64;
  for (int k = 0; k < OP.input_count + OP.output_count; ++k) {
    views[k].data = (char*)(intptr_t)at[0];
    views[k].dtype.code = (uint8_t)at[1];
    views[k].dtype.bits = (uint8_t)at[2];
    views[k].dtype.lanes = 1;
    views[k].device = (int32_t)at[3];
    views[k].rank = (int32_t)at[4];
    views[k].shape = at + 5;
    views[k].strides = at + 5 + at[4];
    at += 5 + 2 * at[4];
  }
  return prepare(plan, views, views + OP.input_count);
}

/* A NumPy array as it lies in memory: the fields of PyArrayObject and PyArray_Descr, which NumPy's
 * binary interface fixes. runtime/headers.py makes sure of it before anything here reads them. */
typedef struct {
  int64_t references;
  void* type;
  void* scalar_type;
  char kind, letter, byteorder, unused;
  int32_t type_number;
} ArrayDtype;

typedef struct {
  int64_t references;
  void* type;
  char* data;
  int32_t rank;
  const int64_t* shape;
  const int64_t* byte_strides;
  void* base;
  const ArrayDtype* dtype;
  int32_t flags;
} ArrayHeader;

enum { C_CONTIGUOUS = 0x1, ALIGNED = 0x100, WRITEABLE = 0x400 };

/* What the runtime tells of Python (runtime/headers.py): the type numpy.ndarray, NULL where headers must
 * not be read; what number NumPy gave to bfloat16; where the items of a tuple begin, which is 8 bytes
 * later from Python 3.14 on; None; and functions of the interpreter, in the order of their names there. */
typedef struct {
  const void* array_type;
  int64_t bfloat16_number, items_at;
  void* none;
  void (*refer_to)(void* object);
  void (*let_go)(void* object);
  long (*as_long)(void* object);
  void* (*release_gil)(void);
  void (*take_gil)(void* thread);
  void* (*new_capsule)(void* content, const char* name, void (*end)(void* capsule));
  void* (*content_of)(void* capsule, const char* name);
  void* (*new_function)(const void* method, void* self, void* module);
} Python;

static Python python = {.bfloat16_number = -1};

/* NumPy's type numbers: from NPY_BOOL to NPY_DOUBLE, and NPY_HALF. */
static DLDataType dtype_of_number(int32_t number) {
  static const DLDataType dtypes[] = {
      {kDLBool, 8, 1}, {kDLInt, 8, 1},   {kDLUInt, 8, 1},  {kDLInt, 16, 1},
      {kDLUInt, 16, 1}, {kDLInt, 32, 1},  {kDLUInt, 32, 1}, {kDLInt, 64, 1},
      {kDLUInt, 64, 1}, {kDLInt, 64, 1},  {kDLUInt, 64, 1}, {kDLFloat, 32, 1},
      {kDLFloat, 64, 1}};
  DLDataType half = {kDLFloat, 16, 1}, bfloat = {kDLBfloat, 16, 1}, none = {0, 0, 0};
  if (number == 23) return half;
  if (number == python.bfloat16_number) return bfloat;
  return number >= 0 && number < (int32_t)(sizeof(dtypes) / sizeof(dtypes[0])) ? dtypes[number] : none;
}

static int view_of_header(View* view, int64_t* strides, const ArrayHeader* array, int32_t wanted) {
  if (array->type != python.array_type || (array->flags & wanted) != wanted ||
      array->dtype->byteorder == '>' || array->rank > MAX_RANK)
    return -1;
  view->data = array->data;
  view->shape = array->shape;
  view->strides = NULL;
  view->rank = array->rank;
  view->device = 0;
  view->dtype = dtype_of_number(array->dtype->type_number);
  if (array->flags & C_CONTIGUOUS) return 0;
  int64_t itemsize = view->dtype.bits / 8;
  for (int32_t d = 0; d < array->rank; ++d) {
    if (itemsize == 0 || array->byte_strides[d] % itemsize != 0) return -1;
    strides[d] = array->byte_strides[d] / itemsize;
  }
  view->strides = strides;
  return 0;
}

/* A Python tuple, up to its items. */
typedef struct {
  int64_t references;
  void* type;
  int64_t count;
} TupleHeader;

typedef int (*Prepare)(Plan* plan, const TVMFFIAny* arguments, int32_t count);

/* Prepare a call whose last argument may be the number of threads that it uses at most. */
static int prepare_call(Prepare from, Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  int32_t expected = from == prepare_from_description ? 1 : array_count();
  int64_t threads = 0;
  if (count == expected + 1 && arguments[expected].type_index == kTVMFFIInt) {
    threads = arguments[expected].v_int64;
    --count;
  }
  if (threads < 0 || threads > 256) return refuse("ValueError", "threads", "must be 1 to 256");
  if (from(plan, arguments, count)) return -1;
  for (; plan; plan = plan->next) plan->threads = (int32_t)threads;
  return 0;
}

/* Tells whether the interpreter ends; set when its end is near, by the thread that ends it. A thread
 * that then comes back from here for the GIL is ended in the middle of tvm-ffi's C++ (pthread_exit
 * from PyEval_RestoreThread, CPython before 3.14), which aborts the process. So it waits for the
 * end, as CPython 3.14 lets it; but a second at most while the end has not come, since somebody
 * may be joining it. Whoever kept the GIL may go on. */
static int (*is_finalizing)(void) = NULL;
static pthread_t last_thread;

static int leave(int code) {
  int (*ends)(void) = __atomic_load_n(&is_finalizing, __ATOMIC_ACQUIRE);
  if (__builtin_expect(!ends, 1) || pthread_self() == last_thread) return code;
  const struct timespec millisecond = {0, 1000000};
  for (int k = 0; k < 1000; ++k) {
    while (ends()) pause();
    nanosleep(&millisecond, NULL);
  }
  return code;
}

static int call_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  int64_t block[plans_size() / sizeof(int64_t) + 1];
  Plan* plan = plan_at(block);
  if (prepare_call(from, plan, arguments, count)) return -1;
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return relu_ops_run(plan);
}

static int run_bound(void* plan, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)arguments;
  if (count != 0) return refuse("TypeError", "the bound call", "takes no arguments");
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  int code = relu_ops_run((const Plan*)plan);
  return ((const Plan*)plan)->keeps_gil ? code : leave(code);
}

/* Make a function of a prepared plan, whose memory is its own from then on. */
static int give_bound(Plan* plan, TVMFFIAny* result) {
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionCreate(plan, run_bound, free, &function)) return -1;
  result->type_index = kTVMFFIFunction;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)function;
  return 0;
}

/* A prepared plan in memory of its own, or NULL. */
static Plan* new_plan(Prepare from, const TVMFFIAny* arguments, int32_t count) {
  void* block = malloc(plans_size());
  if (!block) {
    refuse("MemoryError", "the call", "cannot be bound: no memory");
    return NULL;
  }
  Plan* plan = plan_at(block);
  if (prepare_call(from, plan, arguments, count) == 0) return plan;
  free(plan);
  return NULL;
}

static int bind_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  Plan* plan = new_plan(from, arguments, count);
  if (!plan) return -1;
  if (give_bound(plan, result) == 0) return 0;
  free(plan);
  return -1;
}

#define DEFINE(name, action, source)                                                           \
  EXPORT int __tvm_ffi_##name(void* self, const TVMFFIAny* arguments, int32_t count,           \
                              TVMFFIAny* result) {                                             \
    (void)self;                                                                                \
    return leave(action(source, arguments, count, result));                                    \
  }

DEFINE(call, call_now, prepare_from_arrays)
DEFINE(bind, bind_now, prepare_from_arrays)
DEFINE(call_views, call_now, prepare_from_description)
DEFINE(bind_views, bind_now, prepare_from_description)

static int views_of_headers(View* views, int64_t (*strides)[MAX_RANK], const TupleHeader* inputs,
                            const ArrayHeader* output) {
  if (!python.array_type || OP.output_count != 1 || inputs->count != OP.input_count) return -1;
  const ArrayHeader* const* items = (const void*)((const char*)inputs + python.items_at);
  for (int k = 0; k < OP.input_count; ++k)
    if (view_of_header(&views[k], strides[k], items[k], ALIGNED)) return -1;
  int k = OP.input_count;
  return view_of_header(&views[k], strides[k], output, ALIGNED | WRITEABLE);
}

/* ---- Python's own convention --------------------------------------------------------------
 * Functions that the interpreter calls without tvm-ffi between: see runtime/headers.py. The caller holds
 * the GIL, and references to all arguments; what is returned is a new reference. For the CPU alone: it
 * is where NumPy's arrays lie, and to run a plan cannot fail there. */

static int is_here(void) { return relu_ops_device_type == kDLCPU; }

static void* reference_to(void* object) {
  python.refer_to(object);
  return object;
}

static void run_with_gil(const Plan* plan) {
  void* thread = plan->keeps_gil ? NULL : python.release_gil();
  relu_ops_run(plan);
  if (!thread) return;
  leave(0);
  python.take_gil(thread);
}

/* Compute from a tuple of NumPy arrays into an array; a third argument is the number of threads that
 * this uses at most. Returns the output, or None where it cannot: then an error is left behind, and the
 * caller finds out for himself what is wrong. */
EXPORT void* relu_ops_compute(void* self, void* const* arguments, int64_t count) {
  (void)self;
  View views[OP.input_count + 1];
  int64_t strides[OP.input_count + 1][MAX_RANK], block[plans_size() / sizeof(int64_t) + 1];
  Plan* plan = plan_at(block);
  if (!is_here() || count < 2 || views_of_headers(views, strides, arguments[0], arguments[1]) ||
      prepare(plan, views, views + OP.input_count))
    return reference_to(python.none);
  if (count > 2) plan->threads = (int32_t)python.as_long(arguments[2]);
  run_with_gil(plan);
  return reference_to(arguments[1]);
}

static const char PLAN[] = "relu_ops.plan";

static void free_plan(void* capsule) { free(python.content_of(capsule, PLAN)); }

static void* run_plan(void* capsule, void* unused) {
  (void)unused;
  run_with_gil(python.content_of(capsule, PLAN));
  return reference_to(python.none);
}

/* A function without arguments that computes what a description says; a second argument is the number of
 * threads. None where the description does not fit; NULL, with an error of Python's, where memory ends. */
EXPORT void* relu_ops_bound(void* self, void* const* arguments, int64_t count) {
  /* PyMethodDef; 4 is METH_NOARGS. */
  static const struct {
    const char* name;
    void* (*function)(void*, void*);
    int flags;
    const char* doc;
  } method = {"bound", run_plan, 4, NULL};
  (void)self;
  TVMFFIAny given[2] = {0};
  for (int k = 0; k < count && k < 2; ++k) {
    given[k].type_index = kTVMFFIInt;
    given[k].v_int64 = python.as_long(arguments[k]);
  }
  Plan* plan = is_here() ? new_plan(prepare_from_description, given, (int32_t)count) : NULL;
  if (!plan) return reference_to(python.none);
  void* capsule = python.new_capsule(plan, PLAN, free_plan);
  if (!capsule) {
    free(plan);
    return NULL;
  }
  void* function = python.new_function(&method, capsule, NULL);
  python.let_go(capsule);
  return function;
}

/* Called by the last thread when the interpreter is about to end, with the address of a function that
 * says whether it does. */
EXPORT int __tvm_ffi_end(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  if (count != 1 || arguments[0].type_index != kTVMFFIInt)
    return refuse("TypeError", "end", "takes an address");
  last_thread = pthread_self();
  int (*ends)(void) = (int (*)(void))(intptr_t)arguments[0].v_int64;
  __atomic_store_n(&is_finalizing, ends, __ATOMIC_RELEASE);
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

/* How operators of this library run from now on: what relu_ops_configure takes, the number of elements
 * up to which a call keeps the GIL, and the address of a Python, which is copied. A newer runtime may
 * have more to say: it is not understood here, and not needed. */
enum { SETTINGS = 6 };

EXPORT int __tvm_ffi_configure(void* self, const TVMFFIAny* arguments, int32_t count,
                               TVMFFIAny* result) {
  (void)self;
  int64_t values[SETTINGS];
  if (count < SETTINGS) return refuse("TypeError", "configure", "takes six integers");
  for (int k = 0; k < SETTINGS; ++k) {
    if (arguments[k].type_index != kTVMFFIInt || arguments[k].v_int64 < 0)
      return refuse("TypeError", "configure", "takes six integers");
    values[k] = arguments[k].v_int64;
  }
  relu_ops_configure((int)(values[0] < 256 ? values[0] : 256), values[1], values[2], values[3]);
  few_elements = values[4];
  memcpy(&python, (const void*)(intptr_t)values[5], sizeof(python));
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}
