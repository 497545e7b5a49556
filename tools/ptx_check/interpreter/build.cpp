// Registers, literals and statements of a function.
#include <algorithm>
#include <cstring>

#include "parse.hpp"

namespace ptx {

void Builder::start(const std::string& name, bool entry) {
  function_ = std::make_unique<Function>();
  function_->name = name;
  function_->entry = entry;
  scopes_.emplace_back();
}

void Builder::formal(const std::string& name, uint32_t bytes, bool result) {
  const uint8_t slots = static_cast<uint8_t>((bytes + 7) / 8);
  const Register r = {new_slot(8, slots), 8, slots};
  scopes_.back().registers[name] = r;
  for (uint32_t i = 0; i < slots; ++i) function_->formals.push_back(slot_at(r, 8 * i));
  if (result) function_->results = slots;
}

uint32_t Builder::slot_at(const Register& param, uint32_t offset) {
  if (offset % 8 || offset / 8 >= param.slots) throw Fault("an argument that is cut in half");
  return param.slot + offset / 8 * 8 * kLanes;
}

uint32_t Builder::new_slot(uint8_t bytes, uint32_t count) {
  const uint32_t slot = static_cast<uint32_t>(function_->image.size());
  const size_t size = bytes == 0 ? sizeof(Mask) : size_t(bytes) * kLanes * count;
  function_->image.resize(slot + (size + 63) / 64 * 64);
  return slot;
}

uint32_t Builder::constant(uint64_t bits, uint8_t bytes) {
  const auto known = constants_.find({bits, bytes});
  if (known != constants_.end()) return known->second;
  const uint32_t slot = new_slot(bytes);
  uint8_t* const at = function_->image.data() + slot;
  if (bytes == 0) {
    const Mask all = bits ? kAll : 0;
    std::memcpy(at, &all, sizeof(all));
  }
  for (int l = 0; l < kLanes && bytes; ++l) std::memcpy(at + l * bytes, &bits, bytes);
  constants_[{bits, bytes}] = slot;
  return slot;
}

Builder::Register* Builder::find(const std::string& name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    const auto found = scope->registers.find(name);
    if (found != scope->registers.end()) return &found->second;
    const size_t digits = name.find_last_not_of("0123456789") + 1;
    const auto family = scope->families.find(name.substr(0, digits));
    if (digits == name.size() || family == scope->families.end()) continue;
    if (std::stoi(name.substr(digits)) >= family->second.count) continue;
    const uint8_t bytes = family->second.bytes;
    return &(scope->registers[name] = {new_slot(bytes), bytes, 1});
  }
  return nullptr;
}

uint32_t Builder::special(const std::string& name, uint8_t bytes) {
  for (const auto& [known, slot] : function_->specials)
    if (known == name) return slot;
  const uint32_t slot = new_slot(bytes);
  function_->specials.emplace_back(name, slot);
  return slot;
}

bool Builder::literal(const std::string& text, uint64_t* bits) const {
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'f' || text[1] == 'd' || text[1] == 'F')) {
    *bits = std::stoull(text.substr(2), nullptr, 16);
    return true;
  }
  const std::string digits = text.substr(text[0] == '-');
  if (digits.empty() || digits[0] < '0' || digits[0] > '9') return false;
  *bits = std::stoull(digits, nullptr, 0);
  if (text[0] == '-') *bits = 0 - *bits;
  return true;
}

uint32_t Builder::symbol(const std::string& name, uint8_t bytes) {
  if (std::find(dynamic_.begin(), dynamic_.end(), name) != dynamic_.end()) {
    const uint32_t slot = new_slot(bytes);  // filled in when the static shared memory is known
    dynamic_uses_.emplace_back(slot, std::to_string(bytes));
    return slot;
  }
  const auto data = module_.constants.find(name);
  if (data != module_.constants.end())
    return constant(reinterpret_cast<uint64_t>(data->second.data()), bytes);
  const auto found = symbols_.find(name);
  if (found == symbols_.end()) throw Fault("unknown operand " + name);
  // Addresses of local memory count from the frame of the function.
  if (found->second.local) {
    if (found->second.offset) throw Fault("a second local array: " + name);
    return special("%local", 8);
  }
  return constant(found->second.offset, bytes);
}

