/* The inner loops, written once on the `reg` of the level whose vec_*.h was included before this file.
 *
 * One order for every sum: 16 lanes, lane j takes the elements j, j + 16, ... with one fused multiply-add each (elements
 * past the end count as zeros), then the upper half of the lanes is added to the lower half, 16 -> 8 -> 4 -> 2 -> 1. A
 * level with narrower registers holds the 16 lanes in PARTS of them; lanes never meet before the tree.
 */
#include <math.h>
#include <string.h>

#include "kernels.h"

#define PARTS (16 / LANES)
enum { LONG_ROW = 512 };      /* elements */
enum { STRETCH = 768 };       /* elements of a row that a tile takes at once */
enum { ROW_BLOCK = 64 };      /* rows whose accumulators wait for the next stretch */
enum { CACHED_X = 1 << 18 };  /* floats of x that one pass over the weights uses, */
enum { PASS_ROWS = 96 };      /* unless those were fewer rows than this */
enum { PACK_ROWS = 20 };      /* rows from which on it pays to copy the weights of a tile */
enum { FETCH_AHEAD = 16384 }; /* bytes: how far ahead of its reading decode asks for weights */
enum { IN_CACHE = 1 << 17 };  /* bytes of weights below which it does not */
enum { DIRECT_STEP = 4 };     /* rows that use the weights while they are in registers */
/* CALL(rows) with a constant for up to DIRECT_STEP rows. A sanitizer would take minutes to compile that. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FOR_FEW(rows, CALL) CALL(rows);
#else
#define FOR_FEW(rows, CALL)                                                                                                    \
    switch (rows) {                                                                                                            \
    case 1: CALL(1); break;                                                                                                    \
    case 2: CALL(2); break;                                                                                                    \
    case 3: CALL(3); break;                                                                                                    \
    default: CALL(DIRECT_STEP);                                                                                                \
    }
#endif
#define SIZE_OF(type) ((type) == FLOAT32 ? 4 : 2)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1")
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#if LANES < 8
static inline reg reg_load_part(const float *p, int count) {
    float padded[LANES] = {0};
    memcpy(padded, p, sizeof(float) * (size_t)count);
    return reg_load(padded);
}
#endif

#ifndef HAVE_STORE_PART
static inline void reg_store_part(float *p, reg a, int count) {
    float whole[LANES];
    reg_store(whole, a);
    memcpy(p, whole, sizeof(float) * (size_t)count);
}
#endif

/* Up to LANES floats at p, of which `left` (any number, below 1 too) exist; zeros after them. */
INLINE reg load_up_to(const float *p, int64_t left) {
    return left >= LANES ? reg_load(p) : left > 0 ? reg_load_part(p, (int)left) : reg_zero();
}

static inline void store_up_to(float *p, reg a, int64_t left) {
    if (left >= LANES)
        reg_store(p, a);
    else
        reg_store_part(p, a, (int)left);
}

/* The same of a matrix whose numbers are of `type`, a constant. */
INLINE reg load_weights(const char *w, int type, int64_t left) {
    uint16_t padded[LANES] = {0};
    if (type == FLOAT32)
        return load_up_to((const float *)w, left);
    if (left <= 0)
        return reg_zero();
    if (left < LANES)
        w = memcpy(padded, w, sizeof(*padded) * (size_t)left);
    return type == FLOAT16 ? reg_load_f16(w) : reg_load_bf16(w);
}

