/* Q8_0 with the dot products of bytes of AVX-512 VNNI.
 *
 * vpdpbusd multiplies unsigned by signed bytes, so the weights are taken as w + 128 (their sign bit flipped): the sum over a
 * group is then too large by 128 times the sum of its activations, and quantising has stored the offset that corrects it.
 */
#define HAVE_GROUP_DOTS
#define HAVE_TRANSPOSE16
#define HAVE_PACKED
#define HAVE_QUANTIZE_GROUP

/* As in loops_q8.h, sixteen at a time. */
static inline uint32_t largest_bits(const float *x, int64_t n) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        __m512i bits = _mm512_castps_si512(load_up_to(x + i, n - i));
        largest = _mm512_max_epu32(largest, _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return _mm512_reduce_max_epu32(largest);
}

static inline int32_t divide_and_round(int8_t *values, const float *x, int64_t n, float scale) {
    __m512i sum = _mm512_setzero_si512(), one = _mm512_set1_epi32(1), most = _mm512_set1_epi32(127);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 exist = n - i >= 16 ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1);
        __m512 q = _mm512_div_ps(load_up_to(x + i, n - i), _mm512_set1_ps(scale));
        __m512i whole = _mm512_cvttps_epi32(q);
        __m512 rest = _mm512_sub_ps(q, _mm512_cvtepi32_ps(whole));
        whole = _mm512_mask_add_epi32(whole, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ), whole, one);
        whole = _mm512_mask_sub_epi32(whole, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-0.5f), _CMP_LE_OQ), whole, one);
        whole = _mm512_max_epi32(_mm512_min_epi32(whole, most), _mm512_sub_epi32(_mm512_setzero_si512(), most));
        sum = _mm512_add_epi32(sum, whole);
        _mm512_mask_cvtepi32_storeu_epi8(values + i, exist, whole);
    }
    return _mm512_reduce_add_epi32(sum);
}

static inline __m512i unsigned_bytes(__m512i w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }

/* The folds of vec_avx512.h, on integers. */
static inline __m512i int_fold4(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}
static inline __m512i int_shuffle(__m512i a, __m512i b, const int which) {
    reg x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_castps_si512(which == 0x44   ? _mm512_shuffle_ps(x, y, 0x44)
                               : which == 0xEE ? _mm512_shuffle_ps(x, y, 0xEE)
                               : which == 0x88 ? _mm512_shuffle_ps(x, y, 0x88)
                                               : _mm512_shuffle_ps(x, y, 0xDD));
}
static inline __m512i int_fold21(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(int_shuffle(a, b, 0x44), int_shuffle(a, b, 0xEE));
    __m512i cd = _mm512_add_epi32(int_shuffle(c, d, 0x44), int_shuffle(c, d, 0xEE));
    return _mm512_add_epi32(int_shuffle(ab, cd, 0x88), int_shuffle(ab, cd, 0xDD));
}

/* Sixteen groups of 32, two to a register. */
INLINE __m512i group_dots_32(const __m512i w[8], const int8_t *x) {
    __m512i pair[8], four[4];
    UNROLL for (int i = 0; i < 8; i++)
        pair[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[i], _mm512_loadu_si512(x + 64 * i));
    UNROLL for (int i = 0; i < 4; i++)
        four[i] = int_fold4(pair[2 * i], pair[2 * i + 1]); /* groups 4 i .. 4 i + 3, a quarter each */
    __m512i sums = int_fold21(four[0], four[1], four[2], four[3]); /* quarter q, lane l: group 4 l + q */
    return _mm512_permutexvar_epi32(_mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), sums);
}

/* The sums of the lanes of sixteen registers. */
INLINE __m512i int_sum16(const __m512i sum[16]) {
    __m512i quarter[4];
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i lower = _mm512_add_epi32(_mm512_shuffle_i32x4(sum[i], sum[4 + i], 0x44),
                                         _mm512_shuffle_i32x4(sum[i], sum[4 + i], 0xEE));
        __m512i upper = _mm512_add_epi32(_mm512_shuffle_i32x4(sum[8 + i], sum[12 + i], 0x44),
                                         _mm512_shuffle_i32x4(sum[8 + i], sum[12 + i], 0xEE));
        quarter[i] = int_fold4(lower, upper);
    }
    return int_fold21(quarter[0], quarter[1], quarter[2], quarter[3]);
}

/* One group of 64 m, or of an odd multiple of 32: a register of partial sums. */
INLINE __m512i group_lanes(const int8_t *w, const int8_t *x, int64_t size) {
    __m512i sum = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 64 <= size; k += 64)
        sum = _mm512_dpbusd_epi32(sum, unsigned_bytes(_mm512_loadu_si512(w + k)), _mm512_loadu_si512(x + k));
    if (k < size) {
        __m512i wv = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(w + k)));
        __m512i xv = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(x + k)));
        sum = _mm512_dpbusd_epi32(sum, unsigned_bytes(wv), xv);
    }
    return sum;
}

