/* Makes the operators of an image that was read, and lets them go.
 *
 * An operator's strings, dimensions, patterns and constants stay where they lie in the mapping; what has
 * pointers is made anew, in one block with the operator. */
#include <dlpack/dlpack.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "core.h"
#include "image.h"
#include "mapping.h"
#include "plan.h"

static const char* text_at(const unsigned char* base, ImageText text) {
  return (const char*)base + text.at;
}

/* Where an operator's image is mapped, and where its block has room. In the mapping, which begins at a
 * page, every row lies at a multiple of 8. */
typedef struct {
  const unsigned char* base;
  unsigned char* next;
} Decoder;

static const void* rows_at(const Decoder* d, ImageTable table) {
  return d->base + table.at;
}

/* Room in the block for what a table becomes: every kind of it is a multiple of 8 bytes. */
static void* take(Decoder* d, size_t count, size_t size) {
  void* taken = d->next;
  d->next += count * size;
  return taken;
}

static Seen seen_of(ImageSeen seen) {
  return (Seen){seen.trailing, seen.axis, seen.block};
}

static const relu_ops_spec* specs_of(Decoder* d, ImageTable table) {
  const ImageTensor* rows = rows_at(d, table);
  relu_ops_spec* specs = take(d, table.count, sizeof(*specs));
  for (uint32_t k = 0; k < table.count; ++k)
    specs[k] = (relu_ops_spec){text_at(d->base, rows[k].name), {rows[k].code, rows[k].bits, 1},
                               rows[k].rank, rows_at(d, rows[k].dims)};
  return specs;
}

static Terms terms_of(Decoder* d, ImageTable table) {
  const ImageTerm* rows = rows_at(d, table);
  Term* terms = take(d, table.count, sizeof(*terms));
  for (uint32_t k = 0; k < table.count; ++k)
    terms[k] = (Term){seen_of(rows[k].seen), rows[k].input, (int32_t)rows[k].dims.count,
                      rows_at(d, rows[k].dims)};
  return (Terms){(int32_t)table.count, terms};
}

static const Terms* output_terms_of(Decoder* d, ImageTable table) {
  const ImageTerms* rows = rows_at(d, table);
  Terms* outputs = take(d, table.count, sizeof(*outputs));
  for (uint32_t k = 0; k < table.count; ++k) outputs[k] = terms_of(d, rows[k].terms);
  return outputs;
}

static const Requirement* requirements_of(Decoder* d, ImageTable table) {
  const ImageRequirement* rows = rows_at(d, table);
  Requirement* requirements = take(d, table.count, sizeof(*requirements));
  for (uint32_t k = 0; k < table.count; ++k) {
    Terms terms = terms_of(d, rows[k].terms), into = terms_of(d, rows[k].into);
    requirements[k] = (Requirement){text_at(d->base, rows[k].what), terms, into};
  }
  return requirements;
}

static const Leaf* leaves_of(Decoder* d, ImageTable table) {
  const ImageLeaf* rows = rows_at(d, table);
  Leaf* leaves = take(d, table.count, sizeof(*leaves));
  for (uint32_t k = 0; k < table.count; ++k)
    leaves[k] = (Leaf){seen_of(rows[k].seen), rows[k].input, (int32_t)rows[k].dims.count,
                       rows_at(d, rows[k].dims),
                       rows[k].input < 0 ? d->base + rows[k].constant_at : NULL};
  return leaves;
}

static KernelCall entry_at(const Decoder* d, uint32_t at) {
  return at ? (KernelCall)(uintptr_t)(d->base + at) : NULL;
}

static const Kernel* kernels_of(Decoder* d, ImageTable table) {
  const ImageKernel* rows = rows_at(d, table);
  Kernel* kernels = take(d, table.count, sizeof(*kernels));
  for (uint32_t k = 0; k < table.count; ++k)
    kernels[k] = (Kernel){entry_at(d, rows[k].call), entry_at(d, rows[k].stream),
                          rows_at(d, rows[k].patterns)};
  return kernels;
}

int64_t relu_ops_constant_bytes(const Leaf* leaf, uint8_t itemsize) {
  if (leaf->input >= 0) return 0;
  int64_t bytes = itemsize;
  for (int32_t d = 0; d < leaf->rank; ++d) bytes *= leaf->dims[d]; /* that they fit was checked */
  return bytes;
}

