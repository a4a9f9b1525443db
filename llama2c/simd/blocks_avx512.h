/* GGUF's blocks with the dot products of bytes of AVX-512 VNNI.
 *
 * vpdpbusd multiplies unsigned by signed bytes, so every integer is taken as q + bias: the sum over some values is then too large
 * by bias times the sum of their activations, which quantising has noted. Two groups of 32 share a register.
 */
#define HAVE_CHUNK_PRODUCTS
#define HAVE_BLOCK_TILE

INLINE int bias_of(int kind) {
    switch (kind) {
    case GGUF_Q4_0: return 8;
    case GGUF_Q5_0: return 16;
    case GGUF_Q6_K: return 32;
    case GGUF_Q3_K: return 4;
    default: return has_minimums(kind) ? 0 : 128;
    }
}

/* ---------------------------------------------------------------------------------------------- two groups in a register */

INLINE __m128i load_128(const void *p) { return _mm_loadu_si128(p); }
INLINE __m256i load_256(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m512i bytes_and(__m512i a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi8((char)mask)); }
/* (a & mask) | b */
INLINE __m512i bytes_and_or(__m512i a, int mask, __m512i b) {
    return _mm512_ternarylogic_epi32(a, _mm512_set1_epi8((char)mask), b, 0xEA);
}

INLINE __m512i by_quarters(int a, int b, int c, int d) {
    return _mm512_set_epi32(d, d, d, d, c, c, c, c, b, b, b, b, a, a, a, a);
}

/* The 32 bytes at p twice, moved right by `first` bits and by `second` (negative: to the left). What leaves a byte on either side
 * comes into another: the caller keeps those bits that do not. */
INLINE __m512i two_shifts(const char *p, int first, int second) {
    return _mm512_rorv_epi32(_mm512_broadcast_i64x4(load_256(p)), by_quarters(first, first, second, second));
}

/* The low nibbles of the 16 bytes at a, their high ones, and the same of b. */
INLINE __m512i nibbles(const char *a, const char *b) {
    __m512i v = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load_128(a)), 0xFF00, load_128(b));
    return bytes_and(_mm512_srlv_epi32(v, by_quarters(0, 4, 0, 4)), 15);
}

/* 16 is added to the bytes whose bit is set: 32 bits at a, and 32 at b. */
INLINE __m512i with_fifth_bits(__m512i nibbles, const char *a, const char *b) {
    uint32_t low, high;
    memcpy(&low, a, sizeof low);
    memcpy(&high, b, sizeof high);
    return _mm512_mask_add_epi8(nibbles, (uint64_t)high << 32 | low, nibbles, _mm512_set1_epi8(16));
}

INLINE __m512i look_up(const int8_t table[16], __m512i index) {
    return _mm512_shuffle_epi8(unsigned_bytes(_mm512_broadcast_i32x4(load_128(table))), index);
}

/* The integers of two blocks of 32, plus the bias. */
INLINE __m512i load_small(int kind, const char *a, const char *b) {
    switch (kind) {
    case GGUF_Q4_1: return nibbles(a + 4, b + 4);
    case GGUF_Q5_0: return with_fifth_bits(nibbles(a + 6, b + 6), a + 2, b + 2);
    case GGUF_Q5_1: return with_fifth_bits(nibbles(a + 8, b + 8), a + 4, b + 4);
    case GGUF_Q8_0:
        return unsigned_bytes(_mm512_inserti64x4(_mm512_castsi256_si512(load_256(a + 2)), load_256(b + 2), 1));
    case GGUF_IQ4_NL: return look_up(NON_LINEAR, nibbles(a + 2, b + 2));
    case GGUF_MXFP4: return look_up(FP4, nibbles(a + 1, b + 1));
    default: return nibbles(a + 2, b + 2);
    }
}

