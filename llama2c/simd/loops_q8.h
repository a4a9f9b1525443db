/* Q8_0: 8-bit weights and activations in groups with a scale each, multiplied as integers.
 *
 * One order for every product: inside a group the integer sum is exact; then acc = fma((float)isum * w_scale, x_scale, acc),
 * groups ascending, one accumulator for an output. Where weight groups straddle rows (their size does not divide n), a
 * "group" is each intersection of a weight group and an activation group.
 *
 * A level may have its own quantiser, group_dots, transpose16, add_up_groups and packed kernel (HAVE_...). Integers are exact, so all agree.
 */

INLINE float scale_at(const char *scales, int64_t i) { /* scales may start at any byte */
    float scale;
    memcpy(&scale, scales + i * (int64_t)sizeof scale, sizeof scale);
    return scale;
}

INLINE int32_t dot_i8(const int8_t *a, const int8_t *b, int64_t n) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

#ifdef LEVEL_Q8 /* by the level that is compiled, not by the compiler's macros: those follow -march, too */
#include LEVEL_Q8
#endif

/* ---------------------------------------------------------------------------------------------- quantising a row */

#ifndef HAVE_QUANTIZE_GROUP
/* The largest |x| by its bits, which sort as the numbers do, with infinity and NaN above all. */
static inline uint32_t largest_bits(const float *x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* values = x / scale, halves away from zero: the truncated part is exact, so its rest is too. Returns their sum. */
static inline int32_t divide_and_round(int8_t *values, const float *x, int64_t n, float scale) {
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float q = x[i] / scale;
        int32_t whole = (int32_t)q;
        float rest = q - (float)whole;
        whole += (rest >= 0.5f) - (rest <= -0.5f);
        whole = whole > 127 ? 127 : whole < -127 ? -127 : whole;
        values[i] = (int8_t)whole;
        sum += whole;
    }
    return sum;
}
#endif

static void quantize_group(int8_t *values, float *scale_out, int32_t *offset, const float *x, int64_t n) {
    uint32_t largest = largest_bits(x, n);
    float max, scale;
    memcpy(&max, &largest, sizeof max);
    scale = max / 127.0f;
    int32_t sum = 0;
    if (largest >= 0x7f800000u || scale == 0.0f) { /* not finite: a NaN scale makes every product NaN; all zero: zeros */
        memset(values, 0, (size_t)n);
        scale = largest >= 0x7f800000u ? NAN : 0.0f;
    } else {
        sum = divide_and_round(values, x, n, scale);
    }
    *scale_out = scale;
    *offset = -128 * sum;
}

static void quantize(const q8_rows *to, const float *x, int64_t n, int64_t group_size) {
    for (int64_t g = 0, k = 0; k < n; g++, k += group_size)
        quantize_group(to->values + k, to->scales + g, to->offsets + g, x + k, n - k < group_size ? n - k : group_size);
    if (to->sums == NULL)
        return;
    for (int64_t k = 0; k < n; k += 16) {
        int16_t sum = 0;
        for (int i = 0; i < 16; i++)
            sum = (int16_t)(sum + to->values[k + i]);
        to->sums[k / 16] = sum;
    }
    for (int64_t g = 0; g < n / 32; g++)
        to->scaled_sums[g] = to->scales[g] * (float)(to->sums[2 * g] + to->sums[2 * g + 1]);
}

/* ---------------------------------------------------------------------------------------------- any group size */

static void widen_q8(float *out, const matrix *w, int64_t row) {
    int64_t n = w->columns, start = row * n;
    const int8_t *values = (const int8_t *)w->numbers + start;
    for (int64_t k = 0, end; k < n; k = end) {
        int64_t group = (start + k) / w->group_size, group_end = (group + 1) * w->group_size - start;
        float scale = scale_at(w->scales, group);
        end = group_end < n ? group_end : n;
        for (int64_t i = k; i < end; i++)
            out[i] = (float)values[i] * scale;
    }
}

static float dot_segments(const matrix *w, int64_t row, const int8_t *x, const float *x_scales, int64_t n) {
    int64_t size = w->group_size, start = row * n;
    float acc = 0;
    for (int64_t k = 0, end; k < n; k = end) {
        int64_t w_group = (start + k) / size, x_group = k / size;
        int64_t w_end = (w_group + 1) * size - start, x_end = (x_group + 1) * size;
        end = w_end < x_end ? w_end : x_end;
        end = end < n ? end : n;
        float isum = (float)dot_i8((const int8_t *)w->numbers + start + k, x + k, end - k);
        acc = fused(isum * scale_at(w->scales, w_group), x_scales[x_group], acc);
    }
    return acc;
}

/* ---------------------------------------------------------------------------------------------- one row, groups of 32 m */

