/* The host side of every operator: checks arrays, plans loops, calls kernels.
 *
 * Compiled once per operator behind a generated "operator.h", which holds the operator's tables:
 * its inputs, outputs, leaves, requirements and kernels. Exports two tvm-ffi functions of the
 * arguments (inputs..., outputs...): `call` computes, `bind` returns a function that computes
 * on these same arrays again and again; and `call_views`, `bind_views`, which take the address
 * of a description instead of arrays, for what DLPack cannot express.
 *
 * Nothing is written before everything is checked. An array that does not fit is an error that
 * names it; the Python runtime turns it into a full sentence.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <xmmintrin.h>

#define MAX_RANK 16
#define EXPORT __attribute__((visibility("default")))

/* An array as it was passed. Strides are in elements; NULL means compact. */
typedef struct {
  char* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t rank;
  DLDataType dtype;
} View;

typedef struct {
  int32_t rank;
  int64_t extent[MAX_RANK];
} Shape;

/* Tables of the operator. A dimension is its extent, FREE, or SYMBOL(k). */
#define FREE (-1)
#define SYMBOL(k) (-2 - (k))
typedef struct {
  const char* name;
  uint8_t code, bits;
  int16_t rank; /* -1: any */
  const int64_t* dims;
} InputSpec;

typedef struct {
  int16_t input; /* -1: a constant shape */
  int16_t trailing;
  int16_t rank;
  const int64_t* dims;
} Term;

typedef struct {
  int16_t count;
  const Term* terms;
} Terms;

typedef struct {
  const char* name;
  uint8_t code, bits;
  Terms shape;
} OutputSpec;

typedef struct {
  const char* what;
  Terms terms, into;
} Requirement;

typedef struct {
  int16_t input; /* -1: a constant, at `constant` */
  int16_t trailing;
  uint8_t itemsize;
  int16_t rank;
  const int64_t* dims;
  const unsigned char* constant;
} Leaf;

/* What a plan passes to a kernel, one entry per leaf and output. */
typedef void (*KernelCall)(char* const* data, const int64_t* row, const int64_t* inner,
                           int64_t rows, int64_t n);
typedef struct {
  KernelCall call;
  const int8_t* patterns; /* 1 contiguous, 0 repeated, -1 any */
} Kernel;

#include "operator.h"

/* A loop nest over collapsed dimensions, outermost first. Strides are in elements. */
typedef struct {
  int32_t rank;
  int64_t extent[MAX_RANK];
  int64_t stride[OPERANDS][MAX_RANK];
  char* data[OPERANDS];
} Plan;

/* ---- errors ------------------------------------------------------------------------------ */

static int refuse(const char* kind, const char* name, const char* reason) {
  const char* parts[] = {OPERATOR_NAME, ": ", name, " ", reason};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 5);
  return -1;
}

/* ---- shapes ------------------------------------------------------------------------------ */

static int broadcast_into(Shape* to, int32_t rank, const int64_t* dims, int32_t trailing) {
  int32_t whole = rank + trailing;
  if (whole > MAX_RANK) return -1;
  while (to->rank < whole) {
    memmove(to->extent + 1, to->extent, sizeof(int64_t) * (size_t)to->rank);
    to->extent[0] = 1;
    to->rank++;
  }
  for (int32_t d = 0; d < rank; ++d) {
    int64_t* extent = &to->extent[to->rank - whole + d];
    if (dims[d] == 1 || dims[d] == *extent) continue;
    if (*extent != 1) return -1;
    *extent = dims[d];
  }
  return 0;
}

static int shape_of(Shape* shape, Terms terms, const View* inputs) {
  shape->rank = 0;
  for (int k = 0; k < terms.count; ++k) {
    const Term* t = &terms.terms[k];
    const View* v = t->input < 0 ? NULL : &inputs[t->input];
    if (broadcast_into(shape, v ? v->rank : t->rank, v ? v->shape : t->dims, t->trailing))
      return -1;
  }
  return 0;
}

