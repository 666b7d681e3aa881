/* Reads an image, and believes nothing of it: every place, number and text is checked, once, before
 * anything follows it. What the code does is not looked at: whoever made it is trusted, through the
 * digest. */
#define _GNU_SOURCE
#include "image_reader.h"

#include <dlpack/dlpack.h>
#include <stdlib.h>

#include "mapping.h"

/* ---- shapes --------------------------------------------------------------------------------------- */

#define LARGEST_EXTENT (INT64_C(1) << 62) /* one more than it */

/* `rank` dimensions: extents, and down to `lowest` whatever else a dimension may be. */
static bool check_dims(Reader* r, const Place* in, ImageTable table, int64_t lowest) {
  if (!check_table(r, in, table, DIMS)) return false;
  for (uint32_t d = 0; d < table.count; ++d) {
    int64_t dim;
    copy_row(r, table, DIMS, d, &dim);
    if (dim < lowest || dim >= LARGEST_EXTENT)
      return refuse(r, in, "dimension %" PRIu32 " is %" PRId64 "; it must be %" PRId64 " to 2**62 - 1", d,
                    dim, lowest);
  }
  return true;
}

/* A view of an array of some rank; -1: its rank is open, so that no dimension of it can be repeated. */
static bool check_seen(const Reader* r, const Place* in, ImageSeen seen, int32_t rank) {
  int32_t known = rank < 0 ? 0 : rank;
  if (seen.trailing < 0 || seen.trailing > RELU_OPS_MOST_RANK - known)
    return refuse(r, in, "%" PRId32 " unit dimensions after %" PRId32 "; there may be 0 to %" PRId32,
                  seen.trailing, known, RELU_OPS_MOST_RANK - known);
  if (seen.block < 1 || seen.block > INT32_MAX)
    return refuse(r, in, "elements are repeated %" PRId64 " times; it must be 1 to 2**31 - 1", seen.block);
  if (seen.block > 1 && rank < 0) return refuse(r, in, "it repeats elements of an array of any rank");
  int32_t whole = rank < 0 ? 0 : rank + seen.trailing;
  if (seen.axis < 0 || (seen.axis >= whole && seen.axis != 0))
    return refuse(r, in, "dimension %" PRId32 " from the last is repeated; there are %" PRId32, seen.axis,
                  whole);
  return true;
}

/* The extents of a constant, in a view: repeated, they are extents still. */
static bool check_extents(Reader* r, const Place* in, ImageTable dims, ImageSeen seen) {
  if (!check_dims(r, in, dims, 0) || !check_seen(r, in, seen, (int32_t)dims.count)) return false;
  if (seen.axis < seen.trailing || dims.count == 0) return true;
  int64_t extent;
  copy_row(r, dims, DIMS, dims.count - 1 - (uint32_t)(seen.axis - seen.trailing), &extent);
  return extent < LARGEST_EXTENT / seen.block ||
         refuse(r, in, "%" PRId64 " elements are repeated %" PRId64 " times: too many", extent, seen.block);
}

/* Something that comes of an input, or of a constant: the view and, of a constant, the extents. */
static bool check_source(Reader* r, const Place* in, const ImageOperator* op, int32_t input,
                         ImageTable dims, ImageSeen seen) {
  if (input == -1) return check_extents(r, in, dims, seen);
  if (input < -1 || (int64_t)input >= op->inputs.count)
    return refuse(r, in, "input %" PRId32 " is none of %" PRIu32, input, op->inputs.count);
  if (!check_table(r, in, dims, DIMS)) return false;
  if (dims.count != 0) return refuse(r, in, "an input's dimensions stand with the input alone");
  ImageTensor tensor;
  copy_row(r, op->inputs, INPUTS, (uint32_t)input, &tensor);
  return check_seen(r, in, seen, tensor.rank);
}

static bool check_terms(Reader* r, const Place* in, const ImageOperator* op, ImageTable table) {
  if (!check_table(r, in, table, TERMS)) return false;
  for (uint32_t k = 0; k < table.count; ++k) {
    Place place = {in, "term", k};
    ImageTerm term;
    copy_row(r, table, TERMS, k, &term);
    if (!check_reserved(r, &place, term.reserved) ||
        !check_source(r, &place, op, term.input, term.dims, term.seen))
      return false;
  }
  return true;
}

/* ---- operators ------------------------------------------------------------------------------------ */

/* The dtypes of semantics.DTYPES, by DLPack's code: the sum of the widths in bits that there are. */
static const uint8_t WIDTHS[] = {
    [kDLInt] = 8 + 16 + 32 + 64, [kDLUInt] = 8 + 16 + 32 + 64, [kDLFloat] = 16 + 32 + 64,
    [kDLBfloat] = 16,            [kDLBool] = 8,
};

