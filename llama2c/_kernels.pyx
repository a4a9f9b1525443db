# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The arithmetic of llama2c: kernels over buffers that the caller owns, without the GIL, spread over threads with `prange`.

From bottom to top: the instruction-set level; small functions over a range of outputs or one (tile, head), whose inner loops
are in simd/; the step, which runs whole layers in one parallel region; the Python entries, which check every shape and type.
Nothing here opens a file, knows a text, or keeps anything between two calls but the buffers it was handed.
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
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import numpy as np

cnp.import_array()


cdef extern from "simd/kernels.h" nogil:
    enum: QUERY_TILE, FLOAT32, FLOAT16, BFLOAT16, Q8_0

    ctypedef struct q8_matrix:
        const int8_t *values
        const char *scales
        int64_t group_size

    ctypedef struct q8_rows:
        int8_t *values
        float *scales
        int32_t *offsets
        int64_t n_groups

    ctypedef struct kernel_table:
        const char *name
        void (*rmsnorm)(float *out, const float *x, const float *weight, int64_t n, float eps) noexcept nogil
        float (*sum)(const float *x, int64_t n) noexcept nogil
        int64_t (*argmax)(const float *x, int64_t n) noexcept nogil
        void (*softmax)(float *x, int64_t n) noexcept nogil
        void (*exp_logits)(float *out, const float *x, int64_t n, float divisor) noexcept nogil
        void (*swiglu)(float *gate, const float *up, int64_t n) noexcept nogil
        void (*rotate)(float *out, const float *x, const float *table, int64_t n_pairs, int64_t step, int64_t apart) noexcept nogil
        void (*widen)(float *out, const void *w, int type, int64_t n) noexcept nogil
        void (*matmul)(float *out, int64_t out_stride, const float *x, int64_t x_stride, int64_t n_rows, const void *w, int type,
                       int64_t w_stride, int64_t n_out, int64_t n, int add, void *pack) noexcept nogil
        void (*quantize)(int8_t *values, float *scales, int32_t *offsets, const float *x, int64_t n, int64_t size) noexcept nogil
        void (*matmul_q8)(float *out, int64_t out_stride, const q8_rows *x, int64_t n_rows,
                          const q8_matrix *w, int64_t first, int64_t n_out, int64_t n, int add, void *pack) noexcept nogil
        void (*attention)(float *out, const float *queries, int64_t n_queries, const int64_t *lengths,
                          const float *keys, const float *values, int64_t head_size,
                          float *scores, int64_t score_stride) noexcept nogil

    int64_t matmul_pack_size(int64_t n)
    int64_t q8_pack_size(int64_t n, int64_t n_groups)
    const kernel_table *llama2c_levels[]
    int llama2c_can_run(const kernel_table *level)

cdef extern from *:
    """
    #include <stdlib.h>
    #include <sched.h>
    #ifdef _OPENMP
    #include <omp.h>
    #define LLAMA2C_OPENMP 1
    /* Cython marks the index of a prange firstprivate and lastprivate; for both at once GCC puts a barrier before the loop. No
     * index is read after its loop here, so it need not be lastprivate. (OpenMP expands macros in its directives.) */
    #define lastprivate(index)
    #else
    #define LLAMA2C_OPENMP 0
    #define omp_get_num_threads() 1
    #endif
    #if defined(__x86_64__)
    #define llama2c_pause() __builtin_ia32_pause()
    #else
    #define llama2c_pause() ((void)0)
    #endif
    #if defined(__linux__)
    #include <limits.h>
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define llama2c_sleep(word, value) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0)
    #define llama2c_wake(word) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0)
    #else
    #define llama2c_sleep(word, value) sched_yield()
    #define llama2c_wake(word) ((void)0)
    #endif
    typedef struct { int waiting, generation, asleep; } llama2c_barrier;
    /* All threads of the team meet here. libgomp's barrier makes a system call each time, and spins for milliseconds: where the
     * machine is busy, that keeps the thread it waits for from running. This one spins for a tenth of a millisecond, then sleeps. */
    static inline void llama2c_meet(llama2c_barrier *b) {
        int n_threads = omp_get_num_threads();
        if (n_threads == 1)
            return;
        int generation = __atomic_load_n(&b->generation, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&b->waiting, 1, __ATOMIC_ACQ_REL) == n_threads) {
            __atomic_store_n(&b->waiting, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&b->generation, generation + 1, __ATOMIC_SEQ_CST);
            if (__atomic_load_n(&b->asleep, __ATOMIC_SEQ_CST)) /* one that goes to sleep later sees the new generation */
                llama2c_wake(&b->generation);
            return;
        }
        for (int spins = 0; spins < 2000; spins++) {
            if (__atomic_load_n(&b->generation, __ATOMIC_ACQUIRE) != generation)
                return;
            llama2c_pause();
        }
        __atomic_add_fetch(&b->asleep, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&b->generation, __ATOMIC_ACQUIRE) == generation)
            llama2c_sleep(&b->generation, generation);
        __atomic_sub_fetch(&b->asleep, 1, __ATOMIC_SEQ_CST);
    }
    #if defined(__clang__)
    #define LLAMA2C_COMPILER "clang " __clang_version__
    #else
    #define LLAMA2C_COMPILER "gcc " __VERSION__
    #endif
    static void *llama2c_alloc(size_t bytes) { /* at a cache line, so that two threads never share one */
        void *p = NULL;
        return posix_memalign(&p, 64, bytes) ? NULL : p;
    }
    """
    const int LLAMA2C_OPENMP
    const char *LLAMA2C_COMPILER
    ctypedef struct llama2c_barrier:
        int waiting, generation, asleep
    # Cython's prange says `nowait` in some versions and not in others: every wait between two phases is this one, in the open.
    void meet "llama2c_meet" (llama2c_barrier *barrier) noexcept nogil
    void *aligned_alloc "llama2c_alloc" (size_t size) noexcept nogil

cdef extern from "team.h" nogil:
    ctypedef struct llama2c_team:
        int size, most

    int llama2c_threaded, llama2c_forked, llama2c_forks
    llama2c_team *llama2c_this_team()
    int llama2c_watch_forks()
    int llama2c_try_threads(int n, size_t stack)


# ---------------------------------------------------------------------------------------------- the level, chosen at import

cdef const kernel_table *level = NULL


cdef choose_level():
    """Set `level`: the best that this machine runs, or the one LLAMA2C_ISA names."""
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

