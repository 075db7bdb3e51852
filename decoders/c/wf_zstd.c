/*
 * Unpacks zstandard frames (RFC 8878): raw, repeated and compressed blocks, contents after a dictionary of raw bytes,
 * checksums. With -DWF_SYSTEM_ZSTD the system's library does it, with memory of its own.
 *
 * SPDX-License-Identifier: MIT
 */
#include "wf_internal.h"

#ifndef WF_PLAIN

#define MAGIC 0xFD2FB528u
#define LARGEST_BLOCK (1u << 17)
#define LARGEST_STREAMED ((uint64_t)1 << 27) /* window of a frame that does not name its size */

static wf_code damaged(wf_work *work, const char *what) {
    return wf_fail(work, WF_FORMAT, "a frame cannot be decompressed (%s)", what);
}

typedef struct frame {
    uint64_t size, window; /* size: WF_NEVER where it is not named */
    int has_checksum;
    size_t head; /* bytes of the header */
} frame;

static uint64_t little_endian(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | at[bytes];
    return value;
}

static wf_code read_header(wf_work *work, const uint8_t *data, size_t size, frame *found) {
    static const uint8_t id_bytes[4] = {0, 1, 2, 4}, size_bytes[4] = {0, 2, 4, 8};
    unsigned what, ids, sizes, is_single;
    size_t at = 5;
    memset(found, 0, sizeof *found);
    if (size < 6 || wf_le32(data) != MAGIC) return damaged(work, "it is none");
    what = data[4];
    is_single = what >> 5 & 1;
    ids = id_bytes[what & 3];
    sizes = size_bytes[what >> 6];
    if (sizes == 0) sizes = is_single;
    found->head = 5 + !is_single + ids + sizes;
    if (what & 8) return damaged(work, "a reserved bit is set");
    if (size < found->head) return damaged(work, "its header is cut");
    found->has_checksum = what >> 2 & 1;
    found->window = 0;
    if (!is_single) {
        unsigned log = 10 + (data[at] >> 3);
        if (log > 31) return damaged(work, "its window is too large");
        found->window = ((uint64_t)1 << log) + (((uint64_t)1 << log) >> 3) * (data[at] & 7);
        at++;
    }
    if (little_endian(data + at, ids) != 0) return damaged(work, "it needs another dictionary");
    at += ids;
    found->size = sizes ? little_endian(data + at, sizes) + (sizes == 2 ? 256 : 0) : WF_NEVER;
    if (is_single) found->window = found->size;
    return WF_OK;
}

/* Check what a frame says of its size. */
static wf_code check_size(wf_work *work, const frame *found, int is_named, size_t size) {
    if (found->size == WF_NEVER) {
        if (is_named) return wf_fail(work, WF_FORMAT, "a frame does not name its size");
        return found->window > LARGEST_STREAMED ? damaged(work, "its window is too large") : WF_OK;
    }
    if (found->size == size) return WF_OK;
    return wf_fail(work, WF_FORMAT, "a frame holds %u bytes; expected %u", found->size, (uint64_t)size);
}

#ifdef WF_SYSTEM_ZSTD

#include <zstd.h>

wf_code wf_unzstd(wf_work *work, const uint8_t *data, size_t size, wf_text before, int is_named, uint8_t *out,
                  size_t out_size) {
    frame found;
    ZSTD_DCtx *context;
    size_t end, made = 0;
    WF_TRY(read_header(work, data, size, &found));
    WF_TRY(check_size(work, &found, is_named, out_size));
    end = ZSTD_findFrameCompressedSize(data, size);
    if (ZSTD_isError(end)) return damaged(work, ZSTD_getErrorName(end));
    if (end != size) return wf_fail(work, WF_FORMAT, "a frame ends after %u of its %u bytes", (uint64_t)end, (uint64_t)size);
    context = ZSTD_createDCtx();
    if (context == NULL) return wf_fail(work, WF_MEMORY, "the library of zstandard has no memory");
    if (before.size) made = ZSTD_DCtx_refPrefix(context, before.data, before.size);
    if (!ZSTD_isError(made)) made = ZSTD_decompressDCtx(context, out, out_size, data, size);
    ZSTD_freeDCtx(context);
    if (ZSTD_isError(made)) return damaged(work, ZSTD_getErrorName(made));
    return made == out_size ? WF_OK : damaged(work, "it holds less than it should");
}

#else

/* Bits from the end of some bytes to their beginning; what is beyond that is 0. */
typedef struct bits {
    const uint8_t *data;
    size_t size;
    int64_t left; /* not read yet; below 0 where too many were */
} bits;

