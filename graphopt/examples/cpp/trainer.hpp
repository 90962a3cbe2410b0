// Trains a graph of graphopt.training_graph with ONNX Runtime's C interface. To copy.
//
//     Trainer trainer("train.onnx", "train.start.safetensors");
//     float loss = trainer.step({{"x", x}, {"labels", labels}});
//     trainer.save("state.safetensors");
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include "ort_minimum.h"
#endif
#include "safetensors.hpp"

class Trainer {
 public:
  using Tensor = safetensors::Tensor;
  using Tensors = safetensors::Tensors;

  // The graph, and the file that it starts or goes on from. Threads: 0 lets ONNX Runtime choose.
  Trainer(const std::string& graph, const std::string& start, int threads = 0) {
    ort_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort_) throw std::runtime_error("this ONNX Runtime is too old");
    OrtEnv* env = nullptr;
    check(ort_->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "graphopt", &env));
    env_ = {env, ort_->ReleaseEnv};
    OrtMemoryInfo* memory = nullptr;
    check(ort_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    memory_ = {memory, ort_->ReleaseMemoryInfo};
    check(ort_->GetAllocatorWithDefaultOptions(&allocator_));
    OrtSessionOptions* made = nullptr;
    check(ort_->CreateSessionOptions(&made));
    const Handle<OrtSessionOptions> options{made, ort_->ReleaseSessionOptions};
    check(ort_->SetIntraOpNumThreads(options.get(), threads));
    OrtSession* session = nullptr;
    const std::basic_string<ORTCHAR_T> path(graph.begin(), graph.end());
    check(ort_->CreateSession(env_.get(), path.c_str(), options.get(), &session));
    session_ = {session, ort_->ReleaseSession};
    outputs_ = names(ort_->SessionGetOutputCount, ort_->SessionGetOutputName);
    // What ends with .next is the next value of the input before that.
    for (const std::string& output : outputs_) {
      if (output.size() > next.size() &&
          output.compare(output.size() - next.size(), next.size(), next) == 0) {
        state_.emplace(output.substr(0, output.size() - next.size()), nullptr);
      }
    }
    for (const std::string& name : names(ort_->SessionGetInputCount, ort_->SessionGetInputName)) {
      if (!state_.count(name)) inputs.push_back(name);
    }
    restore(start);
  }

  std::vector<std::string> inputs;  // what a step must be given

  // One training step; returns the loss. Where it throws, the state is as it was.
  float step(Tensors feeds) {
    std::vector<const char*> names, wanted;
    std::vector<const OrtValue*> values;
    std::vector<Value> batch;
    for (const std::string& name : inputs) {
      const auto found = feeds.find(name);
      if (found == feeds.end()) throw std::invalid_argument("'" + name + "' is missing");
      batch.push_back(value(found->second));
      names.push_back(name.c_str());
      values.push_back(batch.back().get());
    }
    for (const auto& [name, held] : state_) {
      names.push_back(name.c_str());
      values.push_back(held.get());
    }
    for (const std::string& name : outputs_) wanted.push_back(name.c_str());
    std::vector<OrtValue*> results(outputs_.size(), nullptr);
    check(ort_->Run(session_.get(), nullptr, names.data(), values.data(), names.size(),
                    wanted.data(), wanted.size(), results.data()));
    float loss = 0;
    for (size_t i = 0; i < results.size(); ++i) {
      Value result{results[i], ort_->ReleaseValue};
      const std::string& name = outputs_[i];
      if (name == "loss") loss = *static_cast<float*>(data(result.get()));
      const auto held = state_.find(name.substr(0, name.size() - std::min(name.size(), next.size())));
      if (held != state_.end() && held->first + next == name) held->second = std::move(result);
    }
    // The tensors of the file are not needed once each was replaced by an output.
    start_.clear();
    return loss;
  }

  // All that is carried from step to step, which restore() and graphopt.Session go on from.
  void save(const std::string& path) const {
    Tensors found;
    for (const auto& [name, held] : state_) found[name] = copied(held.get());
    safetensors::write(path, found);
  }

  void restore(const std::string& path) {
    Tensors read = safetensors::read(path);
    for (const auto& [name, held] : state_) {
      if (!read.count(name)) throw std::runtime_error("'" + path + "' has no '" + name + "'");
    }
    start_ = std::move(read);
    for (auto& [name, held] : state_) held = value(start_[name]);
  }

 private:
  template <typename T>
  using Handle = std::unique_ptr<T, std::function<void(T*)>>;
  using Value = Handle<OrtValue>;

  inline static const std::string next = ".next";

  void check(OrtStatus* status) const {
    if (!status) return;
    const std::string message = ort_->GetErrorMessage(status);
    ort_->ReleaseStatus(status);
    throw std::runtime_error(message);
  }

  template <typename Count, typename Name>
  std::vector<std::string> names(Count count, Name name) const {
    size_t total = 0;
    check(count(session_.get(), &total));
    std::vector<std::string> found;
    for (size_t i = 0; i < total; ++i) {
      char* text = nullptr;
      check(name(session_.get(), i, allocator_, &text));
      found.emplace_back(text);
      check(ort_->AllocatorFree(allocator_, text));
    }
    return found;
  }

  // A tensor as the runtime takes it; its memory stays the tensor's, which must live as long.
  Value value(Tensor& tensor) const {
    OrtValue* made = nullptr;
    check(ort_->CreateTensorWithDataAsOrtValue(memory_.get(), tensor.data.data(),
                                               tensor.data.size(), tensor.shape.data(),
                                               tensor.shape.size(), type(tensor.dtype).second,
                                               &made));
    return {made, ort_->ReleaseValue};
  }

  Tensor copied(OrtValue* held) const {
    OrtTensorTypeAndShapeInfo* made = nullptr;
    check(ort_->GetTensorTypeAndShape(held, &made));
    const Handle<OrtTensorTypeAndShapeInfo> info{made, ort_->ReleaseTensorTypeAndShapeInfo};
    size_t rank = 0;
    check(ort_->GetDimensionsCount(info.get(), &rank));
    Tensor tensor;
    tensor.shape.resize(rank);
    check(ort_->GetDimensions(info.get(), tensor.shape.data(), rank));
    ONNXTensorElementDataType kind;
    check(ort_->GetTensorElementType(info.get(), &kind));
    size_t bytes = 0;
    for (const auto& [name, described] : types()) {
      if (described.second == kind) {
        tensor.dtype = name;
        bytes = described.first;
      }
    }
    for (const int64_t size : tensor.shape) bytes *= static_cast<size_t>(size);
    const char* first = static_cast<char*>(data(held));
    tensor.data.assign(first, first + bytes);
    return tensor;
  }

  void* data(OrtValue* held) const {
    void* found = nullptr;
    check(ort_->GetTensorMutableData(held, &found));
    return found;
  }

  using Type = std::pair<size_t, ONNXTensorElementDataType>;  // bytes of a number, and its type

  static const std::map<std::string, Type>& types() {
    static const std::map<std::string, Type> all = {
        {"F32", {4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}},
        {"F64", {8, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE}},
        {"F16", {2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}},
        {"I64", {8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}},
        {"BOOL", {1, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}},
    };
    return all;
  }

  static const Type& type(const std::string& dtype) {
    const auto found = types().find(dtype);
    if (found == types().end()) throw std::runtime_error("no tensor of type " + dtype);
    return found->second;
  }

  const OrtApi* ort_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  Handle<OrtEnv> env_;
  Handle<OrtMemoryInfo> memory_;
  Handle<OrtSession> session_;
  std::vector<std::string> outputs_;
  Tensors start_;
  std::map<std::string, Value> state_;
};
