/* Sixteen floats in one zmm register. */
#include <immintrin.h>

#define LEVEL avx512
#define LANES 16
#define TILE_ROWS 4 /* a matrix tile is TILE_ROWS x TILE_OUTS accumulators, which with their operands fill the registers */
#define TILE_OUTS 6
#define VALUE_REGS 4 /* registers of head_size that the weighted sum of values handles at once, for 4 queries */

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

/* The first `count` (below LANES) floats, zeros after them. */
static inline reg reg_load_part(const float *p, int count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}

/* a and b are 16 partial sums each; their 8-lane halves added: (a, b). The names of the next three follow. */
#define FOLD(lower, upper) _mm512_add_ps(lower, upper)
static inline reg fold8(reg a, reg b) {
    return FOLD(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}
static inline reg fold4(reg a, reg b) {
    return FOLD(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}
static inline reg fold2(reg a, reg b) {
    return FOLD(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
}
static inline reg fold1(reg a, reg b) {
    return FOLD(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

/* sums[i] = the tree sum of acc[i], for 16 vectors at once: each fold halves the vectors and the lanes that are left of
 * each. fold4 leaves one vector a quarter, fold2 and fold1 work inside the quarters, so the vectors are paired such that
 * quarter q, lane l of the end is vector 4 l' + ..., in order. */
#define HAVE_SUM16
static inline void sum16(float *sums, const float acc[16][16]) {
    reg quarter[4];
    for (int i = 0; i < 4; i++) {
        /* quarters of quarter[i]: vectors i, 4 + i, 8 + i, 12 + i, four lanes each */
        reg lower = fold8(reg_load(acc[i]), reg_load(acc[4 + i]));
        reg upper = fold8(reg_load(acc[8 + i]), reg_load(acc[12 + i]));
        quarter[i] = fold4(lower, upper);
    }
    reg_store(sums, fold1(fold2(quarter[0], quarter[1]), fold2(quarter[2], quarter[3])));
}
