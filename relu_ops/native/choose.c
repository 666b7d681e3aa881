/* Which image of a bundle a machine can run, and the operator that is loaded from it. */
#include <string.h>

#include "bundle.h"
#include "driver.h"
#include "image.h"
#include "run_cuda.h"

/* What a machine is: made up, or this one where `features` is NULL. */
typedef struct {
  const char* architecture;
  const char* const* features;
  size_t count;
} Machine;

static bool has_feature(const Machine* machine, const char* feature) {
  if (!machine->features) return relu_ops_processor_has(feature);
  for (size_t k = 0; k < machine->count; ++k)
    if (strcmp(machine->features[k], feature) == 0) return true;
  return false;
}

/* By ImageMachine: what systems call the processor. */
static const char* const ARCHITECTURES[][2] = {
    [IMAGE_X86_64] = {"x86_64", "AMD64"}, [IMAGE_AARCH64] = {"aarch64", "arm64"}, [IMAGE_CUDA] = {NULL}};

static bool is_of(const Machine* machine, const char* const names[2]) {
  return strcmp(machine->architecture, names[0]) == 0 || strcmp(machine->architecture, names[1]) == 0;
}

/* Whether a machine's CPU can run an image; else `reason` says why not. */
static bool can_run(const Image* image, const Machine* machine, Text* reason) {
  const char* const* names = ARCHITECTURES[relu_ops_image_machine(image)];
  if (!names[0]) return relu_ops_append(reason, "it runs on a GPU (not on the CPU)"), false;
  if (!is_of(machine, names))
    return relu_ops_append(reason, "the processor is %s (not %s)", machine->architecture, names[0]), false;
  size_t missing = 0;
  for (size_t k = 0; k < relu_ops_image_requirement_count(image); ++k) {
    const char* feature = relu_ops_image_requirement(image, k);
    if (has_feature(machine, feature)) continue;
    const char* before = missing++ ? ", " : "the processor or its operating system lacks ";
    relu_ops_append(reason, "%s%s", before, feature);
  }
  return missing == 0;
}

/* Every image and why it cannot run, a line each. */
static void append_images(Text* text, const relu_ops_bundle* bundle, const Machine* machine) {
  for (size_t k = 0; k < bundle->image_count; ++k) {
    Text reason = {.text = ""};
    bool can = can_run(bundle->images[k], machine, &reason);
    relu_ops_append(text, "\n  %s: %s", relu_ops_image_target(bundle->images[k]),
                    can ? "can run" : reason.text);
  }
}

/* The one that requires the most, and so uses the most, of those that can run; of equals the last. */
static relu_ops_status choose(const relu_ops_bundle* bundle, const Machine* machine, const Image** image) {
  *image = NULL;
  for (size_t k = 0; k < bundle->image_count; ++k) {
    const Image* one = bundle->images[k];
    Text reason = {.text = ""};
    if (can_run(one, machine, &reason) &&
        (!*image || relu_ops_image_requirement_count(one) >= relu_ops_image_requirement_count(*image)))
      *image = one;
  }
  if (*image) return RELU_OPS_OK;
  Text images = {.text = ""};
  append_images(&images, bundle, machine);
  relu_ops_fail(RELU_OPS_TARGET, "no variant can run on this machine's CPU:%s", images.text);
  return relu_ops_advise(RELU_OPS_TARGET,
                         "build one for it with relu_ops.build(model, targets=['native'], path=...)");
}

relu_ops_status relu_ops_choose(const relu_ops_bundle* bundle, const char* architecture,
                                const char* const* features, size_t count, const char** target) {
  Machine machine = {architecture ? architecture : relu_ops_architecture(), features, count};
  const Image* image;
  relu_ops_status status = choose(bundle, &machine, &image);
  if (status == RELU_OPS_OK) *target = relu_ops_image_target(image);
  return status;
}

#define OTHERS "name one that can run, or none for the best; or build it for that target too"