cdef size_t stack_size() except? 0:
    """The bytes of stack that the OpenMP runtime gives a thread, from the environment as it was at import; 0: the default."""
    wanted = os.environ.get("OMP_STACKSIZE", "").strip() or os.environ.get("GOMP_STACKSIZE", "").strip()
    number = re.fullmatch(r"(\d+)\s*([bkmg]?)", wanted.lower())
    return min(int(number[1]) << {"b": 0, "k": 10, "": 10, "m": 20, "g": 30}[number[2]], 1 << 62) if number else 0


cdef size_t thread_stack = stack_size()
cdef bint told_of_fork = False
if llama2c_watch_forks():
    raise MemoryError("no room to register what is done at a fork")


cdef inline int usable_threads(int n_threads) except -1:
    """How many threads a parallel region can have that asks for `n_threads`. Before each of them."""
    cdef llama2c_team *team = llama2c_this_team()
    if n_threads == team.size or n_threads == 1 and team.size:
        return n_threads
    return new_team(n_threads, team)


cdef int new_team(int n_threads, llama2c_team *team) except -1:
    """A first region, or one of another size than the last: whatever the runtime will need now is tried first."""
    global told_of_fork
    global llama2c_threaded
    cdef int started
    cdef size_t room
    cdef void *memory
    if llama2c_forked and n_threads > 1:
        if not told_of_fork:
            told_of_fork = True
            warnings.warn("llama2c ran on several threads before this process was forked: it runs on one here "
                          "(multiprocessing's start methods 'spawn' and 'forkserver' are not bound to that)",
                          RuntimeWarning, stacklevel=4)
        n_threads = 1
    if team.most and n_threads > team.most:
        n_threads = team.most
    if n_threads == team.size or n_threads == 1 and team.size:
        return n_threads
    if n_threads > max(team.size, 1):
        with nogil:
            started = llama2c_try_threads(n_threads - 1, thread_stack)
        if started < 0:
            raise MemoryError(f"no room to start {n_threads} threads")
        if started < n_threads - 1:
            message = (f"n_threads={n_threads}: expected to start {n_threads - 1} threads beside this one, "
                       f"found that {started} can be")
            n_threads = team.most = started + 1
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    room = 65536 + 4096 * <size_t>n_threads  # more than the runtime asks for, which ends the process when it gets none
    memory = malloc(room)
    free(memory)
    if memory == NULL:
        raise MemoryError(f"no room for the {room} bytes that the OpenMP runtime may need")
    if n_threads > 1 or not team.size:
        team.size = n_threads
    if n_threads > 1:
        llama2c_threaded = 1
    return n_threads


# ---------------------------------------------------------------------------------------------- weights and ranges

cdef struct Matrix:
    int type  # FLOAT32, FLOAT16, BFLOAT16; or Q8_0, where q8 holds the weights
    const char *weights  # (rows, columns)
    q8_matrix q8
    int64_t rows, columns


cdef struct Layer:
    const float *rms_att_weight  # (dim,)
    const float *rms_ffn_weight  # (dim,)
    Matrix wq, wk, wv, wo, w1, w2, w3


cdef enum:
    UNIT = 16  # outputs are dealt to threads in runs of whole units, so that no tile is cut


cdef inline int64_t item_size(int type) noexcept nogil:
    """Bytes of one number, of all types but Q8_0."""
    return 4 if type == FLOAT32 else 2


cdef inline int64_t share_start(int64_t n, int part, int parts, int64_t unit=UNIT) noexcept nogil:
    """Where part `part` of `parts` begins when n outputs are dealt out in whole units."""
    cdef int64_t units = (n + unit - 1) // unit, start = units * part // parts * unit
    return start if start < n else n


cdef void multiply(float *out, int64_t out_stride, const float *x, const q8_rows *xq, int64_t n_rows, const Matrix *w,
                   int part, int parts, bint add, void *pack, int64_t unit=UNIT) noexcept nogil:
    """out[r, o] (+)= x[r] . w[o] for this part's outputs. OUT out (n_rows, rows of w); IN x (n_rows, columns) or its Q8_0."""
    cdef int64_t start = share_start(w.rows, part, parts, unit), stop = share_start(w.rows, part + 1, parts, unit)
    if start == stop:
        return
    if w.type != Q8_0:
        level.matmul(out + start, out_stride, x, w.columns, n_rows, w.weights + start * w.columns * item_size(w.type), w.type,
                     w.columns, stop - start, w.columns, add, pack)
    else:
        level.matmul_q8(out + start, out_stride, xq, n_rows, &w.q8, start, stop - start, w.columns, add, pack)


# ---------------------------------------------------------------------------------------------- one step

cdef struct Step:
    # the model
    int64_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_size, q_dim, kv_dim, vocab_size, group_size
    int64_t pair_step, pair_apart  # where the pairs that RoPE turns stand in a head of wq's and wk's outputs: see kernels.h
    int64_t key_unit             # threads share keys in such units, so that none cuts a pair
    float norm_eps
    const Layer *layers
    const float *rms_final_weight
    Matrix embedding, wcls
    # the rows: one token of one sequence each
    int64_t n_rows
    int32_t *tokens              # (n_rows,)
    int32_t *positions           # (n_rows,)
    float **keys                 # (n_rows,) each (n_layers, n_kv_heads, capacity, head_size)
    float **values
    int64_t *capacities
    const float *rope            # (positions, head_size / 2, 2): cos and sin
    # attention is dealt out in tiles of queries (row, head of a group), a tile per key head at a time
    int64_t n_tiles
    int64_t *tile_starts         # (n_tiles,) the number of the first query: row * heads per group + head
    int64_t *tile_sizes
    # what comes out
    int64_t n_logits
    const int64_t *logit_rows    # (n_logits,)
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
    int8_t *q8_values            # (n_slots, widest)
    float *q8_scales             # (n_slots, groups of the widest)
    int32_t *q8_offsets
    int64_t widest, widest_groups
    float *heads                 # (n_threads, 2, QUERY_TILE, head_size) queries in, outputs back
    float *scores                # (n_threads, QUERY_TILE, score_stride)
    int64_t score_stride
    char *packs                  # (n_threads, pack_size)
    int64_t pack_size


cdef q8_rows quantized(const Step *s, int64_t slot, int64_t n) noexcept nogil:
    """The Q8_0 buffers from `slot` on, for rows of n values."""
    cdef q8_rows rows
    rows.n_groups = (n + s.group_size - 1) // s.group_size if s.group_size else 0
    rows.values = s.q8_values + slot * n
    rows.scales = s.q8_scales + slot * rows.n_groups
    rows.offsets = s.q8_offsets + slot * rows.n_groups
    return rows


