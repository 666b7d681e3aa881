/* The memory that an image lies in while it runs: read-only and, where it holds code for this processor,
 * executable; never writable while it is either. */
#ifndef RELU_OPS_MAPPING_H_
#define RELU_OPS_MAPPING_H_

#include "core.h"

/* A mapping of `size` bytes that is yet to be made, with one holder; NULL where there is no memory. What is
 * not executable is data to this processor, such as code for a GPU. */
Mapping* relu_ops_new_mapping(size_t size, bool executable);
void relu_ops_hold_mapping(Mapping* mapping);
void relu_ops_drop_mapping(Mapping* mapping); /* the last one unmaps */

/* Whoever is handed a new mapping before others see it: names its code for a profiler. */
typedef relu_ops_status (*Introduce)(const void* image, const unsigned char* base);

/* Where the bytes are mapped; maps them if nobody has. `shown` is what messages call them; introduce and
 * image: for the opt-in RELU_OPS_PERF_MAP. RELU_OPS_SYSTEM: the system refuses; RELU_OPS_MEMORY. */
relu_ops_status relu_ops_map(Mapping* mapping, const char* shown, const void* bytes, Introduce introduce,
                             const void* image, const unsigned char** base);

/* A function, as the map that perf reads lists it. */
typedef struct {
  uint32_t at, size;
  const char* operator;
  uint32_t kernel;
  bool stream;
} CodeName;

/* Append some functions to /tmp/perf-PID.map. */
relu_ops_status relu_ops_write_perf_map(const unsigned char* base, const CodeName* names, size_t count);

#endif
