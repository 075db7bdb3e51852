/* What the files of the reader share. SPDX-License-Identifier: MIT */
#ifndef WF_INTERNAL_H
#define WF_INTERNAL_H

#include "waterfill.h"

#include <string.h>

/* Whether there is code for vectors of AVX2, which is chosen when the processor has them; WF_SCALAR leaves it out. */
#if !defined(WF_SCALAR) && defined(__x86_64__) && defined(__GNUC__)
#define WF_VECTORS 1
#else
#define WF_VECTORS 0
#endif

#define WF_TRY(call)                                                                                                   \
    do {                                                                                                               \
        wf_code code_ = (call);                                                                                        \
        if (code_ != WF_OK) return code_;                                                                              \
    } while (0)

#define WF_NEVER UINT64_MAX /* a number that is too large to be one */
#define WF_MOST_VALUES ((uint64_t)1 << 42)

/* Memory and errors */

typedef struct wf_text {
    const char *data;
    size_t size;
} wf_text;

/* A block of memory with its place in the list of an arena. */
typedef union wf_block {
    struct {
        union wf_block *next;
        size_t size; /* with this head */
    } head;
    uint64_t align_integer;
    double align_float;
} wf_block;

/* All memory of one purpose, which is released together; and where errors go. */
typedef struct wf_work {
    const wf_allocator *allocator;
    size_t used; /* bytes, with those of the open file */
    wf_block *blocks;
    wf_error *error;
} wf_work;

/* Fail with a text in which %s is a string, %t a `const wf_text *` and %u a uint64_t. */
wf_code wf_fail(wf_work *work, wf_code code, const char *text, ...);
#ifdef WF_SMALL /* the texts of all errors are more than a tenth of the program: their codes have to do */
wf_code wf_fail_shortly(wf_work *work, wf_code code);
#define wf_fail(work, code, ...) ((void)sizeof wf_fail(work, code, __VA_ARGS__), wf_fail_shortly(work, code))
#endif
/* count * each bytes, which hold anything; NULL after a failure. */
void *wf_room(wf_work *work, uint64_t count, size_t each);
/* The same, zeroed. */
void *wf_take(wf_work *work, uint64_t count, size_t each);
void wf_give(wf_work *work, void *memory);
void wf_give_all(wf_work *work);

/* A list that grows. */
typedef struct wf_list {
    void *items;
    size_t count, room, each;
} wf_list;

/* Another item at the end, zeroed; NULL after a failure. */
void *wf_push(wf_work *work, wf_list *list);

/* Sums and products that are WF_NEVER where they do not fit. */
static inline uint64_t wf_plus(uint64_t a, uint64_t b) {
    return a > WF_NEVER - b ? WF_NEVER : a + b;
}
static inline uint64_t wf_times(uint64_t a, uint64_t b) {
    return b != 0 && a > WF_NEVER / b ? WF_NEVER : a * b;
}
static inline uint64_t wf_least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint32_t wf_le16(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}
static inline uint32_t wf_le32(const uint8_t *at) {
    return wf_le16(at) | wf_le16(at + 2) << 16;
}
static inline uint64_t wf_le64(const uint8_t *at) {
    return wf_le32(at) | (uint64_t)wf_le32(at + 4) << 32;
}

static inline float wf_float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t wf_bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint32_t wf_crc32(uint32_t crc, const uint8_t *data, size_t size); /* as zlib has it; 0 at first */

/*
 * Unpack one zstandard frame that holds `out_size` bytes and has nothing behind it.
 * before: what it is compressed after. is_named: whether it has to name its size.
 */
wf_code wf_unzstd(wf_work *work, const uint8_t *data, size_t size, wf_text before, int is_named, uint8_t *out,
                  size_t out_size);

/* JSON, read from left to right; strings become UTF-8 in place. */

typedef struct wf_json {
    wf_work *work;
    char *text;
    size_t size, at;
} wf_json;

