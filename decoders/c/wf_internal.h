/* What the files of the reader share. SPDX-License-Identifier: MIT */
#ifndef WF_INTERNAL_H
#define WF_INTERNAL_H

#include "waterfill.h"

#include <stddef.h>
#include <string.h>

/* Whether there is code for vectors of AVX2, which is chosen when the processor has them; WF_SCALAR leaves it out. */
#if !defined(WF_SCALAR) && !defined(WF_SMALL) && defined(__x86_64__) && defined(__GNUC__)
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
#ifdef WF_SMALL /* the texts of all errors are more than a tenth of the program: their codes have to do, at the end of a call */
#define wf_fail(work, code, ...) ((void)sizeof wf_fail(work, code, __VA_ARGS__), (code))
wf_code wf_told(const wf_work *work, wf_code code);
#else
static inline wf_code wf_told(const wf_work *work, wf_code code) {
    (void)work;
    return code;
}
#endif
/* count * each bytes, which hold anything; NULL after a failure. */
void *wf_room(wf_work *work, uint64_t count, size_t each);
/* The same, zeroed. */
void *wf_take(wf_work *work, uint64_t count, size_t each);
void wf_give(wf_work *work, const void *memory);
void wf_give_all(wf_work *work);

/* A list that grows. */
typedef struct wf_list {
    void *items;
    size_t count, room, each;
} wf_list;

/* Room for so many items of a list, which has no more. */
wf_code wf_reserve(wf_work *work, wf_list *list, size_t count);
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

/* A number, a text or null. */
typedef struct wf_scalar {
    enum { WF_NULL, WF_INTEGER, WF_REAL, WF_TEXT } kind;
    double value;     /* of a number */
    int is_beyond;    /* a number beyond all finite float64 */
    int is_whole;     /* a whole number that `whole` holds */
    int64_t whole;
    wf_text text;
} wf_scalar;

size_t wf_utf8(const char *text, size_t size); /* bytes of the character that is next; 0 where it is none */
size_t wf_letters(wf_text text);               /* characters of UTF-8 */

/* JSON, read from left to right; strings become UTF-8 in place. */

typedef struct wf_json {
    wf_work *work;
    char *text;
    size_t size, at;
} wf_json;

wf_code wf_json_fail(wf_json *json, const char *expected);
wf_code wf_json_open(wf_json *json, char bracket);
wf_code wf_json_more(wf_json *json, char bracket, int *first, int *more);
wf_code wf_json_whole(wf_json *json, int64_t least, int64_t most, int64_t *value);
wf_code wf_json_bool(wf_json *json, uint8_t *value);
wf_code wf_json_text(wf_json *json, wf_text *text);
wf_code wf_json_scalar(wf_json *json, wf_scalar *scalar);
wf_code wf_json_key(wf_json *json, wf_text *key);
int wf_json_is_null(wf_json *json); /* reads it if it is */
wf_code wf_json_end(wf_json *json);

/* A directory of plain bytes, read from left to right. */

typedef struct wf_bytes {
    const uint8_t *at, *end;
} wf_bytes;

typedef struct wf_open_list {
    uint64_t left; /* members */
    int is_rows;
} wf_open_list;

typedef struct wf_rows {
    wf_work *work;
    const uint8_t *first, *first_template;
    wf_bytes all, template; /* what is left of the directory, and of the template of a row */
    int is_row;
    uint64_t texts, templates, left; /* `left`: values that may still come */
    uint32_t *places;                /* [texts] */
    char *joined;                    /* where the next text of a row goes */
    uint64_t room;                   /* for these */
    wf_text held;                    /* the last of these */
    wf_open_list lists[5];
    unsigned depth;
} wf_rows;

/* most: bytes that its joined texts may have. */
wf_code wf_rows_begin(wf_rows *rows, wf_work *work, const uint8_t *data, size_t size, uint64_t most);

/* Either form. WF_PLAIN leaves out all that plain files do not need: JSON, zstandard, shards. */

typedef struct wf_tree {
    wf_work *work;
    int is_plain;
    wf_rows rows;
#ifndef WF_PLAIN
    wf_json json;
#endif
} wf_tree;

wf_code wf_tree_fail(wf_tree *tree, const char *expected);
wf_code wf_tree_open(wf_tree *tree, char bracket);
/* Whether there is another member before the closing bracket, which is read otherwise. `first`: 1 at first. */
wf_code wf_tree_more(wf_tree *tree, char bracket, int *first, int *more);
uint64_t wf_tree_left(const wf_tree *tree); /* members of the list that was just opened; 0 where that is not known */
wf_code wf_tree_whole(wf_tree *tree, int64_t least, int64_t most, int64_t *value);
wf_code wf_tree_bool(wf_tree *tree, uint8_t *value);
wf_code wf_tree_text(wf_tree *tree, wf_text *text);
wf_code wf_tree_scalar(wf_tree *tree, wf_scalar *scalar);
wf_code wf_tree_key(wf_tree *tree, wf_text *key);
int wf_tree_is_null(wf_tree *tree); /* reads it if it is */
wf_code wf_tree_end(wf_tree *tree);

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
    const int16_t *differences;
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
    const int16_t *angles;
} wf_basis;

