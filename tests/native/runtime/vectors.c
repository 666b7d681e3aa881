/* Operators whose arrays are as good as vectors, and calls on vectors. */
#include "by_hand.h"

#include "../../../relu_ops/native/plan.h"

/* ---- single numbers ------------------------------------------------------------------------------- */

/* An operator x + alpha + 1, whose alpha is declared as one number that must fit into x. */
static relu_ops_operator* sum_with_number(void) {
  static const Term alpha = {.seen = {0, 0, 1}, .input = 1}, x = {.seen = {0, 0, 1}, .input = 0};
  static const Requirement requirement = {"alpha of n", {1, &alpha}, {1, &x}};
  relu_ops_operator* op = sum_of(2);
  declare(op, 1, 0, NULL);
  op->requirements = &requirement;
  op->requirement_count = 1;
  relu_ops_find_vectors(op);
  CHECK(op->takes_vectors);
  return op;
}

static void an_operand_that_is_one_number(void) {
  relu_ops_operator* op = sum_with_number();
  int32_t rank;
  int64_t shape[1][MAX_RANK];
  float alpha = 50;
  const relu_ops_options one = {.threads = 1};
  const int64_t sizes[] = {1, 2, 16, 17, 1000, 5000, 50000};
  use(2, 65536, NEVER, 0);
  for (int k = 0; k < 7; ++k)
    for (int way = 0; way < 2; ++way) {
      const int64_t* n = &sizes[k];
      DLTensor x[] = {tensor(large_in, 1, n), tensor(&alpha, 0, NULL)}, y = tensor(large_out, 1, n);
      for (int64_t i = 0; i < *n; ++i) large_in[i] = (float)(i % 1000), large_out[i] = -1;
      large_out[*n] = -1;
      CHECK(relu_ops_output_shapes(op, x, &rank, shape) == RELU_OPS_OK && rank == 1 && shape[0][0] == *n);
      CHECK(relu_ops_call(op, x, &y, way ? &one : NULL) == RELU_OPS_OK);
      for (int64_t i = 0; i < *n; ++i) CHECK(large_out[i] == (float)(i % 1000) + 51);
      CHECK(large_out[*n] == -1);
    }
  DLTensor x[] = {tensor(A, 1, DIMS(8)), tensor(A + 4, 0, NULL)}, y = tensor(A, 1, DIMS(8));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y must not overlap b in memory, unless it is the same, element for element",
               "pass arrays that lie apart");
  x[1].data = A; /* where the output begins, and yet not element for element */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y must not overlap b in memory, unless it is the same, element for element",
               "pass arrays that lie apart");
  x[1] = tensor(B, 1, DIMS(8)); /* alike in every way, and no number */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: b.shape must be () (not (8,))",
          "the model declares this: reshape the array, or declare another and build again");
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "f: b.shape must be () (not (8,))",
          "the model declares this: reshape the array, or declare another and build again");
  drop(op);
}

static bool takes_vectors(relu_ops_operator* op) {
  relu_ops_find_vectors(op);
  return op->takes_vectors;
}

static void which_operators_take_vectors(void) {
  relu_ops_operator* op = sum_with_number();
  Requirement other_way = {"x of n", op->requirements[0].into, op->requirements[0].terms};
  op->requirements = &other_way; /* an array that must fit into a number */
  CHECK(!takes_vectors(op));
  op->requirement_count = 0;
  CHECK(takes_vectors(op));
  declare(op, 0, 0, NULL); /* numbers alone make no array */
  CHECK(!takes_vectors(op));
  declare(op, 0, -1, NULL);
  Leaf* leaf = (Leaf*)&op->leaves[1];
  *leaf = (Leaf){.seen = PLAIN, .input = -1}; /* a constant number */
  CHECK(takes_vectors(op));
  *leaf = (Leaf){PLAIN, -1, 1, DIMS(2), NULL};
  CHECK(!takes_vectors(op));
  *leaf = (Leaf){.seen = {1, 0, 1}, .input = 1};
  CHECK(!takes_vectors(op));
  *leaf = (Leaf){.seen = {0, 0, 2}, .input = 1};
  CHECK(!takes_vectors(op));
  drop(op);
}

/* ---- vectors ------------------------------------------------------------------------------------- */

static float from[3][50001], to[50001];

/* Compute sums of vectors, and check every element, and that none behind the last is touched. */
static void check_sums(const relu_ops_operator* op, int leaves, int64_t elements,
                       const relu_ops_options* options) {
  void* data[] = {from[0], from[1], from[2], NULL};
  data[leaves] = to;
  for (int64_t i = 0; i <= elements; ++i) to[i] = -1;
  CHECK(relu_ops_call_vectors(op, data, elements, options) == RELU_OPS_OK);
  for (int64_t i = 0; i < elements; ++i) {
    float sum = 1;
    for (int k = 0; k < leaves; ++k) sum += from[k][op->inputs[k].rank ? i : 0];
    CHECK(to[i] == sum);
  }
  CHECK(to[elements] == -1);
}

