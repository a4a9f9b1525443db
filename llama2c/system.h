/* What the kernels need of the compiler and the operating system: memory, waiting, threads on trial, and a call at fork(). POSIX,
 * with futexes on Linux. To support another system, give it these functions here; nothing else in C calls a system.
 */
#ifndef LLAMA2C_SYSTEM_H
#define LLAMA2C_SYSTEM_H

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#if defined(__clang__)
#define LLAMA2C_COMPILER "clang " __clang_version__
#else
#define LLAMA2C_COMPILER "gcc " __VERSION__
#endif

#if defined(__x86_64__)
#define llama2c_pause() __builtin_ia32_pause()
#else
#define llama2c_pause() ((void)0)
#endif

/* Sleep while *word is `value`, and wake all that sleep there. A sleep may end early: its caller looks again. */
#if defined(__linux__)
#define llama2c_sleep(word, value) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0)
#define llama2c_wake(word) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0)
#else
#define llama2c_sleep(word, value) sched_yield()
#define llama2c_wake(word) ((void)0)
#endif

/* ---------------------------------------------------------------------------------------------- memory */

/* Memory that begins at a cache line, so that two threads never share one. NULL: there is not enough. */
static inline void *llama2c_alloc(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes) ? NULL : memory;
}

static inline void llama2c_free(void *memory) {
    free(memory);
}

/* ---------------------------------------------------------------------------------------------- threads and forks */

/* Call `before` in a process that forks, and `after` in its child. Not 0: there is no memory for it. */
static int llama2c_at_fork(void (*before)(void), void (*after)(void)) {
    return pthread_atfork(before, NULL, after);
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

/* How many of `n` threads with stacks of `stack` bytes (0: the system's default) can run at once. -1: no memory to try. */
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
        pthread_attr_setstacksize(&attributes, stack); /* a size that is too small is ignored, as by the runtime */
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
