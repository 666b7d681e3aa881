/* Reads what an image for CUDA has of its own: launches, fat binaries, and which devices those are for. It
 * believes as little as image_reader.c does. */
#include "image_reader.h"

static bool check_binary(const Reader* r, const Place* in, const ImageCudaKernel* kernel) {
  const ImageHeader* header = &r->header;
  FatBinary binary;
  uint32_t at = kernel->binary_at, size = kernel->binary_size;
  if (at % 64 != 0)
    return refuse(r, in, "its fat binary begins at %" PRIu32 ", which is no multiple of 64", at);
  if (at < header->code_at || at - header->code_at > header->code_size ||
      size > header->code_size - (at - header->code_at))
    return refuse(r, in, "its fat binary of %" PRIu32 " bytes at %" PRIu32 " is not in the code", size, at);
  if (size < sizeof(binary))
    return refuse(r, in, "its fat binary has %" PRIu32 " bytes; a header has %zu", size, sizeof(binary));
  memcpy(&binary, r->bytes + at, sizeof(binary));
  if (binary.magic != FAT_BINARY_MAGIC || binary.header_size != sizeof(binary))
    return refuse(r, in, "what lies at %" PRIu32 " is no fat binary", at);
  return binary.size == size - sizeof(binary) ||
         refuse(r, in, "its fat binary says that it has %" PRIu64 " bytes; it has %" PRIu32, binary.size,
                size);
}

/* How a kernel is launched: a chunk is at most an access of 16 bytes wide. */
static bool check_launch(const Reader* r, const Place* in, const ImageCudaKernel* kernel, bool is_last) {
  uint32_t lanes = kernel->lanes, most = is_last ? 1 : 16;
  if (lanes == 0 || lanes > most || (lanes & (lanes - 1)) != 0)
    return refuse(r, in, "chunks of %" PRIu32 " elements; it must be a power of two up to %" PRIu32, lanes,
                  most);
  return (kernel->unroll >= 1 && kernel->unroll <= 16) ||
         refuse(r, in, "%" PRIu32 " chunks a thread; it must be 1 to 16", kernel->unroll);
}

/* A kernel whose chunks are wide knows how each operand lies. */
static bool check_whole(Reader* r, const Place* in, ImageTable patterns) {
  for (uint32_t k = 0; k < patterns.count; ++k) {
    int8_t pattern;
    copy_row(r, patterns, PATTERNS, k, &pattern);
    if (pattern < 0)
      return refuse(r, in, "pattern %" PRIu32 " is %d; only the last kernel takes any strides", k, pattern);
  }
  return true;
}

bool relu_ops_check_cuda_kernels(Reader* r, const Place* in, const ImageOperator* op) {
  ImageCudaKernel kernel, first;
  if (!check_table(r, in, op->kernels, CUDA_KERNELS)) return false;
  if (op->kernels.count == 0) return refuse(r, in, "there is no kernel");
  copy_row(r, op->kernels, CUDA_KERNELS, 0, &first);
  for (uint32_t k = 0; k < op->kernels.count; ++k) {
    Place place = {in, "kernel", k};
    bool is_last = k + 1 == op->kernels.count;
    copy_row(r, op->kernels, CUDA_KERNELS, k, &kernel);
    if (!check_name(r, &place, "name", kernel.name) || !check_binary(r, &place, &kernel) ||
        !check_launch(r, &place, &kernel, is_last) ||
        !check_patterns(r, &place, kernel.patterns, op->itemsizes.count, is_last))
      return false;
    if (!is_last && !check_whole(r, &place, kernel.patterns)) return false;
    if (kernel.binary_at != first.binary_at)
      return refuse(r, &place, "its fat binary is another one than that of kernel 0");
  }
  return true;
}

/* ---- what it requires ------------------------------------------------------------------------------- */

/* Digits up to 999, of which the first is not 0. */
static bool read_digits(const char** at, int32_t* number) {
  const char* first = *at;
  *number = 0;
  for (; **at >= '0' && **at <= '9' && *at - first < 4; ++*at) *number = 10 * *number + (**at - '0');
  return *at > first && *at - first < 4 && (*first != '0' || *at - first == 1);
}

bool relu_ops_read_cuda_code(const char* text, CudaCode* code) {
  static const char* const NAMES[] = {
      [CODE_DRIVER] = "cuda_", [CODE_MACHINE] = "sm_", [CODE_PTX] = "compute_"};
  for (size_t k = 0; k < sizeof(NAMES) / sizeof(*NAMES); ++k) {
    const char* at = text + strlen(NAMES[k]);
    int32_t minor = 0;
    if (strncmp(text, NAMES[k], strlen(NAMES[k])) != 0 || !read_digits(&at, &code->number)) continue;
    code->kind = (CodeKind)k;
    if (k == CODE_DRIVER && (*at++ != '.' || !read_digits(&at, &minor) || minor > 99)) return false;
    if (k == CODE_DRIVER) code->number = 1000 * code->number + 10 * minor;
    return *at == '\0';
  }
  return false;
}

bool relu_ops_check_cuda_codes(const Reader* r) {
  uint32_t runnable = 0;
  for (uint32_t k = 0; k < r->header.requires_.count; ++k) {
    ImageText text;
    CudaCode code;
    copy_row(r, r->header.requires_, FEATURES, k, &text);
    if (!relu_ops_read_cuda_code((const char*)r->bytes + text.at, &code))
      return refuse(r, NULL, "required feature %" PRIu32 " must be like cuda_13.0, sm_90 or compute_90", k);
    runnable += code.kind != CODE_DRIVER;
  }
  return runnable > 0 || refuse(r, NULL, "it does not say which devices it has code for");
}
