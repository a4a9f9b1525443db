/* GGUF's blocks with the byte and word products of AVX2.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds neighbours as int16. Integers of 2 to 6 bits are taken unsigned, as q +
 * bias: the sum over a group is then too large by bias times the sum of its activations, which quantising has noted. The pairs
 * are at most 3,810 for 4 bits, 7,874 for 5 and 16,002 for 6, so that 8, 4 and 2 of them can be added as int16. Integers of 8 bits
 * are multiplied as in q8_avx2.h.
 */
#define HAVE_CHUNK_PRODUCTS
#define HAVE_BLOCK_TILE

INLINE int is_8_bit(int kind) { return kind == GGUF_Q8_0 || kind == GGUF_IQ4_NL || kind == GGUF_IQ4_XS; }
INLINE int bias_of(int kind) {
    switch (kind) {
    case GGUF_Q4_0: return 8;
    case GGUF_Q5_0: return 16;
    case GGUF_Q6_K: return 32;
    case GGUF_Q3_K: return 4;
    case GGUF_MXFP4: return 12;
    default: return 0;
    }
}
/* Pairs that can be added as int16; of types with sub scales no more than share a scale. */
INLINE int safe_pairs(int kind) {
    return kind == GGUF_Q6_K ? 2 : has_sub_scales(kind) || kind == GGUF_Q5_0 || kind == GGUF_Q5_1 || kind == GGUF_Q5_K ? 4 : 8;
}

/* ---------------------------------------------------------------------------------------------- a chunk in registers */

INLINE __m256i bytes_and(__m256i a, int mask) { return _mm256_and_si256(a, _mm256_set1_epi8((char)mask)); }

/* 32 nibbles: those in the low halves of 16 bytes, then those in the high ones. */
INLINE __m256i nibbles(const char *qs) {
    __m128i low = _mm_loadu_si128((const __m128i *)qs);
    return bytes_and(_mm256_set_m128i(_mm_srli_epi16(low, 4), low), 15);
}

/* The 32 bits at p, each as 0 or 16 in a byte. */
INLINE __m256i fifth_bits(const char *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits),
                                         _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
    __m256i one_each = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    return bytes_and(_mm256_cmpeq_epi8(_mm256_and_si256(spread, one_each), one_each), 16);
}

INLINE __m256i look_up(const int8_t table[16], __m256i index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}

/* Bits `from` and up of each byte, moved to bit `to`, without the others: those in `mask`. Both counts are constants. */
INLINE __m256i moved_bits(__m256i bytes, int from, int to, int mask) {
    return bytes_and(from > to ? _mm256_srli_epi16(bytes, from - to) : _mm256_slli_epi16(bytes, to - from), mask);
}

