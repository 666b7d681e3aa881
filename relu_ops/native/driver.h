/* CUDA's driver: the few functions of it that the core calls, with the types of its stable C ABI.
 *
 * Declared here so that nothing of CUDA's is needed to build, and looked up by name in a library that is
 * looked for when a device is first asked for, so that nothing of it is needed to load. */
#ifndef RELU_OPS_DRIVER_H_
#define RELU_OPS_DRIVER_H_

#include "core.h"

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

/* Name of the field, exported name, parameters. The suffixes are the versions that the types above belong
 * to. */
#define DRIVER_FUNCTIONS(F)                                                                          \
  F(init, "cuInit", (unsigned))                                                                      \
  F(get_version, "cuDriverGetVersion", (int*))                                                       \
  F(get_error_name, "cuGetErrorName", (CUresult, const char**))                                      \
  F(get_error_string, "cuGetErrorString", (CUresult, const char**))                                  \
  F(device_get_count, "cuDeviceGetCount", (int*))                                                    \
  F(device_get, "cuDeviceGet", (CUdevice*, int))                                                     \
  F(device_get_name, "cuDeviceGetName", (char*, int, CUdevice))                                      \
  F(device_get_attribute, "cuDeviceGetAttribute", (int*, int, CUdevice))                             \
  F(primary_context_retain, "cuDevicePrimaryCtxRetain", (CUcontext*, CUdevice))                      \
  F(context_get_current, "cuCtxGetCurrent", (CUcontext*))                                            \
  F(context_push, "cuCtxPushCurrent_v2", (CUcontext))                                                \
  F(context_pop, "cuCtxPopCurrent_v2", (CUcontext*))                                                 \
  F(module_load_data, "cuModuleLoadData", (CUmodule*, const void*))                                  \
  F(module_unload, "cuModuleUnload", (CUmodule))                                                     \
  F(module_get_function, "cuModuleGetFunction", (CUfunction*, CUmodule, const char*))                \
  F(module_get_global, "cuModuleGetGlobal_v2", (CUdeviceptr*, size_t*, CUmodule, const char*))       \
  F(copy_to_device, "cuMemcpyHtoD_v2", (CUdeviceptr, const void*, size_t))                           \
  F(stream_synchronize, "cuStreamSynchronize", (CUstream))                                           \
  F(launch_kernel, "cuLaunchKernel",                                                                 \
    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, \
     void**))

/* Those that drivers before CUDA 12.4 lack: NULL there. */
#define NEWER_DRIVER_FUNCTIONS(F) F(function_load, "cuFuncLoad", (CUfunction))

#define DECLARE(field, name, parameters) CUresult (*field) parameters;
typedef struct {
  DRIVER_FUNCTIONS(DECLARE)
  NEWER_DRIVER_FUNCTIONS(DECLARE)
  int version; /* of CUDA, that it runs at most: 13000 is 13.0 */
} Driver;
#undef DECLARE

/* The driver of this machine, found and started at the first call: RELU_OPS_CUDA_DRIVER, where that names a
 * library, else libcuda.so.1. RELU_OPS_DEVICE: there is none, or it fails. */
relu_ops_status relu_ops_find_driver(const Driver** driver);

/* What a device is. */
typedef struct {
  int32_t number;
  CUdevice handle;
  char name[96];
  int32_t capability; /* 90: sm_90 */
} Gpu;

/* Look a device up. RELU_OPS_DEVICE: there is no such one, or the driver fails. */
relu_ops_status relu_ops_find_gpu(const Driver* driver, int32_t number, Gpu* gpu);

/* Say that the driver refused something that it was asked, by its own name for the error:
 * RELU_OPS_DEVICE. */
relu_ops_status relu_ops_refuse_driver(const Driver* driver, CUresult result, const char* asked);

/* The same of a device, whose name is asked for the message. `of`: what messages begin with. */
relu_ops_status relu_ops_refuse_on(const Driver* driver, const char* of, CUresult result, const char* asked,
                                   int32_t number);

#endif
