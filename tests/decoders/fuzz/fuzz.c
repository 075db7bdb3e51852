/*
 * What a fuzzer calls with any bytes: the reader refuses a file or reads it, in memory that it gives back, alike every time.
 *
 * The first eight bytes say what to do, so that inputs find what random bytes of a file never would: the directory lies
 * unpacked in the input, and the header and all checksums are made here; those of chunks in plain files are not looked at
 * (FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION).
 *
 * 0     kind: 0 a file in parts, 1 a file, 2 a shard, 3 a frame of zstandard, 4 a plain file in parts
 * 1     minor version of a file in parts; of a frame whether it has to name its size
 * 2     bit 0: behind a callback, which fails at the n-th call (0: never), n in the other bits
 * 3     type that floating-point tensors are decoded in, as well as in their own
 * 4, 5  the allocation that fails, counted from 1; 0 for none
 * 6, 7  limit of memory in KiB; 0 for LARGEST
 *
 * Then a file in parts has four bytes with the length of its directory, the directory and the chunks; a frame has four
 * bytes with the size of what it holds.
 */
#include "wf_internal.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEAD = 8, LARGEST = 4 << 20, MOST_OUT = 1 << 18, MOST_PAYLOADS = 4 };

static const uint8_t MAGIC[8] = {0x89, 'W', 'F', 'L', '\r', '\n', 0x1a, '\n'};

/* Memory */

typedef struct heap {
    size_t in_use, most, limit, calls, failing;
} heap;

static void *allocate(void *context, size_t size) {
    heap *own = (heap *)context;
    if (++own->calls == own->failing) return NULL;
    own->in_use += size;
    if (own->in_use > own->most) own->most = own->in_use;
    if (own->in_use > own->limit) abort();
    return malloc(size);
}

static void release(void *context, void *memory, size_t size) {
    heap *own = (heap *)context;
    if (size > own->in_use) abort();
    own->in_use -= size;
    free(memory);
}

static void *taken(size_t size) {
    void *found = malloc(size ? size : 1);
    if (found == NULL) abort();
    return found;
}

/* Sources */

typedef struct stream {
    const uint8_t *data;
    uint64_t size;
    size_t calls, failing;
} stream;

static int read_some(void *context, uint64_t at, void *to, size_t size) {
    stream *own = (stream *)context;
    if (++own->calls == own->failing) return 1;
    if (at > own->size || size > own->size - at) abort();
    memcpy(to, own->data + at, size);
    return 0;
}

/* What happened, as a number that has to be the same the next time. */

typedef struct seen {
    uint64_t hash;
} seen;

static void see(seen *all, const void *data, size_t size) {
    const uint8_t *at = (const uint8_t *)data;
    size_t i;
    for (i = 0; i < size; i++) all->hash = (all->hash ^ at[i]) * 0x100000001b3u;
}

static void see_error(seen *all, wf_code code, const wf_error *error) {
    size_t size = 0;
    while (size < sizeof error->message && error->message[size]) size++;
    if (size == sizeof error->message) abort(); /* it does not end */
    if (code != error->code) abort();
    if (code != WF_OK && size == 0) abort();
    see(all, &code, sizeof code);
    see(all, error->message, size);
}

static void see_tensor(seen *all, const wf_file *file, wf_kept *kept, size_t index, wf_type type) {
    wf_error error;
    wf_code code;
    size_t size;
    uint8_t *out;
    memset(&error, 0, sizeof error);
    size = wf_size(file, index, type, &error);
    if (size > MOST_OUT) return;
    out = (uint8_t *)taken(size);
    memset(out, 0, size);
    if (error.code == WF_OK) {
        code = wf_decode(file, kept, index, type, out, size, &error);
        if (code == WF_OK) see(all, out, size);
    } else {
        code = error.code;
    }
    see_error(all, code, &error);
    free(out);
}