/* The integers of the groups 2 i and 2 i + 1 of a block of 256, plus the bias. */
INLINE __m512i load_large(int kind, const char *b, int i) {
    int at = i / 2, j = i % 2;
    __m512i v;
    switch (kind) {
    case GGUF_Q4_K: return bytes_and(two_shifts(b + 16 + 32 * i, 0, 4), 15);
    case GGUF_Q5_K:
        return bytes_and_or(two_shifts(b + 48 + 32 * i, 0, 4), 15, bytes_and(two_shifts(b + 16, 2 * i - 4, 2 * i - 3), 16));
    case GGUF_Q6_K:
        v = _mm512_loadu_si512(b + 64 * at);
        return bytes_and_or(j ? _mm512_rorv_epi32(v, _mm512_set1_epi32(4)) : v, 15,
                            bytes_and(two_shifts(b + 128 + 32 * at, 4 * j - 4, 4 * j - 2), 48));
    case GGUF_Q2_K: return bytes_and(two_shifts(b + 16 + 32 * at, 4 * j, 4 * j + 2), 3);
    case GGUF_Q3_K:
        return bytes_and_or(two_shifts(b + 32 + 32 * at, 4 * j, 4 * j + 2), 3,
                            bytes_and(two_shifts(b, 2 * i - 2, 2 * i - 1), 4));
    default: return look_up(NON_LINEAR, nibbles(b + 8 + 32 * i, b + 24 + 32 * i)); /* iq4_xs */
    }
}

/* The integers of the groups 2 i and 2 i + 1 of a chunk, plus the bias. Of the second group anything if it does not exist. */
INLINE __m512i load_pair(int kind, const char *blocks, int i, int groups) {
    if (block_values(kind) == CHUNK)
        return load_large(kind, blocks, i);
    int second = 2 * i + 1 < groups ? 2 * i + 1 : 2 * i;
    return load_small(kind, blocks + 2 * i * block_bytes(kind), blocks + second * block_bytes(kind));
}

/* ---------------------------------------------------------------------------------------------- the scales of a chunk */

typedef struct {
    __m512 both;                      /* eight scales, then eight minimums */
    __m128i sub_scales, sub_minimums; /* 16 bytes each; signed, of q2_k unsigned */
} chunk_scales;

/* The fp16 number at p eight times, then the one after it, negative, eight times. */
INLINE __m512 d_and_minimum(const char *p) {
    uint32_t two;
    memcpy(&two, p, sizeof two);
    __m256i halves = _mm256_broadcastd_epi32(_mm_cvtsi32_si128((int32_t)(two ^ 0x80000000u)));
    return _mm512_permutexvar_ps(by_quarters(0, 0, 1, 1), _mm512_cvtph_ps(halves));
}

INLINE __m512 half_everywhere(const char *p) {
    int16_t half;
    memcpy(&half, p, sizeof half);
    return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

INLINE __m512 k4_both(const char *block) {
    uint64_t eight, low, high;
    uint32_t four;
    memcpy(&eight, block + 4, sizeof eight);
    memcpy(&four, block + 12, sizeof four);
    low = eight & 0x3f3f3f3f3f3f3f3f;
    high = (eight >> 2 & 0x3030303030303030) | (four & 0x0f0f0f0f) | (uint64_t)(four >> 4 & 0x0f0f0f0f) << 32;
    __m128i bytes = _mm_unpacklo_epi32(_mm_cvtsi64_si128((int64_t)low), _mm_cvtsi64_si128((int64_t)high));
    return _mm512_mul_ps(d_and_minimum(block), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}

INLINE __m128i q3_sub_scales(const char *packed) {
    uint64_t eight;
    int32_t four;
    memcpy(&eight, packed, sizeof eight);
    memcpy(&four, packed + 8, sizeof four);
    __m128i low = _mm_set_epi64x((int64_t)(eight >> 4 & 0x0f0f0f0f0f0f0f0f), (int64_t)(eight & 0x0f0f0f0f0f0f0f0f));
    __m128i high = _mm_rorv_epi32(_mm_set1_epi32(four), _mm_set_epi32(2, 0, -2, -4));
    return _mm_sub_epi8(_mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(0x30))), _mm_set1_epi8(32));
}

