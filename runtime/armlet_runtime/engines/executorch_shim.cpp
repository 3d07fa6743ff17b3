// A C interface over ExecuTorch's Module, for ctypes: load a .pte, run it, free it. Calls on one program, and calls of
// armlet_et_init and armlet_et_share_workspace, must not overlap; different programs may run at the same time.
//
// Built against the headers of the installed executorch wheel, and bound to exactly that version (see executorch.py):
// the interface below Module is C++ and changes between versions.

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/platform.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using executorch::extension::BufferDataLoader;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::extension::threadpool::NoThreadPoolGuard;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Method;
using executorch::runtime::PalImpl;
using executorch::runtime::Program;

namespace {

constexpr int kMaxRank = 16;
constexpr size_t kAlignment = 64;
constexpr size_t kProgramAlignment = 16; // what a Program demands of the memory that it lies in
constexpr size_t kSlack = 128; // XNNPACK may read (never write) this far past the end of a tensor (XNN_EXTRA_BYTES)
constexpr uintptr_t kPage = 4096; // the smallest page of the supported machines
constexpr int kShareAmongAll = 2; // XNNPACK's WorkspaceSharingMode::Global (backends/xnnpack/runtime/XNNPACKBackend.h)

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

struct Input {
  TensorPtr tensor;
  EValue value; // of the tensor
  size_t bytes;
  Memory copy; // made when it is first needed, see readable_past_end
};

struct Output {
  size_t bytes;
  bool planned; // lies in the program's own memory, from where it must be copied
};

struct Loaded {
  // Members are destroyed in reverse order: the module before the bytes that it reads.
  Memory program;
  std::unique_ptr<Module> module;
  Method* method = nullptr;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
};

struct Tensor {
  int32_t dtype; // of ExecuTorch's ScalarType; 6 is float32
  int32_t rank;
  int64_t sizes[kMaxRank];
};

Error prepare(Loaded& loaded) {
  ET_CHECK_OK_OR_RETURN_ERROR(loaded.module->load(Program::Verification::InternalConsistency));
  ET_CHECK_OK_OR_RETURN_ERROR(loaded.module->load_forward());
  loaded.method = ET_UNWRAP(loaded.module->method("forward"));
  auto meta = loaded.method->method_meta();
  for (size_t i = 0; i < meta.num_inputs(); i++) {
    auto info = ET_UNWRAP(meta.input_tensor_meta(i)); // an error if the input is no tensor
    std::vector<executorch::aten::SizesType> sizes(info.sizes().begin(), info.sizes().end());
    TensorPtr tensor = make_tensor_ptr(sizes, nullptr, info.scalar_type());
    loaded.inputs.push_back({tensor, EValue(tensor), info.nbytes(), nullptr});
  }
  for (size_t i = 0; i < meta.num_outputs(); i++) {
    auto info = ET_UNWRAP(meta.output_tensor_meta(i));
    loaded.outputs.push_back({info.nbytes(), info.is_memory_planned()});
  }
  return Error::Ok;
}

Loaded* finish(std::unique_ptr<Loaded> loaded, uint32_t* error) {
  Error result = loaded->module ? prepare(*loaded) : Error::MemoryAllocationFailed;
  *error = static_cast<uint32_t>(result);
  return result == Error::Ok ? loaded.release() : nullptr;
}

// Whether what XNNPACK may read past the end of a tensor is sure to be mapped: it is on the tensor's own last page.
bool readable_past_end(const void* data, size_t bytes) {
  uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
  return (end - 1) / kPage == (end + kSlack - 1) / kPage;
}

} // namespace

