/* Refusals: every sentence about a tensor, whole; and what an operator says of itself. */
#include "by_hand.h"

#include <inttypes.h>
#include <stdio.h>

#include "../../../relu_ops/native/plan.h"

/* ---- refusals ------------------------------------------------------------------------------------ */

static void devices(void) {
  relu_ops_operator* op = sum_of(2);
  const char* copy = "copy it there first, or load an image for that device";
  DLTensor x[] = {tensor(A, 1, DIMS(4)), tensor(B, 1, DIMS(4))}, y = tensor(Y, 1, DIMS(4));
  x[0].device = (DLDevice){kDLCUDA, 0};
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: a is in the memory of device cuda:0; this operator runs on the CPU", copy);
  x[0].device = (DLDevice){kDLCPU, 0};
  y.device = (DLDevice){kDLROCM, 3};
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y is in the memory of device rocm:3; this operator runs on the CPU", copy);
  y.device = (DLDevice){(DLDeviceType)99, 0};
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y is in the memory of device of DLPack's type 99; this operator runs on the CPU",
               copy);
  y.device = (DLDevice){kDLCPU, 1};
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y is on cpu:1; a is on cpu:0: all arrays must be on one device",
               "copy one of them to the device of the other");
  y.device = (DLDevice){kDLCPU, 0};
  x[1].device = (DLDevice){kDLCUDAHost, 2}; /* pinned: the processor's own memory */
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  op->device_type = kDLCUDA;
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: a is in the memory of device cpu:0; this operator runs on cuda:0", copy);
  drop(op);
}

static void dtypes(void) {
  relu_ops_operator* op = sum_of(1);
  DLTensor x = tensor(A, 1, DIMS(4)), y = tensor(Y, 1, DIMS(4));
  x.dtype = FLOAT64;
  REFUSED_CALL(op, &x, &y, RELU_OPS_TYPE, "f: a.dtype must be float32 (not float64)",
               "convert it to float32 first");
  x.dtype = (DLDataType){kDLFloat, 32, 4};
  REFUSED_CALL(op, &x, &y, RELU_OPS_TYPE, "f: a.dtype must be float32 (not float32x4)",
               "convert it to float32 first");
  x.dtype = FLOAT32;
  y.dtype = INT8;
  REFUSED_CALL(op, &x, &y, RELU_OPS_TYPE, "f: out for y.dtype must be float32 (not int8)", NULL);
  drop(op);
}

static void ranks_and_extents(void) {
  relu_ops_operator* op = sum_of(1);
  const int64_t ones[17] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  DLTensor x = tensor(A, 17, ones), y = tensor(Y, 0, NULL);
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT, "f: a has 17 dimensions; at most 16 are supported",
               "reshape it first: dimensions that lie together can be one");
  x.ndim = -1;
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT, "f: a has -1 dimensions; it must have 0 to 16", NULL);
  x.ndim = 2;
  x.shape = NULL;
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT, "f: a has no shape: for 2 dimensions it is NULL", NULL);
  x = tensor(A, 2, DIMS(-1, 3));
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT, "f: a.shape must not be negative (not (-1, 3))", NULL);
  x = tensor(A, 2, DIMS(INT64_C(1) << 31, INT64_C(1) << 30));
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a of shape (2147483648, 1073741824) is larger than any memory", NULL);
  x = tensor(A, 3, DIMS(INT64_MAX, 0, 2)); /* without elements, and still none that strides can reach */
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a of shape (9223372036854775807, 0, 2) is larger than any memory", NULL);
  x = tensor(A, 3, DIMS(0, INT64_MAX, 2));
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a of shape (0, 9223372036854775807, 2) is larger than any memory", NULL);
  drop(op);
}

