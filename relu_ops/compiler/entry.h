/* What entry.c and python.c have of each other. */
#ifndef RELU_OPS_ENTRY_H_
#define RELU_OPS_ENTRY_H_

#include "plan.h"

/* A plan for the arrays of a description (see prepare_from_description), for malloc's `free`; or NULL,
 * with a tvm-ffi error set. */
Plan* relu_ops_new_plan(const int64_t* description, int64_t threads);

/* To be called between a run without the GIL and taking it: see entry.c. Returns its argument. */
int relu_ops_leave(int code);

/* Copies what runtime/headers.py says of the interpreter. */
void relu_ops_meet_python(const void* about);

#endif
