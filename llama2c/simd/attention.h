/* Attention of a few queries over the keys and values of one head in a cache, in fp32 or fp16, which becomes fp32 exactly.
 *
 * Keys come in blocks of 16 positions, turned: element d of the 16 keys of a block are neighbours. So 16 scores are computed side
 * by side, one in each lane, and each of the 16 lanes of the fixed order is a register of its own: adding them up needs no
 * shuffling. Values come position by position, and are added in order of time.
 */

/* sums[i] (+)= lane j of queries[i] . key for 16 keys side by side, i < n: elements j, j + 16, ... */
INLINE void score_lane(reg sums[][PARTS], int add, const float *queries, int n, const char *block, int type, int64_t head_size,
                       int j) {
    reg acc[4][PARTS], k[PARTS];
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int p = 0; p < PARTS; p++)
            acc[i][p] = reg_zero();
    _Pragma("GCC unroll 4") for (int64_t d = j; d < head_size; d += 16) {
        UNROLL for (int p = 0; p < PARTS; p++)
            k[p] = load_weights(block + (16 * d + p * LANES) * SIZE_OF(type), type, LANES);
        UNROLL for (int i = 0; i < n; i++) {
            reg q = reg_set1(queries[i * head_size + d]);
            UNROLL for (int p = 0; p < PARTS; p++)
                acc[i][p] = reg_fma(q, k[p], acc[i][p]);
        }
    }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int p = 0; p < PARTS; p++)
            sums[i][p] = add ? reg_add(sums[i][p], acc[i][p]) : acc[i][p];
}

/* scores[i, t] = queries[i] . key t for the 16 keys of a block, i < n */
INLINE void score_block(float *scores, int64_t stride, const float *queries, int n, const char *block, int type,
                        int64_t head_size, int ask) {
    const char *next = block + 16 * head_size * SIZE_OF(type);
    reg sums[8][4][PARTS];
    NO_UNROLL for (int j = 0; j < 8; j++) {
        if (ask)
            for (const char *end = next + 2 * head_size * SIZE_OF(type); next < end; next += 64)
                __builtin_prefetch(next, 0, 3);
        score_lane(sums[j], 0, queries, n, block, type, head_size, j);
        score_lane(sums[j], 1, queries, n, block, type, head_size, j + 8);
    }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int p = 0; p < PARTS; p++) {
            reg four[4];
            UNROLL for (int j = 0; j < 4; j++)
                four[j] = reg_add(sums[j][i][p], sums[j + 4][i][p]);
            reg_store(scores + i * stride + p * LANES, reg_add(reg_add(four[0], four[2]), reg_add(four[1], four[3])));
        }
}

/* out[i] += sum over t in [from, to) of weights[i, t] * values[t], in order of time, for the `regs` registers at `out`. */
INLINE void weigh_values(float *out, const float *weights, int64_t stride, int n, const char *values, int type,
                         int64_t head_size, int regs, int64_t left, int64_t from, int64_t to) {
    reg a[4][VALUE_REGS], v[VALUE_REGS];
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int d = 0; d < regs; d++)
            a[i][d] = load_up_to(out + i * head_size + d * LANES, left - d * LANES);
    for (int64_t t = from; t < to; t++) {
        UNROLL for (int d = 0; d < regs; d++)
            v[d] = load_weights(values + (t * head_size + d * LANES) * SIZE_OF(type), type, left - d * LANES);
        UNROLL for (int i = 0; i < n; i++) {
            reg weight = reg_set1(weights[i * stride + t]);
            UNROLL for (int d = 0; d < regs; d++)
                a[i][d] = reg_fma(weight, v[d], a[i][d]);
        }
    }
    UNROLL for (int i = 0; i < n; i++)
        UNROLL for (int d = 0; d < regs; d++)
            if (left > d * LANES)
                store_up_to(out + i * head_size + d * LANES, a[i][d], left - d * LANES);
}

/* All of head_size, in steps of `most` registers, then of half as many and so on: the sums of several registers overlap in time. */
INLINE void weigh_all(float *out, const float *weights, int64_t stride, int n, const char *values, int type,
                      int64_t head_size, int64_t from, int64_t to) {
    const int most = n == 1 ? VALUE_REGS : n == 2 ? VALUE_REGS / 2 : VALUE_REGS / 4;
    int64_t d = 0;
    UNROLL for (int regs = most; regs > 0; regs /= 2)
        for (; d + regs * LANES <= head_size; d += regs * LANES)
            weigh_values(out + d, weights, stride, n, values + d * SIZE_OF(type), type, head_size, regs, regs * LANES, from, to);
    if (d < head_size)
        weigh_values(out + d, weights, stride, n, values + d * SIZE_OF(type), type, head_size, 1, head_size - d, from, to);
}