/* A number, a text or null. */
typedef struct wf_scalar {
    enum { WF_NULL, WF_INTEGER, WF_REAL, WF_TEXT } kind;
    double value;     /* of a number */
    int is_beyond;    /* a whole number beyond all finite float64 */
    int is_whole;     /* a whole number that `whole` holds */
    int64_t whole;
    wf_text text;
} wf_scalar;

wf_code wf_json_fail(wf_json *json, const char *expected);
wf_code wf_json_open(wf_json *json, char bracket);
/* Whether there is another member before the closing bracket, which is read otherwise. `first`: 1 at first. */
wf_code wf_json_more(wf_json *json, char bracket, int *first, int *more);
wf_code wf_json_whole(wf_json *json, int64_t least, int64_t most, int64_t *value);
wf_code wf_json_bool(wf_json *json, uint8_t *value);
wf_code wf_json_text(wf_json *json, wf_text *text);
wf_code wf_json_scalar(wf_json *json, wf_scalar *scalar);
wf_code wf_json_key(wf_json *json, wf_text *key);
int wf_json_is_null(wf_json *json); /* reads it if it is */
wf_code wf_json_end(wf_json *json);
size_t wf_letters(wf_text text); /* characters of UTF-8 */

/* The directory */

typedef struct wf_entry {
    wf_tensor tensor;
    size_t shape_at; /* in the list of lengths */
    char how;
    uint64_t groups; /* of `t`, else 1 */
    double number;   /* of `c` and `v` */
    wf_text text;    /* of `x`, `=` and `m` */
    size_t coded;    /* number among coded tensors */
    size_t other;    /* of `m`: the entry of its scale */
    uint64_t bytes_at; /* of `x`: the first of its bytes among all */
} wf_entry;

typedef struct wf_table_line {
    int64_t first;
    uint32_t count;
    uint8_t code;
    const int32_t *differences;
} wf_table_line;

typedef struct wf_table_lines {
    uint64_t tensor;
    size_t count;
    wf_table_line tables[2];
} wf_table_lines;

typedef struct wf_basis {
    char kind; /* c, f, r or s */
    uint64_t tensor;
    uint8_t axis;
    uint32_t block;      /* of `c` */
    uint32_t directions; /* of `r` */
    uint8_t code;
    uint64_t of; /* of `s` */
    uint64_t count;
    const int32_t *angles;
} wf_basis;

typedef struct wf_numbered { /* a line of adaptive models or of lanes */
    uint64_t tensor;
    uint32_t count;
    uint64_t number;
} wf_numbered;

typedef struct wf_coded {
    char kind; /* u, p, r or c */
    uint8_t families[2], log_states, log_span, zero, down, mantissa, is_signed, lanes, is_adaptive;
    int32_t bases[2], step, least;
    int32_t shrink[3], codes[6];
    int64_t offset;
    uint32_t size;
    int32_t first;
    size_t entry;
    uint64_t axes[3], values;
    uint64_t at;    /* the first of its symbols among all */
    uint64_t lines; /* of a lane */
    uint32_t width; /* of an adaptive model */
    const wf_table_lines *tables;
    const wf_basis *basis;
    const int32_t *steps[3], *spreads[3]; /* scales of axes; NULL for none */
    const float *book;
} wf_coded;

typedef struct wf_chunk {
    char kind;
    uint32_t crc;
    uint64_t size, count;
    uint64_t offset; /* in the file */
    uint64_t at;     /* the first of its units among those of its kind */
} wf_chunk;

typedef struct wf_directory {
    wf_list entries, lengths, coded, chunks, tables, adaptive, bases, lanes, rates;
    int has_limit;
    size_t *by_name; /* entries sorted by name */
    uint64_t needed[4], angles;
    size_t kinds[5]; /* where the chunks of a, c, s and x begin, and the end */
} wf_directory;

struct wf_file {
    wf_allocator allocator;
    wf_source source;
    wf_work work;
    wf_directory directory;
};

#define WF_ITEMS(list, type) ((type *)(list).items)

