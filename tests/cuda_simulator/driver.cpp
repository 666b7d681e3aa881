/* A CUDA driver whose device is the host: what driver.h of the package looks up.
 *
 * The device is small, so that small arrays reach the kernels' wide loops, and its grid limits are
 * CUDA's. Launches run to the end; how many there were can be asked. As late as a driver may be,
 * this one is: what is copied arrives when it is waited for, and a function that was not loaded
 * cannot be launched, as in the capture of a graph.
 */
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "device.h"

thread_local Index blockIdx, threadIdx;

namespace {

struct Memory {
  void* address;
  size_t size;
};
std::map<std::string, Simulated>& kernels() {
  static std::map<std::string, Simulated> all;
  return all;
}
std::map<std::string, Memory>& memories() {
  static std::map<std::string, Memory> all;
  return all;
}

int context;
int64_t launches;
std::vector<std::function<void()>> copies;
std::set<void*> loaded;

int device_get(int* device, int number) {
  *device = number;
  return number == 0 ? 0 : 101;
}
int device_get_name(char* name, int size, int) {
  std::snprintf(name, (size_t)size, "simulated");
  return 0;
}
int device_get_attribute(int* value, int attribute, int) {
  /* 16: multiprocessors; 39: threads of one; 75 and 76: compute capability. */
  *value = attribute == 16 ? 2 : attribute == 39 ? 64 : attribute == 75 ? 9 : 0;
  return 0;
}
int get_error_string(int, const char** text) {
  *text = "simulated error";
  return 0;
}
int retain(void** made, int) {
  *made = &context;
  return 0;
}
int current(void** found) {
  *found = nullptr;
  return 0;
}
int push(void*) { return 0; }
int pop(void**) { return 0; }
int load(void** module, const void*) {
  *module = &context;
  return 0;
}
int function(void** found, void*, const char* name) {
  auto kernel = kernels().find(name);
  if (kernel == kernels().end()) return 500;
  *found = (void*)kernel->second;
  return 0;
}
int global(uintptr_t* address, size_t* size, void*, const char* name) {
  auto memory = memories().find(name);
  if (memory == memories().end()) return 500;
  *address = (uintptr_t)memory->second.address;
  *size = memory->second.size;
  return 0;
}
int load_function(void* kernel) {
  loaded.insert(kernel);
  return 0;
}
int copy(uintptr_t to, const void* from, size_t size) {
  copies.push_back([=] { std::memcpy((void*)to, from, size); });
  return 0;
}
int synchronize(void*) {
  for (auto& copy : copies) copy();
  copies.clear();
  return 0;
}
int launch(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
           unsigned, void*, void** parameters, void**) {
  if (x < 1 || y < 1 || z < 1 || x > 0x7fffffffu || y > 65535 || z > 65535) return 1;
  if (!loaded.count(kernel)) return 900; /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED */
  ++launches;
  for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
          ((Simulated)kernel)(parameters);
  return 0;
}

const std::map<std::string, void*> functions = {
    {"cuGetErrorString", (void*)get_error_string},
    {"cuDeviceGet", (void*)device_get},
    {"cuDeviceGetName", (void*)device_get_name},
    {"cuDeviceGetAttribute", (void*)device_get_attribute},
    {"cuDevicePrimaryCtxRetain", (void*)retain},
    {"cuCtxGetCurrent", (void*)current},
    {"cuCtxPushCurrent_v2", (void*)push},
    {"cuCtxPopCurrent_v2", (void*)pop},
    {"cuModuleLoadData", (void*)load},
    {"cuModuleGetFunction", (void*)function},
    {"cuModuleGetGlobal_v2", (void*)global},
    {"cuFuncLoad", (void*)load_function},
    {"cuStreamSynchronize", (void*)synchronize},
    {"cuMemcpyHtoD_v2", (void*)copy},
    {"cuLaunchKernel", (void*)launch},
};

}  // namespace

void simulate(const char* name, Simulated kernel) { kernels()[name] = kernel; }
void simulate_memory(const char* name, void* memory, size_t size) {
  memories()[name] = {memory, size};
}

/* As dlsym, for prepare. */
extern "C" __attribute__((visibility("default"))) void* simulated_lookup(void*, const char* name) {
  auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

extern "C" __attribute__((visibility("default"))) int64_t simulated_launches() { return launches; }
