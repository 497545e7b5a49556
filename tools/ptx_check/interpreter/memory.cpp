// Loads, stores, atomics, asynchronous copies, and addresses of one space in another.
#include "accesses.hpp"
#include "lanes.hpp"

namespace ptx {
namespace {

// Addresses of all lanes, of 4 or 8 bytes.
void addresses_of(Warp& warp, const Instr& instr, uint32_t slot, bool wide, uint64_t* to) {
  for (int l = 0; l < kLanes; ++l)
    to[l] = (wide ? warp.at<uint64_t>(slot)[l] : warp.at<uint32_t>(slot)[l]) +
            static_cast<uint64_t>(instr.offset);
}

uint64_t read_bytes(const uint8_t* from, const Instr& instr) {
  uint64_t value = 0;
  std::memcpy(&value, from, instr.bytes);
  const int unused = 64 - 8 * instr.bytes;
  if (instr.is_signed && unused) value = uint64_t(int64_t(value << unused) >> unused);
  return value;
}

// Slots: the values, then the address. Bit k of target: value k has 8 bytes; bit 8: the address.
void put(Warp& warp, const Instr& instr, int k, int lane, uint64_t value) {
  if (instr.target >> k & 1)
    warp.at<uint64_t>(instr.slot[k])[lane] = value;
  else
    warp.at<uint32_t>(instr.slot[k])[lane] = static_cast<uint32_t>(value);
}

void load(Warp& warp, const Instr& instr, Mask mask) {
  uint64_t addresses[kLanes];
  addresses_of(warp, instr, instr.slot[instr.vector], instr.target >> 8 & 1, addresses);
  const uint32_t bytes = instr.bytes * instr.vector;
  const bool sync = instr.order != Order::kWeak;
  count_request(warp, instr, mask, addresses, bytes, instr.space);
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const uint8_t* from =
        access(warp, instr, l, addresses[l], instr.space, bytes, sync ? Use::kSync : Use::kRead);
    for (int k = 0; k < instr.vector; ++k)
      put(warp, instr, k, l, read_bytes(from + k * instr.bytes, instr));
    if (instr.order == Order::kAcquire) acquire(warp, l, addresses[l]);
  }
  if (sync) warp.pause();
}

void load_param(Warp& warp, const Instr& instr, Mask mask) {
  uint64_t addresses[kLanes];
  addresses_of(warp, instr, instr.slot[instr.vector], instr.target >> 8 & 1, addresses);
  const std::vector<uint8_t>& params = warp.block.grid.params;
  const uint32_t bytes = instr.bytes * instr.vector;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (addresses[l] % bytes || addresses[l] + bytes > params.size())
      warp.fail(instr, "misaligned or outside the parameters");
    for (int k = 0; k < instr.vector; ++k)
      put(warp, instr, k, l, read_bytes(params.data() + addresses[l] + k * instr.bytes, instr));
  }
}

void store(Warp& warp, const Instr& instr, Mask mask) {
  uint64_t addresses[kLanes];
  addresses_of(warp, instr, instr.slot[instr.vector], instr.target >> 8 & 1, addresses);
  const uint32_t bytes = instr.bytes * instr.vector;
  const bool sync = instr.order != Order::kWeak;
  count_request(warp, instr, mask, addresses, bytes, instr.space);
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    uint8_t* to =
        access(warp, instr, l, addresses[l], instr.space, bytes, sync ? Use::kSync : Use::kWrite);
    for (int k = 0; k < instr.vector; ++k) {
      const uint64_t value = instr.target >> k & 1 ? warp.at<uint64_t>(instr.slot[k])[l]
                                                   : warp.at<uint32_t>(instr.slot[k])[l];
      std::memcpy(to + k * instr.bytes, &value, instr.bytes);
    }
    if (instr.order == Order::kRelease) release(warp, addresses[l]);
  }
}

// Parameters of a .func and of a call are slots of 8 bytes a lane.
template <typename To, typename From>
void move_slot(Warp& warp, const Instr& instr, Mask mask) {
  const From* from = warp.at<From>(instr.slot[1]);
  To* to = warp.at<To>(instr.slot[0]);
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1) to[l] = static_cast<To>(from[l]);
}

// The second of two numbers of 4 bytes that share a slot; the first has been written before.
void load_upper(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1)
      warp.at<uint32_t>(instr.slot[0])[l] =
          static_cast<uint32_t>(warp.at<uint64_t>(instr.slot[1])[l] >> 32);
}

void store_upper(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    uint64_t& slot = warp.at<uint64_t>(instr.slot[0])[l];
    slot = (slot & kAll) | uint64_t(warp.at<uint32_t>(instr.slot[1])[l]) << 32;
  }
}

}  // namespace

Handler load_of(const Instr& instr) { return instr.space == Space::kParam ? &load_param : &load; }
Handler store_of(const Instr&) { return &store; }

