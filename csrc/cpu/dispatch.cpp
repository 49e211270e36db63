// Which instruction sets there are, and the choice between them.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace addnorm {

extern const Kernels k_generic;
#if defined(__x86_64__)
extern const Kernels k_avx2, k_avx512, k_avx512_bf16;
#endif

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) sets.push_back(&k_avx512_bf16);
  if (avx512) sets.push_back(&k_avx512);
  if (avx2) sets.push_back(&k_avx2);
#endif
  sets.push_back(&k_generic);
  return sets;
}

namespace {

const Kernels& choose() {
  const std::vector<const Kernels*> sets = available_kernels();
  const char* wanted = std::getenv("ADDNORM_CPU_ISA");
  if (!wanted || !*wanted) return *sets.front();
  std::string names;
  for (const Kernels* set : sets) {
    if (std::string(wanted) == set->name) return *set;
    names += names.empty() ? set->name : std::string(", ") + set->name;
  }
  throw std::runtime_error("ADDNORM_CPU_ISA is \"" + std::string(wanted) + "\"; this processor runs " + names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace addnorm
