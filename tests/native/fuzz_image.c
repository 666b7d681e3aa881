/* Reads an image from memory, follows everything that the reader gives, plans calls of arrays of made-up
 * shapes, and runs none of its code.
 *
 * As libFuzzer wants it, which finds its own way into the reader:
 *
 *   N=relu_ops/native
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I$N/include -I$DLPACK \
 *     -DRELU_OPS_SEMANTICS=1 -DRELU_OPS_PACKAGE_VERSION='"0"' -pthread tests/native/fuzz_image.c \
 *     $(find $N -name "*.c" ! -name "python*") -o fuzz_image
 *   ./fuzz_image -max_len=8192 -max_total_time=3600 CORPUS
 *
 * mutate_images.c calls it without a fuzzer. It ends the process where a promise is broken. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../relu_ops/native/arch.h"
#include "../../relu_ops/native/core.h"
#include "../../relu_ops/native/image.h"

int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

/* How many images were read, operators mapped, and calls planned, for who counts. */
size_t images_accepted, operators_mapped, calls_planned;

static volatile unsigned char sink; /* what is read here cannot be left out */

typedef struct {
  const unsigned char* base;
  const Image* image;
} Walk;

#define PROMISE(holds)                                                          \
  do {                                                                          \
    if (!(holds)) {                                                             \
      fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #holds);       \
      abort();                                                                  \
    }                                                                           \
  } while (0)

/* Read all of something that must lie in the mapping: a sanitizer knows nothing of its end. */
static void walk(const Walk* w, const void* at, size_t size) {
  const unsigned char* bytes = at;
  PROMISE(bytes >= w->base && bytes <= w->base + w->image->header.size);
  PROMISE(size <= (size_t)(w->base + w->image->header.size - bytes));
  for (size_t k = 0; k < size; ++k) sink ^= bytes[k];
}

static void walk_text(const Walk* w, const char* text) {
  const unsigned char* end = w->base + w->image->header.size;
  PROMISE((const unsigned char*)text >= w->base && (const unsigned char*)text < end);
  PROMISE(memchr(text, 0, (size_t)(end - (const unsigned char*)text)));
  walk(w, text, strlen(text) + 1);
  for (; *text; ++text) PROMISE((unsigned char)*text >= 0x20 && *text != 0x7F);
}

static void walk_dims(const Walk* w, const int64_t* dims, int32_t rank, int64_t lowest) {
  PROMISE(rank >= 0 && rank <= MAX_RANK && (uintptr_t)dims % sizeof(*dims) == 0);
  walk(w, dims, sizeof(*dims) * (size_t)rank);
  for (int32_t d = 0; d < rank; ++d) PROMISE(dims[d] >= lowest && dims[d] < INT64_C(1) << 62);
}

static void walk_specs(const Walk* w, const relu_ops_operator* op, const relu_ops_spec* specs,
                       int32_t count) {
  for (int32_t k = 0; k < count; ++k) {
    walk_text(w, specs[k].name);
    PROMISE(specs[k].rank >= -1 && specs[k].dtype.lanes == 1);
    walk_dims(w, specs[k].dims, specs[k].rank < 0 ? 0 : specs[k].rank, -1 - (int64_t)op->symbol_count);
    PROMISE(strlen(relu_ops_dtype_name(specs[k].dtype).text) < sizeof(DtypeName));
  }
}

static void check_seen(Seen seen, int32_t rank) {
  PROMISE(seen.block >= 1 && seen.block <= INT32_MAX);
  PROMISE(seen.trailing >= 0 && seen.trailing + (rank < 0 ? 0 : rank) <= MAX_RANK);
  PROMISE(seen.axis == 0 || (seen.axis > 0 && seen.axis < rank + seen.trailing));
}

static void walk_source(const Walk* w, const relu_ops_operator* op, Seen seen, int32_t input, int32_t rank,
                        const int64_t* dims) {
  PROMISE(input >= -1 && input < op->input_count);
  walk_dims(w, dims, rank, 0);
  check_seen(seen, input < 0 ? rank : op->inputs[input].rank);
}

static void walk_terms(const Walk* w, const relu_ops_operator* op, Terms terms) {
  for (int32_t k = 0; k < terms.count; ++k)
    walk_source(w, op, terms.terms[k].seen, terms.terms[k].input, terms.terms[k].rank, terms.terms[k].dims);
}

static void walk_leaf(const Walk* w, const relu_ops_operator* op, const Leaf* leaf, size_t itemsize) {
  walk_source(w, op, leaf->seen, leaf->input, leaf->rank, leaf->dims);
  if (leaf->input >= 0) {
    PROMISE(!leaf->constant && itemsize * 8 == op->inputs[leaf->input].dtype.bits);
    return;
  }
  size_t size = itemsize;
  for (int32_t d = 0; d < leaf->rank; ++d) size *= (size_t)leaf->dims[d];
  PROMISE((uintptr_t)leaf->constant % 64 == 0);
  walk(w, leaf->constant, size);
}

