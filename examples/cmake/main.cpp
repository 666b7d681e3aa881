// Scales rows, adds a bias and rectifies, by an operator of a bundle: rows BUNDLE DIGEST.
//
// What the C interface gives is held by unique_ptr; its errors become exceptions.
#include <relu_ops.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(relu_ops_status status) {
  if (status == RELU_OPS_OK) return;
  const char* hint = relu_ops_hint();
  throw std::runtime_error(std::string(relu_ops_message()) + (hint ? std::string("; ") + hint : ""));
}

using Bundle = std::unique_ptr<relu_ops_bundle, decltype(&relu_ops_close)>;
using Operator = std::unique_ptr<relu_ops_operator, decltype(&relu_ops_release)>;

Bundle open(const char* path, const char* digest) {
  relu_ops_bundle* bundle = nullptr;
  check(relu_ops_open(path, digest, &bundle));
  return Bundle(bundle, relu_ops_close);
}

Operator load(const Bundle& bundle, const char* name = nullptr) {
  relu_ops_operator* op = nullptr;
  check(relu_ops_load(bundle.get(), name, nullptr, &op));
  return Operator(op, relu_ops_release);
}

// An array of float32 that knows its shape.
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> data;

  explicit Array(std::vector<std::int64_t> extents, float value = 0) : shape(std::move(extents)) {
    std::int64_t count = 1;
    for (auto extent : shape) count *= extent;
    data.assign(static_cast<std::size_t>(count), value);
  }

  DLTensor tensor() {
    DLTensor view = {};
    view.data = data.data();
    view.device = {kDLCPU, 0};
    view.ndim = static_cast<std::int32_t>(shape.size());
    view.dtype = {kDLFloat, 32, 1};
    view.shape = shape.data();
    return view;
  }
};

void run(const char* path, const char* digest) {
  const Operator op = load(open(path, digest));
  Array x({2, 4}), scale({4}, 2), bias({4}, 1), y({2, 4});
  for (std::size_t k = 0; k < x.data.size(); ++k) x.data[k] = static_cast<float>(k) - 4;
  const DLTensor inputs[] = {x.tensor(), scale.tensor(), bias.tensor()};
  const DLTensor output = y.tensor();
  check(relu_ops_call(op.get(), inputs, &output, nullptr));
  for (std::size_t k = 0; k < y.data.size(); ++k)
    std::printf(k % 4 == 3 ? "%g\n" : "%g ", static_cast<double>(y.data[k]));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s BUNDLE DIGEST\n", argv[0]);
    return 2;
  }
  try {
    check(relu_ops_require(RELU_OPS_API));
    run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
