/* See driver.h. */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"
#define WITHOUT "install NVIDIA's driver, or load an image for the CPU"

static Driver found; /* filled once, by whoever holds the lock; then `ready` says so */
static atomic_bool ready;
static pthread_mutex_t finding = PTHREAD_MUTEX_INITIALIZER;

/* ---- errors --------------------------------------------------------------------------------------- */

/* An error as the driver calls it: CUDA_ERROR_NO_DEVICE (100, no CUDA-capable device is detected). */
static void append_error(Text* text, const Driver* driver, CUresult result) {
  const char *name = NULL, *words = NULL;
  if (driver->get_error_name(result, &name) || !name) name = "an error that it has no name for";
  if (driver->get_error_string(result, &words) || !words) words = "unknown";
  relu_ops_append(text, "%s (%d, %s)", name, result, words);
}

relu_ops_status relu_ops_refuse_driver(const Driver* driver, CUresult result, const char* asked) {
  Text text = {.text = ""};
  append_error(&text, driver, result);
  return relu_ops_fail(RELU_OPS_DEVICE, "CUDA's driver: %s failed with %s", asked, text.text);
}

relu_ops_status relu_ops_refuse_on(const Driver* driver, const char* of, CUresult result, const char* asked,
                                   int32_t number) {
  Text text = {.text = ""};
  Gpu gpu;
  append_error(&text, driver, result);
  if (relu_ops_find_gpu(driver, number, &gpu) != RELU_OPS_OK)
    return relu_ops_fail(RELU_OPS_DEVICE, "%s: %s on cuda:%" PRId32 " failed with %s", of, asked, number,
                         text.text);
  return relu_ops_fail(RELU_OPS_DEVICE, "%s: %s on cuda:%" PRId32 " (%s, sm_%" PRId32 ") failed with %s", of,
                       asked, number, gpu.name, gpu.capability, text.text);
}

/* ---- the library ---------------------------------------------------------------------------------- */

static relu_ops_status refuse_library(const char* what) {
  relu_ops_fail(RELU_OPS_DEVICE, "CUDA's driver cannot be used: %s", what);
  return relu_ops_advise(RELU_OPS_DEVICE, WITHOUT);
}

static relu_ops_status lack(const char* library, const char* name) {
  relu_ops_fail(RELU_OPS_DEVICE, "CUDA's driver is too old: %s has no function %s", library, name);
  return relu_ops_advise(RELU_OPS_DEVICE, "install a driver of CUDA 13.0 or later");
}

static relu_ops_status look_up(void* library, const char* path) {
#define FIND(field, name, parameters)                             \
  *(void**)&found.field = dlsym(library, name);                   \
  if (!found.field) return lack(path, name);
  DRIVER_FUNCTIONS(FIND)
#undef FIND
#define FIND(field, name, parameters) *(void**)&found.field = dlsym(library, name);
  NEWER_DRIVER_FUNCTIONS(FIND)
#undef FIND
  return RELU_OPS_OK;
}

static relu_ops_status start(void) {
  CUresult result = found.init(0);
  if (result) {
    relu_ops_refuse_driver(&found, result, "starting it (cuInit)");
    return relu_ops_advise(RELU_OPS_DEVICE, "see whether nvidia-smi lists a device to this user");
  }
  result = found.get_version(&found.version);
  return result ? relu_ops_refuse_driver(&found, result, "asking for its version") : RELU_OPS_OK;
}

/* The library stays open: it cannot be unloaded while the process lives. */
static relu_ops_status open_library(void) {
  const char* path = secure_getenv("RELU_OPS_CUDA_DRIVER");
  if (!path || !*path) path = LIBRARY;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return refuse_library(dlerror());
  relu_ops_status status = look_up(library, path);
  return status ? status : start();
}

relu_ops_status relu_ops_find_driver(const Driver** driver) {
  *driver = &found;
  if (atomic_load_explicit(&ready, memory_order_acquire)) return RELU_OPS_OK;
  pthread_mutex_lock(&finding);
  bool was_ready = atomic_load(&ready);
  relu_ops_status status = was_ready ? RELU_OPS_OK : open_library();
  if (!status) atomic_store_explicit(&ready, true, memory_order_release);
  pthread_mutex_unlock(&finding);
  return status;
}

/* ---- devices -------------------------------------------------------------------------------------- */

static relu_ops_status refuse_number(const Driver* driver, int32_t number) {
  int count = 0;
  CUresult result = driver->device_get_count(&count);
  if (result) return relu_ops_refuse_driver(driver, result, "counting devices");
  relu_ops_fail(RELU_OPS_DEVICE, "there is no device cuda:%" PRId32 "; the driver lists %d", number, count);
  return relu_ops_advise(RELU_OPS_DEVICE, "devices are numbered from 0, as CUDA_VISIBLE_DEVICES lists them");
}

relu_ops_status relu_ops_find_gpu(const Driver* driver, int32_t number, Gpu* gpu) {
  int major = 0, minor = 0;
  gpu->number = number;
  if (number < 0 || driver->device_get(&gpu->handle, number)) return refuse_number(driver, number);
  CUresult result = driver->device_get_name(gpu->name, sizeof(gpu->name), gpu->handle);
  if (!result)
    result = driver->device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu->handle);
  if (!result)
    result = driver->device_get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu->handle);
  gpu->name[sizeof(gpu->name) - 1] = '\0';
  gpu->capability = 10 * major + minor;
  return result ? relu_ops_refuse_driver(driver, result, "asking what a device is") : RELU_OPS_OK;
}