// Slots: the old value, the address, what is added; bit 8 of target: an address of 8 bytes.
void atomic_add(Warp& warp, const Instr& instr, Mask mask) {
  uint64_t addresses[kLanes];
  addresses_of(warp, instr, instr.slot[1], instr.target >> 8 & 1, addresses);
  count_request(warp, instr, mask, addresses, 4, instr.space);
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    uint8_t* at = access(warp, instr, l, addresses[l], instr.space, 4, Use::kSync);
    uint32_t old;
    std::memcpy(&old, at, 4);
    const uint32_t sum = old + warp.at<uint32_t>(instr.slot[2])[l];
    std::memcpy(at, &sum, 4);
    warp.at<uint32_t>(instr.slot[0])[l] = old;
    if (instr.order == Order::kRelease || instr.order == Order::kBoth) release(warp, addresses[l]);
    if (instr.order == Order::kAcquire || instr.order == Order::kBoth)
      acquire(warp, l, addresses[l]);
  }
}

// Slots: to, from, valid bytes. It arrives when it is waited for, as late as may be.
void start_copy(Warp& warp, const Instr& instr, Mask mask) {
  Copy copy{mask, instr.bytes, {}, {}, {}, {}};
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    copy.to[l] = warp.at<uint32_t>(instr.slot[0])[l];
    copy.from[l] = warp.at<uint64_t>(instr.slot[1])[l];
    copy.valid[l] = warp.at<uint32_t>(instr.slot[2])[l];
    copy.group[l] = warp.groups[l];
    mark_copy(warp, instr, l, copy.to[l], instr.bytes, true);
    if (copy.valid[l] > instr.bytes) warp.fail(instr, "more valid bytes than it copies");
    if (copy.valid[l])
      access(warp, instr, l, copy.from[l], Space::kGlobal, instr.bytes, Use::kRead);
  }
  count_request(warp, instr, mask, copy.from.data(), instr.bytes, Space::kGlobal);
  warp.copies.push_back(copy);
}

void commit_copies(Warp& warp, const Instr&, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1) ++warp.groups[l];
}

void wait_copies(Warp& warp, const Instr& instr, Mask mask) {
  for (Copy& copy : warp.copies) {
    for (int l = 0; l < kLanes; ++l) {
      if (!(mask & copy.mask & Mask(1) << l)) continue;
      if (copy.group[l] + static_cast<uint32_t>(instr.offset) >= warp.groups[l]) continue;
      uint8_t* to = warp.block.shared.data() + copy.to[l];
      mark_copy(warp, instr, l, copy.to[l], copy.bytes, false);
      std::memset(to, 0, copy.bytes);
      std::memcpy(to, reinterpret_cast<const void*>(copy.from[l]), copy.valid[l]);
      copy.mask &= ~(Mask(1) << l);
    }
  }
  size_t kept = 0;
  for (size_t i = 0; i < warp.copies.size(); ++i)
    if (warp.copies[i].mask) {
      if (kept != i) warp.copies[kept] = warp.copies[i];
      ++kept;
    }
  warp.copies.resize(kept);
}

namespace {

uint64_t window(Warp& warp, const Instr& instr, int lane) {
  const uint8_t* base = instr.space == Space::kShared  ? warp.block.shared.data()
                        : instr.space == Space::kLocal ? warp.local(lane)
                        : instr.space == Space::kParam ? warp.block.grid.params.data()
                                                       : nullptr;
  return reinterpret_cast<uint64_t>(base);
}

}  // namespace

void to_generic(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1)
      warp.at<uint64_t>(instr.slot[0])[l] =
          warp.at<uint64_t>(instr.slot[1])[l] + window(warp, instr, l);
}

void from_generic(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1)
      warp.at<uint64_t>(instr.slot[0])[l] =
          warp.at<uint64_t>(instr.slot[1])[l] - window(warp, instr, l);
}

// mov.b64 d, {low, high}
void pack_pair(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1)
      warp.at<uint64_t>(instr.slot[0])[l] =
          warp.at<uint32_t>(instr.slot[1])[l] | uint64_t(warp.at<uint32_t>(instr.slot[2])[l]) << 32;
}

// mov.b64 {low, high}, a
void unpack_pair(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const uint64_t value = warp.at<uint64_t>(instr.slot[2])[l];
    warp.at<uint32_t>(instr.slot[0])[l] = static_cast<uint32_t>(value);
    warp.at<uint32_t>(instr.slot[1])[l] = static_cast<uint32_t>(value >> 32);
  }
}

Handler slot_move(uint32_t bytes, bool is_load, bool upper) {
  if (upper) return is_load ? &load_upper : &store_upper;
  if (bytes == 8) return &move_slot<uint64_t, uint64_t>;
  return is_load ? &move_slot<uint32_t, uint64_t> : &move_slot<uint64_t, uint32_t>;
}

}  // namespace ptx
