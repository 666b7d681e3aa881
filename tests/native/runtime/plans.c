/* Plans: random calls against a naive loop, and what they leave out. */
#include "by_hand.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../../../relu_ops/native/plan.h"

/* ---- a random call against a naive loop ----------------------------------------------------------- */

enum { SEEDS = WATCHES_THREADS ? 1500 : 6000 };

static uint64_t state;

static uint64_t draw(void) { /* xorshift64* */
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * UINT64_C(2685821657736338717);
}

static int64_t below(int64_t count) {
  return (int64_t)(draw() >> 33) % count;
}

static bool one_in(int64_t count) {
  return below(count) == 0;
}

/* An array of floats in a buffer of its own, with room around it. */
typedef struct {
  DLTensor tensor;
  int64_t shape[MAX_RANK], strides[MAX_RANK];
  float *buffer, *before; /* the buffer, and a copy of it as it was, or is to be */
  int64_t size;           /* of the buffer */
  int64_t first;          /* where in it the first element lies */
} RandomArray;

static void drop_array(RandomArray* a) {
  free(a->buffer);
  free(a->before);
}

/* Strides of some array of a shape: compact in some order of its dimensions, with gaps, turned round, and
 * repeated where it is only read. */
static void draw_strides(RandomArray* a, bool is_read) {
  int32_t rank = a->tensor.ndim, order[MAX_RANK];
  int64_t step = one_in(3) ? 1 + below(3) : 1;
  for (int32_t d = 0; d < rank; ++d) order[d] = rank - 1 - d;
  for (int32_t d = rank - 1; d > 0 && one_in(3); --d) {
    int32_t e = (int32_t)below(d + 1), t = order[d];
    order[d] = order[e];
    order[e] = t;
  }
  for (int32_t k = 0; k < rank; ++k) {
    int32_t d = order[k];
    a->strides[d] = one_in(5) ? -step : step;
    if (is_read && one_in(8)) a->strides[d] = 0;
    step *= a->shape[d] > 0 ? a->shape[d] : 1;
    if (one_in(6)) step += below(4);
  }
}

/* Lay an array out somewhere; with or without strides where it is compact. */
static void lay_out_randomly(RandomArray* a, int32_t rank, bool is_read) {
  int64_t low = 0, high = 0, elements = 1;
  a->tensor = tensor(NULL, rank, a->shape);
  for (int32_t d = 0; d < rank; ++d) elements *= a->shape[d];
  if (one_in(2)) {
    int64_t step = 1;
    for (int32_t d = rank - 1; d >= 0; --d) a->strides[d] = step, step *= a->shape[d];
    if (one_in(2)) a->tensor.strides = a->strides;
  } else {
    draw_strides(a, is_read);
    a->tensor.strides = a->strides;
  }
  for (int32_t d = 0; d < rank && elements; ++d) {
    int64_t reach = a->strides[d] * (a->shape[d] - 1);
    if (reach < 0) low += reach;
    else high += reach;
  }
  a->first = 32 + below(32) - low;
  a->size = a->first + high + 64;
  a->buffer = malloc(sizeof(float) * (size_t)a->size);
  a->before = malloc(sizeof(float) * (size_t)a->size);
  for (int64_t k = 0; k < a->size; ++k) a->buffer[k] = (float)below(1000);
  memcpy(a->before, a->buffer, sizeof(float) * (size_t)a->size);
  int64_t offset = one_in(2) ? below(a->first + 1) : 0;
  a->tensor.data = a->buffer + a->first - offset;
  a->tensor.byte_offset = (uint64_t)offset * sizeof(float);
}

/* Where an element lies in the buffer of an array that is seen in a view, for an index of the output. */
static int64_t place_of(const RandomArray* a, Seen seen, int32_t rank, const int64_t* index) {
  int64_t at = a->first;
  for (int32_t d = 0; d < a->tensor.ndim; ++d) {
    int32_t axis = a->tensor.ndim - 1 - d + seen.trailing; /* counted from the last */
    if (a->shape[d] == 1 && !(seen.block > 1 && axis == seen.axis)) continue;
    int64_t k = index[rank - 1 - axis];
    at += (axis == seen.axis ? k / seen.block : k) * a->strides[d];
  }
  return at;
}