INLINE __m512 iq4_xs_both(const char *block) {
    int32_t low;
    uint16_t high;
    memcpy(&low, block + 4, sizeof low);
    memcpy(&high, block + 2, sizeof high);
    __m256i fours = _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
    __m256i twos = _mm256_rorv_epi32(_mm256_set1_epi32(high), _mm256_set_epi32(10, 8, 6, 4, 2, 0, -2, -4));
    fours = _mm256_and_si256(fours, _mm256_set1_epi32(15));
    twos = _mm256_and_si256(twos, _mm256_set1_epi32(0x30));
    __m256i scales = _mm256_sub_epi32(_mm256_or_si256(fours, twos), _mm256_set1_epi32(32));
    return _mm512_mul_ps(half_everywhere(block), _mm512_castps256_ps512(_mm256_cvtepi32_ps(scales)));
}

/* The fp16 numbers at p, p + step, ... one for each group, then the last one again. */
INLINE __m512 strided_halves(const char *p, int64_t step, int groups) {
    int16_t halves[8];
    UNROLL for (int g = 0; g < 8; g++)
        memcpy(halves + g, p + (g < groups ? g : groups - 1) * step, sizeof *halves);
    __m128i eight = _mm_set_epi16(halves[7], halves[6], halves[5], halves[4], halves[3], halves[2], halves[1], halves[0]);
    return _mm512_cvtph_ps(_mm256_castsi128_si256(eight));
}

/* Two neighbours at each place: the first of them eight times, then the second. */
INLINE __m512 strided_pairs(const char *p, int64_t step, int groups) {
    int32_t pairs[8];
    UNROLL for (int g = 0; g < 8; g++)
        memcpy(pairs + g, p + (g < groups ? g : groups - 1) * step, sizeof *pairs);
    __m256i eight = _mm256_set_epi32(pairs[7], pairs[6], pairs[5], pairs[4], pairs[3], pairs[2], pairs[1], pairs[0]);
    __m256i apart = _mm256_set_epi64x(0x0f0e0b0a07060302, 0x0d0c090805040100, 0x0f0e0b0a07060302, 0x0d0c090805040100);
    return _mm512_cvtph_ps(_mm256_permute4x64_epi64(_mm256_shuffle_epi8(eight, apart), 0xD8));
}

/* As exponent_only() in blocks.h. */
INLINE __m512 strided_exponents(const char *p, int64_t step, int groups) {
    uint32_t bytes[8];
    UNROLL for (int g = 0; g < 8; g++)
        bytes[g] = (uint8_t)p[(g < groups ? g : groups - 1) * step];
    __m128i low = _mm_set_epi32((int)bytes[3], (int)bytes[2], (int)bytes[1], (int)bytes[0]);
    __m128i high = _mm_set_epi32((int)bytes[7], (int)bytes[6], (int)bytes[5], (int)bytes[4]);
    __m256i e = _mm256_set_m128i(high, low), normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __mmask8 tiny = _mm256_cmplt_epu32_mask(e, _mm256_set1_epi32(2));
    normal = _mm256_mask_sllv_epi32(normal, tiny, _mm256_set1_epi32(0x00200000), e);
    return _mm512_castps256_ps512(_mm256_castsi256_ps(normal));
}

INLINE chunk_scales load_scales(int kind, const char *blocks, int groups) {
    chunk_scales s = {_mm512_setzero_ps(), _mm_setzero_si128(), _mm_setzero_si128()};
    switch (kind) {
    case GGUF_Q4_1:
    case GGUF_Q5_1: s.both = strided_pairs(blocks, block_bytes(kind), groups); break;
    case GGUF_MXFP4: s.both = strided_exponents(blocks, block_bytes(kind), groups); break;
    case GGUF_Q4_K:
    case GGUF_Q5_K: s.both = k4_both(blocks); break;
    case GGUF_IQ4_XS: s.both = iq4_xs_both(blocks); break;
    case GGUF_Q6_K:
        s.both = half_everywhere(blocks + 208);
        s.sub_scales = load_128(blocks + 192);
        break;
    case GGUF_Q3_K:
        s.both = half_everywhere(blocks + 108);
        s.sub_scales = q3_sub_scales(blocks + 96);
        break;
    case GGUF_Q2_K:
        s.both = d_and_minimum(blocks + 80);
        s.sub_scales = _mm_and_si128(load_128(blocks), _mm_set1_epi8(15));
        s.sub_minimums = _mm_and_si128(_mm_srli_epi16(load_128(blocks), 4), _mm_set1_epi8(15));
        break;
    default: s.both = strided_halves(blocks, block_bytes(kind), groups);
    }
    return s;
}

