/* An image as it lies in a file: a header, code and its constants, the operators' tables. docs/bundle.md
 * describes every field; compiler/image.py writes it; image_reader.c reads it, and believes nothing of it.
 *
 * Numbers are little-endian. Every place is an offset from the start of the image, at a multiple of the
 * size of what lies there (8 for rows). Tables and texts may be shared. */
#ifndef RELU_OPS_IMAGE_H_
#define RELU_OPS_IMAGE_H_

#include <stdint.h>

#include "core.h"

#define IMAGE_MAGIC "relu_ops"
#define IMAGE_FORMAT 2

typedef enum { IMAGE_X86_64 = 1, IMAGE_AARCH64 = 2, IMAGE_CUDA = 3 } ImageMachine;

/* Rows of one kind, one after another; at a multiple of 8, or of 1 for patterns and itemsizes. */
typedef struct {
  uint32_t at, count;
} ImageTable;

/* UTF-8 without control characters, and a NUL after it. */
typedef struct {
  uint32_t at, length;
} ImageText;

typedef struct {
  char magic[8];
  uint32_t format, semantics;
  uint64_t size;           /* of the whole image, in bytes */
  uint32_t machine;        /* ImageMachine: what the code is for */
  uint32_t reserved;       /* 0 */
  ImageText target;        /* "x86-64-v3" */
  ImageTable requires_;    /* ImageText: processor features, as /proc/cpuinfo names them; for CUDA see below */
  ImageTable operators;    /* ImageOperator */
  uint32_t code_at, code_size; /* at a multiple of 64 */
} ImageHeader;

typedef struct {
  ImageText name;
  ImageTable inputs;       /* ImageTensor */
  ImageTable outputs;      /* ImageTensor */
  ImageTable output_terms; /* ImageTerms, one an output: what its shape is the broadcast of */
  ImageTable requirements; /* ImageRequirement */
  ImageTable leaves;       /* ImageLeaf */
  ImageTable itemsizes;    /* uint8_t: bytes of an element, of every leaf, then of every output */
  ImageTable kernels;      /* ImageKernel, for CUDA ImageCudaKernel; the last takes any strides */
  ImageTable symbols;      /* ImageText: names of dimensions */
  uint32_t vector_bytes;   /* what a streaming kernel's output must be aligned to: a power of two */
  uint32_t reserved;       /* 0 */
} ImageOperator;

/* A dimension is an int64_t: its extent; -1: any; -2 - k: the symbol k. */
typedef struct {
  ImageText name;
  uint8_t code, bits; /* of DLPack */
  int16_t rank;       /* -1: any */
  uint32_t reserved;  /* 0 */
  ImageTable dims;    /* int64_t: as many as the rank says */
} ImageTensor;

/* How an array is seen: with unit dimensions appended, and every element along one dimension
 * (counted from the last) repeated `block` times. */
typedef struct {
  int64_t block;
  int32_t trailing, axis;
} ImageSeen;

typedef struct {
  ImageSeen seen;
  int32_t input;     /* -1: a constant shape */
  uint32_t reserved; /* 0 */
  ImageTable dims;   /* int64_t: of a constant shape, all extents */
} ImageTerm;

typedef struct {
  ImageTable terms; /* ImageTerm */
} ImageTerms;

typedef struct {
  ImageText what;
  ImageTable terms, into; /* ImageTerm: those must broadcast into these */
} ImageRequirement;

typedef struct {
  ImageSeen seen;
  int32_t input;        /* -1: a constant */
  uint32_t constant_at; /* of a constant: its elements, at a multiple of 64; of an input: 0 */
  ImageTable dims;      /* int64_t: of a constant, all extents */
} ImageLeaf;

/* Entry points are offsets of the image, inside of its code, at multiples of 64. */
typedef struct {
  uint32_t call, stream; /* stream: the same with stores past the cache; 0: there is none */
  ImageTable patterns;   /* int8_t, one an operand: 1 contiguous, 0 repeated, -1 any */
} ImageKernel;

/* What a kernel is in an image for CUDA: a function of a fat binary, which lies in the code at a multiple
 * of 64, and is the same for all kernels of an operator. */
typedef struct {
  ImageText name;                  /* of the function */
  uint32_t binary_at, binary_size; /* the fat binary */
  uint32_t lanes;                  /* elements of a chunk: a power of two; of the last kernel 1 */
  uint32_t unroll;                 /* chunks that a thread loads before it stores any */
  ImageTable patterns;             /* as above */
} ImageCudaKernel;

/* How a fat binary begins, as NVIDIA's tools write it: the driver is handed a pointer, and believes the
 * size that stands there. */
typedef struct {
  uint32_t magic;
  uint16_t version, header_size;
  uint64_t size; /* of what follows the header */
} FatBinary;

#define FAT_BINARY_MAGIC 0xBA55ED50u

/* What an image for CUDA requires, each by a text: "cuda_13.0", the version that the driver must have, as
 * the driver numbers it (13000); and of "sm_90" (machine code) and "compute_90" (PTX), one that runs. */
typedef enum { CODE_DRIVER, CODE_MACHINE, CODE_PTX } CodeKind;
typedef struct {
  CodeKind kind;
  int32_t number;
} CudaCode;

/* Read such a text; false: it is none. */
bool relu_ops_read_cuda_code(const char* text, CudaCode* code);

/* ---- an image that was read ------------------------------------------------------------------------ */

struct Image {
  char* shown;
  const unsigned char* bytes; /* somebody else's, at any address */
  ImageHeader header;
  Mapping* mapping; /* made when the first operator is; as old as the image, and as its operators */
};

/* A row of its operators. */
ImageOperator relu_ops_image_operator(const Image* image, size_t number);

#endif