static void check_entry(const Walk* w, KernelCall entry) {
  const unsigned char* at = (const unsigned char*)(uintptr_t)entry;
  const unsigned char* code = w->base + w->image->header.code_at;
  PROMISE(at >= code && at < code + w->image->header.code_size && (uintptr_t)at % 64 == 0);
}

static void walk_patterns(const Walk* w, const relu_ops_operator* op, int32_t number,
                          const int8_t* patterns) {
  walk(w, patterns, (size_t)op->operand_count);
  for (int32_t k = 0; k < op->operand_count; ++k) {
    PROMISE(patterns[k] >= -1 && patterns[k] <= 1);
    PROMISE(number + 1 < op->kernel_count || patterns[k] == -1);
  }
}

static void walk_kernel(const Walk* w, const relu_ops_operator* op, int32_t number) {
  const Kernel* kernel = &op->kernels[number];
  check_entry(w, kernel->call);
  if (kernel->stream) check_entry(w, kernel->stream);
  walk_patterns(w, op, number, kernel->patterns);
}

/* A fat binary is what its own header says, all of it in the code; constants have a place each. */
static void walk_cuda(const Walk* w, const relu_ops_operator* op) {
  FatBinary header;
  const unsigned char* at = op->cuda.binary;
  const unsigned char* code = w->base + w->image->header.code_at;
  memcpy(&header, at, sizeof(header));
  PROMISE(header.magic == FAT_BINARY_MAGIC && at >= code && (uintptr_t)at % 64 == 0);
  PROMISE(sizeof(header) + header.size <= (size_t)(code + w->image->header.code_size - at));
  walk(w, at, sizeof(header) + header.size);
  for (int32_t k = 0; k < op->kernel_count; ++k) {
    const CudaKernel* kernel = &op->cuda.kernels[k];
    walk_text(w, kernel->name);
    PROMISE(*kernel->name && kernel->unroll >= 1 && kernel->unroll <= 16);
    PROMISE(kernel->lanes >= 1 && kernel->lanes <= 16 && !(kernel->lanes & (kernel->lanes - 1)));
    walk_patterns(w, op, k, kernel->patterns);
    PROMISE(k + 1 < op->kernel_count || kernel->lanes == 1);
  }
  for (int32_t k = 0; k < op->leaf_count; ++k) {
    int64_t bytes = relu_ops_constant_bytes(&op->leaves[k], op->itemsizes[k]);
    PROMISE(op->cuda.constant_at[k] >= 0 && op->cuda.constant_at[k] % 64 == 0);
    PROMISE(op->cuda.constant_at[k] + bytes <= op->cuda.constant_bytes);
  }
}

static void walk_operator(const Walk* w, const relu_ops_operator* op) {
  walk_text(w, op->name);
  walk_text(w, op->target);
  PROMISE(op->output_count >= 1 && op->kernel_count >= 1);
  PROMISE(op->operand_count == op->leaf_count + op->output_count);
  walk_specs(w, op, op->inputs, op->input_count);
  walk_specs(w, op, op->outputs, op->output_count);
  walk(w, op->itemsizes, (size_t)op->operand_count);
  for (int32_t k = 0; k < op->symbol_count; ++k) walk_text(w, op->symbols[k]);
  for (int32_t k = 0; k < op->output_count; ++k) {
    walk_terms(w, op, op->output_terms[k]);
    PROMISE(op->itemsizes[op->leaf_count + k] * 8 == op->outputs[k].dtype.bits);
  }
  for (int32_t k = 0; k < op->requirement_count; ++k) {
    walk_text(w, op->requirements[k].what);
    walk_terms(w, op, op->requirements[k].terms);
    walk_terms(w, op, op->requirements[k].into);
  }
  for (int32_t k = 0; k < op->leaf_count; ++k) walk_leaf(w, op, &op->leaves[k], op->itemsizes[k]);
  PROMISE(is_for_cuda(op) == (w->image->header.machine == IMAGE_CUDA));
  if (is_for_cuda(op)) walk_cuda(w, op);
  for (int32_t k = 0; !is_for_cuda(op) && k < op->kernel_count; ++k) walk_kernel(w, op, k);
  PROMISE(op->vector_bytes >= 1 && op->vector_bytes <= 64);
}

/* ---- planning ---------------------------------------------------------------------------------------- */

typedef int64_t Extents[MAX_RANK];

/* Arrays of made-up shapes: the declared extents; for the others, small ones mostly, that fit together or do
 * not, and at times ones whose products have more bits than there are. Nobody reads what they point to. */