static void vectors_of_any_length(void) {
  const int64_t sizes[] = {0, 1, 2, 16, 17, 1000, 1023, 1024, 5000, 50000};
  const relu_ops_options alone = {.threads = 1}, hosted = {.host = &HOST};
  const relu_ops_options* const options[] = {NULL, &alone, &hosted};
  for (int k = 0; k < 3; ++k)
    for (int i = 0; i < 50001; ++i) from[k][i] = (float)((i * (k + 3)) % 101 - 50);
  use(2, 65536, NEVER, 0);
  for (int leaves = 1; leaves <= 4; ++leaves) {
    relu_ops_operator* op = leaves < 4 ? sum_of(leaves) : sum_with_number();
    CHECK(op->takes_any_shape && op->short_vectors.call);
    for (size_t k = 0; k < sizeof(sizes) / sizeof(*sizes); ++k)
      for (int way = 0; way < 3; ++way) check_sums(op, leaves < 4 ? leaves : 2, sizes[k], options[way]);
    drop(op);
  }
}

static void vectors_in_one_place(void) {
  relu_ops_operator* op = sum_of(1);
  use(1, NEVER, NEVER, NEVER);
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = (float)i;
  CHECK(relu_ops_call_vectors(op, (void*[]){x, x}, 16, NULL) == RELU_OPS_OK);
  for (int i = 0; i < 16; ++i) CHECK(x[i] == (float)i + 1);
  drop(op);
}

static void vectors_of_more_arrays_than_the_stack_has(void) {
  enum { COUNT = 20 };
  relu_ops_operator* op = each_of(COUNT, false);
  float x[COUNT][5], y[COUNT][5];
  void* data[2 * COUNT];
  for (int k = 0; k < COUNT; ++k) {
    for (int i = 0; i < 5; ++i) x[k][i] = (float)(10 * k + i);
    data[k] = x[k], data[COUNT + k] = y[k];
  }
  CHECK(relu_ops_call_vectors(op, data, 5, NULL) == RELU_OPS_OK);
  for (int k = 0; k < COUNT; ++k)
    for (int i = 0; i < 5; ++i) CHECK(y[k][i] == x[k][i] + 1);
  drop(op);
}

#define REFUSED_VECTORS(op, x, y, elements, message, hint) \
  REFUSED(relu_ops_call_vectors(op, (void*[]){x, y}, elements, NULL), RELU_OPS_ARGUMENT, message, hint)

static void vectors_that_are_refused(void) {
  relu_ops_operator* op = sum_of(1);
  use(1, NEVER, NEVER, NEVER);
  REFUSED_VECTORS(op, A, NULL, 4,
                  "f: out for y has elements (its shape is (4,)) and no data: they are at NULL",
                  "let its data point to the first of its elements");
  REFUSED_VECTORS(op, NULL, Y, 4, "f: a has elements (its shape is (4,)) and no data: they are at NULL",
                  "let its data point to the first of its elements");
  REFUSED_VECTORS(op, A, (char*)Y + 1, 4,
                  "f: out for y lies at an address that is no multiple of 4, the size of its elements",
                  "copy it to where it is aligned");
  REFUSED_VECTORS(op, (char*)A + 2, Y, 4,
                  "f: a lies at an address that is no multiple of 4, the size of its elements",
                  "copy it to where it is aligned");
  REFUSED_VECTORS(op, A, A + 1, 4,
                  "f: out for y must not overlap a in memory, unless it is the same, element for element",
                  "pass arrays that lie apart");
  CHECK(relu_ops_call_vectors(op, (void*[]){A, Y}, -1, NULL) == RELU_OPS_ARGUMENT);
  CHECK(relu_ops_call_vectors(op, (void*[]){A, Y}, INT64_MAX, NULL) == RELU_OPS_ARGUMENT);
  declare(op, 0, 1, DIMS(-1));
  relu_ops_find_vectors(op);
  CHECK(op->takes_vectors && !op->takes_any_shape);
  REFUSED_VECTORS(op, A, Y, 4, "f: its model has arrays of shapes that vectors do not have",
                  "pass tensors, to relu_ops_call");
  drop(op);
}

const Test VECTORS[] = {
    {"an_operand_that_is_one_number", an_operand_that_is_one_number},
    {"which_operators_take_vectors", which_operators_take_vectors},
    {"vectors_of_any_length", vectors_of_any_length},
    {"vectors_in_one_place", vectors_in_one_place},
    {"vectors_of_more_arrays_than_the_stack_has", vectors_of_more_arrays_than_the_stack_has},
    {"vectors_that_are_refused", vectors_that_are_refused},
    {NULL, NULL},
};
