// zoo NAME...: runs the animals and prints "NAME ok", "NAME wrong" or "NAME error: ...".
#include "harness.hpp"

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const auto found = zoo::animals().find(argv[i]);
    if (found == zoo::animals().end()) return 2;
    try {
      std::printf("%s %s\n", argv[i], found->second() ? "ok" : "wrong");
    } catch (const catapult::Error& error) {
      std::printf("%s error: %s\n", argv[i], error.what());
    }
    std::fflush(stdout);
  }
  return 0;
}
