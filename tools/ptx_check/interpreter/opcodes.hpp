// The table of opcodes: a name with all its suffixes, how it runs, and the types of its operands.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "program.hpp"

namespace ptx {

struct Opcode {
  Handler run;
  std::vector<Type> types;  // destinations first
  // Lanes run it together: the operand that names them, or kEvery.
  static constexpr int kNone = -2, kEvery = -1;
  int members = kNone;
};
using Table = std::unordered_map<std::string, Opcode>;

const Table& opcodes();
void add_arithmetic(Table& table);
void add_float(Table& table);
void add_conversions(Table& table);
void add_warp(Table& table);

// Opcodes whose suffixes are read one by one.
Handler load_of(const Instr& instr);
Handler store_of(const Instr& instr);
void atomic_add(Warp& warp, const Instr& instr, Mask mask);
void start_copy(Warp& warp, const Instr& instr, Mask mask);
void commit_copies(Warp& warp, const Instr& instr, Mask mask);
void wait_copies(Warp& warp, const Instr& instr, Mask mask);
void to_generic(Warp& warp, const Instr& instr, Mask mask);
void from_generic(Warp& warp, const Instr& instr, Mask mask);
void pack_pair(Warp& warp, const Instr& instr, Mask mask);
void unpack_pair(Warp& warp, const Instr& instr, Mask mask);
// Between a register of 4 or 8 bytes and the slot of a parameter, which has 8.
Handler slot_move(uint32_t bytes, bool is_load, bool upper);

}  // namespace ptx
