/* Which levels this build has, and which of them this machine can run. */
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

#if defined(__x86_64__)
extern const kernel_table llama2c_avx512, llama2c_avx2;
#elif defined(__aarch64__)
extern const kernel_table llama2c_neon;
#endif
extern const kernel_table llama2c_generic;

const kernel_table *const llama2c_levels[] = {
#if defined(__x86_64__)
    &llama2c_avx512,
    &llama2c_avx2,
#elif defined(__aarch64__)
    &llama2c_neon,
#endif
    &llama2c_generic,
    NULL,
};

int llama2c_can_run(const kernel_table *level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (level == &llama2c_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    unsigned a, b, c, d; /* not every compiler's __builtin_cpu_supports knows F16C */
    if (level == &llama2c_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
#endif
    (void)level;
    return 1;
}
