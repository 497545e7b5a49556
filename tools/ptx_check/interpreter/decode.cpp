// Opcodes with operands become instructions.
#include <algorithm>

#include "parse.hpp"

namespace ptx {

namespace {

bool has(const std::vector<std::string>& parts, const char* word) {
  return std::find(parts.begin(), parts.end(), word) != parts.end();
}

std::string inside(const std::string& text) { return trimmed(text.substr(1, text.size() - 2)); }

Space space_of(const std::vector<std::string>& parts) {
  if (has(parts, "global") || has(parts, "const")) return Space::kGlobal;
  if (has(parts, "shared")) return Space::kShared;
  if (has(parts, "local")) return Space::kLocal;
  if (has(parts, "param")) return Space::kParam;
  return Space::kGeneric;
}

Order order_of(const std::vector<std::string>& parts) {
  if (has(parts, "acq_rel")) return Order::kBoth;
  if (has(parts, "acquire")) return Order::kAcquire;
  if (has(parts, "release")) return Order::kRelease;
  return Order::kWeak;
}

}  // namespace

void Builder::decode(Instr& instr, const std::string& opcode,
                     const std::vector<std::string>& operands) {
  const std::vector<std::string> parts = split(opcode, '.');
  const std::string& base = parts[0];
  const auto known = opcodes().find(opcode);
  const bool braces =
      !operands.empty() && base == "mov" && (operands[0][0] == '{' || operands[1][0] == '{');
  if (braces) return decode_pair(instr, operands);
  if (base == "cvt" && known != opcodes().end() && known->second.types[1].bytes == 4) {
    // The lower half of a wide register.
    const Register* from = find(operands.at(1));
    const auto low = opcodes().find("low." + opcode);
    if (from && from->bytes == 8 && low != opcodes().end())
      return decode_table(instr, low->second, operands);
  }
  if (known != opcodes().end()) return decode_table(instr, known->second, operands);
  if (opcode == "bra" || opcode == "bra.uni") return decode_branch(instr, operands.at(0));
  if (opcode == "ret" || opcode == "exit" || opcode == "ret.uni") {
    instr.flow = Flow::kReturn;
  } else if (opcode == "trap") {
    instr.flow = Flow::kTrap;
  } else if (opcode == "bar.sync" || opcode == "barrier.sync") {
    if (operands.size() != 1 || operands[0] != "0") throw Fault("a barrier other than 0");
    instr.flow = Flow::kBarrier;
  } else if (opcode == "call.uni" || opcode == "call") {
    decode_call(instr, operands);
  } else if (base == "ld" || base == "st") {
    decode_memory(instr, parts, operands);
  } else if (base == "atom" && has(parts, "add")) {
    decode_atomic(instr, parts, operands);
  } else if (base == "cp" && has(parts, "async")) {
    decode_copy(instr, parts, operands);
  } else if (base == "cvta") {
    decode_space(instr, parts, operands);
  } else {
    throw Fault("unknown opcode " + opcode);
  }
}

void Builder::decode_branch(Instr& instr, const std::string& label) {
  instr.flow = Flow::kBranch;
  branches_.emplace_back(static_cast<int>(function_->code.size()), label);
}

void Builder::decode_table(Instr& instr, const Opcode& known,
                           const std::vector<std::string>& operands) {
  std::vector<std::string> flat;
  for (const std::string& word : operands) {
    if (word[0] == '{') {
      for (const std::string& part : split(inside(word), ',')) flat.push_back(part);
      continue;
    }
    const std::vector<std::string> pair = split(word, '|');
    flat.insert(flat.end(), pair.begin(), pair.end());
  }
  const bool shuffles = known.types.size() == 6 && known.types[1].bytes == 0;
  if (shuffles && flat.size() == 5) {
    flat.insert(flat.begin() + 1, "_");
  } else if (shuffles) {
    instr.target = 0;
  }
  if (flat.size() != known.types.size()) throw Fault("another number of operands");
  for (size_t i = 0; i < flat.size(); ++i) {
    if (flat[i][0] == '!') throw Fault("a negated predicate as operand");
    instr.slot[i] =
        flat[i] == "_" ? new_slot(known.types[i].bytes) : operand(flat[i], known.types[i]);
  }
  instr.run = known.run;
  if (known.members == Opcode::kNone) return;
  instr.flow = Flow::kTogether;
  instr.members = known.members;
}

// [%rd1+16], [symbol], [symbol+8]; `bit` of target tells an address of 8 bytes.
uint32_t Builder::address(Instr& instr, const std::string& text, int bit) {
  std::string name = inside(text);
  const size_t plus = name.find('+');
  if (plus != std::string::npos) {
    instr.offset = std::stoll(name.substr(plus + 1));
    name = trimmed(name.substr(0, plus));
  }
  uint8_t bytes = 8;
  if (const Register* r = find(name)) bytes = r->bytes;
  if (bytes == 8) instr.target |= 1 << bit;
  return operand(name, Type{bytes});
}

bool Builder::decode_slot_param(Instr& instr, bool is_load,
                                const std::vector<std::string>& operands) {
  const std::string name = inside(operands[is_load ? 1 : 0]);
  const size_t plus = name.find('+');
  const uint32_t offset = plus == std::string::npos ? 0 : std::stoul(name.substr(plus + 1));
  const Register* param = find(name.substr(0, plus));
  if (!param || name[0] == '%') return false;
  const Register* value = find(operands[is_load ? 0 : 1]);
  if (!value) throw Fault("a literal as argument");
  const bool upper = offset % 8 == 4 && value->bytes == 4;
  const uint32_t slot = slot_at(*param, upper ? offset - 4 : offset);
  instr.slot[0] = is_load ? value->slot : slot;
  instr.slot[1] = is_load ? slot : value->slot;
  instr.run = slot_move(value->bytes, is_load, upper);
  return true;
}

void Builder::decode_memory(Instr& instr, const std::vector<std::string>& parts,
                            const std::vector<std::string>& operands) {
  const bool is_load = parts[0] == "ld";
  const std::string& type = parts.back();
  instr.space = space_of(parts);
  instr.order = order_of(parts);
  instr.bytes = static_cast<uint8_t>(std::stoi(type.substr(1)) / 8);
  instr.is_signed = type[0] == 's';
  instr.target = 0;
  if (has(parts, "v2")) instr.vector = 2;
  if (has(parts, "v4")) instr.vector = 4;
  if (has(parts, "volatile")) throw Fault("a volatile access");
  if (instr.space == Space::kParam && decode_slot_param(instr, is_load, operands)) return;
  const std::string& values = operands.at(is_load ? 0 : 1);
  const std::vector<std::string> names =
      values[0] == '{' ? split(inside(values), ',') : std::vector<std::string>{values};
  if (names.size() != instr.vector) throw Fault("another number of values");
  for (size_t k = 0; k < names.size(); ++k) {
    const Register* r = find(names[k]);
    const uint8_t bytes = r ? r->bytes : instr.bytes == 8 ? 8 : 4;
    instr.slot[k] = operand(names[k], Type{bytes});
    if (bytes == 8) instr.target |= 1 << k;
  }
  instr.slot[instr.vector] = address(instr, operands.at(is_load ? 1 : 0), 8);
  instr.run = is_load ? load_of(instr) : store_of(instr);
}

void Builder::decode_atomic(Instr& instr, const std::vector<std::string>& parts,
                            const std::vector<std::string>& operands) {
  if (parts.back() != "u32" && parts.back() != "s32") throw Fault("an atomic of another type");
  instr.space = space_of(parts);
  instr.order = order_of(parts);
  instr.target = 0;
  instr.slot[0] = operand(operands.at(0), Type{4});
  instr.slot[1] = address(instr, operands.at(1), 8);
  instr.slot[2] = operand(operands.at(2), Type{4});
  instr.run = &atomic_add;
}

void Builder::decode_copy(Instr& instr, const std::vector<std::string>& parts,
                          const std::vector<std::string>& operands) {
  if (has(parts, "commit_group")) {
    instr.run = &commit_copies;
  } else if (has(parts, "wait_group") || has(parts, "wait_all")) {
    instr.offset = has(parts, "wait_all") ? 0 : std::stoll(operands.at(0));
    instr.run = &wait_copies;
  } else if (has(parts, "shared") && has(parts, "global")) {
    instr.bytes = static_cast<uint8_t>(std::stoi(operands.at(2)));
    instr.slot[0] = operand(inside(operands.at(0)), Type{4});
    instr.slot[1] = operand(inside(operands.at(1)), Type{8});
    instr.slot[2] = operands.size() > 3 ? operand(operands[3], Type{4}) : constant(instr.bytes, 4);
    instr.run = &start_copy;
  } else {
    throw Fault("unknown form of cp.async");
  }
}

void Builder::decode_space(Instr& instr, const std::vector<std::string>& parts,
                           const std::vector<std::string>& operands) {
  instr.space = space_of(parts);
  instr.slot[0] = operand(operands.at(0), Type{8});
  instr.slot[1] = operand(operands.at(1), Type{8});
  instr.run = has(parts, "to") ? &from_generic : &to_generic;
}

void Builder::decode_pair(Instr& instr, const std::vector<std::string>& operands) {
  const bool packs = operands[1][0] == '{';
  const std::vector<std::string> pair = split(inside(operands[packs ? 1 : 0]), ',');
  if (pair.size() != 2) throw Fault("more than a pair");
  const uint32_t whole = operand(operands[packs ? 0 : 1], Type{8});
  const auto half = [&](int i) { return pair[i] == "_" ? new_slot(4) : operand(pair[i], Type{4}); };
  if (packs)
    instr.slot = {whole, half(0), half(1)};
  else
    instr.slot = {half(0), half(1), whole};
  instr.run = packs ? &pack_pair : &unpack_pair;
}

// (retval0), name, (param0, param1)
void Builder::decode_call(Instr& instr, const std::vector<std::string>& operands) {
  instr.flow = Flow::kCall;
  size_t i = 0;
  const auto add = [&](const std::string& list) {
    for (const std::string& word : split(inside(list), ',')) {
      const Register* r = find(word);
      if (!r) throw Fault("unknown argument " + word);
      for (uint32_t i = 0; i < r->slots; ++i) instr.arguments.push_back(slot_at(*r, 8 * i));
    }
  };
  if (operands.at(0)[0] == '(') add(operands[i++]);
  instr.text = operands.at(i++);  // for link_calls
  if (i < operands.size()) add(operands[i]);
}

void link_calls(Module& module) {
  for (auto& [name, function] : module.functions)
    for (Instr& instr : function->code) {
      if (instr.flow != Flow::kCall) continue;
      const auto found = module.functions.find(instr.text);
      if (found == module.functions.end() ||
          found->second->formals.size() != instr.arguments.size())
        module.errors.push_back(module.name + ":" + std::to_string(instr.line) +
                                ": call of an unknown function " + instr.text);
      else
        instr.callee = found->second.get();
    }
}

}  // namespace ptx