/* The integers of group g of a block of 32, plus the bias. */
INLINE __m256i load_small(int kind, const char *block) {
    static const int8_t fp4_12[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    switch (kind) {
    case GGUF_Q8_0: return load_256(block + 2);
    case GGUF_Q4_1: return nibbles(block + 4);
    case GGUF_Q5_0: return _mm256_or_si256(nibbles(block + 6), fifth_bits(block + 2));
    case GGUF_Q5_1: return _mm256_or_si256(nibbles(block + 8), fifth_bits(block + 4));
    case GGUF_IQ4_NL: return look_up(NON_LINEAR, nibbles(block + 2));
    case GGUF_MXFP4: return look_up(fp4_12, nibbles(block + 1));
    default: return nibbles(block + 2);
    }
}

/* The integers of a block of 256, plus the bias. */
INLINE void load_large(__m256i q[8], int kind, const char *block) {
    UNROLL for (int g = 0; g < 8; g++) {
        switch (kind) {
        case GGUF_Q4_K: q[g] = moved_bits(load_256(block + 16 + g / 2 * 32), 4 * (g % 2), 0, 15); break;
        case GGUF_Q5_K:
            q[g] = _mm256_or_si256(moved_bits(load_256(block + 48 + g / 2 * 32), 4 * (g % 2), 0, 15),
                                   moved_bits(load_256(block + 16), g, 4, 16));
            break;
        case GGUF_Q6_K:
            q[g] = _mm256_or_si256(moved_bits(load_256(block + g / 4 * 64 + g % 2 * 32), 4 * (g % 4 / 2), 0, 15),
                                   moved_bits(load_256(block + 128 + g / 4 * 32), 2 * (g % 4), 4, 48));
            break;
        case GGUF_Q2_K: q[g] = moved_bits(load_256(block + 16 + g / 4 * 32), 2 * (g % 4), 0, 3); break;
        case GGUF_Q3_K:
            q[g] = _mm256_or_si256(moved_bits(load_256(block + 32 + g / 4 * 32), 2 * (g % 4), 0, 3),
                                   moved_bits(load_256(block), g, 2, 4));
            break;
        case GGUF_IQ4_XS: q[g] = look_up(NON_LINEAR, nibbles(block + 8 + 16 * g)); break;
        }
    }
}

INLINE void load_chunk(__m256i q[8], int kind, const char *blocks, int groups) {
    if (block_values(kind) == CHUNK)
        load_large(q, kind, blocks);
    else
        UNROLL for (int g = 0; g < 8; g++)
            q[g] = g < groups ? load_small(kind, blocks + g * block_bytes(kind)) : _mm256_setzero_si256();
}

/* ---------------------------------------------------------------------------------------------- its scales */

/* The scales of a chunk and what goes with them, as in `chunk` of blocks.h. */
typedef struct {
    __m256 scales, minimums;
    __m256i sub_scales, sub_minimums; /* 16 int16 each */
} chunk_scales;

/* The fp16 numbers at p, p + step, ... */
INLINE __m256 strided_halves(const char *p, int64_t step, int groups) {
    int16_t halves[8] = {0};
    UNROLL for (int g = 0; g < 8; g++)
        if (g < groups)
            memcpy(halves + g, p + g * step, sizeof *halves);
    return _mm256_cvtph_ps(_mm_set_epi16(halves[7], halves[6], halves[5], halves[4], halves[3], halves[2], halves[1], halves[0]));
}

INLINE __m256 bytes_as_floats(const uint8_t bytes[8]) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
}

INLINE chunk_scales load_scales(int kind, const char *blocks, int groups) {
    chunk_scales s = {0};
    float floats[8];
    int16_t words[16];
    uint8_t sc[8], m[8];
    switch (kind) {
    case GGUF_Q4_K:
    case GGUF_Q5_K:
        k4_scales(sc, m, blocks + 4);
        s.scales = _mm256_mul_ps(_mm256_set1_ps(half_at(blocks)), bytes_as_floats(sc));
        s.minimums = _mm256_mul_ps(_mm256_set1_ps(-half_at(blocks + 2)), bytes_as_floats(m));
        break;
    case GGUF_Q6_K:
        s.scales = _mm256_set1_ps(half_at(blocks + 208));
        s.sub_scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(blocks + 192)));
        break;
    case GGUF_Q3_K:
        s.scales = _mm256_set1_ps(half_at(blocks + 108));
        q3_scales(words, (const uint8_t *)blocks + 96);
        s.sub_scales = load_256(words);
        break;
    case GGUF_Q2_K: {
        __m256i both = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)blocks));
        s.scales = _mm256_set1_ps(half_at(blocks + 80));
        s.minimums = _mm256_set1_ps(-half_at(blocks + 82));
        s.sub_scales = bytes_and(both, 15);
        s.sub_minimums = _mm256_srli_epi16(both, 4);
        break;
    }
    case GGUF_IQ4_XS:
        iq4_xs_scales(floats, blocks);
        s.scales = _mm256_loadu_ps(floats);
        break;
    case GGUF_MXFP4:
        UNROLL for (int g = 0; g < 8; g++)
            floats[g] = g < groups ? exponent_only((uint8_t)blocks[g * block_bytes(kind)]) : 0;
        s.scales = _mm256_loadu_ps(floats);
        break;
    default:
        s.scales = strided_halves(blocks, block_bytes(kind), groups);
        if (has_minimums(kind))
            s.minimums = strided_halves(blocks + 2, block_bytes(kind), groups);
    }
    return s;
}

/* ---------------------------------------------------------------------------------------------- few rows */

