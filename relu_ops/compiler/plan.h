/* What entry.c plans and a run_*.c runs: the same for every device. */
#ifndef RELU_OPS_PLAN_H_
#define RELU_OPS_PLAN_H_

#include <stddef.h>
#include <stdint.h>

#include "entry.h"

#define OP relu_ops_operator

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
  int32_t keeps_gil;           /* whether a bound call does: see runtime/operator.py */
  int32_t device;              /* the number of the device whose memory this is */
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
  return plan;
}

/* The DLPack device type whose memory these plans point into. */
extern const int32_t relu_ops_device_type;

/* Run a plan and those that follow it; 0, or -1 with a tvm-ffi error set. */
int relu_ops_run(const Plan* plan);

/* How a process wants its operators run: threads; bytes moved from which on more than one is used,
 * stores go past the cache, and sleeping threads are woken. */
void relu_ops_configure(int threads, int64_t parallel_bytes, int64_t stream_bytes,
                        int64_t wake_bytes);

#endif
