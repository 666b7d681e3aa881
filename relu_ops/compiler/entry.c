/* The host side of every operator: checks arrays, plans loops, calls kernels.
 *
 * The same for all operators; a generated C file holds the tables of one: its inputs, outputs,
 * leaves, requirements and kernels, as entry.h declares them. Exports two tvm-ffi functions of the
 * arguments (inputs..., outputs...): `call` computes, `bind` returns a function that computes
 * on these same arrays again and again; and `call_views`, `bind_views`, which take the address
 * of a description instead of arrays, for what DLPack cannot express.
 *
 * Nothing is written before everything is checked. An array that does not fit is an error that
 * names it; the Python runtime turns it into a full sentence.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <xmmintrin.h>

#include "entry.h"
#include "pool.h"

#define EXPORT __attribute__((visibility("default")))
#define OP relu_ops_operator

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

/* A loop nest over collapsed dimensions, outermost first. Strides are in elements. */
typedef struct Plan {
  int32_t rank;
  int64_t extent[MAX_RANK];
  int64_t (*stride)[MAX_RANK]; /* by operand */
  char** data;                 /* by operand */
  void* spare;                 /* an element for each operand that has none */
  struct Plan* next;           /* another one to run, or NULL */
} Plan;

static size_t plan_size(void) {
  size_t operand = sizeof(int64_t[MAX_RANK]) + sizeof(char*) + sizeof(int64_t);
  return sizeof(Plan) + operand * (size_t)OP.operand_count;
}

/* A plan and its arrays in one block of plan_size() bytes. */
static Plan* plan_at(void* block) {
  Plan* plan = (Plan*)block;
  plan->stride = (int64_t(*)[MAX_RANK])(plan + 1);
  plan->data = (char**)(plan->stride + OP.operand_count);
  plan->spare = plan->data + OP.operand_count;
  plan->next = NULL;
  return plan;
}

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

static int check_output(const View* view, const OutputSpec* spec, const View* in) {
  Shape shape;
  if (view->dtype.code != spec->code || view->dtype.bits != spec->bits || view->dtype.lanes != 1)
    return refuse("TypeError", spec->name, "has the wrong dtype");
  if (shape_of(&shape, spec->shape, in))
    return refuse("ValueError", spec->name, "has inputs that do not broadcast together");
  if (view->rank != shape.rank ||
      memcmp(view->shape, shape.extent, sizeof(int64_t) * (size_t)shape.rank) != 0)
    return refuse("ValueError", spec->name, "has the wrong shape");
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

static int is_empty(int32_t rank, const int64_t* shape) {
  for (int32_t d = 0; d < rank; ++d)
    if (shape[d] == 0) return 1;
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
  return check_overlap(plan);
}

/* Check the arrays and plan the call: one pass for all outputs, or one for each where their shapes
 * do not broadcast together. `plan` has room for plans_size(). */
static int prepare(Plan* plan, const View* in, const View* out) {
  int64_t symbols[OP.symbol_count + 1];
  for (int k = 0; k < OP.symbol_count; ++k) symbols[k] = -1;
  for (int k = 0; k < OP.input_count; ++k)
    if (check_input(&in[k], &OP.inputs[k], symbols)) return -1;
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
    if (k + 1 < OP.output_count) plan = plan->next = plan_at((char*)plan + plan_size());
  }
  return 0;
}

/* ---- running ----------------------------------------------------------------------------- */

/* How a process wants its operators run; see `configure`. */
static int threads = 1;
static int64_t parallel_bytes = INT64_MAX, stream_bytes = INT64_MAX;

static const Kernel* choose_kernel(const int64_t* inner) {
  for (int v = 0; v < OP.kernel_count; ++v) {
    int fits = 1;
    for (int k = 0; k < OP.operand_count; ++k)
      fits &= OP.kernels[v].patterns[k] < 0 || OP.kernels[v].patterns[k] == inner[k];
    if (fits) return &OP.kernels[v];
  }
  return &OP.kernels[OP.kernel_count - 1];
}

