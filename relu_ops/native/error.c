/* What was wrong on this thread, and the texts that messages are made of. */
#include <dlpack/dlpack.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

static _Thread_local struct {
  char message[sizeof(((Text*)0)->text) + 1024]; /* a whole list, and what stands around it */
  char hint[1024];
} error;

/* Print into `room` bytes and return the length. What is too long is cut between two characters. */
static size_t print(char* into, size_t room, const char* format, va_list values)
    __attribute__((format(printf, 3, 0)));
static size_t print(char* into, size_t room, const char* format, va_list values) {
  int printed = vsnprintf(into, room, format, values);
  if (printed < 0) return into[0] = '\0', 0;
  if ((size_t)printed < room) return (size_t)printed;
  size_t length = room - 1, start = length;
  while (start > 0 && ((unsigned char)into[start - 1] & 0xC0) == 0x80) --start;
  unsigned char lead = start > 0 ? (unsigned char)into[start - 1] : 0;
  size_t whole = lead < 0xC0 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  if (length - start < whole) length = start - 1;
  into[length] = '\0';
  return length;
}

/* Printed aside first: values may be the present message. */
static void set(char* to, size_t room, const char* format, va_list values)
    __attribute__((format(printf, 3, 0)));
static void set(char* to, size_t room, const char* format, va_list values) {
  char printed[sizeof(error.message)];
  size_t length = print(printed, room, format, values);
  memcpy(to, printed, length + 1);
}

relu_ops_status relu_ops_fail(relu_ops_status status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  set(error.message, sizeof(error.message), format, values);
  va_end(values);
  error.hint[0] = '\0';
  return status;
}

relu_ops_status relu_ops_advise(relu_ops_status status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  set(error.hint, sizeof(error.hint), format, values);
  va_end(values);
  return status;
}

const char* relu_ops_message(void) {
  return error.message;
}

const char* relu_ops_hint(void) {
  return error.hint[0] ? error.hint : NULL;
}

const char* relu_ops_version(void) {
  return RELU_OPS_PACKAGE_VERSION;
}

relu_ops_status relu_ops_require(int api) {
  if (api == RELU_OPS_API) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_ARGUMENT,
                "the program was compiled for interface %d of relu_ops.h; this library has %d", api,
                RELU_OPS_API);
  return relu_ops_advise(RELU_OPS_ARGUMENT, "compile it with the relu_ops.h of relu_ops %s",
                         relu_ops_version());
}

void relu_ops_append(Text* text, const char* format, ...) {
  va_list values;
  va_start(values, format);
  text->length += print(text->text + text->length, sizeof(text->text) - text->length, format, values);
  va_end(values);
}

void relu_ops_append_shape(Text* text, int32_t rank, const int64_t* extents) {
  relu_ops_append(text, "(");
  for (int32_t d = 0; d < rank; ++d) relu_ops_append(text, d ? ", %" PRId64 : "%" PRId64, extents[d]);
  relu_ops_append(text, rank == 1 ? ",)" : ")");
}

/* Whether a character goes on here, in UTF-8. */
static bool goes_on(char byte) {
  return ((unsigned char)byte & 0xC0) == 0x80;
}

Shown relu_ops_shown(const char* name) {
  static const char GAP[] = "...";
  Shown shown;
  size_t length = strlen(name), room = sizeof(shown.text) - 1;
  if (length <= room) return memcpy(shown.text, name, length + 1), shown;
  size_t head = (room - strlen(GAP)) / 2, tail = length - head;
  while (head > 0 && goes_on(name[head])) --head;
  while (tail < length && goes_on(name[tail])) ++tail;
  snprintf(shown.text, sizeof(shown.text), "%.*s%s%s", (int)head, name, GAP, name + tail);
  return shown;
}

/* By DLPack's code; a bool has no bits in its name. */
static const char* const DTYPE_NAMES[] = {
    [kDLInt] = "int",         [kDLUInt] = "uint",       [kDLFloat] = "float", [kDLOpaqueHandle] = "handle",
    [kDLBfloat] = "bfloat",   [kDLComplex] = "complex", [kDLBool] = "bool",
};

DtypeName relu_ops_dtype_name(DLDataType dtype) {
  DtypeName name;
  size_t room = sizeof(name.text);
  if (dtype.code >= sizeof(DTYPE_NAMES) / sizeof(*DTYPE_NAMES))
    snprintf(name.text, room, "DLPack's type %d, %d bits", dtype.code, dtype.bits);
  else if (dtype.code == kDLBool && dtype.bits == 8)
    snprintf(name.text, room, "bool");
  else
    snprintf(name.text, room, "%s%d", DTYPE_NAMES[dtype.code], dtype.bits);
  if (dtype.lanes == 1) return name;
  size_t length = strlen(name.text);
  snprintf(name.text + length, room - length, "x%d", dtype.lanes);
  return name;
}
