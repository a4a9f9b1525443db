/* Sixteen floats in four vectors of the compiler's own, for every other machine. Where the hardware has no fused
 * multiply-add, a product is rounded before it is added, and the last bits may differ from those of the other levels. */
#include <math.h>
#include <string.h>

#define LEVEL generic
#define LANES 4
#define TILE_ROWS 2
#define TILE_OUTS 3
#define VALUE_REGS 8
#ifdef FP_FAST_FMAF /* never on x86-64, where setup.py compiles this level with -mno-avx */
#define HAVE_FMA
#endif

typedef float reg __attribute__((vector_size(16)));
typedef uint32_t reg_bits __attribute__((vector_size(16)));

static inline reg reg_set1(float a) { return (reg){a, a, a, a}; }
static inline reg reg_zero(void) { return reg_set1(0); }
static inline reg reg_load(const float *p) { reg a; memcpy(&a, p, sizeof a); return a; }
static inline void reg_store(float *p, reg a) { memcpy(p, &a, sizeof a); }
static inline reg reg_add(reg a, reg b) { return a + b; }
static inline reg reg_sub(reg a, reg b) { return a - b; }
static inline reg reg_mul(reg a, reg b) { return a * b; }
static inline reg reg_div(reg a, reg b) { return a / b; }
static inline reg reg_max(reg a, reg b) {
    for (int i = 0; i < LANES; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
static inline reg reg_min(reg a, reg b) {
    for (int i = 0; i < LANES; i++) a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
static inline reg reg_shl23(reg a) { return (reg)((reg_bits)a << 23); }
static inline reg reg_fma(reg a, reg b, reg c) {
#ifdef HAVE_FMA
    for (int i = 0; i < LANES; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

/* To fp16, to the nearest, ties to even, of numbers up to 65504. */
static inline void reg_narrow(uint16_t *half, const float *x) {
    for (int i = 0; i < LANES; i++) {
        uint32_t bits, sign, m;
        memcpy(&bits, x + i, 4);
        sign = bits >> 16 & 0x8000;
        m = bits & 0x7fffffff;
        if (m > 0x7f800000)
            m = 0x7e00 | (m >> 13 & 0x1ff); /* a NaN, quiet */
        else if (m < 0x38800000) { /* below 2^-14: a multiple of 2^-24 */
            float f, whole = 0.5f;
            memcpy(&f, &m, 4);
            f += whole; /* 0.5 has a last bit of 2^-24, so this rounds, ties to even */
            memcpy(&m, &f, 4);
            m -= 0x3f000000;
        } else
            m = (m + 0xfff + (m >> 13 & 1) - 0x38000000) >> 13;
        half[i] = (uint16_t)(sign | m);
    }
}
static inline reg reg_load_bf16(const void *p) {
    uint16_t half[LANES];
    memcpy(half, p, sizeof half);
    return (reg)((reg_bits){half[0], half[1], half[2], half[3]} << 16);
}
/* The exponent of fp16 counts from 15, that of fp32 from 127: moved into place, a number is too small by 2^112, exactly, those
 * below the smallest normal one too. Infinity and NaN have all bits of the exponent set in both. */
static inline reg reg_load_f16(const void *p) {
    uint16_t half[LANES];
    memcpy(half, p, sizeof half);
    reg_bits bits = {half[0], half[1], half[2], half[3]};
    reg_bits magnitude = (reg_bits)((reg)((bits & 0x7fff) << 13) * reg_set1(0x1p112f));
    reg_bits special = (reg_bits)((bits & 0x7c00) == 0x7c00);
    return (reg)(magnitude | (special & 0x7f800000) | (bits & 0x8000) << 16);
}