INLINE float fused(float a, float b, float c) {
#ifdef HAVE_FMA
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Asks for `lines` cache lines that will soon be needed. */
INLINE void ask_for(const char *next, int64_t lines) {
    for (int64_t i = 0; i < lines; i++)
        __builtin_prefetch(next + 64 * i, 0, 2);
}

INLINE void store_acc(float *out, const float *acc, int many, int add) {
    for (int o = 0; o < many; o++)
        out[o] = add ? out[o] + acc[o] : acc[o];
}

/* ---------------------------------------------------------------------------------------------- sums of 16 lanes */

static float tree_sum(const float *lanes) {
    float s[16];
    memcpy(s, lanes, sizeof s);
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            s[j] += s[j + half];
    return s[0];
}

#ifndef HAVE_SUM16
static inline void sum16(float *sums, const float acc[16][16]) {
    for (int i = 0; i < 16; i++)
        sums[i] = tree_sum(acc[i]);
}
#endif

INLINE float sum_ahead(const float *x, int64_t n, int ahead) {
    reg sums[8];
    UNROLL for (int i = 0; i < 8; i++)
        sums[i] = reg_zero();
    int64_t k = 0;
    for (; k + 8 * LANES <= n; k += 8 * LANES)
        UNROLL for (int i = 0; i < 8; i++) {
            if (ahead)
                __builtin_prefetch((const char *)(x + k + i * LANES) + ahead, 0, 2);
            sums[i] = reg_add(sums[i], reg_load(x + k + i * LANES));
        }
    float total = 0, lanes[LANES];
    for (; k < n; k++)
        total += x[k];
    for (int i = 0; i < 8; i++) {
        reg_store(lanes, sums[i]);
        for (int j = 0; j < LANES; j++)
            total += lanes[j];
    }
    return total;
}

/* As with weights, prefetching helps where the data are not in the second cache. */
static float sum(const float *x, int64_t n) {
    return n < 1 << 20 ? sum_ahead(x, n, 0) : sum_ahead(x, n, FETCH_AHEAD);
}

/* ---------------------------------------------------------------------------------------------- exp, softmax, SwiGLU */

/* e^x: x = n ln 2 + r with |r| <= ln(2) / 2, the Taylor polynomial of degree 7 for e^r (relative error below 6e-9), times
 * 2^n in two factors so that results below the smallest normal number come out rounded and those too large as infinity.
 * Products are rounded before they are added: the same bits with and without fused operations. A NaN stays a NaN. */
static inline reg reg_round(reg x) { /* to the nearest integer, |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction */
    reg shift = reg_set1(12582912.0f);
    return reg_sub(reg_add(x, shift), shift);
}

static inline reg reg_pow2(reg n) { /* n + 127 in the last bits of a float, moved to where the exponent is */
    return reg_shl23(reg_add(n, reg_set1(12582912.0f + 127.0f)));
}

static inline reg reg_exp(reg x) {
    x = reg_min(reg_set1(90.0f), reg_max(reg_set1(-105.0f), x));
    reg n = reg_round(reg_mul(x, reg_set1(1.44269504f)));
    reg r = reg_sub(x, reg_mul(n, reg_set1(0.693359375f))); /* ln 2 = 0.693359375 - 2.12194440e-4; n * 0.69... is exact */
    r = reg_add(r, reg_mul(n, reg_set1(2.12194440e-4f)));
    static const float inverse_factorial[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    reg p = reg_set1(inverse_factorial[0]);
    for (int i = 1; i < 8; i++)
        p = reg_add(reg_mul(p, r), reg_set1(inverse_factorial[i]));
    reg half = reg_round(reg_mul(n, reg_set1(0.5f)));
    return reg_mul(reg_mul(p, reg_pow2(half)), reg_pow2(reg_sub(n, half)));
}

static float max_of(const float *x, int64_t n) {
    reg largest[PARTS];
    for (int p = 0; p < PARTS; p++)
        largest[p] = reg_set1(x[0]);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int p = 0; p < PARTS; p++)
            largest[p] = reg_max(largest[p], reg_load(x + i + p * LANES));
    float lanes[16], result = x[0];
    for (int p = 0; p < PARTS; p++)
        reg_store(lanes + p * LANES, largest[p]);
    for (int j = 0; j < 16; j++)
        result = lanes[j] > result ? lanes[j] : result;
    for (; i < n; i++)
        result = x[i] > result ? x[i] : result;
    return result;
}

static int64_t argmax(const float *x, int64_t n) {
    int nan = 0, here = 0;
    for (int64_t i = 0; i < n; i++)
        nan |= x[i] != x[i];
    if (nan)
        return -1;
    float max = max_of(x, n);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) { /* whole blocks, which the compiler makes vectors of */
        for (int j = 0; j < 64; j++)
            here |= x[i + j] == max;
        if (here)
            break;
    }
    while (x[i] != max)
        i++;
    return i;
}

