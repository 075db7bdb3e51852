/*
 * Answers tests: every request on standard input is a letter, a number and some bytes, every answer on standard output
 * a code, a text and, without an error, what was asked for. All numbers are little-endian; texts and bytes have their
 * length before them.
 */
#include "wf_internal.h"

#include <stdio.h>
#include <stdlib.h>

/* Memory that is in use; more than the limit is never asked for. */
static size_t in_use;

static void *allocate(void *context, size_t size) {
    const wf_allocator *own = (const wf_allocator *)context;
    in_use += size;
    if (own->limit && in_use > own->limit) abort();
    return malloc(size);
}

static void release(void *context, void *memory, size_t size) {
    (void)context;
    in_use -= size;
    free(memory);
}

static wf_allocator allocator = {allocate, release, &allocator, 0};

static void get(void *to, size_t size) {
    if (size && fread(to, 1, size, stdin) != size) exit(0);
}

static void put(const void *from, size_t size) {
    if (size) fwrite(from, 1, size, stdout);
}

static void put32(uint32_t value) {
    put(&value, 4);
}

static void put64(uint64_t value) {
    put(&value, 8);
}

static void put_error(const wf_error *error) {
    put32(error->code);
    put32((uint32_t)strlen(error->message));
    put(error->message, strlen(error->message));
}

/* A source that is read in pieces. */
static int read_piece(void *context, uint64_t at, void *to, size_t size) {
    memcpy(to, (const uint8_t *)context + at, size);
    return 0;
}

/* Decode all tensors in a type, in one call where it is their own; exact ones that it does not suit in their own. */
static wf_code decode(const wf_file *file, wf_type type, uint8_t **outs, size_t *sizes, wf_error *error) {
    size_t i;
    wf_kept kept;
    wf_code code = wf_verify(file, error);
    memset(&kept, 0, sizeof kept);
    for (i = 0; i < wf_count(file) && code == WF_OK; i++) {
        wf_type each = wf_at(file, i)->type > WF_BFLOAT16 ? WF_OWN : type;
        sizes[i] = wf_size(file, i, each, error);
        outs[i] = (uint8_t *)malloc(sizes[i] ? sizes[i] : 1);
        if (type != WF_OWN) code = wf_decode(file, &kept, i, each, outs[i], sizes[i], error);
    }
    wf_forget(file, &kept);
    if (type == WF_OWN && code == WF_OK) code = wf_decode_all(file, type, (void *const *)outs, sizes, error);
    return code;
}

/* Answer with all tensors of a file; returns whether there was an error. */
static int answer_tensors(const wf_source *source, uint64_t limit, wf_type type) {
    wf_error error;
    wf_file *file = NULL;
    uint8_t **outs = NULL;
    size_t *sizes = NULL, count = 0, i;
    memset(&error, 0, sizeof error);
    allocator.limit = (size_t)limit;
    if (wf_open(&file, source, &allocator, 0, &error) == WF_OK) {
        count = wf_count(file);
        outs = (uint8_t **)calloc(count + 1, sizeof *outs);
        sizes = (size_t *)calloc(count + 1, sizeof *sizes);
        decode(file, type, outs, sizes, &error);
    }
    put_error(&error);
    for (i = 0; i < count; i++) {
        const wf_tensor *tensor = wf_at(file, i);
        if (error.code == WF_OK) {
            put32((uint32_t)tensor->name_size);
            put(tensor->name, tensor->name_size);
            put32(tensor->type);
            put32((uint32_t)tensor->axes);
            put(tensor->shape, 8 * tensor->axes);
            put64(sizes[i]);
            put(outs[i], sizes[i]);
        }
        free(outs[i]);
    }
    free(outs);
    free(sizes);
    wf_close(file);
    return error.code != WF_OK;
}

static void answer_file(const wf_source *source, uint64_t limit, wf_type type) {
    if (!answer_tensors(source, limit, type)) put32(UINT32_MAX);
}

#ifndef WF_PLAIN

/* Answer with the numbers of the payloads of a shard, and the tensors of each. */
static void answer_shard(const wf_source *source) {
    wf_payload payloads[16];
    wf_error error;
    size_t count, i;
    memset(&error, 0, sizeof error);
    allocator.limit = 1 << 20;
    wf_payloads(source, &allocator, payloads, 16, &count, &error);
    put_error(&error);
    if (error.code != WF_OK) return;
    put32((uint32_t)count);
    for (i = 0; i < count && i < 16; i++) {
        wf_source payload = *source;
        payload.start = payloads[i].start;
        payload.size = payloads[i].size;
        put64(payloads[i].number);
        answer_file(&payload, 0, WF_OWN);
    }
}

static void answer_frame(const uint8_t *data, size_t size, uint64_t out_size, int is_named) {
    wf_work work;
    wf_error error;
    wf_text nothing = {NULL, 0};
    uint8_t *out = (uint8_t *)malloc((size_t)out_size ? (size_t)out_size : 1);
    memset(&work, 0, sizeof work);
    memset(&error, 0, sizeof error);
    allocator.limit = 0;
    work.allocator = &allocator;
    work.error = &error;
    wf_told(&work, wf_unzstd(&work, data, size, nothing, is_named, out, (size_t)out_size));
    put_error(&error);
    if (error.code == WF_OK) put(out, (size_t)out_size);
    wf_give_all(&work);
    free(out);
}
#endif

int main(void) {
    for (;;) {
        char what;
        uint64_t number, size;
        uint8_t *data;
        wf_source source;
        get(&what, 1);
        get(&number, 8);
        get(&size, 8);
        data = (uint8_t *)malloc((size_t)size ? (size_t)size : 1); /* exactly, so that reads beyond it are seen */
        get(data, (size_t)size);
        memset(&source, 0, sizeof source);
        source.size = size;
        source.data = data;
        if (what == 'p' || what == 'S') {
            source.data = NULL;
            source.read = read_piece;
            source.context = data;
        }
#ifndef WF_PLAIN
        if (what == 'z' || what == 'Z') answer_frame(data, (size_t)size, number, what == 'Z');
        else if (what == 's' || what == 'S') answer_shard(&source);
        else
#endif
            answer_file(&source, number >> 8, (wf_type)(number & 255));
        if (in_use) abort(); /* nothing may stay */
        fflush(stdout);
        free(data);
    }
}
