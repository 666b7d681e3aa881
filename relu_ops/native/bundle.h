/* A bundle in memory, and where its files come from. */
#ifndef RELU_OPS_BUNDLE_H_
#define RELU_OPS_BUNDLE_H_

#include "core.h"

#define SUMS "SHA256SUMS"
#define MANIFEST "manifest.json"

/* What to do about a file that is not what its digest says. */
#define DAMAGED "the file was damaged or replaced: copy or build the bundle again"

typedef struct {
  char* name;
  void* bytes; /* not NULL */
  size_t size;
} File;

struct relu_ops_bundle {
  char* shown;
  Digest digest;
  size_t file_count, image_count;
  File* files;    /* SHA256SUMS, then those that it lists, in its order, which is by name */
  Image** images; /* in the order of their files */
};

/* True for a file that the bundle has read. */
bool relu_ops_has_file(const relu_ops_bundle* bundle, const char* name);

relu_ops_status relu_ops_no_memory(const char* shown);

/* Where files come from (source.c): a directory, or memory. */
typedef struct Source Source;
struct Source {
  const char* shown;
  /* Read a file of at most `most` bytes; its bytes are to be freed. */
  relu_ops_status (*read)(Source* source, const char* name, size_t most, File* file);
  /* Refuse what is there beside the bundle's files. */
  relu_ops_status (*refuse_others)(const Source* source, const relu_ops_bundle* bundle);
  /* A directory: its descriptor, and that of SHA256SUMS, or -1. */
  int directory, sums;
  /* Files in memory. */
  size_t count;
  const char* const* names;
  const void* const* bytes;
  const size_t* sizes;
};

/* `shown` is how messages call the path; the source keeps the pointer. */
relu_ops_status relu_ops_open_directory(const char* path, const char* shown, Source* source);
void relu_ops_close_directory(Source* source);

/* Whether another bundle has taken the place of a directory that is open, so that what failed in it says
 * nothing. */
bool relu_ops_is_replaced(const Source* source, const char* path);

Source relu_ops_memory_source(const char* shown, size_t count, const char* const* names,
                              const void* const* bytes, const size_t* sizes);

#endif
