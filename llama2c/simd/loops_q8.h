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

/* ---------------------------------------------------------------------------------------------- few rows, groups of 32 m */

#ifndef HAVE_DIRECT_Q8_ROWS
/* Rows up to which direct_q8() is faster than packing. */
INLINE int direct_q8_rows(int64_t size) { return (void)size, DIRECT_ROWS; }
#endif

#ifndef HAVE_GROUP_DOTS
/* isums[r][g] = w . x[r] over group g, for up to 16 groups and `rows` rows; any numbers for the groups that do not exist.
 * offsets[r][g] = -128 times the sum of x[r] over group g. */
INLINE void group_dots(int32_t isums[][16], const int8_t *w, const int8_t *x, int64_t x_stride, const int32_t *offsets,
                       int64_t offset_stride, int rows, int groups, int64_t size) {
    (void)offsets, (void)offset_stride;
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 16; g++)
            isums[r][g] = g < groups ? dot_i8(w + g * size, x + r * x_stride + g * size, size) : 0;
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

/* products[r][g] = (float)isum * scale for 16 groups (or the fewer that are left) and `rows` rows, a constant. */
INLINE void group_products(float *products, int64_t row_stride, const int8_t *w, const char *w_scales, const int8_t *x,
                           int64_t x_stride, const int32_t *offsets, int64_t offset_stride, int rows, int groups, int64_t size) {
    int32_t isums[DIRECT_STEP][16] __attribute__((aligned(64)));
    float scales[16] = {0};
    group_dots(isums, w, x, x_stride, offsets, offset_stride, rows, groups, size);
    if (groups == 16)
        memcpy(scales, w_scales, sizeof scales);
    else
        memcpy(scales, w_scales, sizeof(float) * (size_t)groups);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 16; j++)
            products[r * row_stride + j] = (float)isums[r][j] * scales[j];
}

/* Up to DIRECT_ROWS rows, straight with the weights in the file, which are read once and in order. The groups of 16 outputs follow
 * each other, so they are taken 16 at a time without regard to where an output ends; for this the rows of x are copied and
 * continued with their own beginning. The products of the groups are stored, and added up for all the outputs together,
 * because the order allows only one accumulator for each. */
INLINE void direct_q8(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows, const matrix *w,
                      int64_t first, int64_t n_out, int64_t n, int add, char *scratch) {
    int64_t size = w->group_size, n_groups = n / size, plane = 16 * n_groups + 16, length = n + 16 * size;
    float *products = (float *)scratch;
    int32_t *offsets = (int32_t *)(products + n_rows * plane);
    int8_t *xs = (int8_t *)(offsets + n_rows * (n_groups + 16));
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t g = 0; g < n_groups + 16; g++) {
            offsets[r * (n_groups + 16) + g] = x->offsets[r * n_groups + g % n_groups];
            memcpy(xs + r * length + g * size, x->values + r * n + g % n_groups * size, (size_t)size);
        }
    for (int64_t o = 0; o < n_out; o += 16) {
        int outs = n_out - o < 16 ? (int)(n_out - o) : 16;
        const int8_t *values = (const int8_t *)w->numbers + (first + o) * n;
        const char *scales = w->scales + (first + o) * n_groups * (int64_t)sizeof(float);
        for (int64_t done = 0, g = 0; done < outs * n_groups; done += 16, g = (g + 16) % n_groups) {
            int groups = outs * n_groups - done < 16 ? (int)(outs * n_groups - done) : 16;
            for (int64_t k = 0; k < groups * size; k += 64)
                __builtin_prefetch(values + done * size + k + FETCH_AHEAD, 0, 2);
            for (int64_t r = 0; r < n_rows; r += DIRECT_STEP) {
                int rows = n_rows - r < DIRECT_STEP ? (int)(n_rows - r) : DIRECT_STEP;
#define CALL(rows)                                                                                                             \
    group_products(products + r * plane + done, plane, values + done * size, scales + done * (int64_t)sizeof(float),           \
                   xs + r * length + g * size, length, offsets + r * (n_groups + 16) + g, n_groups + 16, rows, groups, size)
                FOR_FEW(rows, CALL)
#undef CALL
            }
        }
        for (int64_t r = 0; r < n_rows; r++) {
            float acc[16];
            if (outs < 16)
                memset(products + r * plane + outs * n_groups, 0, sizeof(float) * (size_t)((16 - outs) * n_groups));
            add_up_groups(acc, products + r * plane, n_groups, x->scales + r * n_groups, n_groups);
            store_acc(out + r * out_stride + o, acc, outs, add);
        }
    }
}

/* ---------------------------------------------------------------------------------------------- many rows, packed */

