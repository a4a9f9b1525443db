/* Q8_0 with the byte and word products of AVX2. */
#define HAVE_GROUP_DOTS
#define HAVE_ADD_UP_GROUPS
#define HAVE_PACKED

/* Weights on the unsigned side as |w|, their sign moved to the activations: |w| <= 128 and |x| <= 127, so the pairwise sums
 * of vpmaddubsw (at most 32512) cannot saturate. */
static inline __m256i dot32(__m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void group_dots(int32_t isums[16], const int8_t *w, const int8_t *x, const int32_t *offsets, int groups, int64_t size) {
    (void)offsets;
    __m256i sum[16];
    UNROLL for (int g = 0; g < 16; g++) {
        sum[g] = _mm256_setzero_si256();
        if (g >= groups)
            continue;
        for (int64_t k = 0; k < size; k += 32)
            sum[g] = _mm256_add_epi32(sum[g], dot32(_mm256_loadu_si256((const __m256i *)(w + g * size + k)),
                                                    _mm256_loadu_si256((const __m256i *)(x + g * size + k))));
    }
    UNROLL for (int g = 0; g < 16; g += 8) { /* 8 lanes of 8 groups to 1 lane each */
        __m256i four[4];
        UNROLL for (int i = 0; i < 4; i++)
            four[i] = _mm256_hadd_epi32(sum[g + 2 * i], sum[g + 2 * i + 1]);
        __m256i low = _mm256_hadd_epi32(four[0], four[1]), high = _mm256_hadd_epi32(four[2], four[3]);
        __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
        _mm256_storeu_si256((__m256i *)(isums + g), all);
    }
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

/* Sixteen weight rows as int16, interleaved in pairs: [k / 2][output][2]; one vpmaddwd is then 8 outputs by 2. */
enum { PACKED_ROWS = 4, PACKED_HALVES = 1 };
typedef int16_t packed_value;

static void pack16(packed_value *packed, int halves, const int8_t *w, int outs, int64_t n) {
    for (int o = 0; o < 16; o++)
        for (int64_t k = 0; k < n; k += 2)
            for (int i = 0; i < 2; i++)
                packed[(k * halves) * 16 + o * 2 + i] = o < outs ? w[o * n + k + i] : 0;
}

INLINE void packed_rows(float acc[][PACKED_HALVES][16], const packed_value *packed, const float *w_scales, const q8_rows *x,
                        int64_t row, int rows, int halves, int64_t n, int64_t size) {
    (void)halves;
    memset(acc, 0, sizeof(acc[0]) * (size_t)rows);
    const int8_t *xv = x->values + row * n;
    for (int64_t g = 0; g < n / size; g++) {
        __m256i isum[PACKED_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++)
            isum[r][0] = isum[r][1] = _mm256_setzero_si256();
        for (int64_t k = g * size; k < (g + 1) * size; k += 2) {
            __m256i w0 = _mm256_loadu_si256((const __m256i *)(packed + k * 16));
            __m256i w1 = _mm256_loadu_si256((const __m256i *)(packed + k * 16 + 16));
            UNROLL for (int r = 0; r < rows; r++) {
                uint32_t low = (uint16_t)xv[r * n + k], high = (uint16_t)xv[r * n + k + 1]; /* sign-extended to 16 bits */
                __m256i two = _mm256_set1_epi32((int32_t)(low | high << 16));
                isum[r][0] = _mm256_add_epi32(isum[r][0], _mm256_madd_epi16(w0, two));
                isum[r][1] = _mm256_add_epi32(isum[r][1], _mm256_madd_epi16(w1, two));
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
