/* Bundles: files that are what SHA256SUMS says, images that belong together. docs/bundle.md describes the
 * directory. What the manifest says is not looked at here: everything that running needs is in the
 * images. */
#define _GNU_SOURCE
#include "bundle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "image.h"

#define SUFFIX ".image"

enum {
  MOST_SUMS = 1 << 20, /* bytes of SHA256SUMS: some 14,000 files */
  MOST_NAME = 128,     /* bytes of a file's name */
  MOST_TRIES = 100,    /* to read a bundle that is replaced meanwhile */
};
#define MOST_FILE ((size_t)1 << 31) /* protobuf's limit for a model, far above any image */

relu_ops_status relu_ops_no_memory(const char* shown) {
  return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to read it", shown);
}

static int by_name(const void* name, const void* file) {
  return strcmp(name, ((const File*)file)->name);
}

bool relu_ops_has_file(const relu_ops_bundle* bundle, const char* name) {
  return strcmp(name, SUMS) == 0 ||
         bsearch(name, bundle->files + 1, bundle->file_count - 1, sizeof(File), by_name) != NULL;
}

/* ---- SHA256SUMS ------------------------------------------------------------------------------------ */

/* A line, as sha256sum writes it: the digest, two spaces, the name. */
typedef struct {
  char digest[65];
  char name[MOST_NAME + 1];
} Line;

static bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_file_name(const char* name, size_t length) {
  if (length < 1 || length > MOST_NAME || !is_letter_or_digit(name[0])) return false;
  for (size_t k = 1; k < length; ++k)
    if (!is_letter_or_digit(name[k]) && name[k] != '.' && name[k] != '-') return false;
  return length != strlen(SUMS) || memcmp(name, SUMS, length) != 0;
}

/* Read a line of `length` bytes, its end not counted. */
static bool read_line(const char* at, size_t length, Line* line) {
  if (length < 67 || at[64] != ' ' || at[65] != ' ' || !is_file_name(at + 66, length - 66)) return false;
  for (int k = 0; k < 64; ++k)
    if (!((at[k] >= '0' && at[k] <= '9') || (at[k] >= 'a' && at[k] <= 'f'))) return false;
  memcpy(line->digest, at, 64);
  memcpy(line->name, at + 66, length - 66);
  line->digest[64] = line->name[length - 66] = '\0';
  return true;
}

static relu_ops_status refuse_line(const char* shown, size_t number, const char* what) {
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s: line %zu %s", shown, SUMS, number, what);
  return relu_ops_advise(RELU_OPS_BUNDLE, "it is not as relu_ops writes it: build the bundle again");
}

static size_t count_lines(const File* sums) {
  size_t lines = 0;
  for (size_t k = 0; k < sums->size; ++k) lines += ((const char*)sums->bytes)[k] == '\n';
  return lines;
}

/* ---- files ----------------------------------------------------------------------------------------- */

/* Read a file into the bundle, whatever it is. */
static relu_ops_status add_file(relu_ops_bundle* bundle, Source* source, const char* name, size_t most) {
  File* file = &bundle->files[bundle->file_count];
  *file = (File){strdup(name), NULL, 0};
  if (!file->name) return relu_ops_no_memory(bundle->shown);
  ++bundle->file_count;
  return source->read(source, name, most, file);
}

static relu_ops_status add_listed(relu_ops_bundle* bundle, Source* source, const Line* line) {
  relu_ops_status status = add_file(bundle, source, line->name, MOST_FILE);
  if (status != RELU_OPS_OK) return status;
  const File* file = &bundle->files[bundle->file_count - 1];
  Digest found = relu_ops_sha256(file->bytes, file->size);
  if (strcmp(found.hex, line->digest) == 0) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s has the sha256 %s; %s says %s", bundle->shown, line->name, found.hex,
                SUMS, line->digest);
  return relu_ops_advise(RELU_OPS_BUNDLE, DAMAGED);
}

/* Read the files that SHA256SUMS lists, which is the bundle's first. */
static relu_ops_status add_all_listed(relu_ops_bundle* bundle, Source* source) {
  const File* sums = &bundle->files[0];
  const char *at = sums->bytes, *end = at + sums->size;
  Line line, last = {"", ""};
  for (size_t number = 1; at < end; ++number) {
    const char* newline = memchr(at, '\n', (size_t)(end - at));
    if (!newline || !read_line(at, (size_t)(newline - at), &line))
      return refuse_line(bundle->shown, number,
                         "must be a sha256 in lower case, two spaces, the name of a file, and an end");
    if (strcmp(last.name, line.name) >= 0)
      return refuse_line(bundle->shown, number, "names a file that must stand before those above it");
    relu_ops_status status = add_listed(bundle, source, &line);
    if (status != RELU_OPS_OK) return status;
    last = line;
    at = newline + 1;
  }
  return RELU_OPS_OK;
}