/* From two vectors one with half as many partial sums of each: in each 128 bits, the first 64 of a and b are added to the last. */
#define FOLD_64(add, a, b) add(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
INLINE __m256i even_32(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
}
INLINE __m256i odd_32(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xDD));
}
/* The two halves of a, and of b, added: a's sums in the low half, b's in the high one. */
INLINE __m256i fold_128(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Lane g: the sum of the int32 lanes of sum[g]. */
INLINE __m256i fold_words(const __m256i sum[8]) {
    __m256i two[4], four[2];
    UNROLL for (int i = 0; i < 4; i++)
        two[i] = FOLD_64(_mm256_add_epi32, sum[2 * i], sum[2 * i + 1]);
    UNROLL for (int i = 0; i < 2; i++)
        four[i] = _mm256_add_epi32(even_32(two[2 * i], two[2 * i + 1]), odd_32(two[2 * i], two[2 * i + 1]));
    return fold_128(four[0], four[1]);
}

/* The same of int16 lanes, of which four can be added. */
INLINE __m256i fold_pairs(const __m256i pairs[8]) {
    __m256i two[4], four[2];
    UNROLL for (int i = 0; i < 4; i++)
        two[i] = FOLD_64(_mm256_add_epi16, pairs[2 * i], pairs[2 * i + 1]);
    UNROLL for (int i = 0; i < 2; i++) {
        four[i] = _mm256_add_epi16(even_32(two[2 * i], two[2 * i + 1]), odd_32(two[2 * i], two[2 * i + 1]));
        four[i] = _mm256_madd_epi16(four[i], _mm256_set1_epi16(1));
    }
    return fold_128(four[0], four[1]);
}

/* The sub scales of group g for the pairs of its 32 values: the first eight lanes have the first one, the others the second. */
INLINE __m256i spread_sub_scales(const int16_t *sub_scales, int g) {
    int32_t two;
    memcpy(&two, sub_scales + 2 * g, sizeof two);
    __m256i first_second = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
    return _mm256_shuffle_epi8(_mm256_set1_epi32(two), first_second);
}

/* The integer sums of 8 groups, sub scales and bias included. IN s: the sums of x, two for each group. */
INLINE __m256i chunk_sums(int kind, const __m256i q[8], const int16_t *sub_scales, const chunk_scales *scales, const int8_t *x,
                          __m256i s, int groups) {
    __m256i sum[8], biases;
    UNROLL for (int g = 0; g < 8; g++) {
        __m256i xv = g < groups ? load_256(x + 32 * g) : _mm256_setzero_si256();
        if (is_8_bit(kind))
            sum[g] = dot32(q[g], xv);
        else
            sum[g] = _mm256_maddubs_epi16(q[g], xv);
        if (has_sub_scales(kind))
            sum[g] = _mm256_madd_epi16(sum[g], spread_sub_scales(sub_scales, g));
    }
    if (is_8_bit(kind))
        return fold_words(sum);
    if (bias_of(kind) == 0)
        return has_sub_scales(kind) ? fold_words(sum) : fold_pairs(sum);
    biases = _mm256_set1_epi16((int16_t)bias_of(kind));
    if (!has_sub_scales(kind))
        return _mm256_sub_epi32(fold_pairs(sum), _mm256_madd_epi16(s, biases));
    return _mm256_sub_epi32(fold_words(sum), _mm256_madd_epi16(s, _mm256_mullo_epi16(scales->sub_scales, biases)));
}

INLINE void some_products(float *products, float *minimums, int64_t row_stride, int kind, const char *blocks, int groups,
                          const int8_t *x, const int16_t *sums, int64_t n, int64_t rows) {
    __m256i q[8];
    chunk_scales scales = load_scales(kind, blocks, groups);
    int16_t sub_scales[16], few[16] = {0};
    load_chunk(q, kind, blocks, groups);
    if (has_sub_scales(kind))
        _mm256_storeu_si256((__m256i *)sub_scales, scales.sub_scales);
    if (has_minimums(kind) && kind != GGUF_Q2_K)
        _mm256_storeu_ps(minimums, scales.minimums);
    for (int64_t r = 0; r < rows; r++, x += n, sums += n / 16, products += row_stride) {
        __m256i s = groups == 8 ? load_256(sums) : load_256(memcpy(few, sums, sizeof(*few) * 2 * (size_t)groups));
        __m256i isum = chunk_sums(kind, q, sub_scales, &scales, x, s, groups);
        _mm256_storeu_ps(products, _mm256_mul_ps(_mm256_cvtepi32_ps(isum), scales.scales));
        if (kind == GGUF_Q2_K) {
            __m256i less = _mm256_madd_epi16(s, scales.sub_minimums);
            _mm256_storeu_ps(minimums + r * row_stride, _mm256_mul_ps(_mm256_cvtepi32_ps(less), scales.minimums));
        }
    }
}

/* See blocks.h. */
INLINE void chunk_products(float *products, float *minimums, int64_t row_stride, int kind, const char *blocks, int groups,
                           const int8_t *x, const int16_t *sums, int64_t n, int64_t rows) {
    if (block_values(kind) == CHUNK || groups == CHUNK_GROUPS)
        some_products(products, minimums, row_stride, kind, blocks, CHUNK_GROUPS, x, sums, n, rows);
    else
        some_products(products, minimums, row_stride, kind, blocks, groups, x, sums, n, rows);
}

/* ---------------------------------------------------------------------------------------------- many rows */

/* 16 outputs. Of 2 to 6 bits: bytes q + bias, interleaved by fours, [k / 4][output][4]; one vpmaddubsw is 8 outputs by 4. Of
 * 8 bits: int16, interleaved in pairs, [k / 2][output][2]; one vpmaddwd is 8 outputs by 2. */
enum { TILE_WIDTH = 16, TILE_MOST_ROWS = 4 };

/* Group g of eight outputs, q[output][group], to its place in the tile. `to`: where the first of its bytes or words go. */
INLINE void pack_group(char *to, int kind, __m256i q[8][8], int g) {
    __m256i rows[8], columns[8];
    for (int i = 0; i < (is_8_bit(kind) ? 2 : 1); i++) {
        UNROLL for (int o = 0; o < 8; o++) {
            __m128i half = i ? _mm256_extracti128_si256(q[o][g], 1) : _mm256_castsi256_si128(q[o][g]);
            rows[o] = is_8_bit(kind) ? _mm256_cvtepi8_epi16(half) : q[o][g];
        }
        transpose8(columns, rows);
        UNROLL for (int j = 0; j < 8; j++)
            _mm256_storeu_si256((__m256i *)(to + (8 * i + j) * 64), columns[j]);
    }
}

/* Outputs 8 half .. 8 half + 7 of the tile. */
INLINE void unpack_half(const tile *t, int kind, const matrix *w, int64_t first, int outs, int half) {
    const int64_t group_bytes = is_8_bit(kind) ? 16 * 64 : 8 * 64, step = row_bytes(kind, CHUNK), n_groups = w->columns / 32;
    __m256i q[8][8];
    for (int64_t at = 0; at < n_groups; at += CHUNK_GROUPS) {
        int groups = n_groups - at < CHUNK_GROUPS ? (int)(n_groups - at) : CHUNK_GROUPS;
        for (int i = 0; i < 8; i++) {
            int o = 8 * half + i;
            const char *blocks = block_row(w, first + (o < outs ? o : 0)) + at / CHUNK_GROUPS * step; /* past the end: any */
            load_chunk(q[i], kind, blocks, groups);
            chunk_scales s = load_scales(kind, blocks, groups);
            float scales[8], minimums[8];
            int16_t sub_scales[16], sub_minimums[16];
            _mm256_storeu_ps(scales, s.scales);
            _mm256_storeu_ps(minimums, s.minimums);
            _mm256_storeu_si256((__m256i *)sub_scales, s.sub_scales);
            _mm256_storeu_si256((__m256i *)sub_minimums, s.sub_minimums);
            for (int g = 0; g < groups; g++) {
                int64_t place = (at + g) * 16 + o;
                t->scales[place] = scales[g];
                if (has_minimums(kind))
                    t->minimums[place] = minimums[g];
                if (has_sub_scales(kind))
                    memcpy(t->sub_scales + 2 * place, sub_scales + 2 * g, 2 * sizeof *sub_scales);
                if (kind == GGUF_Q2_K)
                    memcpy(t->sub_minimums + 2 * place, sub_minimums + 2 * g, 2 * sizeof *sub_minimums);
            }
        }
        for (int g = 0; g < groups; g++)
            pack_group(t->packed + (at + g) * group_bytes + 32 * half, kind, q, g);
    }
}

INLINE void unpack_tile_kind(const tile *t, int kind, const matrix *w, int64_t first, int outs) {
    unpack_half(t, kind, w, first, outs, 0);
    unpack_half(t, kind, w, first, outs, 1);
}

static void unpack_tile(const tile *t, const matrix *w, int64_t first, int outs) {
#define CALL(kind) unpack_tile_kind(t, kind, w, first, outs)
    FOR_KIND(w->kind, CALL)
#undef CALL
}

INLINE __m256i broadcast_32(const void *p) {
    int32_t four_bytes;
    memcpy(&four_bytes, p, sizeof four_bytes);
    return _mm256_set1_epi32(four_bytes);
}

/* Less the bias times the sum of the activations of group g. IN offset: -128 times that sum; sums: of its halves. */
INLINE __m256i less_bias(int kind, const tile *t, int64_t g, int half, const int32_t *offset, const int16_t *sums) {
    int bias = bias_of(kind);
    if (!has_sub_scales(kind))
        return _mm256_mullo_epi32(_mm256_srai_epi32(broadcast_32(offset), 7), _mm256_set1_epi32(bias));
    __m256i biased = _mm256_mullo_epi16(load_256(t->sub_scales + 2 * (g * 16 + 8 * half)), _mm256_set1_epi16((int16_t)-bias));
    return _mm256_madd_epi16(biased, broadcast_32(sums));
}

/* The sub scales of eight outputs for the pairs of the first 16 values of group g, or of the last 16; 1 in types without. */
INLINE __m256i pair_scales(const tile *t, int kind, int64_t g, int half, int last) {
    if (!has_sub_scales(kind))
        return _mm256_set1_epi16(1);
    __m256i two = load_256(t->sub_scales + 2 * (g * 16 + 8 * half)); /* one of two neighbours, twice */
    return last ? _mm256_blend_epi16(two, _mm256_srli_epi32(two, 16), 0x55)
                : _mm256_blend_epi16(two, _mm256_slli_epi32(two, 16), 0xAA);
}

/* isum[r][half] = the products of one group, of 2 to 6 bits. Unrolled, GCC would add in another order and spill the products. */
INLINE void group_of_bytes(__m256i isum[][2], int kind, const tile *t, int64_t g, const int8_t *x, int64_t n, int rows) {
    const int safe = safe_pairs(kind);
    const char *packed = t->packed + g * 8 * 64;
    const int8_t *xg = x + 32 * g;
    UNROLL for (int r = 0; r < rows; r++)
        isum[r][0] = isum[r][1] = _mm256_setzero_si256();
    NO_UNROLL for (int i = 0; i < 8; i += safe) {
        __m256i pairs[TILE_MOST_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++)
            pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
        NO_UNROLL for (int j = 0; j < safe; j++, packed += 64, xg += 4) {
            __m256i w0 = load_256(packed), w1 = load_256(packed + 32);
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i xv = broadcast_32(xg + r * n);
                pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(w0, xv));
                pairs[r][1] = _mm256_add_epi16(pairs[r][1], _mm256_maddubs_epi16(w1, xv));
            }
        }
        UNROLL for (int h = 0; h < 2; h++) {
            __m256i scales = pair_scales(t, kind, g, h, i >= 4);
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i sum = _mm256_madd_epi16(pairs[r][h], scales);
                isum[r][h] = safe == 8 ? sum : _mm256_add_epi32(isum[r][h], sum);
            }
        }
    }
}