/* A level packs the weights of PACKED_HALVES times 16 outputs so that one instruction multiplies many of them: pack16() packs
 * 16 of them, interleaved with the others, and packed_rows() makes acc[r][half][o] for `rows` rows, at most
 * PACKED_ROWS, with w_scales (n_groups, halves, 16). Both counts are constant where it is called. With each group it asks for
 * `lines` cache lines from `next` on. scratch has room for the values of the rows as int16. */
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
                        int64_t row, int rows, int halves, int64_t n, int64_t size, void *scratch,
                        const char *next, int64_t lines) {
    (void)halves, (void)scratch, (void)next, (void)lines;
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
                         int64_t row, int rows, int halves, int64_t n, int64_t size, void *scratch,
                         const char *next, int64_t lines) {
    switch (rows) {
    case 1: packed_rows(acc, packed, w_scales, x, row, 1, halves, n, size, scratch, next, lines); break;
    case 2: packed_rows(acc, packed, w_scales, x, row, 2, halves, n, size, scratch, next, lines); break;
    case 3: packed_rows(acc, packed, w_scales, x, row, 3, halves, n, size, scratch, next, lines); break;
    case 4: packed_rows(acc, packed, w_scales, x, row, 4, halves, n, size, scratch, next, lines); break;
    case 5: packed_rows(acc, packed, w_scales, x, row, 5 % (PACKED_ROWS + 1), halves, n, size, scratch, next, lines); break;
    case 6: packed_rows(acc, packed, w_scales, x, row, 6 % (PACKED_ROWS + 1), halves, n, size, scratch, next, lines); break;
    }
}

static void matmul_q8_packed(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows, const matrix *w,
                             int64_t first, int outs, int64_t n, int add, void *pack) {
    int64_t size = w->group_size, n_groups = n / size, n_tiles = (n_rows + PACKED_ROWS - 1) / PACKED_ROWS;
    int halves = (outs + 15) / 16, width = 16 * halves;
    const int8_t *values = (const int8_t *)w->numbers;
    float *w_scales = pack;
    packed_value *packed = (packed_value *)(w_scales + width * (n_groups + 16));
    char *scratch = (char *)(packed + width * (n + 64));
    float acc[PACKED_ROWS][PACKED_HALVES][16] __attribute__((aligned(64)));
    for (int64_t g = 0; g < n_groups; g++)
        for (int o = 0; o < width; o++)
            w_scales[g * width + o] = o < outs ? scale_at(w->scales, (first + o) * n_groups + g) : 0;
    for (int h = 0; h < halves; h++)
        pack16(packed + h * (64 / (int)sizeof(packed_value)), halves, values + (first + 16 * h) * n, outs - 16 * h, n);
    /* The weights of the next tile are asked for on the way, a few lines with each group of each tile of rows. */
    const char *next = (const char *)values + (first + outs) * n;
    int64_t lines = (width * size / 64 + n_tiles - 1) / n_tiles;
    for (int64_t tile = 0; tile < n_tiles; tile++, next += 64 * lines * n_groups) { /* equal tiles: 8 rows are 4 and 4 rather than 6 and 2 */
        int64_t r = n_rows * tile / n_tiles;
        int rows = (int)(n_rows * (tile + 1) / n_tiles - r);
        if (halves == PACKED_HALVES)
            packed_up_to(acc, packed, w_scales, x, r, rows, PACKED_HALVES, n, size, scratch, next, lines);
        else
            packed_up_to(acc, packed, w_scales, x, r, rows, 1, n, size, scratch, next, lines);
        for (int i = 0; i < rows; i++)
            for (int h = 0; h < halves; h++)
                store_acc(out + (r + i) * out_stride + 16 * h, acc[i][h], outs - 16 * h < 16 ? outs - 16 * h : 16, add);
    }
}

static void matmul_q8(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows,
                      const matrix *w, int64_t first, int64_t n_out, int64_t n, int add, void *pack) {
    int64_t size = w->group_size;
    int aligned = size % 32 == 0 && n % size == 0;
    int packing = aligned && n_rows > direct_q8_rows(size), step = packing ? 16 * PACKED_HALVES : 1;
    if (aligned && n_rows == 1)
        return direct_q8(out, out_stride, x, 1, w, first, n_out, n, add, pack);
    if (aligned && !packing)
        return direct_q8(out, out_stride, x, n_rows, w, first, n_out, n, add, pack);
    for (int64_t o = 0; o < n_out; o += step) {
        int outs = n_out - o < step ? (int)(n_out - o) : step;
        if (packing) {
            matmul_q8_packed(out + o, out_stride, x, n_rows, w, first + o, outs, n, add, pack);
        } else {
            for (int64_t r = 0; r < n_rows; r++) {
                float acc = dot_segments(w, first + o, x->values + r * n, x->scales + r * x->n_groups, n);
                store_acc(out + r * out_stride + o, &acc, 1, add);
            }
        }
    }
}
