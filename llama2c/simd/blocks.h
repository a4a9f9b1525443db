/* The block types of GGUF, multiplied as integers with activations in groups of 32.
 *
 * Whatever the type, 32 weights are integers q with an fp32 scale and, in some types, an fp32 minimum:
 *     weight = scale * q + minimum
 * Types with blocks of 16 inside have an integer scale for each 16, sub: weight = scale * sub * q; and q2_k an integer minimum too.
 *
 * One order for every product. Inside a group the integer sum is exact, sub scales included: it stays below 2^24. Then
 *     acc = fma((float)isum * scale, x_scale, acc)        groups ascending, one accumulator for an output
 *     low = fma(minimum, x_scale * (float)x_sum, low)     a second one, for types with minimums
 *     low = fma((float)isum_of_minimums * minimum, x_scale, low)  ... for q2_k
 * and the result is acc + low.
 *
 * Few rows multiply the blocks as they are in the file: chunk_products() unpacks 256 weights of one output in registers and
 * multiplies them with all rows. Many rows multiply a tile of 16 outputs that was unpacked before. A level may have its own
 * chunk_products and its own tile (HAVE_...); what is here serves the others, and tells what each type contains.
 */

enum { CHUNK = 256, CHUNK_GROUPS = 8 }; /* weights that are unpacked at once, and their groups of 32 */

/* 256 weights of one output, or the fewer that are left. */
typedef struct {
    int8_t q[CHUNK];
    float scales[CHUNK_GROUPS];
    float minimums[CHUNK_GROUPS];           /* of q2_k: the fp32 part */
    int16_t sub_scales[2 * CHUNK_GROUPS];   /* 1 in types without */
    int16_t sub_minimums[2 * CHUNK_GROUPS]; /* q2_k */
} chunk;

INLINE int has_minimums(int kind) {
    return kind == GGUF_Q4_1 || kind == GGUF_Q5_1 || kind == GGUF_Q4_K || kind == GGUF_Q5_K || kind == GGUF_Q2_K;
}
INLINE int has_sub_scales(int kind) { return kind == GGUF_Q6_K || kind == GGUF_Q3_K || kind == GGUF_Q2_K; }

static const int8_t NON_LINEAR[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t FP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* ---------------------------------------------------------------------------------------------- what a block contains */

/* An fp16 number as in reg_load_f16 of vec_generic.h. */
INLINE float half_at(const char *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    magnitude *= 0x1p112f;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits |= (uint32_t)(half & 0x8000) << 16;
    memcpy(&magnitude, &bits, sizeof bits);
    return magnitude;
}

/* 2^(e - 128), also where that is below the smallest normal number. */
INLINE float exponent_only(uint8_t e) {
    uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof bits);
    return scale;
}

/* The scales and minimums of q4_k and q5_k: eight of 6 bits each in 12 bytes. */
INLINE void k4_scales(uint8_t scales[8], uint8_t minimums[8], const char *packed) {
    uint32_t four[3], low; /* four bytes at once */
    memcpy(four, packed, sizeof four);
    low = four[0] & 0x3f3f3f3f;
    memcpy(scales, &low, sizeof low);
    low = four[1] & 0x3f3f3f3f;
    memcpy(minimums, &low, sizeof low);
    low = (four[2] & 0x0f0f0f0f) | (four[0] >> 2 & 0x30303030);
    memcpy(scales + 4, &low, sizeof low);
    low = (four[2] >> 4 & 0x0f0f0f0f) | (four[1] >> 2 & 0x30303030);
    memcpy(minimums + 4, &low, sizeof low);
}

/* Their scales and minimums in fp32. */
INLINE void k4_floats(float *scales, float *minimums, const char *block) {
    uint8_t sc[8], m[8];
    float d = half_at(block), dmin = half_at(block + 2);
    k4_scales(sc, m, block + 4);
    for (int g = 0; g < 8; g++) {
        scales[g] = d * (float)sc[g];
        minimums[g] = -(dmin * (float)m[g]);
    }
}

