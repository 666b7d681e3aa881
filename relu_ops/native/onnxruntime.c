/* The operators of bundles as custom operators of onnxruntime: `RegisterCustomOps`, which a session calls
 * when it is given this library.
 *
 * Which bundles, the session's configuration says: its entry `relu_ops.bundles` has one a line, `path` or
 * `path#digest`. An operator is called NAME_PREFIX, where PREFIX are the first digits of its bundle's
 * digest, so that no two bundles meet. It runs on the session's own threads.
 *
 * What a session was given is never freed: nobody says when the last session that uses it is gone. It is
 * kept once a bundle and host, however many sessions there are. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "onnxruntime.h"

#define DOMAIN "relu_ops"
#define ENTRY "relu_ops.bundles"
#define PREFIX_DIGITS 12

/* ---- hosts --------------------------------------------------------------------------------------- */

/* The version of OrtApi of "1.23.2" is 23; 0 for what is no such text. */
static uint32_t version_of(const char* text) {
  unsigned major, minor;
  return sscanf(text, "%u.%u", &major, &minor) == 2 && major == 1 ? minor : 0;
}

/* Asking for a version that a host has not makes it print an error. */
static OrtStatus* make_host(const OrtApiBase* base, Host* host) {
  uint32_t version = version_of(base->get_version());
  if (version < ORT_OLDEST) {
    char text[128];
    snprintf(text, sizeof(text), DOMAIN ": needs onnxruntime 1.%d or newer (this is %s)", ORT_OLDEST,
             base->get_version());
    OrtStatus* (*create_status)(int, const char*) = (OrtStatus * (*)(int, const char*)) base->get_api(1)[0];
    return create_status(ORT_FAIL, text);
  }
  const OrtFunction* api = base->get_api(version);
  if (!api) api = base->get_api(version = ORT_OLDEST); /* a build that calls itself something else */
#define ORT_READ(place, name, result, parameters) \
  if (place < 300 || version >= ORT_SHAPE_REFERENCES_FROM) host->name = (result(*) parameters)api[place];
  ORT_FUNCTIONS(ORT_READ)
#undef ORT_READ
  host->version = version;
  return NULL;
}

/* ---- what sessions were given --------------------------------------------------------------------- */

/* The operators of a bundle for the onnxruntime of an address: there may be several in a process. */
typedef struct Hosted Hosted;
struct Hosted {
  const OrtApiBase* base;
  Digest digest;
  Host host;
  size_t count;
  HostedOperator* operators;
  Hosted* next;
};

static Hosted* all_hosted; /* under `lock` */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static relu_ops_status make_operator(const Hosted* made, const relu_ops_bundle* bundle, const char* name,
                                     int32_t threads, HostedOperator* h) {
  relu_ops_operator* op;
  size_t size = strlen(name) + 1 + PREFIX_DIGITS + 1;
  relu_ops_status status = relu_ops_load(bundle, name, NULL, &op);
  if (status) return status;
  h->op = op;
  h->name = malloc(size);
  if (!h->name) return relu_ops_fail(RELU_OPS_MEMORY, "%s: there is no memory for an operator", name);
  snprintf(h->name, size, "%s_%.*s", name, PREFIX_DIGITS, made->digest.hex);
  return relu_ops_host_operator(h, &made->host, op, threads);
}

static void drop_hosted(Hosted* made) {
  for (size_t k = 0; k < made->count; ++k) {
    relu_ops_release((relu_ops_operator*)made->operators[k].op);
    free(made->operators[k].name);
  }
  free(made->operators);
  free(made);
}

static relu_ops_status make_operators(Hosted* made, const relu_ops_bundle* bundle) {
  relu_ops_settings settings;
  relu_ops_status status = relu_ops_get_settings(&settings);
  made->count = relu_ops_operator_count(bundle);
  made->operators = calloc(made->count, sizeof(*made->operators));
  if (!made->operators) made->count = 0;
  if (!made->count) return relu_ops_fail(RELU_OPS_MEMORY, "there is no memory for a bundle's operators");
  for (size_t k = 0; !status && k < made->count; ++k)
    status = make_operator(made, bundle, relu_ops_operator_name(bundle, k), settings.threads,
                           &made->operators[k]);
  return status;
}

static Hosted* find_hosted(const OrtApiBase* base, const char* digest) {
  for (Hosted* h = all_hosted; h; h = h->next)
    if (h->base == base && strcmp(h->digest.hex, digest) == 0) return h;
  return NULL;
}

/* The operators of a bundle: those of an earlier session, or new ones. */
static OrtStatus* host_bundle(const OrtApiBase* base, const Host* host, const relu_ops_bundle* bundle,
                              const Hosted** hosted_) {
  const char* digest = relu_ops_digest(bundle);
  if ((*hosted_ = find_hosted(base, digest))) return NULL;
  Hosted* made = calloc(1, sizeof(*made));
  if (!made) {
    relu_ops_fail(RELU_OPS_MEMORY, "there is no memory for a bundle's operators");
    return relu_ops_refuse_host(host, RELU_OPS_MEMORY);
  }
  made->base = base;
  made->host = *host;
  snprintf(made->digest.hex, sizeof(made->digest.hex), "%s", digest);
  relu_ops_status status = make_operators(made, bundle);
  if (status) {
    drop_hosted(made);
    return relu_ops_refuse_host(host, status);
  }
  made->next = all_hosted;
  all_hosted = made;
  *hosted_ = made;
  return NULL;
}

/* ---- registering --------------------------------------------------------------------------------- */

static bool is_digest(const char* text) {
  return strlen(text) == 64 && strspn(text, "0123456789abcdefABCDEF") == 64;
}

