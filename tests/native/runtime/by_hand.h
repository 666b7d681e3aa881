/* What the tests of the native runtime share: operators made by hand, their kernels in C. */
#ifndef BY_HAND_H_
#define BY_HAND_H_

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../relu_ops/native/arch.h"
#include "../../../relu_ops/native/core.h"
#include "../../../relu_ops/native/image.h"

#ifdef __SANITIZE_THREAD__
enum { WATCHES_THREADS = 1 };
#else
enum { WATCHES_THREADS = 0 };
#endif

/* ---- checking ------------------------------------------------------------------------------------ */

/* A test, and a table of them, whose last row has no name. */
typedef struct {
  const char* name;
  void (*run)(void);
} Test;
extern const Test PLANS[], REFUSALS[], VECTORS[], THREADS[], SETTINGS[];

#define CHECK(condition)                                        \
  do {                                                          \
    if (!(condition)) fail_at(__FILE__, __LINE__, #condition);  \
  } while (0)

/* A refusal, whole: status, message and hint. */
#define REFUSED(call, status, message, hint)                          \
  do {                                                                \
    CHECK((call) == (status));                                        \
    check_text(__FILE__, __LINE__, relu_ops_message(), message);      \
    check_text(__FILE__, __LINE__, relu_ops_hint(), hint);            \
  } while (0)

#define REFUSED_CALL(op, inputs, outputs, status, message, hint) \
  REFUSED(relu_ops_call(op, inputs, outputs, NULL), status, message, hint)

_Noreturn void fail_at(const char* file, int line, const char* condition);
void check_text(const char* file, int line, const char* found, const char* wanted);

/* Leave a test that cannot be done here. */
_Noreturn void skip(const char* reason);

/* What no kernel meets of how a thread computes with floats: flushing and rounding towards zero, in MXCSR or
 * FPCR. With masked exceptions, which only the former has, it is the caller's again afterwards. */
#define OF_AARCH64 (ARCH_MACHINE == IMAGE_AARCH64)
#define STRANGE ((ArchFloatMode)(OF_AARCH64 ? 0x01C00000 : 0xE040))
#define KEPT ((ArchFloatMode)(OF_AARCH64 ? 0x01C00000 : 0xFFC0))

/* ---- the process --------------------------------------------------------------------------------- */

#define NEVER INT64_MAX
void use(int count, int64_t parallel, int64_t stream, int64_t wake); /* these settings, from now on */

int threads_of_process(void); /* a sanitizer's own among them */
void pause_for(long milliseconds);

/* A host of three threads, two at work, which take the chunks from the last to the first. */
extern const relu_ops_host_threads HOST;
extern atomic_llong host_chunks; /* of its last job */

/* ---- kernels ------------------------------------------------------------------------------------- */

enum { VECTOR_BYTES = 64, MOST_LEAVES = 3 };

/* What kernels have seen: elements that went past the cache, calls, calls by other threads than the first,
 * and bits of a mode (STRANGE) that were set and should not have been. */
extern atomic_llong streamed, called, helped;
extern atomic_ullong modes_seen;

/* Who takes his time for each call of a kernel: 5 ms. */
enum { NOBODY_LATE, LATE_CALLER, LATE_WORKERS };
extern atomic_int late;

/* ---- operators ----------------------------------------------------------------------------------- */

static const DLDataType FLOAT32 = {kDLFloat, 32, 1}, FLOAT64 = {kDLFloat, 64, 1}, INT8 = {kDLInt, 8, 1};
static const Seen PLAIN = {0, 0, 1};

/* An operator of float32, whose inputs a, b, ... are its leaves as they are, of any shape. Every output
 * (y, z, ...) has the shape of all inputs; with `apart`, of the input of its own number. To be given to
 * drop, so that what leaks is a leak. */
relu_ops_operator* new_operator(int inputs, int outputs, bool apart, const Kernel* kernels,
                                int kernel_count);
void drop(relu_ops_operator* op);

/* One output: the sum of 1 to 3 inputs, and one. */
relu_ops_operator* sum_of(int leaves);

/* As many outputs as inputs, each one more than the input of its number. */
relu_ops_operator* each_of(int count, bool apart);

/* Declare the shape of an input; its symbols are numbered as their names are: N, M. */
void declare(relu_ops_operator* op, int32_t input, int32_t rank, const int64_t* dims);

/* ---- tensors ------------------------------------------------------------------------------------- */

#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
DLTensor tensor(void* data, int32_t rank, const int64_t* shape);
DLTensor strided(void* data, int32_t rank, const int64_t* shape, const int64_t* strides);

enum { LARGE = 300000 };
extern float A[64], B[64], Y[64], Z[64];
extern float large_in[LARGE + 64], large_out[LARGE + 64];

/* Compute a large output from large_in, by an operator that sum_of(1) made, and check every element. */
void fill_large(void);
void call_large_with(const relu_ops_operator* op, const relu_ops_options* options);

#endif
