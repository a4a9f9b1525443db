# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The arithmetic of llama2c: kernels that work on the caller's buffers without the GIL, on several threads with `prange`.

In this order: the instruction-set level; the number of threads; small functions over a range of outputs or one (tile, head),
whose inner loops are in simd/; the step, which runs whole layers in one parallel region; the functions that Python calls, which
check every shape and type. Nothing here opens a file or knows a text. In a docstring, IN, OUT and SCRATCH say which arguments
are read, written, and overwritten.
"""

import os
import re
import warnings
from math import lcm
from operator import index

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport parallel, prange, threadid
from libc.math cimport INFINITY, log
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import numpy as np

cnp.import_array()


cdef extern from "simd/kernels.h" nogil:
    enum: QUERY_TILE, CACHE_BLOCK "KEY_BLOCK", FLOAT32, FLOAT16, BFLOAT16, Q8_0
    enum: GGUF_Q4_0, GGUF_Q4_1, GGUF_Q5_0, GGUF_Q5_1, GGUF_Q8_0, GGUF_IQ4_NL, GGUF_MXFP4
    enum: GGUF_Q2_K, GGUF_Q3_K, GGUF_Q4_K, GGUF_Q5_K, GGUF_Q6_K, GGUF_IQ4_XS

    ctypedef struct Matrix "matrix":
        int kind
        int64_t rows, columns
        const char *numbers
        const char *scales
        int64_t group_size

    ctypedef struct q8_rows:
        int8_t *values
        float *scales
        int32_t *offsets
        int64_t n_groups
        int16_t *sums
        float *scaled_sums

    ctypedef struct kernel_table:
        const char *name
        void (*rmsnorm)(float *out, const float *x, const float *weight, int64_t n, float eps) noexcept nogil
        float (*sum)(const float *x, int64_t n) noexcept nogil
        int64_t (*argmax)(const float *x, int64_t n) noexcept nogil
        void (*softmax)(float *x, int64_t n) noexcept nogil
        void (*exp_logits)(float *out, const float *x, int64_t n, float divisor) noexcept nogil
        void (*swiglu)(float *gate, const float *up, int64_t n) noexcept nogil
        void (*rotate)(float *out, const float *x, const float *table, int64_t n_pairs,
                       int64_t step, int64_t apart) noexcept nogil
        void (*widen)(float *out, const Matrix *w, int64_t row) noexcept nogil
        void (*quantize)(const q8_rows *to, const float *x, int64_t n, int64_t group_size) noexcept nogil
        void (*matmul)(float *out, int64_t out_stride, const float *x, const q8_rows *xq, int64_t n_rows,
                       const Matrix *w, int64_t first, int64_t n_out, int add, void *pack) noexcept nogil
        void (*store)(void *out, int type, int64_t step, const float *x, int64_t n) noexcept nogil
        void (*attention)(float *out, const float *queries, int64_t n_queries, const int64_t *lengths,
                          const void *keys, const void *values, int type, int64_t head_size,
                          float *scores, int64_t score_stride) noexcept nogil

    bint is_blocks(int kind)
    int64_t block_values(int kind)
    int64_t row_bytes(int kind, int64_t n)
    int64_t input_group(const Matrix *w)
    int64_t pack_size(const Matrix *w)
    const kernel_table *llama2c_levels[]
    int llama2c_can_run(const kernel_table *level)

cdef extern from "team.h" nogil:
    const int LLAMA2C_OPENMP
    const char *LLAMA2C_COMPILER
    void *aligned_alloc "llama2c_alloc" (size_t size)
    void aligned_free "llama2c_free" (void *memory)

    # Some versions of Cython give a prange `nowait` and others do not: every wait between two phases is a call of meet().
    ctypedef struct llama2c_barrier:
        int waiting, generation, asleep
    void meet "llama2c_meet" (llama2c_barrier *barrier)

    ctypedef struct llama2c_team:
        int size, most

    int llama2c_threaded, llama2c_forked, llama2c_forks
    llama2c_team *llama2c_this_team()
    int llama2c_watch_forks()
    int llama2c_try_threads(int n, size_t stack)
    int llama2c_bound_cores()


# ---------------------------------------------------------------------------------------------- the level, chosen at import

cdef const kernel_table *level = NULL


cdef choose_level():
    """Set `level`: the best that this machine can run, or the one that LLAMA2C_ISA names. -> the names of all it can run."""
    global level
    wanted = os.environ.get("LLAMA2C_ISA", "")
    names = []
    cdef int i = 0
    while llama2c_levels[i] != NULL:
        name = llama2c_levels[i].name.decode()
        if llama2c_can_run(llama2c_levels[i]):
            names.append(name)
            if level == NULL and wanted in ("", name):
                level = llama2c_levels[i]
        i += 1
    if level == NULL:
        raise ImportError(f"LLAMA2C_ISA: expected one of {', '.join(names)} on this machine, found {wanted!r}")
    return tuple(names)


levels = choose_level()
isa = level.name.decode()
openmp = bool(LLAMA2C_OPENMP)
compiler = LLAMA2C_COMPILER.decode()


# ---------------------------------------------------------------------------------------------- how many threads there can be

LEAST_STACK = 64 << 10  # bytes: the largest frames of a step take 30 KB; the runtime and thread-local variables need some more


def stack_size(environment):
    """The bytes of stack that the OpenMP runtime gives each thread it starts; 0: the system's default.

    The variables are read as libgomp reads them: "512" and "512k" are kilobytes; what is not a size is ignored.
    """
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        number = re.fullmatch(r"\s*\+?(\d+)\s*([bkmg]?)\s*", environment.get(name, ""), re.ASCII | re.IGNORECASE)
        if number:
            return min(int(number[1]) << {"b": 0, "k": 10, "": 10, "m": 20, "g": 30}[number[2].lower()], 1 << 62)
    return 0


cdef size_t thread_stack = stack_size(os.environ)  # the runtime, too, reads them once
cdef bint told_of_fork = False
if llama2c_watch_forks():
    raise MemoryError("not enough memory to register the handlers of fork()")


def bound_cores():
    """How many cores the OpenMP runtime binds its threads to; 0: it does not bind them, and this thread's affinity counts."""
    return llama2c_bound_cores()


cdef inline int usable_threads(int n_threads) except -1:
    """How many threads a parallel region can have that asks for `n_threads`. Called before each region."""
    cdef llama2c_team *team = llama2c_this_team()
    if n_threads == team.size or n_threads == 1 and team.size:
        return n_threads
    return new_team(n_threads, team)


cdef int new_team(int n_threads, llama2c_team *team) except -1:
    """Before a first region, or one with more threads: try what the runtime will need. -> the threads it gets. IN OUT team."""
    global told_of_fork
    global llama2c_threaded
    if llama2c_forked and n_threads > 1:
        if not told_of_fork:
            told_of_fork = True
            warnings.warn("This process was forked after llama2c had run on several threads, so llama2c runs on one thread "
                          "here. With multiprocessing's start methods 'spawn' and 'forkserver' it runs on all of them.",
                          RuntimeWarning, stacklevel=4)
        n_threads = 1
    if team.most and n_threads > team.most:
        n_threads = team.most
    if n_threads == team.size or n_threads == 1 and team.size:
        return n_threads
    if n_threads > max(team.size, 1):
        n_threads = startable_threads(n_threads, team)
    check_room_of_runtime(n_threads)
    if n_threads > 1 or not team.size:
        team.size = n_threads
    if n_threads > 1:
        llama2c_threaded = 1
    return n_threads


cdef int startable_threads(int n_threads, llama2c_team *team) except -1:
    """How many of n_threads threads can be there at once, this one included; if fewer, a warning says so. OUT team.most."""
    cdef int started = 0
    if 0 < thread_stack < <size_t>LEAST_STACK:
        message = (f"n_threads={n_threads}: OMP_STACKSIZE gives a thread {thread_stack} bytes of stack, and llama2c needs "
                   f"{LEAST_STACK}, so it runs on one thread")
    else:
        with nogil:
            started = llama2c_try_threads(n_threads - 1, thread_stack)
        if started < 0:
            raise MemoryError(f"not enough memory to start {n_threads} threads")
        message = f"n_threads={n_threads}: the system lets llama2c start {started} of {n_threads - 1} more threads"
    if started < n_threads - 1:
        n_threads = team.most = started + 1
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return n_threads


cdef int check_room_of_runtime(int n_threads) except -1:
    """MemoryError if there is too little memory for a team of n_threads: the runtime would then end the process."""
    cdef size_t room = 65536 + 4096 * <size_t>n_threads  # more than it asks for
    cdef void *memory = malloc(room)
    free(memory)
    if memory == NULL:
        raise MemoryError(f"not enough memory: the OpenMP runtime may need {room} bytes")
    return 0


# ---------------------------------------------------------------------------------------------- weights and ranges

cdef enum:
    UNIT = 16  # outputs are dealt to threads in runs of whole units, so that no tile is cut
    MOST_SIZES = 3  # of groups that one input is quantised in: each of wq, wk and wv may have its own


cdef struct Input:
    # What some matrices multiply. Each step quantises it once in each size of groups that one of them reads.
    int n_sizes  # 0: all of them read it in fp32
    int64_t sizes[MOST_SIZES]