extern "C" {

// Call once before anything else.
void armlet_et_init() {
  executorch::runtime::register_pal(PalImpl::create(keep_error, __FILE__));
}

// Lets all programs that XNNPACK loads from now on share the memory of their intermediate values. They then take turns.
// Returns ExecuTorch's error code, 0 for success.
uint32_t armlet_et_share_workspace() {
  BackendOptions<1> options;
  options.set_option("workspace_sharing_mode", kShareAmongAll);
  return static_cast<uint32_t>(executorch::runtime::set_option("XnnpackBackend", options.view()));
}

// The last error line of this thread; valid until its next call.
const char* armlet_et_message() {
  return last_message;
}

// Loads the method "forward" of a program that lies in memory, and is read there for as long as it is loaded: it is
// copied only if it does not lie at a multiple of 16 bytes. Returns null on failure, with *error set to ExecuTorch's
// error code.
Loaded* armlet_et_load(const void* data, size_t size, uint32_t* error) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard; // also decides that the delegate runs without a thread pool for as long as it lives
  auto loaded = std::make_unique<Loaded>();
  if (reinterpret_cast<uintptr_t>(data) % kProgramAlignment != 0) {
    loaded->program = allocate(size);
    if (loaded->program) {
      memcpy(loaded->program.get(), data, size);
    }
    data = loaded->program.get();
  }
  if (data) {
    loaded->module = std::make_unique<Module>(std::make_unique<BufferDataLoader>(data, size));
  }
  return finish(std::move(loaded), error);
}

// The same for a file, which is mapped into memory and so read only where it is needed.
Loaded* armlet_et_load_file(const char* path, uint32_t* error) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard;
  auto loaded = std::make_unique<Loaded>();
  loaded->module = std::make_unique<Module>(std::string(path), Module::LoadMode::Mmap);
  return finish(std::move(loaded), error);
}

void armlet_et_free(Loaded* loaded) {
  NoThreadPoolGuard guard;
  delete loaded;
}

size_t armlet_et_count(const Loaded* loaded, bool output) {
  return output ? loaded->outputs.size() : loaded->inputs.size();
}

// Describes an input or output. Returns ExecuTorch's error code, 0 for success.
uint32_t armlet_et_describe(const Loaded* loaded, bool output, size_t index, Tensor* tensor) {
  last_message[0] = '\0';
  auto meta = loaded->method->method_meta();
  auto info = output ? meta.output_tensor_meta(index) : meta.input_tensor_meta(index);
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

// Runs once, from the memory of the given inputs to that of the given outputs, which are contiguous and of the sizes
// that the program describes. A program without memory of its own for them reads and writes them in place. Returns
// ExecuTorch's error code, 0 for success.
uint32_t armlet_et_run(Loaded* loaded, void* const* inputs, void* const* outputs) {
  last_message[0] = '\0';
  NoThreadPoolGuard guard;
  for (size_t i = 0; i < loaded->inputs.size(); i++) {
    Input& input = loaded->inputs[i];
    void* data = inputs[i];
    if (!readable_past_end(data, input.bytes)) {
      if (!input.copy && !(input.copy = allocate(input.bytes))) {
        return static_cast<uint32_t>(Error::MemoryAllocationFailed);
      }
      data = memcpy(input.copy.get(), data, input.bytes);
    }
    input.tensor->unsafeGetTensorImpl()->set_data(data);
    Error error = loaded->method->set_input(input.value, i);
    if (error != Error::Ok) {
      return static_cast<uint32_t>(error);
    }
  }
  for (size_t i = 0; i < loaded->outputs.size(); i++) {
    const Output& output = loaded->outputs[i];
    Error error = output.planned ? Error::Ok : loaded->method->set_output_data_ptr(outputs[i], output.bytes, i);
    if (error != Error::Ok) {
      return static_cast<uint32_t>(error);
    }
  }
  Error error = loaded->method->execute();
  if (error != Error::Ok) {
    return static_cast<uint32_t>(error);
  }
  for (size_t i = 0; i < loaded->outputs.size(); i++) {
    const Output& output = loaded->outputs[i];
    const auto& value = loaded->method->get_output(i);
    if (!value.isTensor() || value.toTensor().nbytes() != output.bytes) {
      snprintf(last_message, sizeof(last_message), "output %zu is not of the size that the program describes", i);
      return static_cast<uint32_t>(Error::InvalidState);
    }
    if (value.toTensor().const_data_ptr() != outputs[i]) {
      memcpy(outputs[i], value.toTensor().const_data_ptr(), output.bytes);
    }
  }
  return 0;
}

} // extern "C"
