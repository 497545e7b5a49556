// Moves, integer arithmetic, logic, comparisons and selections.
#include <algorithm>
#include <cmath>

#include "lanes.hpp"

namespace ptx {
namespace {

struct Move {
  template <typename T>
  static T of(T x) {
    return x;
  }
};
template <typename T>
using Wrap = std::make_unsigned_t<T>;

#define PTX_BINARY(Name, expression)                        \
  struct Name {                                             \
    template <typename T>                                   \
    static T of(T x, T y) {                                 \
      using U = Wrap<T>;                                    \
      const U a = static_cast<U>(x), b = static_cast<U>(y); \
      (void)a, (void)b;                                     \
      return static_cast<T>(expression);                    \
    }                                                       \
  };
PTX_BINARY(Add, a + b)
PTX_BINARY(Sub, a - b)
PTX_BINARY(MulLow, static_cast<uint64_t>(a) * static_cast<uint64_t>(b))
PTX_BINARY(And, a& b)
PTX_BINARY(Or, a | b)
PTX_BINARY(Xor, a ^ b)
PTX_BINARY(Min, std::min(x, y))
PTX_BINARY(Max, std::max(x, y))
#undef PTX_BINARY

// The smallest number by -1 overflows on the host; division by zero has no value on a device.
struct Divide {
  template <typename T>
  static T of(T x, T y) {
    if (y == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && y == static_cast<T>(-1)) return static_cast<T>(-Wrap<T>(x));
    return x / y;
  }
};
struct Remainder {
  template <typename T>
  static T of(T x, T y) {
    if (y == 0 || (std::is_signed_v<T> && y == static_cast<T>(-1))) return T(0);
    return x % y;
  }
};
struct MulHigh {
  template <typename T>
  static T of(T x, T y) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(x) * static_cast<Wide>(y) >> 8 * sizeof(T));
  }
};
template <typename D>
struct MulWide {
  template <typename T>
  static D of(T x, T y) {
    return static_cast<D>(x) * static_cast<D>(y);
  }
};
struct MadLow {
  template <typename T>
  static T of(T x, T y, T z) {
    return Add::of(MulLow::of(x, y), z);
  }
};
template <typename D>
struct MadWide {
  template <typename T>
  static D of(T x, T y, D z) {
    return Add::of(static_cast<D>(static_cast<D>(x) * static_cast<D>(y)), z);
  }
};
struct MadHigh {
  template <typename T>
  static T of(T x, T y, T z) {
    return Add::of(MulHigh::of(x, y), z);
  }
};
struct Negate {
  template <typename T>
  static T of(T x) {
    return static_cast<T>(-Wrap<T>(x));
  }
};
struct Absolute {
  template <typename T>
  static T of(T x) {
    return x < 0 ? Negate::of(x) : x;
  }
};
struct Not {
  template <typename T>
  static T of(T x) {
    return static_cast<T>(~x);
  }
};
struct ShiftLeft {
  template <typename T>
  static T of(T x, uint32_t n) {
    return n >= 8 * sizeof(T) ? T(0) : static_cast<T>(x << n);
  }
};
struct ShiftRight {
  template <typename T>
  static T of(T x, uint32_t n) {
    constexpr uint32_t bits = 8 * sizeof(T);
    if (n >= bits) return std::is_signed_v<T> && x < 0 ? static_cast<T>(-1) : T(0);
    return static_cast<T>(x >> n);
  }
};
struct CountZeros {
  static uint32_t of(uint32_t x) { return x ? __builtin_clz(x) : 32; }
  static uint32_t of(uint64_t x) { return x ? __builtin_clzll(x) : 64; }
};
struct CountOnes {
  static uint32_t of(uint32_t x) { return __builtin_popcount(x); }
  static uint32_t of(uint64_t x) { return __builtin_popcountll(x); }
};
struct InsertField {
  template <typename T>
  static T of(T x, T y, uint32_t from, uint32_t bits) {
    from &= 255, bits &= 255;
    const T ones = bits >= 8 * sizeof(T) ? ~T(0) : static_cast<T>((T(1) << bits) - 1);
    const T field = ShiftLeft::of(ones, from);
    return static_cast<T>((y & ~field) | (ShiftLeft::of(x, from) & field));
  }
};
struct Select {
  template <typename T>
  static T of(T x, T y, bool first) {
    return first ? x : y;
  }
};
struct AndBits {
  static bool of(bool x, bool y) { return x && y; }
};
struct OrBits {
  static bool of(bool x, bool y) { return x || y; }
};
struct XorBits {
  static bool of(bool x, bool y) { return x != y; }
};
struct NotBit {
  static bool of(bool x) { return !x; }
};

#define PTX_COMPARE(Name, ordered)                        \
  struct Name {                                           \
    template <typename T>                                 \
    static bool of(T x, T y) {                            \
      return ordered;                                     \
    }                                                     \
  };                                                      \
  struct Name##OrNan {                                    \
    template <typename T>                                 \
    static bool of(T x, T y) {                            \
      return (ordered) || std::isnan(x) || std::isnan(y); \
    }                                                     \
  };
