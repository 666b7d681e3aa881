/* Runs an operator of a bundle on numbers that are given, and prints what it computes:
 *
 *   relu BUNDLE DIGEST NUMBER...
 *
 * DIGEST is the sha256 of the bundle's SHA256SUMS, in hexadecimal, as `sha256sum` prints it: the library
 * refuses another bundle. The operator takes one float32 array of any length; run.sh builds such a one. */
#include <relu_ops.h>
#include <stdio.h>
#include <stdlib.h>

/* Say what the library's last error was; the exit code. */
static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, relu_ops_message());
  if (relu_ops_hint()) fprintf(stderr, "hint: %s\n", relu_ops_hint());
  return EXIT_FAILURE;
}

/* A vector, as the library takes arrays: it points to the caller's memory and to the caller's extent. */
static DLTensor vector(float* data, int64_t* count) {
  DLTensor tensor = {.data = data, .device = {kDLCPU, 0}, .ndim = 1, .dtype = {kDLFloat, 32, 1}};
  tensor.shape = count;
  return tensor;
}

static int run(const relu_ops_operator* op, int64_t count, float* x, float* y) {
  DLTensor input = vector(x, &count), output = vector(y, &count);
  if (relu_ops_call(op, &input, &output, NULL)) return fail(relu_ops_name(op));
  printf("%s on %s\n", relu_ops_name(op), relu_ops_target(op));
  for (int64_t k = 0; k < count; ++k) printf("%g -> %g\n", (double)x[k], (double)y[k]);
  return EXIT_SUCCESS;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s BUNDLE DIGEST NUMBER...\n", argv[0]);
    return 2;
  }
  relu_ops_bundle* bundle;
  relu_ops_operator* op;
  if (relu_ops_require(RELU_OPS_API) || relu_ops_open(argv[1], argv[2], &bundle)) return fail(argv[1]);
  relu_ops_status status = relu_ops_load(bundle, NULL, NULL, &op);
  relu_ops_close(bundle); /* an operator needs it no more */
  if (status) return fail(argv[1]);

  size_t count = (size_t)argc - 3;
  float* x = malloc(2 * count * sizeof(*x));
  int code = EXIT_FAILURE;
  if (x) {
    for (size_t k = 0; k < count; ++k) x[k] = strtof(argv[k + 3], NULL);
    code = run(op, (int64_t)count, x, x + count);
  }
  free(x);
  relu_ops_release(op);
  return code;
}