static bool is_dtype(uint8_t code, uint8_t bits) {
  return code < sizeof(WIDTHS) && (bits & (bits - 1)) == 0 && (bits & WIDTHS[code]) != 0;
}

static bool check_tensor(Reader* r, const Place* in, const ImageOperator* op, const ImageTensor* tensor,
                         int32_t most_rank) {
  if (!check_text(r, in, "name", tensor->name) || !check_reserved(r, in, tensor->reserved)) return false;
  if (!is_dtype(tensor->code, tensor->bits))
    return refuse(r, in, "DLPack's type %d of %d bits is not known", tensor->code, tensor->bits);
  if (tensor->rank < -1 || tensor->rank > most_rank)
    return refuse(r, in, "rank %d; it must be -1 to %" PRId32, tensor->rank, most_rank);
  if ((int64_t)tensor->dims.count != (tensor->rank < 0 ? 0 : tensor->rank))
    return refuse(r, in, "%" PRIu32 " dimensions for rank %d", tensor->dims.count, tensor->rank);
  return check_dims(r, in, tensor->dims, FREE - (int64_t)op->symbols.count);
}

static bool check_tensors(Reader* r, const Place* in, const char* what, const ImageOperator* op,
                          ImageTable table, Kind kind, int32_t most_rank) {
  if (!check_table(r, in, table, kind)) return false;
  for (uint32_t k = 0; k < table.count; ++k) {
    Place place = {in, what, k};
    ImageTensor tensor;
    copy_row(r, table, kind, k, &tensor);
    if (!check_tensor(r, &place, op, &tensor, most_rank)) return false;
  }
  return true;
}

static bool check_output_terms(Reader* r, const Place* in, const ImageOperator* op) {
  if (!check_table(r, in, op->output_terms, OUTPUT_TERMS)) return false;
  if (op->outputs.count == 0) return refuse(r, in, "there is no output");
  if (op->output_terms.count != op->outputs.count)
    return refuse(r, in, "%" PRIu32 " outputs' shapes for %" PRIu32 " outputs", op->output_terms.count,
                  op->outputs.count);
  for (uint32_t k = 0; k < op->output_terms.count; ++k) {
    Place place = {in, "shape of output", k};
    ImageTerms terms;
    copy_row(r, op->output_terms, OUTPUT_TERMS, k, &terms);
    if (!check_terms(r, &place, op, terms.terms)) return false;
  }
  return true;
}

static bool check_requirements(Reader* r, const Place* in, const ImageOperator* op) {
  if (!check_table(r, in, op->requirements, REQUIREMENTS)) return false;
  for (uint32_t k = 0; k < op->requirements.count; ++k) {
    Place place = {in, "requirement", k};
    ImageRequirement requirement;
    copy_row(r, op->requirements, REQUIREMENTS, k, &requirement);
    Place into = {&place, "into", UNNUMBERED};
    if (!check_text(r, &place, "text", requirement.what) ||
        !check_terms(r, &place, op, requirement.terms) || !check_terms(r, &into, op, requirement.into))
      return false;
  }
  return true;
}

/* The elements of a constant lie in the image; its dimensions were checked. */
static bool check_constant(const Reader* r, const Place* in, const ImageLeaf* leaf, size_t itemsize) {
  size_t size = itemsize;
  for (uint32_t d = 0; d < leaf->dims.count; ++d) {
    int64_t extent;
    copy_row(r, leaf->dims, DIMS, d, &extent);
    if (__builtin_mul_overflow(size, (size_t)extent, &size))
      return refuse(r, in, "its constant has more bytes than there are numbers for");
  }
  if (leaf->constant_at % 64 != 0)
    return refuse(r, in, "its constant begins at %" PRIu32 ", which is no multiple of 64",
                  leaf->constant_at);
  if (leaf->constant_at > r->size || size > r->size - leaf->constant_at)
    return refuse(r, in, "%zu bytes of its constant at %" PRIu32 " end after the image", size,
                  leaf->constant_at);
  return true;
}

static bool check_itemsize(const Reader* r, const Place* in, uint8_t itemsize, uint32_t bits) {
  if (itemsize == 0 || itemsize > 8 || (itemsize & (itemsize - 1)) != 0)
    return refuse(r, in, "%d bytes an element; it must be 1, 2, 4 or 8", itemsize);
  return bits == 0 || itemsize * 8u == bits ||
         refuse(r, in, "%d bytes an element; its dtype has %" PRIu32 " bits", itemsize, bits);
}

static bool check_leaf(Reader* r, const Place* in, const ImageOperator* op, const ImageLeaf* leaf,
                       uint8_t itemsize) {
  if (!check_source(r, in, op, leaf->input, leaf->dims, leaf->seen)) return false;
  if (leaf->input < 0)
    return check_itemsize(r, in, itemsize, 0) && check_constant(r, in, leaf, itemsize);
  if (leaf->constant_at != 0)
    return refuse(r, in, "a constant at %" PRIu32 " for an input", leaf->constant_at);
  ImageTensor tensor;
  copy_row(r, op->inputs, INPUTS, (uint32_t)leaf->input, &tensor);
  return check_itemsize(r, in, itemsize, tensor.bits);
}

