/* The threads of a step: how they wait for each other, how many cores they have, and what to do where the OpenMP runtime by
 * itself would end the process or hang it. There is no arithmetic here.
 *
 * The runtime keeps a pool of threads for each thread that has entered a parallel region. GCC's runtime calls exit() when it
 * cannot start a thread, so we try that first. A child made by fork() has a copy of the pool without its threads, and the
 * runtime would wait for them for ever. LLVM's runtime handles forks itself. system.h has what differs between systems.
 */
#ifndef LLAMA2C_TEAM_H
#define LLAMA2C_TEAM_H

#include "system.h"

#ifdef _OPENMP
#include <omp.h>
#define LLAMA2C_OPENMP 1
/* Cython marks the index of a prange firstprivate and lastprivate; for both at once GCC puts a barrier before the loop. Here no
 * index is read after its loop, so it need not be lastprivate. (OpenMP expands macros in its directives.) */
#define lastprivate(index)
#else
#define LLAMA2C_OPENMP 0
#define omp_get_num_threads() 1
#endif

/* ---------------------------------------------------------------------------------------------- the barrier */

typedef struct { int waiting, generation, asleep; } llama2c_barrier;

/* All threads of the team meet here. libgomp's barrier makes a system call each time, and spins for milliseconds: on a busy
 * machine that keeps the thread it waits for from running. This one spins for a tenth of a millisecond, then sleeps. */
static inline void llama2c_meet(llama2c_barrier *b) {
    int n_threads = omp_get_num_threads();
    if (n_threads == 1)
        return;
    int generation = __atomic_load_n(&b->generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&b->waiting, 1, __ATOMIC_ACQ_REL) == n_threads) {
        __atomic_store_n(&b->waiting, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->generation, generation + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&b->asleep, __ATOMIC_SEQ_CST)) /* a thread that goes to sleep later sees the new generation */
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

/* ---------------------------------------------------------------------------------------------- the cores of bound threads */

/* How many cores the runtime binds its threads to; 0: it does not bind them. Where it does (OMP_PROC_BIND, OMP_PLACES,
 * GOMP_CPU_AFFINITY), it has bound the thread that loaded it to one place already, so that thread's own affinity is too small.
 * With OMP_PROC_BIND=primary all threads share the place of the first one, and its affinity is right. */
static int llama2c_bound_cores(void) {
#if defined(_OPENMP) && !defined(LLAMA2C_PLAIN_THREADS)
    int bind = omp_get_proc_bind(), cores = 0;
    if (bind == omp_proc_bind_false || bind == omp_proc_bind_master)
        return 0;
    for (int place = 0; place < omp_get_num_places(); place++)
        cores += omp_get_place_num_procs(place);
    return cores < omp_get_num_procs() ? cores : omp_get_num_procs(); /* places may share a core */
#else
    return 0;
#endif
}

/* ---------------------------------------------------------------------------------------------- pools, forks and limits */

typedef struct {
    int size; /* threads that the runtime keeps for this one, which counts too; 0: it has not entered a region of ours yet */
    int most; /* 0, or how many could be started when more were last asked for */
} llama2c_team;

static __thread llama2c_team llama2c_own_team;
static int llama2c_threaded; /* some thread of this process has, or had, a team of two or more */
static int llama2c_forked;   /* this is a child, or a child's child, of a process where that was so */
static int llama2c_forks;    /* how many forks there are between this process and the one that loaded this */

static llama2c_team *llama2c_this_team(void) {
    return &llama2c_own_team;
}

/* Before fork(): end the pool of the thread that calls it. Only that thread goes on in the child, and when it returns (in the
 * child of a Python thread, say) the runtime would wait for its pool. The next step starts new threads. */
static void llama2c_before_fork(void) {
#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9 && !defined(LLAMA2C_PLAIN_THREADS)
    if (llama2c_own_team.size > 1 && omp_pause_resource(omp_pause_soft, omp_get_initial_device()) == 0)
        llama2c_own_team.size = 0;
#endif
}

static void llama2c_after_fork(void) {
    __atomic_store_n(&llama2c_forked, __atomic_load_n(&llama2c_threaded, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    llama2c_forks++;
}

static int llama2c_watch_forks(void) {
    return llama2c_at_fork(llama2c_before_fork, llama2c_after_fork);
}

#endif