/* The last byte has a 1 above the first bit. */
static int bits_open(bits *b, const uint8_t *data, size_t size) {
    uint8_t last;
    if (size == 0 || data[size - 1] == 0) return 0;
    b->data = data;
    b->size = size;
    b->left = 8 * (int64_t)size;
    for (last = data[size - 1]; !(last & 0x80); last = (uint8_t)(last << 1)) b->left--;
    b->left--;
    return 1;
}

/* The next bits, at most 32, without reading them. */
static uint32_t bits_peek(const bits *b, unsigned count) {
    int64_t at = b->left - (int64_t)count;
    uint64_t value = 0;
    size_t byte, i;
    unsigned shift;
    if (count == 0 || b->left <= 0) return 0;
    if (at < 0) { /* zeros behind what is left */
        bits some = *b;
        return bits_peek(&some, (unsigned)b->left) << (count - (unsigned)b->left);
    }
    byte = (size_t)(at >> 3);
    shift = (unsigned)(at & 7);
    if (byte + 8 <= b->size) value = wf_le64(b->data + byte);
    else for (i = b->size; i > byte; i--) value = value << 8 | b->data[i - 1];
    return (uint32_t)(value >> shift & (((uint64_t)1 << count) - 1));
}

static uint32_t bits_take(bits *b, unsigned count) {
    uint32_t value = bits_peek(b, count);
    b->left -= count;
    return value;
}

/* Tables of finite state entropy */

typedef struct fse_entry {
    uint16_t base;
    uint8_t symbol, bits;
} fse_entry;

typedef struct fse_table {
    fse_entry *entries;
    unsigned log;
    int is_known;
} fse_table;

static unsigned log2_of(uint32_t value) {
    unsigned log = 0;
    while (value >>= 1) log++;
    return log;
}

/* Bits from the beginning of some bytes on; what is beyond their end is 0. */
static uint32_t forward_bits(const uint8_t *data, size_t size, size_t at, unsigned count) {
    uint32_t value = 0;
    size_t i;
    for (i = 0; i < 4 && (at >> 3) + i < size; i++) value |= (uint32_t)data[(at >> 3) + i] << (8 * i);
    return value >> (at & 7) & ((1u << count) - 1);
}

/* Read counts of symbols 0..last; -1 stands for less than one. Returns the bytes that were read, 0 for an error. */
static size_t read_counts(const uint8_t *data, size_t size, int16_t *counts, unsigned *last, unsigned most_log,
                          unsigned *log) {
    size_t at = 4;
    int32_t remaining, threshold;
    unsigned symbol = 0, bits;
    if (size == 0) return 0;
    *log = forward_bits(data, size, 0, 4) + 5;
    if (*log > most_log) return 0;
    threshold = 1 << *log;
    remaining = threshold + 1;
    bits = *log + 1;
    while (remaining > 1 && symbol <= *last) {
        int32_t most = 2 * threshold - 1 - remaining, value = (int32_t)forward_bits(data, size, at, bits);
        if ((value & (threshold - 1)) < most) {
            value &= threshold - 1;
            at += bits - 1;
        } else {
            if (value >= threshold) value -= most;
            at += bits;
        }
        value--;
        remaining -= value < 0 ? -value : value;
        counts[symbol++] = (int16_t)value;
        while (remaining < threshold && threshold > 1) {
            threshold >>= 1;
            bits--;
        }
        if (value == 0) { /* how many more are 0, three at a time */
            uint32_t more, n;
            do {
                more = forward_bits(data, size, at, 2);
                at += 2;
                if (symbol + more > *last + 1) return 0;
                for (n = 0; n < more; n++) counts[symbol++] = 0;
            } while (more == 3);
        }
    }
    if (remaining != 1 || at > 8 * size) return 0;
    *last = symbol - 1;
    return (at + 7) / 8;
}

/* Make a table of counts. */
static void make_table(const int16_t *counts, unsigned last, fse_table *table) {
    uint16_t following[256];
    uint32_t size = 1u << table->log, high = size - 1, step = (size >> 1) + (size >> 3) + 3, place = 0, i;
    unsigned symbol;
    for (symbol = 0; symbol <= last; symbol++) {
        following[symbol] = (uint16_t)(counts[symbol] < 0 ? 1 : counts[symbol]);
        if (counts[symbol] < 0) table->entries[high--].symbol = (uint8_t)symbol;
    }
    for (symbol = 0; symbol <= last; symbol++) {
        int32_t n;
        for (n = 0; n < counts[symbol]; n++) {
            table->entries[place].symbol = (uint8_t)symbol;
            do place = (place + step) & (size - 1);
            while (place > high);
        }
    }
    for (i = 0; i < size; i++) {
        fse_entry *entry = table->entries + i;
        uint32_t state = following[entry->symbol]++;
        entry->bits = (uint8_t)(table->log - log2_of(state));
        entry->base = (uint16_t)((state << entry->bits) - size);
    }
    table->is_known = 1;
}