/* x = exp((x - max) * scale); returns the sum. */
static float exp_and_sum(float *x, int64_t n, float max, float scale) {
    reg sums[PARTS];
    for (int p = 0; p < PARTS; p++)
        sums[p] = reg_zero();
    for (int64_t i = 0; i < n; i += 16)
        for (int p = 0; p < PARTS; p++) {
            int64_t at = i + p * LANES;
            if (at >= n)
                break;
            reg e = reg_exp(reg_mul(reg_sub(load_up_to(x + at, n - at), reg_set1(max)), reg_set1(scale)));
            store_up_to(x + at, e, n - at);
            sums[p] = reg_add(sums[p], load_up_to(x + at, n - at)); /* read again: zeros past the end */
        }
    float lanes[16];
    for (int p = 0; p < PARTS; p++)
        reg_store(lanes + p * LANES, sums[p]);
    return tree_sum(lanes);
}

static void softmax(float *x, int64_t n) {
    float sum = exp_and_sum(x, n, max_of(x, n), 1.0f);
    for (int64_t i = 0; i < n; i++)
        x[i] /= sum;
}

static void exp_logits(float *out, const float *x, int64_t n, float divisor) {
    reg by = reg_set1(divisor), max = reg_set1(max_of(x, n) / divisor);
    for (int64_t i = 0; i < n; i += LANES)
        store_up_to(out + i, reg_exp(reg_sub(reg_div(load_up_to(x + i, n - i), by), max)), n - i);
}

static void swiglu(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        reg g = load_up_to(gate + i, n - i), u = load_up_to(up + i, n - i);
        reg silu = reg_div(g, reg_add(reg_set1(1.0f), reg_exp(reg_sub(reg_zero(), g))));
        store_up_to(gate + i, reg_mul(silu, u), n - i);
    }
}

/* ---------------------------------------------------------------------------------------------- norm and rotation */

static void rmsnorm(float *out, const float *x, const float *weight, int64_t n, float eps) {
    reg squares[PARTS];
    for (int p = 0; p < PARTS; p++)
        squares[p] = reg_zero();
    for (int64_t i = 0; i < n; i += 16)
        for (int p = 0; p < PARTS; p++) {
            reg v = load_up_to(x + i + p * LANES, n - i - p * LANES);
            squares[p] = reg_fma(v, v, squares[p]);
        }
    float lanes[16];
    for (int p = 0; p < PARTS; p++)
        reg_store(lanes + p * LANES, squares[p]);
    reg scale = reg_set1(1.0f / sqrtf(tree_sum(lanes) / (float)n + eps));
    for (int64_t i = 0; i < n; i += LANES) { /* by registers, which may be loaded from any byte */
        reg normed = reg_mul(scale, load_up_to(x + i, n - i));
        store_up_to(out + i, reg_mul(load_up_to(weight + i, n - i), normed), n - i);
    }
}

/* Fused in the open: GCC 12 turns a * c - b * s beside a * s + b * c into a fused vfmaddsub in spite of -ffp-contract=off. */
INLINE void rotate_pairs(float *restrict out, const float *restrict x, const float *restrict table, int64_t n_pairs,
                         int64_t step, int64_t apart) {
    for (int64_t i = 0; i < n_pairs; i++) {
        float a = x[step * i], b = x[step * i + apart], c = table[2 * i], s = table[2 * i + 1];
        out[2 * i] = fused(a, c, -(b * s));
        out[2 * i + 1] = fused(a, s, b * c);
    }
}

static void rotate(float *out, const float *x, const float *table, int64_t n_pairs, int64_t step, int64_t apart) {
    if (step == 2)
        rotate_pairs(out, x, table, n_pairs, 2, 1);
    else
        rotate_pairs(out, x, table, n_pairs, 1, apart);
}

/* ---------------------------------------------------------------------------------------------- matrix product in fp32 */

INLINE void widen_type(float *out, const char *w, int type, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        store_up_to(out + i, load_weights(w + i * SIZE_OF(type), type, n - i), n - i);
}

