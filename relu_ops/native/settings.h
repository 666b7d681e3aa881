/* The settings in force, for whoever runs plans. */
#ifndef RELU_OPS_SETTINGS_H_
#define RELU_OPS_SETTINGS_H_

#include <stdatomic.h>
#include <stdbool.h>

#include "include/relu_ops.h"

/* The settings in force. Where the default is an error (see relu_ops_get_settings) and nobody has set any,
 * those of one thread: who calls has asked for the error before. */
relu_ops_settings relu_ops_current_settings(void);

/* Rows that share vectors are run in blocks as long as a call moves less than this part of stream_bytes:
 * see choose_block of run_cpu.c. */
#define SHARED_PER_STREAM 4

/* From how many bytes on a call has to look at the settings at all; negative: they are not known yet. */
extern _Atomic int64_t relu_ops_matters_from;
static inline bool relu_ops_settings_matter(int64_t bytes) {
  return bytes >= atomic_load_explicit(&relu_ops_matters_from, memory_order_relaxed);
}

#endif
