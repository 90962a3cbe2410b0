/* Moves the bytes that an update must move: reads `read`, reads and writes each of `written`. */
#include <pthread.h>
#include <stddef.h>

#define MAX_THREADS 256
#define BLOCK 1024 /* of `read`, so that it stays in the first cache for all of `written` */

typedef struct {
    const float *read;
    float **written;
    size_t arrays, begin, end;
} Share;

static void *move(void *argument) {
    const Share *share = argument;
    for (size_t begin = share->begin; begin < share->end; begin += BLOCK) {
        size_t end = begin + BLOCK < share->end ? begin + BLOCK : share->end;
        for (size_t k = 0; k < share->arrays; k++) {
            float *restrict to = share->written[k];
            const float *restrict from = share->read;
            for (size_t i = begin; i < end; i++) to[i] += from[i];
        }
    }
    return NULL;
}

/* Returns 0, or an error number where a thread could not be started. */
int move_arrays(const float *read, float **written, size_t arrays, size_t elements,
                size_t threads) {
    pthread_t started[MAX_THREADS];
    Share shares[MAX_THREADS];
    if (threads < 1 || threads > MAX_THREADS) return -1;
    int failed = 0;
    size_t count = 1;
    for (size_t t = 0; t < threads; t++) {
        shares[t] = (Share){read, written, arrays, elements * t / threads,
                            elements * (t + 1) / threads};
    }
    for (; count < threads && !failed; count++) {
        failed = pthread_create(&started[count], NULL, move, &shares[count]);
    }
    if (failed) count--;
    move(&shares[0]);
    for (size_t t = 1; t < count; t++) pthread_join(started[t], NULL);
    return failed;
}
