/* What reads an image: where it is, how it refuses, and rows and texts, which everything else is made of.
 * For image_reader.c, and for image_cuda.c. */
#ifndef RELU_OPS_IMAGE_READER_H_
#define RELU_OPS_IMAGE_READER_H_

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "image.h"

/* ---- refusals ------------------------------------------------------------------------------------- */

typedef struct {
  const char* shown;
  const unsigned char* bytes;
  size_t size;
  size_t read; /* of tables and texts, each as often as it is named */
  ImageHeader header;
} Reader;

/* What is being read, for messages: "operator 0: input 2". */
typedef struct Place {
  const struct Place* in;
  const char* what;
  int64_t number; /* UNNUMBERED: there is one */
} Place;

#define UNNUMBERED (-1)

static inline void append_place(Text* text, const Place* place) {
  if (!place) return;
  append_place(text, place->in);
  if (place->number == UNNUMBERED) relu_ops_append(text, "%s: ", place->what);
  else relu_ops_append(text, "%s %" PRId64 ": ", place->what, place->number);
}

/* Say what is wrong; false. */
static inline bool refuse(const Reader* r, const Place* place, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
static inline bool refuse(const Reader* r, const Place* place, const char* format, ...) {
  Text where = {.text = ""};
  append_place(&where, place);
  char what[256]; /* numbers, and words of these files */
  va_list values;
  va_start(values, format);
  vsnprintf(what, sizeof(what), format, values);
  va_end(values);
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s%s", r->shown, where.text, what);
  relu_ops_advise(RELU_OPS_BUNDLE, "it is not as relu_ops builds it: build the bundle again");
  return false;
}

/* ---- places, numbers and texts -------------------------------------------------------------------- */

/* Rows of one kind: how many bytes each has, and how many there may be. */
typedef struct {
  const char* rows;
  uint32_t size, most;
} Kind;

static const Kind FEATURES = {"required features", sizeof(ImageText), RELU_OPS_MOST_FEATURES};
static const Kind OPERATORS = {"operators", sizeof(ImageOperator), RELU_OPS_MOST_OPERATORS};
static const Kind INPUTS = {"inputs", sizeof(ImageTensor), RELU_OPS_MOST_INPUTS};
static const Kind OUTPUTS = {"outputs", sizeof(ImageTensor), RELU_OPS_MOST_OUTPUTS};
static const Kind OUTPUT_TERMS = {"outputs' shapes", sizeof(ImageTerms), RELU_OPS_MOST_OUTPUTS};
static const Kind REQUIREMENTS = {"requirements", sizeof(ImageRequirement), RELU_OPS_MOST_REQUIREMENTS};
static const Kind TERMS = {"terms", sizeof(ImageTerm), RELU_OPS_MOST_TERMS};
static const Kind LEAVES = {"leaves", sizeof(ImageLeaf), RELU_OPS_MOST_OPERANDS};
static const Kind ITEMSIZES = {"itemsizes", 1, RELU_OPS_MOST_OPERANDS};
static const Kind KERNELS = {"kernels", sizeof(ImageKernel), RELU_OPS_MOST_KERNELS};
static const Kind CUDA_KERNELS = {"kernels", sizeof(ImageCudaKernel), RELU_OPS_MOST_KERNELS};
static const Kind PATTERNS = {"patterns", 1, RELU_OPS_MOST_OPERANDS};
static const Kind SYMBOLS = {"symbols", sizeof(ImageText), RELU_OPS_MOST_SYMBOLS};
static const Kind DIMS = {"dimensions", sizeof(int64_t), RELU_OPS_MOST_RANK};

/* Shapes share tables and tables texts: without a bound, a small image could keep its reader busy for
 * hours. */
static inline bool spend(Reader* r, const Place* in, size_t bytes) {
  if (bytes > RELU_OPS_MOST_READ - r->read)
    return refuse(r, in, "its tables and names, counted as often as they are named, have more than %d bytes",
                  RELU_OPS_MOST_READ);
  r->read += bytes;
  return true;
}

static inline bool check_table(Reader* r, const Place* in, ImageTable table, Kind kind) {
  size_t size = (size_t)table.count * kind.size, multiple = kind.size == 1 ? 1 : 8;
  if (table.count > kind.most)
    return refuse(r, in, "%" PRIu32 " %s; there may be %" PRIu32, table.count, kind.rows, kind.most);
  if (table.at % multiple != 0)
    return refuse(r, in, "the %s begin at %" PRIu32 ", which is no multiple of %zu", kind.rows, table.at,
                  multiple);
  if (table.at > r->size || size > r->size - table.at)
    return refuse(r, in, "%zu bytes of %s at %" PRIu32 " end after the image", size, kind.rows, table.at);
  return spend(r, in, size);
}

/* Copy a row of a table that was checked: the bytes may lie at any address. */
static inline void copy_row(const Reader* r, ImageTable table, Kind kind, uint32_t number, void* row) {
  memcpy(row, r->bytes + table.at + (size_t)number * kind.size, kind.size);
}

static inline bool check_reserved(const Reader* r, const Place* in, uint32_t reserved) {
  return reserved == 0 || refuse(r, in, "a reserved field is %" PRIu32 "; it must be 0", reserved);
}

/* The length of the character that begins a text, and is no control character; 0: there is none. */
static inline size_t character(const unsigned char* text, size_t length) {
  /* By the number of bytes: the first byte and its mask, and the first character that needs so many. */
  static const struct {
    uint32_t mask, lead, first;
  } FORMS[] = {{0x80, 0x00, 0x20}, {0xE0, 0xC0, 0xA0}, {0xF0, 0xE0, 0x800}, {0xF8, 0xF0, 0x10000}};
  for (size_t size = 1; size <= 4 && size <= length; ++size) {
    if ((text[0] & FORMS[size - 1].mask) != FORMS[size - 1].lead) continue;
    uint32_t code = text[0] & ~FORMS[size - 1].mask;
    for (size_t k = 1; k < size; ++k) {
      if ((text[k] & 0xC0) != 0x80) return 0;
      code = code << 6 | (text[k] & 0x3F);
    }
    bool is_one = code >= FORMS[size - 1].first && code != 0x7F && code <= 0x10FFFF;
    return is_one && (code < 0xD800 || code > 0xDFFF) ? size : 0;
  }
  return 0;
}

static inline bool check_text(Reader* r, const Place* in, const char* what, ImageText text) {
  Place place = {in, what, UNNUMBERED};
  if (text.length > RELU_OPS_MOST_TEXT)
    return refuse(r, &place, "has %" PRIu32 " bytes; it may have %d", text.length, RELU_OPS_MOST_TEXT);
  if (text.at > r->size || text.length >= r->size - text.at)
    return refuse(r, &place, "%" PRIu32 " bytes and a NUL at %" PRIu32 " end after the image", text.length,
                  text.at);
  if (r->bytes[text.at + text.length] != 0) return refuse(r, &place, "no NUL follows it");
  for (size_t at = 0, size; at < text.length; at += size) {
    size = character(r->bytes + text.at + at, text.length - at);
    if (size == 0) return refuse(r, &place, "byte %zu is neither UTF-8 nor printable", at);
  }
  return spend(r, in, text.length + (size_t)1);
}

/* A text that must say something. */
static inline bool check_name(Reader* r, const Place* in, const char* what, ImageText text) {
  if (text.length == 0) return refuse(r, in, "its %s is empty", what);
  return check_text(r, in, what, text);
}

static inline bool check_patterns(Reader* r, const Place* in, ImageTable table, uint32_t operands,
                                  bool is_last) {
  if (!check_table(r, in, table, PATTERNS)) return false;
  if (table.count != operands)
    return refuse(r, in, "%" PRIu32 " patterns for %" PRIu32 " operands", table.count, operands);
  for (uint32_t k = 0; k < operands; ++k) {
    int8_t pattern;
    copy_row(r, table, PATTERNS, k, &pattern);
    if (pattern < -1 || pattern > 1)
      return refuse(r, in, "pattern %" PRIu32 " is %d; it must be -1, 0 or 1", k, pattern);
    if (is_last && pattern != -1)
      return refuse(r, in, "pattern %" PRIu32 " is %d; the last kernel must take any strides", k, pattern);
  }
  return true;
}

/* ---- what stands in image_cuda.c ------------------------------------------------------------------ */

/* Check the kernels of an operator for CUDA; its operands were checked. */
bool relu_ops_check_cuda_kernels(Reader* r, const Place* in, const ImageOperator* op);

/* Check what an image for CUDA requires: codes that there are. */
bool relu_ops_check_cuda_codes(const Reader* r);

#endif