/* The image of a target that was asked for. */
static relu_ops_status take(const relu_ops_bundle* bundle, const char* target, const Machine* machine,
                            const Image** image) {
  Text images = {.text = ""}, reason = {.text = ""};
  for (size_t k = 0; k < bundle->image_count; ++k) {
    *image = bundle->images[k];
    if (strcmp(relu_ops_image_target(*image), target) != 0) continue;
    if (can_run(*image, machine, &reason)) return RELU_OPS_OK;
    append_images(&images, bundle, machine);
    relu_ops_fail(RELU_OPS_TARGET, "%s: %s cannot run on this machine: %s; it has:%s", bundle->shown, target,
                  reason.text, images.text);
    return relu_ops_advise(RELU_OPS_TARGET, OTHERS);
  }
  append_images(&images, bundle, machine);
  relu_ops_fail(RELU_OPS_TARGET, "%s: has no variant for %s; it has:%s", bundle->shown, target, images.text);
  return relu_ops_advise(RELU_OPS_TARGET, OTHERS);
}

static void append_operators(Text* text, const relu_ops_bundle* bundle) {
  for (size_t k = 0; k < relu_ops_operator_count(bundle); ++k)
    relu_ops_append(text, "%s%s", k ? ", " : "", relu_ops_operator_name(bundle, k));
}

/* The number of an operator of some name; NULL: of the only one. */
static relu_ops_status find(const relu_ops_bundle* bundle, const char* name, size_t* number) {
  size_t count = relu_ops_operator_count(bundle);
  for (*number = 0; *number < count; ++*number)
    if (name ? strcmp(name, relu_ops_operator_name(bundle, *number)) == 0 : count == 1)
      return RELU_OPS_OK;
  Text operators = {.text = ""};
  append_operators(&operators, bundle);
  if (!name)
    return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: holds %zu operators; name must be one of %s",
                         bundle->shown, count, operators.text);
  return relu_ops_fail(RELU_OPS_ARGUMENT, "%s: has no operator called %s; it has %s", bundle->shown, name,
                       operators.text);
}

/* ---- devices -------------------------------------------------------------------------------------- */

/* How close an image's code is to a device: machine code before PTX, of each the newest; 0: none runs, and
 * `reason` says what there is. Machine code runs on devices of its own major version and at least its minor
 * one; PTX on all that are not older (CUDA C++ Programming Guide, "Binary Compatibility"). */
static int32_t closeness(const Image* image, const Driver* driver, const Gpu* gpu, Text* reason) {
  int32_t best = 0, needed = 0;
  Text codes = {.text = ""};
  for (size_t k = 0; k < relu_ops_image_requirement_count(image); ++k) {
    const char* text = relu_ops_image_requirement(image, k);
    CudaCode code;
    relu_ops_read_cuda_code(text, &code);
    bool fits = code.number <= gpu->capability, is_machine = code.kind == CODE_MACHINE;
    if (is_machine) fits &= code.number / 10 == gpu->capability / 10;
    int32_t close = code.number + (is_machine ? 1000 : 0);
    if (code.kind == CODE_DRIVER) needed = code.number;
    else relu_ops_append(&codes, "%s%s", codes.length ? ", " : "", text);
    if (code.kind != CODE_DRIVER && fits && close > best) best = close;
  }
  if (driver->version < needed)
    return relu_ops_append(reason, "the driver runs CUDA %d.%d; it must run %d.%d", driver->version / 1000,
                           driver->version % 1000 / 10, needed / 1000, needed % 1000 / 10), 0;
  if (!best) relu_ops_append(reason, "its code is for %s (not sm_%d)", codes.text, gpu->capability);
  return best;
}

/* How close an image is to a device; 0: it cannot run there, and `reason` says why not. */
static int32_t closeness_of(const Image* image, const Driver* driver, const Gpu* gpu, Text* reason) {
  if (relu_ops_image_machine(image) != IMAGE_CUDA)
    return relu_ops_append(reason, "it runs on the CPU (not on a GPU)"), 0;
  return closeness(image, driver, gpu, reason);
}