#ifndef HAVE_GROUP_DOTS
/* isums[g] = w . x over group g, for up to 16 groups, then zeros. IN offsets[g] = -128 times the sum of x over group g. */
INLINE void group_dots(int32_t isums[16], const int8_t *w, const int8_t *x, const int32_t *offsets, int groups, int64_t size) {
    (void)offsets;
    for (int g = 0; g < 16; g++)
        isums[g] = g < groups ? dot_i8(w + g * size, x + g * size, size) : 0;
}
#endif

#ifndef HAVE_ADD_UP_GROUPS
#ifndef HAVE_TRANSPOSE16
static void transpose16(float out[16][16], const float *in, int64_t stride) {
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++)
            out[c][r] = in[r * stride + c];
}
#endif

/* acc[o] = fma(products[o][g], x_scales[g], acc[o]) over all groups, for 16 outputs in the lanes. */
static void add_up_groups(float acc[16], const float *products, int64_t stride, const float *x_scales, int64_t n_groups) {
    float columns[16][16] __attribute__((aligned(64)));
    reg sums[PARTS];
    for (int p = 0; p < PARTS; p++)
        sums[p] = reg_zero();
    for (int64_t g = 0; g < n_groups; g += 16) {
        transpose16(columns, products + g, stride);
        for (int64_t j = 0; j < 16 && g + j < n_groups; j++)
            UNROLL for (int p = 0; p < PARTS; p++)
                sums[p] = reg_fma(reg_load(columns[j] + p * LANES), reg_set1(x_scales[g + j]), sums[p]);
    }
    for (int p = 0; p < PARTS; p++)
        reg_store(acc + p * LANES, sums[p]);
}
#endif

/* 16 outputs (or the fewer that are left): each weight row is read once, in order. The products of its groups are stored, and
 * added up for all the outputs together, because the order allows only one accumulator for each. */
static void matvec_q8_block(float acc[16], const int8_t *x, const float *x_scales, const int32_t *offsets,
                            const matrix *w, int64_t first, int outs, int64_t n, float *products) {
    int64_t size = w->group_size, n_groups = n / size, stride = (n_groups + 15) / 16 * 16;
    for (int o = 0; o < outs; o++) {
        const int8_t *row = (const int8_t *)w->numbers + (first + o) * n;
        const char *scales = w->scales + (first + o) * n_groups * (int64_t)sizeof(float);
        for (int64_t g = 0; g < n_groups; g += 16) {
            int groups = n_groups - g < 16 ? (int)(n_groups - g) : 16;
            int32_t isums[16] __attribute__((aligned(64)));
            float w_scales[16] = {0}, *product = products + o * stride + g;
            for (int64_t k = 0; k < groups * size; k += 64)
                __builtin_prefetch(row + g * size + k + FETCH_AHEAD, 0, 2);
            group_dots(isums, row + g * size, x + g * size, offsets + g, groups, size);
            if (groups == 16)
                memcpy(w_scales, scales + g * (int64_t)sizeof(float), sizeof w_scales);
            else
                memcpy(w_scales, scales + g * (int64_t)sizeof(float), sizeof(float) * (size_t)groups);
            for (int j = 0; j < 16; j++)
                product[j] = (float)isums[j] * w_scales[j];
        }
    }
    if (outs < 16)
        memset(products + outs * stride, 0, sizeof(float) * (size_t)((16 - outs) * stride));
    add_up_groups(acc, products, stride, x_scales, n_groups);
}

/* ---------------------------------------------------------------------------------------------- many rows, packed */

/* A level packs the weights of PACKED_HALVES times 16 outputs so that one instruction multiplies many of them: pack16() packs
 * 16 of them, interleaved with the others, and packed_rows() makes acc[r][half][o] for `rows` rows, at most
 * PACKED_ROWS, with w_scales (n_groups, halves, 16). Both counts are constant where it is called. */
#ifndef HAVE_PACKED
/* As int16, interleaved in pairs: [k / 2][output][2]. */
enum { PACKED_ROWS = 4, PACKED_HALVES = 1 };
typedef int16_t packed_value;

static void pack16(packed_value *packed, int halves, const int8_t *w, int outs, int64_t n) {
    for (int64_t k = 0; k < n; k += 2)
        for (int o = 0; o < 16; o++)
            for (int i = 0; i < 2; i++)
                packed[(k * halves) * 16 + o * 2 + i] = o < outs ? w[o * n + k + i] : 0;
}

