/* Python's own convention: functions that the interpreter calls without tvm-ffi between.
 *
 * relu_ops_compute reads NumPy arrays where they lie; relu_ops_bound makes a function of a description
 * of arrays. Both take half as long as through tvm-ffi: see runtime/headers.py. The caller holds the
 * GIL, and references to all arguments; what is returned is a new reference. For the CPU alone: it is
 * where NumPy's arrays lie, and to run a plan cannot fail there.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "entry.h"
#include "plan.h"

/* A NumPy array as it lies in memory: the fields of PyArrayObject and PyArray_Descr, which NumPy's
 * binary interface fixes. runtime/headers.py makes sure of it before anything here reads them. */
typedef struct {
  int64_t references;
  void* type;
  void* scalar_type;
  char kind, letter, byteorder, unused;
  int32_t type_number;
} ArrayDtype;

typedef struct {
  int64_t references;
  void* type;
  char* data;
  int32_t rank;
  const int64_t* shape;
  const int64_t* byte_strides;
  void* base;
  const ArrayDtype* dtype;
  int32_t flags;
} ArrayHeader;

enum { C_CONTIGUOUS = 0x1, ALIGNED = 0x100, WRITEABLE = 0x400 };

/* What the runtime tells of Python (runtime/headers.py): the type numpy.ndarray, NULL where headers must
 * not be read; what number NumPy gave to bfloat16; where the items of a tuple begin, which is 8 bytes
 * later from Python 3.14 on; None; and functions of the interpreter, in the order of their names there. */
typedef struct {
  const void* array_type;
  int64_t bfloat16_number, items_at;
  void* none;
  void (*refer_to)(void* object);
  void (*let_go)(void* object);
  long (*as_long)(void* object);
  void* (*release_gil)(void);
  void (*take_gil)(void* thread);
  void* (*new_capsule)(void* content, const char* name, void (*end)(void* capsule));
  void* (*content_of)(void* capsule, const char* name);
  void* (*new_function)(const void* method, void* self, void* module);
} Python;

static Python python = {.bfloat16_number = -1};

void relu_ops_meet_python(const void* about) { memcpy(&python, about, sizeof(python)); }

/* NumPy's type numbers: from NPY_BOOL to NPY_DOUBLE, and NPY_HALF. */
static DLDataType dtype_of_number(int32_t number) {
  static const DLDataType dtypes[] = {
      {kDLBool, 8, 1}, {kDLInt, 8, 1},   {kDLUInt, 8, 1},  {kDLInt, 16, 1},
      {kDLUInt, 16, 1}, {kDLInt, 32, 1},  {kDLUInt, 32, 1}, {kDLInt, 64, 1},
      {kDLUInt, 64, 1}, {kDLInt, 64, 1},  {kDLUInt, 64, 1}, {kDLFloat, 32, 1},
      {kDLFloat, 64, 1}};
  DLDataType half = {kDLFloat, 16, 1}, bfloat = {kDLBfloat, 16, 1}, none = {0, 0, 0};
  if (number == 23) return half;
  if (number == python.bfloat16_number) return bfloat;
  return number >= 0 && number < (int32_t)(sizeof(dtypes) / sizeof(dtypes[0])) ? dtypes[number] : none;
}

static int view_of_header(View* view, int64_t* strides, const ArrayHeader* array, int32_t wanted) {
  if (array->type != python.array_type || (array->flags & wanted) != wanted ||
      array->dtype->byteorder == '>' || array->rank > MAX_RANK)
    return -1;
  view->data = array->data;
  view->shape = array->shape;
  view->strides = NULL;
  view->rank = array->rank;
  view->device = 0;
  view->dtype = dtype_of_number(array->dtype->type_number);
  if (array->flags & C_CONTIGUOUS) return 0;
  int64_t itemsize = view->dtype.bits / 8;
  for (int32_t d = 0; d < array->rank; ++d) {
    if (itemsize == 0 || array->byte_strides[d] % itemsize != 0) return -1;
    strides[d] = array->byte_strides[d] / itemsize;
  }
  view->strides = strides;
  return 0;
}