/* The same of 8 bits. IN wide: the activations as int16. */
INLINE void group_of_words(__m256i isum[][2], const tile *t, int64_t g, const int16_t *wide, int64_t n, int rows) {
    const char *packed = t->packed + g * 16 * 64;
    const int16_t *xg = wide + 32 * g;
    UNROLL for (int r = 0; r < rows; r++)
        isum[r][0] = isum[r][1] = _mm256_setzero_si256();
    NO_UNROLL for (int j = 0; j < 16; j++, packed += 64, xg += 2) {
        __m256i w0 = load_256(packed), w1 = load_256(packed + 32);
        UNROLL for (int r = 0; r < rows; r++) {
            __m256i xv = broadcast_32(xg + r * n);
            isum[r][0] = _mm256_add_epi32(isum[r][0], _mm256_madd_epi16(w0, xv));
            isum[r][1] = _mm256_add_epi32(isum[r][1], _mm256_madd_epi16(w1, xv));
        }
    }
}

INLINE void widen_activations(int16_t *wide, const int8_t *x, int64_t n) {
    for (int64_t k = 0; k < n; k += 16)
        _mm256_storeu_si256((__m256i *)(wide + k), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(x + k))));
}

INLINE void tile_rows_kind(float acc[][TILE_WIDTH], const tile *t, int kind, const q8_rows *x, int64_t row, int rows, int64_t n) {
    const int8_t *values = x->values + row * n;
    int16_t *wide = (int16_t *)(t->packed + 2 * 16 * n);
    float low[TILE_MOST_ROWS][TILE_WIDTH];
    memset(acc, 0, sizeof(acc[0]) * (size_t)rows);
    memset(low, 0, sizeof low);
    if (is_8_bit(kind))
        widen_activations(wide, values, rows * n);
    for (int64_t g = 0; g < n / 32; g++) {
        __m256i isum[TILE_MOST_ROWS][2];
        if (is_8_bit(kind))
            group_of_words(isum, t, g, wide, n, rows);
        else
            group_of_bytes(isum, kind, t, g, values, n, rows);
        UNROLL for (int r = 0; r < rows; r++) {
            int64_t at_group = (row + r) * x->n_groups + g;
            const int16_t *sums = x->sums + 2 * at_group;
            __m256 x_scale = _mm256_set1_ps(x->scales[at_group]);
            UNROLL for (int h = 0; h < 2; h++) {
                if (bias_of(kind))
                    isum[r][h] = _mm256_add_epi32(isum[r][h], less_bias(kind, t, g, h, x->offsets + at_group, sums));
                int64_t at = g * 16 + 8 * h;
                float *sum = acc[r] + 8 * h, *less = low[r] + 8 * h;
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(isum[r][h]), _mm256_loadu_ps(t->scales + at));
                _mm256_storeu_ps(sum, _mm256_fmadd_ps(product, x_scale, _mm256_loadu_ps(sum)));
                if (!has_minimums(kind))
                    continue;
                __m256 minimum = _mm256_loadu_ps(t->minimums + at), by = x_scale;
                if (kind == GGUF_Q2_K)
                    minimum = _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(_mm256_madd_epi16(
                        load_256(t->sub_minimums + 2 * at), broadcast_32(sums))));
                else
                    by = _mm256_set1_ps(x->scaled_sums[at_group]);
                _mm256_storeu_ps(less, _mm256_fmadd_ps(minimum, by, _mm256_loadu_ps(less)));
            }
        }
    }
    for (int r = 0; has_minimums(kind) && r < rows; r++)
        for (int o = 0; o < TILE_WIDTH; o++)
            acc[r][o] += low[r][o];
}

