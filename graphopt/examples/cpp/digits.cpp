// Trains the digits network: digits GRAPH START DATA STEPS SAVED
//
// DATA is a safetensors file with x, F32 [n, 1, 8, 8], and labels, I64 [n]. Each step takes the next
// 32 of them, and prints its loss.
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "trainer.hpp"

constexpr int64_t kBatch = 32;

// Some samples of an array.
safetensors::Tensor rows(const safetensors::Tensor& whole, int64_t first, int64_t count) {
  safetensors::Tensor part = whole;
  const size_t bytes = whole.data.size() / static_cast<size_t>(whole.shape[0]);
  part.shape[0] = count;
  part.data.resize(bytes * static_cast<size_t>(count));
  std::memcpy(part.data.data(), whole.data.data() + bytes * first, part.data.size());
  return part;
}

int main(int count, char** arguments) {
  if (count != 6) {
    std::cerr << "expected: digits GRAPH START DATA STEPS SAVED\n";
    return 2;
  }
  try {
    const safetensors::Tensors data = safetensors::read(arguments[3]);
    const safetensors::Tensor &x = data.at("x"), &labels = data.at("labels");
    Trainer trainer(arguments[1], arguments[2], 1);
    const int64_t batches = labels.shape[0] / kBatch;
    std::cout.precision(9);
    for (int64_t step = 0; step < std::atoll(arguments[4]); ++step) {
      const int64_t first = step % batches * kBatch;
      std::cout << trainer.step({{"x", rows(x, first, kBatch)},
                                 {"labels", rows(labels, first, kBatch)}})
                << '\n';
    }
    trainer.save(arguments[5]);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
}
