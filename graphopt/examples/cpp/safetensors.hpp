// Reads and writes safetensors files: eight bytes with the length of a header, the header in JSON,
// and the numbers of all tensors.
#pragma once

#include <cctype>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace safetensors {

struct Tensor {
  std::string dtype;  // F32, I64, ...
  std::vector<int64_t> shape;
  std::vector<char> data;
};

using Tensors = std::map<std::string, Tensor>;

// What a header has of JSON: objects, lists of whole numbers, and strings.
class Header {
 public:
  Header(const std::string& text, const std::string& path) : text_(text), path_(path) {}

  Tensors tensors(const std::vector<char>& data) {
    Tensors found;
    each([&](const std::string& name) {
      Tensor tensor;
      std::vector<int64_t> offsets;
      each([&](const std::string& key) {
        if (key == "dtype") tensor.dtype = string();
        else if (key == "shape") tensor.shape = numbers();
        else if (key == "data_offsets") offsets = numbers();
        else string();  // of __metadata__
      });
      if (name == "__metadata__") return;
      const auto size = static_cast<int64_t>(data.size());
      if (offsets.size() != 2 || offsets[0] < 0 || offsets[0] > offsets[1] || offsets[1] > size) {
        fail();
      }
      tensor.data.assign(data.begin() + offsets[0], data.begin() + offsets[1]);
      found[name] = std::move(tensor);
    });
    return found;
  }

 private:
  template <typename Entry>
  void each(Entry entry) {
    expect('{');
    if (next() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      const std::string key = string();
      expect(':');
      entry(key);
      if (next() == '}') break;
      expect(',');
    }
    expect('}');
  }

  std::vector<int64_t> numbers() {
    std::vector<int64_t> found;
    expect('[');
    while (next() != ']') {
      int64_t value = 0;
      if (!std::isdigit(static_cast<unsigned char>(text_[at_]))) fail();
      while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_]))) {
        value = value * 10 + (text_[at_++] - '0');
      }
      found.push_back(value);
      if (next() == ',') ++at_;
    }
    expect(']');
    return found;
  }

  std::string string() {
    expect('"');
    std::string found;
    while (at_ < text_.size() && text_[at_] != '"') {
      char letter = text_[at_++];
      if (letter != '\\') {
        found += letter;
        continue;
      }
      if (at_ >= text_.size()) fail();
      letter = text_[at_++];
      if (letter == 'u') {
        const unsigned code = std::stoul(text_.substr(at_, 4), nullptr, 16);
        at_ += 4;
        if (code > 127) throw std::runtime_error(path_ + ": a name that is escaped is not ASCII");
        found += static_cast<char>(code);
      } else {
        found += letter == 'n' ? '\n' : letter == 't' ? '\t' : letter;
      }
    }
    expect('"');
    return found;
  }

  char next() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    if (at_ >= text_.size()) fail();
    return text_[at_];
  }

  void expect(char letter) {
    if (next() != letter) fail();
    ++at_;
  }

  [[noreturn]] void fail() const {
    throw std::runtime_error("'" + path_ + "' is no safetensors file, or damaged");
  }

  const std::string& text_;
  const std::string& path_;
  size_t at_ = 0;
};

inline Tensors read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("there is no file '" + path + "'");
  unsigned char bytes[8] = {};
  file.read(reinterpret_cast<char*>(bytes), 8);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | bytes[i];
  if (!file || length > 100'000'000) {
    throw std::runtime_error("'" + path + "' is no safetensors file, or damaged");
  }
  std::string text(length, ' ');
  file.read(text.data(), static_cast<std::streamsize>(length));
  const std::vector<char> data((std::istreambuf_iterator<char>(file)), {});
  return Header(text, path).tensors(data);
}

inline std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') out << '\\';
    out << letter;
  }
  out << '"';
  return out.str();
}

// Writes a file under another name, which it gets when it is whole: who is killed leaves the old one.
inline void write(const std::string& path, const Tensors& tensors) {
  std::ostringstream header;
  header << R"({"__metadata__":{"format":"graphopt","version":"1"})";
  size_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    header << ',' << quoted(name) << R"(:{"dtype":")" << tensor.dtype << R"(","shape":[)";
    for (size_t i = 0; i < tensor.shape.size(); ++i) header << (i ? "," : "") << tensor.shape[i];
    header << R"(],"data_offsets":[)" << end << ',' << end + tensor.data.size() << "]}";
    end += tensor.data.size();
  }
  header << '}';
  std::string text = header.str();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::string part = path + ".part";
  {
    std::ofstream file(part, std::ios::binary);
    for (uint64_t length = text.size(), i = 0; i < 8; ++i, length >>= 8) {
      file.put(static_cast<char>(length & 255));
    }
    file << text;
    for (const auto& [name, tensor] : tensors) {
      file.write(tensor.data.data(), static_cast<std::streamsize>(tensor.data.size()));
    }
    file.flush();
    if (!file) throw std::runtime_error("cannot write '" + part + "'");
  }
#ifdef _WIN32
  std::remove(path.c_str());
#endif
  if (std::rename(part.c_str(), path.c_str())) {
    throw std::runtime_error("cannot write '" + path + "'");
  }
}

}  // namespace safetensors