static void widen_floats(float *out, const void *w, int type, int64_t n) {
    if (type == FLOAT32)
        memcpy(out, w, sizeof(float) * (size_t)n);
    else if (type == FLOAT16)
        widen_type(out, w, FLOAT16, n);
    else
        widen_type(out, w, BFLOAT16, n);
}

/* acc[r * outs + o] (+)= the 16 lanes of x[r] . w[o]; the accumulators of a part stay in registers where rows and outs are
 * constant. Output o is w_stride after output o - 1, and its next 16 elements are w_step after these. On the way, `fetches`
 * cache lines from `next` on are asked for with each 16 elements. */
INLINE void dot_tile(float acc[][16], int resume, const float *x, int64_t x_stride, int rows,
                     const float *w, int64_t w_stride, int64_t w_step, int outs, int64_t n, const char *next, int fetches) {
    UNROLL for (int p = 0; p < PARTS; p++) {
        const float *xp = x + p * LANES, *wp = w + p * LANES;
        reg a[TILE_ROWS][TILE_OUTS], wv[TILE_OUTS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int o = 0; o < outs; o++)
                a[r][o] = resume ? reg_load(acc[r * outs + o] + p * LANES) : reg_zero();
        int64_t k = 0;
        for (; k + 16 <= n; k += 16, wp += w_step) {
            if (p == 0)
                for (int i = 0; i < fetches; i++, next += 64)
                    __builtin_prefetch(next, 0, 2);
            UNROLL for (int o = 0; o < outs; o++)
                wv[o] = reg_load(wp + o * w_stride);
            UNROLL for (int r = 0; r < rows; r++) {
                reg xv = reg_load(xp + r * x_stride + k);
                UNROLL for (int o = 0; o < outs; o++)
                    a[r][o] = reg_fma(xv, wv[o], a[r][o]);
            }
        }
        if (k < n) {
            int64_t left = n - k - p * LANES;
            UNROLL for (int o = 0; o < outs; o++)
                wv[o] = load_up_to(wp + o * w_stride, left);
            UNROLL for (int r = 0; r < rows; r++) {
                reg xv = load_up_to(xp + r * x_stride + k, left);
                UNROLL for (int o = 0; o < outs; o++)
                    a[r][o] = reg_fma(xv, wv[o], a[r][o]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int o = 0; o < outs; o++)
                reg_store(acc[r * outs + o] + p * LANES, a[r][o]);
    }
}

/* The same with any number of rows up to TILE_ROWS. */
INLINE void dot_tile_rows(float acc[][16], int resume, const float *x, int64_t x_stride, int64_t rows,
                          const float *w, int64_t w_stride, int64_t w_step, int64_t n, const char *next, int fetches) {
    if (rows >= TILE_ROWS)
        dot_tile(acc, resume, x, x_stride, TILE_ROWS, w, w_stride, w_step, TILE_OUTS, n, next, fetches);
    else if (rows == 3)
        dot_tile(acc, resume, x, x_stride, 3 % TILE_ROWS, w, w_stride, w_step, TILE_OUTS, n, next, fetches);
    else if (rows == 2)
        dot_tile(acc, resume, x, x_stride, 2 % TILE_ROWS, w, w_stride, w_step, TILE_OUTS, n, next, fetches);
    else
        dot_tile(acc, resume, x, x_stride, 1, w, w_stride, w_step, TILE_OUTS, n, next, fetches);
}

/* acc[o] = the 16 lanes of x . w[o], for outputs that are read side by side: with a single one, each step would wait for the
 * last. Prefetching `ahead` bytes ahead (0: not) makes better use of the memory than the hardware's prefetcher. */
INLINE void dot_streams(float acc[][16], const float *x, const char *w, int type, int64_t w_stride, int outs, int64_t n,
                        int ahead) {
    const int64_t size = SIZE_OF(type), row = w_stride * size;
    reg a[4][PARTS], xv[PARTS];
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int p = 0; p < PARTS; p++)
            a[o][p] = reg_zero();
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        UNROLL for (int p = 0; p < PARTS; p++)
            xv[p] = reg_load(x + k + p * LANES);
        UNROLL for (int o = 0; o < outs; o++) {
            if (ahead)
                __builtin_prefetch(w + o * row + k * size + ahead, 0, 2);
            UNROLL for (int p = 0; p < PARTS; p++)
                a[o][p] = reg_fma(xv[p], load_weights(w + o * row + (k + p * LANES) * size, type, LANES), a[o][p]);
        }
    }
    if (k < n)
        UNROLL for (int p = 0; p < PARTS; p++) {
            int64_t left = n - k - p * LANES;
            xv[p] = load_up_to(x + k + p * LANES, left);
            UNROLL for (int o = 0; o < outs; o++)
                a[o][p] = reg_fma(xv[p], load_weights(w + o * row + (k + p * LANES) * size, type, left), a[o][p]);
        }
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int p = 0; p < PARTS; p++)
            reg_store(acc[o] + p * LANES, a[o][p]);
}

