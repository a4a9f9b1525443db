/* OpenMP's parallel region on plain threads, for builds with the thread sanitizer and for no others.
 *
 * GCC's OpenMP library is not compiled for the sanitizer, which so misses that it starts a region after everything before it,
 * and would report each buffer of a step. Threads that are created and joined it understands. Loops need nothing: prange with
 * a static schedule asks only for the number of a thread and of all. (setup.py links this instead of the library.)
 */
#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void (*body)(void *);
    void *data;
    int number, n_threads;
    pthread_t thread;
} member;

static __thread const member *self;

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
    (void)flags;
    for (unsigned i = 0; i < n_threads; i++) {
        team[i] = (member){body, data, (int)i, (int)n_threads, 0};
        if (i && pthread_create(&team[i].thread, NULL, run, &team[i]) != 0)
            abort();
    }
    run(&team[0]);
    for (unsigned i = 1; i < n_threads; i++)
        pthread_join(team[i].thread, NULL);
    free(team);
}
