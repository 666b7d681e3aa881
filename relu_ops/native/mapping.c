/* See mapping.h. */
#define _GNU_SOURCE
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch.h"

struct Mapping {
  atomic_int references;
  _Atomic(unsigned char*) base; /* NULL: not mapped yet */
  size_t size;
  bool executable;
};

/* What the system refused, and why. */
typedef struct {
  const char* call;
  int error;
} Refusal;

static Refusal refused(const char* call) {
  return (Refusal){call, errno};
}

Mapping* relu_ops_new_mapping(size_t size, bool executable) {
  Mapping* mapping = malloc(sizeof(*mapping));
  if (!mapping) return NULL;
  atomic_init(&mapping->references, 1);
  atomic_init(&mapping->base, NULL);
  mapping->size = size;
  mapping->executable = executable;
  return mapping;
}

void relu_ops_hold_mapping(Mapping* mapping) {
  atomic_fetch_add_explicit(&mapping->references, 1, memory_order_relaxed);
}

void relu_ops_drop_mapping(Mapping* mapping) {
  if (atomic_fetch_sub_explicit(&mapping->references, 1, memory_order_acq_rel) != 1) return;
  unsigned char* base = atomic_load(&mapping->base);
  if (base) munmap(base, mapping->size);
  free(mapping);
}

static bool write_whole(int file, const unsigned char* bytes, size_t size) {
  while (size > 0) {
    ssize_t written = write(file, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes += written;
    size -= (size_t)written;
  }
  return true;
}

/* Fill a memory file and seal it. Without MFD_EXEC, which systems refuse that let nobody execute memory
 * files as programs (vm.memfd_noexec); mapping one executable needs no such flag. */
static unsigned char* map_file(int file, const void* bytes, size_t size, int rights, Refusal* refusal) {
  int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  *refusal = (Refusal){"write", ENOSPC};
  if (!write_whole(file, bytes, size)) return *refusal = refused("write"), NULL;
  if (fcntl(file, F_ADD_SEALS, seals) != 0) return *refusal = refused("fcntl(F_ADD_SEALS)"), NULL;
  void* base = mmap(NULL, size, rights, MAP_PRIVATE, file, 0);
  if (base == MAP_FAILED) return *refusal = refused(rights & PROT_EXEC ? "mmap(PROT_EXEC)" : "mmap"), NULL;
  return base;
}

static unsigned char* map_sealed(const void* bytes, size_t size, int rights, Refusal* refusal) {
  int file = memfd_create("relu_ops", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return *refusal = refused("memfd_create"), NULL;
  unsigned char* base = map_file(file, bytes, size, rights, refusal);
  close(file);
  return base;
}

/* Where there are no memory files, and for profilers: perf takes names from its map for anonymous memory
 * alone. Filled first, then made executable, never both. */
static unsigned char* map_anonymous(const void* bytes, size_t size, int rights, Refusal* refusal) {
  void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return *refusal = refused("mmap"), NULL;
  memcpy(base, bytes, size);
  if (mprotect(base, size, rights) == 0) return base;
  *refusal = refused(rights & PROT_EXEC ? "mprotect(PROT_EXEC)" : "mprotect");
  munmap(base, size);
  return NULL;
}

static relu_ops_status refuse(const char* shown, size_t size, Refusal first, Refusal second) {
  if (second.error == ENOMEM)
    return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory to map its %zu bytes", shown, size);
  Text refusals = {.text = ""};
  if (first.call) relu_ops_append(&refusals, "%s (%s), then ", first.call, strerror(first.error));
  relu_ops_fail(RELU_OPS_SYSTEM, "%s: its code cannot be made executable: the system refused %s%s (%s)",
                shown, refusals.text, second.call, strerror(second.error));
  return relu_ops_advise(RELU_OPS_SYSTEM,
                         "let this process use memfd_create and map such memory executable, or let it make "
                         "memory executable by mprotect: look at its seccomp filter, at SELinux (execmem), "
                         "at systemd's MemoryDenyWriteExecute");
}

/* Whether a profiler is to be told the names of functions: RELU_OPS_PERF_MAP=1. */
static bool wants_names(void) {
  const char* wanted = secure_getenv("RELU_OPS_PERF_MAP");
  return wanted && strcmp(wanted, "1") == 0;
}

relu_ops_status relu_ops_map(Mapping* mapping, const char* shown, const void* bytes, Introduce introduce,
                             const void* image, const unsigned char** base) {
  unsigned char* present = atomic_load(&mapping->base);
  *base = present;
  if (present) return RELU_OPS_OK;
  Refusal first = {NULL, 0}, second = {NULL, 0};
  bool named = mapping->executable && wants_names();
  int rights = PROT_READ | (mapping->executable ? PROT_EXEC : 0);
  unsigned char* made = named ? NULL : map_sealed(bytes, mapping->size, rights, &first);
  if (!made) made = map_anonymous(bytes, mapping->size, rights, &second);
  if (!made) return refuse(shown, mapping->size, first, second);
  if (mapping->executable) arch_code_was_written(made, mapping->size);
  relu_ops_status status = named ? introduce(image, made) : RELU_OPS_OK;
  /* Of two threads that map it at once, one comes second and takes what the first has made. */
  if (status != RELU_OPS_OK || !atomic_compare_exchange_strong(&mapping->base, &present, made))
    munmap(made, mapping->size);
  else
    present = made;
  *base = present;
  return status;
}

/* One write a line, so that lines of threads and of other compilers (Python's -X perf) do not mix. */
static bool write_names(int file, const unsigned char* base, const CodeName* names, size_t count) {
  for (size_t k = 0; k < count; ++k)
    if (dprintf(file, "%" PRIxPTR " %" PRIx32 " relu_ops::%s::tile_%" PRIu32 "%s\n",
                (uintptr_t)base + names[k].at, names[k].size, names[k].operator, names[k].kernel,
                names[k].stream ? "_stream" : "") < 0)
      return false;
  return true;
}

relu_ops_status relu_ops_write_perf_map(const unsigned char* base, const CodeName* names, size_t count) {
  char path[64];
  snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644);
  bool written = file >= 0 && write_names(file, base, names, count);
  int error = errno;
  if (file >= 0) close(file);
  if (written) return RELU_OPS_OK;
  relu_ops_fail(RELU_OPS_SYSTEM, "%s cannot be written: %s", path, strerror(error));
  return relu_ops_advise(RELU_OPS_SYSTEM, "RELU_OPS_PERF_MAP=1 asks for it: unset it, or make room for it");
}
