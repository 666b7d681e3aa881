/* A program that uses relu_ops.h as anybody would: C11, and C++17 all the same. Run by test_c_interface.py:
 *   program BUNDLE DIGEST
 * opens a bundle of `leaky` (alpha 0.5, any shape) and `scaled` (x * scale, rows of N) and prints what it
 * finds, a line each; exits with the number of the first check that fails. */
#include <dlpack/dlpack.h>
#include <pthread.h>
#include <relu_ops.h>
#include <stdio.h>
#include <string.h>

#define CHECK(holds)                                                                    \
  do {                                                                                  \
    if (!(holds)) {                                                                     \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, #holds, relu_ops_message());       \
      return __LINE__ % 250 + 1;                                                        \
    }                                                                                   \
  } while (0)

static DLTensor tensor_of(void* data, int32_t rank, int64_t* shape) {
  DLTensor tensor;
  memset(&tensor, 0, sizeof(tensor));
  tensor.data = data;
  tensor.device.device_type = kDLCPU;
  tensor.ndim = rank;
  tensor.dtype.code = kDLFloat;
  tensor.dtype.bits = 32;
  tensor.dtype.lanes = 1;
  tensor.shape = shape;
  return tensor;
}

static void show_spec(const relu_ops_operator* op, const relu_ops_spec* spec) {
  printf("  %s: code %d, %d bits, rank %d", spec->name, spec->dtype.code, spec->dtype.bits, spec->rank);
  for (int32_t d = 0; d < spec->rank; ++d) {
    if (spec->dims[d] < -1) printf(" %s", relu_ops_symbol(op, (int32_t)(-2 - spec->dims[d])));
    else printf(" %lld", (long long)spec->dims[d]);
  }
  printf("\n");
}

static int show(const relu_ops_operator* op) {
  relu_ops_spec spec;
  printf("%s on %s\n", relu_ops_name(op), relu_ops_target(op));
  for (int32_t k = 0; k < relu_ops_input_count(op); ++k) {
    CHECK(!relu_ops_input(op, k, &spec));
    show_spec(op, &spec);
  }
  for (int32_t k = 0; k < relu_ops_output_count(op); ++k) {
    CHECK(!relu_ops_output(op, k, &spec));
    show_spec(op, &spec);
  }
  CHECK(relu_ops_input(op, relu_ops_input_count(op), &spec) == RELU_OPS_ARGUMENT);
  return 0;
}

enum { MANY = 1 << 20 };
static float many_in[MANY], many_out[MANY];

static void* call_often(void* op) {
  float in[64], out[64];
  int64_t shape[] = {64};
  for (int k = 0; k < 64; ++k) in[k] = (float)(k - 32);
  DLTensor x = tensor_of(in, 1, shape), y = tensor_of(out, 1, shape);
  for (int turn = 0; turn < 20000; ++turn) {
    if (relu_ops_call((const relu_ops_operator*)op, &x, &y, NULL)) return op;
    if (out[0] != -16.0f || out[63] != 31.0f) return op;
  }
  return NULL;
}

