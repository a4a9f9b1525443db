/* Q8_0 with the byte and word products of AVX2. */
#define HAVE_GROUP_DOTS
#define HAVE_ADD_UP_GROUPS
#define HAVE_PACKED
#define HAVE_DIRECT_Q8_ROWS

INLINE __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }

/* Weights on the unsigned side as |w|, their sign moved to the activations: |w| <= 128 and |x| <= 127, so the pairwise sums
 * of vpmaddubsw (at most 32512) cannot saturate. */
static inline __m256i dot32(__m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Measured: docs/log.md. */
INLINE int direct_q8_rows(int64_t size) { return size == 32 ? 4 : DIRECT_ROWS; }

/* The sums of the eight lanes of each of eight registers. */
INLINE __m256i sum8(const __m256i lanes[8]) {
    __m256i two[4], four[2];
    UNROLL for (int i = 0; i < 4; i++)
        two[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(lanes[2 * i], lanes[2 * i + 1]),
                                  _mm256_unpackhi_epi32(lanes[2 * i], lanes[2 * i + 1]));
    UNROLL for (int i = 0; i < 2; i++)
        four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm256_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                            _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

INLINE void group_dots_size(int32_t isums[][16], const int8_t *w, const int8_t *x, int64_t x_stride, int rows, int groups,
                            int64_t size) {
    __m256i lanes[DIRECT_STEP][8];
    for (int g = 0; g < groups; g += 8) {
        for (int i = 0; i < 8 && g + i < groups; i++) {
            const int8_t *wg = w + (g + i) * size, *xg = x + (g + i) * size;
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i sum = _mm256_setzero_si256();
                for (int64_t k = 0; k < size; k += 32)
                    sum = _mm256_add_epi32(sum, dot32(load_256(wg + k), load_256(xg + r * x_stride + k)));
                lanes[r][i] = sum;
            }
        }
        for (int i = groups - g; i < 8; i++)
            for (int r = 0; r < rows; r++)
                lanes[r][i] = _mm256_setzero_si256();
        UNROLL for (int r = 0; r < rows; r++)
            _mm256_storeu_si256((__m256i *)(isums[r] + g), sum8(lanes[r]));
    }
}

/* The usual sizes as constants. */
INLINE void group_dots(int32_t isums[][16], const int8_t *w, const int8_t *x, int64_t x_stride, const int32_t *offsets,
                       int64_t offset_stride, int rows, int groups, int64_t size) {
    (void)offsets, (void)offset_stride;
    if (size == 64 && groups == 16)
        group_dots_size(isums, w, x, x_stride, rows, 16, 64);
    else if (size == 32 && groups == 16)
        group_dots_size(isums, w, x, x_stride, rows, 16, 32);
    else
        group_dots_size(isums, w, x, x_stride, rows, groups, size);
}

/* The columns of eight rows, each in a register: columns[c] = the lanes c of the rows. */
INLINE void transpose8(__m256i columns[8], const __m256i rows[8]) {
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        b[4 * i + 0] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        columns[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
        columns[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
    }
}

/* As in loops_q8.h, eight outputs by eight groups at a time. */
static void add_up_groups(float acc[16], const float *products, int64_t stride, const float *x_scales, int64_t n_groups) {
    for (int o = 0; o < 16; o += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t g = 0; g < n_groups; g += 8) {
            __m256i rows[8], columns[8];
            UNROLL for (int i = 0; i < 8; i++)
                rows[i] = _mm256_loadu_si256((const __m256i *)(products + (o + i) * stride + g));
            transpose8(columns, rows);
            UNROLL for (int j = 0; j < 8; j++)
                if (g + j < n_groups)
                    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(columns[j]), _mm256_set1_ps(x_scales[g + j]), sum);
        }
        _mm256_storeu_ps(acc + o, sum);
    }
}

/* Sixteen weight rows as int16, interleaved in pairs: [k / 2][output][2]. One vpmaddwd is then 8 outputs by 2, with two activations
 * that were widened to int16, too, so that a single load puts them into all lanes. */
enum { PACKED_ROWS = 6, PACKED_HALVES = 1 };
typedef int16_t packed_value;

INLINE __m256i widen_16(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

static void pack16(packed_value *packed, int halves, const int8_t *w, int outs, int64_t n) {
    (void)halves;
    for (int64_t k = 0; k < n; k += 16)
        for (int o = 0; o < 16; o += 8) {
            __m256i rows[8], columns[8];
            UNROLL for (int i = 0; i < 8; i++)
                rows[i] = o + i < outs ? widen_16(w + (o + i) * n + k) : _mm256_setzero_si256();
            transpose8(columns, rows);
            UNROLL for (int i = 0; i < 8; i++)
                _mm256_storeu_si256((__m256i *)(packed + (k + 2 * i) * 16 + 2 * o), columns[i]);
        }
}

INLINE void packed_rows(float acc[][PACKED_HALVES][16], const packed_value *packed, const float *w_scales, const q8_rows *x,
                        int64_t row, int rows, int halves, int64_t n, int64_t size, void *scratch,
                        const char *next, int64_t lines) {
    (void)halves;
    int16_t *wide = scratch;
    for (int64_t k = 0; k < rows * n; k += 16)
        _mm256_storeu_si256((__m256i *)(wide + k), widen_16(x->values + row * n + k));
    memset(acc, 0, sizeof(acc[0]) * (size_t)rows);
    for (int64_t g = 0; g < n / size; g++, next += 64 * lines) {
        ask_for(next, lines);
        __m256i isum[PACKED_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++)
            isum[r][0] = isum[r][1] = _mm256_setzero_si256();
        for (int64_t k = g * size; k < (g + 1) * size; k += 2) {
            __m256i w0 = load_256(packed + k * 16), w1 = load_256(packed + k * 16 + 16);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, wide + r * n + k, sizeof pair);
                __m256i two = _mm256_set1_epi32(pair);
                isum[r][0] = _mm256_add_epi32(isum[r][0], _mm256_madd_epi16(w0, two));
                isum[r][1] = _mm256_add_epi32(isum[r][1], _mm256_madd_epi16(w1, two));
                __asm__("" : "+x"(isum[r][0]), "+x"(isum[r][1])); /* or GCC begins all products first, and has no registers left */
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            __m256 x_scale = _mm256_set1_ps(x->scales[(row + r) * x->n_groups + g]);
            UNROLL for (int i = 0; i < 2; i++) {
                float *at = acc[r][0] + i * 8;
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(isum[r][i]), _mm256_loadu_ps(w_scales + g * 16 + i * 8));
                _mm256_storeu_ps(at, _mm256_fmadd_ps(product, x_scale, _mm256_loadu_ps(at)));
            }
        }
    }
}
