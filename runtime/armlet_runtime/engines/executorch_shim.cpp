// A C interface over ExecuTorch's Module, for ctypes: load a .pte from memory, run it, free it. Single-threaded.
//
// Built on first use against the headers of the installed executorch wheel, and bound to exactly that version (see
// executorch.py): the interface below Module is C++ and changes between versions.

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/platform/platform.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

using executorch::aten::ScalarType;
using executorch::extension::BufferDataLoader;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::extension::threadpool::NoThreadPoolGuard;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::PalImpl;
using executorch::runtime::Program;
using executorch::runtime::Tag;

namespace {

constexpr int kMaxRank = 16;
constexpr size_t kProgramAlignment = 64;

// ExecuTorch says why it failed only in its log; the last line of an error goes to the caller, nothing to the console.
thread_local char last_message[512];

void keep_error(
    et_timestamp_t,
    et_pal_log_level_t level,
    const char*,
    const char*,
    size_t,
    const char* message,
    size_t length) {
  if (level != kError && level != kFatal) {
    return;
  }
  snprintf(last_message, sizeof(last_message), "%.*s", static_cast<int>(length), message);
}

struct FreeDeleter {
  void operator()(void* memory) const {
    free(memory);
  }
};

struct Loaded {
  // Members are destroyed in reverse order: the module before the bytes that it reads.
  std::unique_ptr<void, FreeDeleter> program;
  std::unique_ptr<Module> module;
  std::vector<TensorPtr> inputs;
  std::vector<std::vector<int32_t>> input_sizes;
  size_t outputs = 0;
};

struct Tensor {
  int32_t dtype; // of ExecuTorch's ScalarType; 6 is float32
  int32_t rank;
  int64_t sizes[kMaxRank];
};

} // namespace

extern "C" {

// Call once before anything else.
void armlet_et_init() {
  executorch::runtime::register_pal(PalImpl::create(keep_error, __FILE__));
}

// The last error line of this thread; valid until its next call.
const char* armlet_et_message() {
  return last_message;
}

// Loads the method "forward" of a program that lies in memory (copied). Returns null on failure, with *error set to
// ExecuTorch's error code.
Loaded* armlet_et_load(const void* data, size_t size, uint32_t* error) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard; // also decides that the delegate runs without a thread pool for as long as it lives
  auto loaded = std::make_unique<Loaded>();
  void* copy = nullptr;
  if (posix_memalign(&copy, kProgramAlignment, size) != 0) {
    *error = static_cast<uint32_t>(Error::MemoryAllocationFailed);
    return nullptr;
  }
  loaded->program.reset(copy);
  memcpy(copy, data, size);
  loaded->module = std::make_unique<Module>(std::make_unique<BufferDataLoader>(copy, size));
  Error result = loaded->module->load(Program::Verification::InternalConsistency);
  if (result == Error::Ok) {
    result = loaded->module->load_forward();
  }
  if (result != Error::Ok) {
    *error = static_cast<uint32_t>(result);
    return nullptr;
  }
  auto meta = loaded->module->method_meta("forward");
  if (!meta.ok()) {
    *error = static_cast<uint32_t>(meta.error());
    return nullptr;
  }
  for (size_t i = 0; i < meta->num_inputs(); i++) {
    auto info = meta->input_tensor_meta(i); // an error if the input is no tensor
    if (!info.ok()) {
      *error = static_cast<uint32_t>(info.error());
      return nullptr;
    }
    auto sizes = info->sizes();
    loaded->input_sizes.emplace_back(sizes.begin(), sizes.end());
    loaded->inputs.push_back(nullptr);
  }
  loaded->outputs = meta->num_outputs();
  return loaded.release();
}

void armlet_et_free(Loaded* loaded) {
  NoThreadPoolGuard guard;
  delete loaded;
}

size_t armlet_et_count(const Loaded* loaded, bool output) {
  return output ? loaded->outputs : loaded->inputs.size();
}

// Describes an input or output. Returns ExecuTorch's error code, 0 for success.
uint32_t armlet_et_describe(Loaded* loaded, bool output, size_t index, Tensor* tensor) {
  last_message[0] = '\0';
  auto meta = loaded->module->method_meta("forward");
  if (!meta.ok()) {
    return static_cast<uint32_t>(meta.error());
  }
  auto info = output ? meta->output_tensor_meta(index) : meta->input_tensor_meta(index);
  if (!info.ok()) {
    return static_cast<uint32_t>(info.error());
  }
  auto sizes = info->sizes();
  if (sizes.size() > kMaxRank) {
    return static_cast<uint32_t>(Error::NotSupported);
  }
  tensor->dtype = static_cast<int32_t>(info->scalar_type());
  tensor->rank = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); i++) {
    tensor->sizes[i] = sizes[i];
  }
  return 0;
}

// Runs once. Inputs and outputs: contiguous float32 arrays in the program's order, of the described sizes; output_bytes:
// room in each output, which its tensor must fill exactly. Returns ExecuTorch's error code, 0 for success.
uint32_t armlet_et_run(Loaded* loaded, float* const* inputs, float* const* outputs, const size_t* output_bytes) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard;
  std::vector<EValue> values;
  values.reserve(loaded->inputs.size());
  for (size_t i = 0; i < loaded->inputs.size(); i++) {
    loaded->inputs[i] = make_tensor_ptr(loaded->input_sizes[i], inputs[i], ScalarType::Float);
    values.emplace_back(loaded->inputs[i]);
  }
  auto results = loaded->module->forward(values);
  if (!results.ok()) {
    return static_cast<uint32_t>(results.error());
  }
  for (size_t i = 0; i < results->size(); i++) {
    const EValue& value = results->at(i);
    if (!value.isTensor() || value.toTensor().nbytes() != output_bytes[i]) {
      snprintf(last_message, sizeof(last_message), "output %zu is not of the size that the program describes", i);
      return static_cast<uint32_t>(Error::InvalidState);
    }
    memcpy(outputs[i], value.toTensor().const_data_ptr<float>(), output_bytes[i]);
  }
  return 0;
}

} // extern "C"