/* Where each constant lies on a device: at multiples of 64, one that several leaves read once. */
static int64_t lay_constants_out(const Leaf* leaves, const uint8_t* itemsizes, size_t count, int64_t* at) {
  int64_t end = 0;
  for (size_t k = 0; k < count; ++k) {
    int64_t bytes = relu_ops_constant_bytes(&leaves[k], itemsizes[k]);
    at[k] = end;
    for (size_t j = 0; j < k; ++j)
      if (leaves[j].constant == leaves[k].constant &&
          relu_ops_constant_bytes(&leaves[j], itemsizes[j]) == bytes)
        at[k] = at[j];
    if (at[k] == end) end += (bytes + 63) / 64 * 64;
  }
  return end;
}

static ForCuda cuda_of(Decoder* d, ImageTable table, const Leaf* leaves, const uint8_t* itemsizes,
                       size_t leaf_count) {
  const ImageCudaKernel* rows = rows_at(d, table);
  CudaKernel* kernels = take(d, table.count, sizeof(*kernels));
  for (uint32_t k = 0; k < table.count; ++k)
    kernels[k] = (CudaKernel){text_at(d->base, rows[k].name), rows_at(d, rows[k].patterns), rows[k].lanes,
                              rows[k].unroll};
  int64_t* constant_at = take(d, leaf_count, sizeof(*constant_at));
  int64_t bytes = lay_constants_out(leaves, itemsizes, leaf_count, constant_at);
  return (ForCuda){kernels, d->base + rows[0].binary_at, constant_at, bytes, NULL, 0};
}

static const char* const* symbols_of(Decoder* d, ImageTable table) {
  const ImageText* rows = rows_at(d, table);
  const char** symbols = take(d, table.count, sizeof(*symbols));
  for (uint32_t k = 0; k < table.count; ++k) symbols[k] = text_at(d->base, rows[k]);
  return symbols;
}

/* Bytes of an operator and of all that `take` is asked for. */
static size_t block_size(const Decoder* d, const ImageOperator* row, bool is_cuda) {
  const ImageTerms* outputs = rows_at(d, row->output_terms);
  const ImageRequirement* requirements = rows_at(d, row->requirements);
  size_t terms = 0;
  for (uint32_t k = 0; k < row->output_terms.count; ++k) terms += outputs[k].terms.count;
  for (uint32_t k = 0; k < row->requirements.count; ++k)
    terms += requirements[k].terms.count + (size_t)requirements[k].into.count;
  return sizeof(relu_ops_operator) + terms * sizeof(Term) +
         (row->inputs.count + (size_t)row->outputs.count) * sizeof(relu_ops_spec) +
         row->output_terms.count * sizeof(Terms) + row->requirements.count * sizeof(Requirement) +
         row->leaves.count * sizeof(Leaf) +
         (is_cuda ? row->kernels.count * sizeof(CudaKernel) + row->leaves.count * sizeof(int64_t)
                  : row->kernels.count * sizeof(Kernel)) +
         row->symbols.count * sizeof(const char*);
}

static void decode(Decoder* d, const ImageOperator* row, bool is_cuda, relu_ops_operator* op) {
  atomic_init(&op->references, 1);
  op->name = text_at(d->base, row->name);
  op->device_type = is_cuda ? kDLCUDA : kDLCPU;
  op->input_count = (int32_t)row->inputs.count;
  op->output_count = (int32_t)row->outputs.count;
  op->leaf_count = (int32_t)row->leaves.count;
  op->operand_count = (int32_t)row->itemsizes.count;
  op->requirement_count = (int32_t)row->requirements.count;
  op->symbol_count = (int32_t)row->symbols.count;
  op->kernel_count = (int32_t)row->kernels.count;
  op->inputs = specs_of(d, row->inputs);
  op->outputs = specs_of(d, row->outputs);
  op->output_terms = output_terms_of(d, row->output_terms);
  op->requirements = requirements_of(d, row->requirements);
  op->leaves = leaves_of(d, row->leaves);
  op->itemsizes = rows_at(d, row->itemsizes);
  op->kernels = is_cuda ? NULL : kernels_of(d, row->kernels);
  op->cuda = is_cuda ? cuda_of(d, row->kernels, op->leaves, op->itemsizes, row->leaves.count)
                     : (ForCuda){.kernels = NULL};
  op->symbols = symbols_of(d, row->symbols);
  op->vector_bytes = row->vector_bytes;
  relu_ops_find_vectors(op);
  op->element_bytes = 0;
  for (int32_t k = 0; k < op->operand_count; ++k) op->element_bytes += op->itemsizes[k];
}

