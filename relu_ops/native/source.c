/* Reads the files of a bundle: from a directory, or from memory.
 *
 * A file is opened once; what it is, its size and its bytes are asked of that one descriptor. Links are
 * followed, since package stores lay files out as links: what counts is the content, which has a digest. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bundle.h"

/* ---- one file -------------------------------------------------------------------------------------- */

static relu_ops_status refuse_size(const char* shown, const char* name, size_t size, size_t most) {
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s has %zu bytes; it must have at most %zu", shown, name, size,
                       most);
}

#define WHAT_IT_IS "pass the directory of a bundle, which relu_ops.build or relu-ops build writes"

static relu_ops_status refuse_opening(const Source* source, const char* name, int error) {
  if (error == ENOENT && strcmp(name, SUMS) == 0 && faccessat(source->directory, MANIFEST, F_OK, 0) == 0) {
    relu_ops_fail(RELU_OPS_BUNDLE, "%s: has a %s and no %s: it was made by an older relu_ops",
                  source->shown, MANIFEST, SUMS);
    return relu_ops_advise(RELU_OPS_BUNDLE, "build it again");
  }
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s cannot be opened: %s", source->shown, name, strerror(error));
  if (error != ENOENT) return RELU_OPS_BUNDLE;
  return relu_ops_advise(RELU_OPS_BUNDLE, strcmp(name, SUMS) == 0 ? WHAT_IT_IS : DAMAGED);
}

/* Read what a descriptor has, at most `size` bytes: as many as it said. */
static relu_ops_status read_bytes(const Source* source, int descriptor, size_t size, File* file) {
  file->size = 0;
  file->bytes = malloc(size ? size : 1);
  if (!file->bytes) return relu_ops_no_memory(source->shown);
  while (file->size < size) {
    ssize_t count = read(descriptor, (char*)file->bytes + file->size, size - file->size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s cannot be read: %s", source->shown, file->name,
                           strerror(errno));
    if (count == 0) break; /* it was cut meanwhile: its digest tells */
    file->size += (size_t)count;
  }
  return RELU_OPS_OK;
}

static relu_ops_status read_regular(const Source* source, int descriptor, size_t most, File* file) {
  struct stat status;
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode))
    return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s must be a regular file", source->shown, file->name);
  if ((uint64_t)status.st_size > most)
    return refuse_size(source->shown, file->name, (size_t)status.st_size, most);
  return read_bytes(source, descriptor, (size_t)status.st_size, file);
}

/* Nothing blocks: a pipe is opened at once, and refused. */
#define OPENED (O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)

static relu_ops_status read_from_directory(Source* source, const char* name, size_t most, File* file) {
  int descriptor = openat(source->directory, name, OPENED);
  if (descriptor < 0) return refuse_opening(source, name, errno);
  relu_ops_status status = read_regular(source, descriptor, most, file);
  if (strcmp(name, SUMS) == 0) source->sums = descriptor;
  else close(descriptor);
  return status;
}

/* ---- what else is there ---------------------------------------------------------------------------- */

/* A name of any bytes, as a message can have it. */
static void append_quoted(Text* text, const char* name) {
  relu_ops_append(text, "'");
  for (; *name; ++name) {
    unsigned char byte = (unsigned char)*name;
    relu_ops_append(text, byte >= 0x20 && byte < 0x7F && byte != '\'' && byte != '\\' ? "%c" : "\\x%02x",
                    byte);
  }
  relu_ops_append(text, "'");
}

static relu_ops_status refuse_file(const char* shown, const char* name) {
  Text quoted = {.text = ""};
  append_quoted(&quoted, name);
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: holds %s, which its %s does not list", shown, quoted.text, SUMS);
  return relu_ops_advise(RELU_OPS_BUNDLE, "remove it: nothing else may lie in a bundle");
}

/* Names that begin with two dots are of whoever mounts the directory: Kubernetes puts its own beside the
 * files of a volume. */
static bool is_other(const relu_ops_bundle* bundle, const char* name) {
  return strcmp(name, ".") != 0 && strncmp(name, "..", 2) != 0 && !relu_ops_has_file(bundle, name);
}