/* Row by row, the output aligned for streaming stores after a short head. */
static void run_streaming(const Kernel* kernel, char* const* data, const int64_t* row,
                          const int64_t* inner, int64_t rows, int64_t n) {
  char* at[OP.operand_count];
  int out = OP.leaf_count;
  for (int64_t r = 0; r < rows; ++r) {
    for (int k = 0; k < OP.operand_count; ++k) at[k] = data[k] + r * row[k] * OP.itemsizes[k];
    int64_t beyond = (int64_t)((uintptr_t)at[out] & (uintptr_t)(OP.vector_bytes - 1));
    int64_t head = beyond ? (OP.vector_bytes - beyond) / OP.itemsizes[out] : 0;
    if (head > n) head = n;
    if (head) kernel->call(at, row, inner, 1, head);
    for (int k = 0; k < OP.operand_count; ++k) at[k] += head * inner[k] * OP.itemsizes[k];
    if (n > head) kernel->stream(at, row, inner, 1, n - head);
  }
}

static void run_nest(const Plan* plan, int stream) {
  int64_t row[OP.operand_count], inner[OP.operand_count], index[MAX_RANK] = {0};
  char* data[OP.operand_count];
  int32_t rank = plan->rank;
  int64_t n = rank > 0 ? plan->extent[rank - 1] : 1;
  int64_t rows = rank > 1 ? plan->extent[rank - 2] : 1;
  for (int k = 0; k < OP.operand_count; ++k) {
    inner[k] = rank > 0 ? plan->stride[k][rank - 1] : 1;
    row[k] = rank > 1 ? plan->stride[k][rank - 2] : 0;
    data[k] = plan->data[k];
  }
  const Kernel* kernel = choose_kernel(inner);
  /* Short rows would be all head and tail; between elements no store is ever aligned. */
  int64_t itemsize = OP.itemsizes[OP.leaf_count];
  int aligned = (uintptr_t)data[OP.leaf_count] % (uintptr_t)itemsize == 0;
  stream = stream && kernel->stream && aligned && n * itemsize >= 8 * OP.vector_bytes;
  for (;;) {
    if (stream) run_streaming(kernel, data, row, inner, rows, n);
    else kernel->call(data, row, inner, rows, n);
    int32_t d = rank - 3;
    for (; d >= 0; --d) {
      for (int k = 0; k < OP.operand_count; ++k) data[k] += plan->stride[k][d] * OP.itemsizes[k];
      if (++index[d] < plan->extent[d]) break;
      for (int k = 0; k < OP.operand_count; ++k)
        data[k] -= plan->stride[k][d] * plan->extent[d] * OP.itemsizes[k];
      index[d] = 0;
    }
    if (d < 0) break;
  }
  if (stream) _mm_sfence();
}

/* The contract has no flush-to-zero and one rounding mode, whatever the calling thread set. */
static void run_exactly(const Plan* plan, int stream) {
  unsigned int caller = _mm_getcsr();
  unsigned int wanted = (caller & ~0xE040u) | 0x1F80u;
  if (caller != wanted) _mm_setcsr(wanted);
  run_nest(plan, stream);
  if (caller != wanted) _mm_setcsr(caller);
}

/* Bytes that a plan moves: each operand once, a broadcast one not at all. */
static int64_t bytes_moved(const Plan* plan) {
  int64_t elements = 1, bytes = 0;
  for (int32_t d = 0; d < plan->rank; ++d) elements *= plan->extent[d];
  for (int k = 0; k < OP.operand_count; ++k)
    if (plan->rank == 0 || plan->stride[k][0] != 0) bytes += elements * OP.itemsizes[k];
  return bytes;
}

typedef struct {
  const Plan* plan;
  int32_t dim;
  int stream;
} Split;

/* Chunks of a dimension end at multiples of GRAIN elements, where there are as many. */
#define GRAIN 1024
static int64_t boundary(int64_t extent, int64_t chunk, int64_t chunks) {
  int64_t at = extent / chunks * chunk + extent % chunks * chunk / chunks;
  return chunk < chunks && extent >= GRAIN * chunks ? at / GRAIN * GRAIN : at;
}

