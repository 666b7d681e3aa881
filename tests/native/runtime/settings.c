/* Settings. The file under test is a part of this one, so that its look at the system can be turned to a
 * tree that a test makes. */
#include "../../../relu_ops/native/settings.c"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "by_hand.h"

/* ---- settings ------------------------------------------------------------------------------------ */

static void the_default_is_found_when_needed(void) {
  relu_ops_settings settings, again;
  CHECK(atomic_load(&relu_ops_matters_from) < 0); /* nobody has looked yet */
  setenv(THREADS_VARIABLE, "3", 1);
  CHECK(relu_ops_default_settings(&settings) == RELU_OPS_OK);
  CHECK(settings.threads == 3 && settings.parallel_bytes == 65536 && settings.wake_bytes == 6 << 20);
  CHECK(settings.stream_bytes >= 1 << 20);
  CHECK(relu_ops_get_settings(&again) == RELU_OPS_OK && again.threads == 3);
  CHECK(again.stream_bytes == settings.stream_bytes && again.wake_bytes == settings.wake_bytes);
  CHECK(atomic_load(&relu_ops_matters_from) == 65536);
  setenv(THREADS_VARIABLE, "5", 1); /* found once; the default itself is what holds now */
  CHECK(relu_ops_get_settings(&again) == RELU_OPS_OK && again.threads == 3);
  CHECK(relu_ops_default_settings(&again) == RELU_OPS_OK && again.threads == 5);
  use(2, 1, 400, 3);
  CHECK(relu_ops_get_settings(&again) == RELU_OPS_OK && again.threads == 2 && again.parallel_bytes == 1);
  CHECK(again.stream_bytes == 400 && again.wake_bytes == 3 && atomic_load(&relu_ops_matters_from) == 1);
  use(2, NEVER, 400, 3);
  CHECK(atomic_load(&relu_ops_matters_from) == 100); /* blocks of rows end there */
  setenv(THREADS_VARIABLE, "", 1); /* empty is not set */
  CHECK(relu_ops_default_settings(&again) == RELU_OPS_OK && again.threads == usable_threads(""));
}

#define UNSET_IT "unset it for as many threads as the process may use"

static void a_wrong_variable(void) {
  static const char* const wrong[][2] = {
      {"many", "many"}, {"0", "0"},       {"257", "257"}, {"1000", "1000"},    {" 2", " 2"},
      {"2 ", "2 "},     {"-1", "-1"},     {"+2", "+2"},   {"2\n", "2\\x0a"}, {"\xc3\xa4", "\\xc3\\xa4"}};
  relu_ops_operator* op = sum_of(1);
  relu_ops_settings settings;
  int before = threads_of_process();
  for (size_t k = 0; k < sizeof(wrong) / sizeof(*wrong); ++k) {
    char message[128];
    setenv(THREADS_VARIABLE, wrong[k][0], 1);
    snprintf(message, sizeof(message), "RELU_OPS_NUM_THREADS must be 1 to 256 (not '%s')", wrong[k][1]);
    REFUSED(relu_ops_get_settings(&settings), RELU_OPS_ARGUMENT, message, UNSET_IT);
    REFUSED(relu_ops_default_settings(&settings), RELU_OPS_ARGUMENT, message, UNSET_IT);
    call_large_with(op, NULL);
    CHECK(threads_of_process() == before); /* a call has one thread then, and is right */
  }
  setenv(THREADS_VARIABLE, "256", 1); /* once it is mended, it is heard */
  CHECK(relu_ops_get_settings(&settings) == RELU_OPS_OK && settings.threads == 256);
  drop(op);
}

static void wrong_settings(void) {
  relu_ops_settings settings = {0, 0, 0, 0}, found;
  use(2, 3, 4, 5);
  REFUSED(relu_ops_set_settings(&settings), RELU_OPS_ARGUMENT, "threads must be 1 to 256 (not 0)", NULL);
  settings.threads = 257;
  REFUSED(relu_ops_set_settings(&settings), RELU_OPS_ARGUMENT, "threads must be 1 to 256 (not 257)", NULL);
  settings = (relu_ops_settings){1, -1, 0, 0};
  REFUSED(relu_ops_set_settings(&settings), RELU_OPS_ARGUMENT,
          "parallel_bytes must be at least 0 (not -1)", NULL);
  settings = (relu_ops_settings){1, 0, -2, 0};
  REFUSED(relu_ops_set_settings(&settings), RELU_OPS_ARGUMENT, "stream_bytes must be at least 0 (not -2)",
          NULL);
  settings = (relu_ops_settings){1, 0, 0, INT64_MIN};
  REFUSED(relu_ops_set_settings(&settings), RELU_OPS_ARGUMENT,
          "wake_bytes must be at least 0 (not -9223372036854775808)", NULL);
  CHECK(relu_ops_get_settings(&found) == RELU_OPS_OK && found.threads == 2 && found.parallel_bytes == 3);
}