static void see_file(seen *all, const wf_source *source, const wf_allocator *allocator, wf_type type) {
    wf_file *file = NULL;
    wf_error error;
    wf_kept kept;
    size_t i;
    wf_code code;
    memset(&error, 0, sizeof error);
    memset(&kept, 0, sizeof kept);
    code = wf_open(&file, source, allocator, 0, &error);
    see_error(all, code, &error);
    if (code != WF_OK) {
        if (file != NULL) abort();
        return;
    }
    memset(&error, 0, sizeof error);
    code = wf_verify(file, &error);
    see_error(all, code, &error);
    for (i = 0; i < wf_count(file) && i < 64; i++) {
        const wf_tensor *tensor = wf_at(file, i);
        see(all, tensor->name, tensor->name_size);
        see(all, tensor->shape, tensor->axes * sizeof *tensor->shape);
        if (wf_find(file, tensor->name, tensor->name_size) != i) abort();
        if (i % 4 == 0) wf_forget(file, &kept); /* a call without it does not count it */
        see_tensor(all, file, i % 4 ? &kept : NULL, i, WF_OWN);
        see_tensor(all, file, &kept, i, type);
    }
    wf_forget(file, &kept);
    wf_close(file);
}

static void see_shard(seen *all, const wf_source *source, const wf_allocator *allocator, wf_type type) {
    wf_payload payloads[MOST_PAYLOADS];
    wf_error error;
    size_t count = 0, i;
    wf_code code;
    memset(&error, 0, sizeof error);
    code = wf_payloads(source, allocator, payloads, MOST_PAYLOADS, &count, &error);
    see_error(all, code, &error);
    for (i = 0; code == WF_OK && i < count && i < MOST_PAYLOADS; i++) {
        wf_source payload = *source;
        payload.start = payloads[i].start;
        payload.size = payloads[i].size;
        see_file(all, &payload, allocator, type);
    }
}

static void see_frame(seen *all, const uint8_t *data, size_t size, int is_named, const wf_allocator *allocator) {
    wf_work work;
    wf_error error;
    wf_text nothing = {NULL, 0};
    size_t out_size;
    uint8_t *out;
    wf_code code;
    if (size < 4) return;
    out_size = wf_le32(data) % (MOST_OUT + 1);
    out = (uint8_t *)taken(out_size);
    memset(&work, 0, sizeof work);
    memset(&error, 0, sizeof error);
    work.allocator = allocator;
    work.error = &error;
    code = wf_told(&work, wf_unzstd(&work, data + 4, size - 4, nothing, is_named, out, out_size));
    if (code == WF_OK) see(all, out, out_size);
    see_error(all, code, &error);
    wf_give_all(&work);
    free(out);
}

/* A file in parts */

static void put_le(uint8_t *at, uint64_t value, int bytes) {
    while (bytes--) {
        *at++ = (uint8_t)value;
        value >>= 8;
    }
}

/* A whole number at `*at`, which goes on behind it; -1 where there is none. */
static int64_t number_at(const uint8_t *text, size_t size, size_t *at) {
    int64_t value = 0;
    size_t start = *at;
    while (*at < size && text[*at] >= '0' && text[*at] <= '9' && value < INT64_MAX / 16) {
        value = 10 * value + (text[(*at)++] - '0');
    }
    return *at == start ? -1 : value;
}

/* The directory with the checksums that the chunks have; `out` has room for 16 bytes more a line. Returns its size. */
static size_t with_checksums(const uint8_t *text, size_t size, const uint8_t *chunks, size_t chunks_size, uint8_t *out) {
    static const char KEY[] = "\"chunks\":[[\"";
    size_t at = 0, put = 0, from = 0;
    while (at < size && (size - at < sizeof KEY - 1 || memcmp(text + at, KEY, sizeof KEY - 1) != 0)) out[put++] = text[at++];
    while (at < size) {
        int64_t length, old;
        while (at < size && text[at] != ',') out[put++] = text[at++]; /* "chunks":[["s" or ["s" */
        if (at == size) break;
        out[put++] = text[at++];
        {
            size_t start = at;
            length = number_at(text, size, &at);
            memcpy(out + put, text + start, at - start);
            put += at - start;
        }
        if (length < 0 || at == size || text[at] != ',') break;
        out[put++] = text[at++];
        old = number_at(text, size, &at);
        if (old < 0 || (uint64_t)length > chunks_size - from) {
            put += (size_t)snprintf((char *)out + put, 12, "%u", 0u);
            break;
        }
        put += (size_t)snprintf((char *)out + put, 12, "%u", (unsigned)wf_crc32(0, chunks + from, (size_t)length));
        from += (size_t)length;
        while (at < size && text[at] != ']') out[put++] = text[at++]; /* ,count */
        if (size - at < 3 || text[at + 1] != ',') break;              /* the last line */
        memcpy(out + put, text + at, 2);
        put += 2;
        at += 2;
    }
    memcpy(out + put, text + at, size - at);
    return put + size - at;
}