typedef struct {
  relu_ops_operator* op;
  int leaves;
  Leaf* views; /* of the operator */
  RandomArray arrays[MOST_LEAVES], out;
  float constants[64];
  int64_t constant_dims[1];
  bool in_place;
} RandomCall;

/* Dimensions of the output, few and small but now and then; even where blocks are read. */
static int32_t draw_output(int64_t* shape, bool blocked) {
  int32_t rank = (int32_t)below(6);
  for (int32_t d = 0; d < rank; ++d) {
    shape[d] = one_in(20) ? 0 : one_in(6) ? 1 : 1 + below(8);
    if (blocked) shape[d] *= 2;
  }
  if (rank > 0 && one_in(25)) {
    shape[rank - 1] = 1 + below(20000);
    for (int32_t d = 0; d < rank - 2; ++d) shape[d] = shape[d] > 2 ? 2 : shape[d];
    if (blocked) shape[rank - 1] *= 2;
  }
  return rank;
}

/* The shape of a leaf that broadcasts into an output, and the view in which it is seen. The first leaf has
 * the shape of the output. */
static int32_t draw_leaf(RandomArray* a, Leaf* leaf, bool is_first, int32_t rank, const int64_t* shape,
                         int32_t axis) {
  int32_t own = is_first ? rank : (int32_t)below(rank + 1), skipped = rank - own;
  leaf->seen = PLAIN;
  if (!is_first && own > 0 && one_in(4)) leaf->seen.trailing = (int32_t)below(own) + 1;
  own -= leaf->seen.trailing;
  for (int32_t d = 0; d < own; ++d)
    a->shape[d] = !is_first && one_in(4) ? 1 : shape[skipped + d];
  int32_t repeated = own - 1 - (axis - leaf->seen.trailing);
  if (axis >= leaf->seen.trailing && repeated >= 0 && !is_first) {
    leaf->seen.axis = axis;
    leaf->seen.block = 2;
    a->shape[repeated] = shape[skipped + repeated] / 2;
  }
  return own;
}

/* Make the second leaf a constant, of the length of the last dimension. */
static void make_constant(RandomCall* call, int64_t length) {
  relu_ops_spec* specs = (relu_ops_spec*)call->op->inputs;
  Term* terms = (Term*)call->op->output_terms[0].terms;
  for (int64_t k = 0; k < length; ++k) call->constants[k] = (float)below(1000);
  call->constant_dims[0] = length;
  call->views[1] = (Leaf){PLAIN, -1, 1, call->constant_dims, (const unsigned char*)call->constants};
  terms[1] = (Term){PLAIN, -1, 1, call->constant_dims};
  if (call->leaves == 3) {
    call->views[2].input = terms[2].input = 1;
    const char* name = specs[1].name;
    specs[1] = specs[2];
    free((void*)name);
  } else {
    free((void*)specs[1].name);
  }
  call->op->input_count--;
}

static bool may_be_in_place(const RandomCall* call) {
  const RandomArray* a = &call->arrays[0];
  for (int32_t d = 0; d < a->tensor.ndim; ++d)
    if (a->strides[d] == 0 && a->shape[d] > 1) return false;
  return true;
}

static void draw_call(RandomCall* call) {
  int64_t shape[MAX_RANK];
  bool blocked = one_in(4);
  int32_t rank = draw_output(shape, blocked), axis = blocked && rank ? (int32_t)below(rank) : MAX_RANK;
  memset(call, 0, sizeof(*call));
  call->leaves = 1 + (int)below(MOST_LEAVES);
  call->op = sum_of(call->leaves);
  call->views = (Leaf*)call->op->leaves;
  Term* terms = (Term*)call->op->output_terms[0].terms;
  for (int k = 0; k < call->leaves; ++k) {
    int32_t own = draw_leaf(&call->arrays[k], &call->views[k], k == 0, rank, shape, axis);
    lay_out_randomly(&call->arrays[k], own, true);
    terms[k].seen = call->views[k].seen;
    if (k && own == 0 && one_in(2)) ((relu_ops_spec*)call->op->inputs)[k].rank = 0;
  }
  memcpy(call->out.shape, shape, sizeof(int64_t) * (size_t)rank);
  call->in_place = one_in(4) && may_be_in_place(call);
  if (!call->in_place) lay_out_randomly(&call->out, rank, false);
}

