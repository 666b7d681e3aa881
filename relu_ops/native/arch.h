/* What differs between processors: the header of the one that this is compiled for. */
#ifndef RELU_OPS_ARCH_H_
#define RELU_OPS_ARCH_H_

#if defined(__x86_64__)
#include "arch_x86_64.h"
#elif defined(__aarch64__)
#include "arch_aarch64.h"
#else
#error "relu_ops runs on x86-64 and AArch64"
#endif

#endif