static relu_ops_status check_pinned(const char* shown, const char* what, const Digest* found,
                                    const char* digest) {
  if (!digest || strcasecmp(found->hex, digest) == 0) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_BUNDLE, "%s: %shas the digest %s; it must have %s", shown, what, found->hex, digest);
  return relu_ops_advise(RELU_OPS_BUNDLE,
                         "take the one that was meant or, if it was built anew on purpose, its new digest");
}

/* Read all files, and check that they are those that SHA256SUMS lists. */
static relu_ops_status add_files(relu_ops_bundle* bundle, Source* source, const char* digest) {
  relu_ops_status status = add_file(bundle, source, SUMS, MOST_SUMS);
  if (status != RELU_OPS_OK) return status;
  const File* sums = &bundle->files[0];
  bundle->digest = relu_ops_sha256(sums->bytes, sums->size);
  status = check_pinned(bundle->shown, SUMS " ", &bundle->digest, digest);
  if (status != RELU_OPS_OK) return status;
  File* more = realloc(bundle->files, (1 + count_lines(sums)) * sizeof(File));
  if (!more) return relu_ops_no_memory(bundle->shown);
  bundle->files = more;
  status = add_all_listed(bundle, source);
  if (status != RELU_OPS_OK) return status;
  if (!relu_ops_has_file(bundle, MANIFEST))
    return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s does not list %s", bundle->shown, SUMS, MANIFEST);
  return source->refuse_others(source, bundle);
}

/* ---- images ---------------------------------------------------------------------------------------- */

static bool is_image(const File* file) {
  size_t length = strlen(file->name), suffix = strlen(SUFFIX);
  return length > suffix && strcmp(file->name + length - suffix, SUFFIX) == 0;
}

/* An image is for the target that its file is named after. */
static relu_ops_status check_target(const relu_ops_bundle* bundle, const File* file, const Image* image) {
  const char* target = relu_ops_image_target(image);
  size_t length = strlen(target);
  if (strncmp(file->name, target, length) == 0 && strcmp(file->name + length, SUFFIX) == 0)
    return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s is for the target %s, and must be called %s%s",
                       bundle->shown, file->name, target, target, SUFFIX);
}

/* Every image of a bundle has the same operators. */
static relu_ops_status check_operators(const relu_ops_bundle* bundle, const File* file, const Image* image) {
  const Image* first = bundle->images[0];
  size_t count = relu_ops_image_operator_count(first);
  bool alike = count == relu_ops_image_operator_count(image);
  for (size_t k = 0; k < count && alike; ++k)
    alike = strcmp(relu_ops_image_operator_name(first, k), relu_ops_image_operator_name(image, k)) == 0;
  if (alike) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: %s has other operators than %s%s", bundle->shown, file->name,
                       relu_ops_image_target(first), SUFFIX);
}

static relu_ops_status add_image(relu_ops_bundle* bundle, const File* file, const char* shown) {
  Image* image;
  relu_ops_status status = relu_ops_read_image(shown, file->bytes, file->size, &image);
  if (status != RELU_OPS_OK) return status;
  bundle->images[bundle->image_count++] = image;
  status = check_target(bundle, file, image);
  return status != RELU_OPS_OK ? status : check_operators(bundle, file, image);
}

static relu_ops_status add_images(relu_ops_bundle* bundle) {
  bundle->images = malloc(bundle->file_count * sizeof(*bundle->images));
  if (!bundle->images) return relu_ops_no_memory(bundle->shown);
  for (size_t k = 0; k < bundle->file_count; ++k) {
    if (!is_image(&bundle->files[k])) continue;
    char* shown;
    if (asprintf(&shown, "%s: %s", bundle->shown, bundle->files[k].name) < 0)
      return relu_ops_no_memory(bundle->shown);
    relu_ops_status status = add_image(bundle, &bundle->files[k], shown);
    free(shown);
    if (status != RELU_OPS_OK) return status;
  }
  if (bundle->image_count > 0) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: holds no image (NAME%s)", bundle->shown, SUFFIX);
}

/* ---- opening --------------------------------------------------------------------------------------- */

void relu_ops_close(relu_ops_bundle* bundle) {
  if (!bundle) return;
  for (size_t k = 0; k < bundle->image_count; ++k) relu_ops_drop_image(bundle->images[k]);
  for (size_t k = 0; k < bundle->file_count; ++k) {
    free(bundle->files[k].name);
    free(bundle->files[k].bytes);
  }
  free(bundle->images);
  free(bundle->files);
  free(bundle->shown);
  free(bundle);
}

/* A bundle with room for one file. */
static relu_ops_bundle* new_bundle(const char* shown) {
  relu_ops_bundle* bundle = calloc(1, sizeof(*bundle));
  if (!bundle) return NULL;
  bundle->shown = strdup(relu_ops_shown(shown).text);
  bundle->files = calloc(1, sizeof(File));
  if (bundle->shown && bundle->files) return bundle;
  relu_ops_close(bundle);
  return NULL;
}