cdef struct Layer:
    const float *rms_att_weight  # (dim,)
    const float *rms_ffn_weight  # (dim,)
    Matrix wq, wk, wv, wo, w1, w2, w3
    Input att_input              # of wq, wk and wv: x, normed
    Input wo_input               # of wo: the result of attention
    Input ffn_input              # of w1 and w3: x, normed
    Input w2_input               # of w2: the gate


cdef inline int64_t share_start(int64_t n, int part, int parts, int64_t unit=UNIT) noexcept nogil:
    """-> where part `part` of `parts` begins when n outputs are dealt out in whole units."""
    cdef int64_t units = (n + unit - 1) // unit, start = units * part // parts * unit
    return start if start < n else n


cdef inline void multiply(float *out, int64_t out_stride, const float *x, const q8_rows *xq, int64_t n_rows, const Matrix *w,
                          int part, int parts, bint add, void *pack, int64_t unit=UNIT) noexcept nogil:
    """out[r, o] (+)= x[r] . w[o] for this part's outputs. OUT out (n_rows, rows of w); IN x (n_rows, columns of w) in fp32, or
    xq, the same as w reads it; SCRATCH pack."""
    cdef int64_t start = share_start(w.rows, part, parts, unit), stop = share_start(w.rows, part + 1, parts, unit)
    if start < stop:
        level.matmul(out + start, out_stride, x, xq, n_rows, w, start, stop - start, add, pack)


# ---------------------------------------------------------------------------------------------- one step

cdef struct Q8Buffers:
    int8_t *values               # (n_slots, widest)
    float *scales                # (n_slots, widest_groups)
    int32_t *offsets             # (n_slots, widest_groups)
    int16_t *sums                # (n_slots, widest / 16); used in groups of 32
    float *scaled_sums           # (n_slots, widest_groups); used in groups of 32


cdef struct Forward:
    # the model
    int64_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_size, q_dim, kv_dim, vocab_size
    int64_t layer_weights        # numbers in the matrices of a layer
    int64_t pair_step, pair_apart  # which elements of a head RoPE turns together: see rotate() in kernels.h
    int64_t key_unit             # threads share keys in units of so many, so that no pair is cut
    float norm_eps
    const Layer *layers
    const float *rms_final_weight
    Matrix embedding, wcls
    Input wcls_input             # of wcls: x, normed
    # the scratch that its matrices need
    int n_sizes                  # the most sizes of groups that one input is quantised in
    int64_t widest, widest_groups  # the longest input that is quantised, and the most groups of one
    int64_t pack_size
    # the rows: one token of one sequence each
    int64_t n_rows
    int32_t *tokens              # (n_rows,)
    int32_t *positions           # (n_rows,)
    char **keys                  # (n_rows,) each (n_layers, n_kv_heads, capacity / CACHE_BLOCK, head_size, CACHE_BLOCK)
    char **values                # (n_rows,) each (n_layers, n_kv_heads, capacity, head_size)
    int *kv_types                # (n_rows,) FLOAT32 or FLOAT16
    int64_t *capacities
    const float *rope            # (positions, head_size / 2, 2): cos and sin
    # attention is dealt out in tiles of queries (row, head of a group), a tile per key head at a time
    int64_t n_tiles
    int64_t *tile_starts         # (n_tiles,) the number of the first query: row * heads per group + head
    int64_t *tile_sizes
    # the results
    int64_t n_logits
    int64_t *logit_rows          # (n_logits,)
    float *logits                # (n_logits, vocab_size)
    float *trace                 # (n_rows, n_layers, 4) or NULL
    # scratch. Where a step has one row, each thread prepares the input of a product for itself, in the slot of its number:
    # that costs less than waiting for another thread. With more rows they share the work and slot r belongs to row r.
    float *x                     # (n_rows, dim) the residual stream
    float *xb                    # (n_slots, dim) normed
    float *q                     # (n_rows, q_dim)
    float *kv                    # (n_rows, 2, kv_dim)
    float *att                   # (n_rows, q_dim)
    float *gate                  # (n_rows, hidden_dim)
    float *up                    # (n_rows, hidden_dim)
    Q8Buffers q8[MOST_SIZES]     # an input in Q8_0, in each of its sizes of groups
    float *heads                 # (n_threads, 2, QUERY_TILE, head_size) queries in, outputs back
    float *scores                # (n_threads, QUERY_TILE, score_stride)
    int64_t score_stride
    char *packs                  # (n_threads, pack_size)


