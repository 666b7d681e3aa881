/* What plan.c makes, and run_cpu.c or run_cuda.c runs: a loop nest over an operator's operands. */
#ifndef RELU_OPS_PLAN_H_
#define RELU_OPS_PLAN_H_

#include "core.h"

/* A loop nest over collapsed dimensions, outermost first. Strides are in elements. */
typedef struct Plan {
  const relu_ops_operator* op;
  int32_t rank; /* -1: there is nothing to compute */
  int64_t extent[MAX_RANK];
  int64_t (*stride)[MAX_RANK]; /* by operand */
  char** data;                 /* by operand */
  void* spare;                 /* an element for each operand that has none */
  struct Plan* next;           /* another one to run, or NULL */
  int64_t bytes;               /* that it moves: each operand once, a repeated one not at all */
  int32_t device;              /* the number of the arrays' device */
  int32_t threads;             /* at most; 0: as the process is set */
  const relu_ops_host_threads* host; /* whose threads; NULL: the pool's */
} Plan;

/* Bytes of one plan and its arrays. */
static inline size_t plan_size(const relu_ops_operator* op) {
  size_t operand = sizeof(int64_t[MAX_RANK]) + sizeof(char*) + sizeof(int64_t);
  return sizeof(Plan) + operand * (size_t)op->operand_count;
}

/* Bytes for a call: room for one plan, or one an output. */
static inline size_t plans_size(const relu_ops_operator* op) {
  return plan_size(op) * (size_t)op->output_count;
}

/* Check the arrays and plan the call into `block`, of plans_size bytes, at a multiple of 8: one pass for all
 * outputs, or one for each where their shapes do not broadcast together. The first plan is at `block`. */
relu_ops_status relu_ops_prepare(void* block, const relu_ops_operator* op, const DLTensor* inputs,
                                 const DLTensor* outputs, const relu_ops_options* options);

/* Find out once what an operator's arrays can be instead of tensors: its takes_vectors, takes_any_shape and
 * short_vectors. It takes vectors where it sees its inputs as they are, and beside arrays single numbers
 * alone. */
void relu_ops_find_vectors(relu_ops_operator* op);
void relu_ops_find_short_vectors(relu_ops_operator* op); /* a part of it */

/* Run a plan and those that follow it. */
void relu_ops_run_cpu(const Plan* plan);

/* Compute at once, where it takes no plan: one output, few operands, all compact and of one shape, and too
 * short for anything but one kernel on one thread. False, with nothing written, where it does. */
bool relu_ops_run_short(const relu_ops_operator* op, const DLTensor* inputs, const DLTensor* outputs);

/* The same for an operator that takes arrays of any shape: so many elements, from `data` on, inputs first. */
bool relu_ops_run_short_vectors(const relu_ops_operator* op, void* const* data, int64_t elements);
#endif
