/* How many threads an operator uses, and from which size on it does what.
 *
 * The number of threads is what this process may really use: its affinity mask and the quotas of its
 * cgroups, not the machine's processors. Nothing is looked up before somebody needs it.
 */
#define _GNU_SOURCE
#include "settings.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

#define THREADS_VARIABLE "RELU_OPS_NUM_THREADS"

/* Measured on an AMD EPYC (Zen 4), 2 cores, 2026-11-21: relu float32, interleaved, medians.
 *
 * Two threads that are awake gain from 64 KiB on (0.61 against 0.73 us; 0.98 against 1.32 us at
 * twice that) and lose at a quarter of it (0.38 against 0.21 us). */
#define PARALLEL_BYTES (64 << 10)

/* A thread that sleeps costs the caller about 10 us to wake: a lone call gains from 6 MiB on
 * (8 MiB: 78 against 89 us; 4 MiB: 58 against 48 us). A burst of smaller calls wakes it once it
 * has moved that much. */
#define WAKE_BYTES (6 << 20)

/* Streaming stores gain from about the size of the last-level cache on, here 32 MiB: 0.74 against
 * 1.10 ms for add_relu that moves 48 MiB, 1.29 against 1.60 ms for relu and 64 MiB, but 0.62 against
 * 0.54 ms for relu and 32 MiB. With a next step that reads the output at once it is 1.22 against
 * 0.82 ms for relu and 32 MiB, 1.69 against 1.73 for add_relu and 48, 2.64 against 2.43 for relu and
 * 64, 3.75 against 4.36 for add_relu and 96: from 5/4 of the cache on a loss of 8 % at most. */
static int64_t stream_bytes_of(int64_t cache_bytes) {
  return cache_bytes / 4 * 5;
}
#define USUAL_CACHE_BYTES (INT64_C(32) << 20)

/* A virtual machine sees all of its host's cache, and has a part of it. Two processors below 260 MiB: relu
 * that moves 160 MiB takes 2.6 ms with streaming stores and 5.5 without, 12.5 and 12.3 with a sum behind it;
 * 128 MiB, 2.1 and 3.9, but 9.8 and 7.7 with the sum (Intel Xeon, AVX-512, 2026-11-28). */
#define MOST_CACHE_PER_PROCESSOR (INT64_C(64) << 20)

static int at_most(int most, int n) {
  return n < most ? n : most;
}

/* ---- files of the system ------------------------------------------------------------------------- */

/* Read the start of a file as text; false where it cannot be read. `root` is "", or what a test has in its
 * place. */
static bool read_text(char* text, int room, const char* root, const char* folder, const char* name) {
  char path[PATH_MAX];
  int length = snprintf(path, sizeof(path), "%s%s/%s", root, folder, name);
  if (length < 0 || length >= (int)sizeof(path)) return false;
  FILE* file = fopen(path, "re");
  if (!file) return false;
  bool read = fgets(text, room, file) != NULL;
  fclose(file);
  return read;
}

/* ---- quotas of cgroups --------------------------------------------------------------------------- */

/* A quota in whole processors, rounded up. */
static int processors_of(int64_t quota_us, int64_t period_us) {
  if (quota_us <= 0 || period_us <= 0) return RELU_OPS_MOST_THREADS;
  int64_t whole = quota_us / period_us + (quota_us % period_us != 0);
  return whole < RELU_OPS_MOST_THREADS ? (int)whole : RELU_OPS_MOST_THREADS;
}

/* The quota that a group has itself: of cgroups version 2 ("max 100000" where there is none), or of
 * version 1. */
static int own_quota(const char* root, const char* group) {
  char text[128], period[128];
  int64_t quota_us, period_us;
  if (read_text(text, sizeof(text), root, group, "cpu.max"))
    return sscanf(text, "%" SCNd64 " %" SCNd64, &quota_us, &period_us) == 2
               ? processors_of(quota_us, period_us)
               : RELU_OPS_MOST_THREADS;
  if (read_text(text, sizeof(text), root, group, "cpu.cfs_quota_us") &&
      read_text(period, sizeof(period), root, group, "cpu.cfs_period_us"))
    return processors_of(strtoll(text, NULL, 10), strtoll(period, NULL, 10));
  return RELU_OPS_MOST_THREADS;
}

/* The least quota of a group and of all that it lies in, up to where its hierarchy is mounted: each of them
 * holds. What is not there has none: in a container the path may be the host's. */
static int least_quota(const char* root, const char* mount, const char* path) {
  char group[PATH_MAX];
  int length = snprintf(group, sizeof(group), "%s%s", mount, path), least = RELU_OPS_MOST_THREADS;
  if (length < 0 || length >= (int)sizeof(group)) return least;
  for (;;) {
    least = at_most(least, own_quota(root, group));
    char* slash = strrchr(group, '/');
    if (!slash || slash < group + strlen(mount)) return least;
    *slash = '\0';
  }
}