typedef struct wf_numbered { /* a line of adaptive models or of lanes */
    uint64_t tensor;
    uint32_t count;
    uint64_t number;
} wf_numbered;

typedef struct wf_coded {
    char kind; /* u, p, r or c */
    uint8_t families[2], log_states, log_span, zero, down, mantissa, is_signed, lanes, is_adaptive;
    int8_t shrink[3], codes[6];
    int16_t bases[2], step, least;
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
    const int16_t *steps[3], *spreads[3]; /* scales of axes; NULL for none */
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
    int is_plain; /* whether exact bytes are in their chunks as they are */
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

/* Read a directory, and check what can be checked without the chunks. `minor`: of the file. */
wf_code wf_read_directory(wf_tree *tree, wf_directory *directory, unsigned minor);
/* Find an entry by its name; their number where there is none. */
size_t wf_find_entry(const wf_directory *directory, wf_text name);
/* How many symbols follow each other before a chunk may begin. */
uint64_t wf_span(const wf_coded *coded);
uint64_t wf_line_length(const wf_coded *coded);
/* Whether the scales of an axis with a code are in the file. */
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
/* The same where they are in memory, if they are. */
wf_code wf_bytes_at(wf_work *work, const wf_source *source, uint64_t at, uint64_t size, const uint8_t **data);
wf_code wf_check_chunk(wf_work *work, const wf_file *file, size_t chunk, const uint8_t *data);
/* The bytes of a chunk, checked. */
wf_code wf_read_chunk(wf_work *work, const wf_file *file, size_t chunk, const uint8_t **data);
/* The number of the last item that begins at or before a place, of those that have something. */
size_t wf_coded_at(const wf_file *file, uint64_t at);

/* A part of a tensor in a chunk. */
typedef struct wf_piece {
    const wf_coded *coded;
    uint64_t at, count; /* in the tensor */
} wf_piece;

/* The part that begins at a place of all symbols and ends at another one; `n` is its tensor or one before that. */
wf_piece wf_piece_at(const wf_file *file, size_t *n, uint64_t at, uint64_t stop);

/* Where elements are: row, channel and tap of each, in the order of a stream. */
typedef struct wf_walk {
    const wf_coded *coded;
    const int16_t *const *scales;
    uint64_t row, channel, tap;
} wf_walk;

wf_walk wf_walk_from(const wf_coded *coded, const int16_t *const *scales, uint64_t at);

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

#ifdef WF_SMALL /* tables are looked up where they are */

/* An own table: where the slots of each symbol begin, and where those of the last one end. */
typedef struct wf_own {
    uint16_t starts[257];
} wf_own;

/* A row of the bank, or an own table. */
typedef struct wf_table {
    const uint8_t *row;
    const wf_own *own;
    unsigned kind;
} wf_table;

#else

/* A table as a decoder looks it up: small, for many of them are to be in a cache. */
typedef struct wf_own {
    uint32_t symbols[256]; /* frequency << 16 | first slot */
    uint8_t of[4096];      /* the symbol of a slot: of the bank a high part + 128 or 0 for an escape */
} wf_own;

typedef const wf_own *wf_table;

/* Tables of the bank, made when they are first needed. */
typedef struct wf_bank {
    wf_own *tables[3 * 513];
} wf_bank;
#endif

typedef struct wf_stream {
    wf_work *work;
#ifndef WF_SMALL
    wf_bank *bank;
#endif
    const uint8_t *words;
    size_t at, end;
    uint32_t states[32];
    int is_short; /* whether the words have ended too early */
} wf_stream;

wf_code wf_stream_open(wf_stream *stream, wf_work *work, const uint8_t *data, size_t size, unsigned lanes);
wf_code wf_stream_end(const wf_stream *stream);
unsigned wf_last_magnitude(unsigned kind, unsigned family, unsigned scale);

#ifdef WF_SMALL
wf_code wf_bank_table(wf_stream *stream, unsigned kind, unsigned family, unsigned scale, wf_table *table);
static inline wf_table wf_table_of(const wf_own *own) {
    wf_table table = {NULL, own, 0};
    return table;
}
#else
/* Make a table; NULL after a failure. */
wf_table wf_make_table(wf_stream *stream, unsigned kind, unsigned row);
static inline wf_code wf_bank_table(wf_stream *stream, unsigned kind, unsigned family, unsigned scale, wf_table *table) {
    *table = stream->bank->tables[kind * 513 + family * 57 + scale];
    if (*table == NULL) *table = wf_make_table(stream, kind, family * 57 + scale);
    return *table ? WF_OK : WF_MEMORY;
}
static inline wf_table wf_table_of(const wf_own *own) {
    return own;
}
#endif

/* Put the next word into a state that is below 2^16; without a branch on the state, which no processor foresees. */
static inline uint32_t wf_refilled(wf_stream *stream, uint32_t x) {
    uint32_t is_low = x < 1u << 16, word = 0;
    if (stream->at < stream->end) word = wf_le16(stream->words + 2 * stream->at);
    else stream->is_short |= (int)is_low;
    stream->at += is_low;
    return x << (16 * is_low) | (word & (0u - is_low));
}
#ifdef WF_SMALL
uint32_t wf_pull(wf_stream *stream, unsigned lane, wf_table table);
#else
static inline uint32_t wf_pull(wf_stream *stream, unsigned lane, wf_table table) {
    uint32_t x = stream->states[lane], slot = x & 4095, symbol = table->of[slot], found = table->symbols[symbol];
    stream->states[lane] = wf_refilled(stream, (found >> 16) * (x >> 12) + slot - (found & 0xFFFF));
    return symbol;
}
#endif
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
/* An own table: a symbol is counted from the first one, `count` is the escape. */
wf_code wf_make_own(wf_work *work, const wf_table_line *table, wf_own *own, int *has_escape);

/* A run of a stream: where it is, and how many symbols of it were read. */
typedef struct wf_run {
    wf_stream stream;
    unsigned place;
} wf_run;

/* Integers of the bank, one after the other: where each of their runs is. */
typedef struct wf_integers {
    wf_run high, low[8], sizes, bytes;
} wf_integers;

/* The classes of some integers, which can be gone through again and again. */
typedef struct wf_classes {
    void (*begin)(struct wf_classes *classes);
    /* The next one; `*is_there` is 0 at the end. */
    wf_code (*next)(struct wf_classes *classes, wf_class *found, int *is_there);
} wf_classes;

/* Find the runs of integers, which are the last ones of a stream, and check that it ends where they do. */
wf_code wf_integers_find(wf_integers *integers, const wf_stream *stream, wf_classes *classes);
/* Decode the next integer. */
wf_code wf_integer(wf_integers *integers, wf_class class, int32_t *value);

/* What codes the indices of elements whose scales have one sum, in each of the two subsets. */
typedef struct wf_pair {
    wf_table of[2];
    uint8_t low[2], last[2], is_made, is_coded; /* `is_coded`: 0 where elements stand aside, in subset 0 */
} wf_pair;

/* A path through a trellis: what codes it, and where it is. */
typedef struct wf_path {
    wf_stream *stream;
    const wf_coded *coded;
#ifdef WF_SMALL
    wf_pair last; /* of the last sum of scales */
    int32_t last_sum;
#else
    wf_pair *sums; /* of every sum of scales */
#endif
    unsigned flips, picks; /* h0 and h1, halved */
    unsigned kinds[2];
    int is_half, is_beyond; /* whether subset 1 is between the whole numbers; whether an index was out of range */
    unsigned state;
    uint64_t left, done; /* elements until the state is 0 again, and before */
    wf_walk walk;
} wf_path;

/* Begin at a place of a tensor where a path does. */
wf_code wf_path_begin(wf_path *path, wf_stream *stream, const wf_coded *coded, uint64_t at);
wf_code wf_path_next(wf_path *path, uint64_t count, int32_t *levels);

/* Decode the part from `at` on of a tensor with lanes, or some rows of one with an adaptive model. */
wf_code wf_read_lanes(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels);
wf_code wf_read_adaptive(wf_stream *stream, const wf_coded *coded, uint64_t count, int32_t *values);

/* Check the symbols of a part of a tensor with a codebook. */
wf_code wf_check_book(wf_work *work, const wf_coded *coded, const int32_t *values, uint64_t count);

#ifdef WF_SMALL

/* Symbols of a chunk, one after the other. */
typedef struct wf_sequence wf_sequence;

wf_code wf_sequence_begin(wf_work *work, const wf_file *file, size_t chunk, wf_sequence **found);
/* The place of the next symbol among all of the file. */
uint64_t wf_sequence_at(const wf_sequence *sequence);
/* Decode the next symbols, at most `count`, and no more than its tensor has; gives how many. */
wf_code wf_sequence_next(wf_sequence *sequence, wf_work *work, uint64_t count, int32_t *values, size_t *some);
#else
/* Decode all symbols of a chunk. */
wf_code wf_read_symbols(wf_work *work, const wf_file *file, size_t chunk, int32_t *values);
#endif
/* All symbols of a chunk, line by line: for programs that look into a file. */
wf_code wf_symbols(const wf_file *file, size_t number, int32_t *values, size_t count, wf_error *error);

/* Values */

/* Turn little-endian values into those of the machine, or back. */
void wf_swap(void *values, uint64_t size, wf_type type);
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