/* The first by name, so that the message is the same every time. */
static relu_ops_status refuse_others_in_directory(const Source* source, const relu_ops_bundle* bundle) {
  int descriptor = openat(source->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* listing = descriptor < 0 ? NULL : fdopendir(descriptor);
  if (!listing) {
    int error = errno;
    if (descriptor >= 0) close(descriptor);
    return relu_ops_fail(RELU_OPS_BUNDLE, "%s: cannot be listed: %s", source->shown, strerror(error));
  }
  char first[sizeof(((struct dirent*)0)->d_name)] = "";
  for (const struct dirent* entry; (entry = readdir(listing));)
    if (is_other(bundle, entry->d_name) && (!*first || strcmp(entry->d_name, first) < 0))
      strcpy(first, entry->d_name);
  closedir(listing);
  return *first ? refuse_file(source->shown, first) : RELU_OPS_OK;
}

/* ---- directories ----------------------------------------------------------------------------------- */

static bool names_a_model(const char* path) {
  size_t length = strlen(path);
  return length >= 5 && strcmp(path + length - 5, ".onnx") == 0;
}

relu_ops_status relu_ops_open_directory(const char* path, const char* shown, Source* source) {
  int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  *source = (Source){.shown = shown, .read = read_from_directory,
                     .refuse_others = refuse_others_in_directory, .directory = directory, .sums = -1};
  if (directory >= 0) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: no bundle can be read there: %s", shown, strerror(errno));
  if (!names_a_model(path)) return relu_ops_advise(RELU_OPS_BUNDLE, WHAT_IT_IS);
  return relu_ops_advise(RELU_OPS_BUNDLE,
                         "build a bundle of a model first: relu_ops.build, or relu-ops build");
}

void relu_ops_close_directory(Source* source) {
  close(source->directory);
  if (source->sums >= 0) close(source->sums);
}

static bool is_same(const struct stat* one, const struct stat* other) {
  return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* Whether there is another SHA256SUMS in the directory than the one that was opened, or now one where none
 * could be opened. */
static bool has_other_sums(const Source* source) {
  int descriptor = openat(source->directory, SUMS, OPENED);
  if (descriptor < 0) return false;
  struct stat opened, now;
  bool other = source->sums < 0 || (fstat(source->sums, &opened) == 0 && fstat(descriptor, &now) == 0 &&
                                    !is_same(&opened, &now));
  close(descriptor);
  return other;
}

/* By another directory, or within: where the files are links that lead through one link to a directory
 * (Kubernetes), that link is turned. Both are held open, so that nothing new can have their numbers. */
bool relu_ops_is_replaced(const Source* source, const char* path) {
  struct stat opened, now;
  bool moved = fstat(source->directory, &opened) == 0 && stat(path, &now) == 0 && !is_same(&opened, &now);
  return moved || has_other_sums(source);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

static relu_ops_status read_from_memory(Source* source, const char* name, size_t most, File* file) {
  size_t k = 0;
  while (k < source->count && strcmp(source->names[k], name) != 0) ++k;
  if (k == source->count)
    return relu_ops_fail(RELU_OPS_BUNDLE, "%s: there is no %s", source->shown, name);
  if (source->sizes[k] > most) return refuse_size(source->shown, name, source->sizes[k], most);
  file->size = source->sizes[k];
  file->bytes = malloc(file->size ? file->size : 1);
  if (!file->bytes) return relu_ops_no_memory(source->shown);
  if (file->size) memcpy(file->bytes, source->bytes[k], file->size);
  return RELU_OPS_OK;
}

/* Each of the bundle's files was found; so one more is another one, or a second of one name. */
static relu_ops_status refuse_others_in_memory(const Source* source, const relu_ops_bundle* bundle) {
  for (size_t k = 0; k < source->count; ++k)
    if (!relu_ops_has_file(bundle, source->names[k])) return refuse_file(source->shown, source->names[k]);
  if (source->count == bundle->file_count) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %zu files of %zu names", source->shown, source->count,
                       bundle->file_count);
}

Source relu_ops_memory_source(const char* shown, size_t count, const char* const* names,
                              const void* const* bytes, const size_t* sizes) {
  return (Source){.shown = shown, .read = read_from_memory, .refuse_others = refuse_others_in_memory,
                  .directory = -1, .sums = -1, .count = count, .names = names, .bytes = bytes,
                  .sizes = sizes};
}