static void strides_that_wrap(void) {
  relu_ops_operator* op = sum_of(1);
  DLTensor y = tensor(Y, 1, DIMS(2));
  const int64_t wrong[] = {INT64_MAX, INT64_MIN, (INT64_C(1) << 60) + 1, -(INT64_C(1) << 60) - 1};
  for (int k = 0; k < 4; ++k) {
    char message[160];
    DLTensor x = strided(A, 1, DIMS(2), &wrong[k]);
    snprintf(message, sizeof(message),
             "f: a reaches beyond any memory (shape (2,), strides in elements (%" PRId64 ",))", wrong[k]);
    REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT, message, NULL);
  }
  DLTensor x = strided(A, 2, DIMS(2, 2), DIMS(INT64_C(1) << 60, INT64_C(1) << 60));
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a reaches beyond any memory (shape (2, 2), strides in elements (1152921504606846976, "
               "1152921504606846976))",
               NULL);
  x = strided(A, 2, DIMS(1, 2), DIMS(INT64_MIN, 2)); /* a stride that is never taken may be anything */
  y = tensor(Y, 2, DIMS(1, 2));
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  drop(op);
}

static void addresses(void) {
  relu_ops_operator* op = sum_of(1);
  DLTensor x = tensor((char*)A + 2, 1, DIMS(4)), y = tensor(Y, 1, DIMS(4));
  const char* hint = "copy it to where it is aligned";
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a lies at an address that is no multiple of 4, the size of its elements", hint);
  x.data = A;
  x.byte_offset = 3;
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: a lies at an address that is no multiple of 4, the size of its elements", hint);
  x.byte_offset = 0;
  y.data = (char*)Y + 1;
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: out for y lies at an address that is no multiple of 4, the size of its elements", hint);
  y.data = NULL;
  REFUSED_CALL(op, &x, &y, RELU_OPS_ARGUMENT,
               "f: out for y has elements (its shape is (4,)) and no data: they are at NULL",
               "let its data point to the first of its elements");
  x = tensor(NULL, 2, DIMS(0, 3)), y = tensor((char*)Y + 1, 2, DIMS(0, 3)); /* nothing is anywhere */
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_OK);
  drop(op);
}

#define DECLARED "the model declares this: reshape the array, or declare another and build again"
#define ALIGNED "shapes are aligned at their last dimension; there, extents must be equal, or 1"

static void declared_shapes(void) {
  relu_ops_operator* op = sum_of(2);
  declare(op, 0, 2, DIMS(-2, 4)); /* (N, 4) */
  declare(op, 1, 2, DIMS(-2, 4));
  DLTensor x[] = {tensor(A, 2, DIMS(3, 4)), tensor(B, 2, DIMS(5, 4))}, y = tensor(Y, 2, DIMS(3, 4));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: b.shape must be (N, 4) with N = 3, as a has it (not (5, 4))", DECLARED);
  x[1] = tensor(B, 2, DIMS(3, 5));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: b.shape must be (N, 4) (not (3, 5))", DECLARED);
  x[1] = tensor(B, 1, DIMS(4));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: b.shape must be (N, 4) (not (4,))", DECLARED);
  x[1] = tensor(B, 2, DIMS(3, 4));
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  declare(op, 1, 1, DIMS(-1)); /* any extent */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: b.shape must be (?,) (not (3, 4))", DECLARED);
  declare(op, 1, 0, NULL);
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: b.shape must be () (not (3, 4))", DECLARED);
  declare(op, 0, 2, DIMS(-2, -2)); /* (N, N): alike arrays, and yet wrong */
  declare(op, 1, -1, NULL);
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: a.shape must be (N, N) with N = 3, as a has it (not (3, 4))", DECLARED);
  drop(op);
}

static void shapes_together(void) {
  relu_ops_operator* op = sum_of(2);
  DLTensor x[] = {tensor(A, 1, DIMS(3)), tensor(B, 1, DIMS(4))}, y = tensor(Y, 1, DIMS(4));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: these shapes do not broadcast together: a (3,), b (4,)",
               ALIGNED);
  Term* terms = (Term*)op->output_terms[0].terms;
  terms[1] = (Term){PLAIN, -1, 1, DIMS(2)};
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: these shapes do not broadcast together: a (3,), a constant (2,)",
               ALIGNED);
  terms[1] = (Term){.seen = PLAIN, .input = 1};
  x[1] = tensor(B, 1, DIMS(3));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: out for y.shape must be (3,) (not (4,))", NULL);
  y = tensor(Y, 2, DIMS(1, 3));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: out for y.shape must be (3,) (not (1, 3))", NULL);
  y = strided(Y, 2, DIMS(2, 3), DIMS(0, 1));
  x[1] = tensor(B, 2, DIMS(2, 3));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: out for y has several elements in one place (strides in elements (0, 1))",
               "pass an array whose elements lie apart");
  terms[1].seen.trailing = 15;
  relu_ops_find_vectors(op);
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: with the dimensions that the model appends, the inputs have more than 16 dimensions, "
               "which is the most that is supported",
               NULL);
  drop(op);
}

