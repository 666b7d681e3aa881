/* What the arrays of a call must be. Every sentence about a tensor comes from here. */
#ifndef RELU_OPS_CHECK_H_
#define RELU_OPS_CHECK_H_

#include "core.h"

/* Check every array, and their shapes together. What is left to check is where they overlap. */
relu_ops_status relu_ops_check_arrays(const relu_ops_operator* op, const DLTensor* inputs,
                                      const DLTensor* outputs);

/* How many elements each array has, where all are right, compact and of one shape (but for inputs that are
 * declared as single numbers): then nothing else needs a look but where they overlap. 0 otherwise. Only for
 * an operator that takes vectors: see plan.h. */
int64_t relu_ops_alike_elements(const relu_ops_operator* op, const DLTensor* inputs,
                                const DLTensor* outputs);

/* Check how a call is to be made. */
relu_ops_status relu_ops_check_options(const relu_ops_operator* op, const relu_ops_options* options);

/* Refuse an output for where it lies. input: the number of the one that it overlaps; -1: another output. */
relu_ops_status relu_ops_refuse_overlap(const relu_ops_operator* op, int32_t output, int32_t input);

/* Whether an input is declared as a single number. */
static inline bool is_number(const relu_ops_spec* spec) {
  return spec->rank == 0;
}

/* Where the first element of an array lies. */
static inline uintptr_t address_of(const DLTensor* x) {
  return (uintptr_t)x->data + x->byte_offset;
}

/* The size of an element, of a declared dtype. */
static inline int64_t itemsize_of(const relu_ops_spec* spec) {
  return spec->dtype.bits / 8;
}

#endif
