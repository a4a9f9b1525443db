/* Sixteen floats in one zmm register. */
#include <immintrin.h>

#define LEVEL avx512
#define LEVEL_Q8 "q8_avx512.h"
#define LEVEL_BLOCKS "blocks_avx512.h"
#define HAVE_FMA
#define LANES 16
#define TILE_ROWS 4 /* a matrix tile is TILE_ROWS x TILE_OUTS accumulators, which with their operands fill the registers */
#define TILE_OUTS 6
#define VALUE_REGS 16 /* accumulators of the weighted sum of values */

typedef __m512 reg;

static inline reg reg_zero(void) { return _mm512_setzero_ps(); }
static inline reg reg_set1(float a) { return _mm512_set1_ps(a); }
static inline reg reg_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void reg_store(float *p, reg a) { _mm512_storeu_ps(p, a); }
static inline reg reg_add(reg a, reg b) { return _mm512_add_ps(a, b); }
static inline reg reg_sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
static inline reg reg_mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
static inline reg reg_div(reg a, reg b) { return _mm512_div_ps(a, b); }
static inline reg reg_fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
static inline reg reg_max(reg a, reg b) { return _mm512_max_ps(a, b); }
static inline reg reg_min(reg a, reg b) { return _mm512_min_ps(a, b); }
static inline reg reg_shl23(reg a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23)); }

static inline reg reg_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
static inline void reg_narrow(uint16_t *half, const float *x) {
    _mm256_storeu_si256((__m256i *)half, _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT));
}
static inline reg reg_load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

/* The first `count` (below LANES) floats, zeros after them. */
static inline reg reg_load_part(const float *p, int count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}

#define HAVE_STORE_PART
static inline void reg_store_part(float *p, reg a, int count) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), a);
}

/* One level of the tree for several vectors at once: the lanes left of a and of b, the upper half of each added to its lower
 * half, side by side in one register. fold8 takes one vector of 16 lanes in each argument (in memory: loading half a register
 * costs less than moving it), fold4 two of 8, fold2 four of 4 (a quarter of the register each), fold1 eight of 2. */
static inline reg halves(const float *a, const float *b) {
    return _mm512_mask_broadcast_f32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), 0xFF00, _mm256_loadu_ps(b));
}
static inline reg fold8(const float *a, const float *b) {
    return _mm512_add_ps(halves(a, b), halves(a + 8, b + 8));
}
static inline reg fold4(reg a, reg b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}
static inline reg fold2(reg a, reg b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
}
static inline reg fold1(reg a, reg b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

/* sums[i] = the tree sum of acc[i]. fold2 and fold1 stay inside the quarters, so quarter q must hold the vectors 4 q to 4 q + 3
 * for the sums to come out in order. */
#define HAVE_SUM16
static inline void sum16(float *sums, const float acc[16][16]) {
    reg quarter[4];
    for (int i = 0; i < 4; i++) {
        /* quarters of quarter[i]: vectors i, 4 + i, 8 + i, 12 + i, four lanes each */
        quarter[i] = fold4(fold8(acc[i], acc[4 + i]), fold8(acc[8 + i], acc[12 + i]));
    }
    reg_store(sums, fold1(fold2(quarter[0], quarter[1]), fold2(quarter[2], quarter[3])));
}
