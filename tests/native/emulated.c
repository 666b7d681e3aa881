/* Runs operators for tests/emulation.py, below an emulator of another processor. Takes requests from stdin and
 * answers on stdout, as numbers of 8 bytes and plain bytes, in the byte order of both:
 *
 *   LOAD      the path of a bundle, the name of an operator, a target or nothing
 *   SETTINGS  threads, and three sizes: see relu_ops_settings
 *   CALL      threads, how many inputs and outputs, and each array
 *
 * An array is a part of memory that ends (or begins) at a page nobody may touch; what the operator changes
 * of it goes back whole, so that who asked sees every byte beside the elements too. */
#define _GNU_SOURCE
#include <dlpack/dlpack.h>
#include <relu_ops.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_ARRAYS = 64 };

typedef struct {
  char *mapped, *bytes, *before; /* the pages, what the array is a part of, and a copy of that */
  size_t pages, size;
  int64_t shape[RELU_OPS_MAX_RANK], strides[RELU_OPS_MAX_RANK];
  DLTensor tensor;
} Array;

/* ---- requests ------------------------------------------------------------------------------------ */

static void end_if(bool failed, const char* what) {
  if (!failed) return;
  fprintf(stderr, "emulated: %s: %s\n", what, relu_ops_message());
  exit(1);
}

static void take(void* bytes, size_t size) {
  end_if(size && fread(bytes, 1, size, stdin) != size, "the request ends early");
}

static int64_t number(void) {
  int64_t taken;
  take(&taken, sizeof(taken));
  return taken;
}

/* A text; NULL: an empty one. To be freed. */
static char* text(void) {
  size_t length = (size_t)number();
  char* taken = calloc(length + 1, 1);
  end_if(!taken, "no memory");
  take(taken, length);
  if (length) return taken;
  free(taken);
  return NULL;
}

static void give(const void* bytes, size_t size) {
  end_if(size && fwrite(bytes, 1, size, stdout) != size, "nobody takes the answer");
}

/* The status of a request, and a message where it is not 0. */
static bool answer(int64_t status, const char* message) {
  int64_t length = status ? (int64_t)strlen(message) : 0;
  give(&status, sizeof(status));
  give(&length, sizeof(length));
  give(message, (size_t)length);
  return status == 0;
}

/* ---- arrays -------------------------------------------------------------------------------------- */

/* Memory between two pages that nobody may touch, at its end or `lead` bytes from its begin. */
static void map_array(Array* array, bool at_the_end, size_t lead) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t inner = (array->size + lead + page) / page * page;
  array->pages = inner + 2 * page;
  array->mapped = mmap(NULL, array->pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  end_if(array->mapped == MAP_FAILED, "mmap");
  end_if(mprotect(array->mapped + page, inner, PROT_READ | PROT_WRITE) != 0, "mprotect");
  array->bytes = array->mapped + page + (at_the_end ? inner - array->size : lead);
}

static void take_array(Array* array, const Array* others) {
  int64_t same = number(); /* the array that this one shares its memory with; -1: none */
  *array = (Array){.size = same < 0 ? (size_t)number() : 0};
  if (same < 0) {
    bool at_the_end = number() != 0;
    map_array(array, at_the_end, (size_t)number());
    take(array->bytes, array->size);
    array->before = malloc(array->size + 1);
    end_if(!array->before, "no memory");
    memcpy(array->before, array->bytes, array->size);
  }
  array->tensor.device.device_type = kDLCPU;
  array->tensor.dtype.code = (uint8_t)number();
  array->tensor.dtype.bits = (uint8_t)number();
  array->tensor.dtype.lanes = 1;
  array->tensor.ndim = (int32_t)number();
  take(array->shape, sizeof(int64_t) * (size_t)array->tensor.ndim);
  take(array->strides, sizeof(int64_t) * (size_t)array->tensor.ndim);
  array->tensor.shape = array->shape;
  array->tensor.strides = array->strides;
  array->tensor.data = (same < 0 ? array->bytes : others[same].bytes) + number();
}

static void drop_array(Array* array) {
  if (array->mapped) munmap(array->mapped, array->pages);
  free(array->before);
}

/* ---- requests, one by one -------------------------------------------------------------------------- */

static relu_ops_operator* op;

static void load(void) {
  char *path = text(), *name = text(), *target = text();
  relu_ops_bundle* bundle;
  relu_ops_release(op);
  op = NULL;
  relu_ops_status status = relu_ops_open(path, NULL, &bundle);
  if (!status) {
    status = relu_ops_load(bundle, name, target, &op);
    relu_ops_close(bundle);
  }
  answer(status, relu_ops_message());
  free(path), free(name), free(target);
}

static void set_settings(void) {
  relu_ops_settings settings = {0};
  settings.threads = (int32_t)number();
  settings.parallel_bytes = number();
  settings.stream_bytes = number();
  settings.wake_bytes = number();
  answer(relu_ops_set_settings(&settings), relu_ops_message());
}

static void call(void) {
  static Array arrays[MOST_ARRAYS];
  DLTensor tensors[MOST_ARRAYS];
  relu_ops_options options = {0};
  options.threads = (int32_t)number();
  int64_t inputs = number(), count = inputs + number();
  end_if(count > MOST_ARRAYS, "too many arrays");
  for (int64_t k = 0; k < count; ++k) {
    take_array(&arrays[k], arrays);
    tensors[k] = arrays[k].tensor;
  }
  relu_ops_status status = relu_ops_call(op, tensors, tensors + inputs, &options);
  if (answer(status, relu_ops_message()))
    for (int64_t k = 0; k < count; ++k) { /* a share of memory is given once; what is as before, not at all */
      int64_t changed = arrays[k].mapped && memcmp(arrays[k].bytes, arrays[k].before, arrays[k].size);
      give(&changed, sizeof(changed));
      if (changed) give(arrays[k].bytes, arrays[k].size);
    }
  for (int64_t k = 0; k < count; ++k) drop_array(&arrays[k]);
}

int main(void) {
  static void (*const requests[])(void) = {load, set_settings, call};
  int64_t kind;
  while (fread(&kind, sizeof(kind), 1, stdin) == 1) {
    end_if(kind < 0 || kind > 2, "an unknown request");
    requests[kind]();
    fflush(stdout);
  }
  return 0;
}
