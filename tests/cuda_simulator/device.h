/* CUDA C++ for the host: stands in for the device.h of the package, and for what NVRTC knows.
 *
 * Generated device code is compiled with a C++ compiler behind this header, into a library that
 * driver.cpp finds in the fat binary, and runs thread by thread. A wide access checks that it is
 * aligned, as the device does.
 */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define __device__
#define __global__
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct Index {
  unsigned x, y, z;
};
static thread_local Index blockIdx, threadIdx;

template <typename T, int lanes>
struct Wide {
  T lane[lanes];
  Wide& operator=(const Wide& other) {
    if ((uintptr_t)this % sizeof(Wide) || (uintptr_t)&other % sizeof(Wide)) {
      std::fprintf(stderr, "a wide access is misaligned\n");
      std::abort();
    }
    std::memcpy(lane, other.lane, sizeof(lane));
    return *this;
  }
};
typedef Wide<signed char, 2> char2;
typedef Wide<signed char, 4> char4;
typedef Wide<unsigned char, 2> uchar2;
typedef Wide<unsigned char, 4> uchar4;
typedef Wide<short, 2> short2;
typedef Wide<short, 4> short4;
typedef Wide<unsigned short, 2> ushort2;
typedef Wide<unsigned short, 4> ushort4;
typedef Wide<int, 2> int2;
typedef Wide<int, 4> int4;
typedef Wide<unsigned, 2> uint2;
typedef Wide<unsigned, 4> uint4;
typedef Wide<float, 2> float2;
typedef Wide<float, 4> float4;
typedef Wide<double, 2> double2;
typedef Wide<long long, 2> longlong2;
typedef Wide<unsigned long long, 2> ulonglong2;

static inline float relu_ops_widen_float16(unsigned short bits) {
  _Float16 narrow;
  std::memcpy(&narrow, &bits, sizeof(bits));
  return (float)narrow;
}

static inline unsigned short relu_ops_narrow_float16(float x) {
  _Float16 narrow = (_Float16)x;
  unsigned short bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  return bits;
}

static inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

static inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

/* What a device before sm_80 computes; later ones have instructions for it. */
#include "bfloat16.h"
#define relu_ops_narrow_bfloat16 relu_ops_plain_narrow_bfloat16
#define relu_ops_multiply_bfloat16 relu_ops_plain_multiply_bfloat16

static inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

/* What a library has for each kernel, as driver.cpp declares it: runs every thread of a grid. A pointer to
 * each parameter is what a launch passes. */
template <auto kernel>
struct Launch;
template <typename... Parameters, void (*kernel)(Parameters...)>
struct Launch<kernel> {
  static constexpr int count = sizeof...(Parameters);

  static void run(void** parameters, unsigned x, unsigned y, unsigned z, unsigned threads) {
    for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
      for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x)
          for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            call(parameters, std::index_sequence_for<Parameters...>());
  }

 private:
  template <size_t... k>
  static void call(void** parameters, std::index_sequence<k...>) {
    kernel(*(Parameters*)parameters[k]...);
  }
};

#define EXPORT extern "C" __attribute__((visibility("default")))
#define SIMULATE(name)                                                                                \
  EXPORT void simulated_##name(void** parameters, unsigned x, unsigned y, unsigned z, unsigned threads) { \
    Launch<name>::run(parameters, x, y, z, threads);                                                  \
  }                                                                                                   \
  EXPORT int simulated_count_##name() { return Launch<name>::count; }