/* Hand a bundle out where all is well; else free it. */
static relu_ops_status hand_out(relu_ops_status status, relu_ops_bundle* made, relu_ops_bundle** bundle) {
  if (status == RELU_OPS_OK) *bundle = made;
  else relu_ops_close(made);
  return status;
}

static relu_ops_status open_source(Source* source, const char* digest, relu_ops_bundle** bundle) {
  relu_ops_bundle* made = new_bundle(source->shown);
  if (!made) return relu_ops_no_memory(source->shown);
  relu_ops_status status = add_files(made, source, digest);
  return hand_out(status != RELU_OPS_OK ? status : add_images(made), made, bundle);
}

relu_ops_status relu_ops_open(const char* path, const char* digest, relu_ops_bundle** bundle) {
  Shown shown = relu_ops_shown(path);
  for (int tries = 0; tries < MOST_TRIES; ++tries) {
    Source source;
    relu_ops_status status = relu_ops_open_directory(path, shown.text, &source);
    if (status != RELU_OPS_OK) return status;
    status = open_source(&source, digest, bundle);
    /* The files of a bundle that was replaced meanwhile may be gone: read the new one. */
    bool again = status == RELU_OPS_BUNDLE && relu_ops_is_replaced(&source, path);
    relu_ops_close_directory(&source);
    if (!again) return status;
  }
  return relu_ops_fail(RELU_OPS_BUNDLE, "%s: is being replaced all the time", shown.text);
}

relu_ops_status relu_ops_open_files(const char* shown, size_t count, const char* const* names,
                                    const void* const* bytes, const size_t* sizes, const char* digest,
                                    relu_ops_bundle** bundle) {
  Shown name = relu_ops_shown(shown);
  Source source = relu_ops_memory_source(name.text, count, names, bytes, sizes);
  return open_source(&source, digest, bundle);
}

/* The only file of a bundle becomes an image that stands alone, called after its target. */
static relu_ops_status add_only_image(relu_ops_bundle* bundle, const char* digest) {
  File* file = &bundle->files[0];
  bundle->digest = relu_ops_sha256(file->bytes, file->size);
  relu_ops_status status = check_pinned(bundle->shown, "", &bundle->digest, digest);
  if (status != RELU_OPS_OK) return status;
  bundle->images = malloc(sizeof(*bundle->images));
  if (!bundle->images) return relu_ops_no_memory(bundle->shown);
  status = relu_ops_read_image(bundle->shown, file->bytes, file->size, bundle->images);
  if (status != RELU_OPS_OK) return status;
  bundle->image_count = 1;
  if (asprintf(&file->name, "%s%s", relu_ops_image_target(bundle->images[0]), SUFFIX) >= 0)
    return RELU_OPS_OK;
  file->name = NULL;
  return relu_ops_no_memory(bundle->shown);
}

relu_ops_status relu_ops_open_image(const char* shown, const void* bytes, size_t size, const char* digest,
                                    relu_ops_bundle** bundle) {
  if (size > MOST_FILE)
    return relu_ops_fail(RELU_OPS_BUNDLE, "%s: has %zu bytes; it must have at most %zu",
                         relu_ops_shown(shown).text, size, MOST_FILE);
  relu_ops_bundle* made = new_bundle(shown);
  if (!made) return relu_ops_no_memory(relu_ops_shown(shown).text);
  File* file = &made->files[made->file_count++];
  *file = (File){NULL, malloc(size ? size : 1), size};
  if (!file->bytes) return hand_out(relu_ops_no_memory(made->shown), made, bundle);
  if (size) memcpy(file->bytes, bytes, size);
  return hand_out(add_only_image(made, digest), made, bundle);
}

/* ---- what a bundle holds --------------------------------------------------------------------------- */

const char* relu_ops_digest(const relu_ops_bundle* bundle) {
  return bundle->digest.hex;
}

size_t relu_ops_file_count(const relu_ops_bundle* bundle) {
  return bundle->file_count;
}

relu_ops_status relu_ops_file(const relu_ops_bundle* bundle, size_t number, const char** name,
                              const void** bytes, size_t* size) {
  if (number >= bundle->file_count)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: has no file number %zu; it has %zu", bundle->shown, number,
                         bundle->file_count);
  const File* file = &bundle->files[number];
  *name = file->name;
  *bytes = file->bytes;
  *size = file->size;
  return RELU_OPS_OK;
}

size_t relu_ops_target_count(const relu_ops_bundle* bundle) {
  return bundle->image_count;
}

const char* relu_ops_target_name(const relu_ops_bundle* bundle, size_t number) {
  return number < bundle->image_count ? relu_ops_image_target(bundle->images[number]) : NULL;
}

size_t relu_ops_operator_count(const relu_ops_bundle* bundle) {
  return relu_ops_image_operator_count(bundle->images[0]);
}

const char* relu_ops_operator_name(const relu_ops_bundle* bundle, size_t number) {
  return relu_ops_image_operator_name(bundle->images[0], number);
}