INLINE void packed_rows(float acc[][PACKED_HALVES][16], const packed_value *packed, const float *w_scales, const q8_rows *x,
                        int64_t row, int rows, int halves, int64_t n, int64_t size) {
    (void)halves;
    memset(acc, 0, sizeof(acc[0]) * (size_t)rows);
    for (int64_t g = 0; g < n / size; g++)
        for (int r = 0; r < rows; r++) {
            const int8_t *xv = x->values + (row + r) * n + g * size;
            int32_t isum[16] = {0};
            for (int64_t k = 0; k < size; k += 2)
                for (int o = 0; o < 16; o++) {
                    const packed_value *at = packed + (g * size + k) * 16 + o * 2;
                    isum[o] += at[0] * xv[k] + at[1] * xv[k + 1];
                }
            float x_scale = x->scales[(row + r) * x->n_groups + g];
            for (int o = 0; o < 16; o++)
                acc[r][0][o] = fused((float)isum[o] * w_scales[g * 16 + o], x_scale, acc[r][0][o]);
        }
}
#endif

INLINE void packed_up_to(float acc[][PACKED_HALVES][16], const packed_value *packed, const float *w_scales, const q8_rows *x,
                         int64_t row, int rows, int halves, int64_t n, int64_t size) {
    switch (rows) {
    case 1: packed_rows(acc, packed, w_scales, x, row, 1, halves, n, size); break;
    case 2: packed_rows(acc, packed, w_scales, x, row, 2, halves, n, size); break;
    case 3: packed_rows(acc, packed, w_scales, x, row, 3, halves, n, size); break;
    case 4: packed_rows(acc, packed, w_scales, x, row, 4, halves, n, size); break;
    case 5: packed_rows(acc, packed, w_scales, x, row, 5 % (PACKED_ROWS + 1), halves, n, size); break;
    case 6: packed_rows(acc, packed, w_scales, x, row, 6 % (PACKED_ROWS + 1), halves, n, size); break;
    }
}

static void matmul_q8_packed(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows, const matrix *w,
                             int64_t first, int outs, int64_t n, int add, void *pack) {
    int64_t size = w->group_size, n_groups = n / size, n_tiles = (n_rows + PACKED_ROWS - 1) / PACKED_ROWS;
    int halves = (outs + 15) / 16, width = 16 * halves;
    const int8_t *values = (const int8_t *)w->numbers;
    float *w_scales = pack;
    packed_value *packed = (packed_value *)(w_scales + width * (n_groups + 16));
    float acc[PACKED_ROWS][PACKED_HALVES][16] __attribute__((aligned(64)));
    for (int64_t g = 0; g < n_groups; g++)
        for (int o = 0; o < width; o++)
            w_scales[g * width + o] = o < outs ? scale_at(w->scales, (first + o) * n_groups + g) : 0;
    for (int h = 0; h < halves; h++)
        pack16(packed + h * (64 / (int)sizeof(packed_value)), halves, values + (first + 16 * h) * n, outs - 16 * h, n);
    for (int64_t tile = 0; tile < n_tiles; tile++) { /* equal tiles: 8 rows are 4 and 4 rather than 6 and 2 */
        int64_t r = n_rows * tile / n_tiles;
        int rows = (int)(n_rows * (tile + 1) / n_tiles - r);
        if (halves == PACKED_HALVES)
            packed_up_to(acc, packed, w_scales, x, r, rows, PACKED_HALVES, n, size);
        else
            packed_up_to(acc, packed, w_scales, x, r, rows, 1, n, size);
        for (int i = 0; i < rows; i++)
            for (int h = 0; h < halves; h++) {
                float *at = out + (r + i) * out_stride + 16 * h;
                int many = outs - 16 * h < 16 ? outs - 16 * h : 16;
                for (int o = 0; o < many; o++)
                    at[o] = add ? at[o] + acc[i][h][o] : acc[i][h][o];
            }
    }
}

static void matmul_q8(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows,
                      const matrix *w, int64_t first, int64_t n_out, int64_t n, int add, void *pack) {
    int64_t size = w->group_size;
    int aligned = size % 32 == 0 && n % size == 0;
    int packing = aligned && n_rows >= 3; /* packing costs about as much as two rows of products */
    int step = packing ? 16 * PACKED_HALVES : aligned ? 16 : 1;
    float acc[16];
    for (int64_t o = 0; o < n_out; o += step) {
        int outs = n_out - o < step ? (int)(n_out - o) : step;
        if (packing) {
            matmul_q8_packed(out + o, out_stride, x, n_rows, w, first + o, outs, n, add, pack);
            continue;
        }
        for (int64_t r = 0; r < n_rows; r++) {
            const int8_t *values = x->values + r * n;
            const float *scales = x->scales + r * x->n_groups;
            if (aligned)
                matvec_q8_block(acc, values, scales, x->offsets + r * x->n_groups, w, first + o, outs, n, pack);
            else
                acc[0] = dot_segments(w, first + o, values, scales, n);
            for (int i = 0; i < outs; i++) {
                float *at = out + r * out_stride + o + i;
                *at = add ? *at + acc[i] : acc[i];
            }
        }
    }
}