/* ---------------------------------------------------------------------------------------------- few rows */

/* Lane l of quarter i: the sum of the lanes of quarter i of products[l], which are 16 values. */
INLINE __m512i sixteen_sums(const __m512i q[4], const int8_t *x, int groups) {
    __m512i pair[4];
    UNROLL for (int i = 0; i < 4; i++) {
        int left = groups - 2 * i; /* groups of this register that exist */
        __mmask64 exist = left >= 2 ? ~(__mmask64)0 : left == 1 ? (__mmask64)0xFFFFFFFFu : 0;
        __m512i xv = left >= 2 ? _mm512_loadu_si512(x + 64 * i) : _mm512_maskz_loadu_epi8(exist, x + 64 * i);
        pair[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[i], xv);
    }
    return int_fold21(pair[0], pair[1], pair[2], pair[3]);
}

/* The integer sums of 8 groups, sub scales included. IN s: the sums of x, two for each group. */
INLINE __m256i chunk_sums(int kind, const __m512i q[4], __m128i sub_scales, const int8_t *x, __m256i s, int groups) {
    __m512i sums = sixteen_sums(q, x, groups);
    __m256i biases = _mm256_set1_epi16((int16_t)-bias_of(kind));
    if (has_sub_scales(kind)) {
        __m128i order = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        sums = _mm512_mullo_epi32(sums, _mm512_cvtepi8_epi32(_mm_shuffle_epi8(sub_scales, order)));
        biases = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(sub_scales), biases);
    }
    __m512i first = _mm512_permutexvar_epi32(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 11, 3, 10, 2, 9, 1, 8, 0), sums);
    __m512i second = _mm512_permutexvar_epi32(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 15, 7, 14, 6, 13, 5, 12, 4), sums);
    __m256i whole = _mm256_add_epi32(_mm512_castsi512_si256(first), _mm512_castsi512_si256(second));
    return bias_of(kind) == 0 ? whole : _mm256_add_epi32(whole, _mm256_madd_epi16(s, biases));
}

INLINE void some_products(float *products, float *minimums, int64_t row_stride, int kind, const char *blocks, int groups,
                          const int8_t *x, const int16_t *sums, int64_t n, int64_t rows) {
    const __mmask16 exist = (__mmask16)((1u << 2 * groups) - 1);
    const chunk_scales scales = load_scales(kind, blocks, groups);
    const __m256 scale = _mm512_castps512_ps256(scales.both), minimum = _mm512_extractf32x8_ps(scales.both, 1);
    __m512i q[4];
    UNROLL for (int i = 0; i < 4; i++)
        q[i] = 2 * i < groups ? load_pair(kind, blocks, i, groups) : _mm512_setzero_si512();
    if (has_minimums(kind) && kind != GGUF_Q2_K)
        _mm256_storeu_ps(minimums, minimum);
    for (int64_t r = 0; r < rows; r++, x += n, sums += n / 16) {
        __m256i s = groups == CHUNK_GROUPS ? load_256(sums) : _mm256_maskz_loadu_epi16(exist, sums);
        __m256i isum = chunk_sums(kind, q, scales.sub_scales, x, s, groups);
        _mm256_storeu_ps(products + r * row_stride, _mm256_mul_ps(_mm256_cvtepi32_ps(isum), scale));
        if (kind == GGUF_Q2_K) {
            __m256i less = _mm256_madd_epi16(s, _mm256_cvtepu8_epi16(scales.sub_minimums));
            _mm256_storeu_ps(minimums + r * row_stride, _mm256_mul_ps(_mm256_cvtepi32_ps(less), minimum));
        }
    }
}