enum { SPAN = 64 }; /* positions: so many keys or values stay in the first cache while all queries use them */

INLINE void attention_type(float *out, const float *queries, int64_t n_queries, const int64_t *lengths, const char *keys,
                           const char *values, int type, int64_t head_size, float *scores, int64_t stride) {
    float sums[QUERY_TILE], scale = 1.0f / sqrtf((float)head_size);
    int64_t longest = lengths[n_queries - 1], many;
    for (int64_t t = 0; t < longest; t += SPAN)
        for (int64_t i = 0; i < n_queries; i += many) {
            many = n_queries - i < 4 ? n_queries - i : 4;
            int64_t stop = lengths[i + many - 1] < t + SPAN ? lengths[i + many - 1] : t + SPAN;
            for (int64_t at = t; at < stop; at += 16) {
                const char *block = keys + at * head_size * SIZE_OF(type);
                const float *q = queries + i * head_size;
                float *to = scores + i * stride + at;
                switch (many) {
                case 1: score_block(to, stride, q, 1, block, type, head_size, i == 0); break;
                case 2: score_block(to, stride, q, 2, block, type, head_size, i == 0); break;
                case 3: score_block(to, stride, q, 3, block, type, head_size, i == 0); break;
                default: score_block(to, stride, q, 4, block, type, head_size, i == 0);
                }
            }
        }
    for (int64_t i = 0; i < n_queries; i++) {
        float *row = scores + i * stride;
        sums[i] = exp_and_sum(row, lengths[i], max_of(row, lengths[i]), scale);
    }
    memset(out, 0, sizeof(float) * (size_t)(n_queries * head_size));
    for (int64_t t = 0; t < longest; t += SPAN)
        for (int64_t i = 0; i < n_queries; i += many) {
            float *to = out + i * head_size, *weights = scores + i * stride;
            many = n_queries - i < 4 ? n_queries - i : 4;
            int64_t all = lengths[i] < t + SPAN ? lengths[i] : t + SPAN; /* all of them see the values up to here */
            switch (many) {
            case 1: break;
            case 2: weigh_all(to, weights, stride, 2, values, type, head_size, t, all); break;
            case 3: weigh_all(to, weights, stride, 3, values, type, head_size, t, all); break;
            default: weigh_all(to, weights, stride, 4, values, type, head_size, t, all);
            }
            for (int64_t j = 0; j < many; j++) {
                int64_t from = many > 1 && all > t ? all : t, stop = lengths[i + j] < t + SPAN ? lengths[i + j] : t + SPAN;
                if (from < stop)
                    weigh_all(to + j * head_size, weights + j * stride, stride, 1, values, type, head_size, from, stop);
            }
        }
    for (int64_t i = 0; i < n_queries; i++)
        for (int64_t d = 0; d < head_size; d++)
            out[i * head_size + d] /= sums[i];
}

/* The usual sizes of heads are constants, so that their short loops are unrolled: a third faster. A sanitizer would take minutes to
 * compile that. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SIZE(head_size, size) 0
#else
#define IS_SIZE(head_size, size) ((head_size) == (size))
#endif

INLINE void attention_of(float *out, const float *queries, int64_t n_queries, const int64_t *lengths, const char *keys,
                         const char *values, int type, int64_t head_size, float *scores, int64_t stride) {
    if (IS_SIZE(head_size, 64))
        attention_type(out, queries, n_queries, lengths, keys, values, type, 64, scores, stride);
    else if (IS_SIZE(head_size, 128))
        attention_type(out, queries, n_queries, lengths, keys, values, type, 128, scores, stride);
    else
        attention_type(out, queries, n_queries, lengths, keys, values, type, head_size, scores, stride);
}

static void attention(float *out, const float *queries, int64_t n_queries, const int64_t *lengths, const void *keys,
                      const void *values, int type, int64_t head_size, float *scores, int64_t stride) {
    if (type == FLOAT32)
        attention_of(out, queries, n_queries, lengths, keys, values, FLOAT32, head_size, scores, stride);
    else
        attention_of(out, queries, n_queries, lengths, keys, values, FLOAT16, head_size, scores, stride);
}