uint32_t Builder::operand(const std::string& text, Type type) {
  if (const Register* r = find(text)) {
    const uint8_t bytes = r->bytes == 2 ? 4 : r->bytes;
    if (bytes != type.bytes) throw Fault("operand of another size: " + text);
    return r->slot;
  }
  uint64_t bits = 0;
  if (literal(text, &bits)) {
    if (type.bytes == 4) bits &= kAll;
    return constant(bits, type.bytes);
  }
  static const char* const known[] = {"%tid.x",   "%ntid.x",  "%ctaid.x", "%nctaid.x", "%laneid",
                                      "%envreg1", "%envreg2", "%tid.y",   "%tid.z",    "%ctaid.y",
                                      "%ctaid.z", "%ntid.y",  "%ntid.z",  "%nctaid.y", "%nctaid.z"};
  for (int i = 0; i < 15; ++i) {
    if (text != known[i]) continue;
    if (i < 7) return special(text, 4);
    return constant(i < 11 ? 0 : 1, 4);  // grids and blocks have one dimension
  }
  return symbol(text, type.bytes);
}

// .param .b64 param0; .param .align 8 .b8 retval0[16]
void Builder::declare_param(const std::string& text) {
  const Declared d = declared(text);
  const uint8_t slots = static_cast<uint8_t>((d.bytes + 7) / 8);
  scopes_.back().registers[d.name] = {new_slot(8, slots), 8, slots};
}

// .reg .pred %p<21>; .reg .b64 %SP
void Builder::declare_registers(const std::string& text) {
  const size_t type = text.find('.', 1), names = text.find_first_of(" \t", type);
  const std::string name = text.substr(type + 1, names - type - 1);
  uint8_t bytes = name == "pred" ? 0 : std::stoi(name.substr(1)) / 8;
  if (bytes == 1 || bytes == 2) bytes = 4;
  for (const std::string& word : split(text.substr(names), ',')) {
    const size_t count = word.find('<');
    if (count == std::string::npos)
      scopes_.back().registers[word] = {new_slot(bytes), bytes, 1};
    else
      scopes_.back().families[word.substr(0, count)] = {bytes, std::stoi(word.substr(count + 1))};
  }
}

void Builder::label(const std::string& name) {
  labels_[name] = static_cast<int>(function_->code.size());
}

void Builder::unknown(int line, const std::string& text) {
  module_.errors.push_back(module_.name + ":" + std::to_string(line) + ": " + text);
}

void Builder::statement(const std::string& text, int line) {
  line_ = line;
  try {
    if (text.empty() || text.rfind(".pragma", 0) == 0 || text.rfind(".branchtargets", 0) == 0)
      return;
    if (text.rfind(".reg", 0) == 0) return declare_registers(text);
    if (text.rfind(".param", 0) == 0) return declare_param(text);
    if (text.rfind(".shared", 0) == 0 || text.rfind(".local", 0) == 0) return declare_memory(text);
    Instr instr = instruction(text);
    function_->code.push_back(std::move(instr));
  } catch (const std::exception& error) {
    unknown(line, "`" + text + "`: " + error.what());
  }
}

Instr Builder::instruction(const std::string& text) {
  Instr instr;
  instr.line = line_;
  instr.source = source_;
  instr.text = text;
  std::string rest = text;
  if (rest[0] == '@') {
    const size_t end = rest.find_first_of(" \t");
    instr.guarded = true;
    instr.negated = rest[1] == '!';
    instr.guard = operand(rest.substr(1 + instr.negated, end - 1 - instr.negated), Type{0});
    rest = trimmed(rest.substr(end));
  }
  const size_t end = rest.find_first_of(" \t");
  const std::string opcode = rest.substr(0, end);
  decode(instr, opcode,
         end == std::string::npos ? std::vector<std::string>{} : split(rest.substr(end), ','));
  return instr;
}

void Builder::finish() {
  Function& f = *function_;
  for (const auto& [index, label] : branches_) {
    const auto found = labels_.find(label);
    if (found == labels_.end())
      unknown(f.code[index].line, "no label " + label);
    else
      f.code[index].target = found->second;
  }
  f.shared_bytes = (f.shared_bytes + 127) / 128 * 128;
  for (const auto& [slot, bytes] : dynamic_uses_) {
    const uint64_t offset = f.shared_bytes;
    const size_t each = std::stoul(bytes);
    for (int l = 0; l < kLanes; ++l) std::memcpy(f.image.data() + slot + l * each, &offset, each);
  }
  if (module_.errors.empty()) lay_out(f);
  module_.functions[f.name] = std::move(function_);
}

}  // namespace ptx
