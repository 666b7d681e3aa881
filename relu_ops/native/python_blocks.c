/* Memory for large tensors: taken again once the last one is gone. runtime/memory.py says why, and does the
 * same for arrays of NumPy.
 *
 * Blocks are given back by whoever drops a tensor, on any thread, with the interpreter's lock or without.
 * Nobody waits here: who finds the list in use maps a block anew, or gives his to the system. So a child that
 * was forked meanwhile does not wait either.
 */
#define _GNU_SOURCE
#include "python.h"

#include <stdatomic.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define MOST_FREE_BYTES ((size_t)1 << 30)
enum { MOST_FREE = 64 };

static struct {
  atomic_flag in_use;
  size_t count, bytes;
  LargeBlock blocks[MOST_FREE]; /* the oldest first */
} kept = {.in_use = ATOMIC_FLAG_INIT};

static bool begin(void) { return !atomic_flag_test_and_set(&kept.in_use); }
static void end(void) { atomic_flag_clear(&kept.in_use); }

/* Take a block out of the list. */
static LargeBlock removed(size_t number) {
  LargeBlock block = kept.blocks[number];
  kept.bytes -= block.size;
  --kept.count;
  for (size_t k = number; k < kept.count; ++k) kept.blocks[k] = kept.blocks[k + 1];
  return block;
}

/* A free block of exactly this size; nothing, where there is none. */
static LargeBlock found(size_t size) {
  LargeBlock block = {NULL, 0};
  if (!begin()) return block;
  for (size_t k = kept.count; !block.base && k-- > 0;)
    if (kept.blocks[k].size == size) block = removed(k);
  end();
  return block;
}

static LargeBlock mapped(size_t size) {
  void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return (LargeBlock){NULL, 0};
  madvise(base, size, MADV_HUGEPAGE); /* a kernel without them refuses, which is no matter */
  return (LargeBlock){base, size};
}

LargeBlock relu_ops_take_block(size_t bytes) {
  size_t size;
  if (__builtin_add_overflow(bytes, 2 * HUGE_PAGE - 1, &size)) return (LargeBlock){NULL, 0};
  size = size / HUGE_PAGE * HUGE_PAGE;
  LargeBlock block = found(size);
  return block.base ? block : mapped(size);
}

void* relu_ops_block_data(LargeBlock block) {
  return (void*)(((uintptr_t)block.base + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
}

void relu_ops_give_block_back(LargeBlock block) {
  LargeBlock gone[MOST_FREE];
  size_t count = 0;
  bool keep = block.size <= MOST_FREE_BYTES && begin();
  if (keep) {
    while (kept.count == MOST_FREE || kept.bytes + block.size > MOST_FREE_BYTES) gone[count++] = removed(0);
    madvise(block.base, block.size, MADV_FREE); /* the system may take it back whenever it needs memory */
    kept.blocks[kept.count++] = block;
    kept.bytes += block.size;
    end();
  } else {
    gone[count++] = block;
  }
  for (size_t k = 0; k < count; ++k) munmap(gone[k].base, gone[k].size);
}