/* ---- names of code, for profilers ----------------------------------------------------------------- */

static int by_place(const void* a, const void* b) {
  const CodeName *one = a, *other = b;
  return (one->at > other->at) - (one->at < other->at);
}

/* Every entry point of an image, in the order of the code; a function reaches to the next one. */
static size_t name_code(const Image* image, CodeName* names) {
  Decoder d = {image->bytes, NULL};
  size_t count = 0;
  for (uint32_t number = 0; number < image->header.operators.count; ++number) {
    ImageOperator op = relu_ops_image_operator(image, number);
    const char* name = text_at(image->bytes, op.name);
    for (uint32_t k = 0; k < op.kernels.count; ++k) {
      ImageKernel kernel;
      memcpy(&kernel, (const char*)rows_at(&d, op.kernels) + k * sizeof(kernel), sizeof(kernel));
      names[count++] = (CodeName){kernel.call, 0, name, k, false};
      if (kernel.stream) names[count++] = (CodeName){kernel.stream, 0, name, k, true};
    }
  }
  qsort(names, count, sizeof(*names), by_place);
  uint32_t end = image->header.code_at + image->header.code_size;
  for (size_t k = count; k-- > 0;) {
    names[k].size = end - names[k].at;
    if (k > 0 && names[k - 1].at < names[k].at) end = names[k].at;
  }
  return count;
}

static relu_ops_status introduce(const void* of, const unsigned char* base) {
  const Image* image = of;
  size_t most = (size_t)image->header.operators.count * RELU_OPS_MOST_KERNELS * 2;
  CodeName* names = malloc(most * sizeof(*names));
  if (!names) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to name its code", image->shown);
  relu_ops_status status = relu_ops_write_perf_map(base, names, name_code(image, names));
  free(names);
  return status;
}

/* ---- operators' lives ----------------------------------------------------------------------------- */

static relu_ops_status refuse_machine(const Image* image) {
  static const char* const NAMES[] = {
      [IMAGE_X86_64] = "x86-64 processors", [IMAGE_AARCH64] = "AArch64 processors", [IMAGE_CUDA] = "GPUs"};
  return relu_ops_fail(RELU_OPS_TARGET, "%s: is for %s; this runs on %s", image->shown,
                       NAMES[image->header.machine], NAMES[ARCH_MACHINE]);
}

relu_ops_status relu_ops_map_operator(const Image* image, size_t number, relu_ops_operator** op) {
  if (number >= image->header.operators.count)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: has no operator number %zu; it has %" PRIu32, image->shown,
                         number, image->header.operators.count);
  bool is_cuda = image->header.machine == IMAGE_CUDA;
  if (!is_cuda && image->header.machine != ARCH_MACHINE) return refuse_machine(image);
  Decoder d;
  relu_ops_status status =
      relu_ops_map(image->mapping, image->shown, image->bytes, introduce, image, &d.base);
  if (status != RELU_OPS_OK) return status;
  ImageOperator row = relu_ops_image_operator(image, number);
  d.next = malloc(block_size(&d, &row, is_cuda));
  if (!d.next)
    return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory for an operator", image->shown);
  relu_ops_operator* made = take(&d, 1, sizeof(*made));
  decode(&d, &row, is_cuda, made);
  made->target = text_at(d.base, image->header.target);
  made->mapping = image->mapping;
  relu_ops_hold_mapping(made->mapping);
  *op = made;
  return RELU_OPS_OK;
}

static relu_ops_operator* counted(const relu_ops_operator* op) {
  return (relu_ops_operator*)op; /* who holds it changes the count and nothing else */
}

void relu_ops_hold(const relu_ops_operator* op) {
  atomic_fetch_add_explicit(&counted(op)->references, 1, memory_order_relaxed);
}

void relu_ops_release(relu_ops_operator* op) {
  if (!op || atomic_fetch_sub_explicit(&op->references, 1, memory_order_acq_rel) != 1) return;
  relu_ops_drop_mapping(op->mapping);
  free(op);
}
