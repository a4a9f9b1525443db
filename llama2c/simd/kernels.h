/* The inner loops of llama2c, as one table of functions per instruction set.
 *
 * Every function works on buffers its caller owns, touches nothing else, and gives the same bits at every level that has a
 * fused multiply-add (docs/kernels.md says how the order of every sum is fixed). All sizes count elements, all arrays are
 * row-major, all strides are in elements.
 */
#ifndef LLAMA2C_KERNELS_H
#define LLAMA2C_KERNELS_H

#include <stdint.h>

enum { QUERY_TILE = 16 }; /* the most queries that attention() takes at once */
enum { KEY_BLOCK = 16 };  /* positions whose keys are stored side by side */
enum { DIRECT_ROWS = 8 }; /* the most rows that are multiplied straight with quantised weights in the file */

/* The kinds of matrices: how the numbers are stored. What a kind needs is written down in four places: pack_size() and
 * input_group() below, and matmul() and widen() at the end of loops.h, each one switch over the kinds. Q8_0 is llama2.c's; the
 * block types of GGUF come after it, and blocks.h says what each of them contains. */
enum {
    FLOAT32, FLOAT16, BFLOAT16, Q8_0,
    GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0, GGUF_Q5_1, GGUF_Q8_0, GGUF_IQ4_NL, GGUF_MXFP4, /* 32 numbers in a block */
    GGUF_Q2_K, GGUF_Q3_K, GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K, GGUF_IQ4_XS,             /* 256 numbers */
};

/* A matrix of any kind. In memory its rows follow each other, and may begin at any byte. */
typedef struct {
    int kind;
    int64_t rows, columns;
    const char *numbers; /* (rows, columns): fp32, fp16 or bfloat16, which become fp32 exactly; of Q8_0 the int8 values; or blocks */
    const char *scales;  /* Q8_0: one fp32 for each group_size consecutive values, (rows * columns / group_size,) */
    int64_t group_size;  /* Q8_0: the values that share a scale; a group may go on in the next row */
} matrix;

/* Q8_0 activations: n_rows rows of n values in groups that start afresh in each row; the last group of a row may be short. */
typedef struct {
    int8_t *values;   /* (n_rows, n) */
    float *scales;    /* (n_rows, n_groups) */
    int32_t *offsets; /* (n_rows, n_groups), -128 times the sum of the values of each group: see q8_avx512.h */
    int64_t n_groups;
    /* Only in groups of 32, for blocks; else NULL: */
    int16_t *sums;      /* (n_rows, n / 16), the sum of each 16 values */
    float *scaled_sums; /* (n_rows, n_groups), scale times the sum of the group, rounded once */
} q8_rows;