static void requirements(void) {
  relu_ops_operator* op = sum_of(2);
  const Term slope = {.seen = PLAIN, .input = 1}, x_itself = {.seen = PLAIN, .input = 0};
  const Requirement requirement = {"the slope of n", {1, &slope}, {1, &x_itself}};
  op->requirements = &requirement;
  op->requirement_count = 1;
  relu_ops_find_vectors(op);
  DLTensor x[] = {tensor(A, 1, DIMS(1)), tensor(B, 1, DIMS(2))}, y = tensor(Y, 1, DIMS(2));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, "f: the slope of n of shape (2,) must broadcast into (1,)",
               ALIGNED);
  x[0] = tensor(A, 1, DIMS(2));
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  drop(op);
}

/* A blocked axis takes a dimension of its own: what has 16 already has no room for it. */
static void blocks_of_many_dimensions(void) {
  relu_ops_operator* op = sum_of(2);
  int64_t shape[16] = {2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
  ((Leaf*)op->leaves)[1].seen = ((Term*)op->output_terms[0].terms)[1].seen = (Seen){0, 0, 2};
  relu_ops_find_vectors(op);
  DLTensor x[] = {tensor(A, 16, shape), tensor(B, 1, DIMS(1))}, y = tensor(Y, 16, shape);
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT,
               "f: with a dimension for each that is read in blocks, the inputs have more than 16 "
               "dimensions, which is the most that is supported",
               NULL);
  x[0].ndim = y.ndim = 15;
  x[0].shape = y.shape = shape + 1;
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  drop(op);
}

static void overlaps(void) {
  relu_ops_operator* op = sum_of(2);
  const char *apart = "pass arrays that lie apart",
             *of_a = "f: out for y must not overlap a in memory, unless it is the same, element for element";
  DLTensor x[] = {tensor(A, 1, DIMS(8)), tensor(B, 1, DIMS(8))}, y = tensor(A, 1, DIMS(8));
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  for (int shift = 1; shift < 8; ++shift) {
    y.data = A + shift;
    REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
    x[0].data = A + shift, y.data = A;
    REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
    x[0].data = A;
  }
  y.data = A + 8;
  CHECK(relu_ops_call(op, x, &y, NULL) == RELU_OPS_OK);
  y = strided(A + 7, 1, DIMS(8), DIMS(-1)); /* turned round */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
  x[0] = strided(A, 1, DIMS(8), DIMS(2)), y = strided(A + 1, 1, DIMS(8), DIMS(2)); /* interleaved */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
  x[0] = strided(A + 14, 1, DIMS(8), DIMS(-2)), y = strided(A, 1, DIMS(8), DIMS(2));
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
  x[0] = strided(A, 1, DIMS(8), DIMS(0)), y = tensor(A, 1, DIMS(8)); /* repeated, and then written */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
  x[0] = tensor(A, 1, DIMS(1)); /* one number for all */
  REFUSED_CALL(op, x, &y, RELU_OPS_ARGUMENT, of_a, apart);
  drop(op);
}

static void overlaps_of_several_outputs(void) {
  const char* apart = "pass arrays that lie apart";
  for (int shapes = 0; shapes < 2; ++shapes) { /* of one shape, and of shapes that do not go together */
    const int64_t *one = DIMS(8), *other = shapes ? DIMS(5) : DIMS(8);
    relu_ops_operator* op = each_of(2, shapes == 1);
    DLTensor x[] = {tensor(A, 1, one), tensor(B, 1, other)}, y[] = {tensor(Y, 1, one), tensor(Z, 1, other)};
    CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
    y[1].data = Y + 4;
    REFUSED_CALL(op, x, y, RELU_OPS_ARGUMENT, "f: the outputs must not overlap or interleave in memory",
                 apart);
    y[1].data = A;
    REFUSED_CALL(op, x, y, RELU_OPS_ARGUMENT, "f: out for z must not overlap a in memory", apart);
    y[1].data = Z, y[0].data = B + 1; /* written first, what the second one reads */
    REFUSED_CALL(op, x, y, RELU_OPS_ARGUMENT, "f: out for y must not overlap b in memory", apart);
    drop(op);
  }
}

