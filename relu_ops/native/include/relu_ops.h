/* relu_ops: compiled elementwise operators, called from C and C++.
 *
 *   relu_ops_bundle* bundle;
 *   relu_ops_operator* op;
 *   if (relu_ops_require(RELU_OPS_API) || relu_ops_open("leaky.bundle", NULL, &bundle) ||
 *       relu_ops_load(bundle, NULL, NULL, &op))
 *     fprintf(stderr, "%s\n", relu_ops_message());
 *   relu_ops_call(op, &x, &y, NULL);
 *
 * Every function that can fail returns a relu_ops_status, and says what is wrong by relu_ops_message().
 * Any function may be called by any number of threads at once, on the same objects too, but what frees an
 * object (relu_ops_close, relu_ops_release, relu_ops_free) must not meet another use of that very object.
 * No function keeps a pointer that it was passed for longer than its call, unless it says so. Texts are
 * UTF-8, end with a NUL and belong to the library.
 */
#ifndef RELU_OPS_H_
#define RELU_OPS_H_

#include <dlpack/dlpack.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(RELU_OPS_BUILD)
#define RELU_OPS_EXPORT __attribute__((visibility("default")))
#else
#define RELU_OPS_EXPORT
#endif

/* The number of this interface: raised when a program that was compiled with an older header would
 * misunderstand the library. */
#define RELU_OPS_API 1

/* The most dimensions that an array may have at a call. */
#define RELU_OPS_MAX_RANK 16

typedef enum relu_ops_status {
  RELU_OPS_OK = 0,
  RELU_OPS_ARGUMENT = 1, /* an argument has the right type and a wrong value: a shape, a number, a name */
  RELU_OPS_TYPE = 2,     /* an argument has the wrong type or dtype */
  RELU_OPS_BUNDLE = 3,   /* a bundle or an image is missing, damaged, or not the expected one */
  RELU_OPS_TARGET = 4,   /* nothing in the bundle can run on this machine */
  RELU_OPS_DEVICE = 5,   /* a device or its driver failed */
  RELU_OPS_MEMORY = 6,   /* there is no memory */
  RELU_OPS_SYSTEM = 7    /* the operating system refused something */
} relu_ops_status;

/* What was wrong with the last call on this thread that failed: a sentence that names the thing, what it is
 * and what it must be; and what to do about it, or NULL. Both are valid until the next call of this
 * library on this thread. */
RELU_OPS_EXPORT const char* relu_ops_message(void);
RELU_OPS_EXPORT const char* relu_ops_hint(void);

/* The version of the library, such as "0.1.0". */
RELU_OPS_EXPORT const char* relu_ops_version(void);

/* Check that this library has the interface of the header that a program was compiled with: pass
 * RELU_OPS_API. RELU_OPS_ARGUMENT where it has not. */
RELU_OPS_EXPORT relu_ops_status relu_ops_require(int api);

/* ---- bundles ----------------------------------------------------------------------------------- */

/* A bundle that was read and checked; its files are in memory. */
typedef struct relu_ops_bundle relu_ops_bundle;

/* Read a bundle and check every file against the digests in its SHA256SUMS.
 *
 * path: the bundle's directory. digest: the expected sha256 of SHA256SUMS in hexadecimal, or NULL to
 * accept the one found. On success *bundle is the caller's, to be given to relu_ops_close.
 * RELU_OPS_BUNDLE: there is no bundle, or it is not what its SHA256SUMS or `digest` says. */
RELU_OPS_EXPORT relu_ops_status relu_ops_open(const char* path, const char* digest,
                                              relu_ops_bundle** bundle);

/* The same of files that are in memory already: `count` of them, each with its name, its bytes and their
 * number. They are copied. `shown` is what messages call the bundle. */
RELU_OPS_EXPORT relu_ops_status relu_ops_open_files(const char* shown, size_t count,
                                                    const char* const* names, const void* const* bytes,
                                                    const size_t* sizes, const char* digest,
                                                    relu_ops_bundle** bundle);

