// Floating point, and conversions. Approximate instructions keep no more bits than the ISA
// promises where the code that nvcc makes depends on it.
#include <cmath>
#include <limits>

#include "lanes.hpp"

namespace ptx {
namespace {

#define PTX_FLOAT(Name, arguments, expression) \
  struct Name {                                \
    template <typename T>                      \
    static T of arguments {                    \
      return expression;                       \
    }                                          \
  };
PTX_FLOAT(AddF, (T x, T y), x + y)
PTX_FLOAT(SubF, (T x, T y), x - y)
PTX_FLOAT(MulF, (T x, T y), x* y)
PTX_FLOAT(Fma, (T x, T y, T z), std::fma(x, y, z))
PTX_FLOAT(DivF, (T x, T y), x / y)
PTX_FLOAT(MinF, (T x, T y), std::fmin(x, y))
PTX_FLOAT(MaxF, (T x, T y), std::fmax(x, y))
PTX_FLOAT(NegF, (T x), -x)
PTX_FLOAT(AbsF, (T x), std::abs(x))
PTX_FLOAT(Sqrt, (T x), std::sqrt(x))
PTX_FLOAT(Rsqrt, (T x), T(1) / std::sqrt(x))
PTX_FLOAT(Reciprocal, (T x), T(1) / x)
PTX_FLOAT(CopySign, (T sign, T x), std::copysign(x, sign))
PTX_FLOAT(Nearest, (T x), std::nearbyint(x))
PTX_FLOAT(Toward0, (T x), std::trunc(x))
PTX_FLOAT(Down, (T x), std::floor(x))
PTX_FLOAT(Up, (T x), std::ceil(x))
PTX_FLOAT(Saturate, (T x), x > T(0) ? (x < T(1) ? x : T(1)) : T(0))
#undef PTX_FLOAT

template <typename T>
T flush(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T(0), x) : x;
}
template <typename Op>
struct Flushed {
  template <typename... T>
  static auto of(T... x) {
    return flush(Op::of(flush(x)...));
  }
};
struct Exp2 {
  static float of(float x) { return std::exp2(x); }
};
struct Log2 {
  static float of(float x) { return std::log2(x); }
};
struct Sine {
  static float of(float x) { return std::sin(x); }
};
struct Cosine {
  static float of(float x) { return std::cos(x); }
};
// The approximate reciprocal of a double has nothing in its lower 32 bits.
struct RoughReciprocal {
  static double of(double x) {
    uint64_t bits = pack<double>(flush(1.0 / flush(x)));
    return unpack<double>(bits & 0xffffffff00000000u);
  }
};
struct RoughRsqrt {
  static double of(double x) {
    return unpack<double>(pack<double>(1.0 / std::sqrt(flush(x))) & 0xffffffff00000000u);
  }
};
// A product of floats is exact in double; what the sum loses there is far below a float's last bit.
float rounded_down(double exact) {
  const float x = static_cast<float>(exact);
  return x > exact ? std::nextafter(x, -std::numeric_limits<float>::infinity()) : x;
}
float rounded_to_zero(double exact) {
  const float x = static_cast<float>(exact);
  return std::abs(static_cast<double>(x)) > std::abs(exact) ? std::nextafter(x, 0.0f) : x;
}
struct FmaDown {
  static float of(float x, float y, float z) { return rounded_down(double(x) * y + z); }
};
struct AddToward0 {
  static float of(float x, float y) { return rounded_to_zero(double(x) + y); }
};

template <typename T>
void add_typed(Table& t, const std::string& type) {
  for (const char* round : {"", ".rn"}) {
    t["add" + (round + type)] = opcode<AddF, T, T, T>();
    t["sub" + (round + type)] = opcode<SubF, T, T, T>();
    t["mul" + (round + type)] = opcode<MulF, T, T, T>();
  }
  t["fma.rn" + type] = opcode<Fma, T, T, T, T>();
  t["div.rn" + type] = opcode<DivF, T, T, T>();
  t["sqrt.rn" + type] = opcode<Sqrt, T, T>();
  t["rcp.rn" + type] = opcode<Reciprocal, T, T>();
  t["min" + type] = opcode<MinF, T, T, T>();
  t["max" + type] = opcode<MaxF, T, T, T>();
  t["neg" + type] = opcode<NegF, T, T>();
  t["abs" + type] = opcode<AbsF, T, T>();
  t["copysign" + type] = opcode<CopySign, T, T, T>();
  t["cvt.rni" + type + type] = opcode<Nearest, T, T>();
  t["cvt.rzi" + type + type] = opcode<Toward0, T, T>();
  t["cvt.rmi" + type + type] = opcode<Down, T, T>();
  t["cvt.rpi" + type + type] = opcode<Up, T, T>();
}

void add_flushed(Table& t) {
  t["add.ftz.f32"] = t["add.rn.ftz.f32"] = opcode<Flushed<AddF>, float, float, float>();
  t["sub.ftz.f32"] = t["sub.rn.ftz.f32"] = opcode<Flushed<SubF>, float, float, float>();
  t["mul.ftz.f32"] = t["mul.rn.ftz.f32"] = opcode<Flushed<MulF>, float, float, float>();
  t["fma.rn.ftz.f32"] = opcode<Flushed<Fma>, float, float, float, float>();
  t["neg.ftz.f32"] = opcode<Flushed<NegF>, float, float>();
  t["abs.ftz.f32"] = opcode<Flushed<AbsF>, float, float>();
  t["ex2.approx.ftz.f32"] = opcode<Flushed<Exp2>, float, float>();
  t["ex2.approx.f32"] = opcode<Exp2, float, float>();
  t["lg2.approx.ftz.f32"] = opcode<Flushed<Log2>, float, float>();
  t["lg2.approx.f32"] = opcode<Log2, float, float>();
  t["rcp.approx.ftz.f32"] = opcode<Flushed<Reciprocal>, float, float>();
  t["rcp.approx.f32"] = opcode<Reciprocal, float, float>();
  t["rsqrt.approx.ftz.f32"] = opcode<Flushed<Rsqrt>, float, float>();
  t["rsqrt.approx.f32"] = opcode<Rsqrt, float, float>();
  t["sqrt.approx.ftz.f32"] = opcode<Flushed<Sqrt>, float, float>();
  t["sin.approx.f32"] = opcode<Sine, float, float>();
  t["cos.approx.f32"] = opcode<Cosine, float, float>();
  t["div.full.f32"] = opcode<DivF, float, float, float>();
  t["div.approx.f32"] = opcode<DivF, float, float, float>();
  t["div.full.ftz.f32"] = opcode<Flushed<DivF>, float, float, float>();
  t["rcp.approx.ftz.f64"] = opcode<RoughReciprocal, double, double>();
  t["rsqrt.approx.ftz.f64"] = opcode<RoughRsqrt, double, double>();
}

// Out of range becomes the nearest integer there is, and NaN becomes 0.
template <typename D, typename Round>
struct ToInteger {
  template <typename T>
  static D of(T x) {
    if (std::isnan(x)) return 0;
    x = Round::of(x);
    constexpr D least = std::numeric_limits<D>::min(), most = std::numeric_limits<D>::max();
    if (x <= static_cast<T>(least)) return least;
    if (x >= static_cast<T>(most)) return most;
    return static_cast<D>(x);
  }
};
template <typename D>
struct Convert {
  template <typename T>
  static D of(T x) {
    return static_cast<D>(x);
  }
};

template <typename D, typename From>
struct ConvertLow {
  static D of(uint64_t x) { return static_cast<D>(static_cast<From>(x)); }
};

template <typename D, typename T>
void add_to_integer(Table& t, const std::string& to, const std::string& from) {
  t["cvt.rzi" + to + from] = opcode<ToInteger<D, Toward0>, D, T>();
  t["cvt.rni" + to + from] = opcode<ToInteger<D, Nearest>, D, T>();
  t["cvt.rmi" + to + from] = opcode<ToInteger<D, Down>, D, T>();
  t["cvt.rpi" + to + from] = opcode<ToInteger<D, Up>, D, T>();
}

template <typename D>
void add_integer_conversions(Table& t, const std::string& to) {
  t["cvt" + to + ".u8"] = opcode<Convert<D>, D, uint8_t>();
  t["cvt" + to + ".s8"] = opcode<Convert<D>, D, int8_t>();
  t["cvt" + to + ".u16"] = opcode<Convert<D>, D, uint16_t>();
  t["cvt" + to + ".s16"] = opcode<Convert<D>, D, int16_t>();
  t["cvt" + to + ".u32"] = opcode<Convert<D>, D, uint32_t>();
  t["cvt" + to + ".s32"] = opcode<Convert<D>, D, int32_t>();
  t["low.cvt" + to + ".u8"] = opcode<ConvertLow<D, uint8_t>, D, uint64_t>();
  t["low.cvt" + to + ".s8"] = opcode<ConvertLow<D, int8_t>, D, uint64_t>();
  t["low.cvt" + to + ".u16"] = opcode<ConvertLow<D, uint16_t>, D, uint64_t>();
  t["low.cvt" + to + ".s16"] = opcode<ConvertLow<D, int16_t>, D, uint64_t>();
  t["low.cvt" + to + ".u32"] = opcode<ConvertLow<D, uint32_t>, D, uint64_t>();
  t["low.cvt" + to + ".s32"] = opcode<ConvertLow<D, int32_t>, D, uint64_t>();
  t["cvt" + to + ".u64"] = opcode<Convert<D>, D, uint64_t>();
  t["cvt" + to + ".s64"] = opcode<Convert<D>, D, int64_t>();
  add_to_integer<D, float>(t, to, ".f32");
  add_to_integer<D, double>(t, to, ".f64");
}

template <typename D>
void add_to_float(Table& t, const std::string& to) {
  t["cvt.rn" + to + ".u8"] = opcode<Convert<D>, D, uint8_t>();
  t["cvt.rn" + to + ".u16"] = opcode<Convert<D>, D, uint16_t>();
  t["cvt.rn" + to + ".s16"] = opcode<Convert<D>, D, int16_t>();
  t["cvt.rn" + to + ".u32"] = opcode<Convert<D>, D, uint32_t>();
  t["cvt.rn" + to + ".s32"] = opcode<Convert<D>, D, int32_t>();
  t["cvt.rn" + to + ".u64"] = opcode<Convert<D>, D, uint64_t>();
  t["cvt.rn" + to + ".s64"] = opcode<Convert<D>, D, int64_t>();
}

// To the nearest with 10 bits of mantissa, ties away from zero.
struct ToTf32 {
  static uint32_t of(uint32_t bits) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & ~0x1fffu;
  }
};

}  // namespace

void add_float(Table& t) {
  add_typed<float>(t, ".f32");
  add_typed<double>(t, ".f64");
  add_flushed(t);
  t["fma.rm.f32"] = opcode<FmaDown, float, float, float, float>();
  t["add.rz.f32"] = opcode<AddToward0, float, float, float>();
}

void add_conversions(Table& t) {
  add_integer_conversions<uint16_t>(t, ".u16");
  add_integer_conversions<int16_t>(t, ".s16");
  add_integer_conversions<uint32_t>(t, ".u32");
  add_integer_conversions<int32_t>(t, ".s32");
  add_integer_conversions<uint64_t>(t, ".u64");
  add_integer_conversions<int64_t>(t, ".s64");
  add_to_float<float>(t, ".f32");
  add_to_float<double>(t, ".f64");
  t["cvt.f64.f32"] = opcode<Convert<double>, double, float>();
  t["cvt.rn.f32.f64"] = opcode<Convert<float>, float, double>();
  t["cvt.sat.f32.f32"] = opcode<Saturate, float, float>();
  t["cvt.rna.tf32.f32"] = opcode<ToTf32, uint32_t, uint32_t>();
}

}  // namespace ptx
