/* torch's own threads, for calls on its tensors.
 *
 * Between two operators of torch the workers of its OpenMP runtime spin for milliseconds, on the processors
 * that workers of ours would want. So calls on its tensors are divided among those very workers, by the
 * functions of the runtime that torch itself is bound to. How many there are, torch says, as
 * torch.set_num_threads and OMP_NUM_THREADS have it.
 *
 * A child that was forked has none of them and would wait for them forever, as torch's own operators do
 * there: it has our pool, which starts threads of its own.
 */
#define _GNU_SOURCE
#include "python.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* Of an output: torch's own operators compute fewer alone (at::internal::GRAIN_SIZE). */
#define FEWEST_ELEMENTS 32768

typedef void (*Parallel)(void (*)(void*), void*, unsigned threads, unsigned flags);

/* What is called of torch and of its runtime; nothing, where torch has another one. */
static struct {
  Parallel parallel;       /* GOMP_parallel */
  int (*number)(void);     /* omp_get_thread_num */
  int (*count)(void);      /* omp_get_num_threads */
  int (*most)(void);       /* at::get_num_threads */
  bool (*is_inside)(void); /* at::in_parallel_region */
} openmp;

/* ---- forks --------------------------------------------------------------------------------------- */

static atomic_bool forked;

static void remember_fork(void) { atomic_store(&forked, true); }

int relu_ops_watch_forks(void) { return pthread_atfork(NULL, NULL, remember_fork); }

/* Whether this process is a fork that has executed nothing since, as the system says (PF_FORKNOEXEC); or
 * the system does not say. */
static bool is_fork(void) {
  char text[512];
  FILE* file = fopen("/proc/self/stat", "re");
  if (!file) return true;
  size_t length = fread(text, 1, sizeof(text) - 1, file);
  fclose(file);
  text[length] = 0;
  const char* rest = strrchr(text, ')'); /* the name may hold anything */
  unsigned flags;
  return !rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1 || (flags & 0x40);
}

/* ---- meeting torch ------------------------------------------------------------------------------- */

/* Whether torch was built to use OpenMP. */
static bool uses_openmp(PyObject* module) {
  PyObject* config = PyObject_GetAttrString(module, "__config__");
  PyObject* info = config ? PyObject_CallMethod(config, "parallel_info", NULL) : NULL;
  const char* text = info && PyUnicode_Check(info) ? PyUnicode_AsUTF8(info) : NULL;
  bool uses = text && strstr(text, "ATen parallel backend: OpenMP");
  Py_XDECREF(info);
  Py_XDECREF(config);
  PyErr_Clear();
  return uses;
}

uintptr_t relu_ops_torch_function(const char* name) {
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return 0;
  void* global = dlsym(RTLD_DEFAULT, name); /* where the loader looked first for torch, too */
  void* found = global ? global : dlsym(library, name);
  dlclose(library);
  return (uintptr_t)found;
}

void relu_ops_meet_torch_threads(PyObject* module) {
  if (!uses_openmp(module)) return;
  openmp.number = (int (*)(void))relu_ops_torch_function("omp_get_thread_num");
  openmp.count = (int (*)(void))relu_ops_torch_function("omp_get_num_threads");
  openmp.most = (int (*)(void))relu_ops_torch_function("_ZN2at15get_num_threadsEv");
  openmp.is_inside = (bool (*)(void))relu_ops_torch_function("_ZN2at18in_parallel_regionEv");
  if (openmp.number && openmp.count && openmp.most && openmp.is_inside)
    openmp.parallel = (Parallel)relu_ops_torch_function("GOMP_parallel");
  if (is_fork()) remember_fork();
}

/* ---- calls --------------------------------------------------------------------------------------- */

/* A job of a team. Each thread has a share, chunks that follow each other. */
typedef struct {
  relu_ops_task task;
  void* argument;
  int64_t chunks;
  int most;          /* threads that may take part */
  atomic_int* begun; /* of each share, chunks beyond its first */
} Job;

/* Compute what nobody has begun of a share, but for its first chunk, which is its owner's. */
static void work_on(Job* job, int64_t share, int64_t count) {
  int64_t first = share * job->chunks / count, end = (share + 1) * job->chunks / count;
  if (end - first < 2) return;
  while (first + 1 + atomic_load_explicit(&job->begun[share], memory_order_relaxed) < end) {
    int64_t chunk = first + 1 + atomic_fetch_add(&job->begun[share], 1);
    if (chunk < end) job->task(job->argument, chunk, job->chunks);
  }
}

/* What each thread of a team does: the share of its number, which are the elements that torch gives to it,
 * so that the next operator's thread of that number, ours or torch's, has them in its cache; then others'. */
static void take_part(void* given) {
  Job* job = given;
  int64_t count = openmp.count() < job->most ? openmp.count() : job->most, own = openmp.number();
  if (count > job->chunks) count = job->chunks;
  if (own >= count) return;
  job->task(job->argument, own * job->chunks / count, job->chunks);
  for (int64_t turn = 0; turn < count; ++turn) work_on(job, (own + turn) % count, count);
}

/* A team of another size than the last one would be made anew (see ATen/ParallelOpenMP.h): none is asked
 * for, and threads that are too many do nothing. */
static void run(void* given, relu_ops_task task, void* argument, int64_t chunks) {
  int most = (int)(intptr_t)given;
  atomic_int begun[most];
  for (int k = 0; k < most; ++k) atomic_init(&begun[k], 0);
  Job job = {.task = task, .argument = argument, .chunks = chunks, .most = most, .begun = begun};
  openmp.parallel(take_part, &job, 0, 0);
}

/* How many threads a call may use: as few as torch, relu_ops and the call itself allow. */
static int most_threads(int64_t elements, int given) {
  relu_ops_settings settings;
  if (elements < FEWEST_ELEMENTS || openmp.is_inside()) return 1;
  int most = openmp.most();
  if (!relu_ops_get_settings(&settings) && settings.threads < most) most = settings.threads;
  if (given && given < most) most = given;
  return most < 1 ? 1 : most;
}

void relu_ops_use_torch_threads(relu_ops_options* options, relu_ops_host_threads* host, int64_t elements) {
  if (!openmp.parallel) return;
  int most = most_threads(elements, options->threads);
  if (atomic_load_explicit(&forked, memory_order_relaxed)) {
    options->threads = most;
    return;
  }
  *host = (relu_ops_host_threads){run, (void*)(intptr_t)most, most};
  options->threads = 0;
  options->host = host;
}