typedef struct {
    const char *name;

    /* out = weight * x / sqrt(mean(x^2) + eps); all (n,) */
    void (*rmsnorm)(float *out, const float *x, const float *weight, int64_t n, float eps);

    /* The sum of x, (n,), in the order that reads memory fastest: for measuring, not for models. */
    float (*sum)(const float *x, int64_t n);

    /* The index of the first of the largest of x, (n,) with n > 0; -1 if there is a NaN. */
    int64_t (*argmax)(const float *x, int64_t n);

    /* x = exp(x - max(x)) / sum, (n,) */
    void (*softmax)(float *x, int64_t n);

    /* out = exp((x - max(x)) / divisor), (n,); the division comes first, as in a sampler: x / divisor, then the maximum */
    void (*exp_logits)(float *out, const float *x, int64_t n, float divisor);

    /* gate = silu(gate) * up, both (n,) */
    void (*swiglu)(float *gate, const float *up, int64_t n);

    /* (out[2 i], out[2 i + 1]) = the pair (x[step i], x[step i + apart]) turned by the angle whose (cos, sin) is table[i], for
     * i < n_pairs. The pairs of llama2.c are neighbours (step 2, apart 1); those of Hugging Face are in the two halves of a
     * head (step 1, apart n_pairs). */
    void (*rotate)(float *out, const float *x, const float *table, int64_t n_pairs, int64_t step, int64_t apart);

    /* out = one row of w, (columns,), in fp32. */
    void (*widen)(float *out, const matrix *w, int64_t row);

    /* One row of n activations to Q8_0 in groups of group_size, as the first row of `to`. */
    void (*quantize)(const q8_rows *to, const float *x, int64_t n, int64_t group_size);

    /* out[r, o] (+)= x[r] . w[first + o] for r < n_rows, o < n_out; added to out if `add`. x is (n_rows, columns of w) in fp32.
     * Where input_group(w) is not 0, `xq` is read instead: x quantised in groups of that size. `pack` is scratch of
     * pack_size(w) bytes, aligned to 64. */
    void (*matmul)(float *out, int64_t out_stride, const float *x, const q8_rows *xq, int64_t n_rows,
                   const matrix *w, int64_t first, int64_t n_out, int add, void *pack);

    /* Put x, (n,), into a cache of FLOAT32 or FLOAT16, the numbers `step` apart. fp16 is rounded to the nearest, ties to even;
     * numbers too large for it become +-65504. */
    void (*store)(void *out, int type, int64_t step, const float *x, int64_t n);

    /* out[i] = softmax(queries[i] . keys[:lengths[i]] / sqrt(head_size)) . values for i < n_queries <= QUERY_TILE;
     * queries, out (n_queries, head_size); lengths do not decrease. keys and values are FLOAT32 or FLOAT16: keys in blocks of
     * KEY_BLOCK positions, (n_blocks, head_size, KEY_BLOCK), values (max(lengths), head_size).
     * scores is scratch, (n_queries, score_stride), where score_stride is a multiple of KEY_BLOCK. */
    void (*attention)(float *out, const float *queries, int64_t n_queries, const int64_t *lengths,
                      const void *keys, const void *values, int type, int64_t head_size,
                      float *scores, int64_t score_stride);
} kernel_table;

static inline int is_blocks(int kind) { return kind >= GGUF_Q4_0; }
static inline int64_t block_values(int kind) { return kind >= GGUF_Q2_K ? 256 : 32; }
static inline int64_t block_bytes(int kind) {
    static const uint8_t bytes[] = {18, 20, 22, 24, 34, 18, 17, 84, 110, 144, 176, 210, 136};
    return bytes[kind - GGUF_Q4_0];
}
/* Bytes of n numbers in blocks. */
static inline int64_t row_bytes(int kind, int64_t n) { return n / block_values(kind) * block_bytes(kind); }

/* The size of the groups in which the product with w reads its input quantised; 0: it reads the input in fp32. */
static inline int64_t input_group(const matrix *w) {
    switch (w->kind) {
    case Q8_0: return w->group_size;
    default: return is_blocks(w->kind) ? 32 : 0;
    }
}

/* Bytes of scratch that matmul() needs, a multiple of 64: room for the rows of weights that a level packs at once, and their
 * scales; or for what a few rows need. */
static inline int64_t pack_size(const matrix *w) {
    int64_t n = w->columns, bytes = is_blocks(w->kind) ? 64 * (n + 512) : 6 * (n + 16) * (int64_t)sizeof(float);
    if (w->kind == Q8_0) {
        int64_t size = w->group_size, n_groups = (n + size - 1) / size;
        int64_t packed = 32 * 4 * (n_groups + 16) + 32 * (n + 64) + 12 * n + 64;
        int64_t direct = DIRECT_ROWS * (4 * (17 * n_groups + 32) + n + 16 * size);
        bytes = packed > direct ? packed : direct;
    }
    return bytes / 64 * 64 + 64;
}

/* The tables compiled into this build, the best first, with NULL at the end; and whether this machine can run one. */
extern const kernel_table *const llama2c_levels[];
int llama2c_can_run(const kernel_table *level);

#endif
