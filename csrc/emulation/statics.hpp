// Static shared memory: `__shared__` becomes thread_local, so all of it lies in this module's
// thread-local segment, which is filled with poison for every block.
#pragma once

#include <cstddef>
#include <vector>

namespace catapult::emulation {

constexpr unsigned char kPoison = 0xCD;

struct Segment {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};
Segment static_shared();

// The segment also holds thread-locals of libraries compiled into the module: give them back.
class StaticShared {
 public:
  StaticShared();
  ~StaticShared();
  void poison();
  void save(std::vector<unsigned char>* to) const;
  void load(const std::vector<unsigned char>& from);

 private:
  Segment segment_;
  std::vector<unsigned char> before_;
};

}  // namespace catapult::emulation
