/* What plan.c makes and a run_*.c runs: the same for every device. */
#ifndef RELU_OPS_PLAN_H_
#define RELU_OPS_PLAN_H_

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

#include "operator.h"

#define OP relu_ops_operator
#define EXPORT __attribute__((visibility("default")))

/* An array as it was passed. Strides are in elements; NULL means compact. */
typedef struct {
  char* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t rank, device;
  DLDataType dtype;
} View;

/* A loop nest over collapsed dimensions, outermost first. Strides are in elements. */
typedef struct Plan {
  int32_t rank;
  int64_t extent[MAX_RANK];
  int64_t (*stride)[MAX_RANK]; /* by operand */
  char** data;                 /* by operand */
  void* spare;                 /* an element for each operand that has none */
  struct Plan* next;           /* another one to run, or NULL */
  int64_t bytes;               /* that it moves: each operand once, a repeated one not at all */
  int32_t threads;             /* at most; 0: as the process is configured */
  int32_t keeps_gil;           /* whether a call does: see runtime/library.py */
  int32_t device;              /* the number of the device whose memory this is */
  void* arrays;                /* what keeps that memory, or NULL: python.c's alone */
} Plan;

static inline size_t plan_size(void) {
  size_t operand = sizeof(int64_t[MAX_RANK]) + sizeof(char*) + sizeof(int64_t);
  return sizeof(Plan) + operand * (size_t)OP.operand_count;
}

/* A plan and its arrays in one block of plan_size() bytes. */
static inline Plan* plan_at(void* block) {
  Plan* plan = (Plan*)block;
  plan->stride = (int64_t(*)[MAX_RANK])(plan + 1);
  plan->data = (char**)(plan->stride + OP.operand_count);
  plan->spare = plan->data + OP.operand_count;
  plan->next = NULL;
  plan->threads = 0;
  plan->keeps_gil = 0;
  plan->device = 0;
  plan->arrays = NULL;
  return plan;
}

/* Room for one plan, or one per output: see relu_ops_prepare. */
static inline size_t relu_ops_plans_size(void) { return plan_size() * (size_t)OP.output_count; }

/* Check the arrays and plan the call: one pass for all outputs, or one for each where their shapes do
 * not broadcast together. `plan` has room for relu_ops_plans_size(). 0, or -1 with a tvm-ffi error set. */
int relu_ops_prepare(Plan* plan, const View* in, const View* out);

/* Up to so many elements a call keeps the GIL: see runtime/library.py. */
extern int64_t relu_ops_few_elements;

/* Set a tvm-ffi error that names something and says what is wrong with it; -1. */
int relu_ops_refuse(const char* kind, const char* name, const char* reason);

/* The DLPack device type whose memory these plans point into. */
extern const int32_t relu_ops_device_type;

/* Run a plan and those that follow it; 0, or -1 with a tvm-ffi error set. */
int relu_ops_run(const Plan* plan);

/* How a process wants its operators run: threads; bytes moved from which on more than one is used,
 * stores go past the cache, and sleeping threads are woken. */
void relu_ops_configure(int threads, int64_t parallel_bytes, int64_t stream_bytes,
                        int64_t wake_bytes);

#endif
