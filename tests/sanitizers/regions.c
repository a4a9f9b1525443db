/* OpenMP's parallel region on plain threads, for builds with the thread sanitizer and for no others.
 *
 * GCC's OpenMP library is not compiled for the sanitizer, which so misses that it starts a region after everything before it,
 * and would report each buffer of a step. Threads that are created and joined it understands. prange with a static schedule
 * asks only for the number of a thread and of all. One with a dynamic schedule takes tickets, and a region may have one such
 * loop. (setup.py links this instead of the library.)
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct {
    void (*body)(void *);
    void *data;
    int number, n_threads;
    atomic_long *tickets; /* chunks of the dynamic loop that are taken */
    long start, end, chunk;
    pthread_t thread;
} member;

static __thread member *self;

int omp_get_num_threads(void) { return self ? self->n_threads : 1; }
int omp_get_thread_num(void) { return self ? self->number : 0; }
int omp_get_max_threads(void) { return 1; }

static void *run(void *argument) {
    self = argument;
    self->body(self->data);
    self = NULL;
    return NULL;
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned n_threads, unsigned flags) {
    member *team = calloc(n_threads, sizeof *team);
    atomic_long tickets = 0;
    (void)flags;
    for (unsigned i = 0; i < n_threads; i++) {
        team[i] = (member){.body = body, .data = data, .number = (int)i, .n_threads = (int)n_threads, .tickets = &tickets};
        if (i && pthread_create(&team[i].thread, NULL, run, &team[i]) != 0)
            abort();
    }
    run(&team[0]);
    for (unsigned i = 1; i < n_threads; i++)
        pthread_join(team[i].thread, NULL);
    free(team);
}

/* Takes the next chunk of a loop with step 1. Relaxed, so that the sanitizer sees no order that OpenMP does not promise. */
bool GOMP_loop_nonmonotonic_dynamic_next(long *first, long *last) {
    long taken = atomic_fetch_add_explicit(self->tickets, 1, memory_order_relaxed);
    *first = self->start + taken * self->chunk;
    *last = *first + self->chunk < self->end ? *first + self->chunk : self->end;
    return *first < self->end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *first, long *last) {
    if (step != 1)
        abort();
    self->start = start, self->end = end, self->chunk = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(first, last);
}

void GOMP_loop_end_nowait(void) {}
void GOMP_loop_end(void) { abort(); } /* it would have to wait */