/* Open one image (a file such as x86-64-v3.image) that is in memory. It is copied. digest: the expected
 * sha256 of the image, or NULL. */
RELU_OPS_EXPORT relu_ops_status relu_ops_open_image(const char* shown, const void* bytes, size_t size,
                                                    const char* digest, relu_ops_bundle** bundle);

/* Free a bundle. Operators that were loaded from it stay valid. NULL is allowed. */
RELU_OPS_EXPORT void relu_ops_close(relu_ops_bundle* bundle);

/* The sha256 of its SHA256SUMS (of the image, for one that was opened alone), in hexadecimal. Lives as
 * long as the bundle, as all that these functions return. */
RELU_OPS_EXPORT const char* relu_ops_digest(const relu_ops_bundle* bundle);

/* Its files by number, SHA256SUMS among them: name, bytes and size. RELU_OPS_ARGUMENT past the last. */
RELU_OPS_EXPORT size_t relu_ops_file_count(const relu_ops_bundle* bundle);
RELU_OPS_EXPORT relu_ops_status relu_ops_file(const relu_ops_bundle* bundle, size_t number,
                                              const char** name, const void** bytes, size_t* size);

/* The targets that it has an image for, by number; NULL past the last. */
RELU_OPS_EXPORT size_t relu_ops_target_count(const relu_ops_bundle* bundle);
RELU_OPS_EXPORT const char* relu_ops_target_name(const relu_ops_bundle* bundle, size_t number);

/* The operators that it holds, by number; NULL past the last. */
RELU_OPS_EXPORT size_t relu_ops_operator_count(const relu_ops_bundle* bundle);
RELU_OPS_EXPORT const char* relu_ops_operator_name(const relu_ops_bundle* bundle, size_t number);

/* Which target of a bundle is the best that a machine can run: a pure function of what the machine is.
 *
 * architecture: as uname -m says, or NULL for this machine; features: the names of its processor's
 * features, as Linux lists them in /proc/cpuinfo (`count` of them), or NULL for this machine's. *target
 * belongs to the bundle.
 * RELU_OPS_TARGET: none; the message lists every target and why not. */
RELU_OPS_EXPORT relu_ops_status relu_ops_choose(const relu_ops_bundle* bundle, const char* architecture,
                                                const char* const* features, size_t count,
                                                const char** target);

/* The names of the features that this machine's processor has and its operating system supports, of those
 * that a target may require; by number, NULL past the last. Asked of the processor itself. */
RELU_OPS_EXPORT const char* relu_ops_processor_feature(size_t number);

/* ---- operators --------------------------------------------------------------------------------- */

/* An operator that is ready to be called. */
typedef struct relu_ops_operator relu_ops_operator;

/* Load an operator of a bundle for the CPU: its image is mapped, and nothing of it runs.
 *
 * name: which one; NULL where there is only one. target: the image to take; NULL for the best that
 * this machine can run. On success *op is the caller's, to be given to relu_ops_release.
 * RELU_OPS_ARGUMENT: there is no operator of that name; the message lists the names. RELU_OPS_TARGET:
 * no image, or not the one asked for, can run here; the message lists every target and why not. */
RELU_OPS_EXPORT relu_ops_status relu_ops_load(const relu_ops_bundle* bundle, const char* name,
                                              const char* target, relu_ops_operator** op);

/* Load an operator of a bundle for a device: {kDLCPU, 0}, as relu_ops_load, or {kDLCUDA, N}.
 *
 * CUDA's driver is looked for at the first such call: the library that RELU_OPS_CUDA_DRIVER names, or
 * libcuda.so.1. The device's primary context is used, and the code is loaded there, so that a launch can be
 * captured in a graph afterwards; it stays there as long as the process lives. Other devices of the machine
 * are made ready at their first call. target: the image to take; NULL for the one with the closest code.
 * Errors as of relu_ops_load, and RELU_OPS_DEVICE: there is no driver or no such device, or the driver
 * failed. */