static int check_input(const View* view, const InputSpec* spec, int64_t* symbols) {
  if (view->dtype.code != spec->code || view->dtype.bits != spec->bits || view->dtype.lanes != 1)
    return refuse("TypeError", spec->name, "has the wrong dtype");
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

static int check_output(const View* view, const OutputSpec* spec, const View* inputs,
                        Shape* iteration) {
  Shape shape;
  if (view->dtype.code != spec->code || view->dtype.bits != spec->bits || view->dtype.lanes != 1)
    return refuse("TypeError", spec->name, "has the wrong dtype");
  if (shape_of(&shape, spec->shape, inputs))
    return refuse("ValueError", spec->name, "has inputs that do not broadcast together");
  if (view->rank != shape.rank ||
      memcmp(view->shape, shape.extent, sizeof(int64_t) * (size_t)shape.rank) != 0)
    return refuse("ValueError", spec->name, "has the wrong shape");
  if (broadcast_into(iteration, shape.rank, shape.extent, 0))
    return refuse("ValueError", spec->name, "does not broadcast with the other outputs");
  return 0;
}

static int check_requirement(const Requirement* requirement, const View* inputs) {
  Shape terms, into, both;
  if (shape_of(&terms, requirement->terms, inputs) || shape_of(&into, requirement->into, inputs))
    return refuse("ValueError", requirement->what, "does not broadcast");
  int32_t lead = 0; /* leading unit dimensions do not count */
  while (terms.rank - lead > into.rank && terms.extent[lead] == 1) ++lead;
  both = into;
  if (broadcast_into(&both, terms.rank - lead, terms.extent + lead, 0) || both.rank != into.rank ||
      memcmp(both.extent, into.extent, sizeof(int64_t) * (size_t)into.rank) != 0)
    return refuse("ValueError", requirement->what, "does not broadcast into its target");
  return 0;
}

/* ---- planning ---------------------------------------------------------------------------- */

/* Strides of an operand along the dimensions of the iteration. */
static void lay_out(int64_t* stride, const Shape* iteration, int32_t rank, const int64_t* dims,
                    const int64_t* strides, int32_t trailing) {
  int64_t compact = 1;
  for (int32_t d = 0; d < iteration->rank; ++d) stride[d] = 0;
  for (int32_t d = rank - 1; d >= 0; --d) {
    if (dims[d] != 1) {
      /* Every operand broadcasts into the iteration, leading unit dimensions aside. */
      stride[iteration->rank - rank - trailing + d] = strides ? strides[d] : compact;
    }
    compact *= dims[d];
  }
}

/* True where dimension a should be outside of b: by the first operand that tells them apart. */
static int is_outer(const Plan* plan, int32_t a, int32_t b) {
  for (int k = OPERANDS - 1; k >= 0; --k) { /* outputs first */
    int64_t x = llabs(plan->stride[k][a]), y = llabs(plan->stride[k][b]);
    if (x != 0 && y != 0 && x != y) return x > y;
  }
  return 0;
}

static void swap_dims(Plan* plan, int32_t a, int32_t b) {
  int64_t t = plan->extent[a];
  plan->extent[a] = plan->extent[b];
  plan->extent[b] = t;
  for (int k = 0; k < OPERANDS; ++k) {
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
    for (int k = 0; k < OPERANDS; ++k)
      alike &= plan->stride[k][last] == plan->stride[k][d] * plan->extent[d];
    if (!alike) {
      swap_dims(plan, ++last, d);
      continue;
    }
    plan->extent[last] *= plan->extent[d];
    for (int k = 0; k < OPERANDS; ++k) plan->stride[k][last] = plan->stride[k][d];
  }
  plan->rank = rank ? last + 1 : 0;
}

static void extent_in_bytes(const Plan* plan, int k, const char** low, const char** high) {
  const char *first = plan->data[k], *past = plan->data[k] + itemsizes[k];
  for (int32_t d = 0; d < plan->rank; ++d) {
    int64_t reach = plan->stride[k][d] * (plan->extent[d] - 1) * itemsizes[k];
    if (reach < 0) first += reach;
    else past += reach;
  }
  *low = first;
  *high = past;
}

/* An output may be an input's own memory, element for element; any other overlap is refused. */
static int check_overlap(const Plan* plan) {
  for (int out = LEAVES; out < OPERANDS; ++out) {
    const char *low, *high;
    extent_in_bytes(plan, out, &low, &high);
    for (int k = 0; k < out; ++k) {
      const char *other_low, *other_high;
      extent_in_bytes(plan, k, &other_low, &other_high);
      if (other_high <= low || high <= other_low) continue;
      int same = OUTPUTS == 1 && plan->data[k] == plan->data[out] && itemsizes[k] == itemsizes[out];
      for (int32_t d = 0; d < plan->rank; ++d)
        same &= plan->stride[k][d] == plan->stride[out][d] && plan->stride[out][d] != 0;
      if (!same) return refuse("ValueError", outputs[out - LEAVES].name, "overlaps another array");
    }
  }
  return 0;
}

static int is_empty(int32_t rank, const int64_t* shape) {
  for (int32_t d = 0; d < rank; ++d)
    if (shape[d] == 0) return 1;
  return 0;
}

/* An iteration without elements is nothing to do, unless an output has elements all the same (it
 * does not depend on what is empty): then whatever is empty reads and writes one spare element. */
static int skip_empty(Plan* plan, const View* in, const View* out) {
  static int64_t spare[OPERANDS];
  int all = 1;
  for (int k = 0; k < OUTPUTS; ++k) all &= is_empty(out[k].rank, out[k].shape);
  if (all) {
    plan->rank = -1;
    return 1;
  }
  for (int32_t d = 0; d < plan->rank; ++d)
    if (plan->extent[d] == 0) plan->extent[d] = 1;
  for (int k = 0; k < OPERANDS; ++k) {
    const View* v = k >= LEAVES ? &out[k - LEAVES]
                    : leaves[k].input >= 0 ? &in[leaves[k].input] : NULL;
    if (v ? !is_empty(v->rank, v->shape) : !is_empty(leaves[k].rank, leaves[k].dims)) continue;
    plan->data[k] = (char*)&spare[k];
    memset(plan->stride[k], 0, sizeof(plan->stride[k]));
  }
  return 0;
}

static int prepare(Plan* plan, const View* in, const View* out) {
  int64_t symbols[SYMBOLS + 1];
  for (int k = 0; k < SYMBOLS; ++k) symbols[k] = -1;
  for (int k = 0; k < INPUTS; ++k)
    if (check_input(&in[k], &inputs[k], symbols)) return -1;
  Shape iteration = {0, {0}};
  for (int k = 0; k < OUTPUTS; ++k)
    if (check_output(&out[k], &outputs[k], in, &iteration)) return -1;
  for (int k = 0; k < REQUIREMENTS; ++k)
    if (check_requirement(&requirements[k], in)) return -1;

  plan->rank = iteration.rank;
  memcpy(plan->extent, iteration.extent, sizeof(plan->extent));
  for (int k = 0; k < LEAVES; ++k) {
    const Leaf* leaf = &leaves[k];
    const View* v = leaf->input < 0 ? NULL : &in[leaf->input];
    plan->data[k] = v ? v->data : (char*)leaf->constant;
    lay_out(plan->stride[k], &iteration, v ? v->rank : leaf->rank, v ? v->shape : leaf->dims,
            v ? v->strides : NULL, leaf->trailing);
  }
  for (int k = 0; k < OUTPUTS; ++k) {
    plan->data[LEAVES + k] = out[k].data;
    lay_out(plan->stride[LEAVES + k], &iteration, out[k].rank, out[k].shape, out[k].strides, 0);
  }
  if (skip_empty(plan, in, out)) return 0;
  collapse(plan);
  return check_overlap(plan);
}

/* ---- running ----------------------------------------------------------------------------- */

static KernelCall choose_kernel(const int64_t* inner) {
  for (int v = 0; v < KERNELS; ++v) {
    int fits = 1;
    for (int k = 0; k < OPERANDS; ++k)
      fits &= kernels[v].patterns[k] < 0 || kernels[v].patterns[k] == inner[k];
    if (fits) return kernels[v].call;
  }
  return kernels[KERNELS - 1].call; /* the last one takes any stride */
}

static void run_nest(const Plan* plan) {
  int64_t row[OPERANDS], inner[OPERANDS], index[MAX_RANK] = {0};
  char* data[OPERANDS];
  int32_t rank = plan->rank;
  int64_t n = rank > 0 ? plan->extent[rank - 1] : 1;
  int64_t rows = rank > 1 ? plan->extent[rank - 2] : 1;
  for (int k = 0; k < OPERANDS; ++k) {
    inner[k] = rank > 0 ? plan->stride[k][rank - 1] : 1;
    row[k] = rank > 1 ? plan->stride[k][rank - 2] : 0;
    data[k] = plan->data[k];
  }
  KernelCall kernel = choose_kernel(inner);
  for (;;) {
    kernel(data, row, inner, rows, n);
    int32_t d = rank - 3;
    for (; d >= 0; --d) {
      for (int k = 0; k < OPERANDS; ++k) data[k] += plan->stride[k][d] * itemsizes[k];
      if (++index[d] < plan->extent[d]) break;
      for (int k = 0; k < OPERANDS; ++k)
        data[k] -= plan->stride[k][d] * plan->extent[d] * itemsizes[k];
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

/* The contract has no flush-to-zero and one rounding mode, whatever the calling thread set. */
static void run(const Plan* plan) {
  if (plan->rank < 0) return;
  unsigned int caller = _mm_getcsr();
  unsigned int wanted = (caller & ~0xE040u) | 0x1F80u;
  if (caller != wanted) _mm_setcsr(wanted);
  run_nest(plan);
  if (caller != wanted) _mm_setcsr(caller);
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
  if (tensor->device.device_type != kDLCPU)
    return refuse("ValueError", name, "is not in the memory of the CPU");
  view->data = (char*)tensor->data + tensor->byte_offset;
  view->shape = tensor->shape;
  view->strides = tensor->strides;
  view->rank = tensor->ndim;
  view->dtype = tensor->dtype;
  return 0;
}

static int prepare_from_arrays(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[INPUTS + OUTPUTS];
  if (count != INPUTS + OUTPUTS)
    return refuse("TypeError", "the call", "has the wrong number of arrays");
  for (int k = 0; k < INPUTS; ++k)
    if (view_of(&views[k], &arguments[k], inputs[k].name)) return -1;
  for (int k = 0; k < OUTPUTS; ++k)
    if (view_of(&views[INPUTS + k], &arguments[INPUTS + k], outputs[k].name)) return -1;
  return prepare(plan, views, views + INPUTS);
}

/* For each array: data, dtype code, bits, rank, then shape and strides. */
static int prepare_from_description(Plan* plan, const TVMFFIAny* arguments, int32_t count) {
  View views[INPUTS + OUTPUTS];
  if (count != 1 || arguments[0].type_index != kTVMFFIInt)
    return refuse("TypeError", "the call", "takes the address of a description");
  const int64_t* at = (const int64_t*)(intptr_t)arguments[0].v_int64;
  for (int k = 0; k < INPUTS + OUTPUTS; ++k) {
    views[k].data = (char*)(intptr_t)at[0];
    views[k].dtype.code = (uint8_t)at[1];
    views[k].dtype.bits = (uint8_t)at[2];
    views[k].dtype.lanes = 1;
    views[k].rank = (int32_t)at[3];
    views[k].shape = at + 4;
    views[k].strides = at + 4 + at[3];
    at += 4 + 2 * at[3];
  }
  return prepare(plan, views, views + INPUTS);
}

typedef int (*Prepare)(Plan* plan, const TVMFFIAny* arguments, int32_t count);

static int call_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  Plan plan;
  if (from(&plan, arguments, count)) return -1;
  run(&plan);
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

static int run_bound(void* plan, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)arguments;
  if (count != 0) return refuse("TypeError", "the bound call", "takes no arguments");
  run((const Plan*)plan);
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}

static int bind_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  Plan* plan = (Plan*)malloc(sizeof(Plan));
  if (!plan) return refuse("MemoryError", "the call", "cannot be bound: no memory");
  TVMFFIObjectHandle function = NULL;
  if (from(plan, arguments, count) || TVMFFIFunctionCreate(plan, run_bound, free, &function)) {
    free(plan);
    return -1;
  }
  result->type_index = kTVMFFIFunction;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)function;
  return 0;
}

#define DEFINE(name, action, source)                                                           \
  EXPORT int __tvm_ffi_##name(void* self, const TVMFFIAny* arguments, int32_t count,           \
                              TVMFFIAny* result) {                                             \
    (void)self;                                                                                \
    return action(source, arguments, count, result);                                           \
  }

DEFINE(call, call_now, prepare_from_arrays)
DEFINE(bind, bind_now, prepare_from_arrays)
DEFINE(call_views, call_now, prepare_from_description)
DEFINE(bind_views, bind_now, prepare_from_description)