static void* ask_settings(void* unused) {
  (void)unused;
  relu_ops_settings settings;
  CHECK(relu_ops_get_settings(&settings) == RELU_OPS_OK && settings.threads == 7);
  CHECK(settings.parallel_bytes == 65536 && settings.wake_bytes == 6 << 20 && settings.stream_bytes > 0);
  return NULL;
}

static void the_default_is_found_by_several_threads(void) {
  pthread_t asking[8];
  setenv(THREADS_VARIABLE, "7", 1);
  for (int k = 0; k < 8; ++k) CHECK(pthread_create(&asking[k], NULL, ask_settings, NULL) == 0);
  for (int k = 0; k < 8; ++k) pthread_join(asking[k], NULL);
}

/* ---- made-up systems ------------------------------------------------------------------------------ */

static char tree[64];

/* Write a file of the tree, and the folders that it lies in. */
static void put(const char* path, const char* text) {
  char whole[512];
  snprintf(whole, sizeof(whole), "%s%s", tree, path);
  for (char* slash = strchr(whole + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    CHECK(mkdir(whole, 0700) == 0 || errno == EEXIST);
    *slash = '/';
  }
  FILE* file = fopen(whole, "w");
  CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void remove_tree(void) {
  char command[128];
  snprintf(command, sizeof(command), "rm -rf '%s'", tree);
  CHECK(!*tree || system(command) == 0);
}

static void plant(void) {
  remove_tree();
  strcpy(tree, "/tmp/relu_ops_tree_XXXXXX");
  CHECK(mkdtemp(tree));
}

static void quotas_of_version_2(void) {
  plant();
  CHECK(quota(tree) == 256);
  put("/proc/self/cgroup", "0::/machine/pod/box\n");
  put("/sys/fs/cgroup/machine/pod/box/cpu.max", "max 100000\n");
  CHECK(quota(tree) == 256);
  put("/sys/fs/cgroup/machine/pod/box/cpu.max", "100000 100000\n");
  CHECK(quota(tree) == 1);
  put("/sys/fs/cgroup/machine/pod/box/cpu.max", "350000 100000\n");
  CHECK(quota(tree) == 4); /* rounded up */
  put("/sys/fs/cgroup/machine/cpu.max", "150000 100000\n"); /* the least holds */
  CHECK(quota(tree) == 2);
  put("/sys/fs/cgroup/machine/pod/cpu.max", "1000000 100000\n");
  CHECK(quota(tree) == 2);
  put("/sys/fs/cgroup/machine/pod/cpu.max", "10000 100000\n");
  CHECK(quota(tree) == 1);
  put("/sys/fs/cgroup/other/cpu.max", "1 100000\n"); /* a group that it is not in */
  put("/proc/self/cgroup", "0::/machine\n");
  CHECK(quota(tree) == 2);
  put("/proc/self/cgroup", "0::/\n"); /* a namespace of its own: the group is the root */
  CHECK(quota(tree) == 256);
  put("/sys/fs/cgroup/cpu.max", "500000 100000\n");
  CHECK(quota(tree) == 5);
  put("/proc/self/cgroup", "0::/docker/0123\n"); /* the host's path, which is not to be seen from here */
  CHECK(quota(tree) == 5);
  plant();
  put("/sys/fs/cgroup/cpu.max", "300000 100000\n"); /* /proc is hidden */
  CHECK(quota(tree) == 3);
  remove_tree();
}

static void quotas_of_version_1(void) {
  plant();
  put("/proc/self/cgroup", "12:memory:/small\n4:cpu,cpuacct:/user/slurm/job\n1:name=systemd:/user\n0::/\n");
  put("/sys/fs/cgroup/memory/small/cpu.cfs_quota_us", "1\n"); /* not the hierarchy of processors */
  put("/sys/fs/cgroup/memory/small/cpu.cfs_period_us", "100000\n");
  CHECK(quota(tree) == 256);
  put("/sys/fs/cgroup/cpu,cpuacct/user/slurm/job/cpu.cfs_quota_us", "-1\n");
  put("/sys/fs/cgroup/cpu,cpuacct/user/slurm/job/cpu.cfs_period_us", "100000\n");
  CHECK(quota(tree) == 256);
  put("/sys/fs/cgroup/cpu,cpuacct/user/slurm/job/cpu.cfs_quota_us", "700000\n");
  CHECK(quota(tree) == 7);
  put("/sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_quota_us", "250000\n");
  put("/sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_period_us", "50000\n");
  CHECK(quota(tree) == 5);
  put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "9000\n");
  put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "3000\n");
  CHECK(quota(tree) == 3);
  plant();
  put("/proc/self/cgroup", "3:cpuacct,cpu:/a\n"); /* mounted by a name of its own */
  put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "200000\n");
  put("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  CHECK(quota(tree) == 2);
  put("/proc/self/cgroup", "3:cpuset:/a\n");
  CHECK(quota(tree) == 256);
  put("/proc/self/cgroup", "no such line\n::\n:cpu\n3:cpu\n\n7:cpu:\n"); /* anything may stand there */
  CHECK(quota(tree) == 256);
  put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "zzz\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "0\n");
  CHECK(quota(tree) == 256);
  remove_tree();
}

