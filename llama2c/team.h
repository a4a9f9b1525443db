/* The threads of a step, where the OpenMP runtime by itself would end the process or hang it. Arithmetic is not here.
 *
 * The runtime keeps a pool of threads for each thread that has entered a parallel region. GCC's calls exit() when it cannot
 * start one, so that is tried before; and a child made by fork() has a copy of the pool without the threads in it, for which
 * it would wait for ever. LLVM's looks after forks itself.
 */
#ifndef LLAMA2C_TEAM_H
#define LLAMA2C_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    int size; /* threads that the runtime keeps for this thread, itself among them; 0: none of our regions was entered yet */
    int most; /* 0, or how many it could have when more were last asked for */
} llama2c_team;

static __thread llama2c_team llama2c_own_team;
static int llama2c_threaded; /* some thread of this process has, or had, a team of two or more */
static int llama2c_forked;   /* this is a child, or a child's child, of a process where that was so */
static int llama2c_forks;    /* how many forks lie between this process and the one that loaded this */

static llama2c_team *llama2c_this_team(void) {
    return &llama2c_own_team;
}

/* Before fork(): the pool of the thread that calls it ends. In the child that thread alone goes on, and when it returns (in
 * the child of a Python thread, say) the runtime waits for its pool. Another step just starts new threads. */
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
    return pthread_atfork(llama2c_before_fork, NULL, llama2c_after_fork);
}

typedef struct {
    pthread_mutex_t *gate;
    pthread_t thread;
    long id;
} llama2c_trial;

static void *llama2c_wait_at_gate(void *argument) {
    llama2c_trial *trial = argument;
#if defined(__linux__)
    trial->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(trial->gate);
    pthread_mutex_unlock(trial->gate);
    return NULL;
}

/* A thread that was joined may still be counted (RLIMIT_NPROC, a control group's pids.max) until the kernel forgets its id. */
static void llama2c_wait_until_gone(long id) {
#if defined(__linux__)
    for (int i = 0; i < 10000 && syscall(SYS_tgkill, (long)getpid(), id, 0) == 0; i++)
        sched_yield();
#else
    (void)id;
#endif
}

/* Of `n` threads with stacks of `stack` bytes (0: the system's choice), how many can be there at once; -1: no memory to try. */
static int llama2c_try_threads(int n, size_t stack) {
    llama2c_trial *trials = calloc((size_t)n, sizeof *trials);
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int started = 0;
    if (trials == NULL || pthread_attr_init(&attributes) != 0) {
        free(trials);
        return -1;
    }
    if (stack)
        pthread_attr_setstacksize(&attributes, stack); /* one that is too small is ignored, as the runtime does */
    pthread_mutex_lock(&gate);
    for (; started < n; started++) {
        trials[started].gate = &gate;
        if (pthread_create(&trials[started].thread, &attributes, llama2c_wait_at_gate, &trials[started]) != 0)
            break;
    }
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < started; i++)
        pthread_join(trials[i].thread, NULL);
    for (int i = 0; i < started; i++)
        llama2c_wait_until_gone(trials[i].id);
    pthread_attr_destroy(&attributes);
    free(trials);
    return started;
}

#endif