/* Where one array ends, another one may begin. */
static void outputs_that_touch_lie_apart(void) {
  relu_ops_operator* op = each_of(2, false);
  DLTensor x[] = {tensor(A, 1, DIMS(8)), tensor(A + 8, 1, DIMS(8))};
  DLTensor y[] = {tensor(Y, 1, DIMS(8)), tensor(Y + 8, 1, DIMS(8))};
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  y[0].data = A + 16; /* an input ends there */
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  y[1].data = A + 24;
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_OK);
  drop(op);
}

static void wrong_options(void) {
  relu_ops_operator* op = sum_of(1);
  DLTensor x = tensor(A, 1, DIMS(4)), y = tensor(Y, 1, DIMS(4));
  for (int32_t count = -1; count <= 257; count += 258) {
    char message[64];
    const relu_ops_options options = {.threads = count};
    snprintf(message, sizeof(message), "threads must be 1 to 256 (not %d)", (int)count);
    REFUSED(relu_ops_call(op, &x, &y, &options), RELU_OPS_ARGUMENT, message, NULL);
  }
  const relu_ops_options streamed_to = {.stream = A};
  REFUSED(relu_ops_call(op, &x, &y, &streamed_to), RELU_OPS_ARGUMENT,
          "f: stream must be NULL: this operator runs on the CPU",
          "on the CPU the work is done when the call returns");
  const relu_ops_host_threads nobody = {HOST.run, NULL, 0}, nothing = {NULL, NULL, 2};
  const relu_ops_options no_threads = {.host = &nobody}, no_function = {.host = &nothing};
  REFUSED(relu_ops_call(op, &x, &y, &no_threads), RELU_OPS_ARGUMENT,
          "f: a host's threads must be at least 1, with a function that runs them (not 0)", NULL);
  REFUSED(relu_ops_call(op, &x, &y, &no_function), RELU_OPS_ARGUMENT,
          "f: a host's threads must be at least 1, with a function that runs them (not 2, NULL)", NULL);
  drop(op);
}

/* Nothing is written before everything is checked; a bound call that is refused gives nothing. */
static void refusals_write_nothing(void) {
  relu_ops_operator* op = each_of(2, false);
  relu_ops_bound* bound = NULL;
  DLTensor x[] = {tensor(A, 1, DIMS(8)), tensor(B, 1, DIMS(8))};
  DLTensor y[] = {tensor(Y, 1, DIMS(8)), tensor(Z, 1, DIMS(7))};
  for (int k = 0; k < 8; ++k) Y[k] = 42;
  CHECK(relu_ops_call(op, x, y, NULL) == RELU_OPS_ARGUMENT);
  CHECK(relu_ops_bind(op, x, y, NULL, &bound) == RELU_OPS_ARGUMENT && !bound);
  for (int k = 0; k < 8; ++k) CHECK(Y[k] == 42);
  drop(op);
}

/* ---- what an operator says of itself -------------------------------------------------------------- */