static bool lists(const char* controllers, const char* wanted) {
  size_t length = strlen(wanted);
  for (const char* at = controllers; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
    if (strncmp(at, wanted, length) == 0 && (at[length] == ',' || at[length] == '\0')) return true;
  return false;
}

/* What a line of /proc/self/cgroup comes to: "0::/a/b" of version 2, "4:cpu,cpuacct:/a/b" of version 1. */
static int quota_of_line(const char* root, char* line) {
  line[strcspn(line, "\n")] = '\0';
  char* controllers = strchr(line, ':');
  char* path = controllers ? strchr(controllers + 1, ':') : NULL;
  if (!path) return RELU_OPS_MOST_THREADS;
  *path++ = '\0';
  if (*++controllers == '\0')
    return at_most(least_quota(root, "/sys/fs/cgroup", path),
                   least_quota(root, "/sys/fs/cgroup/unified", path));
  if (!lists(controllers, "cpu")) return RELU_OPS_MOST_THREADS;
  char mount[PATH_MAX];
  snprintf(mount, sizeof(mount), "/sys/fs/cgroup/%s", controllers);
  return at_most(least_quota(root, mount, path), least_quota(root, "/sys/fs/cgroup/cpu", path));
}

/* The least quota that holds for this process; RELU_OPS_MOST_THREADS where there is none. */
static int quota(const char* root) {
  int least = at_most(own_quota(root, "/sys/fs/cgroup"), own_quota(root, "/sys/fs/cgroup/cpu"));
  char path[PATH_MAX], *line = NULL;
  size_t room = 0;
  snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
  FILE* file = fopen(path, "re");
  while (file && getline(&line, &room, file) > 0) least = at_most(least, quota_of_line(root, line));
  free(line);
  if (file) fclose(file);
  return least;
}

/* ---- processors and caches ----------------------------------------------------------------------- */

/* The processors of the affinity mask; 0 where the system does not say. */
static int affinity(void) {
  for (int most = 1024; most <= 1 << 18; most *= 2) { /* a mask that is too small is refused */
    cpu_set_t* set = CPU_ALLOC((size_t)most);
    if (!set) return 0;
    size_t size = CPU_ALLOC_SIZE((size_t)most);
    int refused = sched_getaffinity(0, size, set) ? errno : 0;
    int count = refused ? 0 : CPU_COUNT_S(size, set);
    CPU_FREE(set);
    if (refused != EINVAL) return count;
  }
  return 0;
}

/* The number of processors that this process may use. */
static int usable_threads(const char* root) {
  long count = affinity();
  if (count < 1) count = sysconf(_SC_NPROCESSORS_ONLN); /* a sandbox may refuse to tell the mask */
  if (count < 1) count = 1;
  int most = count < RELU_OPS_MOST_THREADS ? (int)count : RELU_OPS_MOST_THREADS;
  return at_most(most, quota(root));
}

/* The size of the largest cache of the first processor, as far as it may be ours, or a usual one. */
static int64_t last_level_cache_bytes(const char* root, int64_t processors) {
  int64_t most = 0, ours = processors * MOST_CACHE_PER_PROCESSOR, size;
  for (int k = 0; k < 16; ++k) {
    char folder[64], text[64], unit;
    snprintf(folder, sizeof(folder), "/sys/devices/system/cpu/cpu0/cache/index%d", k);
    if (!read_text(text, sizeof(text), root, folder, "size")) continue;
    if (sscanf(text, "%" SCNd64 "%c", &size, &unit) != 2 || size < 0 || size > INT32_MAX) continue;
    int shift = unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0;
    if (shift && size << shift > most) most = size << shift;
  }
  if (most == 0) return USUAL_CACHE_BYTES;
  return most < ours ? most : ours;
}

/* ---- the default --------------------------------------------------------------------------------- */

/* What RELU_OPS_NUM_THREADS says; 0: nothing; -1: no number from 1 to 256. */
static int named_threads(void) {
  const char* text = getenv(THREADS_VARIABLE);
  if (!text || !*text) return 0;
  size_t digits = strspn(text, "0123456789");
  if (digits > 3 || text[digits]) return -1;
  int count = atoi(text);
  return count >= 1 && count <= RELU_OPS_MOST_THREADS ? count : -1;
}

static relu_ops_settings default_of(const char* root, int named) {
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  return (relu_ops_settings){.threads = named ? named : usable_threads(root),
                             .parallel_bytes = PARALLEL_BYTES,
                             .stream_bytes = stream_bytes_of(last_level_cache_bytes(root, processors)),
                             .wake_bytes = WAKE_BYTES};
}

/* The variable's text is anybody's: what is not printable is shown as its bytes. */
static relu_ops_status refuse_variable(void) {
  Text shown = {.length = 0};
  for (const char* at = getenv(THREADS_VARIABLE); at && *at; ++at)
    relu_ops_append(&shown, *at >= ' ' && *at <= '~' ? "%c" : "\\x%02x", (unsigned char)*at);
  relu_ops_fail(RELU_OPS_ARGUMENT, THREADS_VARIABLE " must be 1 to %d (not '%s')", RELU_OPS_MOST_THREADS,
                shown.text);
  return relu_ops_advise(RELU_OPS_ARGUMENT, "unset it for as many threads as the process may use");
}

relu_ops_status relu_ops_default_settings(relu_ops_settings* settings) {
  int named = named_threads();
  if (named < 0) return refuse_variable();
  *settings = default_of("", named);
  return RELU_OPS_OK;
}

/* ---- the settings in force ----------------------------------------------------------------------- */

/* Negative: nobody has set it, and nobody has needed the default. Who finds the default writes where that
 * is so still, so that he never undoes what another thread has just set: no lock, which a fork might find
 * taken. Whoever reads while another sets may find the old number beside the new: each is good. */
static _Atomic int32_t threads = -1;
static _Atomic int64_t parallel_bytes = -1, stream_bytes = -1, wake_bytes = -1;
_Atomic int64_t relu_ops_matters_from = -1;

static int64_t matters_from(const relu_ops_settings* settings) {
  int64_t shared = settings->stream_bytes / SHARED_PER_STREAM;
  return settings->parallel_bytes < shared ? settings->parallel_bytes : shared;
}

static void put_where_unset(_Atomic int64_t* place, int64_t value) {
  int64_t unset = -1;
  atomic_compare_exchange_strong_explicit(place, &unset, value, memory_order_relaxed, memory_order_relaxed);
}

static void adopt(const relu_ops_settings* settings) {
  int32_t unset = -1;
  put_where_unset(&parallel_bytes, settings->parallel_bytes);
  put_where_unset(&stream_bytes, settings->stream_bytes);
  put_where_unset(&wake_bytes, settings->wake_bytes);
  put_where_unset(&relu_ops_matters_from, matters_from(settings));
  atomic_compare_exchange_strong_explicit(&threads, &unset, settings->threads, memory_order_release,
                                          memory_order_relaxed);
}

/* What is in force; false where nothing is yet. The number of threads is written last. */
static bool read_settings(relu_ops_settings* settings) {
  settings->threads = atomic_load_explicit(&threads, memory_order_acquire);
  settings->parallel_bytes = atomic_load_explicit(&parallel_bytes, memory_order_relaxed);
  settings->stream_bytes = atomic_load_explicit(&stream_bytes, memory_order_relaxed);
  settings->wake_bytes = atomic_load_explicit(&wake_bytes, memory_order_relaxed);
  return settings->threads > 0;
}

relu_ops_status relu_ops_get_settings(relu_ops_settings* settings) {
  if (read_settings(settings)) return RELU_OPS_OK;
  relu_ops_status status = relu_ops_default_settings(settings);
  if (status) return status;
  adopt(settings);
  read_settings(settings);
  return RELU_OPS_OK;
}

relu_ops_settings relu_ops_current_settings(void) {
  relu_ops_settings settings;
  if (read_settings(&settings)) return settings;
  int named = named_threads();
  if (named < 0)
    return (relu_ops_settings){1, PARALLEL_BYTES, stream_bytes_of(USUAL_CACHE_BYTES), WAKE_BYTES};
  settings = default_of("", named);
  adopt(&settings);
  read_settings(&settings);
  return settings;
}

static relu_ops_status check_bytes(const char* what, int64_t bytes) {
  if (bytes >= 0) return RELU_OPS_OK;
  return relu_ops_fail(RELU_OPS_ARGUMENT, "%s must be at least 0 (not %" PRId64 ")", what, bytes);
}

relu_ops_status relu_ops_set_settings(const relu_ops_settings* settings) {
  if (settings->threads < 1 || settings->threads > RELU_OPS_MOST_THREADS)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "threads must be 1 to %d (not %" PRId32 ")",
                         RELU_OPS_MOST_THREADS, settings->threads);
  relu_ops_status status = check_bytes("parallel_bytes", settings->parallel_bytes);
  if (!status) status = check_bytes("stream_bytes", settings->stream_bytes);
  if (!status) status = check_bytes("wake_bytes", settings->wake_bytes);
  if (status) return status;
  atomic_store_explicit(&parallel_bytes, settings->parallel_bytes, memory_order_relaxed);
  atomic_store_explicit(&stream_bytes, settings->stream_bytes, memory_order_relaxed);
  atomic_store_explicit(&wake_bytes, settings->wake_bytes, memory_order_relaxed);
  atomic_store_explicit(&relu_ops_matters_from, matters_from(settings), memory_order_relaxed);
  atomic_store_explicit(&threads, settings->threads, memory_order_release);
  return RELU_OPS_OK;
}
