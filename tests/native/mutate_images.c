/* Hands mutations of images to LLVMFuzzerTestOneInput, each the same in every run.
 *
 *   mutate_images FIRST COUNT IMAGE...
 *
 * Mutation number k changes one image in one to four places, or cuts it, or puts a piece of it, or of
 * another one, elsewhere; headers, tables and texts far more often than code and constants. On standard
 * output comes how many were read and accepted; where it stops, the last line of standard error has the
 * number of the mutation. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../relu_ops/native/image.h"

int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);
extern size_t images_accepted, operators_mapped, calls_planned;

typedef struct {
  uint8_t* bytes;
  size_t size;
} Bytes;

/* ---- numbers by chance, from a seed: splitmix64 ---------------------------------------------------- */

static uint64_t state;

static uint64_t draw(uint64_t below) {
  uint64_t x = state += UINT64_C(0x9E3779B97F4A7C15);
  x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
  x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
  return (x ^ x >> 31) % below;
}

/* ---- changes ---------------------------------------------------------------------------------------- */

/* Numbers that lie: edges of types, of limits, of alignment; offsets of little and of much. */
static const uint64_t LIES[] = {
    0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 128, 255, 256, 511, 512, 513, 1023, 1024, 1025, 4095, 4096,
    4097, 8191, 8192, 8193, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFC0, 0xFFFFFFFE, 0xFFFFFFFF,
    0x100000000, 0x3FFFFFFFFFFFFFFF, 0x4000000000000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000,
    0xFFFFFFFFFFFFFFFD, 0xFFFFFFFFFFFFFFFE, 0xFFFFFFFFFFFFFFFF};
static const int64_t STEPS[] = {-4096, -64, -24, -16, -8, -2, -1, 1, 2, 8, 16, 24, 64, 4096};

#define LENGTH(array) (sizeof(array) / sizeof(*(array)))

/* Somewhere in an image, 15 times of 16 not in its code. */
static size_t somewhere(const Bytes* image) {
  ImageHeader header;
  if (image->size < sizeof(header)) return draw(image->size);
  memcpy(&header, image->bytes, sizeof(header));
  if (draw(8) == 0) return draw(sizeof(header));
  size_t at = draw(image->size);
  bool in_code = at >= header.code_at && at - header.code_at < header.code_size;
  if (!in_code || header.code_size >= image->size || draw(16) == 0) return at;
  return somewhere(image);
}

static void flip(Bytes* image) {
  image->bytes[somewhere(image)] ^= (uint8_t)(1u << draw(8));
}

static void set_byte(Bytes* image) {
  image->bytes[somewhere(image)] = (uint8_t)draw(256);
}

static void set_word(Bytes* image) {
  size_t width = (size_t)1 << (1 + draw(3)), at = somewhere(image) / width * width;
  uint64_t word = 0;
  if (at + width > image->size) return;
  memcpy(&word, image->bytes + at, width);
  switch (draw(3)) {
    case 0: word = LIES[draw(LENGTH(LIES))]; break;
    case 1: word += (uint64_t)STEPS[draw(LENGTH(STEPS))]; break;
    default: word = draw(image->size + 1) / 8 * 8; break;
  }
  memcpy(image->bytes + at, &word, width);
}

/* Copy a piece, of 8 or of up to 128 bytes, over another place. */
static void splice(Bytes* image, const Bytes* other) {
  size_t size = draw(2) ? 8 : 1 + draw(128), from = somewhere(other) / 8 * 8, to = somewhere(image) / 8 * 8;
  if (from + size > other->size) size = other->size - from;
  if (to + size > image->size) size = image->size - to;
  memmove(image->bytes + to, other->bytes + from, size);
}

/* Cut the end off, much of it or up to 63 bytes; one is left. */
static void cut(Bytes* image) {
  size_t most = draw(2) || image->size < 64 ? image->size : 64;
  image->size -= draw(most);
}

static void change(Bytes* image, const Bytes* other) {
  uint64_t kind = draw(32);
  if (kind < 6) flip(image);
  else if (kind < 10) set_byte(image);
  else if (kind < 24) set_word(image);
  else if (kind < 31) splice(image, other);
  else cut(image);
}

/* Mutation `number`, in memory of just its size, so that a sanitizer sees its end. */
static void mutate(const Bytes* images, size_t count, uint64_t number) {
  state = number * UINT64_C(0xD1342543DE82EF95);
  const Bytes *image = &images[draw(count)], *other = &images[draw(count)];
  Bytes mutant = {malloc(image->size), image->size};
  if (!mutant.bytes) abort();
  memcpy(mutant.bytes, image->bytes, image->size);
  for (uint64_t changes = 1 + draw(4); changes > 0; --changes) change(&mutant, other);
  uint8_t* exact = malloc(mutant.size);
  if (!exact) abort();
  memcpy(exact, mutant.bytes, mutant.size);
  LLVMFuzzerTestOneInput(exact, mutant.size);
  free(exact);
  free(mutant.bytes);
}

/* ---- the run ---------------------------------------------------------------------------------------- */

static Bytes read_file(const char* path) {
  Bytes file = {NULL, 0};
  FILE* stream = fopen(path, "rb");
  if (stream && fseek(stream, 0, SEEK_END) == 0) file.size = (size_t)ftell(stream);
  if (file.size) file.bytes = malloc(file.size);
  if (file.bytes) rewind(stream);
  if (!file.bytes || fread(file.bytes, 1, file.size, stream) != file.size) {
    fprintf(stderr, "%s: cannot be read, or is empty\n", path);
    exit(2);
  }
  fclose(stream);
  return file;
}

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: mutate_images FIRST COUNT IMAGE...\n"), 2;
  size_t count = (size_t)argc - 3;
  Bytes* images = malloc(count * sizeof(*images));
  if (!images) abort();
  for (size_t k = 0; k < count; ++k) {
    images[k] = read_file(argv[k + 3]);
    LLVMFuzzerTestOneInput(images[k].bytes, images[k].size);
    if (images_accepted != k + 1) return fprintf(stderr, "%s: is refused as it is\n", argv[k + 3]), 2;
  }
  uint64_t first = strtoull(argv[1], NULL, 10), many = strtoull(argv[2], NULL, 10);
  images_accepted = operators_mapped = calls_planned = 0;
  for (uint64_t number = first; number < first + many; ++number) {
    fprintf(stderr, "%llu\n", (unsigned long long)number);
    mutate(images, count, number);
  }
  printf("%llu mutations: %zu accepted, %zu operators mapped, %zu calls planned\n",
         (unsigned long long)many, images_accepted, operators_mapped, calls_planned);
  for (size_t k = 0; k < count; ++k) free(images[k].bytes);
  free(images);
  return 0;
}