cdef inline void quantize_row(const Step *s, const float *x, int64_t slot, int64_t n) noexcept nogil:
    """Q8_0 of one row into its slot, for models that multiply in integers."""
    cdef q8_rows rows
    if s.group_size:
        rows = quantized(s, slot, n)
        level.quantize(rows.values, rows.scales, rows.offsets, x, n, s.group_size)


cdef inline void norm_row(const Step *s, const float *x, const float *weight, int64_t slot) noexcept nogil:
    level.rmsnorm(s.xb + slot * s.dim, x, weight, s.dim, s.norm_eps)
    quantize_row(s, s.xb + slot * s.dim, slot, s.dim)


cdef void embed_row(const Step *s, int64_t row) noexcept nogil:
    """x[row] = the token's row of the embedding table, dequantised here where it is Q8_0."""
    cdef int64_t i, first = s.tokens[row] * s.dim
    cdef float *x = s.x + row * s.dim
    cdef float scale
    if s.embedding.type != Q8_0:
        level.widen(x, s.embedding.weights + first * item_size(s.embedding.type), s.embedding.type, s.dim)
        return
    for i in range(s.dim):  # group_size divides dim: a group never straddles two tokens
        if i % s.group_size == 0:
            memcpy(&scale, s.embedding.q8.scales + (first + i) // s.group_size * 4, 4)
        x[i] = s.embedding.q8.values[first + i] * scale


cdef void project(const Step *s, int64_t layer, int part, int parts, int64_t slot, void *pack) noexcept nogil:
    """This part's queries, keys and values. The keys are turned on their way into the cache, the queries when they are used."""
    cdef const Layer *w = &s.layers[layer]
    cdef q8_rows xq = quantized(s, slot, s.dim)
    cdef const float *x = s.xb + slot * s.dim
    cdef float *k
    cdef const float *angles
    cdef int64_t row, start, stop, at, size, head, offset, place
    multiply(s.q, s.q_dim, x, &xq, s.n_rows, &w.wq, part, parts, False, pack)
    multiply(s.kv, 2 * s.kv_dim, x, &xq, s.n_rows, &w.wk, part, parts, False, pack, s.key_unit)
    multiply(s.kv + s.kv_dim, 2 * s.kv_dim, x, &xq, s.n_rows, &w.wv, part, parts, False, pack, s.key_unit)
    for row in range(s.n_rows):
        angles = s.rope + s.positions[row] * s.head_size
        k = s.kv + row * 2 * s.kv_dim
        start = share_start(s.kv_dim, part, parts, s.key_unit)
        stop = share_start(s.kv_dim, part + 1, parts, s.key_unit)
        while start < stop:  # head by head, as far as they are ours
            head = start // s.head_size
            at = start % s.head_size
            size = min(s.head_size - at, stop - start)
            offset = (layer * s.n_kv_heads + head) * s.capacities[row] + s.positions[row]
            place = offset * s.head_size + at
            level.rotate(s.keys[row] + place, k + start, angles + at, size // 2, s.pair_step, s.pair_apart)
            memcpy(s.values[row] + place, k + s.kv_dim + start, size * sizeof(float))
            start += size


cdef void attend(const Step *s, int64_t layer, int64_t task, int thread) noexcept nogil:
    """One tile of queries that share a sequence and a key head: att[row, head] for each."""
    cdef int64_t group = s.n_heads // s.n_kv_heads, kv_head = task % s.n_kv_heads, tile = task // s.n_kv_heads
    cdef int64_t start = s.tile_starts[tile], size = s.tile_sizes[tile], hs = s.head_size, row = start // group
    cdef int64_t lengths[QUERY_TILE]
    cdef int64_t i, base = (layer * s.n_kv_heads + kv_head) * s.capacities[row] * hs
    cdef int64_t places[QUERY_TILE]
    cdef float *queries = s.heads + thread * 2 * QUERY_TILE * hs
    cdef float *out = queries + QUERY_TILE * hs
    for i in range(size):
        row = (start + i) // group
        lengths[i] = s.positions[row] + 1
        places[i] = row * s.q_dim + (kv_head * group + (start + i) % group) * hs
        level.rotate(queries + i * hs, s.q + places[i], s.rope + s.positions[row] * hs, hs // 2, s.pair_step, s.pair_apart)
    row = start // group
    level.attention(out, queries, size, lengths, s.keys[row] + base, s.values[row] + base, hs,
                    s.scores + thread * QUERY_TILE * s.score_stride, s.score_stride)
    for i in range(size):
        memcpy(s.att + places[i], out + i * hs, hs * sizeof(float))


cdef void feed_forward(const Step *s, int64_t layer, int part, int parts, int64_t slot, void *pack) noexcept nogil:
    """gate = silu(w1 x) * (w3 x), this part's."""
    cdef const Layer *w = &s.layers[layer]
    cdef q8_rows xq = quantized(s, slot, s.dim)
    cdef const float *x = s.xb + slot * s.dim
    cdef int64_t row, start = share_start(s.hidden_dim, part, parts), stop = share_start(s.hidden_dim, part + 1, parts)
    multiply(s.gate, s.hidden_dim, x, &xq, s.n_rows, &w.w1, part, parts, False, pack)
    multiply(s.up, s.hidden_dim, x, &xq, s.n_rows, &w.w3, part, parts, False, pack)
    for row in range(s.n_rows):
        if start < stop:
            level.swiglu(s.gate + row * s.hidden_dim + start, s.up + row * s.hidden_dim + start, stop - start)


cdef void add_product(const Step *s, const float *input, const Matrix *w, int part, int parts, int64_t slot,
                      void *pack) noexcept nogil:
    """x += w input, this part's: the way back into the residual stream."""
    cdef q8_rows xq = quantized(s, slot, w.columns)
    multiply(s.x, s.dim, input, &xq, s.n_rows, w, part, parts, True, pack)


cdef void trace_row(const Step *s, int64_t layer, int64_t row, int which) noexcept nogil:
    """trace[row, layer, 2 which: 2 which + 2] = Euclidean norm and mean of the residual stream."""
    cdef double squares = 0, total = 0
    cdef int64_t i
    for i in range(s.dim):
        squares += <double>s.x[row * s.dim + i] * s.x[row * s.dim + i]
        total += s.x[row * s.dim + i]
    s.trace[(row * s.n_layers + layer) * 4 + 2 * which] = <float>(squares ** 0.5)
    s.trace[(row * s.n_layers + layer) * 4 + 2 * which + 1] = <float>(total / s.dim)


cdef int64_t SOON = 1 << 31  # multiply-adds


cdef int64_t layers_at_once(const Step *s, int64_t n_positions, int n_threads) noexcept nogil:
    """How many layers a step takes before it looks for signals: as many as one thread computes in about a tenth of a second."""
    cdef int64_t weights = s.dim * (2 * s.q_dim + 2 * s.kv_dim + 3 * s.hidden_dim)
    # Reading a weight from memory costs about what using it 16 times does.
    cdef int64_t work = weights * (s.n_rows + 16) + 2 * s.n_rows * n_positions * s.q_dim
    return max(1, SOON * n_threads // work)


cdef void run_layers(const Step *s, int64_t first, int64_t stop, int n_threads) noexcept nogil:
    """Some layers, and with the last one the logits, in one parallel region. A barrier stands wherever a phase reads what
    another thread wrote: five in a layer where the step has one row."""
    cdef int64_t i = 0, layer = 0, slot = 0, tasks = s.n_tiles * s.n_kv_heads
    cdef int part = 0, thread = 0
    cdef bint alone = s.n_rows == 1
    cdef char *pack = NULL
    cdef llama2c_barrier barrier
    memset(&barrier, 0, sizeof(barrier))
    with parallel(num_threads=n_threads):
        thread = threadid()
        slot = thread if alone else 0
        pack = s.packs + thread * s.pack_size
        if first == 0:
            for i in prange(s.n_rows, schedule="static"):
                embed_row(s, i)
            meet(&barrier)
        for layer in range(first, stop):
            if alone:
                norm_row(s, s.x, s.layers[layer].rms_att_weight, slot)
            else:
                for i in prange(s.n_rows, schedule="static"):
                    norm_row(s, s.x + i * s.dim, s.layers[layer].rms_att_weight, i)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                project(s, layer, part, n_threads, slot, pack)
            meet(&barrier)
            for i in prange(tasks, schedule="static", chunksize=1):
                attend(s, layer, i, thread)
            meet(&barrier)
            if alone:
                quantize_row(s, s.att, slot, s.q_dim)
            elif s.group_size:
                for i in prange(s.n_rows, schedule="static"):
                    quantize_row(s, s.att + i * s.q_dim, i, s.q_dim)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                add_product(s, s.att, &s.layers[layer].wo, part, n_threads, slot, pack)
            meet(&barrier)
            if s.trace != NULL:
                for i in prange(s.n_rows, schedule="static"):
                    trace_row(s, layer, i, 0)
            if alone:
                norm_row(s, s.x, s.layers[layer].rms_ffn_weight, slot)
            else:
                for i in prange(s.n_rows, schedule="static"):
                    norm_row(s, s.x + i * s.dim, s.layers[layer].rms_ffn_weight, i)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                feed_forward(s, layer, part, n_threads, slot, pack)
            meet(&barrier)
            if alone:
                quantize_row(s, s.gate, slot, s.hidden_dim)
            elif s.group_size:
                for i in prange(s.n_rows, schedule="static"):
                    quantize_row(s, s.gate + i * s.hidden_dim, i, s.hidden_dim)
                meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                add_product(s, s.gate, &s.layers[layer].w2, part, n_threads, slot, pack)
            meet(&barrier)
            if s.trace != NULL:
                for i in prange(s.n_rows, schedule="static"):
                    trace_row(s, layer, i, 1)
        if stop == s.n_layers and s.n_logits:
            for i in prange(s.n_logits, schedule="static"):
                norm_row(s, s.x + s.logit_rows[i] * s.dim, s.rms_final_weight, i)
            meet(&barrier)
            for part in prange(n_threads, schedule="static"):
                classify(s, part, n_threads, pack)
        meet(&barrier)  # or the end of the region would wait in libgomp's way


cdef void classify(const Step *s, int part, int parts, void *pack) noexcept nogil:
    """logits = wcls x of the rows that ask, this part's."""
    cdef q8_rows xq = quantized(s, 0, s.dim)
    multiply(s.logits, s.vocab_size, s.xb, &xq, s.n_logits, &s.wcls, part, parts, False, pack)


# ---------------------------------------------------------------------------------------------- what Python sees: the step

cdef object checked(object array, str name, object dtype, tuple shape):
    """`array` itself, if it is an ndarray of this type and shape in C order; else TypeError or ValueError."""
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
    checked(array, name, dtype, shape)
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, found a read-only one")
    if not array.flags.aligned:  # weights may lie at any byte, as files have them; what we write may not
        raise ValueError(f"{name}: expected an array at an address for {np.dtype(dtype).name}, found {array.ctypes.data:#x}")
    return array


cdef int64_t checked_int(object value, str name, int64_t low, int64_t high) except? -1:
    """An integer from low to high; Cython by itself would cut 1.5 to 1."""
    number = index(value)
    if number < low or number > high:
        raise ValueError(f"{name}: expected {low} to {high}, found {number}")
    return number


cdef int checked_threads(object n_threads) except -1:
    return checked_int(n_threads, "n_threads", 1, 4096)


cdef int64_t checked_group_size(object size) except -1:
    return checked_int(size, "group_size", 1, 65536)  # 65536 products of two int8 fit an int32


cdef bint checked_halves(object rope_pairs) except -1:
    """Whether RoPE turns elements i and i + head_size / 2 of a head, not neighbours."""
    if rope_pairs not in ("adjacent", "halves"):
        raise ValueError(f"rope_pairs: expected adjacent or halves, found {rope_pairs!r}")
    return rope_pairs == "halves"


cdef Matrix as_matrix(object weights, str name, tuple shape, int64_t group_size) except *:
    """The kernels' view of one (rows, columns) matrix: float32 or float16; bfloat16 as an object with `bits`; Q8_0, for which
    alone group_size is not 0, as one with values, scales and group_size."""
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.rows, m.columns = shape
    if group_size == 0:
        if hasattr(weights, "bits"):
            m.type, array = BFLOAT16, checked(weights.bits, f"{name}.bits", np.uint16, shape)
        elif getattr(weights, "dtype", None) == np.float16:
            m.type, array = FLOAT16, checked(weights, name, np.float16, shape)
        else:
            m.type, array = FLOAT32, checked(weights, name, np.float32, shape)
        m.weights = <const char *>cnp.PyArray_DATA(array)
        return m
    m.type = Q8_0
    if getattr(weights, "group_size", None) != group_size:
        raise ValueError(f"{name}: expected group_size {group_size}, found {getattr(weights, 'group_size', None)}")
    if m.rows * m.columns % group_size:
        raise ValueError(f"{name}: expected group_size to divide {shape[0]} x {shape[1]}, found {group_size}")
    values = checked(weights.values, f"{name}.values", np.int8, shape)
    scales = checked(weights.scales, f"{name}.scales", np.float32, (m.rows * m.columns // group_size,))
    m.q8.values = <const int8_t *>cnp.PyArray_DATA(values)
    m.q8.scales = <const char *>cnp.PyArray_DATA(scales)
    m.q8.group_size = group_size
    return m


cdef class KVBuffer:
    """The keys and values of one sequence: two float32 arrays (n_layers, n_kv_heads, capacity, head_size).

    length: positions filled so far; kept for the caller.
    """

    cdef readonly object keys, values
    cdef readonly int64_t capacity
    cdef public int64_t length
    cdef int taken  # 0, or how many forks this process was away from its first ancestor, and 1, when a Claim took it
    cdef float *key_data
    cdef float *value_data

    def __init__(self, keys, values):
        for array, name in ((keys, "keys"), (values, "values")):
            writable(array, name, np.float32, keys.shape)
        self.keys, self.values, self.capacity = keys, values, keys.shape[2]
        self.key_data = <float *>cnp.PyArray_DATA(keys)
        self.value_data = <float *>cnp.PyArray_DATA(values)


cdef class Claim:
    """What one call has taken for itself, so that no other can use it meanwhile. Each method is done whole: a signal comes
    before or after it, never between two of its buffers. What was taken in a process is free in a fork of it."""

    cdef list buffers
    cdef int mark

    def take(self, list buffers not None):
        """Take these KVBuffers, all or none; ValueError if one is taken already, or named twice."""
        cdef KVBuffer buffer
        cdef int mark = llama2c_forks + 1
        if self.buffers is not None:
            raise ValueError("claim: expected one that holds nothing, found one in use")
        self.buffers, self.mark = [], mark
        try:
            for buffer in buffers:
                if buffer is None:
                    raise TypeError("cache: expected a KVBuffer, found None")
                if buffer.taken == mark:
                    raise ValueError("cache: expected one that no other step uses, found one in use")
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
            pass  # all are integers, or none counts
        for buffer, count in zip(self.buffers, counts):
            buffer.length += count

    def release(self):
        """Give back what was taken, if anything was."""
        cdef KVBuffer buffer
        if self.buffers is not None:
            for buffer in self.buffers:
                if buffer.taken == self.mark:
                    buffer.taken = 0
            self.buffers = None


cdef class Scratch:
    """The buffers of one step; they grow to the largest step that used them. One step at a time."""

    cdef Step step
    cdef int64_t rows, n_threads, positions
    cdef void *block
    cdef void *scores

    def __dealloc__(self):
        free(self.block)
        free(self.scores)

    cdef int reserve(self, const Step *model, int64_t rows, int64_t n_threads, int64_t positions) except -1:
        """Make room for `rows` rows, `n_threads` threads and attention over `positions` positions."""
        if rows > self.rows or n_threads > self.n_threads:
            self.lay_out(model, max(rows, self.rows), max(n_threads, self.n_threads))
            self.positions = 0
        if positions > self.positions:
            positions = max(positions, 2 * self.positions, 64)
            positions = (positions + 15) // 16 * 16
            free(self.scores)
            self.positions = 0
            self.scores = aligned_alloc(self.n_threads * QUERY_TILE * positions * sizeof(float))
            if self.scores == NULL:
                raise MemoryError(f"no room for the attention scores of {positions} positions")
            self.positions = positions
        self.step.scores = <float *>self.scores
        self.step.score_stride = self.positions
        return 0

    cdef int lay_out(self, const Step *model, int64_t rows, int64_t n_threads) except -1:
        cdef Step *s = &self.step
        cdef int64_t slots = max(rows, n_threads), group = model.n_heads // model.n_kv_heads
        cdef int64_t offsets[20]
        cdef int64_t widest = max(model.dim, model.q_dim, model.hidden_dim)
        cdef int64_t groups = (widest + model.group_size - 1) // model.group_size if model.group_size else 0
        cdef int64_t pack = (q8_pack_size(widest, groups) if model.group_size else matmul_pack_size(widest)) // 64 * 64 + 64
        cdef int64_t sizes[20]
        cdef int64_t total = 0
        cdef int i
        cdef char *base
        q8 = 1 if model.group_size else 0
        wanted = (
            4 * rows * model.dim, 4 * slots * model.dim, 4 * rows * model.q_dim, 8 * rows * model.kv_dim,
            4 * rows * model.q_dim, 4 * rows * model.hidden_dim, 4 * rows * model.hidden_dim,
            q8 * slots * widest, q8 * 4 * slots * groups, q8 * 4 * slots * groups,
            4 * n_threads * 2 * QUERY_TILE * model.head_size, n_threads * pack,
            4 * rows, 4 * rows, 8 * rows, 8 * rows, 8 * rows, 8 * rows * group, 8 * rows * group, 8 * rows,
        )
        for i in range(20):
            offsets[i] = total
            total += (wanted[i] + 63) // 64 * 64
        free(self.block)
        self.block = NULL
        self.rows = self.n_threads = 0
        base = <char *>aligned_alloc(total)
        if base == NULL:
            raise MemoryError(f"no room for the {total} bytes of scratch of a step with {rows} rows")
        self.block = base
        memcpy(s, model, sizeof(Step))
        s.x = <float *>(base + offsets[0])
        s.xb = <float *>(base + offsets[1])
        s.q = <float *>(base + offsets[2])
        s.kv = <float *>(base + offsets[3])
        s.att = <float *>(base + offsets[4])
        s.gate = <float *>(base + offsets[5])
        s.up = <float *>(base + offsets[6])
        s.q8_values = <int8_t *>(base + offsets[7])
        s.q8_scales = <float *>(base + offsets[8])
        s.q8_offsets = <int32_t *>(base + offsets[9])
        s.heads = <float *>(base + offsets[10])
        s.packs = base + offsets[11]
        s.pack_size = pack
        s.tokens = <int32_t *>(base + offsets[12])
        s.positions = <int32_t *>(base + offsets[13])
        s.keys = <float **>(base + offsets[14])
        s.values = <float **>(base + offsets[15])
        s.capacities = <int64_t *>(base + offsets[16])
        s.tile_starts = <int64_t *>(base + offsets[17])
        s.tile_sizes = <int64_t *>(base + offsets[18])
        s.logit_rows = <int64_t *>(base + offsets[19])
        self.rows, self.n_threads = rows, n_threads
        return 0


LAYER_WEIGHTS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


cdef class Model:
    """Weights as the kernels see them: addresses, checked once against the shape of the model. Read-only, for any thread.

    config: the fields of llama2c.Config. weights: by name; norms float32; matrices (those of layers as a sequence with `shape`)
    float32 or float16 arrays, for bfloat16 an object with `bits` (uint16), for Q8_0, which then all are, one with `values` (int8),
    `scales` (float32) and `group_size`; all in C order, with the names and shapes of docs/format.md.
    rope_pairs: which elements of a head RoPE turns together: "adjacent", 2i and 2i + 1, or "halves", i and i + head_size / 2.
    Raises TypeError or ValueError for what does not fit.
    """

    cdef Step step
    cdef Layer *layers
    cdef object keep_alive

    def __dealloc__(self):
        free(self.layers)

    def __init__(self, config, weights, rope_pairs="adjacent"):
        cdef Step *s = &self.step
        cdef int64_t layer, gs
        memset(s, 0, sizeof(Step))
        self.keep_alive = weights
        s.dim, s.hidden_dim, s.n_layers = config.dim, config.hidden_dim, config.n_layers
        s.n_heads, s.n_kv_heads, s.head_size = config.n_heads, config.n_kv_heads, config.head_size
        s.q_dim, s.kv_dim, s.vocab_size = s.n_heads * s.head_size, s.n_kv_heads * s.head_size, config.vocab_size
        s.pair_step, s.pair_apart, s.key_unit = 2, 1, UNIT
        if checked_halves(rope_pairs):
            s.pair_step, s.pair_apart, s.key_unit = 1, s.head_size // 2, lcm(UNIT, s.head_size)
        s.norm_eps = config.norm_eps
        embedding = weights["token_embedding_table"]
        gs = s.group_size = checked_group_size(embedding.group_size) if hasattr(embedding, "group_size") else 0
        if gs and s.dim % gs:
            raise ValueError(f"group_size: expected a divisor of dim {s.dim}, found {gs}")
        s.embedding = as_matrix(embedding, "token_embedding_table", (s.vocab_size, s.dim), gs)
        s.wcls = as_matrix(weights["wcls"], "wcls", (s.vocab_size, s.dim), gs)
        norms = {name: checked(weights[name], name, np.float32, (s.n_layers, s.dim))
                 for name in ("rms_att_weight", "rms_ffn_weight")}
        final = checked(weights["rms_final_weight"], "rms_final_weight", np.float32, (s.dim,))
        s.rms_final_weight = <const float *>cnp.PyArray_DATA(final)
        shapes = {"wq": (s.q_dim, s.dim), "wk": (s.kv_dim, s.dim), "wv": (s.kv_dim, s.dim), "wo": (s.dim, s.q_dim),
                  "w1": (s.hidden_dim, s.dim), "w2": (s.dim, s.hidden_dim), "w3": (s.hidden_dim, s.dim)}
        self.layers = <Layer *>aligned_alloc(s.n_layers * sizeof(Layer))
        if self.layers == NULL:
            raise MemoryError(f"no room for the table of {s.n_layers} layers")
        for name in LAYER_WEIGHTS:
            if weights[name].shape[0] != s.n_layers:
                raise ValueError(f"{name}: expected {s.n_layers} layers, found {weights[name].shape[0]}")
        for layer in range(s.n_layers):
            self.layers[layer].rms_att_weight = <const float *>cnp.PyArray_DATA(norms["rms_att_weight"]) + layer * s.dim
            self.layers[layer].rms_ffn_weight = <const float *>cnp.PyArray_DATA(norms["rms_ffn_weight"]) + layer * s.dim
            self.layers[layer].wq = as_matrix(weights["wq"][layer], "wq", shapes["wq"], gs)
            self.layers[layer].wk = as_matrix(weights["wk"][layer], "wk", shapes["wk"], gs)
            self.layers[layer].wv = as_matrix(weights["wv"][layer], "wv", shapes["wv"], gs)
            self.layers[layer].wo = as_matrix(weights["wo"][layer], "wo", shapes["wo"], gs)
            self.layers[layer].w1 = as_matrix(weights["w1"][layer], "w1", shapes["w1"], gs)
            self.layers[layer].w2 = as_matrix(weights["w2"][layer], "w2", shapes["w2"], gs)
            self.layers[layer].w3 = as_matrix(weights["w3"][layer], "w3", shapes["w3"], gs)
        s.layers = self.layers

    def run(self, Scratch scratch not None, sequences, rope, logit_rows, logits, trace, int n_threads):
        """One step: feed each sequence's tokens at its positions, fill its keys and values, and write logits.

        sequences: list of (tokens, position, KVBuffer): ids, the position of the first, the buffers to read and fill
        rope: float32 (positions, head_size / 2, 2), at least as long as the highest position
        logit_rows: list of rows (counted over all tokens of the step) whose logits are wanted
        logits: OUT float32 (len(logit_rows), vocab_size); trace: OUT float32 (n_rows, n_layers, 4) or None
        """
        cdef Step *s
        cdef KVBuffer buffer
        cdef int64_t rows = 0, row = 0, last = 0, position, token, group, tile, first, at, i, layer, at_once
        n_threads = usable_threads(checked_threads(n_threads))
        for tokens, position, buffer in sequences:
            if buffer is None:
                raise TypeError("cache: expected a KVBuffer, found None")
            rows += len(tokens)
            last = max(last, position + len(tokens))
            if position < 0 or len(tokens) > buffer.capacity - position:
                raise ValueError(f"sequence: expected positions up to {buffer.capacity}, found {position + len(tokens)}")
            if buffer.keys.shape != (self.step.n_layers, self.step.n_kv_heads, buffer.capacity, self.step.head_size):
                raise ValueError(f"cache: expected the shape of this model, found {buffer.keys.shape}")
        if rows == 0:
            raise ValueError("tokens: expected at least one, found none")
        if rope.shape[0] < last:
            raise ValueError(f"rope: expected at least {last} positions, found {rope.shape[0]}")
        checked(rope, "rope", np.float32, (rope.shape[0], self.step.head_size // 2, 2))
        writable(logits, "logits", np.float32, (len(logit_rows), self.step.vocab_size))
        if trace is not None:
            writable(trace, "trace", np.float32, (rows, self.step.n_layers, 4))
        scratch.reserve(&self.step, max(rows, len(logit_rows)), n_threads, last)
        s = &scratch.step
        s.n_rows, s.n_logits = rows, len(logit_rows)
        s.rope = <const float *>cnp.PyArray_DATA(rope)
        s.logits = <float *>cnp.PyArray_DATA(logits)
        s.trace = <float *>cnp.PyArray_DATA(trace) if trace is not None else NULL
        for i in range(s.n_logits):
            row = logit_rows[i]
            if row < 0 or row >= rows:
                raise ValueError(f"logit_rows: expected rows below {rows}, found {row}")
            (<int64_t *>s.logit_rows)[i] = row
        row = 0
        for tokens, position, buffer in sequences:
            for token in tokens:
                if token < 0 or token >= s.vocab_size:
                    raise ValueError(f"token: expected an id below {s.vocab_size}, found {token}")
                s.tokens[row] = <int32_t>token
                s.positions[row] = <int32_t>position
                s.keys[row], s.values[row], s.capacities[row] = buffer.key_data, buffer.value_data, buffer.capacity
                position += 1
                row += 1
        # Tiles of queries: as large as the kernel takes, smaller where that would leave threads without one.
        group = s.n_heads // s.n_kv_heads
        tile = QUERY_TILE
        while tile > 1 and (rows * group + tile - 1) // tile * s.n_kv_heads < n_threads:
            tile = tile // 2
        s.n_tiles = 0
        row = 0
        for tokens, position, buffer in sequences:
            first, at = row * group, (row + len(tokens)) * group
            while first < at:
                s.tile_starts[s.n_tiles], s.tile_sizes[s.n_tiles] = first, min(tile, at - first)
                s.n_tiles += 1
                first += tile
            row += len(tokens)
        at_once = layers_at_once(s, last, n_threads)
        for layer in range(0, s.n_layers, at_once):
            if layer:
                PyErr_CheckSignals()
                n_threads = usable_threads(n_threads)  # a signal handler may have done anything
            with nogil:
                run_layers(s, layer, min(layer + at_once, s.n_layers), n_threads)


# ---------------------------------------------------------------------------------------------- what Python sees: kernels

def rmsnorm(float[::1] out not None, const float[::1] x not None, const float[::1] weight not None, float eps):
    """out = weight * x / sqrt(mean(x^2) + eps); OUT out, IN x, weight: float32 (n,). Zhang and Sennrich 2019, equation 4."""
    if not out.shape[0] == x.shape[0] == weight.shape[0]:
        raise ValueError(f"rmsnorm: expected three equal lengths, found {out.shape[0]}, {x.shape[0]}, {weight.shape[0]}")
    if x.shape[0]:
        level.rmsnorm(&out[0], &x[0], &weight[0], x.shape[0], eps)


def read_all(const float[::1] x not None, n_threads=1):
    """Read x, float32 (n,), once with n_threads threads, each a stretch of its own; -> the sum. For measuring memory."""
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
    """(out[2i], out[2i + 1]) = (x[2i], x[2i + 1]), or for the pairs "halves" (x[i], x[i + n / 2]), turned by table[i] = (cos, sin).

    OUT out, IN x: float32 (n,), two buffers; IN table (n / 2, 2).
    """
    cdef int64_t n_pairs = x.shape[0] // 2
    cdef bint halves = checked_halves(rope_pairs)
    if table.shape[1] != 2 or 2 * table.shape[0] != x.shape[0] or out.shape[0] != x.shape[0]:
        raise ValueError(f"rotate: expected out ({x.shape[0]},) and a table ({x.shape[0] / 2:g}, 2), found "
                         f"({out.shape[0]},) and ({table.shape[0]}, {table.shape[1]})")
    if n_pairs:
        level.rotate(&out[0], &x[0], &table[0, 0], n_pairs, 1 if halves else 2, n_pairs if halves else 1)


cdef char *allocate_packs(int parts, int64_t size) except NULL:
    cdef char *packs = <char *>aligned_alloc(parts * size)
    if packs == NULL:
        raise MemoryError(f"no room for {parts} x {size} bytes of packed weights")
    return packs


def matmul(float[:, ::1] out not None, const float[:, ::1] x not None, w not None, n_threads=1):
    """out[r, o] = x[r] . w[o]; OUT out float32 (n_rows, n_out), IN x float32 (n_rows, n), IN w (n_out, n) float32, float16, or
    bfloat16 as an object with `bits`."""
    cdef Matrix m = as_matrix(w, "w", (out.shape[1], x.shape[1]), 0)
    cdef int part = 0, parts = checked_threads(n_threads), team
    cdef int64_t n_rows = x.shape[0], size
    cdef char *packs
    if out.shape[0] != x.shape[0]:
        raise ValueError(f"matmul: expected out ({x.shape[0]}, {out.shape[1]}), found ({out.shape[0]}, {out.shape[1]})")
    if out.shape[0] == 0 or out.shape[1] == 0:
        return
    if x.shape[1] == 0:
        out[:] = 0
        return
    size = matmul_pack_size(x.shape[1]) // 64 * 64 + 64
    team = usable_threads(parts)
    packs = allocate_packs(parts, size)
    for part in prange(parts, nogil=True, num_threads=team, schedule="static"):
        multiply(&out[0, 0], m.rows, &x[0, 0], NULL, n_rows, &m, part, parts, False, packs + part * size)
    free(packs)


def quantize(const float[:, ::1] x not None, group_size):
    """Q8_0 of activations -> values int8 (n_rows, n), scales float32 and offsets int32 (n_rows, n_groups).

    scale = max|x| / 127 of each group, value = x / scale rounded half away from zero; the groups of a row start at its element
    0 and the last may be short. A group of zeros has scale 0; one with an infinity or a NaN has zeros and a NaN scale.
    An offset is -128 times the sum of the values of its group.
    """
    cdef int64_t size = checked_group_size(group_size), n = x.shape[1], groups = (n + size - 1) // size, row
    values = np.empty((x.shape[0], n), np.int8)
    scales = np.empty((x.shape[0], groups), np.float32)
    offsets = np.empty((x.shape[0], groups), np.int32)
    cdef int8_t[:, ::1] v = values
    cdef float[:, ::1] s = scales
    cdef int32_t[:, ::1] t = offsets
    if n:
        for row in range(x.shape[0]):
            level.quantize(&v[row, 0], &s[row, 0], &t[row, 0], &x[row, 0], n, size)
    return values, scales, offsets


def matmul_q8(float[:, ::1] out not None, const float[:, ::1] x not None, w, n_threads=1):
    """out[r, o] = x[r] . w[o] in Q8_0: x is quantised in the groups of w, then integers are multiplied.

    OUT out float32 (n_rows, n_out), IN x float32 (n_rows, n), IN w with values int8 (n_out, n), scales, group_size.
    """
    if not hasattr(w, "values"):
        raise TypeError(f"matmul_q8: expected a Q8_0 matrix, found {type(w).__name__}")
    if w.values.ndim != 2:
        raise ValueError(f"matmul_q8: expected a matrix, found shape {w.values.shape}")
    cdef int64_t size = checked_group_size(w.group_size), n_rows = x.shape[0], n = x.shape[1], pack_size
    cdef Matrix m = as_matrix(w, "w", (w.values.shape[0], n), size)
    cdef q8_rows rows
    cdef int part = 0, parts = checked_threads(n_threads), team
    cdef char *packs
    if out.shape[0] != n_rows or out.shape[1] != m.rows:
        raise ValueError(f"matmul_q8: expected out ({n_rows}, {m.rows}), found ({out.shape[0]}, {out.shape[1]})")
    if n_rows == 0 or m.rows == 0:
        return
    if n == 0:
        out[:] = 0
        return
    values, scales, offsets = quantize(x, size)
    rows.values = <int8_t *>cnp.PyArray_DATA(values)
    rows.scales = <float *>cnp.PyArray_DATA(scales)
    rows.offsets = <int32_t *>cnp.PyArray_DATA(offsets)
    rows.n_groups = scales.shape[1]
    pack_size = q8_pack_size(n, rows.n_groups) // 64 * 64 + 64
    team = usable_threads(parts)
    packs = allocate_packs(parts, pack_size)
    for part in prange(parts, nogil=True, num_threads=team, schedule="static"):
        multiply(&out[0, 0], m.rows, NULL, &rows, n_rows, &m, part, parts, False, packs + part * pack_size)
    free(packs)


def attention(float[:, ::1] out not None, const float[:, ::1] queries not None, const int64_t[::1] lengths not None,
              const float[:, ::1] keys not None, const float[:, ::1] values not None):
    """out[i] = softmax(queries[i] . keys[:lengths[i]] / sqrt(head_size)) . values[:lengths[i]].

    OUT out, IN queries (n_queries <= 8, head_size), IN keys, values (n_positions, head_size), float32; IN lengths int64
    (n_queries,), not decreasing, 1 to n_positions. Vaswani et al. 2017, equation 1.
    """
    cdef int64_t n = queries.shape[0], hs = queries.shape[1], i
    cdef float[:, ::1] scores
    if not 1 <= n <= QUERY_TILE:
        raise ValueError(f"attention: expected 1 to {QUERY_TILE} queries, found {n}")
    if (hs < 1 or out.shape[0] != n or out.shape[1] != hs or lengths.shape[0] != n or keys.shape[1] != hs
            or values.shape[1] != hs or values.shape[0] != keys.shape[0]):
        raise ValueError("attention: expected queries and out of one shape, a length for each, and keys and values of one shape")
    for i in range(n):
        if lengths[i] < 1 or lengths[i] > keys.shape[0] or (i and lengths[i] < lengths[i - 1]):
            raise ValueError(f"attention: expected lengths that rise from 1 to {keys.shape[0]}, found {lengths[i]}")
    scores = np.empty((n, keys.shape[0]), np.float32)
    level.attention(&out[0, 0], &queries[0, 0], n, &lengths[0], &keys[0, 0], &values[0, 0], hs, &scores[0, 0], keys.shape[0])


# ---------------------------------------------------------------------------------------------- rotary angles

cdef double kernel_sin(double r) noexcept nogil:
    """Taylor series, |r| <= pi / 4: the first term left out is below 5e-17."""
    cdef double z = r * r, term = r, total = r
    cdef int i
    for i in range(1, 9):
        term = -term * z / ((2 * i) * (2 * i + 1))
        total += term
    return total


cdef double kernel_cos(double r) noexcept nogil:
    cdef double z = r * r, term = 1, total = 1
    cdef int i
    for i in range(1, 9):
        term = -term * z / ((2 * i - 1) * (2 * i))
        total += term
    return total


cdef void sine_cosine(double angle, float *cosine, float *sine) noexcept nogil:
    """cos and sin of angle >= 0, rounded once to fp32: the same bits on every machine, which no libm promises.

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
    """The bits of a float >= 0, which sort as the floats do; below 2^30 for one of at most 1."""
    cdef uint32_t bits
    memcpy(&bits, &prob, 4)
    return bits


cdef int64_t gather(Candidate *candidates, const float *probs, int64_t n, float least) noexcept nogil:
    """The tokens of probability `least` and more, by id. -> how many."""
    cdef int64_t i, count = 0
    for i in range(n):
        candidates[count].prob = probs[i]
        candidates[count].token = <int32_t>i
        count += probs[i] >= least
    return count


cdef int64_t keep_upper(Candidate *candidates, int64_t n, float mass, int64_t most) noexcept nogil:
    """Keep, by id, the likeliest that are sure to hold `mass` of probability or to be `most`, and some more. -> how many.

    Counted by exponent: what is kept ends at a power of two, so that far fewer need be sorted than there are.
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
    """By probability downwards, equals by id as they stand: few by insertion, many by their bits, ten at a time from the lowest."""
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
    """Sort the likeliest of n candidates to the front: until their sum exceeds `mass` or there are `most`. -> how many."""
    cdef int64_t kept = keep_upper(candidates, n, mass, most) if n > 1024 else n
    sort_candidates(candidates, kept, spare)
    return kept


cdef int64_t walk(const float *probs, int64_t n, float coin) noexcept nogil:
    """The first token at which the running sum exceeds the coin; the last one of probability > 0 if the sum runs out."""
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
    """How many of the likeliest it takes until the sum of prob / total exceeds top_p (OUT mass); all if it never does."""
    cdef int64_t i
    mass[0] = 0
    for i in range(n):
        mass[0] += candidates[i].prob / total
        if mass[0] > top_p:
            return i + 1
    return n


cdef int64_t walk_candidates(const Candidate *candidates, int64_t n, float total, float r) noexcept nogil:
    """As walk(), over prob / total, the likeliest first."""
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
    """The token, or -1 where the logits make no distribution. All fp32, sums in sequence, as in the C program."""
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
    for i in range(most):  # what is kept is a distribution of its own; top-p cuts that
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