static void run_chunk(void* argument, int64_t chunk, int64_t chunks) {
  const Split* split = (const Split*)argument;
  int64_t block[plan_size() / sizeof(int64_t) + 1];
  Plan* part = plan_at(block);
  int64_t extent = split->plan->extent[split->dim];
  int64_t begin = boundary(extent, chunk, chunks), end = boundary(extent, chunk + 1, chunks);
  if (begin == end) return;
  part->rank = split->plan->rank;
  memcpy(part->extent, split->plan->extent, sizeof(part->extent));
  part->extent[split->dim] = end - begin;
  for (int k = 0; k < OP.operand_count; ++k) {
    memcpy(part->stride[k], split->plan->stride[k], sizeof(part->stride[k]));
    part->data[k] =
        split->plan->data[k] + begin * part->stride[k][split->dim] * OP.itemsizes[k];
  }
  run_exactly(part, split->stream);
}

static void run_pass(const Plan* plan) {
  if (plan->rank < 0) return;
  int64_t bytes = bytes_moved(plan);
  Split split = {plan, 0, bytes >= stream_bytes};
  if (bytes < parallel_bytes || threads < 2 || plan->rank == 0) {
    run_exactly(plan, split.stream);
    return;
  }
  for (int32_t d = 1; d < plan->rank; ++d)
    if (plan->extent[split.dim] < threads && plan->extent[d] > plan->extent[split.dim])
      split.dim = d;
  int64_t chunks = 4 * (int64_t)threads; /* more than threads: whoever is late does less */
  if (chunks > plan->extent[split.dim]) chunks = plan->extent[split.dim];
  relu_ops_parallel(run_chunk, &split, chunks, threads);
}

static void run(const Plan* plan) {
  for (; plan; plan = plan->next) run_pass(plan);
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
  View views[OP.input_count + OP.output_count];
  if (count != OP.input_count + OP.output_count)
    return refuse("TypeError", "the call", "has the wrong number of arrays");
  for (int k = 0; k < OP.input_count; ++k)
    if (view_of(&views[k], &arguments[k], OP.inputs[k].name)) return -1;
  for (int k = 0; k < OP.output_count; ++k)
    if (view_of(&views[OP.input_count + k], &arguments[OP.input_count + k], OP.outputs[k].name)) return -1;
  return prepare(plan, views, views + OP.input_count);
}

/* For each array: data, dtype code, bits, rank, then shape and strides. */
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
    views[k].rank = (int32_t)at[3];
    views[k].shape = at + 4;
    views[k].strides = at + 4 + at[3];
    at += 4 + 2 * at[3];
  }
  return prepare(plan, views, views + OP.input_count);
}

typedef int (*Prepare)(Plan* plan, const TVMFFIAny* arguments, int32_t count);

static int call_now(Prepare from, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  int64_t block[plans_size() / sizeof(int64_t) + 1];
  Plan* plan = plan_at(block);
  if (from(plan, arguments, count)) return -1;
  run(plan);
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
  void* block = malloc(plans_size());
  if (!block) return refuse("MemoryError", "the call", "cannot be bound: no memory");
  Plan* plan = plan_at(block);
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

/* How operators of this library run from now on: threads; bytes moved from which on more than one
 * is used; bytes moved from which on stores go past the cache. */
EXPORT int __tvm_ffi_configure(void* self, const TVMFFIAny* arguments, int32_t count,
                               TVMFFIAny* result) {
  (void)self;
  if (count != 3) return refuse("TypeError", "configure", "takes three integers");
  for (int k = 0; k < 3; ++k)
    if (arguments[k].type_index != kTVMFFIInt || arguments[k].v_int64 < 0)
      return refuse("TypeError", "configure", "takes three integers");
  threads = (int)(arguments[0].v_int64 < 256 ? arguments[0].v_int64 : 256);
  parallel_bytes = arguments[1].v_int64;
  stream_bytes = arguments[2].v_int64;
  result->type_index = kTVMFFINone;
  result->v_int64 = 0;
  return 0;
}
