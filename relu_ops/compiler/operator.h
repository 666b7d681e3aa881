/* The tables of one operator: operator.c, which is generated, defines them. */
#ifndef RELU_OPS_OPERATOR_H_
#define RELU_OPS_OPERATOR_H_

#include <stdint.h>

#define MAX_RANK 16

/* Tables of the operator. A dimension is its extent, FREE, or SYMBOL(k). */
#define FREE (-1)
#define SYMBOL(k) (-2 - (k))
typedef struct {
  const char* name;
  uint8_t code, bits;
  int16_t rank; /* -1: any */
  const int64_t* dims;
} InputSpec;

/* How an array is seen: with unit dimensions appended, and every element along one dimension
 * (counted from the last) repeated `block` times. */
typedef struct {
  int16_t trailing, axis;
  int64_t block;
} Seen;

typedef struct {
  int16_t input; /* -1: a constant shape */
  Seen seen;
  int16_t rank;
  const int64_t* dims;
} Term;

typedef struct {
  int16_t count;
  const Term* terms;
} Terms;

typedef struct {
  const char* name;
  uint8_t code, bits;
  Terms shape;
} OutputSpec;

typedef struct {
  const char* what;
  Terms terms, into;
} Requirement;

typedef struct {
  int16_t input; /* -1: a constant, at `constant` */
  Seen seen;
  uint8_t itemsize;
  int16_t rank;
  const int64_t* dims;
  const unsigned char* constant;
} Leaf;

/* What a plan passes to a kernel, one entry per leaf and output. */
typedef void (*KernelCall)(char* const* data, const int64_t* row, const int64_t* inner,
                           int64_t rows, int64_t n);
typedef struct {
  KernelCall call;
  KernelCall stream;      /* the same with stores past the cache, or NULL */
  const int8_t* patterns; /* 1 contiguous, 0 repeated, -1 any */
} Kernel;

/* Operands are the leaves, then the outputs. */
typedef struct {
  const char* name;
  int16_t input_count, output_count, leaf_count, operand_count;
  int16_t requirement_count, symbol_count, kernel_count;
  const InputSpec* inputs;
  const OutputSpec* outputs;
  const Requirement* requirements;
  const Leaf* leaves;
  const uint8_t* itemsizes;
  const Kernel* kernels; /* the last one takes any stride */
  int64_t vector_bytes;  /* what a streaming kernel's output must be aligned to */
} OperatorTables;

extern const OperatorTables relu_ops_operator;

#endif