/* The outputs left over by whole tiles. */
static void dot_edge(float acc[][16], const float *x, int64_t x_stride, int64_t rows,
                     const float *w, int64_t w_stride, int outs, int64_t n) {
    for (int64_t r = 0; r < rows; r++) {
        int o = 0;
        for (; o + 2 <= outs; o += 2)
            dot_streams(acc + r * outs + o, x + r * x_stride, (const char *)(w + o * w_stride), FLOAT32, w_stride, 2, n, 0);
        if (o < outs)
            dot_streams(acc + r * outs + o, x + r * x_stride, (const char *)(w + o * w_stride), FLOAT32, w_stride, 1, n, 0);
    }
}

/* One row against all the outputs, `streams` rows of weights (1, 2 or 4) at a time, prefetching `ahead` bytes ahead. */
INLINE void matvec_streams(float *out, const float *x, const char *w, int type, int64_t w_stride, int64_t n_out, int64_t n,
                           int add, int streams, int ahead) {
    const int64_t row = w_stride * SIZE_OF(type);
    float acc[16][16] __attribute__((aligned(64))), sums[16];
    for (int64_t o = 0; o < n_out; o += 16) {
        int outs = n_out - o < 16 ? (int)(n_out - o) : 16, i = 0;
        for (; i + streams <= outs; i += streams)
            dot_streams(acc + i, x, w + (o + i) * row, type, w_stride, streams, n, ahead);
        for (; i < outs; i++)
            dot_streams(acc + i, x, w + (o + i) * row, type, w_stride, 1, n, ahead);
        if (outs < 16)
            memset(acc + outs, 0, sizeof(acc[0]) * (size_t)(16 - outs));
        sum16(sums, acc);
        for (i = 0; i < outs; i++)
            out[o + i] = add ? out[o + i] + sums[i] : sums[i];
    }
}

/* In the cache the chains of additions take the time, and those of several rows overlap. Memory is read fastest in one stream,
 * prefetched far enough ahead. */
INLINE void matvec_type(float *out, const float *x, const char *w, int type, int64_t w_stride, int64_t n_out, int64_t n,
                        int add) {
    if (n_out * n * SIZE_OF(type) >= IN_CACHE)
        matvec_streams(out, x, w, type, w_stride, n_out, n, add, 1, FETCH_AHEAD);
    else if (n <= LONG_ROW)
        matvec_streams(out, x, w, type, w_stride, n_out, n, add, 4, 0);
    else
        matvec_streams(out, x, w, type, w_stride, n_out, n, add, 2, 0);
}

static void matvec(float *out, const float *x, const void *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add) {
    if (type == FLOAT32)
        matvec_type(out, x, w, FLOAT32, w_stride, n_out, n, add);
    else if (type == FLOAT16)
        matvec_type(out, x, w, FLOAT16, w_stride, n_out, n, add);
    else
        matvec_type(out, x, w, BFLOAT16, w_stride, n_out, n, add);
}

