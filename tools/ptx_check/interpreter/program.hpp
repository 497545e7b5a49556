// A PTX module as it is run: functions of decoded instructions whose operands are slots of a warp's
// registers. A slot holds 32 lanes of 4 or 8 bytes, or one bit a lane for a predicate.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

using Mask = uint32_t;
constexpr int kLanes = 32;
constexpr Mask kAll = 0xffffffffu;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Warp;
struct Instr;
using Handler = void (*)(Warp&, const Instr&, Mask);

enum class Flow : uint8_t { kNext, kTogether, kBranch, kReturn, kCall, kBarrier, kTrap };
enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };
enum class Order : uint8_t { kWeak, kAcquire, kRelease, kBoth };

// What an operand is: its bytes in a register, 0 for a predicate.
struct Type {
  uint8_t bytes = 4;
};

struct Instr {
  Handler run = nullptr;
  Flow flow = Flow::kNext;
  Space space = Space::kGeneric;
  Order order = Order::kWeak;
  uint8_t bytes = 0, vector = 1;  // of one element of a load, store or copy; elements
  bool is_signed = false, guarded = false, negated = false;
  uint32_t guard = 0;
  std::array<uint32_t, 14> slot{};  // destinations first
  int64_t offset = 0;               // of an address, or a count
  int target = -1, next = -1;       // of a branch; what comes after
  int members = -1;                 // of slot: the lanes that it waits for; -1: no such operand
  struct Function* callee = nullptr;
  std::vector<uint32_t> arguments;  // slots of a call: the result first, where there is one
  int line = 0;                     // of the PTX
  int source = -1;                  // index of Module::sources
  std::string text;
};

// Counted for each instruction, over all launches.
struct Count {
  uint64_t issued = 0, lanes = 0;
  uint64_t requests = 0, units = 0, least = 0;  // units: sectors, or passes over shared memory
};

struct Function {
  std::string name;
  bool entry = false;
  std::vector<Instr> code;
  std::vector<Count> counts;
  std::vector<uint8_t> image;  // registers at the start: constants
  std::vector<std::pair<std::string, uint32_t>> specials;
  std::vector<uint32_t> formals;  // slots of a .func: the result first, where there is one
  size_t results = 0;             // of the formals
  struct Param {
    uint32_t offset, bytes;
  };
  std::vector<Param> params;  // of an entry
  uint32_t param_bytes = 0, local_bytes = 0, shared_bytes = 0;
  uint64_t launches = 0, blocks = 0, warps = 0, issued = 0;
};

struct Module {
  std::string name;
  std::map<std::string, std::unique_ptr<Function>> functions;
  std::map<std::string, std::vector<uint8_t>> constants;  // .global and .const arrays
  std::vector<std::string> sources;                       // "file:line"
  std::vector<std::string> errors;                        // what is not known, with its line
};

// Throws Fault where the text cannot be read at all; unknown opcodes go to Module::errors.
std::unique_ptr<Module> parse(const std::string& name, const std::string& text);

// Orders the blocks of the code so that the lanes of a warp that are furthest behind have the
// smallest index; sets Instr::next.
void lay_out(Function& function);

}  // namespace ptx
