/*
 * Reads .wf files, version 1.2 (docs/format.md), in C99 and with nothing but <string.h>.
 *
 * There is no global state. Memory comes from the caller's allocator alone. Any number of threads may decode from one
 * open file, each with a `wf_kept` of its own. Tensors have the same bits as those of the Python package: compile with
 * -ffp-contract=off and without -ffast-math, for a machine that computes in the precision of its types.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef WATERFILL_H
#define WATERFILL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_code {
    WF_OK,
    WF_FORMAT,   /* the file is damaged, or no .wf file */
    WF_VERSION,  /* the file has a version that this reader does not know */
    WF_MEMORY,   /* the allocator has no more memory, or its limit is reached */
    WF_READ,     /* the read callback failed */
    WF_ARGUMENT, /* the caller asks for what cannot be */
    WF_TOO_LARGE /* the tensors take more bytes than the caller allows */
} wf_code;

/* What went wrong, in one line. */
typedef struct wf_error {
    wf_code code;
    char message[256];
} wf_error;

/* Where memory comes from. */
typedef struct wf_allocator {
    void *(*allocate)(void *context, size_t size); /* aligned for any type; NULL where there is no more */
    void (*release)(void *context, void *memory, size_t size);
    void *context;
    size_t limit; /* most bytes of an open file, one call and its `wf_kept`; 0 for any number */
} wf_allocator;

/* Where the bytes of a file are: in memory, or behind a callback. */
typedef struct wf_source {
    const void *data; /* all of them, there until the file is closed; NULL for a callback */
    uint64_t size;    /* of the file */
    int (*read)(void *context, uint64_t at, void *to, size_t size); /* 0, or anything else for an error */
    void *context;
    uint64_t start; /* where the file begins in the data or behind the callback: 0, but for payloads */
} wf_source;

/* A whole .wf file in a shard of a compressed model directory. */
typedef struct wf_payload {
    uint64_t number;      /* n of its name, waterfill_n */
    uint64_t start, size; /* in the shard: `start` and `size` of its source */
} wf_payload;

typedef enum wf_type {
    WF_FLOAT64,
    WF_FLOAT32,
    WF_FLOAT16,
    WF_BFLOAT16,
    WF_FLOAT8_E4M3FN,
    WF_FLOAT8_E5M2,
    WF_FLOAT8_E4M3FNUZ,
    WF_FLOAT8_E5M2FNUZ,
    WF_FLOAT8_E8M0FNU,
    WF_COMPLEX32,
    WF_COMPLEX64,
    WF_COMPLEX128,
    WF_INT8,
    WF_INT16,
    WF_INT32,
    WF_INT64,
    WF_UINT8,
    WF_UINT16,
    WF_UINT32,
    WF_UINT64,
    WF_BOOL,
    WF_TYPES,
    WF_OWN = WF_TYPES /* of `wf_decode`: the type that the tensor has in the file */
} wf_type;

typedef struct wf_tensor {
    const char *name; /* UTF-8, not ended by a zero */
    size_t name_size;
    wf_type type;
    size_t axes;
    const uint64_t *shape; /* [axes] */
    uint64_t values;       /* product of the shape */
    size_t tied_to;        /* the earlier tensor that it is the same as, or its own number */
} wf_tensor;

typedef struct wf_file wf_file;

/* What a thread keeps of one file between calls: the last chunks that small tensors share. All zeros at first. */
typedef struct wf_kept {
    struct {
        size_t chunk; /* its number plus one; 0 for none */
        void *block;
        const void *data;
    } of[2]; /* of symbols and of exact bytes, which take turns in most files */
} wf_kept;

/*
 * Open a file: header and directory are read and checked, scales, own tables and codebooks decoded.
 * max_bytes: most bytes that all tensors may take in their own types, tied ones once; 0 for any number.
 * error: filled where something is wrong; may be NULL here and below.
 */
wf_code wf_open(wf_file **file, const wf_source *source, const wf_allocator *allocator, uint64_t max_bytes,
                wf_error *error);
void wf_close(wf_file *file);

/*
 * Find the payloads of a shard (`waterfill*.safetensors` of a directory), in the order of the header. What is checked is
 * its form, and that every payload lies within the shard; not that they are apart, or that their numbers differ.
 * payloads: [room], filled as far as it goes; count: of all.
 */
wf_code wf_payloads(const wf_source *shard, const wf_allocator *allocator, wf_payload *payloads, size_t room,
                    size_t *count, wf_error *error);

size_t wf_count(const wf_file *file);
const wf_tensor *wf_at(const wf_file *file, size_t index); /* in the order of the state dict */
size_t wf_find(const wf_file *file, const char *name, size_t name_size); /* `wf_count` where there is none */

/* Check the checksums of all chunks. `wf_decode` checks those that it reads. */
wf_code wf_verify(const wf_file *file, wf_error *error);

/* Bytes of a tensor in a type; 0 with an error where it does not fit into a size_t. */
size_t wf_size(const wf_file *file, size_t index, wf_type type, wf_error *error);

/*
 * Decode a tensor, row-major, in the byte order of the machine.
 * kept: of this thread; NULL to keep nothing.
 * type: WF_OWN; or for floating-point tensors WF_FLOAT64, WF_FLOAT32, WF_FLOAT16 or WF_BFLOAT16: the value in its own
 * type, rounded to nearest, to even; what is beyond the range becomes infinite.
 * out: aligned for the type; size: of it in bytes, at least `wf_size`.
 */
wf_code wf_decode(const wf_file *file, wf_kept *kept, size_t index, wf_type type, void *out, size_t size,
                  wf_error *error);

/* Decode all tensors, tensor n into outs[n], which has sizes[n] bytes; those with outs[n] NULL are left out. */
wf_code wf_decode_all(const wf_file *file, wf_type type, void *const *outs, const size_t *sizes, wf_error *error);

/* Release what is kept. */
void wf_forget(const wf_file *file, wf_kept *kept);

const char *wf_type_name(wf_type type); /* as PyTorch has it, such as "float32" */
size_t wf_type_size(wf_type type);      /* bytes of a value */

#ifdef __cplusplus
}
#endif
#endif