/* A Python tuple, up to its items. */
typedef struct {
  int64_t references;
  void* type;
  int64_t count;
} TupleHeader;

static int views_of_headers(View* views, int64_t (*strides)[MAX_RANK], const TupleHeader* inputs,
                            const ArrayHeader* output) {
  if (!python.array_type || OP.output_count != 1 || inputs->count != OP.input_count) return -1;
  const ArrayHeader* const* items = (const void*)((const char*)inputs + python.items_at);
  for (int k = 0; k < OP.input_count; ++k)
    if (view_of_header(&views[k], strides[k], items[k], ALIGNED)) return -1;
  int k = OP.input_count;
  return view_of_header(&views[k], strides[k], output, ALIGNED | WRITEABLE);
}

static int is_here(void) { return relu_ops_device_type == kDLCPU; }

static void* reference_to(void* object) {
  python.refer_to(object);
  return object;
}

/* Run a plan, which lives as long as its owner: who calls this may have a mere loan of it, that another
 * thread may end as soon as the GIL is free. */
static void run_with_gil(const Plan* plan, void* owner) {
  if (plan->keeps_gil) {
    relu_ops_run(plan);
    return;
  }
  python.refer_to(owner);
  void* thread = python.release_gil();
  relu_ops_run(plan);
  relu_ops_leave(0);
  python.take_gil(thread);
  python.let_go(owner);
}

/* Compute from a tuple of NumPy arrays into an array; a third argument is the number of threads that
 * this uses at most. Returns the output, or None where it cannot: then an error is left behind, and the
 * caller finds out for himself what is wrong. */
EXPORT void* relu_ops_compute(void* self, void* const* arguments, int64_t count) {
  (void)self;
  View views[OP.input_count + 1];
  int64_t strides[OP.input_count + 1][MAX_RANK], block[relu_ops_plans_size() / sizeof(int64_t) + 1];
  Plan* plan = plan_at(block);
  if (!is_here() || count < 2 || views_of_headers(views, strides, arguments[0], arguments[1]) ||
      relu_ops_prepare(plan, views, views + OP.input_count))
    return reference_to(python.none);
  if (count > 2) plan->threads = (int32_t)python.as_long(arguments[2]);
  run_with_gil(plan, arguments[0]);
  return reference_to(arguments[1]);
}

static const char PLAN[] = "relu_ops.plan";

static void free_plan(void* capsule) {
  Plan* plan = python.content_of(capsule, PLAN);
  if (plan->arrays) python.let_go(plan->arrays);
  free(plan);
}

static void* run_plan(void* capsule, void* unused) {
  (void)unused;
  run_with_gil(python.content_of(capsule, PLAN), capsule);
  return reference_to(python.none);
}

/* A function without arguments that computes what a description says; a second argument is the number of
 * threads or 0, a third one holds the arrays, and lives as long as the function. None where the
 * description does not fit; NULL, with an error of Python's, where memory ends. */
EXPORT void* relu_ops_bound(void* self, void* const* arguments, int64_t count) {
  /* PyMethodDef; 4 is METH_NOARGS. */
  static const struct {
    const char* name;
    void* (*function)(void*, void*);
    int flags;
    const char* doc;
  } method = {"bound", run_plan, 4, NULL};
  (void)self;
  if (!is_here() || count < 1 || count > 3) return reference_to(python.none);
  const int64_t* description = (const int64_t*)(intptr_t)python.as_long(arguments[0]);
  Plan* plan = relu_ops_new_plan(description, count > 1 ? python.as_long(arguments[1]) : 0);
  if (!plan) return reference_to(python.none);
  void* capsule = python.new_capsule(plan, PLAN, free_plan);
  if (!capsule) {
    free(plan);
    return NULL;
  }
  if (count > 2) plan->arrays = reference_to(arguments[2]);
  void* function = python.new_function(&method, capsule, NULL);
  python.let_go(capsule);
  return function;
}