/* More than DIRECT_ROWS rows make tiles of 3 or 4. With their number as a constant, the sums stay in registers. */
INLINE void tile_rows_of(float acc[][TILE_WIDTH], const tile *t, int kind, const q8_rows *x, int64_t row, int rows, int64_t n) {
    if (rows == TILE_MOST_ROWS)
        tile_rows_kind(acc, t, kind, x, row, TILE_MOST_ROWS, n);
    else
        tile_rows_kind(acc, t, kind, x, row, TILE_MOST_ROWS - 1, n);
}

static void tile_rows(float acc[][TILE_WIDTH], const tile *t, int kind, const q8_rows *x, int64_t row, int rows, int64_t n) {
    switch (kind) { /* once unpacked, some types are alike */
    case GGUF_Q4_0: tile_rows_of(acc, t, GGUF_Q4_0, x, row, rows, n); break;
    case GGUF_Q4_1:
    case GGUF_Q4_K: tile_rows_of(acc, t, GGUF_Q4_K, x, row, rows, n); break;
    case GGUF_Q5_0: tile_rows_of(acc, t, GGUF_Q5_0, x, row, rows, n); break;
    case GGUF_Q5_1:
    case GGUF_Q5_K: tile_rows_of(acc, t, GGUF_Q5_K, x, row, rows, n); break;
    case GGUF_Q8_0:
    case GGUF_IQ4_NL:
    case GGUF_IQ4_XS: tile_rows_of(acc, t, GGUF_Q8_0, x, row, rows, n); break;
    case GGUF_Q2_K: tile_rows_of(acc, t, GGUF_Q2_K, x, row, rows, n); break;
    case GGUF_Q3_K: tile_rows_of(acc, t, GGUF_Q3_K, x, row, rows, n); break;
    case GGUF_Q6_K: tile_rows_of(acc, t, GGUF_Q6_K, x, row, rows, n); break;
    case GGUF_MXFP4: tile_rows_of(acc, t, GGUF_MXFP4, x, row, rows, n); break;
    }
}
