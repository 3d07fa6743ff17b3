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
constexpr size_t kAlignment = 64;
constexpr size_t kSlack = 128; // XNNPACK may read (never write) this far past the end of a tensor

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

using Memory = std::unique_ptr<void, FreeDeleter>;

Memory allocate(size_t size) {
  void* memory = nullptr;
  return Memory(posix_memalign(&memory, kAlignment, size + kSlack) == 0 ? memory : nullptr);
}

struct Buffer {
  Memory memory;
  size_t bytes = 0;
};

struct Loaded {
  // Members are destroyed in reverse order: the module before the bytes that it reads.
  Memory program;
  std::unique_ptr<Module> module;
  std::vector<Buffer> inputs;
  std::vector<Buffer> outputs;
  std::vector<TensorPtr> tensors; // over the inputs' buffers
  std::vector<EValue> values; // of the tensors
};

struct Tensor {
  int32_t dtype; // of ExecuTorch's ScalarType; 6 is float32
  int32_t rank;
  int64_t sizes[kMaxRank];
};

Error open(Loaded& loaded, const void* data, size_t size) {
  loaded.program = allocate(size);
  if (!loaded.program) {
    return Error::MemoryAllocationFailed;
  }
  memcpy(loaded.program.get(), data, size);
  loaded.module = std::make_unique<Module>(std::make_unique<BufferDataLoader>(loaded.program.get(), size));
  ET_CHECK_OK_OR_RETURN_ERROR(loaded.module->load(Program::Verification::InternalConsistency));
  ET_CHECK_OK_OR_RETURN_ERROR(loaded.module->load_forward());
  auto meta = ET_UNWRAP(loaded.module->method_meta("forward"));
  for (size_t i = 0; i < meta.num_inputs(); i++) {
    auto info = ET_UNWRAP(meta.input_tensor_meta(i)); // an error if the input is no tensor
    loaded.inputs.push_back({allocate(info.nbytes()), info.nbytes()});
    std::vector<executorch::aten::SizesType> sizes(info.sizes().begin(), info.sizes().end());
    loaded.tensors.push_back(make_tensor_ptr(sizes, loaded.inputs.back().memory.get(), info.scalar_type()));
    loaded.values.emplace_back(loaded.tensors.back());
  }
  for (size_t i = 0; i < meta.num_outputs(); i++) {
    auto info = ET_UNWRAP(meta.output_tensor_meta(i));
    loaded.outputs.push_back({allocate(info.nbytes()), info.nbytes()});
  }
  for (const auto* buffers : {&loaded.inputs, &loaded.outputs}) {
    for (const Buffer& buffer : *buffers) {
      if (!buffer.memory) {
        return Error::MemoryAllocationFailed;
      }
    }
  }
  return Error::Ok;
}

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
  Error result = open(*loaded, data, size);
  *error = static_cast<uint32_t>(result);
  return result == Error::Ok ? loaded.release() : nullptr;
}

void armlet_et_free(Loaded* loaded) {
  NoThreadPoolGuard guard;
  delete loaded;
}

size_t armlet_et_count(const Loaded* loaded, bool output) {
  return output ? loaded->outputs.size() : loaded->inputs.size();
}

// Where an input is read from, or an output is written to, as long as the program is loaded.
void* armlet_et_buffer(const Loaded* loaded, bool output, size_t index) {
  return (output ? loaded->outputs : loaded->inputs)[index].memory.get();
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

// Runs once, from the inputs' buffers into the outputs'. Returns ExecuTorch's error code, 0 for success.
uint32_t armlet_et_run(Loaded* loaded) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard;
  auto results = loaded->module->forward(loaded->values);
  if (!results.ok()) {
    return static_cast<uint32_t>(results.error());
  }
  for (size_t i = 0; i < loaded->outputs.size(); i++) {
    const Buffer& buffer = loaded->outputs[i];
    if (i >= results->size() || !results->at(i).isTensor() || results->at(i).toTensor().nbytes() != buffer.bytes) {
      snprintf(last_message, sizeof(last_message), "output %zu is not of the size that the program describes", i);
      return static_cast<uint32_t>(Error::InvalidState);
    }
    memcpy(buffer.memory.get(), results->at(i).toTensor().const_data_ptr(), buffer.bytes);
  }
  return 0;
}

} // extern "C"
