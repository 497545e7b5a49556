// What Python calls, through ctypes.
#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>

#include "machine.hpp"

namespace {

struct State {
  std::vector<std::unique_ptr<ptx::Module>> modules;
  std::unordered_map<const void*, std::pair<ptx::Module*, ptx::Function*>> kernels;
  ptx::Memory memory;
  std::string text;
};

State& state() {
  static State one;
  return one;
}

std::pair<ptx::Module*, ptx::Function*> named(const std::string& name) {
  for (const auto& module : state().modules) {
    const auto found = module->functions.find(name);
    if (found != module->functions.end()) return {module.get(), found->second.get()};
  }
  return {nullptr, nullptr};
}

void describe(std::ostringstream& out, const ptx::Module& module, const ptx::Function& f) {
  out << "function\t" << module.name << '\t' << f.name << '\t' << f.entry << '\t' << f.launches
      << '\t' << f.blocks << '\t' << f.warps << '\t' << f.issued << '\n';
  for (size_t i = 0; i < f.code.size(); ++i) {
    const ptx::Count& c = f.counts[i];
    const int source = f.code[i].source;
    if (!c.issued) continue;
    out << "instruction\t" << f.code[i].line << '\t'
        << (source < 0 ? std::string("-") : module.sources[source]) << '\t' << c.issued << '\t'
        << c.lanes << '\t' << c.requests << '\t' << c.units << '\t' << c.least << '\t'
        << f.code[i].text << '\n';
  }
}

}  // namespace

extern "C" {

// The errors of the module, a line each; empty where all is known.
const char* ptx_load(const char* name, const char* text) {
  try {
    auto module = ptx::parse(name, text);
    state().text.clear();
    for (const std::string& error : module->errors) state().text += error + "\n";
    if (module->errors.empty()) state().modules.push_back(std::move(module));
  } catch (const std::exception& error) {
    state().text = std::string(name) + ": " + error.what() + "\n";
  }
  return state().text.c_str();
}

// Says which kernel of the PTX a kernel of the emulated module is; 0 where there is none.
int ptx_bind(const void* kernel, const char* name) {
  const auto found = named(name);
  if (found.second) state().kernels[kernel] = found;
  return found.second != nullptr;
}

void ptx_memory(uint64_t begin, uint64_t bytes) { state().memory.add(begin, bytes); }
void ptx_forget_memory() { state().memory.clear(); }

// Takes the place of a launch in the emulation: null, or what went wrong.
const char* ptx_launch(const void* kernel, const void* const* arguments, unsigned blocks,
                       unsigned threads, size_t shared_bytes, int cooperative) {
  try {
    const auto found = state().kernels.find(kernel);
    if (found == state().kernels.end()) throw ptx::Fault("a kernel that is not in the PTX");
    ptx::Function& entry = *found->second.second;
    ptx::Grid grid{entry,
                   state().memory,
                   std::vector<uint8_t>(entry.param_bytes),
                   blocks,
                   threads,
                   static_cast<uint32_t>(shared_bytes),
                   cooperative != 0,
                   std::vector<uint8_t>(256),
                   {},
                   *found->second.first};
    for (size_t i = 0; i < entry.params.size(); ++i)
      std::memcpy(grid.params.data() + entry.params[i].offset, arguments[i], entry.params[i].bytes);
    ptx::run(grid);
    return nullptr;
  } catch (const std::exception& error) {
    state().text = error.what();
    return state().text.c_str();
  }
}

// Everything counted so far, as lines of fields.
const char* ptx_counts() {
  std::ostringstream out;
  for (const auto& module : state().modules)
    for (const auto& [name, function] : module->functions) describe(out, *module, *function);
  state().text = out.str();
  return state().text.c_str();
}

uint64_t ptx_issued(const char* name) {
  const auto found = named(name);
  return found.second ? found.second->issued : 0;
}
}
