/* A CUDA driver whose devices are the host: what relu_ops/native/driver.h and runtime/driver.py look up.
 *
 * A device's code is a library for the host that lies in the fat binary, its memory is the process's.
 * Devices are small, so that small arrays reach the kernels' wide loops, and the limits of grids are
 * CUDA's. As late as a driver may be, this one is: what is copied arrives when it is waited for, and a
 * function that was not loaded cannot be launched while a graph is captured. What belongs to one device
 * does not work on another.
 *
 * Tests set it up by simulated_*: they open this library by the path that RELU_OPS_CUDA_DRIVER names. */
#include <chrono>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
};
const std::map<int, std::pair<const char*, const char*>> ERRORS = {
    {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {INVALID_HANDLE, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {LAUNCH_FAILED, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {CAPTURE_UNSUPPORTED,
     {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
};

enum { DEVICES = 3, MULTIPROCESSORS = 2, THREADS_OF_ONE = 64 };

struct Context {
  int device;
};
Context contexts[DEVICES] = {{0}, {1}, {2}};
thread_local std::vector<Context*> entered;

struct Module {
  Context* context;
  void* library;
};

struct Function {
  Module* module;
  std::string name;
  void (*run)(void**, unsigned, unsigned, unsigned, unsigned);
  int parameters;
  bool loaded;
};

struct Launch {
  const Function* function;
  std::vector<int64_t> values;
  unsigned x, y, z, threads;
  void run() const {
    std::vector<void*> parameters;
    for (const int64_t& value : values) parameters.push_back((void*)&value);
    function->run(parameters.data(), x, y, z, threads);
  }
};

/* What a driver may do later, by the device. */
struct Copy {
  Context* context;
  uintptr_t to;
  std::vector<char> bytes;
};

std::recursive_mutex lock;
bool initialized, capturing;
int version = 13000, capability = 90, devices = DEVICES;
std::vector<Copy> copies;
std::vector<Launch> captured;
std::set<uintptr_t> memory;
std::map<std::string, std::pair<int, int>> failures; /* by name: after so many calls, this code */
std::map<std::string, int64_t> calls;
void* last_stream;
int last_device = -1;

/* What happens to a call of some name; SUCCESS: it goes on. */
int begin(const char* name, bool in_capture = false) {
  ++calls[name];
  auto planned = failures.find(name);
  if (planned != failures.end() && planned->second.first-- <= 0) {
    int code = planned->second.second;
    failures.erase(planned);
    return code;
  }
  if (!initialized) return NOT_INITIALIZED;
  return capturing && !in_capture ? CAPTURE_UNSUPPORTED : SUCCESS;
}

Context* current() { return entered.empty() ? nullptr : entered.back(); }

#define BEGIN(name, ...)                               \
  std::lock_guard<std::recursive_mutex> held(lock);    \
  if (int code = begin(name, ##__VA_ARGS__)) return code;

int finish_copies(Context* context) {
  for (auto copy = copies.begin(); copy != copies.end();) {
    if (copy->context != context) {
      ++copy;
      continue;
    }
    std::memcpy((void*)copy->to, copy->bytes.data(), copy->bytes.size());
    copy = copies.erase(copy);
  }
  return SUCCESS;
}

/* The library that lies behind the header of a fat binary. */
void* open_library(const char* bytes, size_t size) {
  int file = memfd_create("simulated", MFD_CLOEXEC);
  if (file < 0 || write(file, bytes, size) != (ssize_t)size) std::abort();
  std::string path = "/proc/self/fd/" + std::to_string(file);
  return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); /* the file stays open: paths of open ones are known */
}

}  // namespace

/* ---- the driver ------------------------------------------------------------------------------------ */

EXPORT int cuInit(unsigned) {
  std::lock_guard<std::recursive_mutex> held(lock);
  initialized = true;
  if (int code = begin("cuInit")) return initialized = false, code;
  return devices ? SUCCESS : (initialized = false, NO_DEVICE);
}
EXPORT int cuDriverGetVersion(int* found) {
  BEGIN("cuDriverGetVersion", true);
  *found = version;
  return SUCCESS;
}
EXPORT int cuGetErrorName(int code, const char** name) {
  auto known = ERRORS.find(code);
  if (known == ERRORS.end()) return INVALID_VALUE;
  *name = known->second.first;
  return SUCCESS;
}
EXPORT int cuGetErrorString(int code, const char** words) {
  auto known = ERRORS.find(code);
  if (known == ERRORS.end()) return INVALID_VALUE;
  *words = known->second.second;
  return SUCCESS;
}
EXPORT int cuDeviceGetCount(int* count) {
  BEGIN("cuDeviceGetCount", true);
  *count = devices;
  return SUCCESS;
}
EXPORT int cuDeviceGet(int* device, int number) {
  BEGIN("cuDeviceGet", true);
  *device = number;
  return number >= 0 && number < devices ? SUCCESS : INVALID_DEVICE;
}
EXPORT int cuDeviceGetName(char* name, int size, int) {
  BEGIN("cuDeviceGetName", true);
  std::snprintf(name, (size_t)size, "Simulated GPU");
  return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
  BEGIN("cuDeviceGetAttribute", true);
  switch (attribute) {
    case 16: *value = MULTIPROCESSORS; return SUCCESS;
    case 39: *value = THREADS_OF_ONE; return SUCCESS;
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    default: return INVALID_VALUE;
  }
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
  BEGIN("cuDevicePrimaryCtxRetain");
  *context = &contexts[device];
  return SUCCESS;
}
EXPORT int cuCtxGetCurrent(void** found) {
  BEGIN("cuCtxGetCurrent", true);
  *found = current();
  return SUCCESS;
}
EXPORT int cuCtxPushCurrent_v2(void* context) {
  BEGIN("cuCtxPushCurrent_v2", true);
  entered.push_back((Context*)context);
  return SUCCESS;
}
EXPORT int cuCtxPopCurrent_v2(void** context) {
  BEGIN("cuCtxPopCurrent_v2", true);
  if (entered.empty()) return INVALID_CONTEXT;
  *context = entered.back();
  entered.pop_back();
  return SUCCESS;
}
EXPORT int cuModuleLoadData(void** module, const void* binary) {
  BEGIN("cuModuleLoadData");
  if (!current()) return INVALID_CONTEXT;
  uint64_t size;
  std::memcpy(&size, (const char*)binary + 8, sizeof(size));
  void* library = open_library((const char*)binary + 16, size);
  if (!library) {
    std::fprintf(stderr, "simulated driver: %s\n", dlerror());
    return INVALID_IMAGE;
  }
  *module = new Module{current(), library};
  return SUCCESS;
}
EXPORT int cuModuleUnload(void* module) {
  BEGIN("cuModuleUnload");
  delete (Module*)module;
  return SUCCESS;
}
EXPORT int cuModuleGetFunction(void** function, void* of, const char* name) {
  BEGIN("cuModuleGetFunction");
  Module* module = (Module*)of;
  void* run = dlsym(module->library, (std::string("simulated_") + name).c_str());
  void* count = dlsym(module->library, (std::string("simulated_count_") + name).c_str());
  if (!run || !count) return NOT_FOUND;
  *function = new Function{module, name, (decltype(Function::run))run, ((int (*)())count)(), false};
  return SUCCESS;
}
EXPORT int cuModuleGetGlobal_v2(uintptr_t* address, size_t* size, void* of, const char* name) {
  BEGIN("cuModuleGetGlobal_v2");
  Module* module = (Module*)of;
  void* found = dlsym(module->library, name);
  void* bytes = dlsym(module->library, (std::string("simulated_size_") + name).c_str());
  if (!found || !bytes) return NOT_FOUND;
  *address = (uintptr_t)found;
  *size = *(const size_t*)bytes;
  return SUCCESS;
}
EXPORT int cuFuncLoad(void* function) {
  BEGIN("cuFuncLoad");
  ((Function*)function)->loaded = true;
  return SUCCESS;
}
EXPORT int cuMemAlloc_v2(uintptr_t* address, size_t size) {
  BEGIN("cuMemAlloc_v2");
  if (!current()) return INVALID_CONTEXT;
  void* made = std::aligned_alloc(256, (size + 255) / 256 * 256);
  if (!made) return OUT_OF_MEMORY;
  std::memset(made, 0x5A, size);
  memory.insert(*address = (uintptr_t)made);
  return SUCCESS;
}
EXPORT int cuMemFree_v2(uintptr_t address) {
  BEGIN("cuMemFree_v2");
  if (!memory.erase(address)) return INVALID_VALUE;
  std::free((void*)address);
  return SUCCESS;
}
EXPORT int cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t size) {
  BEGIN("cuMemcpyHtoD_v2");
  if (!current()) return INVALID_CONTEXT;
  copies.push_back({current(), to, std::vector<char>((const char*)from, (const char*)from + size)});
  return SUCCESS;
}
EXPORT int cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t size) {
  BEGIN("cuMemcpyDtoH_v2");
  if (!current()) return INVALID_CONTEXT;
  std::memcpy(to, (const void*)from, size);
  return SUCCESS;
}
EXPORT int cuStreamSynchronize(void*) {
  BEGIN("cuStreamSynchronize");
  return current() ? finish_copies(current()) : INVALID_CONTEXT;
}
EXPORT int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t size, void*) {
  BEGIN("cuMemcpyDtoDAsync_v2");
  if (!current()) return INVALID_CONTEXT;
  std::memcpy((void*)to, (const void*)from, size);
  return SUCCESS;
}
/* An event is a time: what is on a stream is done when it was put there. */
EXPORT int cuEventCreate(void** event, unsigned) {
  BEGIN("cuEventCreate");
  *event = new std::chrono::steady_clock::time_point;
  return current() ? SUCCESS : INVALID_CONTEXT;
}
EXPORT int cuEventRecord(void* event, void*) {
  BEGIN("cuEventRecord");
  *(std::chrono::steady_clock::time_point*)event = std::chrono::steady_clock::now();
  return SUCCESS;
}
EXPORT int cuEventSynchronize(void*) {
  BEGIN("cuEventSynchronize");
  return SUCCESS;
}
EXPORT int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  BEGIN("cuEventElapsedTime");
  using Time = std::chrono::steady_clock::time_point;
  *milliseconds = std::chrono::duration<float, std::milli>(*(Time*)end - *(Time*)start).count();
  return SUCCESS;
}
EXPORT int cuEventDestroy_v2(void* event) {
  BEGIN("cuEventDestroy_v2");
  delete (std::chrono::steady_clock::time_point*)event;
  return SUCCESS;
}
EXPORT int cuLaunchKernel(void* of, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                          unsigned, unsigned, void* stream, void** parameters, void**) {
  BEGIN("cuLaunchKernel", true);
  Function* function = (Function*)of;
  if (x < 1 || y < 1 || z < 1 || x > 0x7fffffffu || y > 65535 || z > 65535) return INVALID_VALUE;
  if (threads != 256) return INVALID_VALUE; /* what the kernels were compiled for */
  if (function->module->context != current()) return INVALID_HANDLE;
  if (capturing && !function->loaded) return CAPTURE_UNSUPPORTED;
  last_stream = stream;
  last_device = current()->device;
  Launch launch{function, {}, x, y, z, threads};
  for (int k = 0; k < function->parameters; ++k) launch.values.push_back(*(const int64_t*)parameters[k]);
  if (capturing) captured.push_back(launch);
  else launch.run();
  return SUCCESS;
}

/* ---- what tests set up, and ask -------------------------------------------------------------------- */

/* A driver of another version, for other devices. */
EXPORT void simulated_machine(int new_version, int new_capability, int new_devices) {
  version = new_version, capability = new_capability, devices = new_devices;
}
/* As it was at first, but for what was loaded. */
EXPORT void simulated_reset() {
  simulated_machine(13000, 90, DEVICES);
  capturing = false;
  failures.clear();
}
/* Let a function fail, once, with a code, after so many further calls. */
EXPORT void simulated_failure(const char* name, int after, int code) { failures[name] = {after, code}; }
EXPORT int64_t simulated_calls(const char* name) { return calls[name]; }
EXPORT void* simulated_last_stream() { return last_stream; }
EXPORT int simulated_last_device() { return last_device; }
EXPORT size_t simulated_memory() { return memory.size(); }
EXPORT void simulated_capture() { capturing = true, captured.clear(); }
EXPORT void simulated_end_capture() { capturing = false; }
EXPORT void simulated_replay() {
  for (const Launch& launch : captured) launch.run();
}
