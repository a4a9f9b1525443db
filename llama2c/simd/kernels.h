/* The inner loops of llama2c, as one table of functions per instruction set.
 *
 * Every function works on buffers its caller owns, touches nothing else, and gives the same bits at every level that has a
 * fused multiply-add (docs/kernels.md says how the order of every sum is fixed). All sizes count elements, all arrays are
 * row-major, all strides are in elements.
 */
#ifndef LLAMA2C_KERNELS_H
#define LLAMA2C_KERNELS_H

#include <stdint.h>

enum { QUERY_TILE = 8 }; /* the most queries that attention() takes at once */

/* How the numbers of a matrix are stored. The half-size ones become fp32 as they are loaded, which is exact. */
enum { FLOAT32, FLOAT16, BFLOAT16, Q8_0 };

/* A Q8_0 matrix of n columns: `values` row after row, one scale for each `group_size` consecutive values (fp32, at any byte). */
typedef struct {
    const int8_t *values;
    const char *scales;
    int64_t group_size;
} q8_matrix;

/* Q8_0 activations: n_rows rows of n values in groups that start afresh in each row; the last group of a row may be short. */
typedef struct {
    int8_t *values;   /* (n_rows, n) */
    float *scales;    /* (n_rows, n_groups) */
    int32_t *offsets; /* (n_rows, n_groups), -128 times the sum of the values of each group: see q8_avx512.h */
    int64_t n_groups;
} q8_rows;

typedef struct {
    const char *name;

    /* out = weight * x / sqrt(mean(x^2) + eps); all (n,) */
    void (*rmsnorm)(float *out, const float *x, const float *weight, int64_t n, float eps);

    /* The sum of x, (n,), in the order that reads memory fastest: for measuring, not for models. */
    float (*sum)(const float *x, int64_t n);

    /* Where the first of the largest of x stands, (n,) with n > 0; -1 if there is a NaN. */
    int64_t (*argmax)(const float *x, int64_t n);

    /* x = exp(x - max(x)) / sum, (n,) */
    void (*softmax)(float *x, int64_t n);

    /* out = exp((x - max(x)) / divisor), (n,); the division comes first, as in a sampler: x / divisor, then the maximum */
    void (*exp_logits)(float *out, const float *x, int64_t n, float divisor);

    /* gate = silu(gate) * up, both (n,) */
    void (*swiglu)(float *gate, const float *up, int64_t n);

    /* (out[2 i], out[2 i + 1]) = the pair (x[step i], x[step i + apart]) turned by the angle whose (cos, sin) is table[i], for
     * i < n_pairs. llama2.c has pairs side by side (step 2, apart 1), Hugging Face in the halves of a head (step 1, apart n_pairs). */
    void (*rotate)(float *out, const float *x, const float *table, int64_t n_pairs, int64_t step, int64_t apart);

    /* out = w, n numbers of `type` (not Q8_0) at any address, in fp32. */
    void (*widen)(float *out, const void *w, int type, int64_t n);

    /* out[r, o] (+)= x[r] . w[o] for r < n_rows, o < n_out; vectors of n; added to out if `add`. w is of `type` (not Q8_0), at any
     * address. `pack` is scratch of matmul_pack_size(n) bytes, aligned to 64; with FLOAT32 it may be NULL. */
    void (*matmul)(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows,
                   const void *w, int type, int64_t w_stride, int64_t n_out, int64_t n, int add, void *pack);

    /* One row of n activations to Q8_0 in groups of group_size. */
    void (*quantize)(int8_t *values, float *scales, int32_t *offsets, const float *x, int64_t n, int64_t group_size);

    /* out[r, o] (+)= x[r] . w[first + o]; `pack` is scratch of q8_pack_size(n, n_groups) bytes, aligned to 64. */
    void (*matmul_q8)(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows,
                      const q8_matrix *w, int64_t first, int64_t n_out, int64_t n, int add, void *pack);

    /* out[i] = softmax(queries[i] . keys[:lengths[i]] / sqrt(head_size)) . values for i < n_queries <= QUERY_TILE;
     * queries, out (n_queries, head_size); keys, values (max(lengths), head_size); lengths do not decrease.
     * scores is scratch, (n_queries, score_stride). */
    void (*attention)(float *out, const float *queries, int64_t n_queries, const int64_t *lengths,
                      const float *keys, const float *values, int64_t head_size,
                      float *scores, int64_t score_stride);
} kernel_table;

/* Bytes of scratch that matmul wants: the rows of weights of the largest tile. */
static inline int64_t matmul_pack_size(int64_t n) {
    return 6 * (n + 16) * (int64_t)sizeof(float);
}

/* Bytes of scratch that matmul_q8 needs: as many rows of weights, and of their scales, as a level packs at once. */
static inline int64_t q8_pack_size(int64_t n, int64_t n_groups) {
    return 16 * (2 * (n + 64) + 8 * (n_groups + 16));
}

/* The tables compiled into this build, best first, ended by NULL; and those this machine can run. */
extern const kernel_table *const llama2c_levels[];
int llama2c_can_run(const kernel_table *level);

#endif