PTX_COMPARE(Equal, x == y)
PTX_COMPARE(NotEqual, x<y || x> y)
PTX_COMPARE(Less, x < y)
PTX_COMPARE(LessEqual, x <= y)
PTX_COMPARE(Greater, x > y)
PTX_COMPARE(GreaterEqual, x >= y)
#undef PTX_COMPARE
struct IsNan {
  template <typename T>
  static bool of(T x, T y) {
    return std::isnan(x) || std::isnan(y);
  }
};
struct IsNumber {
  template <typename T>
  static bool of(T x, T y) {
    return !IsNan::of(x, y);
  }
};

template <typename T>
void add_comparisons(Table& t, const std::string& type, const char* const (&names)[6]) {
  t["setp." + std::string(names[0]) + type] = opcode<Equal, bool, T, T>();
  t["setp." + std::string(names[1]) + type] = opcode<NotEqual, bool, T, T>();
  t["setp." + std::string(names[2]) + type] = opcode<Less, bool, T, T>();
  t["setp." + std::string(names[3]) + type] = opcode<LessEqual, bool, T, T>();
  t["setp." + std::string(names[4]) + type] = opcode<Greater, bool, T, T>();
  t["setp." + std::string(names[5]) + type] = opcode<GreaterEqual, bool, T, T>();
}
constexpr const char* kNames[6] = {"eq", "ne", "lt", "le", "gt", "ge"};
constexpr const char* kUnsignedNames[6] = {"eq", "ne", "lo", "ls", "hi", "hs"};

template <typename T>
void add_float_comparisons(Table& t, const std::string& type) {
  add_comparisons<T>(t, type, kNames);
  t["setp.equ" + type] = opcode<EqualOrNan, bool, T, T>();
  t["setp.neu" + type] = opcode<NotEqualOrNan, bool, T, T>();
  t["setp.ltu" + type] = opcode<LessOrNan, bool, T, T>();
  t["setp.leu" + type] = opcode<LessEqualOrNan, bool, T, T>();
  t["setp.gtu" + type] = opcode<GreaterOrNan, bool, T, T>();
  t["setp.geu" + type] = opcode<GreaterEqualOrNan, bool, T, T>();
  t["setp.nan" + type] = opcode<IsNan, bool, T, T>();
  t["setp.num" + type] = opcode<IsNumber, bool, T, T>();
}

template <typename T>
void add_typed(Table& t, const std::string& type) {
  t["add" + type] = opcode<Add, T, T, T>();
  t["sub" + type] = opcode<Sub, T, T, T>();
  t["mul.lo" + type] = opcode<MulLow, T, T, T>();
  t["mul.hi" + type] = opcode<MulHigh, T, T, T>();
  t["mad.lo" + type] = opcode<MadLow, T, T, T, T>();
  t["mad.hi" + type] = opcode<MadHigh, T, T, T, T>();
  t["div" + type] = opcode<Divide, T, T, T>();
  t["rem" + type] = opcode<Remainder, T, T, T>();
  t["min" + type] = opcode<Min, T, T, T>();
  t["max" + type] = opcode<Max, T, T, T>();
  t["shr" + type] = opcode<ShiftRight, T, T, uint32_t>();
  add_comparisons<T>(t, type, kNames);
  if (std::is_unsigned_v<T>) add_comparisons<T>(t, type, kUnsignedNames);
}

template <typename T>
void add_bits(Table& t, const std::string& bits) {
  t["and.b" + bits] = opcode<And, T, T, T>();
  t["or.b" + bits] = opcode<Or, T, T, T>();
  t["xor.b" + bits] = opcode<Xor, T, T, T>();
  t["not.b" + bits] = opcode<Not, T, T>();
  t["shl.b" + bits] = opcode<ShiftLeft, T, T, uint32_t>();
  t["shr.b" + bits] = opcode<ShiftRight, T, T, uint32_t>();
  t["setp.eq.b" + bits] = opcode<Equal, bool, T, T>();
  t["setp.ne.b" + bits] = opcode<NotEqual, bool, T, T>();
  for (const char* type : {".b", ".u", ".s"}) {
    t["mov" + (type + bits)] = opcode<Move, T, T>();
    t["selp" + (type + bits)] = opcode<Select, T, T, T, bool>();
  }
}

void add_wide(Table& t) {
  t["mul.wide.s16"] = opcode<MulWide<int32_t>, int32_t, int16_t, int16_t>();
  t["mul.wide.u16"] = opcode<MulWide<uint32_t>, uint32_t, uint16_t, uint16_t>();
  t["mul.wide.s32"] = opcode<MulWide<int64_t>, int64_t, int32_t, int32_t>();
  t["mul.wide.u32"] = opcode<MulWide<uint64_t>, uint64_t, uint32_t, uint32_t>();
  t["mad.wide.s32"] = opcode<MadWide<int64_t>, int64_t, int32_t, int32_t, int64_t>();
  t["mad.wide.u32"] = opcode<MadWide<uint64_t>, uint64_t, uint32_t, uint32_t, uint64_t>();
}