/* See blocks.h. Whole chunks have code of their own, without masks. */
INLINE void chunk_products(float *products, float *minimums, int64_t row_stride, int kind, const char *blocks, int groups,
                           const int8_t *x, const int16_t *sums, int64_t n, int64_t rows) {
    if (block_values(kind) == CHUNK || groups == CHUNK_GROUPS)
        some_products(products, minimums, row_stride, kind, blocks, CHUNK_GROUPS, x, sums, n, rows);
    else
        some_products(products, minimums, row_stride, kind, blocks, groups, x, sums, n, rows);
}

/* ---------------------------------------------------------------------------------------------- many rows: unpacking */

/* 32 outputs as pack16() of q8_avx512.h leaves them: bytes q + 128, of q2_k times their sub scales. Those of q6_k and q3_k are
 * q + bias, for their sub scales do not fit into bytes: these follow, in fp32, [k / 16][output]. */
enum { TILE_WIDTH = 16 * PACKED_HALVES, TILE_MOST_ROWS = PACKED_ROWS };

INLINE int scales_apart(int kind) { return kind == GGUF_Q6_K || kind == GGUF_Q3_K; }
INLINE float *sub_scales_of(const tile *t, int64_t n) { return (float *)(t->packed + TILE_WIDTH * n); }

/* The bytes of the groups 2 i and 2 i + 1 of a chunk, as they are in a tile. */
INLINE __m512i tile_bytes(int kind, const char *blocks, int i, int groups) {
    __m512i q = load_pair(kind, blocks, i, groups);
    if (scales_apart(kind) || bias_of(kind) == 128)
        return q;
    if (kind == GGUF_Q2_K) { /* 0, 1, 2 and 3 times the sub scale, which is below 16 */
        __m512i sub_scales = _mm512_cvtepu8_epi32(load_scales(kind, blocks, groups).sub_scales);
        __m512i multiples = _mm512_mullo_epi32(sub_scales, _mm512_set1_epi32(0x03020100));
        q = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(by_quarters(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), multiples), q);
    }
    return _mm512_add_epi8(q, _mm512_set1_epi8((char)(128 - bias_of(kind))));
}

/* columns[i] to `to` + i * step bytes, for i < many. */
INLINE void store_columns(void *to, int64_t step, const __m512i rows[16], int many) {
    __m512i columns[16];
    transpose_i32(columns, rows);
    UNROLL for (int i = 0; i < 16; i++)
        if (i < many)
            _mm512_storeu_si512((char *)to + i * step, columns[i]);
}

/* The scales of 16 outputs in chunk `at` / 8, and all that goes with them, in column `column` of the tile and those after it. */
INLINE void unpack_scales(const tile *t, int kind, const char *const blocks[16], int64_t at, int groups, int column, int64_t n) {
    const int64_t place = at * TILE_WIDTH + column, step = TILE_WIDTH * sizeof(float);
    __m512i both[16], minimums[16], sub_scales[16], sub_minimums[16];
    for (int o = 0; o < 16; o++) {
        chunk_scales s = load_scales(kind, blocks[o], groups);
        both[o] = _mm512_castps_si512(s.both);
        minimums[o] = _mm512_shuffle_i32x4(both[o], both[o], 0xEE);
        if (scales_apart(kind))
            sub_scales[o] = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(s.sub_scales)));
        if (kind == GGUF_Q2_K)
            sub_minimums[o] = _mm512_castsi256_si512(_mm256_cvtepu8_epi16(s.sub_minimums));
    }
    store_columns(t->scales + place, step, both, 8);
    if (has_minimums(kind))
        store_columns(t->minimums + place, step, minimums, 8);
    if (scales_apart(kind))
        store_columns(sub_scales_of(t, n) + place + at * TILE_WIDTH, step, sub_scales, 16);
    if (kind == GGUF_Q2_K)
        store_columns(t->sub_minimums + 2 * place, step, sub_minimums, 8);
}