RELU_OPS_EXPORT relu_ops_status relu_ops_load_on(const relu_ops_bundle* bundle, const char* name,
                                                 const char* target, DLDevice device,
                                                 relu_ops_operator** op);

/* Free an operator. Bound calls that were made of it stay valid. NULL is allowed. */
RELU_OPS_EXPORT void relu_ops_release(relu_ops_operator* op);

/* Its name, and the target whose image it is in. Live as long as the operator, as all below. */
RELU_OPS_EXPORT const char* relu_ops_name(const relu_ops_operator* op);
RELU_OPS_EXPORT const char* relu_ops_target(const relu_ops_operator* op);

/* The device that it was loaded for. */
RELU_OPS_EXPORT DLDevice relu_ops_device(const relu_ops_operator* op);

/* What an input or output is declared to be. */
typedef struct relu_ops_spec {
  const char* name;
  DLDataType dtype;
  int32_t rank;        /* -1: any */
  const int64_t* dims; /* by dimension: its extent; -1: any; below: the symbol of number -2 - dim */
} relu_ops_spec;

/* The inputs and outputs, by number from 0. RELU_OPS_ARGUMENT past the last. */
RELU_OPS_EXPORT int32_t relu_ops_input_count(const relu_ops_operator* op);
RELU_OPS_EXPORT int32_t relu_ops_output_count(const relu_ops_operator* op);
RELU_OPS_EXPORT relu_ops_status relu_ops_input(const relu_ops_operator* op, int32_t number,
                                               relu_ops_spec* spec);
RELU_OPS_EXPORT relu_ops_status relu_ops_output(const relu_ops_operator* op, int32_t number,
                                                relu_ops_spec* spec);

/* The name of a symbolic dimension, by its number; NULL past the last. Dimensions of one symbol have one
 * extent at a call. */
RELU_OPS_EXPORT const char* relu_ops_symbol(const relu_ops_operator* op, int32_t number);

/* The shapes of the outputs for inputs of some shapes. Of the inputs only ndim and shape are read.
 *
 * inputs: one tensor an input. ranks, shapes: room for one an output. RELU_OPS_ARGUMENT: the shapes
 * are not those of the model, or do not broadcast together. */
RELU_OPS_EXPORT relu_ops_status relu_ops_output_shapes(const relu_ops_operator* op,
                                                       const DLTensor* inputs, int32_t* ranks,
                                                       int64_t (*shapes)[RELU_OPS_MAX_RANK]);

/* ---- calls ------------------------------------------------------------------------------------- */

/* Threads that are the host's and not this library's. `run` calls task(argument, chunk, chunks) once for
 * every chunk from 0 to chunks - 1, on whatever threads it likes, and returns when all have returned. */
typedef void (*relu_ops_task)(void* argument, int64_t chunk, int64_t chunks);
typedef struct relu_ops_host_threads {
  void (*run)(void* host, relu_ops_task task, void* argument, int64_t chunks);
  void* host;
  int32_t count; /* how many threads it has, at least 1 */
} relu_ops_host_threads;

/* How a call is made; all zero is the default. */
typedef struct relu_ops_options {
  int32_t threads;                   /* how many it uses at most, 1 to 256; 0: as the process is set */
  void* stream;                      /* CUDA: where it is put; NULL: the default one. On the CPU: NULL */
  const relu_ops_host_threads* host; /* whose threads it uses; NULL: this library's own pool */
} relu_ops_options;

