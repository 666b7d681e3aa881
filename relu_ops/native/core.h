/* What the files of the core have of each other: errors, images, operators. */
#ifndef RELU_OPS_CORE_H_
#define RELU_OPS_CORE_H_

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "include/relu_ops.h"
#include "bounds.h"

/* ---- errors (error.c) ---------------------------------------------------------------------------- */

/* Set this thread's message, and no hint; the status, to be returned. What is too long is cut. */
relu_ops_status relu_ops_fail(relu_ops_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

/* Give the message that was just set a hint; the status again. */
relu_ops_status relu_ops_advise(relu_ops_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

/* A text that grows up to its room and is cut there: for lists in messages. */
typedef struct {
  char text[3072];
  size_t length;
} Text;
void relu_ops_append(Text* text, const char* format, ...) __attribute__((format(printf, 2, 3)));

/* A shape, as messages have it: (2, 3), (3,), (). */
void relu_ops_append_shape(Text* text, int32_t rank, const int64_t* extents);

/* A path or a name of any length, as messages have it: of a long one both ends, so that what is said of
 * it is not what is cut. */
typedef struct {
  char text[512];
} Shown;
Shown relu_ops_shown(const char* name);

/* A dtype of DLPack, as messages have it: float32. */
typedef struct {
  char text[32];
} DtypeName;
DtypeName relu_ops_dtype_name(DLDataType dtype);

/* ---- SHA-256 (sha256.c) -------------------------------------------------------------------------- */

/* The digest of some bytes, in lower-case hexadecimal with a NUL. */
typedef struct {
  char hex[65];
} Digest;
Digest relu_ops_sha256(const void* bytes, size_t size);

/* ---- images (image_reader.c, image.c) ------------------------------------------------------------- */

/* An image that was read: every place in it was checked. */
typedef struct Image Image;

/* Check an image's tables. The bytes must outlive *image; nothing is mapped yet. `shown` is what messages
 * call it. To be given to relu_ops_drop_image. */
relu_ops_status relu_ops_read_image(const char* shown, const void* bytes, size_t size, Image** image);
void relu_ops_drop_image(Image* image);

const char* relu_ops_image_target(const Image* image);
uint32_t relu_ops_image_machine(const Image* image); /* ImageMachine */
size_t relu_ops_image_requirement_count(const Image* image);
const char* relu_ops_image_requirement(const Image* image, size_t number);
size_t relu_ops_image_operator_count(const Image* image);
const char* relu_ops_image_operator_name(const Image* image, size_t number);

/* Map an image and make its operator of some number. It holds the mapping, and needs neither the image nor
 * its bytes any more. Operators of one image that live at the same time may share a mapping. One for CUDA
 * needs no device for that: see relu_ops_prepare_device. */
relu_ops_status relu_ops_map_operator(const Image* image, size_t number, relu_ops_operator** op);

/* ---- operators ------------------------------------------------------------------------------------ */

#define MAX_RANK RELU_OPS_MAX_RANK
_Static_assert(RELU_OPS_MAX_RANK == RELU_OPS_MOST_RANK, "relu_ops.h and bounds.h have one largest rank");
#define FREE (-1)
#define SYMBOL_OF(dim) (-2 - (dim))

typedef struct {
  int32_t trailing, axis;
  int64_t block;
} Seen;

/* Something that a shape depends on, in a view: an input, or a constant's own shape. */
typedef struct {
  Seen seen;
  int32_t input; /* -1: a constant shape */
  int32_t rank;
  const int64_t* dims;
} Term;

typedef struct {
  int32_t count;
  const Term* terms;
} Terms;

typedef struct {
  const char* what;
  Terms terms, into;
} Requirement;

typedef struct {
  Seen seen;
  int32_t input; /* -1: a constant, at `constant` */
  int32_t rank;
  const int64_t* dims;
  const unsigned char* constant;
} Leaf;

/* Computes `rows` rows of `n` elements. One entry an operand: where the first row begins, and how many
 * elements lie between rows, and between the elements of a row. */
typedef void (*KernelCall)(char* const* data, const int64_t* row_strides, const int64_t* inner_strides,
                           int64_t rows, int64_t n);

typedef struct {
  KernelCall call;
  KernelCall stream;      /* the same with stores past the cache, or NULL */
  const int8_t* patterns; /* 1 contiguous, 0 repeated, -1 any */
} Kernel;

/* A kernel of a fat binary: see cuda/schedule.py. */
typedef struct {
  const char* name;
  const int8_t* patterns;
  int64_t lanes;  /* elements of a chunk */
  int64_t unroll; /* chunks that a thread loads before it stores any */
} CudaKernel;

/* What an operator has for CUDA. */
typedef struct {
  const CudaKernel* kernels;  /* the last one takes any stride, and chunks of one element */
  const void* binary;         /* the fat binary, in the mapping */
  const int64_t* constant_at; /* by leaf: where its constant lies on a device */
  int64_t constant_bytes;
  struct Loaded* loaded; /* its code on devices; NULL: on none yet (run_cuda.c) */
  int32_t device;        /* the one that it was loaded for */
} ForCuda;

/* How an operator computes vectors too short for more than one kernel on one thread, where it takes vectors
 * and has one output: see run_cpu.c. */
#define SHORT_OPERANDS 8 /* at most, and as many arrays */
typedef struct {
  KernelCall call; /* NULL: it has more, or runs elsewhere */
  int64_t inner[SHORT_OPERANDS]; /* of its arguments: 1 what moves, 0 what is one number */
} ShortVectors;

typedef struct Mapping Mapping;

/* Operands are the leaves, then the outputs. Everything that is pointed to lies in the mapping, or in the
 * block of the operator itself. */
struct relu_ops_operator {
  atomic_int references;
  Mapping* mapping;
  const char *name, *target;
  int32_t device_type; /* of DLPack: where its arrays must lie */
  int32_t input_count, output_count, leaf_count, operand_count;
  int32_t requirement_count, symbol_count, kernel_count;
  const relu_ops_spec *inputs, *outputs;
  const Terms* output_terms;
  const Requirement* requirements;
  const Leaf* leaves;
  const uint8_t* itemsizes; /* by operand */
  const Kernel* kernels;    /* the last one takes any stride; NULL for CUDA */
  const char* const* symbols;
  int64_t element_bytes; /* of all operands, for one element of each */
  int64_t vector_bytes; /* what a streaming kernel's output must be aligned to */
  bool takes_vectors;   /* arrays of one shape are as good as vectors: see plan.c */
  bool takes_any_shape; /* and no model says which shape that must be */
  ShortVectors short_vectors;
  ForCuda cuda;         /* nothing where it runs on the CPU */
};

static inline bool is_for_cuda(const relu_ops_operator* op) {
  return op->cuda.kernels != NULL;
}

/* Bytes of a leaf's constant; 0 for an input. */
int64_t relu_ops_constant_bytes(const Leaf* leaf, uint8_t itemsize);

/* Hold an operator once more; relu_ops_release lets it go. */
void relu_ops_hold(const relu_ops_operator* op);

/* ---- the processor (processor.c) ------------------------------------------------------------------ */

/* Whether this machine's processor has a feature, and its operating system supports it. */
bool relu_ops_processor_has(const char* feature);

/* As uname -m says. */
const char* relu_ops_architecture(void);

#endif