cdef q8_rows quantized(const Forward *f, int which, int64_t size, int64_t slot, int64_t n) noexcept nogil:
    """-> the buffers of rows of n values from `slot` on, in groups of `size`, the input's size number `which`."""
    cdef q8_rows rows
    rows.n_groups = (n + size - 1) // size
    rows.values = f.q8[which].values + slot * n
    rows.scales = f.q8[which].scales + slot * rows.n_groups
    rows.offsets = f.q8[which].offsets + slot * rows.n_groups
    rows.sums = f.q8[which].sums + slot * (n // 16) if size == 32 and n % 32 == 0 else NULL
    rows.scaled_sums = f.q8[which].scaled_sums + slot * rows.n_groups
    return rows


cdef inline void quantize_row(const Forward *f, const Input *input, const float *x, int64_t slot, int64_t n) noexcept nogil:
    """One row of an input in Q8_0, once in each size of groups that is read. IN x (n,); OUT the row of `slot` in f.q8."""
    cdef q8_rows rows
    cdef int i
    for i in range(input.n_sizes):
        rows = quantized(f, i, input.sizes[i], slot, n)
        level.quantize(&rows, x, n, input.sizes[i])


cdef inline void product(const Forward *f, float *out, int64_t out_stride, const float *x, const Input *input, int64_t slot,
                         int64_t n_rows, const Matrix *w, int part, int parts, bint add, void *pack,
                         int64_t unit=UNIT) noexcept nogil:
    """As multiply(), with the input from its slot on. IN x (n_rows, columns of w) in fp32, f.q8; OUT out; SCRATCH pack."""
    cdef q8_rows xq
    cdef int i
    cdef int64_t size = input_group(w)
    if size == 0:
        multiply(out, out_stride, x, NULL, n_rows, w, part, parts, add, pack, unit)
    for i in range(input.n_sizes):
        if input.sizes[i] == size:
            xq = quantized(f, i, size, slot, w.columns)
            multiply(out, out_stride, NULL, &xq, n_rows, w, part, parts, add, pack, unit)


cdef inline void norm_row(const Forward *f, const float *x, const float *weight, const Input *input,
                          int64_t slot) noexcept nogil:
    """RMSNorm of one row, as an input. IN x, weight (dim,); OUT the row of `slot` in f.xb and f.q8."""
    level.rmsnorm(f.xb + slot * f.dim, x, weight, f.dim, f.norm_eps)
    quantize_row(f, input, f.xb + slot * f.dim, slot, f.dim)


cdef void store_part(const Forward *f, int64_t layer, int64_t row, int64_t start, int64_t size, float *turned) noexcept nogil:
    """Put keys and values of a row into its cache: `size` numbers from `start` on, all of one head. IN f.kv; SCRATCH turned.

    The keys are turned on their way, the queries when they are used."""
    cdef const float *k = f.kv + row * 2 * f.kv_dim + start
    cdef int64_t head = start // f.head_size, at = start % f.head_size, position = f.positions[row]
    cdef int64_t base = (layer * f.n_kv_heads + head) * f.capacities[row] * f.head_size
    cdef int64_t key = base + (position // CACHE_BLOCK * f.head_size + at) * CACHE_BLOCK + position % CACHE_BLOCK
    cdef int64_t value = base + position * f.head_size + at
    cdef int type = f.kv_types[row]
    cdef int64_t width = 4 if type == FLOAT32 else 2
    level.rotate(turned, k, f.rope + position * f.head_size + at, size // 2, f.pair_step, f.pair_apart)
    level.store(f.keys[row] + key * width, type, CACHE_BLOCK, turned, size)
    level.store(f.values[row] + value * width, type, 1, k + f.kv_dim, size)


cdef void project(const Forward *f, int64_t layer, int part, int parts, int64_t slot, void *pack) noexcept nogil:
    """This part's queries, keys and values. IN f.xb, f.q8; OUT f.q, f.kv and the caches; SCRATCH pack."""
    cdef const Layer *w = &f.layers[layer]
    cdef const float *x = f.xb + slot * f.dim
    cdef int64_t row, start, stop, size
    product(f, f.q, f.q_dim, x, &w.att_input, slot, f.n_rows, &w.wq, part, parts, False, pack)
    product(f, f.kv, 2 * f.kv_dim, x, &w.att_input, slot, f.n_rows, &w.wk, part, parts, False, pack, f.key_unit)
    product(f, f.kv + f.kv_dim, 2 * f.kv_dim, x, &w.att_input, slot, f.n_rows, &w.wv, part, parts, False, pack, f.key_unit)
    for row in range(f.n_rows):
        start = share_start(f.kv_dim, part, parts, f.key_unit)
        stop = share_start(f.kv_dim, part + 1, parts, f.key_unit)
        while start < stop:  # head by head, as far as they are ours
            size = min(f.head_size - start % f.head_size, stop - start)
            store_part(f, layer, row, start, size, <float *>pack)
            start += size


cdef void attend(const Forward *f, int64_t layer, int64_t task, int thread) noexcept nogil:
    """att[row, head] of one tile of queries that share a sequence and a key head.

    IN f.q, the caches; OUT f.att; SCRATCH f.heads, f.scores of this thread."""
    cdef int64_t group = f.n_heads // f.n_kv_heads, kv_head = task % f.n_kv_heads, tile = task // f.n_kv_heads
    cdef int64_t start = f.tile_starts[tile], size = f.tile_sizes[tile], hs = f.head_size, row = start // group
    cdef int64_t lengths[QUERY_TILE]
    cdef int64_t i, base = (layer * f.n_kv_heads + kv_head) * f.capacities[row] * hs
    cdef int type = f.kv_types[row]
    cdef int64_t places[QUERY_TILE]
    cdef float *queries = f.heads + thread * 2 * QUERY_TILE * hs
    cdef float *out = queries + QUERY_TILE * hs
    for i in range(size):
        row = (start + i) // group
        lengths[i] = f.positions[row] + 1
        places[i] = row * f.q_dim + (kv_head * group + (start + i) % group) * hs
        level.rotate(queries + i * hs, f.q + places[i], f.rope + f.positions[row] * hs, hs // 2, f.pair_step, f.pair_apart)
    row = start // group
    base *= 4 if type == FLOAT32 else 2  # bytes
    level.attention(out, queries, size, lengths, f.keys[row] + base, f.values[row] + base, type, hs,
                    f.scores + thread * QUERY_TILE * f.score_stride, f.score_stride)
    for i in range(size):
        memcpy(f.att + places[i], out + i * hs, hs * sizeof(float))


cdef void feed_forward(const Forward *f, int64_t layer, int part, int parts, int64_t slot, void *pack) noexcept nogil:
    """gate = silu(w1 x) * (w3 x), this part's. IN f.xb, f.q8; OUT f.gate, f.up; SCRATCH pack."""
    cdef const Layer *w = &f.layers[layer]
    cdef const float *x = f.xb + slot * f.dim
    cdef int64_t row, start = share_start(f.hidden_dim, part, parts), stop = share_start(f.hidden_dim, part + 1, parts)
    product(f, f.gate, f.hidden_dim, x, &w.ffn_input, slot, f.n_rows, &w.w1, part, parts, False, pack)
    product(f, f.up, f.hidden_dim, x, &w.ffn_input, slot, f.n_rows, &w.w3, part, parts, False, pack)
    for row in range(f.n_rows):
        if start < stop:
            level.swiglu(f.gate + row * f.hidden_dim + start, f.up + row * f.hidden_dim + start, stop - start)


cdef void classify(const Forward *f, int part, int parts, void *pack) noexcept nogil:
    """logits = wcls x of the rows that ask, this part's. IN f.xb, f.q8; OUT f.logits; SCRATCH pack."""
    product(f, f.logits, f.vocab_size, f.xb, &f.wcls_input, 0, f.n_logits, &f.wcls, part, parts, False, pack)


cdef void trace_row(const Forward *f, int64_t layer, int64_t row, int which) noexcept nogil:
    """trace[row, layer, 2 which: 2 which + 2] = Euclidean norm and mean of the residual stream. IN f.x; OUT f.trace."""
    cdef double squares = 0, total = 0
    cdef int64_t i
    for i in range(f.dim):
        squares += <double>f.x[row * f.dim + i] * f.x[row * f.dim + i]
        total += f.x[row * f.dim + i]
    f.trace[(row * f.n_layers + layer) * 4 + 2 * which] = <float>(squares ** 0.5)
    f.trace[(row * f.n_layers + layer) * 4 + 2 * which + 1] = <float>(total / f.dim)


cdef void run_layers(const Forward *f, int64_t first, int64_t stop, int n_threads) noexcept nogil:
    """Some layers, and after the last one the logits, in one parallel region. IN OUT everything that f points to.

    There is a barrier wherever a phase reads what another thread wrote: five in a layer where the step has one row."""
    cdef int64_t i = 0, layer = 0, slot = 0, tasks = f.n_tiles * f.n_kv_heads
    cdef int part = 0, thread = 0
    cdef bint alone = f.n_rows == 1
    cdef char *pack = NULL
    cdef const Layer *w = NULL
    cdef llama2c_barrier barrier
    memset(&barrier, 0, sizeof(barrier))
    with parallel(num_threads=n_threads):
        thread = threadid()
        slot = thread if alone else 0
        pack = f.packs + thread * f.pack_size
        # x = the rows of the embedding table
        if first == 0:
            for i in prange(f.n_rows, schedule="static"):
                level.widen(f.x + i * f.dim, &f.embedding, f.tokens[i])
            meet(&barrier)
        for layer in range(first, stop):
            w = &f.layers[layer]
            # xb = x, normed for attention
            if alone:
                norm_row(f, f.x, w.rms_att_weight, &w.att_input, slot)
            else:
                for i in prange(f.n_rows, schedule="static"):
                    norm_row(f, f.x + i * f.dim, w.rms_att_weight, &w.att_input, i)
                meet(&barrier)
            # q, k, v = wq xb, wk xb, wv xb; k and v go into the caches
            for part in prange(n_threads, schedule="static"):
                project(f, layer, part, n_threads, slot, pack)
            meet(&barrier)
            # att = attention of q over the caches
            for i in prange(tasks, schedule="static", chunksize=1):
                attend(f, layer, i, thread)
            meet(&barrier)
            # x += wo att, where wo may read att in Q8_0
            if alone:
                quantize_row(f, &w.wo_input, f.att, slot, f.q_dim)
            elif w.wo_input.n_sizes:
                for i in prange(f.n_rows, schedule="static"):
                    quantize_row(f, &w.wo_input, f.att + i * f.q_dim, i, f.q_dim)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                product(f, f.x, f.dim, f.att, &w.wo_input, slot, f.n_rows, &w.wo, part, n_threads, True, pack)
            meet(&barrier)
            if f.trace != NULL:
                for i in prange(f.n_rows, schedule="static"):
                    trace_row(f, layer, i, 0)
            # xb = x, normed for the feed-forward
            if alone:
                norm_row(f, f.x, w.rms_ffn_weight, &w.ffn_input, slot)
            else:
                for i in prange(f.n_rows, schedule="static"):
                    norm_row(f, f.x + i * f.dim, w.rms_ffn_weight, &w.ffn_input, i)
                meet(&barrier)
            # gate = silu(w1 xb) * (w3 xb)
            for part in prange(n_threads, schedule="static"):
                feed_forward(f, layer, part, n_threads, slot, pack)
            meet(&barrier)
            # x += w2 gate, where w2 may read the gate in Q8_0
            if alone:
                quantize_row(f, &w.w2_input, f.gate, slot, f.hidden_dim)
            elif w.w2_input.n_sizes:
                for i in prange(f.n_rows, schedule="static"):
                    quantize_row(f, &w.w2_input, f.gate + i * f.hidden_dim, i, f.hidden_dim)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                product(f, f.x, f.dim, f.gate, &w.w2_input, slot, f.n_rows, &w.w2, part, n_threads, True, pack)
            meet(&barrier)
            if f.trace != NULL:
                for i in prange(f.n_rows, schedule="static"):
                    trace_row(f, layer, i, 1)
        # logits = wcls (x, normed), of the rows that ask
        if stop == f.n_layers and f.n_logits:
            for i in prange(f.n_logits, schedule="static"):
                norm_row(f, f.x + f.logit_rows[i] * f.dim, f.rms_final_weight, &f.wcls_input, i)
            meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                classify(f, part, n_threads, pack)
        meet(&barrier)  # or the end of the region would wait in libgomp's way


# ---------------------------------------------------------------------------------------------- how much work at once

cdef int64_t max_work = 1 << 31
MAX_WORK = max_work  # multiply-adds of one thread, about a tenth of a second: after so many, a step looks for signals


def count_layer_weights(config):
    """How many numbers the matrices of one layer have."""
    q_dim, kv_dim = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    return config.dim * (2 * q_dim + 2 * kv_dim + 3 * config.hidden_dim)


cdef int64_t layers_at_once(const Forward *f, int64_t n_positions, int n_threads) noexcept nogil:
    """-> how many layers a step takes before it looks for signals. IN f with its rows filled in."""
    # Reading a weight from memory costs about what using it 16 times does.
    cdef int64_t work = f.layer_weights * (f.n_rows + 16) + 2 * f.n_rows * n_positions * f.q_dim
    return max(1, max_work * n_threads // work)


# ---------------------------------------------------------------------------------------------- what Python sees: the step

cdef object checked(object array, str name, object dtype, tuple shape):
    """-> the array itself if it is an ndarray of this type and shape in C order; else TypeError or ValueError."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, found {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected {np.dtype(dtype).name}, found {array.dtype.name}")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected an array in C order, found strides {array.strides}")
    return array


cdef object writable(object array, str name, object dtype, tuple shape):
    """-> the array itself if checked() takes it and it can be written to."""
    checked(array, name, dtype, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, found a read-only one")
    if not array.flags.aligned:  # weights may begin at any byte, as in files; what we write must be aligned
        raise ValueError(f"{name}: expected an aligned {np.dtype(dtype).name} array, found one at {array.ctypes.data:#x}")
    return array


cdef int64_t checked_int(object value, str name, int64_t low, int64_t high) except? -1:
    """-> an integer from low to high. Cython by itself would turn 1.5 into 1."""
    number = index(value)
    if number < low or number > high:
        raise ValueError(f"{name}: expected {low} to {high}, found {number}")
    return number


cdef int checked_threads(object n_threads) except -1:
    """-> a number of threads."""
    return checked_int(n_threads, "n_threads", 1, 4096)


cdef int64_t checked_group_size(object size) except -1:
    """-> a group size. The sum of 65536 products of two int8 fits an int32."""
    return checked_int(size, "group_size", 1, 65536)


cdef bint checked_halves(object rope_pairs) except -1:
    """-> whether RoPE turns the elements i and i + head_size / 2 of a head together, instead of neighbours."""
    if rope_pairs not in ("adjacent", "halves"):
        raise ValueError(f"rope_pairs: expected 'adjacent' or 'halves', found {rope_pairs!r}")
    return rope_pairs == "halves"


KINDS = {
    "float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16, "q8_0": Q8_0,
    "gguf_q4_0": GGUF_Q4_0, "gguf_q4_1": GGUF_Q4_1, "gguf_q5_0": GGUF_Q5_0, "gguf_q5_1": GGUF_Q5_1, "gguf_q8_0": GGUF_Q8_0,
    "gguf_iq4_nl": GGUF_IQ4_NL, "gguf_mxfp4": GGUF_MXFP4, "gguf_q2_k": GGUF_Q2_K, "gguf_q3_k": GGUF_Q3_K,
    "gguf_q4_k": GGUF_Q4_K, "gguf_q5_k": GGUF_Q5_K, "gguf_q6_k": GGUF_Q6_K, "gguf_iq4_xs": GGUF_IQ4_XS,
}  # fmt: skip


cdef Matrix as_matrix(object weights, str name, tuple shape) except *:
    """-> the kernels' view of one (rows, columns) matrix. This is the only place that reads a kind.

    IN weights, a float32 or float16 array, or an object whose `kind` is "bfloat16" (with bits), "q8_0" (with values, scales
    and group_size) or one of GGUF's (with blocks)."""
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.rows, m.columns = shape
    kind = weights.dtype.name if isinstance(weights, np.ndarray) else getattr(weights, "kind", None)
    if kind not in KINDS:
        found = type(weights).__name__ if kind is None else kind
        raise TypeError(f"{name}: expected a matrix of a kind that the kernels know, found {found}")
    m.kind = KINDS[kind]
    if m.kind == Q8_0:
        m.group_size = checked_group_size(weights.group_size)
        if m.rows * m.columns % m.group_size:
            raise ValueError(f"{name}: expected group_size to divide {shape[0]} x {shape[1]}, found {m.group_size}")
        numbers = checked(weights.values, f"{name}.values", np.int8, shape)
        scales = checked(weights.scales, f"{name}.scales", np.float32, (m.rows * m.columns // m.group_size,))
        m.scales = <const char *>cnp.PyArray_DATA(scales)
    elif is_blocks(m.kind):
        if m.columns % block_values(m.kind):
            raise ValueError(f"{name}: expected rows of whole blocks of {block_values(m.kind)}, found {m.columns} numbers")
        numbers = checked(weights.blocks, f"{name}.blocks", np.uint8, (m.rows, row_bytes(m.kind, m.columns)))
    elif m.kind == BFLOAT16:
        numbers = checked(weights.bits, f"{name}.bits", np.uint16, shape)
    else:
        numbers = checked(weights, name, kind, shape)
    m.numbers = <const char *>cnp.PyArray_DATA(numbers)
    return m


KEY_BLOCK = CACHE_BLOCK  # positions of a cache whose keys are stored side by side


cdef class KVBuffer:
    """The keys and values of one sequence, both float32 or both float16.

    keys are (n_layers, n_kv_heads, capacity / 16, head_size, 16): those of 16 positions side by side. values are (n_layers,
    n_kv_heads, capacity, head_size). length: how many positions are filled. The kernels do not use it.
    """

    cdef readonly object keys, values
    cdef readonly int64_t capacity
    cdef public int64_t length
    cdef int taken  # 0: free. Else 1 and the number of forks there had been before this process when a Claim took it
    cdef int type  # FLOAT32 or FLOAT16
    cdef char *key_data
    cdef char *value_data

    def __init__(self, keys, values):
        self.hold(keys, values)

    def hold(self, keys, values):
        """Take these arrays, in place of those it has."""
        kind = np.float16 if getattr(values, "dtype", None) == np.float16 else np.float32
        if not isinstance(values, np.ndarray) or values.ndim != 4:
            raise ValueError("values: expected an array (n_layers, n_kv_heads, capacity, head_size)")
        n_layers, n_kv_heads, capacity, head_size = values.shape
        if capacity % CACHE_BLOCK:
            raise ValueError(f"values: expected a capacity that is a multiple of {CACHE_BLOCK}, found {capacity}")
        writable(values, "values", kind, values.shape)
        writable(keys, "keys", kind, (n_layers, n_kv_heads, capacity // CACHE_BLOCK, head_size, CACHE_BLOCK))
        self.keys, self.values, self.capacity = keys, values, capacity
        self.type = FLOAT16 if kind is np.float16 else FLOAT32
        self.key_data = <char *>cnp.PyArray_DATA(keys)
        self.value_data = <char *>cnp.PyArray_DATA(values)


cdef class Claim:
    """The KVBuffers that one call uses, so that no other call can use them at the same time. A signal handler runs before or
    after a method, never in the middle of it. In a forked process, the buffers that the parent had taken are free."""

    cdef list buffers
    cdef int mark

    def take(self, list buffers not None):
        """Take these KVBuffers, all or none; ValueError if one is taken already, or named twice."""
        cdef KVBuffer buffer
        cdef int mark = llama2c_forks + 1
        if self.buffers is not None:
            raise ValueError("claim: it already holds buffers: release them first")
        self.buffers, self.mark = [], mark
        try:
            for buffer in buffers:
                if buffer is None:
                    raise TypeError("cache: expected a KVBuffer, found None")
                if buffer.taken == mark:
                    raise ValueError("cache: another step is using it")
                buffer.taken = mark
                self.buffers.append(buffer)
        except BaseException:
            self.release()
            raise

    def advance(self, list counts not None):
        """Add one count to the length of each buffer, in the order in which they were taken."""
        cdef KVBuffer buffer
        cdef int64_t count
        if self.buffers is None or len(counts) != len(self.buffers):
            raise ValueError(f"counts: expected one for each buffer that was taken, found {len(counts)}")
        for count in counts:
            pass  # a TypeError comes before any length is changed
        for buffer, count in zip(self.buffers, counts):
            buffer.length += count

    def release(self):
        """Give the buffers back. Does nothing if none are taken."""
        cdef KVBuffer buffer
        if self.buffers is not None:
            for buffer in self.buffers:
                if buffer.taken == self.mark:
                    buffer.taken = 0
            self.buffers = None


cdef struct Arena:
    # A block of memory that is given out from its start on.
    char *memory  # NULL: take() only counts
    int64_t used  # bytes


cdef inline char *take(Arena *arena, int64_t size) noexcept nogil:
    """-> the next `size` bytes, from a cache line on; NULL where the arena only counts. IN OUT arena."""
    cdef char *place = arena.memory + arena.used if arena.memory != NULL else NULL
    arena.used += (size + 63) // 64 * 64
    return place


cdef void lay_out(Forward *f, Arena *arena, int64_t rows, int64_t n_threads) noexcept nogil:
    """Take every buffer of a step with up to so many rows and threads. IN OUT f, arena."""
    cdef int64_t slots = max(rows, n_threads), group = f.n_heads // f.n_kv_heads
    cdef int i
    f.tokens = <int32_t *>take(arena, rows * sizeof(int32_t))
    f.positions = <int32_t *>take(arena, rows * sizeof(int32_t))
    f.keys = <char **>take(arena, rows * sizeof(char *))
    f.values = <char **>take(arena, rows * sizeof(char *))
    f.kv_types = <int *>take(arena, rows * sizeof(int))
    f.capacities = <int64_t *>take(arena, rows * sizeof(int64_t))
    f.tile_starts = <int64_t *>take(arena, rows * group * sizeof(int64_t))
    f.tile_sizes = <int64_t *>take(arena, rows * group * sizeof(int64_t))
    f.logit_rows = <int64_t *>take(arena, rows * sizeof(int64_t))
    f.x = <float *>take(arena, rows * f.dim * sizeof(float))
    f.xb = <float *>take(arena, slots * f.dim * sizeof(float))
    f.q = <float *>take(arena, rows * f.q_dim * sizeof(float))
    f.kv = <float *>take(arena, rows * 2 * f.kv_dim * sizeof(float))
    f.att = <float *>take(arena, rows * f.q_dim * sizeof(float))
    f.gate = <float *>take(arena, rows * f.hidden_dim * sizeof(float))
    f.up = <float *>take(arena, rows * f.hidden_dim * sizeof(float))
    for i in range(f.n_sizes):
        f.q8[i].values = <int8_t *>take(arena, slots * f.widest)
        f.q8[i].scales = <float *>take(arena, slots * f.widest_groups * sizeof(float))
        f.q8[i].offsets = <int32_t *>take(arena, slots * f.widest_groups * sizeof(int32_t))
        f.q8[i].sums = <int16_t *>take(arena, slots * (f.widest // 16) * sizeof(int16_t))
        f.q8[i].scaled_sums = <float *>take(arena, slots * f.widest_groups * sizeof(float))
    f.heads = <float *>take(arena, n_threads * 2 * QUERY_TILE * f.head_size * sizeof(float))
    f.packs = take(arena, n_threads * f.pack_size)


cdef class Scratch:
    """The buffers of one step; they grow to the largest step that used them. One step at a time."""

    cdef Forward forward
    cdef int64_t rows, n_threads, positions
    cdef void *block
    cdef void *scores

    def __dealloc__(self):
        aligned_free(self.block)
        aligned_free(self.scores)

    cdef int reserve(self, const Forward *model, int64_t rows, int64_t n_threads, int64_t positions) except -1:
        """Make room for `rows` rows, `n_threads` threads and attention over `positions` positions."""
        if rows > self.rows or n_threads > self.n_threads:
            self.allocate(model, max(rows, self.rows), max(n_threads, self.n_threads))
            self.positions = 0
        if positions > self.positions:
            positions = max(positions, 2 * self.positions, 64)
            positions = (positions + 15) // 16 * 16
            aligned_free(self.scores)
            self.positions = 0
            self.scores = aligned_alloc(self.n_threads * QUERY_TILE * positions * sizeof(float))
            if self.scores == NULL:
                raise MemoryError(f"not enough memory for the attention scores of {positions} positions")
            self.positions = positions
        self.forward.scores = <float *>self.scores
        self.forward.score_stride = self.positions
        return 0

    cdef int allocate(self, const Forward *model, int64_t rows, int64_t n_threads) except -1:
        """A new block with a place for each buffer: lay_out() first counts the bytes, then gives out the places."""
        cdef Arena arena
        memset(&arena, 0, sizeof(arena))
        memcpy(&self.forward, model, sizeof(Forward))
        lay_out(&self.forward, &arena, rows, n_threads)
        aligned_free(self.block)
        self.rows = self.n_threads = 0
        self.block = aligned_alloc(arena.used)
        if self.block == NULL:
            raise MemoryError(f"not enough memory for the {arena.used} bytes of scratch of a step with {rows} rows")
        arena.memory, arena.used = <char *>self.block, 0
        lay_out(&self.forward, &arena, rows, n_threads)
        self.rows, self.n_threads = rows, n_threads
        return 0


cdef void note_reader(Forward *f, Input *input, const Matrix *w) noexcept nogil:
    """`w` multiplies this input: note the groups that it reads and the scratch that it needs. IN w; IN OUT f, input."""
    cdef int64_t size = input_group(w)
    cdef int i
    f.pack_size = max(f.pack_size, pack_size(w))
    if size == 0:
        return
    f.widest = max(f.widest, w.columns)
    f.widest_groups = max(f.widest_groups, (w.columns + size - 1) // size)
    for i in range(input.n_sizes):
        if input.sizes[i] == size:
            return
    input.sizes[input.n_sizes] = size
    input.n_sizes += 1
    f.n_sizes = max(f.n_sizes, input.n_sizes)


cdef class Model:
    """Weights as the kernels see them: addresses, checked once against the shape of the model. Read-only, for any thread.

    config: the fields of llama2c.Config. weights: by name, with the shapes of docs/format.md and in C order. Norms are float32
    arrays. A matrix may be of any kind: a float32 or float16 array, or an object whose `kind` is "bfloat16" (bits: uint16),
    "q8_0" (values: int8, scales: float32, group_size) or one of GGUF's (blocks: uint8); those of the layers are a sequence of
    matrices with a `shape`. Kinds and group sizes may differ from matrix to matrix and from layer to layer.
    rope_pairs: which elements of a head RoPE turns together: "adjacent", 2i and 2i + 1, or "halves", i and i + head_size / 2.
    Raises TypeError or ValueError for a weight that does not fit.
    """

    cdef Forward forward
    cdef Layer *layers
    cdef object keep_alive

    def __dealloc__(self):
        aligned_free(self.layers)

    def __init__(self, config, weights, rope_pairs="adjacent"):
        cdef Forward *f = &self.forward
        memset(f, 0, sizeof(Forward))
        self.keep_alive = weights
        f.dim, f.hidden_dim, f.n_layers = config.dim, config.hidden_dim, config.n_layers
        f.n_heads, f.n_kv_heads, f.head_size = config.n_heads, config.n_kv_heads, config.head_size
        f.q_dim, f.kv_dim, f.vocab_size = f.n_heads * f.head_size, f.n_kv_heads * f.head_size, config.vocab_size
        f.pair_step, f.pair_apart, f.key_unit = 2, 1, UNIT
        if checked_halves(rope_pairs):
            f.pair_step, f.pair_apart, f.key_unit = 1, f.head_size // 2, lcm(UNIT, f.head_size)
        f.norm_eps = config.norm_eps
        f.embedding = as_matrix(weights["token_embedding_table"], "token_embedding_table", (f.vocab_size, f.dim))
        f.wcls = as_matrix(weights["wcls"], "wcls", (f.vocab_size, f.dim))
        note_reader(f, &f.wcls_input, &f.wcls)
        f.pack_size = max(f.pack_size, (f.head_size * sizeof(float) + 63) // 64 * 64)  # store_part() turns a key there
        final = checked(weights["rms_final_weight"], "rms_final_weight", np.float32, (f.dim,))
        f.rms_final_weight = <const float *>cnp.PyArray_DATA(final)
        self.fill_layers(weights)
        f.layer_weights = count_layer_weights(config)

    cdef int fill_layers(self, weights) except -1:
        """Make the table of layers."""
        cdef Forward *f = &self.forward
        cdef Layer *l
        cdef int64_t layer
        norms = {name: checked(weights[name], name, np.float32, (f.n_layers, f.dim))
                 for name in ("rms_att_weight", "rms_ffn_weight")}
        shapes = {"wq": (f.q_dim, f.dim), "wk": (f.kv_dim, f.dim), "wv": (f.kv_dim, f.dim), "wo": (f.dim, f.q_dim),
                  "w1": (f.hidden_dim, f.dim), "w2": (f.dim, f.hidden_dim), "w3": (f.hidden_dim, f.dim)}
        for name in shapes:
            if weights[name].shape[0] != f.n_layers:
                raise ValueError(f"{name}: expected {f.n_layers} layers, found {weights[name].shape[0]}")
        aligned_free(self.layers)
        f.layers = self.layers = <Layer *>aligned_alloc(f.n_layers * sizeof(Layer))
        if self.layers == NULL:
            raise MemoryError(f"not enough memory for the table of {f.n_layers} layers")
        memset(self.layers, 0, f.n_layers * sizeof(Layer))
        for layer in range(f.n_layers):
            l = &self.layers[layer]
            l.rms_att_weight = <const float *>cnp.PyArray_DATA(norms["rms_att_weight"]) + layer * f.dim
            l.rms_ffn_weight = <const float *>cnp.PyArray_DATA(norms["rms_ffn_weight"]) + layer * f.dim
            self.fill_matrix(&l.wq, &l.att_input, weights, layer, "wq", shapes)
            self.fill_matrix(&l.wk, &l.att_input, weights, layer, "wk", shapes)
            self.fill_matrix(&l.wv, &l.att_input, weights, layer, "wv", shapes)
            self.fill_matrix(&l.wo, &l.wo_input, weights, layer, "wo", shapes)
            self.fill_matrix(&l.w1, &l.ffn_input, weights, layer, "w1", shapes)
            self.fill_matrix(&l.w2, &l.w2_input, weights, layer, "w2", shapes)
            self.fill_matrix(&l.w3, &l.ffn_input, weights, layer, "w3", shapes)
        return 0

    cdef int fill_matrix(self, Matrix *w, Input *input, weights, int64_t layer, str name, dict shapes) except -1:
        """A matrix of a layer, which multiplies this input. OUT w; IN OUT input."""
        w[0] = as_matrix(weights[name][layer], f"{name}[{layer}]", shapes[name])
        note_reader(&self.forward, input, w)
        return 0

    def run(self, Scratch scratch not None, sequences, rope, logit_rows, logits, trace, int n_threads):
        """One step: feed each sequence's tokens at its positions, fill its keys and values, and write logits.

        sequences: list of (tokens, position, KVBuffer): ids, the position of the first, the buffers to read and fill
        rope: float32 (positions, head_size / 2, 2), at least as long as the highest position
        logit_rows: list of rows (counted over all tokens of the step) whose logits are wanted
        logits: OUT float32 (len(logit_rows), vocab_size); trace: OUT float32 (n_rows, n_layers, 4) or None
        """
        cdef Forward *f = &scratch.forward
        cdef int64_t rows, positions, layer, at_once
        n_threads = usable_threads(checked_threads(n_threads))
        rows, positions = check_step(&self.forward, sequences, rope, logit_rows, logits, trace)
        scratch.reserve(&self.forward, max(rows, len(logit_rows)), n_threads, positions)
        f.rope = <const float *>cnp.PyArray_DATA(rope)
        f.logits = <float *>cnp.PyArray_DATA(logits)
        f.trace = <float *>cnp.PyArray_DATA(trace) if trace is not None else NULL
        fill_rows(f, sequences, logit_rows)
        deal_tiles(f, sequences, n_threads)
        at_once = layers_at_once(f, positions, n_threads)
        for layer in range(0, f.n_layers, at_once):
            if layer:
                PyErr_CheckSignals()
                n_threads = usable_threads(n_threads)  # a signal handler may have done anything
            with nogil:
                run_layers(f, layer, min(layer + at_once, f.n_layers), n_threads)


cdef (int64_t, int64_t) check_step(const Forward *f, sequences, rope, logit_rows, logits, trace) except *:
    """Check the arguments of Model.run, but for the numbers in the lists. -> rows, and positions of the longest sequence."""
    cdef KVBuffer buffer
    cdef int64_t rows = 0, positions = 0, position
    for tokens, position, buffer in sequences:
        if buffer is None:
            raise TypeError("cache: expected a KVBuffer, found None")
        rows += len(tokens)
        positions = max(positions, position + len(tokens))
        if position < 0 or len(tokens) > buffer.capacity - position:
            raise ValueError(f"sequence: expected positions up to {buffer.capacity}, found {position + len(tokens)}")
        if buffer.values.shape != (f.n_layers, f.n_kv_heads, buffer.capacity, f.head_size):
            raise ValueError(f"cache: expected the shape of this model, found {buffer.values.shape}")
    if rows == 0:
        raise ValueError("tokens: expected at least one, found none")
    if rope.shape[0] < positions:
        raise ValueError(f"rope: expected at least {positions} positions, found {rope.shape[0]}")
    checked(rope, "rope", np.float32, (rope.shape[0], f.head_size // 2, 2))
    writable(logits, "logits", np.float32, (len(logit_rows), f.vocab_size))
    if trace is not None:
        writable(trace, "trace", np.float32, (rows, f.n_layers, 4))
    return rows, positions


cdef int fill_rows(Forward *f, sequences, logit_rows) except -1:
    """Write down the rows of the step, and which of them ask for logits. OUT the arrays of f with one number for each row."""
    cdef KVBuffer buffer
    cdef int64_t row = 0, position, token, wanted
    for tokens, position, buffer in sequences:
        for token in tokens:
            if token < 0 or token >= f.vocab_size:
                raise ValueError(f"token: expected an id below {f.vocab_size}, found {token}")
            f.tokens[row] = <int32_t>token
            f.positions[row] = <int32_t>position
            f.keys[row], f.values[row], f.capacities[row] = buffer.key_data, buffer.value_data, buffer.capacity
            f.kv_types[row] = buffer.type
            position += 1
            row += 1
    f.n_rows, f.n_logits = row, 0
    for wanted in logit_rows:
        if wanted < 0 or wanted >= f.n_rows:
            raise ValueError(f"logit_rows: expected rows below {f.n_rows}, found {wanted}")
        f.logit_rows[f.n_logits] = wanted
        f.n_logits += 1
    return 0


cdef int deal_tiles(Forward *f, sequences, int n_threads) except -1:
    """Cut the queries of each sequence into tiles: as large as the kernel takes, but smaller if some threads would get none.

    OUT f.n_tiles, f.tile_starts, f.tile_sizes."""
    cdef int64_t group = f.n_heads // f.n_kv_heads, tile = QUERY_TILE, first = 0, stop
    while tile > 1 and (f.n_rows * group + tile - 1) // tile * f.n_kv_heads < n_threads:
        tile = tile // 2
    f.n_tiles = 0
    for tokens, _, _ in sequences:
        stop = first + len(tokens) * group
        while first < stop:
            f.tile_starts[f.n_tiles], f.tile_sizes[f.n_tiles] = first, min(tile, stop - first)
            f.n_tiles += 1
            first += tile
        first = stop
    return 0


# ---------------------------------------------------------------------------------------------- what Python sees: kernels

def rmsnorm(float[::1] out not None, const float[::1] x not None, const float[::1] weight not None, float eps):
    """out = weight * x / sqrt(mean(x^2) + eps); OUT out, IN x, weight: float32 (n,). Zhang and Sennrich 2019, equation 4."""
    if not out.shape[0] == x.shape[0] == weight.shape[0]:
        raise ValueError(f"rmsnorm: expected three equal lengths, found {out.shape[0]}, {x.shape[0]}, {weight.shape[0]}")
    if x.shape[0]:
        level.rmsnorm(&out[0], &x[0], &weight[0], x.shape[0], eps)


def read_all(const float[::1] x not None, n_threads=1):
    """Read x, float32 (n,), once with n_threads threads, each a part of its own. -> the sum. For measuring memory."""
    cdef int64_t n = x.shape[0]
    cdef int part = 0, parts = checked_threads(n_threads), team
    cdef double total = 0
    if n == 0:
        return 0.0
    team = usable_threads(parts)
    for part in prange(parts, nogil=True, num_threads=team, schedule="static"):
        total += level.sum(&x[0] + share_start(n, part, parts), share_start(n, part + 1, parts) - share_start(n, part, parts))
    return total


def softmax(float[::1] x not None):
    """x = exp(x - max(x)) / sum, in place; IN OUT x: float32 (n,)."""
    if x.shape[0]:
        level.softmax(&x[0], x.shape[0])


def swiglu(float[::1] gate not None, const float[::1] up not None):
    """gate = silu(gate) * up; IN OUT gate, IN up: float32 (n,). Shazeer 2020, equation 6."""
    if gate.shape[0] != up.shape[0]:
        raise ValueError(f"swiglu: expected two equal lengths, found {gate.shape[0]} and {up.shape[0]}")
    if gate.shape[0]:
        level.swiglu(&gate[0], &up[0], gate.shape[0])


def rotate(float[::1] out not None, const float[::1] x not None, const float[:, ::1] table not None, rope_pairs="adjacent"):
    """(out[2i], out[2i + 1]) = (x[2i], x[2i + 1]), or for "halves" (x[i], x[i + n / 2]), turned by table[i] = (cos, sin).

    OUT out, IN x: float32 (n,), two buffers; IN table (n / 2, 2).
    """
    cdef int64_t n_pairs = x.shape[0] // 2
    cdef bint halves = checked_halves(rope_pairs)
    if table.shape[1] != 2 or 2 * table.shape[0] != x.shape[0] or out.shape[0] != x.shape[0]:
        raise ValueError(f"rotate: expected out ({x.shape[0]},) and a table ({x.shape[0] / 2:g}, 2), found "
                         f"({out.shape[0]},) and ({table.shape[0]}, {table.shape[1]})")
    if n_pairs:
        level.rotate(&out[0], &x[0], &table[0, 0], n_pairs, 1 if halves else 2, n_pairs if halves else 1)


def matmul(float[:, ::1] out not None, const float[:, ::1] x not None, w not None, n_threads=1):
    """out[r, o] = x[r] . w[o], for a matrix of any kind; for one of 8 or fewer bits, x is quantised first in the groups it reads.

    OUT out float32 (n_rows, n_out), IN x float32 (n_rows, n), IN w (n_out, n): see Model.
    """
    cdef Matrix m = as_matrix(w, "w", (out.shape[1], x.shape[1]))
    cdef int part = 0, parts = checked_threads(n_threads), team
    cdef int64_t n_rows = x.shape[0], size = input_group(&m), scratch = pack_size(&m)
    cdef q8_rows xq
    cdef char *packs
    if out.shape[0] != x.shape[0]:
        raise ValueError(f"matmul: expected out ({x.shape[0]}, {out.shape[1]}), found ({out.shape[0]}, {out.shape[1]})")
    if out.shape[0] == 0 or out.shape[1] == 0:
        return
    if x.shape[1] == 0:
        out[:] = 0
        return
    memset(&xq, 0, sizeof(xq))
    if size:
        values, scales, offsets = quantized_arrays(x.shape[0], x.shape[1], size)
        sums = np.empty((n_rows, x.shape[1] // 16), np.int16)
        scaled_sums = np.empty_like(scales)
        xq.values = <int8_t *>cnp.PyArray_DATA(values)
        xq.scales = <float *>cnp.PyArray_DATA(scales)
        xq.offsets = <int32_t *>cnp.PyArray_DATA(offsets)
        xq.n_groups = scales.shape[1]
        if is_blocks(m.kind):
            xq.sums = <int16_t *>cnp.PyArray_DATA(sums)
            xq.scaled_sums = <float *>cnp.PyArray_DATA(scaled_sums)
        quantize_rows(&xq, x, size)
    team = usable_threads(parts)
    packs = <char *>aligned_alloc(parts * scratch)
    if packs == NULL:
        raise MemoryError(f"not enough memory for {parts} x {scratch} bytes of packed weights")
    for part in prange(parts, nogil=True, num_threads=team, schedule="static"):
        multiply(&out[0, 0], m.rows, &x[0, 0], &xq, n_rows, &m, part, parts, False, packs + part * scratch)
    aligned_free(packs)


def quantize(const float[:, ::1] x not None, group_size):
    """Q8_0 of activations -> values int8 (n_rows, n), scales float32 and offsets int32 (n_rows, n_groups).

    scale = max|x| / 127 of each group, value = x / scale rounded half away from zero; the groups of a row start at its element
    0 and the last may be short. A group of zeros has scale 0; one with an infinity or a NaN has zeros and a NaN scale.
    An offset is -128 times the sum of the values of its group.
    """
    cdef int64_t size = checked_group_size(group_size)
    cdef q8_rows to
    memset(&to, 0, sizeof(to))
    values, scales, offsets = quantized_arrays(x.shape[0], x.shape[1], size)
    to.values = <int8_t *>cnp.PyArray_DATA(values)
    to.scales = <float *>cnp.PyArray_DATA(scales)
    to.offsets = <int32_t *>cnp.PyArray_DATA(offsets)
    to.n_groups = scales.shape[1]
    quantize_rows(&to, x, size)
    return values, scales, offsets


cdef tuple quantized_arrays(int64_t n_rows, int64_t n, int64_t size):
    """-> arrays for values, scales and offsets: see quantize()."""
    shape = (n_rows, (n + size - 1) // size)
    return np.empty((n_rows, n), np.int8), np.empty(shape, np.float32), np.empty(shape, np.int32)


cdef void quantize_rows(const q8_rows *to, const float[:, ::1] x, int64_t size) noexcept:
    """The rows of x in groups of `size`. IN x (n_rows, n); OUT the arrays of `to`."""
    cdef int64_t n = x.shape[1], row
    cdef q8_rows one = to[0]
    for row in range(x.shape[0] if n else 0):
        level.quantize(&one, &x[row, 0], n, size)
        one.values += n
        one.scales += one.n_groups
        one.offsets += one.n_groups
        if one.sums != NULL:
            one.sums += n // 16
            one.scaled_sums += one.n_groups


def to_float16(const float[::1] x not None):
    """-> x, (n,), in float16 as in a cache: to the nearest, ties to even; beyond +-65504 it is +-65504."""
    halves = np.empty(x.shape[0], np.float16)
    if x.shape[0]:
        level.store(cnp.PyArray_DATA(halves), FLOAT16, 1, &x[0], x.shape[0])
    return halves


def attention(float[:, ::1] out not None, const float[:, ::1] queries not None, const int64_t[::1] lengths not None,
              keys, values):
    """out[i] = softmax(queries[i] . keys[:lengths[i]] / sqrt(head_size)) . values[:lengths[i]].

    OUT out, IN queries (n_queries <= 16, head_size), float32; IN keys (n_positions / 16, head_size, 16), those of 16 positions side
    by side, and values (n_positions, head_size), both float32 or both float16; IN lengths int64 (n_queries,), not decreasing,
    1 to n_positions. Vaswani et al. 2017, equation 1.
    """
    cdef int64_t n = queries.shape[0], hs = queries.shape[1], i, n_positions
    cdef float[:, ::1] scores
    if not 1 <= n <= QUERY_TILE:
        raise ValueError(f"attention: expected 1 to {QUERY_TILE} queries, found {n}")
    if hs < 1 or out.shape[0] != n or out.shape[1] != hs or lengths.shape[0] != n:
        raise ValueError("attention: expected out in the shape of queries, and a length for each")
    kind = np.float16 if getattr(keys, "dtype", None) == np.float16 else np.float32
    n_positions = CACHE_BLOCK * len(keys)
    checked(keys, "keys", kind, (n_positions // CACHE_BLOCK, hs, CACHE_BLOCK))
    checked(values, "values", kind, (n_positions, hs))
    for i in range(n):
        if lengths[i] < 1 or lengths[i] > n_positions or (i and lengths[i] < lengths[i - 1]):
            raise ValueError(f"attention: expected lengths that rise from 1 to {n_positions}, found {lengths[i]}")
    scores = np.empty((n, n_positions), np.float32)
    level.attention(&out[0, 0], &queries[0, 0], n, &lengths[0], cnp.PyArray_DATA(keys), cnp.PyArray_DATA(values),
                    FLOAT16 if kind is np.float16 else FLOAT32, hs, &scores[0, 0], n_positions)


# ---------------------------------------------------------------------------------------------- rotary angles

cdef double kernel_sin(double r) noexcept nogil:
    """-> sin(r) for |r| <= pi / 4, by its Taylor series: the first term left out is below 5e-17."""
    cdef double z = r * r, term = r, total = r
    cdef int i
    for i in range(1, 9):
        term = -term * z / ((2 * i) * (2 * i + 1))
        total += term
    return total


cdef double kernel_cos(double r) noexcept nogil:
    """-> cos(r), likewise."""
    cdef double z = r * r, term = 1, total = 1
    cdef int i
    for i in range(1, 9):
        term = -term * z / ((2 * i - 1) * (2 * i))
        total += term
    return total


cdef void sine_cosine(double angle, float *cosine, float *sine) noexcept nogil:
    """OUT cosine, sine of angle >= 0, rounded once to fp32. No libm promises the same bits on every machine.

    angle = q pi / 2 + r with pi / 2 in three parts, the first two of 30 bits each: q times those is exact below q = 2^23.
    """
    cdef int64_t q = <int64_t>(angle * 0.6366197723675814 + 0.5)
    cdef double r = ((angle - q * 1.570796325802803) - q * 9.920935791635221e-10) - q * 5.170182981794105e-19
    cdef double s = kernel_sin(r), c = kernel_cos(r)
    if q % 2:
        s, c = c, -s
    if q // 2 % 2:
        s, c = -s, -c
    cosine[0], sine[0] = <float>c, <float>s


def rope_table(float[:, :, ::1] out not None, const double[::1] frequencies not None, start):
    """out[p, i] = (cos, sin) of (start + p) * frequencies[i]; OUT out float32 (n_positions, head_size / 2, 2).

    Su et al. 2021, section 3.2.2. Computed in double precision and rounded once.
    """
    cdef int64_t p, i, first = checked_int(start, "start", 0, 1 << 31)
    if out.shape[1] != frequencies.shape[0] or out.shape[2] != 2:
        raise ValueError(f"rope_table: expected (n, {frequencies.shape[0]}, 2), found "
                         f"({out.shape[0]}, {out.shape[1]}, {out.shape[2]})")
    with nogil:
        for p in range(out.shape[0]):
            for i in range(frequencies.shape[0]):
                sine_cosine((first + p) * frequencies[i], &out[p, i, 0], &out[p, i, 1])


# ---------------------------------------------------------------------------------------------- sampling

cdef struct Candidate:
    float prob
    int32_t token


cdef inline uint32_t bits_of(float prob) noexcept nogil:
    """-> the bits of a float >= 0, which sort as the floats do. They are below 2^30 if prob <= 1."""
    cdef uint32_t bits
    memcpy(&bits, &prob, 4)
    return bits


cdef int64_t gather(Candidate *candidates, const float *probs, int64_t n, float least) noexcept nogil:
    """Collect the tokens of probability `least` and more, in the order of their ids. -> how many.

    IN probs (n,); OUT candidates (n,)."""
    cdef int64_t i, count = 0
    for i in range(n):
        candidates[count].prob = probs[i]
        candidates[count].token = <int32_t>i
        count += probs[i] >= least
    return count


cdef int64_t keep_upper(Candidate *candidates, int64_t n, float mass, int64_t most) noexcept nogil:
    """Keep the likeliest, in the order of their ids: enough to have `mass` of probability or to be `most`, and some more.

    -> how many. IN OUT candidates (n,). The tokens are counted by the exponent of their probability, and all tokens of an
    exponent are kept or none, so that few have to be sorted.
    """
    cdef double masses[128]
    cdef int64_t counts[128]
    cdef int64_t i, kept = 0, count = 0
    cdef int exponent
    cdef double total = 0
    memset(masses, 0, sizeof(masses))
    memset(counts, 0, sizeof(counts))
    for i in range(n):
        exponent = bits_of(candidates[i].prob) >> 23
        masses[exponent] += candidates[i].prob
        counts[exponent] += 1
    exponent = 128
    while exponent > 0 and total <= mass + n * 6e-8 and count < most:  # an fp32 sum of n falls short by n 2^-24 at most
        exponent -= 1
        total += masses[exponent]
        count += counts[exponent]
    for i in range(n):
        candidates[kept] = candidates[i]
        kept += <int>(bits_of(candidates[i].prob) >> 23) >= exponent
    return kept


cdef void sort_candidates(Candidate *candidates, int64_t n, Candidate *spare) noexcept nogil:
    """Sort by probability, the largest first; equal ones keep their order. IN OUT candidates (n,); SCRATCH spare (n,).

    A few are sorted by insertion, many by the bits of the probability, ten bits at a time from the lowest.
    """
    cdef int64_t starts[1024]
    cdef int64_t i, at
    cdef Candidate moved
    cdef int shift, digit
    cdef Candidate *source = candidates
    cdef Candidate *target = spare
    if n <= 64:
        for i in range(1, n):
            moved, at = candidates[i], i
            while at > 0 and candidates[at - 1].prob < moved.prob:
                candidates[at] = candidates[at - 1]
                at -= 1
            candidates[at] = moved
        return
    for shift in range(0, 30, 10):
        memset(starts, 0, sizeof(starts))
        for i in range(n):
            starts[1023 - (bits_of(source[i].prob) >> shift & 1023)] += 1
        at = 0
        for digit in range(1024):
            at += starts[digit]
            starts[digit] = at - starts[digit]
        for i in range(n):
            digit = 1023 - (bits_of(source[i].prob) >> shift & 1023)
            target[starts[digit]] = source[i]
            starts[digit] += 1
        source, target = target, source
    memcpy(candidates, spare, n * sizeof(Candidate))  # an odd number of passes ended there


cdef int64_t likeliest(Candidate *candidates, int64_t n, float mass, int64_t most, Candidate *spare) noexcept nogil:
    """Sort the likeliest to the front, until their sum exceeds `mass` or there are `most`. -> how many.

    IN OUT candidates (n,); SCRATCH spare (n,)."""
    cdef int64_t kept = keep_upper(candidates, n, mass, most) if n > 1024 else n
    sort_candidates(candidates, kept, spare)
    return kept


cdef int64_t walk(const float *probs, int64_t n, float coin) noexcept nogil:
    """-> the first token at which the running sum exceeds the coin; if it never does, the last one of probability > 0.

    IN probs (n,)."""
    cdef float cdf = 0
    cdef int64_t i, last = 0
    for i in range(n):
        cdf += probs[i]
        if coin < cdf:
            return i
    for i in range(n):
        if probs[i] > 0:
            last = i
    return last


cdef int64_t cut(const Candidate *candidates, int64_t n, float total, float top_p, float *mass) noexcept nogil:
    """-> how many of the likeliest it takes until the sum of prob / total exceeds top_p; all if it never does.

    IN candidates (n,); OUT mass, the sum of those."""
    cdef int64_t i
    mass[0] = 0
    for i in range(n):
        mass[0] += candidates[i].prob / total
        if mass[0] > top_p:
            return i + 1
    return n


cdef int64_t walk_candidates(const Candidate *candidates, int64_t n, float total, float r) noexcept nogil:
    """As walk(), over prob / total, in the order of the candidates. IN candidates (n,)."""
    cdef float cdf = 0
    cdef int64_t i
    for i in range(n):
        cdf += candidates[i].prob / total
        if r < cdf:
            return candidates[i].token
    i = n - 1
    while i > 0 and not candidates[i].prob > 0:  # it was excluded
        i -= 1
    return candidates[i].token


cdef int64_t draw(const float *logits, float *probs, Candidate *candidates, int64_t n, float temperature, float top_p,
                  int64_t top_k, float min_p, float coin) noexcept nogil:
    """-> the token, or -1 where softmax of the logits is not a distribution.

    All in fp32, with sums from left to right, as in the C program. IN logits (n,); SCRATCH probs (n,), candidates (2 n,)."""
    cdef float total = 0, mass
    cdef int64_t i, count, kept, most
    cdef bint nucleus = 0 < top_p < 1
    if temperature == 0:
        i = level.argmax(logits, n)
        return i if i >= 0 and logits[i] > -INFINITY else -1
    level.exp_logits(probs, logits, n, temperature)
    for i in range(n):
        total += probs[i]
    if not total > 0:  # NaN: from the logits, or from dividing them by so little that they overflow
        i = level.argmax(logits, n)
        return i if i >= 0 and logits[i] - logits[i] == 0 else -1
    for i in range(n):
        probs[i] /= total
    if top_k == 0 and min_p == 0:
        if not nucleus:
            return walk(probs, n, coin)
        count = gather(candidates, probs, n, (1 - top_p) / <float>(n - 1) if n > 1 else 0)
        if count == 0:
            return level.argmax(probs, n)
        kept = cut(candidates, likeliest(candidates, count, top_p, count, candidates + n), 1, top_p, &mass)
        return walk_candidates(candidates, kept, 1, coin * mass)
    count = gather(candidates, probs, n, min_p * probs[level.argmax(probs, n)])
    most = min(top_k, count) if top_k else count
    likeliest(candidates, count, 2, most, candidates + n)
    total = 0
    for i in range(most):  # the kept tokens make a new distribution, which top-p then cuts
        total += candidates[i].prob
    kept = cut(candidates, most, total, top_p if nucleus else 2, &mass)
    return walk_candidates(candidates, kept, total, coin * mass)


def sample(const float[::1] logits not None, float[::1] probs not None, uint64_t[::1] candidates not None,
           float temperature, float top_p, top_k, float min_p, float coin):
    """A token drawn from softmax(logits / temperature), cut by top_k, min_p and top_p in this order, with one coin in [0, 1).

    temperature 0: the first of the largest. top_k 0, min_p 0, top_p <= 0 or >= 1: off. A token whose logit is -inf is never
    drawn. IN logits float32 (n,), SCRATCH probs float32 (n,), candidates uint64 (2 n,).
    ValueError: the logits have a NaN, or are all -inf.
    """
    cdef int64_t n = logits.shape[0], token, most = checked_int(top_k, "top_k", 0, 1 << 62)
    if n < 1 or probs.shape[0] != n or candidates.shape[0] != 2 * n:
        raise ValueError(f"sample: expected lengths n, n and 2 n, found {n}, {probs.shape[0]}, {candidates.shape[0]}")
    if not temperature >= 0 or not 0 <= min_p <= 1:
        raise ValueError(f"sample: expected temperature >= 0 and min_p in [0, 1], found {temperature} and {min_p}")
    token = draw(&logits[0], &probs[0], <Candidate *>&candidates[0], n, temperature, top_p, most, min_p, coin)
    if token < 0:
        raise ValueError("logits: expected numbers that make a distribution, found NaN or infinity")
    return token


cdef struct Draws:
    # Rows of logits of several requests, each with its own options. The rows of one request are drawn from in order.
    int64_t n                    # tokens
    const float **rows
    const int64_t *firsts        # (requests + 1,) the number of the first row of each
    const int64_t *guesses       # (rows,) after a token that is not the guess of its row, no more rows of a request are drawn from
    const float *coins           # (rows,)
    const float *options         # (requests, 3): temperature, top_p, min_p
    const int64_t *top_k         # (requests,)
    int64_t *tokens              # OUT (rows,) -1: the logits are not a distribution, -2: not drawn


cdef void draw_request(const Draws *d, int64_t request, float *probs, Candidate *candidates) noexcept nogil:
    """Draw the tokens of one request. SCRATCH probs (n,), candidates (2 n,)."""
    cdef const float *options = d.options + 3 * request
    cdef int64_t row
    cdef bint right = True
    for row in range(d.firsts[request], d.firsts[request + 1]):
        d.tokens[row] = -2
        if right:
            d.tokens[row] = draw(d.rows[row], probs, candidates, d.n, options[0], options[1], d.top_k[request], options[2],
                                 d.coins[row])
            right = d.tokens[row] == d.guesses[row]


def draw_rows(list rows not None, const int64_t[::1] firsts not None, const int64_t[::1] guesses not None,
              const float[::1] coins not None, const float[:, ::1] options not None, const int64_t[::1] top_k not None,
              int64_t[::1] tokens not None, float[:, ::1] probs not None, uint64_t[:, ::1] candidates not None):
    """The tokens of several requests at once, on as many threads as there is scratch for: as sample() draws each.

    rows: float32 arrays (n,), those of a request after those of the one before. IN firsts (requests + 1,): the number of the
    first row of each request, and how many there are. IN guesses (rows,): a request ends after the first token that differs.
    IN coins (rows,), options (requests, 3): temperature, top_p and min_p; top_k (requests,). OUT tokens (rows,): -1 where the
    logits are not a distribution, -2 where none was drawn. SCRATCH probs (threads, n), candidates (threads, 2 n).
    """
    cdef Draws d
    cdef int64_t n = probs.shape[1], n_rows = len(rows), n_requests = firsts.shape[0] - 1, i
    cdef int team
    if n < 1 or not candidates.shape[0] == probs.shape[0] > 0 or candidates.shape[1] != 2 * n:
        raise ValueError("draw_rows: expected scratch of n and 2 n numbers for each thread")
    if not guesses.shape[0] == coins.shape[0] == tokens.shape[0] == n_rows:
        raise ValueError(f"draw_rows: expected a guess, a coin and a token for each of {n_rows} rows")
    if n_requests < 0 or not options.shape[0] == top_k.shape[0] == n_requests or options.shape[1] != 3:
        raise ValueError(f"draw_rows: expected options for each of {n_requests} requests")
    if firsts[0] != 0 or firsts[n_requests] != n_rows:
        raise ValueError(f"draw_rows: expected rows from 0 to {n_rows}, found {firsts[0]} to {firsts[n_requests]}")
    for i in range(n_requests):
        if firsts[i] > firsts[i + 1] or not options[i, 0] >= 0 or not 0 <= options[i, 2] <= 1 or top_k[i] < 0:
            raise ValueError(f"draw_rows: expected options as those of sample, found others for request {i}")
    if n_requests == 0:
        return
    checked_rows = [checked(row, "rows", np.float32, (n,)) for row in rows]  # also keeps them
    d.rows = <const float **>malloc(max(n_rows, 1) * sizeof(float *))
    if d.rows == NULL:
        raise MemoryError(f"not enough memory for a list of {n_rows} rows")
    try:
        for i in range(n_rows):
            d.rows[i] = <const float *>cnp.PyArray_DATA(checked_rows[i])
        d.n, d.firsts, d.options, d.top_k = n, &firsts[0], &options[0, 0], &top_k[0]
        d.guesses, d.coins, d.tokens = &guesses[0], &coins[0], &tokens[0]
        team = usable_threads(min(<int64_t>probs.shape[0], n_requests))
        for i in prange(n_requests, nogil=True, num_threads=team, schedule="dynamic"):
            draw_request(&d, i, &probs[threadid(), 0], <Candidate *>&candidates[threadid(), 0])
    finally:
        free(d.rows)


def logprobs(const float[::1] logits not None, float[::1] out not None):
    """out = logits - max - log(sum(exp(logits - max))), the logarithm of the softmax; float32 (n,)."""
    cdef int64_t n = logits.shape[0], i
    cdef float largest
    cdef double total = 0
    if n < 1 or out.shape[0] != n:
        raise ValueError(f"logprobs: expected two equal lengths, found {n} and {out.shape[0]}")
    level.exp_logits(&out[0], &logits[0], n, 1)
    largest = logits[0]
    for i in range(n):
        total += out[i]
        largest = max(largest, logits[i])
    for i in range(n):
        out[i] = <float>(logits[i] - largest - log(total))