/* acc[r] = the 16 lanes of x[r] . w for `rows` rows, a constant up to DIRECT_STEP. */
INLINE void dot_rows(float acc[][16][16], const float *x, int64_t x_stride, int rows, const char *w, int type, int64_t n) {
    const int64_t size = SIZE_OF(type);
    reg a[DIRECT_STEP][PARTS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < PARTS; p++)
            a[r][p] = reg_zero();
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        __builtin_prefetch(w + k * size + FETCH_AHEAD, 0, 2);
        UNROLL for (int p = 0; p < PARTS; p++) {
            reg wv = load_weights(w + (k + p * LANES) * size, type, LANES);
            UNROLL for (int r = 0; r < rows; r++)
                a[r][p] = reg_fma(reg_load(x + r * x_stride + k + p * LANES), wv, a[r][p]);
        }
    }
    if (k < n)
        UNROLL for (int p = 0; p < PARTS; p++) {
            int64_t at = k + p * LANES;
            reg wv = load_weights(w + at * size, type, n - at);
            UNROLL for (int r = 0; r < rows; r++)
                a[r][p] = reg_fma(load_up_to(x + r * x_stride + at, n - at), wv, a[r][p]);
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < PARTS; p++)
            reg_store(acc[r][0] + p * LANES, a[r][p]);
}

/* Up to DIRECT_ROWS rows against all the outputs. The weights are read once, in one stream. */
INLINE void direct_type(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows,
                        const char *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add) {
    float acc[DIRECT_ROWS][16][16] __attribute__((aligned(64))), sums[16];
    for (int64_t o = 0; o < n_out; o += 16) {
        int outs = n_out - o < 16 ? (int)(n_out - o) : 16;
        for (int i = 0; i < outs; i++)
            for (int64_t r = 0; r < n_rows; r += DIRECT_STEP) {
                int rows = n_rows - r < DIRECT_STEP ? (int)(n_rows - r) : DIRECT_STEP;
                const float *from = x + r * x_stride;
                const char *row = w + (o + i) * w_stride * SIZE_OF(type);
#define CALL(rows) dot_rows((float(*)[16][16])acc[r][i], from, x_stride, rows, row, type, n)
                FOR_FEW(rows, CALL)
#undef CALL
            }
        for (int64_t r = 0; r < n_rows; r++) {
            if (outs < 16)
                memset(acc[r] + outs, 0, sizeof(acc[r][0]) * (size_t)(16 - outs));
            sum16(sums, acc[r]);
            store_acc(out + r * out_stride + o, sums, outs, add);
        }
    }
}

static void matmul_direct_floats(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows,
                                 const char *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add) {
    if (type == FLOAT32)
        direct_type(out, out_stride, x, x_stride, n_rows, w, FLOAT32, w_stride, n_out, n, add);
    else if (type == FLOAT16)
        direct_type(out, out_stride, x, x_stride, n_rows, w, FLOAT16, w_stride, n_out, n, add);
    else
        direct_type(out, out_stride, x, x_stride, n_rows, w, BFLOAT16, w_stride, n_out, n, add);
}

/* out[r, o] (+)= sums[r * outs + o], for the first `used` of the outs. */
INLINE void store_rows(float *out, int64_t out_stride, const float *sums, int64_t rows, int outs, int used, int add) {
    for (int64_t r = 0; r < rows; r++, out += out_stride, sums += outs)
        for (int o = 0; o < used; o += LANES) {
            reg new = load_up_to(sums + o, used - o);
            store_up_to(out + o, add ? reg_add(load_up_to(out + o, used - o), new) : new, used - o);
        }
}

/* out[r, o] (+)= the sum of acc[r * outs + o], for the first `used` of the outs; in acc there is room for a multiple of 16. */
static void store_sums(float *out, int64_t out_stride, float acc[][16], int64_t rows, int outs, int used, int add) {
    float sums[ROW_BLOCK * TILE_OUTS];
    int64_t i = 0, filled = rows * outs;
    for (; i + 16 <= filled; i += 16)
        sum16(sums + i, acc + i);
    if (i < filled) {
        memset(acc + filled, 0, sizeof(acc[0]) * (size_t)(i + 16 - filled));
        sum16(sums + i, acc + i);
    }
    if (used == TILE_OUTS && !add)
        store_rows(out, out_stride, sums, rows, TILE_OUTS, TILE_OUTS, 0);
    else if (used == TILE_OUTS)
        store_rows(out, out_stride, sums, rows, TILE_OUTS, TILE_OUTS, 1);
    else
        store_rows(out, out_stride, sums, rows, outs, used, add);
}

