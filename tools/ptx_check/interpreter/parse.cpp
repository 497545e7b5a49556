// Reads the text that nvcc writes: declarations, then statements one after the other.
#include "parse.hpp"

#include <algorithm>
#include <regex>
#include <sstream>

namespace ptx {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char c : text) {
    if (c == '{' || c == '(' || c == '[') ++depth;
    if (c == '}' || c == ')' || c == ']') --depth;
    if (c == separator && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

namespace {

uint32_t aligned(uint32_t offset, uint32_t to) { return (offset + to - 1) / to * to; }

}  // namespace

Declared declared(const std::string& text) {
  static const std::regex form(
      R"((?:\.align\s+(\d+)\s+)?(?:\.ptr\s+(?:\.\w+\s+)*)?\.([a-z])(\d+)\s+(?:\.ptr\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d*)\])?)");
  std::smatch m;
  if (!std::regex_search(text, m, form)) throw Fault("cannot read the declaration: " + text);
  const uint32_t each = std::stoul(m[3]) / 8;
  Declared d{m[4], each, m[1].matched ? uint32_t(std::stoul(m[1])) : each};
  if (m[5].matched) d.bytes = m[5].length() ? each * std::stoul(m[5]) : 0;
  return d;
}

namespace {

class Reader {
 public:
  Reader(Module& module, const std::string& text) : module_(module) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const size_t comment = line.find("//");
      lines_.push_back(trimmed(comment == std::string::npos ? line : line.substr(0, comment)));
    }
  }

  void read() {
    for (const std::string& line : lines_)  // nvcc lists them at the end
      if (line.rfind(".file", 0) == 0) read_file(line);
    for (at_ = 0; at_ < lines_.size(); ++at_) {
      const std::string& line = lines_[at_];
      if (line.rfind(".extern .shared", 0) == 0) dynamic_.push_back(declared(line).name);
      if (line.rfind(".global", 0) == 0 || line.rfind(".const", 0) == 0) read_constant(line);
      if (line.rfind(".section", 0) == 0) skip_section();
      if (line.find(".entry") != std::string::npos || line.rfind(".func", 0) == 0 ||
          line.find(" .func") != std::string::npos)
        read_function();
    }
  }

 private:
  void read_file(const std::string& line) {
    std::istringstream words(line);
    std::string word, path;
    size_t number = 0;
    words >> word >> number >> path;
    path = path.substr(0, path.find(','));
    path.erase(std::remove(path.begin(), path.end(), '"'), path.end());
    if (files_.size() <= number) files_.resize(number + 1);
    files_[number] = path.substr(path.rfind('/') + 1);
  }

  // .global .align 8 .b8 name[144] = {8, 93, ...};
  void read_constant(const std::string& line) {
    std::string all = line;
    while (all.find(';') == std::string::npos && at_ + 1 < lines_.size()) all += lines_[++at_];
    const Declared d = declared(all);
    std::vector<uint8_t> bytes(std::max(d.bytes, 1u));
    const size_t brace = all.find('{');
    if (brace != std::string::npos) {
      if (all.find(".b8") == std::string::npos) throw Fault("cannot read the array " + d.name);
      const std::string inside = all.substr(brace + 1, all.rfind('}') - brace - 1);
      size_t i = 0;
      for (const std::string& word : split(inside, ',')) bytes.at(i++) = std::stoul(word);
    }
    module_.constants[d.name] = std::move(bytes);
  }

  void skip_section() {
    while (at_ < lines_.size() && lines_[at_].find('}') == std::string::npos) ++at_;
  }

  // Up to "{", or up to ";" where it is a declaration only.
  void read_function() {
    std::string head;
    for (; at_ < lines_.size(); ++at_) {
      const std::string& line = lines_[at_];
      if (line == "{") break;
      head += " " + line;
      if (line == ";" || (line.size() > 1 && line.back() == ';')) return;
    }
    Builder builder(module_, dynamic_);
    read_head(builder, head);
    read_body(builder);
    builder.finish();
  }

  void read_head(Builder& builder, const std::string& head) {
    static const std::regex form(
        R"((\.entry|\.func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(?([^)]*)\)?)");
    std::smatch m;
    if (!std::regex_search(head, m, form)) throw Fault("cannot read the head: " + head);
    builder.start(m[3], m[1] == ".entry");
    const std::string result = m[2], formals = m[4];
    if (!trimmed(result).empty()) {
      const Declared d = declared(result);
      builder.formal(d.name, d.bytes, true);
    }
    for (const std::string& param : split(formals, ',')) {
      const Declared d = declared(param);
      if (m[1] == ".entry")
        builder.param(d.name, d.bytes, d.align);
      else
        builder.formal(d.name, d.bytes, false);
    }
  }

  void read_body(Builder& builder) {
    int depth = 1;
    std::string statement;
    int line_of = 0;
    for (++at_; at_ < lines_.size(); ++at_) {
      const std::string& line = lines_[at_];
      const int number = static_cast<int>(at_) + 1;
      if (line.rfind(".loc\t", 0) == 0 && trimmed(statement).empty()) {
        read_place(builder, line);
        continue;
      }
      for (size_t i = 0; i < line.size(); ++i) {
        const char c = line[i];
        const bool empty = trimmed(statement).empty();
        if (empty) line_of = number;
        if (c == '{' && empty) {
          ++depth;
          builder.open();
        } else if (c == '}' && empty) {
          if (--depth == 0) return;
          builder.close();
        } else if (c == ':' && line.compare(i, 2, "::") != 0 && (!i || line[i - 1] != ':')) {
          builder.label(trimmed(statement));
          statement.clear();
        } else if (c == ';') {
          builder.statement(trimmed(statement), line_of);
          statement.clear();
        } else {
          statement += c;
        }
      }
      statement += ' ';
    }
  }

  // .loc 5 126 5[, function_name ..., inlined_at ...]
  void read_place(Builder& builder, const std::string& line) {
    std::istringstream words(line);
    std::string word;
    size_t file = 0, number = 0;
    words >> word >> file >> number;
    if (number == 0 || file >= files_.size()) return;
    const std::string place = files_[file] + ":" + std::to_string(number);
    if (module_.sources.empty() || module_.sources.back() != place)
      module_.sources.push_back(place);
    builder.place(static_cast<int>(module_.sources.size()) - 1);
  }

  Module& module_;
  std::vector<std::string> lines_, files_, dynamic_;
  size_t at_ = 0;
};

}  // namespace

void Builder::param(const std::string& name, uint32_t bytes, uint32_t align) {
  const uint32_t offset = aligned(function_->param_bytes, align);
  function_->params.push_back({offset, bytes});
  function_->param_bytes = offset + bytes;
  symbols_[name] = {offset, false};
}

void Builder::declare_memory(const std::string& statement) {
  const Declared d = declared(statement);
  uint32_t& end =
      statement.rfind(".shared", 0) == 0 ? function_->shared_bytes : function_->local_bytes;
  end = aligned(end, d.align);
  symbols_[d.name] = {end, statement.rfind(".local", 0) == 0};
  end += d.bytes;
}

std::unique_ptr<Module> parse(const std::string& name, const std::string& text) {
  auto module = std::make_unique<Module>();
  module->name = name;
  Reader(*module, text).read();
  link_calls(*module);
  return module;
}

}  // namespace ptx