/* The sixteen scales of q3_k: 6 bits each, less 32. */
INLINE void q3_scales(int16_t *sub_scales, const uint8_t *packed) {
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
        sub_scales[j] = (int16_t)((low | (packed[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32);
    }
}

/* The eight scales of iq4_xs: 6 bits each, less 32, times d. */
INLINE void iq4_xs_scales(float *scales, const char *block) {
    const uint8_t *low = (const uint8_t *)block + 4;
    uint16_t high;
    memcpy(&high, block + 2, sizeof high);
    float d = half_at(block);
    for (int g = 0; g < 8; g++)
        scales[g] = d * (float)(((low[g / 2] >> 4 * (g % 2) & 15) | (high >> 2 * g & 3) << 4) - 32);
}

/* One block of 32, whose numbers become q[0] to q[31]. */
INLINE void unpack_small(chunk *c, int kind, const char *block, int g) {
    const uint8_t *qs = (const uint8_t *)block + block_bytes(kind) - (kind == GGUF_Q8_0 ? 32 : 16);
    int8_t *q = c->q + 32 * g;
    uint32_t fifth = 0;
    c->scales[g] = kind == GGUF_MXFP4 ? exponent_only((uint8_t)block[0]) : half_at(block);
    if (has_minimums(kind))
        c->minimums[g] = half_at(block + 2);
    if (kind == GGUF_Q8_0) {
        memcpy(q, qs, 32);
        return;
    }
    if (kind == GGUF_Q5_0 || kind == GGUF_Q5_1)
        memcpy(&fifth, qs - 4, sizeof fifth);
    for (int j = 0; j < 32; j++) {
        int value = j < 16 ? qs[j] & 15 : qs[j - 16] >> 4;
        switch (kind) {
        case GGUF_Q4_0: value -= 8; break;
        case GGUF_Q5_0: value = (value | (int)(fifth >> j & 1) << 4) - 16; break;
        case GGUF_Q5_1: value |= (int)(fifth >> j & 1) << 4; break;
        case GGUF_IQ4_NL: value = NON_LINEAR[value]; break;
        case GGUF_MXFP4: value = FP4[value]; break;
        }
        q[j] = (int8_t)value;
    }
}

/* One block of 256. */
INLINE void unpack_large(chunk *c, int kind, const char *block) {
    const uint8_t *b = (const uint8_t *)block;
    float d = 0, dmin = 0;
    if (kind == GGUF_Q4_K || kind == GGUF_Q5_K) {
        k4_floats(c->scales, c->minimums, block);
    } else if (kind == GGUF_IQ4_XS) {
        iq4_xs_scales(c->scales, block);
    } else {
        d = half_at(block + (kind == GGUF_Q2_K ? 80 : kind == GGUF_Q3_K ? 108 : 208));
        dmin = kind == GGUF_Q2_K ? half_at(block + 82) : 0;
        for (int g = 0; g < 8; g++) {
            c->scales[g] = d;
            c->minimums[g] = -dmin;
        }
    }
    for (int j = 0; kind == GGUF_Q2_K && j < 16; j++) {
        c->sub_scales[j] = b[j] & 15;
        c->sub_minimums[j] = b[j] >> 4;
    }
    for (int j = 0; kind == GGUF_Q6_K && j < 16; j++)
        c->sub_scales[j] = (int8_t)b[192 + j];
    if (kind == GGUF_Q3_K)
        q3_scales(c->sub_scales, b + 96);
    for (int g = 0; g < 8; g++)
        for (int l = 0; l < 32; l++) {
            int value = 0;
            switch (kind) {
            case GGUF_Q4_K: value = b[16 + g / 2 * 32 + l] >> 4 * (g % 2) & 15; break;
            case GGUF_Q5_K: value = (b[48 + g / 2 * 32 + l] >> 4 * (g % 2) & 15) | (b[16 + l] >> g & 1) << 4; break;
            case GGUF_Q6_K:
                value = b[g / 4 * 64 + g % 2 * 32 + l] >> 4 * (g % 4 / 2) & 15;
                value = (value | (b[128 + g / 4 * 32 + l] >> 2 * (g % 4) & 3) << 4) - 32;
                break;
            case GGUF_Q2_K: value = b[16 + g / 4 * 32 + l] >> 2 * (g % 4) & 3; break;
            case GGUF_Q3_K: value = ((b[32 + g / 4 * 32 + l] >> 2 * (g % 4) & 3) | (b[l] >> g & 1) << 2) - 4; break;
            case GGUF_IQ4_XS: value = NON_LINEAR[b[8 + 16 * g + l % 16] >> 4 * (l / 16) & 15]; break;
            }
            c->q[32 * g + l] = (int8_t)value;
        }
}

/* `groups` groups of 32 weights from the block at `blocks` on. */
INLINE void unpack_kind(chunk *c, int kind, const char *blocks, int groups) {
    if (!has_sub_scales(kind))
        for (int j = 0; j < 2 * CHUNK_GROUPS; j++)
            c->sub_scales[j] = 1;
    if (block_values(kind) == CHUNK)
        unpack_large(c, kind, blocks);
    else
        for (int g = 0; g < groups; g++)
            unpack_small(c, kind, blocks + g * block_bytes(kind), g);
}

/* CALL(kind) for the kind of w as a constant: each type has code of its own. */
#define FOR_KIND(kind, CALL)                                                                                                   \
    switch (kind) {                                                                                                            \
    case GGUF_Q4_0: CALL(GGUF_Q4_0); break;                                                                                    \
    case GGUF_Q4_1: CALL(GGUF_Q4_1); break;                                                                                    \
    case GGUF_Q5_0: CALL(GGUF_Q5_0); break;                                                                                    \
    case GGUF_Q5_1: CALL(GGUF_Q5_1); break;                                                                                    \
    case GGUF_Q8_0: CALL(GGUF_Q8_0); break;                                                                                    \
    case GGUF_Q2_K: CALL(GGUF_Q2_K); break;                                                                                    \
    case GGUF_Q3_K: CALL(GGUF_Q3_K); break;                                                                                    \
    case GGUF_Q4_K: CALL(GGUF_Q4_K); break;                                                                                    \
    case GGUF_Q5_K: CALL(GGUF_Q5_K); break;                                                                                    \
    case GGUF_Q6_K: CALL(GGUF_Q6_K); break;                                                                                    \
    case GGUF_IQ4_NL: CALL(GGUF_IQ4_NL); break;                                                                                \
    case GGUF_IQ4_XS: CALL(GGUF_IQ4_XS); break;                                                                                \
    case GGUF_MXFP4: CALL(GGUF_MXFP4); break;                                                                                  \
    }

static void unpack(chunk *c, int kind, const char *blocks, int groups) {
#define CALL(constant) unpack_kind(c, constant, blocks, groups)
    FOR_KIND(kind, CALL)
#undef CALL
}

INLINE const char *block_row(const matrix *w, int64_t row) { return w->numbers + row * row_bytes(w->kind, w->columns); }

/* Weight k of a chunk in fp32, rounded as ggml does: (d * sub) first, then times q. */
static void widen_blocks(float *out, const matrix *w, int64_t row) {
    const char *blocks = block_row(w, row);
    chunk c;
    for (int64_t k = 0; k < w->columns; k += CHUNK, blocks += row_bytes(w->kind, CHUNK)) {
        int n = w->columns - k < CHUNK ? (int)(w->columns - k) : CHUNK;
        unpack(&c, w->kind, blocks, n / 32);
        for (int i = 0; i < n; i++) {
            float value = c.scales[i / 32] * (float)c.sub_scales[i / 16] * (float)c.q[i];
            if (w->kind == GGUF_Q2_K)
                value += c.minimums[i / 32] * (float)c.sub_minimums[i / 16];
            else if (has_minimums(w->kind))
                value += c.minimums[i / 32];
            out[k + i] = value;
        }
    }
}

/* 16 or more outputs, unpacked for many rows: their scales and minimums, [group][output], and their integers as a level packs
 * them. */
typedef struct {
    float *scales;
    float *minimums;
    int16_t *sub_scales, *sub_minimums; /* [group][output][2] */
    char *packed;
} tile;

INLINE tile lay_out_tile(void *pack, int64_t n, int outputs) {
    int64_t groups = n / 32 + CHUNK_GROUPS;
    tile t;
    t.scales = pack;
    t.minimums = t.scales + groups * outputs;
    t.sub_scales = (int16_t *)(t.minimums + groups * outputs);
    t.sub_minimums = t.sub_scales + 2 * groups * outputs;
    t.packed = (char *)(t.sub_minimums + 2 * groups * outputs);
    return t;
}

#ifdef LEVEL_BLOCKS /* as LEVEL_Q8 in loops_q8.h */
#include LEVEL_BLOCKS
#endif

/* ---------------------------------------------------------------------------------------------- few rows: straight from the file */

#ifndef HAVE_CHUNK_PRODUCTS
/* products[r * row_stride + g] = (float)isum * scale of 256 weights (or `groups` groups of them) with each of the rows from x on,
 * and the minimums that go with them: one row for all, but of q2_k their products, one for each row. */
INLINE void chunk_products(float *products, float *minimums, int64_t row_stride, int kind, const char *blocks, int groups,
                           const int8_t *x, const int16_t *sums, int64_t n, int64_t rows) {
    chunk c;
    unpack(&c, kind, blocks, groups);
    for (int64_t r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) {
            const int8_t *xv = x + r * n + 32 * g;
            const int16_t *s = sums + r * (n / 16) + 2 * g;
            int32_t low = dot_i8(c.q + 32 * g, xv, 16), high = dot_i8(c.q + 32 * g + 16, xv + 16, 16);
            int32_t isum = low * c.sub_scales[2 * g] + high * c.sub_scales[2 * g + 1];
            products[r * row_stride + g] = (float)isum * c.scales[g];
            if (kind == GGUF_Q2_K) {
                int32_t less = s[0] * c.sub_minimums[2 * g] + s[1] * c.sub_minimums[2 * g + 1];
                minimums[r * row_stride + g] = (float)less * c.minimums[g];
            } else if (has_minimums(kind)) {
                minimums[g] = c.minimums[g];
            }
        }
}
#endif

/* 16 outputs or the fewer that are left, for up to DIRECT_ROWS rows. The weights of each output are read once, in order. */
INLINE void direct_block(float *out, int64_t out_stride, const q8_rows *x, int64_t rows, const matrix *w, int kind,
                         int64_t first, int outs, int64_t n, int add, float *scratch) {
    int64_t n_groups = n / 32, stride = (n_groups + 15) / 16 * 16, step = row_bytes(kind, CHUNK);
    float *products = scratch, *minimums = scratch + rows * 16 * stride, acc[16], low[16];
    int64_t planes = kind == GGUF_Q2_K ? rows : 1; /* of minimums */
    for (int o = 0; o < outs; o++) {
        const char *blocks = block_row(w, first + o);
        for (int64_t g = 0; g < n_groups; g += CHUNK_GROUPS, blocks += step) {
            int groups = n_groups - g < CHUNK_GROUPS ? (int)(n_groups - g) : CHUNK_GROUPS;
            for (int64_t ahead = 0; ahead < step; ahead += 64)
                __builtin_prefetch(blocks + ahead + FETCH_AHEAD, 0, 2);
            chunk_products(products + o * stride + g, minimums + o * stride + g, 16 * stride, kind, blocks, groups,
                           x->values + 32 * g, x->sums + 2 * g, n, rows);
        }
    }
    if (outs < 16) {
        size_t missing = sizeof(float) * (size_t)((16 - outs) * stride);
        for (int64_t r = 0; r < rows; r++)
            memset(products + (r * 16 + outs) * stride, 0, missing);
        for (int64_t r = 0; has_minimums(kind) && r < planes; r++)
            memset(minimums + (r * 16 + outs) * stride, 0, missing);
    }
    for (int64_t r = 0; r < rows; r++) {
        add_up_groups(acc, products + r * 16 * stride, stride, x->scales + r * x->n_groups, n_groups);
        if (has_minimums(kind)) {
            int own = kind == GGUF_Q2_K;
            add_up_groups(low, minimums + (own ? r * 16 * stride : 0), stride,
                          (own ? x->scales : x->scaled_sums) + r * x->n_groups, n_groups);
            for (int o = 0; o < 16; o++)
                acc[o] += low[o];
        }
        store_acc(out + r * out_stride, acc, outs, add);
    }
}

/* With a single row as a constant, the weights of a chunk never leave the registers. */
INLINE void matmul_direct(float *out, int64_t out_stride, const q8_rows *x, int64_t rows, const matrix *w, int kind,
                          int64_t first, int64_t n_out, int add, void *scratch) {
    for (int64_t o = 0; o < n_out; o += 16) {
        int outs = n_out - o < 16 ? (int)(n_out - o) : 16;
        if (rows == 1)
            direct_block(out + o, out_stride, x, 1, w, kind, first + o, outs, w->columns, add, scratch);
        else
            direct_block(out + o, out_stride, x, rows, w, kind, first + o, outs, w->columns, add, scratch);
    }
}

/* ---------------------------------------------------------------------------------------------- many rows: unpacked tiles */

#ifndef HAVE_BLOCK_TILE
/* 16 outputs as int16, interleaved in pairs as in loops_q8.h, already times their sub scales: at most 32 * 128. */
enum { TILE_WIDTH = 16, TILE_MOST_ROWS = 4 };

static void unpack_tile(const tile *t, const matrix *w, int64_t first, int outs) {
    int16_t *packed = (int16_t *)t->packed;
    chunk c;
    for (int o = 0; o < 16; o++) {
        const char *blocks = block_row(w, first + (o < outs ? o : 0)); /* the outputs past the end are not stored */
        for (int64_t k = 0; k < w->columns; k += CHUNK, blocks += row_bytes(w->kind, CHUNK)) {
            int groups = w->columns - k < CHUNK ? (int)(w->columns - k) / 32 : CHUNK_GROUPS;
            unpack(&c, w->kind, blocks, groups);
            for (int i = 0; i < 32 * groups; i++)
                packed[((k + i) / 2 * 16 + o) * 2 + i % 2] = (int16_t)(c.q[i] * c.sub_scales[i / 16]);
            for (int g = 0; g < groups; g++) {
                int64_t at = (k / 32 + g) * 16 + o;
                t->scales[at] = c.scales[g];
                if (has_minimums(w->kind))
                    t->minimums[at] = c.minimums[g];
                for (int i = 0; w->kind == GGUF_Q2_K && i < 2; i++)
                    t->sub_minimums[2 * at + i] = c.sub_minimums[2 * g + i];
            }
        }
    }
}

/* acc[r][o] of `rows` rows from `row` on. */
static void tile_rows(float acc[][TILE_WIDTH], const tile *t, int kind, const q8_rows *x, int64_t row, int rows, int64_t n) {
    const int16_t *packed = (const int16_t *)t->packed;
    float low[16];
    for (int r = 0; r < rows; r++) {
        const float *scales = x->scales + (row + r) * x->n_groups, *scaled_sums = x->scaled_sums + (row + r) * x->n_groups;
        const int16_t *sums = x->sums + (row + r) * (n / 16);
        memset(acc[r], 0, sizeof acc[r]);
        memset(low, 0, sizeof low);
        for (int64_t g = 0; g < n / 32; g++) {
            const int8_t *xv = x->values + (row + r) * n + 32 * g;
            int32_t isum[16] = {0};
            for (int k = 0; k < 32; k += 2)
                for (int o = 0; o < 16; o++) {
                    const int16_t *at = packed + ((32 * g + k) / 2 * 16 + o) * 2;
                    isum[o] += at[0] * xv[k] + at[1] * xv[k + 1];
                }
            for (int o = 0; o < 16; o++) {
                int64_t at = g * 16 + o;
                acc[r][o] = fused((float)isum[o] * t->scales[at], scales[g], acc[r][o]);
                if (kind == GGUF_Q2_K) {
                    int32_t less = t->sub_minimums[2 * at] * sums[2 * g] + t->sub_minimums[2 * at + 1] * sums[2 * g + 1];
                    low[o] = fused((float)less * t->minimums[at], scales[g], low[o]);
                } else if (has_minimums(kind)) {
                    low[o] = fused(t->minimums[at], scaled_sums[g], low[o]);
                }
            }
        }
        for (int o = 0; has_minimums(kind) && o < 16; o++)
            acc[r][o] += low[o];
    }
}
#endif

static void matmul_tiled(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows, const matrix *w,
                         int64_t first, int64_t n_out, int add, void *pack) {
    float acc[TILE_MOST_ROWS][TILE_WIDTH] __attribute__((aligned(64)));
    tile t = lay_out_tile(pack, w->columns, TILE_WIDTH);
    int64_t n_tiles = (n_rows + TILE_MOST_ROWS - 1) / TILE_MOST_ROWS;
    int64_t lines = (TILE_WIDTH * row_bytes(w->kind, w->columns) / 64 + n_tiles - 1) / n_tiles; /* of the next tile, as in loops_q8.h */
    for (int64_t o = 0; o < n_out; o += TILE_WIDTH) {
        int outs = n_out - o < TILE_WIDTH ? (int)(n_out - o) : TILE_WIDTH;
        const char *next = block_row(w, first + o + outs);
        unpack_tile(&t, w, first + o, outs);
        for (int64_t i = 0; i < n_tiles; i++) { /* equal tiles: 5 rows are 3 and 2 rather than 4 and 1 */
            int64_t r = n_rows * i / n_tiles;
            int rows = (int)(n_rows * (i + 1) / n_tiles - r);
            ask_for(next + i * lines * 64, lines);
            tile_rows(acc, &t, w->kind, x, r, rows, w->columns);
            for (int j = 0; j < rows; j++)
                store_acc(out + (r + j) * out_stride + o, acc[j], outs, add);
        }
    }
}

static void matmul_blocks(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows, const matrix *w,
                          int64_t first, int64_t n_out, int add, void *pack) {
    if (n_rows > DIRECT_ROWS) {
        matmul_tiled(out, out_stride, x, n_rows, w, first, n_out, add, pack);
        return;
    }
#ifdef HAVE_CHUNK_PRODUCTS
#define CALL(kind) matmul_direct(out, out_stride, x, n_rows, w, kind, first, n_out, add, pack)
    FOR_KIND(w->kind, CALL)
#undef CALL
#else
    matmul_direct(out, out_stride, x, n_rows, w, w->kind, first, n_out, add, pack);
#endif
}