/* Leaves, outputs, and how many bytes an element of each has. */
static bool check_operands(Reader* r, const Place* in, const ImageOperator* op) {
  uint32_t operands = op->leaves.count + op->outputs.count;
  if (!check_table(r, in, op->leaves, LEAVES) || !check_table(r, in, op->itemsizes, ITEMSIZES))
    return false;
  if (operands > RELU_OPS_MOST_OPERANDS)
    return refuse(r, in, "%" PRIu32 " operands; there may be %d", operands, RELU_OPS_MOST_OPERANDS);
  if (op->itemsizes.count != operands)
    return refuse(r, in, "%" PRIu32 " itemsizes for %" PRIu32 " operands", op->itemsizes.count, operands);
  for (uint32_t k = 0; k < operands; ++k) {
    bool is_leaf = k < op->leaves.count;
    Place place = {in, is_leaf ? "leaf" : "output", is_leaf ? k : k - op->leaves.count};
    ImageLeaf leaf;
    ImageTensor output;
    uint8_t itemsize;
    copy_row(r, op->itemsizes, ITEMSIZES, k, &itemsize);
    if (is_leaf) copy_row(r, op->leaves, LEAVES, k, &leaf);
    else copy_row(r, op->outputs, OUTPUTS, k - op->leaves.count, &output);
    if (is_leaf ? !check_leaf(r, &place, op, &leaf, itemsize)
                : !check_itemsize(r, &place, itemsize, output.bits))
      return false;
  }
  return true;
}

static bool check_entry(const Reader* r, const Place* in, const char* what, uint32_t at) {
  const ImageHeader* header = &r->header;
  if (at % 64 != 0)
    return refuse(r, in, "its %s begins at %" PRIu32 ", which is no multiple of 64", what, at);
  return (at >= header->code_at && at - header->code_at < header->code_size) ||
         refuse(r, in, "its %s at %" PRIu32 " is not in the code", what, at);
}

static bool is_cuda(const Reader* r) {
  return r->header.machine == IMAGE_CUDA;
}

static bool check_kernels(Reader* r, const Place* in, const ImageOperator* op) {
  if (!check_table(r, in, op->kernels, KERNELS)) return false;
  if (op->kernels.count == 0) return refuse(r, in, "there is no kernel");
  for (uint32_t k = 0; k < op->kernels.count; ++k) {
    Place place = {in, "kernel", k};
    ImageKernel kernel;
    copy_row(r, op->kernels, KERNELS, k, &kernel);
    if (!check_entry(r, &place, "function", kernel.call) ||
        (kernel.stream && !check_entry(r, &place, "streaming function", kernel.stream)) ||
        !check_patterns(r, &place, kernel.patterns, op->itemsizes.count, k + 1 == op->kernels.count))
      return false;
  }
  return true;
}

static bool check_names(Reader* r, const Place* in, const char* what, ImageTable table, Kind kind) {
  if (!check_table(r, in, table, kind)) return false;
  for (uint32_t k = 0; k < table.count; ++k) {
    Place place = {in, what, k};
    ImageText text;
    copy_row(r, table, kind, k, &text);
    if (!check_name(r, &place, "name", text)) return false;
  }
  return true;
}

static bool check_operator(Reader* r, const Place* in, const ImageOperator* op) {
  uint32_t vector = op->vector_bytes;
  if (vector == 0 || vector > 64 || (vector & (vector - 1)) != 0)
    return refuse(r, in, "vectors of %" PRIu32 " bytes; it must be a power of two up to 64", vector);
  return check_reserved(r, in, op->reserved) && check_name(r, in, "name", op->name) &&
         check_names(r, in, "symbol", op->symbols, SYMBOLS) &&
         check_tensors(r, in, "input", op, op->inputs, INPUTS, RELU_OPS_MOST_DECLARED_RANK) &&
         check_tensors(r, in, "output", op, op->outputs, OUTPUTS, RELU_OPS_MOST_RANK) &&
         check_output_terms(r, in, op) && check_requirements(r, in, op) && check_operands(r, in, op) &&
         (is_cuda(r) ? relu_ops_check_cuda_kernels(r, in, op) : check_kernels(r, in, op));
}

/* ---- the image ------------------------------------------------------------------------------------ */

/* Refuse what another relu_ops has made; false. */
static bool refuse_version(const char* hint) {
  relu_ops_advise(RELU_OPS_BUNDLE, "%s", hint);
  return false;
}

#define NEWER "it was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops"