static void put_header(uint8_t *file, unsigned minor, size_t packed, size_t text_size) {
    memcpy(file, MAGIC, 8);
    put_le(file + 8, 1, 2);
    put_le(file + 10, minor, 2);
    put_le(file + 12, packed, 4);
    put_le(file + 16, text_size, 4);
    put_le(file + 20, wf_crc32(wf_crc32(0, file, 20), file + 24, packed), 4);
}

/* A plain file: header, directory and chunks. Returns its size. */
static size_t put_plain(const uint8_t *data, size_t size, unsigned minor, uint8_t **file) {
    size_t directory = size < 4 ? 0 : wf_le32(data);
    if (size < 4) return 0;
    if (directory > size - 4) directory = size - 4;
    *file = (uint8_t *)taken(24 + size - 4);
    memcpy(*file + 24, data + 4, size - 4);
    put_header(*file, minor, directory, 0);
    return 24 + size - 4;
}

/* The file: header, the directory in a frame of raw blocks, and the chunks. Returns its size. */
static size_t put_together(const uint8_t *data, size_t size, unsigned minor, uint8_t **file) {
    size_t text_size = size < 4 ? 0 : wf_le32(data), chunks_size, packed, at;
    const uint8_t *text = data + 4, *chunks;
    uint8_t *fixed;
    if (size < 4) return 0;
    if (text_size > size - 4) text_size = size - 4;
    chunks = text + text_size;
    chunks_size = size - 4 - text_size;
    fixed = (uint8_t *)taken(8 * text_size + 64);
    text_size = with_checksums(text, text_size, chunks, chunks_size, fixed);
    *file = (uint8_t *)taken(24 + 16 + text_size + 3 * (text_size / 131072 + 1) + chunks_size);
    put_le(*file + 24, 0xFD2FB528u, 4);
    (*file)[28] = 0x80; /* a window, and four bytes for the size */
    (*file)[29] = 0x58; /* 2 MiB */
    put_le(*file + 30, text_size, 4);
    packed = 10;
    for (at = 0; at == 0 || at < text_size;) {
        size_t block = text_size - at < 131072 ? text_size - at : 131072;
        put_le(*file + 24 + packed, block << 3 | (at + block == text_size), 3);
        memcpy(*file + 24 + packed + 3, fixed + at, block);
        packed += 3 + block;
        at += block;
        if (block == 0) break;
    }
    put_header(*file, minor, packed, text_size);
    memcpy(*file + 24 + packed, chunks, chunks_size);
    free(fixed);
    return 24 + packed + chunks_size;
}

static uint64_t run(const uint8_t *data, size_t size) {
    heap memory;
    stream from;
    seen all = {0xcbf29ce484222325u};
    wf_allocator allocator = {allocate, release, NULL, 0};
    wf_source source;
    uint8_t *file = NULL, *copy;
    unsigned kind = data[0] == 4 ? 4 : data[0] % 4;
    wf_type type = (wf_type)(data[3] % 4);
    size_t whole = size - HEAD;
    memset(&memory, 0, sizeof memory);
    memset(&from, 0, sizeof from);
    memset(&source, 0, sizeof source);
    memory.failing = wf_le16(data + 4);
    memory.limit = wf_le16(data + 6) ? (size_t)wf_le16(data + 6) << 10 : LARGEST;
    allocator.context = &memory;
    allocator.limit = memory.limit;
    if (kind == 0) whole = put_together(data + HEAD, whole, data[1], &file);
    if (kind == 4) whole = put_plain(data + HEAD, whole, data[1], &file);
    copy = (uint8_t *)taken(whole); /* exactly, so that reads beyond it are seen */
    if (whole) memcpy(copy, file ? file : data + HEAD, whole);
    free(file);
    source.size = whole;
    source.data = copy;
    if (data[2] & 1) {
        from.data = copy;
        from.size = whole;
        from.failing = data[2] >> 1;
        source.data = NULL;
        source.read = read_some;
        source.context = &from;
    }
    if (kind == 3) see_frame(&all, copy, whole, data[1] & 1, &allocator);
    else if (kind == 2) see_shard(&all, &source, &allocator, type);
    else see_file(&all, &source, &allocator, type);
    if (memory.in_use) abort(); /* nothing may stay */
    free(copy);
    return all.hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t found;
    if (size < HEAD) return 0;
    found = run(data, size);
    if (size % 8 == 0 && run(data, size) != found) abort(); /* not all, for speed */
    return 0;
}