/* Write into `before` of the output what is to be there. */
static void expect_sums(RandomCall* call) {
  RandomArray* out = call->in_place ? &call->arrays[0] : &call->out;
  int32_t rank = out->tensor.ndim;
  int64_t index[MAX_RANK] = {0};
  for (int32_t d = 0; d < rank; ++d)
    if (out->shape[d] == 0) return;
  for (;;) {
    float sum = 1;
    for (int k = 0; k < call->leaves; ++k) {
      const Leaf* leaf = &call->views[k];
      sum += leaf->input < 0 ? call->constants[call->constant_dims[0] == 1 ? 0 : index[rank - 1]]
                             : call->arrays[k].buffer[place_of(&call->arrays[k], leaf->seen, rank, index)];
    }
    out->before[place_of(out, PLAIN, rank, index)] = sum;
    int32_t d = rank - 1;
    while (d >= 0 && ++index[d] == out->shape[d]) index[d--] = 0;
    if (d < 0) return;
  }
}

static void check_buffer(const RandomArray* a) {
  CHECK(memcmp(a->buffer, a->before, sizeof(float) * (size_t)a->size) == 0);
}

static void run_random(RandomCall* call) {
  DLTensor inputs[MOST_LEAVES], out = call->in_place ? call->arrays[0].tensor : call->out.tensor;
  for (int k = 0; k < call->leaves; ++k)
    if (call->views[k].input >= 0) inputs[call->views[k].input] = call->arrays[k].tensor;
  const relu_ops_options options = {.threads = one_in(2) ? 0 : 1 + (int32_t)below(9),
                                    .host = one_in(10) ? &HOST : NULL};
  if (one_in(2)) {
    bool is_default = !options.threads && !options.host;
    CHECK(relu_ops_call(call->op, inputs, &out, is_default ? NULL : &options) == RELU_OPS_OK);
    return;
  }
  relu_ops_bound* bound;
  CHECK(relu_ops_bind(call->op, inputs, &out, &options, &bound) == RELU_OPS_OK);
  CHECK(relu_ops_run(bound) == RELU_OPS_OK);
  if (!call->in_place) CHECK(relu_ops_run(bound) == RELU_OPS_OK);
  relu_ops_free(bound);
}

static void random_layouts(void) {
  for (uint64_t seed = 1; seed <= SEEDS; ++seed) {
    state = seed * UINT64_C(0x9E3779B97F4A7C15);
    use(1 + (int)below(4), one_in(2) ? 0 : NEVER, one_in(2) ? 0 : NEVER, one_in(2) ? 0 : NEVER);
    RandomCall call;
    draw_call(&call);
    int32_t rank = call.arrays[0].tensor.ndim;
    int64_t last = rank > 0 ? call.arrays[0].shape[rank - 1] : 0;
    if (call.leaves > 1 && last > 0 && last <= 64 && one_in(4)) make_constant(&call, one_in(3) ? 1 : last);
    relu_ops_find_vectors(call.op);
    if (one_in(8)) call.op->takes_vectors = false, call.op->short_vectors.call = NULL;
    expect_sums(&call);
    run_random(&call);
    if (!call.in_place) check_buffer(&call.out);
    for (int k = 0; k < call.leaves; ++k) check_buffer(&call.arrays[k]);
    for (int k = 0; k < call.leaves; ++k) drop_array(&call.arrays[k]);
    if (!call.in_place) drop_array(&call.out);
    drop(call.op);
  }
  CHECK(atomic_load(&streamed) > 0);
}

/* ---- sizes of elements ---------------------------------------------------------------------------- */

/* int8 in, float64 out: operands of two sizes. */
static void widen(char* const* data, const int64_t* row, const int64_t* inner, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i)
      ((double*)data[1])[r * row[1] + i * inner[1]] = ((const int8_t*)data[0])[r * row[0] + i * inner[0]];
}