/* Huffman codes */

#define MOST_HUFFMAN 12

typedef struct huffman {
    uint16_t entries[1 << MOST_HUFFMAN]; /* bits << 8 | symbol */
    unsigned log;
    int is_known;
} huffman;

/* Weights that are compressed by two states that take turns; their number, 0 for an error. */
static unsigned read_weights(const uint8_t *data, size_t size, uint8_t *weights) {
    fse_entry entries[64];
    fse_table table;
    int16_t counts[256];
    unsigned last = 255, count = 0, turn = 0, states[2];
    bits b;
    size_t used = read_counts(data, size, counts, &last, 6, &table.log);
    table.entries = entries;
    if (used == 0 || used >= size || !bits_open(&b, data + used, size - used)) return 0;
    make_table(counts, last, &table);
    states[0] = bits_take(&b, table.log);
    states[1] = bits_take(&b, table.log);
    for (;;) {
        const fse_entry *entry = entries + states[turn];
        if (count > 253) return 0;
        weights[count++] = entry->symbol;
        states[turn] = entry->base + bits_take(&b, entry->bits);
        turn ^= 1;
        if (b.left < 0) {
            weights[count++] = entries[states[turn]].symbol;
            return count;
        }
    }
}

/* Read a description of codes; returns its bytes, 0 for an error. */
static size_t read_huffman(const uint8_t *data, size_t size, huffman *table) {
    uint8_t weights[256];
    uint32_t ranks[MOST_HUFFMAN + 2] = {0}, total = 0, rest, place = 0;
    unsigned count, i, weight;
    size_t used;
    table->is_known = 0;
    if (size == 0) return 0;
    if (data[0] >= 128) {
        count = data[0] - 127u;
        used = 1 + (count + 1) / 2;
        if (used > size) return 0;
        for (i = 0; i < count; i++) weights[i] = data[1 + i / 2] >> (i & 1 ? 0 : 4) & 15;
    } else {
        used = 1 + (size_t)data[0];
        if (used > size) return 0;
        count = read_weights(data + 1, data[0], weights);
    }
    for (i = 0; i < count; i++) {
        if (weights[i] > MOST_HUFFMAN) return 0;
        total += 1u << weights[i] >> 1;
    }
    if (total == 0) return 0;
    table->log = log2_of(total) + 1;
    rest = (1u << table->log) - total;
    if (table->log > MOST_HUFFMAN || rest & (rest - 1)) return 0;
    weights[count++] = (uint8_t)(log2_of(rest) + 1);
    for (i = 0; i < count; i++) ranks[weights[i]]++;
    if (ranks[1] < 2 || ranks[1] & 1) return 0;
    for (weight = 1; weight <= table->log; weight++) {
        for (i = 0; i < count; i++) {
            uint32_t length = 1u << (weight - 1), n;
            if (weights[i] != weight) continue;
            for (n = 0; n < length; n++) table->entries[place++] = (uint16_t)((table->log + 1 - weight) << 8 | i);
        }
    }
    table->is_known = 1;
    return used;
}

static int read_stream(const uint8_t *data, size_t size, const huffman *table, uint8_t *out, size_t count) {
    bits b;
    size_t i;
    if (!bits_open(&b, data, size)) return 0;
    for (i = 0; i < count; i++) {
        uint16_t entry = table->entries[bits_peek(&b, table->log)];
        b.left -= entry >> 8;
        out[i] = (uint8_t)entry;
        if (b.left < 0) return 0;
    }
    return b.left == 0;
}

/* Blocks */

typedef struct unpacking {
    wf_work *work;
    wf_text before;
    uint8_t *out;
    size_t size, at;      /* of the output */
    uint32_t largest;     /* block */
    int is_streamed;
    uint8_t *buffer;      /* [largest] */
    const uint8_t *literals;
    size_t literal_count;
    huffman codes;
    fse_entry entries[3][512];
    fse_table tables[3]; /* of literal lengths, offsets and match lengths */
    uint64_t offsets[3];
} unpacking;

