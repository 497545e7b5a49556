// From statements to decoded instructions.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "opcodes.hpp"
#include "program.hpp"

namespace ptx {

std::string trimmed(const std::string& text);
// At separators outside of brackets.
std::vector<std::string> split(const std::string& text, char separator);

// ".param .align 8 .b8 name[1192]" or ".param .u64 name"
struct Declared {
  std::string name;
  uint32_t bytes = 0, align = 1;
};
Declared declared(const std::string& text);

// Builds one function.
class Builder {
 public:
  Builder(Module& module, const std::vector<std::string>& dynamic)
      : module_(module), dynamic_(dynamic) {}

  void start(const std::string& name, bool entry);
  void param(const std::string& name, uint32_t bytes, uint32_t align);  // of an entry
  void formal(const std::string& name, uint32_t bytes, bool result);    // of a .func
  void open() { scopes_.emplace_back(); }
  void close() { scopes_.pop_back(); }
  void label(const std::string& name);
  void statement(const std::string& text, int line);
  void place(int source) { source_ = source; }
  void unknown(int line, const std::string& text);
  void finish();

 private:
  struct Register {
    uint32_t slot;
    uint8_t bytes;      // 0: a predicate
    uint8_t slots = 1;  // of a parameter of a call
  };
  struct Family {  // %r<12>
    uint8_t bytes;
    int count;
  };
  struct Scope {
    std::map<std::string, Register> registers;
    std::map<std::string, Family> families;
  };
  struct Symbol {
    uint32_t offset;
    bool local;
  };

  uint32_t new_slot(uint8_t bytes, uint32_t count = 1);
  static uint32_t slot_at(const Register& param, uint32_t offset);
  uint32_t constant(uint64_t bits, uint8_t bytes);
  Register* find(const std::string& name);
  uint32_t special(const std::string& name, uint8_t bytes);
  // The slot of an operand of that type: a register, a literal, a special register, an address.
  uint32_t operand(const std::string& text, Type type);
  uint32_t symbol(const std::string& name, uint8_t bytes);
  bool literal(const std::string& text, uint64_t* bits) const;

  void declare_registers(const std::string& text);
  void declare_param(const std::string& text);
  void declare_memory(const std::string& text);
  Instr instruction(const std::string& text);
  void decode(Instr& instr, const std::string& opcode, const std::vector<std::string>& operands);
  void decode_branch(Instr& instr, const std::string& label);
  void decode_table(Instr& instr, const Opcode& known, const std::vector<std::string>& operands);
  void decode_memory(Instr& instr, const std::vector<std::string>& parts,
                     const std::vector<std::string>& operands);
  bool decode_slot_param(Instr& instr, bool is_load, const std::vector<std::string>& operands);
  void decode_atomic(Instr& instr, const std::vector<std::string>& parts,
                     const std::vector<std::string>& operands);
  void decode_copy(Instr& instr, const std::vector<std::string>& parts,
                   const std::vector<std::string>& operands);
  void decode_space(Instr& instr, const std::vector<std::string>& parts,
                    const std::vector<std::string>& operands);
  void decode_pair(Instr& instr, const std::vector<std::string>& operands);
  void decode_call(Instr& instr, const std::vector<std::string>& operands);
  uint32_t address(Instr& instr, const std::string& text, int bit);

  Module& module_;
  std::vector<std::string> dynamic_;
  std::unique_ptr<Function> function_;
  std::vector<Scope> scopes_;
  std::map<std::string, Symbol> symbols_;
  std::map<std::pair<uint64_t, uint8_t>, uint32_t> constants_;
  std::vector<std::pair<uint32_t, std::string>> dynamic_uses_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<int, std::string>> branches_;
  int source_ = -1, line_ = 0;
};

void link_calls(Module& module);

}  // namespace ptx