static void make_up(const relu_ops_operator* op, uint32_t seed, DLTensor* inputs, Extents* shapes) {
  static const int64_t SOME[] = {1, 2, 6, 2, 6, 3, 0, 1, INT64_C(1) << 31, INT64_C(1) << 61};
  static _Alignas(64) char nowhere[64];
  for (int32_t k = 0; k < op->input_count; ++k) {
    const relu_ops_spec* spec = &op->inputs[k];
    int32_t rank = spec->rank < 0 ? (int32_t)(seed % 4) : spec->rank;
    for (int32_t d = 0; d < rank; ++d) {
      seed = seed * 1664525 + 1013904223;
      shapes[k][d] = spec->rank < 0 || spec->dims[d] < 0 ? SOME[(seed >> 16) % (seed % 8 ? 6 : 10)]
                                                         : spec->dims[d];
    }
    DLDevice device = {(DLDeviceType)op->device_type, 0};
    inputs[k] = (DLTensor){nowhere, device, rank, spec->dtype, shapes[k], NULL, 0};
  }
}

/* Outputs of the shapes that the operator says, each at a place of its own. */
static void plan_call(const relu_ops_operator* op, const DLTensor* inputs, const int32_t* ranks,
                      Extents* shapes, DLTensor* outputs) {
  static _Alignas(64) char nowhere[RELU_OPS_MOST_OUTPUTS * 64];
  DLDevice device = {(DLDeviceType)op->device_type, 0};
  for (int32_t k = 0; k < op->output_count; ++k)
    outputs[k] = (DLTensor){nowhere + 64 * k, device, ranks[k], op->outputs[k].dtype, shapes[k], NULL, 0};
  relu_ops_bound* bound;
  if (relu_ops_bind(op, inputs, outputs, NULL, &bound) != RELU_OPS_OK) return;
  ++calls_planned;
  relu_ops_free(bound);
}

static void plan_calls(const relu_ops_operator* op) {
  static DLTensor inputs[RELU_OPS_MOST_INPUTS], outputs[RELU_OPS_MOST_OUTPUTS];
  static Extents input_shapes[RELU_OPS_MOST_INPUTS], shapes[RELU_OPS_MOST_OUTPUTS];
  static int32_t ranks[RELU_OPS_MOST_OUTPUTS];
  for (uint32_t seed = 0; seed < 8; ++seed) {
    make_up(op, seed, inputs, input_shapes);
    relu_ops_status status = relu_ops_output_shapes(op, inputs, ranks, shapes);
    PROMISE(status == RELU_OPS_OK || status == RELU_OPS_ARGUMENT || status == RELU_OPS_MEMORY);
    if (status == RELU_OPS_OK) plan_call(op, inputs, ranks, shapes, outputs);
  }
}

/* ---- images ------------------------------------------------------------------------------------------ */

/* A refusal is of a kind, and a sentence that begins with what is refused. */
static void check_refusal(relu_ops_status status, const char* shown) {
  PROMISE(status == RELU_OPS_BUNDLE || status == RELU_OPS_TARGET || status == RELU_OPS_MEMORY ||
          status == RELU_OPS_SYSTEM);
  const char* message = relu_ops_message();
  PROMISE(strncmp(message, shown, strlen(shown)) == 0 && strlen(message) > strlen(shown) + 2);
  PROMISE(status != RELU_OPS_BUNDLE || relu_ops_hint());
}

static void map_operator(const Image* image, size_t number) {
  relu_ops_operator* op;
  relu_ops_status status = relu_ops_map_operator(image, number, &op);
  uint32_t machine = image->header.machine;
  PROMISE((status == RELU_OPS_TARGET) == (machine != ARCH_MACHINE && machine != IMAGE_CUDA));
  if (status != RELU_OPS_OK) {
    PROMISE(status != RELU_OPS_BUNDLE);
    check_refusal(status, "image");
    return;
  }
  ++operators_mapped;
  const unsigned char* name = (const unsigned char*)op->name;
  walk_operator(&(Walk){name - relu_ops_image_operator(image, number).name.at, image}, op);
  plan_calls(op);
  relu_ops_release(op);
}

/* Read an image, and drop it. */
static relu_ops_status read_image(const uint8_t* bytes, size_t size) {
  Image* image;
  relu_ops_status status = relu_ops_read_image("image", bytes, size, &image);
  if (status != RELU_OPS_OK) {
    check_refusal(status, "image");
    return status;
  }
  ++images_accepted;
  PROMISE(*relu_ops_image_target(image) && !relu_ops_image_operator_name(image, SIZE_MAX));
  for (size_t k = 0; k < relu_ops_image_requirement_count(image); ++k)
    PROMISE(*relu_ops_image_requirement(image, k));
  for (size_t k = 0; k < relu_ops_image_operator_count(image); ++k) {
    PROMISE(*relu_ops_image_operator_name(image, k));
    if (k < 8) map_operator(image, k);
  }
  relu_ops_drop_image(image);
  return status;
}

/* What is refused for its length alone would hide all that comes after: it is read with the length that it
 * has, too. */
int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (read_image(bytes, size) == RELU_OPS_OK || size < sizeof(ImageHeader)) return 0;
  ImageHeader header;
  memcpy(&header, bytes, sizeof(header));
  if (header.size == size) return 0;
  header.size = size;
  uint8_t* copy = malloc(size);
  if (!copy) return 0;
  memcpy(copy, bytes, size);
  memcpy(copy, &header, sizeof(header));
  read_image(copy, size);
  free(copy);
  return 0;
}