static inline const wf_entry *wf_entries(const wf_file *file) {
    return WF_ITEMS(file->directory.entries, const wf_entry);
}
static inline const wf_coded *wf_all_coded(const wf_file *file) {
    return WF_ITEMS(file->directory.coded, const wf_coded);
}
static inline const wf_chunk *wf_chunks(const wf_file *file) {
    return WF_ITEMS(file->directory.chunks, const wf_chunk);
}

/* Read a directory from its text, and check what can be checked without the chunks. `minor`: of the file. */
wf_code wf_read_directory(wf_work *work, wf_directory *directory, char *text, size_t size, unsigned minor);
/* Find an entry by its name; their number where there is none. */
size_t wf_find_entry(const wf_directory *directory, wf_text name);
/* How many symbols follow each other before a chunk may begin. */
uint64_t wf_span(const wf_coded *coded);
uint64_t wf_line_length(const wf_coded *coded);
/* How many values the side vector of a code has. */
static inline int wf_is_stored(int32_t code) {
    return code != -1 && code != -2;
}
wf_code wf_angles_of(wf_work *work, const wf_basis *basis, const wf_coded *coded, const wf_entry *entry,
                     uint64_t *count);
/* Decode scales, own tables, angles and codebooks of an open file, and check them. */
wf_code wf_read_side(wf_file *file);

/* Chunks */

/* Read bytes of a source. */
wf_code wf_read_at(wf_work *work, const wf_source *source, uint64_t at, void *to, size_t size);
/* The bytes of a chunk, checked. */
wf_code wf_read_chunk(wf_work *work, const wf_file *file, size_t chunk, const uint8_t **data);
/* The number of the last item that begins at or before a place, of those that have something. */
size_t wf_coded_at(const wf_file *file, uint64_t at);

/* Where elements are: row, channel and tap of each, in the order of a stream. */
typedef struct wf_walk {
    const wf_coded *coded;
    const int32_t *const *scales;
    uint64_t row, channel, tap;
} wf_walk;

wf_walk wf_walk_from(const wf_coded *coded, const int32_t *const *scales, uint64_t at);

static inline int32_t wf_walk_sum(const wf_walk *walk) {
    int32_t sum = 0;
    if (walk->scales[0]) sum += walk->scales[0][walk->row];
    if (walk->scales[1]) sum += walk->scales[1][walk->channel];
    if (walk->scales[2]) sum += walk->scales[2][walk->tap];
    return sum;
}
static inline void wf_walk_along(wf_walk *walk) { /* the next place of a row */
    if (++walk->tap < walk->coded->axes[2]) return;
    walk->tap = 0;
    walk->channel++;
}
static inline void wf_walk_next(wf_walk *walk) {
    if (walk->coded->down) {
        if (++walk->row < walk->coded->axes[0]) return;
        walk->row = 0;
        wf_walk_along(walk);
        return;
    }
    wf_walk_along(walk);
    if (walk->channel < walk->coded->axes[1]) return;
    walk->channel = 0;
    walk->row++;
}

/* Streams */

enum { WF_WHOLE, WF_HALF, WF_ZERO };

/* A table as a decoder looks it up: small, for many of them are to be in a cache. */
typedef struct wf_slots {
    uint32_t symbols[256]; /* frequency << 16 | first slot */
    uint8_t of[4096];      /* the symbol of a slot: of the bank a high part + 128 or 0 for an escape */
} wf_slots;

/* Tables of the bank, made when they are first needed. */
typedef struct wf_bank {
    wf_slots *slots[3 * 513];
} wf_bank;

typedef struct wf_stream {
    wf_work *work;
    wf_bank *bank;
    const uint8_t *words;
    size_t at, end;
    uint32_t states[32];
    int is_short; /* whether the words have ended too early */
} wf_stream;

wf_code wf_stream_open(wf_stream *stream, wf_work *work, const uint8_t *data, size_t size, unsigned lanes);
wf_code wf_stream_end(const wf_stream *stream);
/* Make a table; NULL after a failure. */
const wf_slots *wf_make_slots(wf_stream *stream, unsigned kind, unsigned row);
static inline const wf_slots *wf_slots_of(wf_stream *stream, unsigned kind, unsigned family, unsigned scale) {
    const wf_slots *slots = stream->bank->slots[kind * 513 + family * 57 + scale];
    return slots ? slots : wf_make_slots(stream, kind, family * 57 + scale);
}
unsigned wf_last_magnitude(unsigned kind, unsigned family, unsigned scale);