// Sums with a carry: x + y + the carry, or x - y - the borrow; kHigh and kLow first multiply.
enum class Carry { kAdd, kSub, kLow, kHigh };
template <Carry kKind, bool kUses, bool kSets>
void with_carry(Warp& warp, const Instr& instr, Mask mask) {
  constexpr bool kProduct = kKind == Carry::kLow || kKind == Carry::kHigh;
  Mask out = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const uint64_t x = warp.at<uint32_t>(instr.slot[1])[l], y = warp.at<uint32_t>(instr.slot[2])[l];
    const uint64_t carry = kUses ? warp.carry >> l & 1 : 0;
    uint64_t sum = kKind == Carry::kSub ? x - y - carry : x + y + carry;
    if (kProduct) {
      const uint64_t part = kKind == Carry::kLow ? x * y & kAll : x * y >> 32;
      sum = part + warp.at<uint32_t>(instr.slot[3])[l] + carry;
    }
    warp.at<uint32_t>(instr.slot[0])[l] = static_cast<uint32_t>(sum);
    out |= Mask(sum >> 32 & 1) << l;
  }
  if (kSets) warp.carry = (warp.carry & ~mask) | out;
}

void add_carries(Table& t) {
  const std::vector<Type> two(3), three(4);
  t["add.cc.u32"] = {&with_carry<Carry::kAdd, false, true>, two};
  t["addc.u32"] = {&with_carry<Carry::kAdd, true, false>, two};
  t["addc.cc.u32"] = {&with_carry<Carry::kAdd, true, true>, two};
  t["sub.cc.u32"] = {&with_carry<Carry::kSub, false, true>, two};
  t["subc.u32"] = {&with_carry<Carry::kSub, true, false>, two};
  t["subc.cc.u32"] = {&with_carry<Carry::kSub, true, true>, two};
  t["mad.lo.cc.u32"] = {&with_carry<Carry::kLow, false, true>, three};
  t["madc.lo.u32"] = {&with_carry<Carry::kLow, true, false>, three};
  t["madc.lo.cc.u32"] = {&with_carry<Carry::kLow, true, true>, three};
  t["mad.hi.cc.u32"] = {&with_carry<Carry::kHigh, false, true>, three};
  t["madc.hi.u32"] = {&with_carry<Carry::kHigh, true, false>, three};
  t["madc.hi.cc.u32"] = {&with_carry<Carry::kHigh, true, true>, three};
}

}  // namespace

void add_arithmetic(Table& t) {
  add_typed<int16_t>(t, ".s16");
  add_typed<uint16_t>(t, ".u16");
  add_typed<int32_t>(t, ".s32");
  add_typed<uint32_t>(t, ".u32");
  add_typed<int64_t>(t, ".s64");
  add_typed<uint64_t>(t, ".u64");
  add_bits<uint16_t>(t, "16");
  add_bits<uint32_t>(t, "32");
  add_bits<uint64_t>(t, "64");
  add_wide(t);
  add_carries(t);
  add_float_comparisons<float>(t, ".f32");
  add_float_comparisons<double>(t, ".f64");
  t["mov.f32"] = opcode<Move, float, float>();
  t["mov.f64"] = opcode<Move, double, double>();
  t["selp.f32"] = opcode<Select, float, float, float, bool>();
  t["selp.f64"] = opcode<Select, double, double, double, bool>();
  t["mov.pred"] = opcode<Move, bool, bool>();
  t["and.pred"] = opcode<AndBits, bool, bool, bool>();
  t["or.pred"] = opcode<OrBits, bool, bool, bool>();
  t["xor.pred"] = opcode<XorBits, bool, bool, bool>();
  t["not.pred"] = opcode<NotBit, bool, bool>();
  t["neg.s32"] = opcode<Negate, int32_t, int32_t>();
  t["neg.s64"] = opcode<Negate, int64_t, int64_t>();
  t["abs.s32"] = opcode<Absolute, int32_t, int32_t>();
  t["abs.s64"] = opcode<Absolute, int64_t, int64_t>();
  t["clz.b32"] = opcode<CountZeros, uint32_t, uint32_t>();
  t["clz.b64"] = opcode<CountZeros, uint32_t, uint64_t>();
  t["popc.b32"] = opcode<CountOnes, uint32_t, uint32_t>();
  t["popc.b64"] = opcode<CountOnes, uint32_t, uint64_t>();
  t["bfi.b32"] = opcode<InsertField, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>();
  t["bfi.b64"] = opcode<InsertField, uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>();
}

}  // namespace ptx