INLINE void unpack_half(const tile *t, int kind, const matrix *w, int64_t first, int outs, int column) {
    const int64_t n_groups = w->columns / 32;
    const char *blocks[16];
    for (int o = 0; o < 16; o++)
        blocks[o] = block_row(w, first + (column + o < outs ? column + o : 0)); /* past the end: any */
    for (int64_t at = 0; at < n_groups; at += CHUNK_GROUPS) {
        int groups = block_values(kind) == CHUNK || n_groups - at >= CHUNK_GROUPS ? CHUNK_GROUPS : (int)(n_groups - at);
        char *packed = t->packed + 32 * at * TILE_WIDTH + 4 * column;
        unpack_scales(t, kind, blocks, at, groups, column, w->columns);
        for (int i = 0; 2 * i < groups; i++) {
            __m512i rows[16];
            UNROLL for (int o = 0; o < 16; o++)
                rows[o] = tile_bytes(kind, blocks[o], i, groups);
            store_columns(packed + 64 * i * TILE_WIDTH, 4 * TILE_WIDTH, rows, 16);
        }
        for (int o = 0; o < 16; o++)
            blocks[o] += row_bytes(kind, CHUNK);
    }
}

static void unpack_tile(const tile *t, const matrix *w, int64_t first, int outs) {
#define CALL(kind)                                                                                                             \
    for (int column = 0; column < TILE_WIDTH; column += 16)                                                                    \
    unpack_half(t, kind, w, first, outs, column)
    FOR_KIND(w->kind, CALL)
#undef CALL
}

/* ---------------------------------------------------------------------------------------------- many rows: products */

INLINE __m512i broadcast_32(const void *p) {
    int32_t four_bytes;
    memcpy(&four_bytes, p, sizeof four_bytes);
    return _mm512_set1_epi32(four_bytes);
}

/* CALL(rows) for `rows` as a constant: the sums stay in registers. */
#define FOR_ROWS(rows, CALL)                                                                                                   \
    switch (rows) {                                                                                                            \
    case 1: CALL(1); break;                                                                                                    \
    case 2: CALL(2); break;                                                                                                    \
    case 3: CALL(3); break;                                                                                                    \
    case 4: CALL(4); break;                                                                                                    \
    case 5: CALL(5); break;                                                                                                    \
    case 6: CALL(6); break;                                                                                                    \
    }

/* With a sub scale for each 16 values. The sums in `acc` stay in memory: there are no registers for them. */
INLINE void rows_with_sub_scales(float acc[][TILE_WIDTH], const tile *t, int bias, const q8_rows *x, int64_t row, int rows,
                                 int64_t n) {
    const int8_t *values = x->values + row * n;
    const float *sub_scales = sub_scales_of(t, n);
    int32_t start[TILE_MOST_ROWS][16] __attribute__((aligned(64))); /* of the sums of 16 values: at less the bias */
    memset(acc, 0, sizeof(acc[0]) * (size_t)rows);
    for (int64_t g = 0; g < n / 32; g++) {
        __m512 scaled[TILE_MOST_ROWS][2];
        for (int r = 0; g % CHUNK_GROUPS == 0 && r < rows; r++) {
            __m512i sums = _mm512_cvtepi16_epi32(load_256(x->sums + (row + r) * (n / 16) + 2 * g));
            _mm512_store_si512(start[r], _mm512_mullo_epi32(sums, _mm512_set1_epi32(-bias)));
        }
        UNROLL for (int i = 0; i < 2; i++) {
            const char *packed = t->packed + (32 * g + 16 * i) * TILE_WIDTH;
            __m512i isum[TILE_MOST_ROWS][2];
            UNROLL for (int r = 0; r < rows; r++)
                isum[r][0] = isum[r][1] = _mm512_set1_epi32(start[r][2 * (g % CHUNK_GROUPS) + i]);
            UNROLL for (int k = 0; k < 16; k += 4) {
                __m512i w0 = _mm512_loadu_si512(packed + k * TILE_WIDTH), w1 = _mm512_loadu_si512(packed + k * TILE_WIDTH + 64);
                UNROLL for (int r = 0; r < rows; r++) {
                    __m512i four = broadcast_32(values + r * n + 32 * g + 16 * i + k);
                    isum[r][0] = _mm512_dpbusd_epi32(isum[r][0], w0, four);
                    isum[r][1] = _mm512_dpbusd_epi32(isum[r][1], w1, four);
                }
            }
            UNROLL for (int h = 0; h < 2; h++) {
                __m512 sub = _mm512_loadu_ps(sub_scales + (2 * g + i) * TILE_WIDTH + 16 * h);
                UNROLL for (int r = 0; r < rows; r++) { /* exact: below 2^24 */
                    __m512 sum = _mm512_cvtepi32_ps(isum[r][h]);
                    scaled[r][h] = i ? _mm512_fmadd_ps(sum, sub, scaled[r][h]) : _mm512_mul_ps(sum, sub);
                }
            }
        }
        UNROLL for (int h = 0; h < 2; h++) {
            __m512 scale = _mm512_loadu_ps(t->scales + g * TILE_WIDTH + 16 * h);
            UNROLL for (int r = 0; r < rows; r++) {
                __m512 x_scale = _mm512_set1_ps(x->scales[(row + r) * x->n_groups + g]), sum = _mm512_loadu_ps(acc[r] + 16 * h);
                _mm512_storeu_ps(acc[r] + 16 * h, _mm512_fmadd_ps(_mm512_mul_ps(scaled[r][h], scale), x_scale, sum));
            }
        }
    }
}