/* Put the next word into a state that is below 2^16; without a branch on the state, which no processor foresees. */
static inline uint32_t wf_refilled(wf_stream *stream, uint32_t x) {
    uint32_t is_low = x < 1u << 16, word = 0;
    if (stream->at < stream->end) word = wf_le16(stream->words + 2 * stream->at);
    else stream->is_short |= (int)is_low;
    stream->at += is_low;
    return x << (16 * is_low) | (word & (0u - is_low));
}
static inline uint32_t wf_pull(wf_stream *stream, unsigned lane, const wf_slots *slots) {
    uint32_t x = stream->states[lane], slot = x & 4095, symbol = slots->of[slot], found = slots->symbols[symbol];
    stream->states[lane] = wf_refilled(stream, (found >> 16) * (x >> 12) + slot - (found & 0xFFFF));
    return symbol;
}
static inline uint32_t wf_pull_uniform(wf_stream *stream, unsigned lane, unsigned bits) {
    uint32_t x = stream->states[lane], slot = x & 4095;
    unsigned rest = 12 - bits;
    stream->states[lane] = wf_refilled(stream, (x >> 12 << rest) + (slot & ((1u << rest) - 1)));
    return slot >> rest;
}

wf_code wf_short(wf_work *work);
wf_code wf_beyond(wf_work *work);

/* Class of an integer of a run: family, scale and number of low bits. */
typedef uint32_t wf_class;
static inline wf_class wf_class_of(int32_t exponent, unsigned family) {
    int32_t low = exponent > 49 ? (exponent - 49) / 8 : 0, scale = exponent - 8 * low;
    scale = scale < 0 ? 0 : scale > 56 ? 56 : scale;
    return (uint32_t)low << 16 | (family * 57 + (uint32_t)scale);
}
/* Decode integers of the bank, with their low bits and escapes. */
wf_code wf_integers(wf_stream *stream, const wf_class *classes, uint64_t count, int32_t *values);
/* An own table as slots: a symbol is counted from the first one, `count` is the escape. */
wf_code wf_own_slots(wf_work *work, const wf_table_line *table, wf_slots *slots, int *has_escape);

/* Decode the part from `at` on of a tensor with a path, with lanes or an adaptive model. */
wf_code wf_read_path(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels);
wf_code wf_read_lanes(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels);
wf_code wf_read_adaptive(wf_stream *stream, const wf_coded *coded, uint64_t count, int32_t *values);

/* Decode a chunk of symbols. */
/* All symbols of a chunk, line by line: for programs that look into a file. */
wf_code wf_symbols(const wf_file *file, size_t number, int32_t *values, size_t count, wf_error *error);
wf_code wf_read_symbols(wf_work *work, const wf_file *file, size_t chunk, int32_t *values);

/* Values */

/* Values of symbols that stand at a place of a tensor's stream, all in one line of it. */
void wf_values(const wf_coded *coded, const int32_t *symbols, uint64_t at, size_t count, float *values);
uint16_t wf_to_float16(float value);
float wf_from_float16(uint16_t bits);
uint16_t wf_to_bfloat16(float value);
float wf_from_bfloat16(uint16_t bits);
/* A value as a decoded tensor of a floating-point type has it: clipped to what is finite, rounded. */
float wf_in_type(double value, wf_type type);
/* Put a value into an array of a floating-point type. */
void wf_put(void *out, wf_type type, uint64_t at, double value);
/* Put values, as a tensor of the type `own` has them, into an array of a floating-point type, `stride` apart. */
void wf_put_run(void *out, wf_type type, wf_type own, uint64_t at, uint64_t stride, const float *values, size_t count);

/* Turn coefficients of a matrix [out, channels, taps] back into values. */
wf_code wf_turn_back(wf_work *work, const wf_coded *coded, const wf_entry *entry, float *matrix);

#endif