enum { LITERALS, OFFSETS, MATCHES };

/* Compressed literals behind a head; 0 for an error. */
static int read_codes(unpacking *u, const uint8_t *data, size_t size, int is_new, int streams) {
    size_t count = u->literal_count, each = (count + 3) / 4, lengths[4], i;
    if (is_new) {
        size_t used = read_huffman(data, size, &u->codes);
        if (used == 0) return 0;
        data += used;
        size -= used;
    }
    u->literals = u->buffer;
    if (!u->codes.is_known) return 0;
    if (streams == 1) return read_stream(data, size, &u->codes, u->buffer, count);
    if (size < 10 || count < 6 || 3 * each > count) return 0;
    lengths[3] = size - 6;
    for (i = 0; i < 3; i++) {
        lengths[i] = wf_le16(data + 2 * i);
        if (lengths[i] > lengths[3]) return 0;
        lengths[3] -= lengths[i];
    }
    data += 6;
    for (i = 0; i < 4; i++) {
        if (!read_stream(data, lengths[i], &u->codes, u->buffer + i * each, i < 3 ? each : count - 3 * each)) return 0;
        data += lengths[i];
    }
    return 1;
}

static size_t literal_room(const unpacking *u) {
    return (size_t)wf_least(u->largest, u->size - u->at);
}

/* Read the literals of a block; returns their bytes, 0 for an error. */
static size_t read_literals(unpacking *u, const uint8_t *data, size_t size) {
    unsigned kind = data[0] & 3, form = data[0] >> 2 & 3;
    size_t head, packed;
    if (kind < 2) { /* as they are, or one repeated */
        head = form == 1 ? 2 : form == 3 ? 3 : 1;
        if (size < head + kind) return 0;
        u->literal_count = (size_t)(little_endian(data, (unsigned)head) >> (head == 1 ? 3 : 4));
        packed = kind ? 1 : u->literal_count;
        if (u->literal_count > literal_room(u) || packed > size - head) return 0;
        u->literals = kind ? u->buffer : data + head;
        if (kind) memset(u->buffer, data[head], u->literal_count);
        return head + packed;
    }
    head = form < 2 ? 3 : form == 2 ? 4 : 5;
    if (size < head) return 0;
    {
        unsigned width = form < 2 ? 10 : form == 2 ? 14 : 18;
        uint64_t value = little_endian(data, (unsigned)head) >> 4, mask = ((uint64_t)1 << width) - 1;
        u->literal_count = (size_t)(value & mask);
        packed = (size_t)(value >> width & mask);
    }
    if (u->literal_count == 0 || u->literal_count > literal_room(u) || packed > size - head) return 0;
    return read_codes(u, data + head, packed, kind == 2, form == 0 ? 1 : 4) ? head + packed : 0;
}

static const int16_t usual_literals[36] = {4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2,
                                           2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1};
static const int16_t usual_offsets[29] = {1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1,
                                          1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1};
static const int16_t usual_matches[53] = {1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                          1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                          1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1};

/* Read how one of the three codes of sequences is coded; returns the bytes, or `size` + 1 for an error. */
static size_t read_table(unpacking *u, int which, unsigned mode, const uint8_t *data, size_t size) {
    static const uint8_t last_symbol[3] = {35, 31, 52}, most_log[3] = {9, 8, 9}, usual_log[3] = {6, 5, 6};
    static const uint8_t usual_last[3] = {35, 28, 52};
    static const int16_t *const usual[3] = {usual_literals, usual_offsets, usual_matches};
    int16_t counts[53];
    fse_table *table = &u->tables[which];
    unsigned last = last_symbol[which];
    size_t used;
    table->entries = u->entries[which];
    if (mode == 0) {
        table->log = usual_log[which];
        make_table(usual[which], usual_last[which], table);
        return 0;
    }
    if (mode == 1) {
        if (size == 0 || data[0] > last) return size + 1;
        table->log = 0;
        table->entries[0].symbol = data[0];
        table->entries[0].base = table->entries[0].bits = 0;
        table->is_known = 1;
        return 1;
    }
    if (mode == 3) return table->is_known ? 0 : size + 1;
    used = read_counts(data, size, counts, &last, most_log[which], &table->log);
    if (used == 0) return size + 1;
    make_table(counts, last, table);
    return used;
}