static void elements_of_two_sizes(void) {
  static const int8_t any[] = {-1, -1};
  static const Kernel kernel = {widen, NULL, any};
  relu_ops_operator* op = new_operator(1, 1, false, &kernel, 1);
  ((relu_ops_spec*)op->inputs)[0].dtype = INT8;
  ((relu_ops_spec*)op->outputs)[0].dtype = FLOAT64;
  ((uint8_t*)op->itemsizes)[0] = 1, ((uint8_t*)op->itemsizes)[1] = 8;
  op->element_bytes = 9;
  static int8_t in[70001];
  static double out[70001];
  for (int k = 0; k < 70001; ++k) in[k] = (int8_t)(k % 251 - 125);
  DLTensor x = tensor(in, 1, DIMS(70001)), y = tensor(out, 1, DIMS(70001));
  x.dtype = INT8, y.dtype = FLOAT64;
  use(3, 0, NEVER, 0);
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  for (int k = 0; k < 70001; ++k) CHECK(out[k] == in[k]);
  x = strided(in + 300, 2, DIMS(20, 10), DIMS(-10, 1)), y = strided(out, 2, DIMS(20, 10), DIMS(1, 20));
  x.dtype = INT8, y.dtype = FLOAT64;
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  for (int r = 0; r < 20; ++r)
    for (int c = 0; c < 10; ++c) CHECK(out[r + 20 * c] == in[300 - 10 * r + c]);
  x = tensor(out, 1, DIMS(64)), y = tensor(out, 1, DIMS(64)); /* one place, elements of two sizes */
  x.dtype = INT8, y.dtype = FLOAT64;
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_ARGUMENT);
  drop(op);
}

/* ---- many outputs -------------------------------------------------------------------------------- */

enum { MANY_ELEMENTS = 5 };

/* A call with so many inputs and outputs of (5,), or of shapes that do not broadcast together. */
static void call_many(int count, bool apart) {
  relu_ops_operator* op = each_of(count, apart);
  DLTensor* x = calloc((size_t)count, sizeof(DLTensor));
  DLTensor* y = calloc((size_t)count, sizeof(DLTensor));
  float* memory = malloc(sizeof(float) * 2 * MANY_ELEMENTS * (size_t)count);
  const int64_t *whole = DIMS(MANY_ELEMENTS), *less = DIMS(MANY_ELEMENTS - 1);
  for (int k = 0; k < count; ++k) {
    const int64_t* shape = apart && k % 2 ? less : whole;
    x[k] = tensor(memory + MANY_ELEMENTS * k, 1, shape);
    y[k] = tensor(memory + MANY_ELEMENTS * (count + k), 1, shape);
  }
  int elements = MANY_ELEMENTS * count;
  for (int k = 0; k < 2 * elements; ++k) memory[k] = k < elements ? (float)k : -1;
  relu_ops_bound* bound;
  CHECK(relu_ops_bind(op, x, y, NULL, &bound) == RELU_OPS_OK);
  CHECK(relu_ops_run(bound) == RELU_OPS_OK);
  relu_ops_free(bound);
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  for (int k = 0; k < count; ++k)
    for (int i = 0; i < MANY_ELEMENTS; ++i)
      CHECK(memory[elements + MANY_ELEMENTS * k + i] ==
            (i < y[k].shape[0] ? (float)(MANY_ELEMENTS * k + i + 1) : -1));
  free(memory);
  free(y);
  free(x);
  drop(op);
}

static void many_outputs(void) {
  use(1, NEVER, NEVER, NEVER);
  call_many(2, true);
  call_many(300, false);
  call_many(60, true);
  use(2, 0, 0, 0);
  call_many(300, false);
}

static void* call_most(void* unused) {
  (void)unused;
  call_many(RELU_OPS_MOST_OUTPUTS, false);
  call_many(100, true);
  return NULL;
}

/* The most outputs that an image may have, in a thread with a small stack. */
static void most_outputs_on_a_small_stack(void) {
  use(2, 0, NEVER, 0);
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 512 << 10);
  CHECK(pthread_create(&thread, &attributes, call_most, NULL) == 0);
  pthread_join(thread, NULL);
  pthread_attr_destroy(&attributes);
}

