// The one error class of the native library, and the checks that raise it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace catapult {

enum class ErrorKind { kValue, kRuntime };

// kValue becomes Python's ValueError, kRuntime becomes RuntimeError.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

namespace detail {
template <typename... Parts>
[[noreturn]] void fail(ErrorKind kind, const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "catapult_ext." << op << ": ";
  (text << ... << parts);
  throw Error(kind, text.str());
}
}  // namespace detail

// check(ok, "gram", "a has ", n, " rows, ..."): a fact about the memory an op was given.
template <typename... Parts>
void check(bool ok, const char* op, const Parts&... parts) {
  if (!ok) detail::fail(ErrorKind::kValue, op, parts...);
}

template <typename... Parts>
[[noreturn]] void fail_runtime(const char* op, const Parts&... parts) {
  detail::fail(ErrorKind::kRuntime, op, parts...);
}

// What every *_cuda entry of a build without CUDA says.
[[noreturn]] inline void fail_without_cuda(const char* op) {
  fail_runtime(op,
               "this catapult_ext was built without CUDA; move the tensors to the CPU, or "
               "reinstall where nvcc is found (CATAPULT_CUDA=ON shows why it is not)");
}

}  // namespace catapult