/* The offset of a value, with the three before it; 0 for an error. */
static uint64_t offset_of(uint64_t *before, uint64_t value, int has_literals) {
    uint64_t found;
    unsigned place;
    if (value > 3) {
        found = value - 3;
        place = 2;
    } else {
        place = (unsigned)value - (has_literals ? 1 : 0);
        found = place == 3 ? before[0] - 1 : before[place];
        if (place == 3) place = 2;
    }
    if (place == 2) before[2] = before[1];
    if (place) before[1] = before[0];
    before[0] = found;
    return found;
}

static int copy_literals(unpacking *u, size_t count) {
    if (count > u->literal_count || count > u->size - u->at) return 0;
    memcpy(u->out + u->at, u->literals, count);
    u->at += count;
    u->literals += count;
    u->literal_count -= count;
    return 1;
}

static int copy_match(unpacking *u, uint64_t offset, size_t count) {
    size_t i;
    if (offset == 0 || offset > (uint64_t)u->at + u->before.size || count > u->size - u->at) return 0;
    for (i = 0; i < count; i++, u->at++) {
        u->out[u->at] = offset <= u->at ? u->out[u->at - (size_t)offset]
                                        : (uint8_t)u->before.data[u->before.size - ((size_t)offset - u->at)];
    }
    return 1;
}

static const uint32_t literal_base[20] = {16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512, 1024, 2048, 4096,
                                          8192, 16384, 32768, 65536};
static const uint8_t literal_bits[20] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
static const uint32_t match_base[21] = {35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099,
                                        8195, 16387, 32771, 65539};
static const uint8_t match_bits[21] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static int run_sequences(unpacking *u, bits *b, uint32_t count) {
    const fse_entry *now[3];
    int which;
    for (which = 0; which < 3; which++) {
        now[which] = u->tables[which].entries + bits_take(b, u->tables[which].log);
    }
    while (count--) {
        unsigned offset_code = now[OFFSETS]->symbol, match = now[MATCHES]->symbol, literal = now[LITERALS]->symbol;
        uint64_t offset = ((uint64_t)1 << offset_code) + bits_take(b, offset_code);
        uint32_t match_length = match + 3, literal_length = literal;
        if (match >= 32) match_length = match_base[match - 32] + bits_take(b, match_bits[match - 32]);
        if (literal >= 16) literal_length = literal_base[literal - 16] + bits_take(b, literal_bits[literal - 16]);
        offset = offset_of(u->offsets, offset, literal_length != 0);
        if (b->left < 0 || !copy_literals(u, literal_length) || !copy_match(u, offset, match_length)) return 0;
        if (count == 0) break;
        now[LITERALS] = u->tables[LITERALS].entries + now[LITERALS]->base + bits_take(b, now[LITERALS]->bits);
        now[MATCHES] = u->tables[MATCHES].entries + now[MATCHES]->base + bits_take(b, now[MATCHES]->bits);
        now[OFFSETS] = u->tables[OFFSETS].entries + now[OFFSETS]->base + bits_take(b, now[OFFSETS]->bits);
    }
    return b->left == 0;
}

/* Read the sequences of a block and do what they say. */
static int read_sequences(unpacking *u, const uint8_t *data, size_t size) {
    uint32_t count;
    size_t at = 1;
    unsigned modes;
    int which;
    bits b;
    if (size == 0) return 0;
    count = data[0];
    if (count >= 128) {
        at = count == 255 ? 3 : 2;
        if (size < at) return 0;
        count = count == 255 ? wf_le16(data + 1) + 0x7F00 : ((count - 128) << 8) + data[1];
    }
    if (count == 0) return at == size;
    if (at == size) return 0;
    modes = data[at++];
    if (modes & 3) return 0;
    for (which = 0; which < 3; which++) {
        size_t used = read_table(u, which, modes >> (6 - 2 * which) & 3, data + at, size - at);
        if (used > size - at) return 0;
        at += used;
    }
    return bits_open(&b, data + at, size - at) && run_sequences(u, &b, count);
}

static int compressed_block(unpacking *u, const uint8_t *data, size_t size) {
    size_t used;
    if (size < 2 || size > u->largest) return 0;
    used = read_literals(u, data, size);
    return used && read_sequences(u, data + used, size - used) && copy_literals(u, u->literal_count);
}

static int read_block(unpacking *u, unsigned kind, const uint8_t *data, size_t size) {
    size_t start = u->at;
    if (kind < 2) {
        if (size > u->size - u->at) return 0;
        if (kind == 0) memcpy(u->out + u->at, data, size);
        else memset(u->out + u->at, data[0], size);
        u->at += size;
    } else if (!compressed_block(u, data, size)) {
        return 0;
    }
    return !u->is_streamed || u->at - start <= u->largest;
}