static relu_ops_status refuse_device(const relu_ops_bundle* bundle, const char* target, const Driver* driver,
                                     const Gpu* gpu) {
  Text images = {.text = ""};
  for (size_t k = 0; k < bundle->image_count; ++k) {
    Text reason = {.text = ""};
    int32_t close = closeness_of(bundle->images[k], driver, gpu, &reason);
    relu_ops_append(&images, "\n  %s: %s", relu_ops_image_target(bundle->images[k]),
                    close ? "can run" : reason.text);
  }
  relu_ops_fail(RELU_OPS_TARGET, "%s: %s%s can run on cuda:%d (%s, sm_%d, driver of CUDA %d.%d); it has:%s",
                bundle->shown, target ? "no variant for " : "no variant", target ? target : "",
                gpu->number, gpu->name, gpu->capability, driver->version / 1000,
                driver->version % 1000 / 10, images.text);
  return relu_ops_advise(RELU_OPS_TARGET, "build it with the target cuda, or cuda-sm_%d for this device alone",
                         gpu->capability);
}

/* The image with the closest code, of all or of those of a target; of equals the last. */
static relu_ops_status choose_for_cuda(const relu_ops_bundle* bundle, const char* target, int32_t number,
                                       const Image** image) {
  const Driver* driver;
  Gpu gpu;
  int32_t closest = 0;
  relu_ops_status status = relu_ops_find_driver(&driver);
  if (!status) status = relu_ops_find_gpu(driver, number, &gpu);
  if (status) return status;
  for (size_t k = 0; k < bundle->image_count; ++k) {
    Text reason = {.text = ""};
    const Image* one = bundle->images[k];
    if (target && strcmp(relu_ops_image_target(one), target) != 0) continue;
    int32_t close = closeness_of(one, driver, &gpu, &reason);
    if (close && close >= closest) closest = close, *image = one;
  }
  return closest ? RELU_OPS_OK : refuse_device(bundle, target, driver, &gpu);
}

static relu_ops_status load_for_cuda(const relu_ops_bundle* bundle, const char* name, const char* target,
                                     int32_t device, relu_ops_operator** op) {
  size_t number;
  const Image* image;
  relu_ops_operator* made;
  relu_ops_status status = find(bundle, name, &number);
  if (!status) status = choose_for_cuda(bundle, target, device, &image);
  if (!status) status = relu_ops_map_operator(image, number, &made);
  if (status) return status;
  status = relu_ops_prepare_device(made, device);
  if (status) relu_ops_release(made);
  else *op = made;
  return status;
}

relu_ops_status relu_ops_load_on(const relu_ops_bundle* bundle, const char* name, const char* target,
                                 DLDevice device, relu_ops_operator** op) {
  if (device.device_type == kDLCUDA)
    return load_for_cuda(bundle, name, target, device.device_id, op);
  if (device.device_type == kDLCPU) return relu_ops_load(bundle, name, target, op);
  return relu_ops_fail(RELU_OPS_ARGUMENT, "device must be the CPU's or a CUDA device (not of DLPack's type %d)",
                       (int)device.device_type);
}

/* ---- the CPU -------------------------------------------------------------------------------------- */

relu_ops_status relu_ops_load(const relu_ops_bundle* bundle, const char* name, const char* target,
                              relu_ops_operator** op) {
  size_t number;
  relu_ops_status status = find(bundle, name, &number);
  if (status != RELU_OPS_OK) return status;
  Machine machine = {.architecture = relu_ops_architecture()};
  const Image* image;
  status = target ? take(bundle, target, &machine, &image) : choose(bundle, &machine, &image);
  return status != RELU_OPS_OK ? status : relu_ops_map_operator(image, number, op);
}
