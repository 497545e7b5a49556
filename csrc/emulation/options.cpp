#include "emulation/options.hpp"

#include <cstdlib>
#include <cstring>
#include <set>

#include "core/error.hpp"

namespace catapult::emulation {
namespace {

std::string skip_file;
int skip_line = 0;  // 0: nothing is skipped, one comparison per barrier
bool tracing = false;
std::set<std::string> sites;

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

const char* from_csrc(const char* file) {
  const char* found = nullptr;
  for (const char* p = file; (p = std::strstr(p, "csrc/")) != nullptr; p += 5) found = p;
  return found ? found : file;
}

}  // namespace

Order read_order() {
  const std::string order = variable("CATAPULT_EMU_ORDER");
  if (order.empty() || order == "forward") return Order::kForward;
  if (order == "reverse") return Order::kReverse;
  if (order == "random") return Order::kRandom;
  fail_runtime("emulation", "CATAPULT_EMU_ORDER must be forward, reverse or random, got '", order,
               "'");
}

void read_skip() {
  tracing = *variable("CATAPULT_EMU_TRACE") != 0;
  skip_line = 0;
  const std::string skip = variable("CATAPULT_EMU_SKIP");
  if (skip.empty()) return;
  const size_t colon = skip.rfind(':');
  const int line = colon == std::string::npos ? 0 : std::atoi(skip.c_str() + colon + 1);
  if (line <= 0) fail_runtime("emulation", "CATAPULT_EMU_SKIP must be file:line, got '", skip, "'");
  skip_file = skip.substr(0, colon);
  skip_line = line;
}

bool is_skipped(const Place& place) {
  if (place.line != skip_line) return false;
  const size_t have = std::strlen(place.file), want = skip_file.size();
  return have >= want && skip_file == place.file + (have - want) &&
         (have == want || place.file[have - want - 1] == '/');
}

void note_site(const char* kind, const Place& place) {
  if (tracing) sites.insert(std::string(kind) + " " + to_text(place));
}

std::string to_text(const Place& place) {
  return std::string(from_csrc(place.file)) + ":" + std::to_string(place.line);
}

}  // namespace catapult::emulation

// For tests, through ctypes: "kind file:line" of every site that ran since the last call.
extern "C" __attribute__((visibility("default"))) const char* catapult_emulation_sites() {
  static std::string text;
  text.clear();
  for (const std::string& site : catapult::emulation::sites) text += site + "\n";
  catapult::emulation::sites.clear();
  return text.c_str();
}
