#include "emulation/statics.hpp"

#include <link.h>

#include <cstdint>
#include <cstring>

#include "emulation/fiber.hpp"

namespace catapult::emulation {
namespace {

// Which loaded object holds this code is told by an address inside it.
int find_segment(dl_phdr_info* info, size_t, void* result) {
  const auto mine = reinterpret_cast<uintptr_t>(&find_segment);
  const ElfW(Phdr)* tls = nullptr;
  bool contains = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && mine >= begin && mine < begin + header.p_memsz) contains = true;
    if (header.p_type == PT_TLS) tls = &header;
  }
  if (!contains) return 0;
  if (tls && info->dlpi_tls_data)
    *static_cast<Segment*>(result) = {static_cast<unsigned char*>(info->dlpi_tls_data),
                                      static_cast<size_t>(tls->p_memsz)};
  return 1;
}

}  // namespace

// Makes sure that the segment exists and that the thread has its copy.
thread_local unsigned char anchor[16];

Segment static_shared() {
  static_cast<volatile unsigned char*>(anchor)[0] = 0;
  Segment segment;
  dl_iterate_phdr(&find_segment, &segment);
  return segment;
}

StaticShared::StaticShared() : segment_(static_shared()) { save(&before_); }

StaticShared::~StaticShared() { load(before_); }

// Our own copying is no race with the kernel's accesses, neither the earlier nor the later ones:
// blocks only swap where all their threads wait.
void StaticShared::poison() {
  race_forget(segment_.begin, segment_.bytes);
  if (segment_.bytes) std::memset(segment_.begin, kPoison, segment_.bytes);
  race_forget(segment_.begin, segment_.bytes);
}

void StaticShared::save(std::vector<unsigned char>* to) const {
  race_forget(segment_.begin, segment_.bytes);
  to->assign(segment_.begin, segment_.begin + segment_.bytes);
  race_forget(segment_.begin, segment_.bytes);
}

void StaticShared::load(const std::vector<unsigned char>& from) {
  race_forget(segment_.begin, segment_.bytes);
  if (segment_.bytes) std::memcpy(segment_.begin, from.data(), segment_.bytes);
  race_forget(segment_.begin, segment_.bytes);
}

}  // namespace catapult::emulation