static void a_quota_makes_threads_fewer(void) {
  plant();
  int most = usable_threads(tree);
  CHECK(most == affinity());
  put("/proc/self/cgroup", "0::/a/b\n");
  put("/sys/fs/cgroup/a/cpu.max", "50000 100000\n");
  CHECK(usable_threads(tree) == 1 && default_of(tree, 0).threads == 1 && default_of(tree, 9).threads == 9);
  remove_tree();
}

static void caches(void) {
  plant();
  CHECK(last_level_cache_bytes(tree, 2) == USUAL_CACHE_BYTES);
  put("/sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n");
  put("/sys/devices/system/cpu/cpu0/cache/index2/size", "2M\n");
  CHECK(last_level_cache_bytes(tree, 2) == 2 << 20);
  put("/sys/devices/system/cpu/cpu0/cache/index3/size", "16384K\n");
  CHECK(last_level_cache_bytes(tree, 2) == 16 << 20);
  CHECK(default_of(tree, 1).stream_bytes == 20 << 20);
  put("/sys/devices/system/cpu/cpu0/cache/index3/size", "266240K\n");
  CHECK(last_level_cache_bytes(tree, 2) == 128 << 20 && last_level_cache_bytes(tree, 8) == 260 << 20);
  put("/sys/devices/system/cpu/cpu0/cache/index3/size", "lots\n");
  CHECK(last_level_cache_bytes(tree, 2) == 2 << 20);
  remove_tree();
}

/* ---- sandboxes ----------------------------------------------------------------------------------- */

/* Refuse two system calls from now on, as a hardened sandbox does: EPERM. */
static bool refuse_affinity(void) {
  struct sock_filter lines[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_getaffinity, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setaffinity, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof(lines) / sizeof(*lines), lines};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void affinity_is_refused(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  skip("sanitizers need the calls that are refused");
#endif
  relu_ops_operator* op = sum_of(1);
  unsetenv(THREADS_VARIABLE);
  if (!refuse_affinity()) skip("this system has no seccomp filters");
  cpu_set_t set;
  int before = threads_of_process();
  CHECK(sched_getaffinity(0, sizeof(set), &set) == -1 && errno == EPERM);
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  CHECK(usable_threads("/nowhere") == (online < 1 ? 1 : online > 256 ? 256 : (int)online));
  relu_ops_settings settings;
  CHECK(relu_ops_get_settings(&settings) == RELU_OPS_OK && settings.threads >= 1);
  use(3, 0, NEVER, 0);
  for (int k = 0; k < 10; ++k) {
    call_large_with(op, NULL);
    pause_for(2);
  }
  CHECK(threads_of_process() == before + 2);
  drop(op);
}

const Test SETTINGS[] = {
    {"affinity_is_refused", affinity_is_refused},
    {"the_default_is_found_when_needed", the_default_is_found_when_needed},
    {"a_wrong_variable", a_wrong_variable},
    {"wrong_settings", wrong_settings},
    {"the_default_is_found_by_several_threads", the_default_is_found_by_several_threads},
    {"quotas_of_version_2", quotas_of_version_2},
    {"quotas_of_version_1", quotas_of_version_1},
    {"a_quota_makes_threads_fewer", a_quota_makes_threads_fewer},
    {"caches", caches},
    {NULL, NULL},
};
