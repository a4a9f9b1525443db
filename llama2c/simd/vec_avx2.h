/* Sixteen floats in two ymm registers. */
#include <immintrin.h>

#define LEVEL avx2
#define LEVEL_Q8 "q8_avx2.h"
#define LEVEL_BLOCKS "blocks_avx2.h"
#define HAVE_FMA
#define LANES 8
#define TILE_ROWS 4
#define TILE_OUTS 3
#define VALUE_REGS 8

typedef __m256 reg;

static inline reg reg_zero(void) { return _mm256_setzero_ps(); }
static inline reg reg_set1(float a) { return _mm256_set1_ps(a); }
static inline reg reg_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void reg_store(float *p, reg a) { _mm256_storeu_ps(p, a); }
static inline reg reg_add(reg a, reg b) { return _mm256_add_ps(a, b); }
static inline reg reg_sub(reg a, reg b) { return _mm256_sub_ps(a, b); }
static inline reg reg_mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
static inline reg reg_div(reg a, reg b) { return _mm256_div_ps(a, b); }
static inline reg reg_fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
static inline reg reg_max(reg a, reg b) { return _mm256_max_ps(a, b); }
static inline reg reg_min(reg a, reg b) { return _mm256_min_ps(a, b); }
static inline reg reg_shl23(reg a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)); }

static inline reg reg_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline void reg_narrow(uint16_t *half, const float *x) {
    _mm_storeu_si128((__m128i *)half, _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT));
}
static inline reg reg_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

static inline reg reg_load_part(const float *p, int count) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    __m256i mask = _mm256_loadu_si256((const __m256i *)(ones_then_zeros + 8 - count));
    return _mm256_maskload_ps(p, mask);
}

/* sums[i] = the tree sum of acc[i], eight vectors at a time. */
#define HAVE_SUM16
static inline __m256 fold_pair(__m256 a, __m256 b) { /* four lanes left of each: a in the low half, b in the high one */
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
static inline void sum16(float *sums, const float acc[16][16]) {
    for (int first = 0; first < 16; first += 8) {
        __m256 eight[8], four[4];
        for (int i = 0; i < 8; i++)
            eight[i] = _mm256_add_ps(_mm256_loadu_ps(acc[first + i]), _mm256_loadu_ps(acc[first + i] + 8));
        for (int i = 0; i < 4; i++)
            four[i] = fold_pair(eight[i], eight[i + 4]); /* vectors i and i + 4 */
        __m256 ab = _mm256_add_ps(_mm256_shuffle_ps(four[0], four[1], 0x44), _mm256_shuffle_ps(four[0], four[1], 0xEE));
        __m256 cd = _mm256_add_ps(_mm256_shuffle_ps(four[2], four[3], 0x44), _mm256_shuffle_ps(four[2], four[3], 0xEE));
        __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xDD));
        _mm256_storeu_ps(sums + first, all);
    }
}
