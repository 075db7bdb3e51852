/* What the programs share: files, memory, errors. SPDX-License-Identifier: MIT */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "waterfill.h"

#include <stdio.h>

/* A file that is written beside its place and moved there when it is whole. */
typedef struct output {
    FILE *file;
    const char *path;
    char *beside;
} output;

extern const wf_allocator program_allocator; /* malloc and free */

void fail(const char *path, const char *text); /* print an error and end with 1 */
wf_file *open_input(const char *path, FILE **file);
void *take(size_t size);
void open_output(output *to, const char *path);
void write_bytes(output *to, const void *data, size_t size);
void close_output(output *to);

#endif