static void output_shapes(void) {
  relu_ops_operator* op = sum_of(2);
  int32_t rank;
  int64_t shape[1][MAX_RANK];
  DLTensor x[] = {tensor(NULL, 2, DIMS(3, 1)), tensor(NULL, 1, DIMS(4))};
  CHECK(relu_ops_output_shapes(op, x, &rank, shape) == RELU_OPS_OK);
  CHECK(rank == 2 && shape[0][0] == 3 && shape[0][1] == 4);
  x[0] = tensor(NULL, 1, DIMS(4));
  CHECK(relu_ops_output_shapes(op, x, &rank, shape) == RELU_OPS_OK && rank == 1 && shape[0][0] == 4);
  x[0] = tensor(NULL, 2, DIMS(0, 1));
  CHECK(relu_ops_output_shapes(op, x, &rank, shape) == RELU_OPS_OK && rank == 2 && shape[0][0] == 0);
  x[0] = tensor(NULL, 1, DIMS(3));
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "f: these shapes do not broadcast together: a (3,), b (4,)",
               ALIGNED);
  x[0] = tensor(NULL, 2, DIMS(INT64_C(1) << 40, 1)), x[1] = tensor(NULL, 1, DIMS(INT64_C(1) << 40));
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "the output y of shape (1099511627776, 1099511627776) is larger than any memory", NULL);
  x[0] = x[1] = tensor(NULL, 1, DIMS(-4));
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "f: a.shape must not be negative (not (-4,))", NULL);
  x[0] = x[1] = tensor(NULL, 1, DIMS(INT64_C(1) << 62));
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "f: a of shape (4611686018427387904,) is larger than any memory", NULL);
  declare(op, 0, 1, DIMS(5));
  x[0] = x[1] = tensor(NULL, 1, DIMS(4));
  REFUSED(relu_ops_output_shapes(op, x, &rank, shape), RELU_OPS_ARGUMENT,
          "f: a.shape must be (5,) (not (4,))", DECLARED);
  drop(op);
}

static void accessors(void) {
  relu_ops_operator* op = sum_of(2);
  relu_ops_spec spec;
  declare(op, 1, 1, DIMS(-3));
  CHECK(!strcmp(relu_ops_name(op), "f") && !strcmp(relu_ops_target(op), "by-hand"));
  CHECK(relu_ops_input_count(op) == 2 && relu_ops_output_count(op) == 1);
  CHECK(relu_ops_input(op, 1, &spec) == RELU_OPS_OK && !strcmp(spec.name, "b") && spec.rank == 1);
  check_text(__FILE__, __LINE__, relu_ops_symbol(op, (int32_t)(-2 - spec.dims[0])), "M");
  CHECK(!relu_ops_symbol(op, 2) && !relu_ops_symbol(op, -1));
  CHECK(relu_ops_output(op, 0, &spec) == RELU_OPS_OK && !strcmp(spec.name, "y") && spec.rank == -1);
  REFUSED(relu_ops_input(op, 2, &spec), RELU_OPS_ARGUMENT,
          "f: there is no input number 2: it has 2, numbered from 0", NULL);
  REFUSED(relu_ops_output(op, -1, &spec), RELU_OPS_ARGUMENT,
          "f: there is no output number -1: it has 1, numbered from 0", NULL);
  drop(op);
}

static void a_bound_call_keeps_its_operator(void) {
  relu_ops_operator* op = sum_of(1);
  relu_ops_bound* bound;
  DLTensor x = tensor(A, 1, DIMS(8)), y = tensor(Y, 1, DIMS(8));
  CHECK(relu_ops_bind(op, &x, &y, NULL, &bound) == RELU_OPS_OK);
  CHECK(atomic_load(&op->references) == 2);
  relu_ops_release(op);
  for (int k = 0; k < 8; ++k) A[k] = (float)k;
  CHECK(relu_ops_run(bound) == RELU_OPS_OK && Y[7] == 8);
  relu_ops_hold(op);
  relu_ops_free(bound);
  relu_ops_free(NULL);
  relu_ops_release(NULL);
  drop(op);
}

const Test REFUSALS[] = {
    {"devices", devices},
    {"dtypes", dtypes},
    {"ranks_and_extents", ranks_and_extents},
    {"strides_that_wrap", strides_that_wrap},
    {"addresses", addresses},
    {"declared_shapes", declared_shapes},
    {"shapes_together", shapes_together},
    {"requirements", requirements},
    {"blocks_of_many_dimensions", blocks_of_many_dimensions},
    {"overlaps", overlaps},
    {"overlaps_of_several_outputs", overlaps_of_several_outputs},
    {"outputs_that_touch_lie_apart", outputs_that_touch_lie_apart},
    {"wrong_options", wrong_options},
    {"refusals_write_nothing", refusals_write_nothing},
    {"output_shapes", output_shapes},
    {"accessors", accessors},
    {"a_bound_call_keeps_its_operator", a_bound_call_keeps_its_operator},
    {NULL, NULL},
};