/* Compute.
 *
 * inputs, outputs: one tensor each, of the declared dtype, in the memory of one device, of a shape that
 * the model allows, aligned to its element; strides in elements, or NULL where the array is compact. An
 * output may be an input's own memory, element for element, where there is one output; any other overlap
 * is refused. options: NULL for the default. On the CPU the work is done when it returns. On a CUDA device
 * it is put on the stream, in launches that a graph may capture, and the call waits for nothing: the memory
 * of the tensors must live until the stream has come past it.
 *
 * Everything is checked before anything is written. RELU_OPS_TYPE, RELU_OPS_ARGUMENT: a tensor is not
 * what it must be. RELU_OPS_MEMORY: more than some tens of operands, and no memory to plan for them.
 * RELU_OPS_DEVICE: the driver failed; with this status alone, something may have been launched. */
RELU_OPS_EXPORT relu_ops_status relu_ops_call(const relu_ops_operator* op, const DLTensor* inputs,
                                              const DLTensor* outputs, const relu_ops_options* options);

/* Compute on arrays of one shape, whichever, that lie without gaps: as vectors of so many elements.
 *
 * data: where each array begins, the inputs and then the outputs, on the operator's device, aligned to its
 * element and of the declared dtype: nothing says that to the library. An input that is declared as a single
 * number has one element. Overlap, options and errors as of relu_ops_call. RELU_OPS_ARGUMENT: the model
 * declares the shape of an array, or treats its elements by where they stand. */
RELU_OPS_EXPORT relu_ops_status relu_ops_call_vectors(const relu_ops_operator* op, void* const* data,
                                                      int64_t elements, const relu_ops_options* options);

/* A call whose arrays were checked once. */
typedef struct relu_ops_bound relu_ops_bound;

/* Check the arrays now, to compute on them as often as wanted.
 *
 * Arguments and errors as of relu_ops_call. The memory that the tensors' data point to must live, and
 * lie where it does, as long as *bound is used; their shapes and strides need not, nor options. What
 * options->host points to must live as long. *bound is the caller's, to be given to relu_ops_free. */
RELU_OPS_EXPORT relu_ops_status relu_ops_bind(const relu_ops_operator* op, const DLTensor* inputs,
                                              const DLTensor* outputs, const relu_ops_options* options,
                                              relu_ops_bound** bound);

/* Compute what was bound, on the stream of relu_ops_bind. On the CPU it cannot fail; on a device errors are
 * as of relu_ops_call. */
RELU_OPS_EXPORT relu_ops_status relu_ops_run(const relu_ops_bound* bound);

/* The same on another stream of the device. RELU_OPS_ARGUMENT: it runs on the CPU. */
RELU_OPS_EXPORT relu_ops_status relu_ops_run_on(const relu_ops_bound* bound, void* stream);

/* Free a bound call. NULL is allowed. */
RELU_OPS_EXPORT void relu_ops_free(relu_ops_bound* bound);

/* ---- the process ------------------------------------------------------------------------------- */

/* How operators of this process run on the CPU. Sizes are bytes that a call reads and writes. */
typedef struct relu_ops_settings {
  int32_t threads;        /* how many a large call uses, 1 to 256 */
  int64_t parallel_bytes; /* from how many on it uses more than one that is awake */
  int64_t stream_bytes;   /* from how many on stores go past the cache */
  int64_t wake_bytes;     /* how many, in one call or a burst of them, make up for waking a thread */
} relu_ops_settings;

/* What holds until somebody sets something else: RELU_OPS_NUM_THREADS or the processors that this process
 * may use (its affinity, the quotas of its cgroups), and thresholds by the size of the last-level cache.
 * RELU_OPS_ARGUMENT: RELU_OPS_NUM_THREADS is no number from 1 to 256. */
RELU_OPS_EXPORT relu_ops_status relu_ops_default_settings(relu_ops_settings* settings);

/* The settings in force, and how to change them. RELU_OPS_ARGUMENT: one is out of range, or for the
 * first, as of relu_ops_default_settings. */
RELU_OPS_EXPORT relu_ops_status relu_ops_get_settings(relu_ops_settings* settings);
RELU_OPS_EXPORT relu_ops_status relu_ops_set_settings(const relu_ops_settings* settings);

#ifdef __cplusplus
}
#endif

#endif