/* Open `path` or `path#digest`; what follows another # is part of the path. */
static relu_ops_status open_line(char* line, relu_ops_bundle** bundle) {
  char* hash = strrchr(line, '#');
  const char* digest = hash && is_digest(hash + 1) ? hash + 1 : NULL;
  if (digest) *hash = '\0';
  return relu_ops_open(line, digest, bundle);
}

/* What a session is given: no bundle twice. */
#define MOST_BUNDLES 256
typedef struct {
  size_t count;
  const Hosted* hosted[MOST_BUNDLES];
} Given;

static OrtStatus* add_line(const OrtApiBase* base, const Host* host, char* line, Given* given) {
  if (given->count == MOST_BUNDLES) {
    relu_ops_fail(RELU_OPS_ARGUMENT, ENTRY " names more than %d bundles", MOST_BUNDLES);
    return relu_ops_refuse_host(host, RELU_OPS_ARGUMENT);
  }
  relu_ops_bundle* bundle;
  relu_ops_status failed = open_line(line, &bundle);
  if (failed) return relu_ops_refuse_host(host, failed);
  const Hosted* h;
  OrtStatus* status = host_bundle(base, host, bundle, &h);
  relu_ops_close(bundle);
  if (status) return status;
  for (size_t k = 0; k < given->count; ++k)
    if (given->hosted[k] == h) return NULL;
  given->hosted[given->count++] = h;
  return NULL;
}

static OrtStatus* add_lines(const OrtApiBase* base, const Host* host, char* lines, Given* given) {
  char* rest = NULL;
  OrtStatus* status = NULL;
  for (char* line = strtok_r(lines, "\n", &rest); !status && line; line = strtok_r(NULL, "\n", &rest))
    status = add_line(base, host, line, given);
  if (status || given->count) return status;
  relu_ops_fail(RELU_OPS_ARGUMENT, ENTRY " names no bundle");
  relu_ops_advise(RELU_OPS_ARGUMENT, "give it the path of one a line, or path#digest");
  return relu_ops_refuse_host(host, RELU_OPS_ARGUMENT);
}

/* The value of the entry, to be freed; or a status. */
static OrtStatus* read_entry(const Host* host, const OrtSessionOptions* options, char** value) {
  int has = 0;
  size_t size = 0;
  OrtStatus* status = host->has_entry(options, ENTRY, &has);
  if (status) return status;
  if (!has) {
    relu_ops_fail(RELU_OPS_ARGUMENT, "the session's configuration has no entry " ENTRY
                                     ", which names the bundles to open");
    relu_ops_advise(RELU_OPS_ARGUMENT,
                    "add it before this library is registered: what is added later is not seen");
    return relu_ops_refuse_host(host, RELU_OPS_ARGUMENT);
  }
  status = host->get_entry(options, ENTRY, NULL, &size);
  if (status) return status;
  *value = malloc(size + 1);
  if (!*value) {
    relu_ops_fail(RELU_OPS_MEMORY, "there is no memory for the value of " ENTRY);
    return relu_ops_refuse_host(host, RELU_OPS_MEMORY);
  }
  (*value)[size] = '\0';
  status = host->get_entry(options, ENTRY, *value, &size);
  if (status) free(*value);
  return status;
}

/* A domain of the host's, with the operators that some session was given. */
typedef struct Domain Domain;
struct Domain {
  OrtCustomOpDomain* domain;
  Given given;
  Domain* next;
};

static Domain* all_domains; /* under `lock` */

static Domain* find_domain(const Given* given) {
  for (Domain* d = all_domains; d; d = d->next)
    if (d->given.count == given->count &&
        memcmp(d->given.hosted, given->hosted, given->count * sizeof(*given->hosted)) == 0)
      return d;
  return NULL;
}

static OrtStatus* add_operators(const Host* host, OrtCustomOpDomain* domain, const Hosted* h) {
  OrtStatus* status = NULL;
  for (size_t k = 0; !status && k < h->count; ++k)
    status = host->add_to_domain(domain, &h->operators[k].face);
  return status;
}

static OrtStatus* fill_domain(const Host* host, Domain* made) {
  OrtStatus* status = host->create_domain(DOMAIN, &made->domain);
  if (status) return status;
  for (size_t k = 0; !status && k < made->given.count; ++k)
    status = add_operators(host, made->domain, made->given.hosted[k]);
  if (status) host->release_domain(made->domain);
  return status;
}

/* The domain of an earlier session that was given the same, or a new one. */
static OrtStatus* domain_of(const Host* host, const Given* given, OrtCustomOpDomain** domain) {
  Domain* d = find_domain(given);
  if (!d) {
    d = malloc(sizeof(*d));
    if (!d) {
      relu_ops_fail(RELU_OPS_MEMORY, "there is no memory for a session's operators");
      return relu_ops_refuse_host(host, RELU_OPS_MEMORY);
    }
    d->given = *given;
    OrtStatus* status = fill_domain(host, d);
    if (status) return free(d), status;
    d->next = all_domains;
    all_domains = d;
  }
  *domain = d->domain;
  return NULL;
}

static OrtStatus* register_bundles(const OrtApiBase* base, const Host* host, OrtSessionOptions* options) {
  char* lines;
  OrtStatus* status = read_entry(host, options, &lines);
  if (status) return status;
  Given given = {.count = 0};
  OrtCustomOpDomain* domain = NULL;
  pthread_mutex_lock(&lock);
  status = add_lines(base, host, lines, &given);
  if (!status) status = domain_of(host, &given, &domain);
  pthread_mutex_unlock(&lock);
  free(lines);
  return status ? status : host->add_domain(options, domain);
}

/* What onnxruntime calls when a session is given this library. */
RELU_OPS_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  Host host = {0};
  OrtStatus* status = make_host(base, &host);
  return status ? status : register_bundles(base, &host, options);
}