/* TILE_OUTS rows of w as one stream of whole cache lines of fp32, 16 elements of each in turn, zeros where there are none. */
INLINE void pack_type(float *packed, const char *w, int type, int64_t row, int outs, int64_t n) {
    for (int64_t k = 0; k < n; k += 16, packed += 16 * TILE_OUTS)
        UNROLL for (int o = 0; o < TILE_OUTS; o++)
            UNROLL for (int p = 0; p < PARTS; p++) {
                int64_t at = k + p * LANES;
                reg new = o < outs ? load_weights(w + o * row + at * SIZE_OF(type), type, n - at) : reg_zero();
                reg_store(packed + 16 * o + p * LANES, new);
            }
}

static void pack_tile(float *packed, const char *w, int type, int64_t row, int outs, int64_t n) {
    if (type == FLOAT32)
        pack_type(packed, w, FLOAT32, row, outs, n);
    else if (type == FLOAT16)
        pack_type(packed, w, FLOAT16, row, outs, n);
    else
        pack_type(packed, w, BFLOAT16, row, outs, n);
}

/* Tile by tile of TILE_OUTS outputs, whose weights serve all the rows. A tile and the x that stream by should stay in the first
 * cache: long rows are taken in stretches, and the accumulators of up to ROW_BLOCK rows wait from one to the next. Where
 * there are many rows, the weights are packed (copied) first, because a file seldom aligns them to cache lines, and a load that
 * is 4 bytes off reads two lines. 16-bit weights are always packed, which also widens them. On the way, the next tile is
 * prefetched, a part of it with each tile of rows. */
static void matmul_tiles(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows,
                         const char *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add, float *pack) {
    float acc[ROW_BLOCK * TILE_OUTS][16] __attribute__((aligned(64)));
    int64_t n_tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS, n_stretches = (n + STRETCH - 1) / STRETCH;
    int64_t stretch = ((n + n_stretches - 1) / n_stretches + 15) / 16 * 16;
    int64_t block = n_stretches == 1 ? 2 * TILE_ROWS : ROW_BLOCK;
    int fetches = n_tiles < TILE_OUTS ? (int)((TILE_OUTS + n_tiles - 1) / n_tiles) : 1;
    int64_t row = w_stride * SIZE_OF(type);
    float *packed = type != FLOAT32 || n_rows >= PACK_ROWS ? pack : NULL;
    for (int64_t o = 0; o < n_out; o += TILE_OUTS) {
        int outs = n_out - o < TILE_OUTS ? (int)(n_out - o) : TILE_OUTS;
        const float *tile = (const float *)(w + o * row); /* read only where it is not packed */
        const char *next = w + (o + TILE_OUTS) * row, *end = next + TILE_OUTS * row;
        if (packed)
            pack_tile(packed, w + o * row, type, row, outs, n);
        for (int64_t r = 0, rows; r < n_rows; r += rows) {
            rows = n_rows - r < block ? n_rows - r : block;
            float *to = out + r * out_stride + o;
            if (outs < TILE_OUTS && !packed) {
                dot_edge(acc, x + r * x_stride, x_stride, rows, tile, w_stride, outs, n);
                store_sums(to, out_stride, acc, rows, outs, outs, add);
                continue;
            }
            for (int64_t k = 0; k < n; k += stretch) {
                int64_t length = n - k < stretch ? n - k : stretch;
                for (int64_t i = 0; i < rows; i += TILE_ROWS, next += fetches * (length / 16) * 64) {
                    const float *from = x + (r + i) * x_stride + k;
                    int ask = next < end ? fetches : 0;
                    if (packed)
                        dot_tile_rows(acc + i * TILE_OUTS, k > 0, from, x_stride, rows - i,
                                      packed + k * TILE_OUTS, 16, 16 * TILE_OUTS, length, next, ask);
                    else
                        dot_tile_rows(acc + i * TILE_OUTS, k > 0, from, x_stride, rows - i,
                                      tile + k, w_stride, 16, length, next, ask);
                }
            }
            store_sums(to, out_stride, acc, rows, TILE_OUTS, outs, add);
        }
    }
}

