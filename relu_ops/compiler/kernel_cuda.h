/* The kernels of a CUDA operator: generated code defines them, run_cuda.c launches them. */
#ifndef RELU_OPS_KERNEL_CUDA_H_
#define RELU_OPS_KERNEL_CUDA_H_

#include <stdint.h>

/* A block's threads, and the dimensions that planes are divided into: as schedule_cuda.py has
 * them, which writes both into the generated code. */
typedef struct {
  int32_t threads, plane_rank;
  int32_t kernel_count;
  const struct CudaKernel* kernels; /* the last one takes any strides */
  const unsigned char* image;       /* the fat binary: machine code by architecture, and PTX */
  const unsigned char* constants;   /* as the leaves point to them, in the host's memory */
  int64_t constant_bytes;
  const char* architectures; /* "sm_80, sm_90, compute_90" */
} CudaTables;

typedef struct CudaKernel {
  const char* name;
  const int8_t* patterns; /* 1 contiguous, 0 repeated, -1 any */
  int32_t strided;        /* it takes a stride for each operand, and chunks of one element */
  int32_t lanes;          /* elements of a chunk */
  int32_t unroll;         /* chunks that a thread loads before it stores any */
} CudaKernel;

extern const CudaTables relu_ops_cuda;

/* Names of the device's own memory: constants, and an element for each operand that has none. */
#define DEVICE_CONSTANTS "relu_ops_constants"
#define DEVICE_SPARE "relu_ops_spare"

#endif
