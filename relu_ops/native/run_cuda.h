/* What run_cuda.c does for the rest of the core. */
#ifndef RELU_OPS_RUN_CUDA_H_
#define RELU_OPS_RUN_CUDA_H_

#include "plan.h"

/* Make an operator's code ready on a device, where it is not yet. It stays there as long as the process
 * lives, for every operator of the same code: a captured graph may launch it when the operator is gone. */
relu_ops_status relu_ops_prepare_device(relu_ops_operator* op, int32_t device);

/* Put a plan and those that follow it on a stream. It waits for nothing, allocates nothing and copies
 * nothing where the device is ready, so that it can be captured in a graph. RELU_OPS_DEVICE alone says that
 * something may have been launched. */
relu_ops_status relu_ops_run_cuda(const Plan* plan, void* stream);

#endif
