/* The few functions of CUDA's driver that run_cuda.c calls, with the types of its stable C ABI.
 *
 * Declared here so that building an operator needs no header of CUDA's for its host side, and
 * looked up by name in a driver that the runtime has found, so that a library needs none to load.
 */
#ifndef RELU_OPS_DRIVER_H_
#define RELU_OPS_DRIVER_H_

#include <stddef.h>
#include <stdint.h>

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef uintptr_t CUdeviceptr;

enum {
  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
  CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR = 39,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
};

/* Result, name of the field, exported name, parameters. The suffixes are the versions that the
 * types above belong to. */
#define DRIVER_FUNCTIONS(F)                                                                     \
  F(CUresult, get_error_string, "cuGetErrorString", (CUresult, const char**))                  \
  F(CUresult, device_get, "cuDeviceGet", (CUdevice*, int))                                     \
  F(CUresult, device_get_name, "cuDeviceGetName", (char*, int, CUdevice))                      \
  F(CUresult, device_get_attribute, "cuDeviceGetAttribute", (int*, int, CUdevice))             \
  F(CUresult, primary_context_retain, "cuDevicePrimaryCtxRetain", (CUcontext*, CUdevice))      \
  F(CUresult, context_get_current, "cuCtxGetCurrent", (CUcontext*))                            \
  F(CUresult, context_push, "cuCtxPushCurrent_v2", (CUcontext))                                \
  F(CUresult, context_pop, "cuCtxPopCurrent_v2", (CUcontext*))                                 \
  F(CUresult, module_load_data, "cuModuleLoadData", (CUmodule*, const void*))                  \
  F(CUresult, module_get_function, "cuModuleGetFunction", (CUfunction*, CUmodule, const char*)) \
  F(CUresult, module_get_global, "cuModuleGetGlobal_v2",                                       \
    (CUdeviceptr*, size_t*, CUmodule, const char*))                                            \
  F(CUresult, copy_to_device, "cuMemcpyHtoD_v2", (CUdeviceptr, const void*, size_t))           \
  F(CUresult, stream_synchronize, "cuStreamSynchronize", (CUstream))                           \
  F(CUresult, launch_kernel, "cuLaunchKernel",                                                 \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, \
     void**, void**))

/* Those that drivers before CUDA 12.4 lack: NULL there. */
#define NEWER_DRIVER_FUNCTIONS(F) F(CUresult, function_load, "cuFuncLoad", (CUfunction))

#define DECLARE(result, field, name, parameters) result (*field) parameters;
typedef struct {
  DRIVER_FUNCTIONS(DECLARE)
  NEWER_DRIVER_FUNCTIONS(DECLARE)
} Driver;
#undef DECLARE

#endif