static bool check_version(const Reader* r) {
  const ImageHeader* header = &r->header;
  if (memcmp(header->magic, IMAGE_MAGIC, sizeof(header->magic)) != 0)
    return refuse(r, NULL, "does not begin as an image of relu_ops does");
  if (header->format != IMAGE_FORMAT) {
    refuse(r, NULL, "has format %" PRIu32 "; this relu_ops reads format %d", header->format, IMAGE_FORMAT);
    return refuse_version(header->format > IMAGE_FORMAT
                              ? NEWER
                              : "it was made by an older relu_ops: build the bundle again");
  }
  if (header->semantics > RELU_OPS_SEMANTICS) {
    refuse(r, NULL, "has semantics %" PRIu32 "; this relu_ops knows up to %d", header->semantics,
           RELU_OPS_SEMANTICS);
    return refuse_version(NEWER);
  }
  return header->semantics > 0 || refuse(r, NULL, "has semantics 0; they begin with 1");
}

static bool check_header(Reader* r) {
  if (r->size < sizeof(r->header))
    return refuse(r, NULL, "has %zu bytes; the header of an image has %zu", r->size, sizeof(r->header));
  memcpy(&r->header, r->bytes, sizeof(r->header));
  const ImageHeader* header = &r->header;
  if (!check_version(r)) return false;
  if (header->size != r->size)
    return refuse(r, NULL, "has %zu bytes; it says that it has %" PRIu64, r->size, header->size);
  if (header->machine < IMAGE_X86_64 || header->machine > IMAGE_CUDA)
    return refuse(r, NULL, "is for machine %" PRIu32 ", which is not known", header->machine);
  if (header->code_at % 64 != 0)
    return refuse(r, NULL, "its code begins at %" PRIu32 ", which is no multiple of 64", header->code_at);
  if (header->code_at > r->size || header->code_size > r->size - header->code_at)
    return refuse(r, NULL, "%" PRIu32 " bytes of code at %" PRIu32 " end after the image",
                  header->code_size, header->code_at);
  return check_reserved(r, NULL, header->reserved) && check_name(r, NULL, "target", header->target) &&
         check_names(r, NULL, "required feature", header->requires_, FEATURES) &&
         (!is_cuda(r) || relu_ops_check_cuda_codes(r));
}

typedef struct {
  const char* text;
  uint32_t number;
} Name;

static int by_text(const void* a, const void* b) {
  const Name *one = a, *other = b;
  int order = strcmp(one->text, other->text);
  return order ? order : (one->number > other->number) - (one->number < other->number);
}

/* No two operators have one name; their names were checked. */
static relu_ops_status check_distinct(const Reader* r) {
  uint32_t count = r->header.operators.count;
  Name* names = malloc(sizeof(*names) * count);
  if (!names) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to read it", r->shown);
  for (uint32_t k = 0; k < count; ++k) {
    ImageOperator op;
    copy_row(r, r->header.operators, OPERATORS, k, &op);
    names[k] = (Name){(const char*)r->bytes + op.name.at, k};
  }
  qsort(names, count, sizeof(*names), by_text);
  bool distinct = true;
  for (uint32_t k = 1; k < count && distinct; ++k)
    distinct = strcmp(names[k - 1].text, names[k].text) != 0 ||
               refuse(r, NULL, "operators %" PRIu32 " and %" PRIu32 " have one name", names[k - 1].number,
                      names[k].number);
  free(names);
  return distinct ? RELU_OPS_OK : RELU_OPS_BUNDLE;
}

static bool check_operators(Reader* r) {
  if (!check_table(r, NULL, r->header.operators, OPERATORS)) return false;
  if (r->header.operators.count == 0) return refuse(r, NULL, "there is no operator");
  for (uint32_t k = 0; k < r->header.operators.count; ++k) {
    Place place = {NULL, "operator", k};
    ImageOperator op;
    copy_row(r, r->header.operators, OPERATORS, k, &op);
    if (!check_operator(r, &place, &op)) return false;
  }
  return true;
}

relu_ops_status relu_ops_read_image(const char* shown, const void* bytes, size_t size, Image** image) {
  Reader reader = {.shown = shown, .bytes = bytes, .size = size};
  if (!check_header(&reader) || !check_operators(&reader)) return RELU_OPS_BUNDLE;
  relu_ops_status status = check_distinct(&reader);
  if (status != RELU_OPS_OK) return status;
  Image* made = malloc(sizeof(*made));
  char* copy = strdup(shown);
  Mapping* mapping = relu_ops_new_mapping(size, !is_cuda(&reader));
  if (made && copy && mapping) {
    *made = (Image){copy, bytes, reader.header, mapping};
    *image = made;
    return RELU_OPS_OK;
  }
  free(made);
  free(copy);
  if (mapping) relu_ops_drop_mapping(mapping);
  return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to read it", shown);
}