/* XXH64 of seed 0, as far as a frame has it. */

static uint64_t rotated(uint64_t value, unsigned bits) {
    return value << bits | value >> (64 - bits);
}

#define PRIME_1 0x9E3779B185EBCA87u
#define PRIME_2 0xC2B2AE3D27D4EB4Fu
#define PRIME_3 0x165667B19E3779F9u
#define PRIME_4 0x85EBCA77C2B2AE63u
#define PRIME_5 0x27D4EB2F165667C5u

static uint64_t mixed(uint64_t sum, uint64_t word) {
    return rotated(sum + word * PRIME_2, 31) * PRIME_1;
}

static uint32_t checksum(const uint8_t *data, size_t size) {
    uint64_t hash = PRIME_5, sums[4] = {PRIME_1 + PRIME_2, PRIME_2, 0, 0 - PRIME_1};
    size_t at = 0, i;
    for (; size - at >= 32; at += 32) {
        for (i = 0; i < 4; i++) sums[i] = mixed(sums[i], wf_le64(data + at + 8 * i));
    }
    if (size >= 32) {
        hash = rotated(sums[0], 1) + rotated(sums[1], 7) + rotated(sums[2], 12) + rotated(sums[3], 18);
        for (i = 0; i < 4; i++) hash = (hash ^ mixed(0, sums[i])) * PRIME_1 + PRIME_4;
    }
    hash += size;
    for (; size - at >= 8; at += 8) hash = rotated(hash ^ mixed(0, wf_le64(data + at)), 27) * PRIME_1 + PRIME_4;
    if (size - at >= 4) {
        hash = rotated(hash ^ wf_le32(data + at) * PRIME_1, 23) * PRIME_2 + PRIME_3;
        at += 4;
    }
    for (; at < size; at++) hash = rotated(hash ^ data[at] * PRIME_5, 11) * PRIME_1;
    hash = (hash ^ hash >> 33) * PRIME_2;
    hash = (hash ^ hash >> 29) * PRIME_3;
    return (uint32_t)(hash ^ hash >> 32);
}

static wf_code read_blocks(unpacking *u, const uint8_t *data, size_t size, const frame *found) {
    size_t at = found->head;
    unsigned is_last = 0;
    while (!is_last) {
        uint32_t head, length, packed;
        if (size - at < 3) return damaged(u->work, "it is cut");
        head = wf_le16(data + at) | (uint32_t)data[at + 2] << 16;
        at += 3;
        is_last = head & 1;
        length = head >> 3;
        packed = (head >> 1 & 3) == 1 ? 1 : length;
        if ((head >> 1 & 3) == 3 || packed > size - at) return damaged(u->work, "a block is cut or none");
        if (!read_block(u, head >> 1 & 3, data + at, length)) return damaged(u->work, "a block is damaged");
        at += packed;
    }
    if (u->at != u->size) return damaged(u->work, "it holds less than it should");
    if (found->has_checksum) {
        if (size - at < 4 || wf_le32(data + at) != checksum(u->out, u->size)) {
            return damaged(u->work, "its checksum is wrong");
        }
        at += 4;
    }
    if (at == size) return WF_OK;
    return wf_fail(u->work, WF_FORMAT, "a frame ends after %u of its %u bytes", (uint64_t)at, (uint64_t)size);
}

wf_code wf_unzstd(wf_work *work, const uint8_t *data, size_t size, wf_text before, int is_named, uint8_t *out,
                  size_t out_size) {
    frame found;
    unpacking *u;
    wf_code code = WF_MEMORY;
    WF_TRY(read_header(work, data, size, &found));
    WF_TRY(check_size(work, &found, is_named, out_size));
    u = (unpacking *)wf_take(work, 1, sizeof *u);
    if (u == NULL) return WF_MEMORY;
    u->work = work;
    u->before = before;
    u->out = out;
    u->size = out_size;
    u->largest = (uint32_t)wf_least(found.window, LARGEST_BLOCK);
    u->is_streamed = found.size == WF_NEVER;
    u->offsets[0] = 1;
    u->offsets[1] = 4;
    u->offsets[2] = 8;
    u->buffer = (uint8_t *)wf_take(work, wf_least(u->largest, out_size), 1);
    if (u->buffer) code = read_blocks(u, data, size, &found);
    wf_give(work, u->buffer);
    wf_give(work, u);
    return code;
}

#endif
#endif
