/* Of onnxruntime's C interface, what onnxruntime*.c use: no package has its header.
 *
 * OrtApi is a structure of function pointers whose order never changes; a host's interface of version 17
 * (onnxruntime 1.17) or newer begins with that of 17. What a pointer's place is, the table says.
 * tests/test_onnxruntime_host.py holds it to live sessions of several releases. */
#ifndef RELU_OPS_ONNXRUNTIME_H_
#define RELU_OPS_ONNXRUNTIME_H_

#include <stddef.h>
#include <stdint.h>

#include "core.h"

typedef struct OrtStatus OrtStatus;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtCustomOp OrtCustomOp;

/* Any function of OrtApi, before it is known which. */
typedef void (*OrtFunction)(void);

typedef struct {
  const OrtFunction* (*get_api)(uint32_t version);
  const char* (*get_version)(void);
} OrtApiBase;

/* Place, name here, result, parameters. All are there from version 17 on but the last one, which is NULL
 * before version 24. */
#define ORT_FUNCTIONS(F)                                                                             \
  F(0, create_status, OrtStatus*, (int code, const char* message))                                   \
  F(26, create_domain, OrtStatus*, (const char* name, OrtCustomOpDomain** domain))                   \
  F(27, add_to_domain, OrtStatus*, (OrtCustomOpDomain * domain, const OrtCustomOp* op))              \
  F(28, add_domain, OrtStatus*, (OrtSessionOptions * options, OrtCustomOpDomain* domain))            \
  F(51, get_data, OrtStatus*, (OrtValue * value, void** data))                                       \
  F(57, create_info, OrtStatus*, (OrtTensorTypeAndShapeInfo * *info))                                \
  F(58, set_element_type, OrtStatus*, (OrtTensorTypeAndShapeInfo * info, int type))                  \
  F(59, set_dimensions, OrtStatus*,                                                                  \
    (OrtTensorTypeAndShapeInfo * info, const int64_t* dims, size_t rank))                            \
  F(61, get_rank, OrtStatus*, (const OrtTensorTypeAndShapeInfo* info, size_t* rank))                 \
  F(62, get_dimensions, OrtStatus*,                                                                  \
    (const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank))                             \
  F(63, get_symbols, OrtStatus*,                                                                     \
    (const OrtTensorTypeAndShapeInfo* info, const char** symbols, size_t rank))                      \
  F(65, get_info, OrtStatus*, (const OrtValue* value, OrtTensorTypeAndShapeInfo** info))             \
  F(90, get_input, OrtStatus*, (const OrtKernelContext* context, size_t k, const OrtValue** value))  \
  F(91, get_output, OrtStatus*,                                                                      \
    (OrtKernelContext * context, size_t k, const int64_t* dims, size_t rank, OrtValue** value))      \
  F(93, release_status, void, (OrtStatus * status))                                                  \
  F(99, release_info, void, (OrtTensorTypeAndShapeInfo * info))                                      \
  F(101, release_domain, void, (OrtCustomOpDomain * domain))                                         \
  F(237, has_entry, OrtStatus*, (const OrtSessionOptions* options, const char* key, int* has))       \
  F(238, get_entry, OrtStatus*,                                                                      \
    (const OrtSessionOptions* options, const char* key, char* value, size_t* size))                  \
  F(268, get_inferred, OrtStatus*,                                                                   \
    (const OrtShapeInferContext* context, size_t k, OrtTensorTypeAndShapeInfo** info))               \
  F(270, set_inferred, OrtStatus*,                                                                   \
    (const OrtShapeInferContext* context, size_t k, const OrtTensorTypeAndShapeInfo* info))          \
  F(271, set_symbols, OrtStatus*,                                                                    \
    (OrtTensorTypeAndShapeInfo * info, const char** symbols, size_t rank))                           \
  F(274, parallel_for, OrtStatus*,                                                                   \
    (const OrtKernelContext* context, void (*run)(void*, size_t), size_t total, size_t batches,      \
     void* argument))                                                                                \
  F(414, refer_to_shape, OrtStatus*,                                                                 \
    (const OrtValue* value, int* type, const int64_t** dims, size_t* rank))

#define ORT_OLDEST 17           /* the version of OrtApi that is needed */
#define ORT_IN_PLACE_FROM 18    /* that asks an operator for what it can compute in place */
#define ORT_SHAPE_REFERENCES_FROM 24

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 }; /* codes of a status */

/* An operator. What a pointer is called with at first is the structure itself. */
struct OrtCustomOp {
  uint32_t version; /* of OrtApi; decides how many of the pointers below are read */
  void* (*create_kernel)(const OrtCustomOp*, const OrtFunction*, const OrtKernelInfo*);
  const char* (*get_name)(const OrtCustomOp*);
  const char* (*get_provider)(const OrtCustomOp*);
  int (*get_input_type)(const OrtCustomOp*, size_t);
  size_t (*get_input_count)(const OrtCustomOp*);
  int (*get_output_type)(const OrtCustomOp*, size_t);
  size_t (*get_output_count)(const OrtCustomOp*);
  void (*compute)(void* kernel, OrtKernelContext*);
  void (*destroy_kernel)(void* kernel);
  int (*get_input_characteristic)(const OrtCustomOp*, size_t);
  int (*get_output_characteristic)(const OrtCustomOp*, size_t);
  int (*get_input_memory)(const OrtCustomOp*, size_t);
  int (*get_variadic_input_least)(const OrtCustomOp*);
  int (*get_variadic_input_homogeneous)(const OrtCustomOp*);
  int (*get_variadic_output_least)(const OrtCustomOp*);
  int (*get_variadic_output_homogeneous)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, const OrtFunction*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute_v2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*infer_shapes)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*get_start_version)(const OrtCustomOp*);
  int (*get_end_version)(const OrtCustomOp*);
  size_t (*get_in_place)(int** inputs, int** outputs); /* from version 18 on, as all below */
  void (*release_in_place)(int* inputs, int* outputs);
  size_t (*get_aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};

/* ---- ours ---------------------------------------------------------------------------------------- */

/* The functions of a host, and which version of them it has. */
typedef struct {
  uint32_t version;
#define ORT_MEMBER(place, name, result, parameters) result(*name) parameters;
  ORT_FUNCTIONS(ORT_MEMBER)
#undef ORT_MEMBER
} Host;

/* An operator, as a host sees it. */
typedef struct {
  OrtCustomOp face; /* first: it is what the host hands back */
  const Host* host;
  const relu_ops_operator* op;
  char* name;
  int32_t threads; /* that a large call is divided for */
} HostedOperator;

/* Fill all but the name. RELU_OPS_TYPE: the host has no arrays of a dtype of the operator's. */
relu_ops_status relu_ops_host_operator(HostedOperator* h, const Host* host, const relu_ops_operator* op,
                                       int32_t threads);

/* This thread's message as a status of the host. */
OrtStatus* relu_ops_refuse_host(const Host* host, relu_ops_status status);

#endif
