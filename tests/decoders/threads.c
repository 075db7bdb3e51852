/* threads FILE: four threads decode all tensors of one open file, each with what it keeps; all have to get the same. */
#include "program.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define THREADS 4
#define ROOM (1 << 20)

static wf_file *file;
static unsigned char outs[THREADS][ROOM];

static void *decode(void *out) {
    wf_kept kept;
    wf_error error;
    size_t i, at = 0;
    memset(&kept, 0, sizeof kept);
    for (i = 0; i < wf_count(file); i++) {
        at = (at + 15) / 16 * 16;
        if (wf_decode(file, &kept, i, WF_OWN, (unsigned char *)out + at, ROOM - at, &error) != WF_OK) return out;
        at += wf_size(file, i, WF_OWN, &error);
    }
    wf_forget(file, &kept);
    return NULL;
}

int main(int count, char **arguments) {
    static unsigned char data[ROOM];
    wf_source source = {data, 0, NULL, NULL, 0};
    pthread_t threads[THREADS];
    FILE *input = count == 2 ? fopen(arguments[1], "rb") : NULL;
    int i, wrong = 0;
    if (input == NULL) return 2;
    source.size = fread(data, 1, sizeof data, input);
    fclose(input);
    if (wf_open(&file, &source, &program_allocator, 0, NULL) != WF_OK) return 3;
    for (i = 0; i < THREADS; i++) pthread_create(threads + i, NULL, decode, outs[i]);
    for (i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        wrong |= failed != NULL || memcmp(outs[0], outs[i], ROOM) != 0;
    }
    wf_close(file);
    return wrong;
}