/* Whole blocks of the usual sizes load their weights once for all rows. */
INLINE void group_dots(int32_t isums[][16], const int8_t *w, const int8_t *x, int64_t x_stride, const int32_t *offsets,
                       int64_t offset_stride, int rows, int groups, int64_t size) {
    __m512i loaded[16], sum[16], dots;
    int n_loaded = groups < 16 ? 0 : size == 32 ? 8 : size == 64 ? 16 : 0;
    UNROLL for (int i = 0; i < 16; i++)
        if (i < n_loaded)
            loaded[i] = unsigned_bytes(_mm512_loadu_si512(w + 64 * i));
    UNROLL for (int r = 0; r < rows; r++) {
        const int8_t *xr = x + r * x_stride;
        if (n_loaded == 8) {
            dots = group_dots_32(loaded, xr);
        } else {
            UNROLL for (int g = 0; g < 16; g++)
                sum[g] = n_loaded == 16 ? _mm512_dpbusd_epi32(_mm512_setzero_si512(), loaded[g], _mm512_loadu_si512(xr + 64 * g))
                         : g < groups   ? group_lanes(w + g * size, xr + g * size, size)
                                        : _mm512_setzero_si512();
            dots = int_sum16(sum);
        }
        _mm512_storeu_si512(isums[r], _mm512_add_epi32(dots, _mm512_loadu_si512(offsets + r * offset_stride)));
    }
}

/* columns[c] = the lanes c of the 16 rows. */
INLINE void transpose_i32(__m512i columns[16], const __m512i rows[16]) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        b[4 * i + 0] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    /* b[4 i + c]: in quarter q the lanes 4 q + c of the rows 4 i .. 4 i + 3 */
    UNROLL for (int c = 0; c < 4; c++) {
        __m512i low01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), high01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xDD);
        __m512i low23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
        __m512i high23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xDD);
        columns[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        columns[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
        columns[4 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        columns[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xDD);
    }
}

static void transpose16(float out[16][16], const float *in, int64_t stride) {
    __m512i rows[16], columns[16];
    UNROLL for (int i = 0; i < 16; i++)
        rows[i] = _mm512_loadu_si512(in + i * stride);
    transpose_i32(columns, rows);
    UNROLL for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(out[i], columns[i]);
}

/* Two times sixteen weight rows as bytes w + 128, interleaved by fours: [k / 4][half][output][4]. An int32 lane is then one
 * output, one vpdpbusd with four broadcast activations is 64 multiply-adds, and two use each broadcast. */
enum { PACKED_ROWS = 6, PACKED_HALVES = 2 };
typedef uint8_t packed_value;

static void pack16(packed_value *packed, int halves, const int8_t *w, int outs, int64_t n) {
    for (int64_t k = 0; k < n; k += 64) {
        __m512i rows[16], columns[16];
        __mmask64 exist = n - k >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - k)) - 1;
        UNROLL for (int o = 0; o < 16; o++)
            rows[o] = o < outs ? unsigned_bytes(_mm512_maskz_loadu_epi8(exist, w + o * n + k)) : _mm512_setzero_si512();
        transpose_i32(columns, rows);
        for (int i = 0; i < 16; i++)
            _mm512_storeu_si512(packed + (k * 16 + i * 64) * halves, columns[i]);
    }
}

INLINE void packed_rows(float acc[][PACKED_HALVES][16], const packed_value *packed, const float *w_scales, const q8_rows *x,
                        int64_t row, int rows, int halves, int64_t n, int64_t size, void *scratch,
                        const char *next, int64_t lines) {
    (void)scratch;
    const int8_t *xv = x->values + row * n;
    __m512 sum[PACKED_ROWS][PACKED_HALVES];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < halves; h++)
            sum[r][h] = _mm512_setzero_ps();
    for (int64_t g = 0; g < n / size; g++, next += 64 * lines) {
        ask_for(next, lines);
        __m512i isum[PACKED_ROWS][PACKED_HALVES], wv[PACKED_HALVES];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int h = 0; h < halves; h++)
                isum[r][h] = _mm512_set1_epi32(x->offsets[(row + r) * x->n_groups + g]);
        for (int64_t k = g * size; k < (g + 1) * size; k += 4) {
            UNROLL for (int h = 0; h < halves; h++)
                wv[h] = _mm512_loadu_si512(packed + (k * halves + 4 * h) * 16);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, xv + r * n + k, sizeof four);
                UNROLL for (int h = 0; h < halves; h++)
                    isum[r][h] = _mm512_dpbusd_epi32(isum[r][h], wv[h], _mm512_set1_epi32(four));
            }
        }
        UNROLL for (int h = 0; h < halves; h++) {
            __m512 w_scale = _mm512_loadu_ps(w_scales + (g * halves + h) * 16);
            UNROLL for (int r = 0; r < rows; r++) {
                __m512 x_scale = _mm512_set1_ps(x->scales[(row + r) * x->n_groups + g]);
                sum[r][h] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(isum[r][h]), w_scale), x_scale, sum[r][h]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < halves; h++)
            _mm512_storeu_ps(acc[r][h], sum[r][h]);
}