static int use_leaky(relu_ops_operator* op) {
  float in[6] = {-2, -1, 0, 1, 2, 3}, out[6];
  int64_t shape[] = {2, 3}, transposed[] = {1, 2}, other[] = {3, 3}, count[] = {MANY};
  DLTensor x = tensor_of(in, 2, shape), y = tensor_of(out, 2, shape);
  int32_t rank;
  int64_t found[1][RELU_OPS_MAX_RANK];
  CHECK(!relu_ops_output_shapes(op, &x, &rank, found) && rank == 2 && found[0][1] == 3);
  CHECK(!relu_ops_call(op, &x, &y, NULL));
  CHECK(out[0] == -1.0f && out[1] == -0.5f && out[5] == 3.0f);
  x.strides = y.strides = transposed;
  CHECK(!relu_ops_call(op, &x, &y, NULL)); /* every element in another order: the same result */
  CHECK(out[0] == -1.0f && out[5] == 3.0f);
  x.strides = y.strides = NULL;

  y.shape = other;
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_ARGUMENT);
  printf("refused: %s\n", relu_ops_message());
  y.shape = shape;
  x.dtype.bits = 64;
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_TYPE);
  printf("refused: %s\n", relu_ops_message());
  x.dtype.bits = 32;
  x.device.device_type = kDLCUDA;
  CHECK(relu_ops_call(op, &x, &y, NULL) == RELU_OPS_ARGUMENT);
  printf("refused: %s\n", relu_ops_message());

  relu_ops_bound* bound;
  relu_ops_options options;
  memset(&options, 0, sizeof(options));
  options.threads = 2;
  for (int k = 0; k < MANY; ++k) many_in[k] = (float)(k - MANY / 2);
  DLTensor from = tensor_of(many_in, 1, count), to = tensor_of(many_out, 1, count);
  CHECK(!relu_ops_bind(op, &from, &to, &options, &bound));
  for (int turn = 0; turn < 50; ++turn) {
    memset(many_out, 0, sizeof(many_out));
    CHECK(!relu_ops_run(bound));
    for (int k = 0; k < MANY; k += 999) CHECK(many_out[k] == (many_in[k] < 0 ? many_in[k] / 2 : many_in[k]));
  }
  relu_ops_free(bound);

  void* vectors[] = {in, out};
  memset(out, 0, sizeof(out));
  CHECK(!relu_ops_call_vectors(op, vectors, 6, NULL));
  CHECK(out[0] == -1.0f && out[1] == -0.5f && out[5] == 3.0f);

  pthread_t threads[4];
  void* failed = NULL;
  for (int k = 0; k < 4; ++k) CHECK(!pthread_create(&threads[k], NULL, call_often, op));
  for (int k = 0; k < 4; ++k) {
    void* one;
    pthread_join(threads[k], &one);
    if (one) failed = one;
  }
  CHECK(!failed);
  return 0;
}

int main(int count, char** arguments) {
  CHECK(count == 3);
  CHECK(!relu_ops_require(RELU_OPS_API));
  CHECK(relu_ops_require(RELU_OPS_API + 1) == RELU_OPS_ARGUMENT);
  printf("refused: %s\n", relu_ops_message());
  printf("version %s\n", relu_ops_version());

  relu_ops_bundle* bundle = NULL;
  relu_ops_operator *leaky = NULL, *scaled = NULL;
  char wrong[65];
  memset(wrong, '0', 64);
  wrong[64] = 0;
  CHECK(relu_ops_open(arguments[1], wrong, &bundle) == RELU_OPS_BUNDLE);
  CHECK(relu_ops_open("/nowhere", NULL, &bundle) == RELU_OPS_BUNDLE);
  printf("refused: %s\n", relu_ops_message());
  CHECK(!relu_ops_open(arguments[1], arguments[2], &bundle));
  CHECK(!strcmp(relu_ops_digest(bundle), arguments[2]));
  for (size_t k = 0; k < relu_ops_operator_count(bundle); ++k)
    printf("operator %s\n", relu_ops_operator_name(bundle, k));
  CHECK(relu_ops_load(bundle, NULL, NULL, &leaky) == RELU_OPS_ARGUMENT);
  printf("refused: %s\n", relu_ops_message());
  CHECK(!relu_ops_load(bundle, "leaky", NULL, &leaky));
  CHECK(!relu_ops_load(bundle, "scaled", "x86-64-v2", &scaled));
  relu_ops_close(bundle); /* operators stay */
  int code = show(leaky);
  if (!code) code = show(scaled);
  if (!code) code = use_leaky(leaky);
  relu_ops_release(leaky);
  relu_ops_release(scaled);

  relu_ops_settings settings;
  CHECK(!relu_ops_get_settings(&settings) && settings.threads >= 1);
  settings.threads = 0;
  CHECK(relu_ops_set_settings(&settings) == RELU_OPS_ARGUMENT);
  printf("refused: %s\n", relu_ops_message());
  return code;
}