/* acc += the sums of the minimums. */
INLINE void add_minimums(float acc[][TILE_WIDTH], const tile *t, int is_q2, const q8_rows *x, int64_t row, int rows, int64_t n) {
    __m512 low[TILE_MOST_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        low[r][0] = low[r][1] = _mm512_setzero_ps();
    for (int64_t g = 0; g < n / 32; g++)
        UNROLL for (int h = 0; h < 2; h++) {
            const int64_t at = g * TILE_WIDTH + 16 * h;
            __m512 minimum = _mm512_loadu_ps(t->minimums + at);
            __m512i sub = is_q2 ? _mm512_loadu_si512(t->sub_minimums + 2 * at) : _mm512_setzero_si512();
            UNROLL for (int r = 0; r < rows; r++) {
                const int64_t group = (row + r) * x->n_groups + g;
                if (is_q2) {
                    __m512i less = _mm512_madd_epi16(sub, broadcast_32(x->sums + (row + r) * (n / 16) + 2 * g));
                    low[r][h] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(less), minimum),
                                                _mm512_set1_ps(x->scales[group]), low[r][h]);
                } else {
                    low[r][h] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x->scaled_sums[group]), low[r][h]);
                }
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < 2; h++)
            _mm512_storeu_ps(acc[r] + 16 * h, _mm512_add_ps(_mm512_loadu_ps(acc[r] + 16 * h), low[r][h]));
}

/* See blocks.h. */
static void tile_rows(float acc[][TILE_WIDTH], const tile *t, int kind, const q8_rows *x, int64_t row, int rows, int64_t n) {
#define SUB_SCALES(rows) rows_with_sub_scales(acc, t, bias_of(kind), x, row, rows, n)
#define MINIMUMS(rows) add_minimums(acc, t, 0, x, row, rows, n)
#define Q2_MINIMUMS(rows) add_minimums(acc, t, 1, x, row, rows, n)
    if (scales_apart(kind)) {
        FOR_ROWS(rows, SUB_SCALES)
    } else {
        packed_up_to((float (*)[PACKED_HALVES][16])acc, (const packed_value *)t->packed, t->scales, x, row, rows, PACKED_HALVES, n,
                     32, NULL, NULL, 0);
    }
    if (kind == GGUF_Q2_K) {
        FOR_ROWS(rows, Q2_MINIMUMS)
    } else if (has_minimums(kind)) {
        FOR_ROWS(rows, MINIMUMS)
    }
#undef SUB_SCALES
#undef MINIMUMS
#undef Q2_MINIMUMS
}
