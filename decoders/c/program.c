/* What the programs share: files, memory, errors. SPDX-License-Identifier: MIT */
#include "program.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static output *unfinished; /* what an error leaves behind */

static void *allocate(void *context, size_t size) {
    (void)context;
    return malloc(size);
}

static void release(void *context, void *memory, size_t size) {
    (void)context;
    (void)size;
    free(memory);
}

const wf_allocator program_allocator = {allocate, release, NULL, 0};

void fail(const char *path, const char *text) {
    fprintf(stderr, "%s: %s\n", path, text);
    if (unfinished) {
        fclose(unfinished->file);
        remove(unfinished->beside);
    }
    exit(1);
}

void *take(size_t size) {
    void *memory = malloc(size ? size : 1);
    if (memory == NULL) fail("memory", "there is not enough for a tensor");
    return memory;
}

static int read_file(void *context, uint64_t at, void *to, size_t size) {
    FILE *file = (FILE *)context;
    if (at > LONG_MAX || fseek(file, (long)at, SEEK_SET) != 0) return 1;
    return fread(to, 1, size, file) != size;
}

wf_file *open_input(const char *path, FILE **file) {
    wf_source source;
    wf_error error;
    wf_file *opened;
    long size;
    *file = fopen(path, "rb");
    if (*file == NULL) fail(path, strerror(errno));
    if (fseek(*file, 0, SEEK_END) != 0 || (size = ftell(*file)) < 0) fail(path, "its size is not known");
    memset(&source, 0, sizeof source);
    source.size = (uint64_t)size;
    source.read = read_file;
    source.context = *file;
    if (wf_open(&opened, &source, &program_allocator, 0, &error) != WF_OK) fail(path, error.message);
    if (wf_verify(opened, &error) != WF_OK) fail(path, error.message);
    return opened;
}

void open_output(output *to, const char *path) {
    to->path = path;
    to->beside = (char *)take(strlen(path) + 9);
    strcpy(to->beside, path);
    strcat(to->beside, ".partial");
    to->file = fopen(to->beside, "wb");
    if (to->file == NULL) fail(to->beside, strerror(errno));
    unfinished = to;
}

void write_bytes(output *to, const void *data, size_t size) {
    if (fwrite(data, 1, size, to->file) != size) fail(to->beside, strerror(errno));
}

void close_output(output *to) {
    unfinished = NULL;
    if (fclose(to->file) != 0 || rename(to->beside, to->path) != 0) {
        remove(to->beside);
        fail(to->path, strerror(errno));
    }
    free(to->beside);
}