/* One pass over the weights, or several with fewer rows where all of x would not stay in the second cache. */
static void matmul_floats(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows,
                          const void *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add, void *pack) {
    if (n_rows == 1) {
        matvec(out, x, w, type, w_stride, n_out, n, add);
        return;
    }
    if (n_rows <= DIRECT_ROWS && (type != FLOAT32 || n_out * n * SIZE_OF(type) >= IN_CACHE)) {
        matmul_direct_floats(out, out_stride, x, x_stride, n_rows, w, type, w_stride, n_out, n, add);
        return;
    }
    int64_t most = CACHED_X / n > PASS_ROWS ? CACHED_X / n : PASS_ROWS, n_passes = (n_rows + most - 1) / most;
    int64_t pass = ((n_rows + n_passes - 1) / n_passes + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (int64_t r = 0; r < n_rows; r += pass)
        matmul_tiles(out + r * out_stride, out_stride, x + r * x_stride, x_stride, n_rows - r < pass ? n_rows - r : pass,
                     w, type, w_stride, n_out, n, add, pack);
}

/* ---------------------------------------------------------------------------------------------- the cache */

/* fp16, rounded to the nearest, ties to even. What is too large for it becomes the largest: +-65504. */
INLINE void narrow(uint16_t *out, const float *x, int64_t n) {
    float part[LANES];
    uint16_t half[LANES];
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t count = n - i < LANES ? n - i : LANES;
        reg v = reg_max(reg_set1(-65504.0f), reg_min(reg_set1(65504.0f), load_up_to(x + i, n - i))); /* a NaN stays one */
        reg_store(part, v);
        reg_narrow(half, part);
        memcpy(out + i, half, sizeof(*half) * (size_t)count);
    }
}

static void store(void *out, int type, int64_t step, const float *x, int64_t n) {
    if (type == FLOAT32) {
        for (int64_t i = 0; i < n; i++)
            memcpy((char *)out + i * step * 4, x + i, 4);
        return;
    }
    uint16_t half[64];
    for (int64_t i = 0; i < n; i += 64) {
        int64_t count = n - i < 64 ? n - i : 64;
        narrow(half, x + i, count);
        for (int64_t j = 0; j < count; j++)
            memcpy((char *)out + (i + j) * step * 2, half + j, 2);
    }
}

#include "attention.h"

#include "loops_q8.h"

#include "blocks.h"

/* ---------------------------------------------------------------------------------------------- the kinds of matrices */

static void widen(float *out, const matrix *w, int64_t row) {
    switch (w->kind) {
    case FLOAT32:
    case FLOAT16:
    case BFLOAT16: widen_floats(out, w->numbers + row * w->columns * SIZE_OF(w->kind), w->kind, w->columns); break;
    case Q8_0: widen_q8(out, w, row); break;
    default: widen_blocks(out, w, row);
    }
}

static void matmul(float *out, int64_t out_stride, const float *x, const q8_rows *xq, int64_t n_rows,
                   const matrix *w, int64_t first, int64_t n_out, int add, void *pack) {
    int64_t n = w->columns;
    switch (w->kind) {
    case FLOAT32:
    case FLOAT16:
    case BFLOAT16:
        matmul_floats(out, out_stride, x, n, n_rows,
                      w->numbers + first * n * SIZE_OF(w->kind), w->kind, n, n_out, n, add, pack);
        break;
    case Q8_0: matmul_q8(out, out_stride, xq, n_rows, w, first, n_out, n, add, pack); break;
    default: matmul_blocks(out, out_stride, xq, n_rows, w, first, n_out, add, pack);
    }
}

const kernel_table JOIN(llama2c_, LEVEL) = {
    TEXT(LEVEL), rmsnorm, sum, argmax, softmax, exp_logits, swiglu, rotate, widen, quantize, matmul, store, attention,
};