/* Let this process have so many bytes more, and no others. */
static void limit_memory(size_t more) {
  unsigned long pages;
  FILE* file = fopen("/proc/self/statm", "r");
  CHECK(file && fscanf(file, "%lu", &pages) == 1 && fclose(file) == 0);
  rlim_t most = pages * (rlim_t)sysconf(_SC_PAGESIZE) + more;
  const struct rlimit limit = {most, most};
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

/* A plan for each of 512 outputs takes 75 MB; of one shape they share one. */
static void memory_is_short(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  skip("sanitizers need the memory that is refused");
#endif
  enum { COUNT = RELU_OPS_MOST_OUTPUTS };
  static DLTensor x[COUNT], y[COUNT];
  static float memory[4 * COUNT];
  static const int64_t two[] = {2}; /* which outlives the loop */
  char message[128];
  relu_ops_bound* bound = NULL;
  limit_memory(32 << 20);
  call_many(COUNT, false);
  relu_ops_operator* op = each_of(COUNT, true);
  for (int k = 0; k < COUNT; ++k) {
    x[k] = tensor(memory, 1, two);
    y[k] = tensor(memory + 2 * k, 1, two);
  }
  y[1].shape = x[1].shape = (int64_t*)DIMS(1);
  snprintf(message, sizeof(message), "f: there is no memory for the plan of a call (%zu bytes)",
           plans_size(op));
  REFUSED(relu_ops_call(op, x, y, NULL), RELU_OPS_MEMORY, message, NULL);
  REFUSED(relu_ops_bind(op, x, y, NULL, &bound), RELU_OPS_MEMORY, message, NULL);
  CHECK(!bound);
  drop(op);
}

/* Outputs of shapes that do go together: the smaller one is computed again and again, and right. */
static void outputs_that_broadcast_together(void) {
  relu_ops_operator* op = each_of(2, true);
  DLTensor x[] = {tensor(A, 1, DIMS(4)), tensor(B, 2, DIMS(3, 4))};
  DLTensor y[] = {tensor(Y, 1, DIMS(4)), tensor(Z, 2, DIMS(3, 4))};
  for (int k = 0; k < 12; ++k) A[k] = (float)k, B[k] = (float)(100 + k), Y[k] = Z[k] = -1;
  use(2, 0, NEVER, 0);
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  for (int k = 0; k < 12; ++k) CHECK(Y[k] == (k < 4 ? (float)(k + 1) : -1) && Z[k] == (float)(101 + k));
  x[1] = tensor(NULL, 1, DIMS(0)), y[1] = tensor(NULL, 1, DIMS(0)); /* one is empty */
  memset(Y, 0, sizeof(Y));
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  for (int k = 0; k < 4; ++k) CHECK(Y[k] == (float)(k + 1));
  drop(op);
}

static void a_transposed_input_is_read_in_blocks(void) {
  relu_ops_operator* op = sum_of(1);
  use(1, NEVER, NEVER, NEVER);
  DLTensor x = strided(large_in, 2, DIMS(500, 600), DIMS(1, 500)), y = tensor(large_out, 2, DIMS(500, 600));
  fill_large();
  atomic_store(&called, 0);
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  CHECK(atomic_load(&called) >= (500 / 32) * (600 / 16));
  for (int r = 0; r < 500; ++r)
    for (int c = 0; c < 600; ++c) CHECK(large_out[600 * r + c] == large_in[500 * c + r] + 1);
  drop(op);
}

const Test PLANS[] = {
    {"random_layouts", random_layouts},
    {"elements_of_two_sizes", elements_of_two_sizes},
    {"many_outputs", many_outputs},
    {"most_outputs_on_a_small_stack", most_outputs_on_a_small_stack},
    {"memory_is_short", memory_is_short},
    {"outputs_that_broadcast_together", outputs_that_broadcast_together},
    {"a_transposed_input_is_read_in_blocks", a_transposed_input_is_read_in_blocks},
    {NULL, NULL},
};
