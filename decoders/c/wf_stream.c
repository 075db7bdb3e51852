/* Interleaved rANS streams and their tables. SPDX-License-Identifier: MIT */
#include "wf_internal.h"
#include "wf_tables.h"

#define TOTAL 4096
#define LARGEST_FREQUENCY 4093
#define LARGEST_ROOT 1023
#define INITIAL (1u << 16)

wf_code wf_short(wf_work *work) {
    return wf_fail(work, WF_FORMAT, "a stream ends before its symbols do");
}

wf_code wf_beyond(wf_work *work) {
    return wf_fail(work, WF_FORMAT, "a symbol is beyond 32 bits");
}

wf_code wf_stream_open(wf_stream *stream, wf_work *work, const uint8_t *data, size_t size, unsigned lanes) {
    unsigned i;
    if (size < 4 * lanes || size % 2) {
        return wf_fail(work, WF_FORMAT, "a stream of %u bytes is cut; expected an even number from %u", (uint64_t)size,
                       (uint64_t)4 * lanes);
    }
    memset(stream, 0, sizeof *stream);
    stream->work = work;
    for (i = 0; i < 32; i++) stream->states[i] = i < lanes ? wf_le32(data + 4 * i) : INITIAL;
    stream->words = data + 4 * lanes;
    stream->end = (size - 4 * lanes) / 2;
#ifndef WF_SMALL
    stream->bank = (wf_bank *)wf_take(work, 1, sizeof *stream->bank);
    if (stream->bank == NULL) return WF_MEMORY;
#endif
    return WF_OK;
}

wf_code wf_stream_end(const wf_stream *stream) {
    unsigned i;
    int is_right = !stream->is_short && stream->at == stream->end;
    for (i = 0; i < 32; i++) is_right &= stream->states[i] == INITIAL;
    return is_right ? WF_OK : wf_fail(stream->work, WF_FORMAT, "a stream does not end where its symbols do");
}

/* Tables */

static const uint8_t *bank_row(unsigned kind, unsigned row) {
    if (kind == WF_WHOLE) return wf_bank_bytes + wf_bank_places[row];
    return kind == WF_HALF ? wf_half_bytes + wf_half_places[row] : wf_zero_bytes + wf_zero_places[row];
}

unsigned wf_last_magnitude(unsigned kind, unsigned family, unsigned scale) {
    return bank_row(kind, family * 57 + scale)[0];
}

#ifdef WF_SMALL

/* The symbol of a slot, its first slot and how many it has. */
static unsigned look_up(const wf_table *table, unsigned slot, unsigned *first, unsigned *frequency) {
    unsigned m = 0, at = 0;
    if (table->own) {
        const uint16_t *starts = table->own->starts;
        while (starts[m + 1] <= slot) m++;
        *first = starts[m];
        *frequency = starts[m + 1] - starts[m];
        return m;
    }
    for (m = 0; m <= table->row[0]; m++) {
        unsigned each = wf_le16(table->row + 1 + 2 * m), is_double = m || table->kind == WF_HALF;
        *frequency = each;
        *first = at;
        if (slot < at + each) return 128 + m;
        at += each;
        if (!is_double) continue;
        *first = at;
        if (slot < at + each) return table->kind == WF_HALF ? 127 - m : 128 - m;
        at += each;
    }
    *first = at;
    *frequency = TOTAL - at;
    return 0;
}

uint32_t wf_pull(wf_stream *stream, unsigned lane, wf_table table) {
    uint32_t x = stream->states[lane], slot = x & 4095;
    unsigned first, frequency, symbol = look_up(&table, slot, &first, &frequency);
    stream->states[lane] = wf_refilled(stream, frequency * (x >> 12) + slot - first);
    return symbol;
}

wf_code wf_bank_table(wf_stream *stream, unsigned kind, unsigned family, unsigned scale, wf_table *table) {
    (void)stream;
    table->row = bank_row(kind, family * 57 + scale);
    table->own = NULL;
    table->kind = kind;
    return WF_OK;
}

/* Give the next `frequency` slots to a symbol. */
static unsigned fill(wf_own *own, unsigned at, unsigned frequency, unsigned symbol) {
    own->starts[symbol] = (uint16_t)at;
    own->starts[symbol + 1] = (uint16_t)(at + frequency);
    return at + frequency;
}
#else

/* Give the next `frequency` slots to a symbol. */
static unsigned fill(wf_own *own, unsigned at, unsigned frequency, unsigned symbol) {
    memset(own->of + at, (int)symbol, frequency);
    own->symbols[symbol] = (uint32_t)frequency << 16 | at;
    return at + frequency;
}

wf_table wf_make_table(wf_stream *stream, unsigned kind, unsigned row) {
    wf_own *table = (wf_own *)wf_take(stream->work, 1, sizeof *table);
    const uint8_t *data = bank_row(kind, row);
    unsigned m, at = 0;
    if (table == NULL) return NULL;
    for (m = 0; m <= data[0]; m++) {
        unsigned frequency = wf_le16(data + 1 + 2 * m);
        at = fill(table, at, frequency, 128 + m);
        if (kind == WF_HALF) at = fill(table, at, frequency, 127 - m);
        else if (m) at = fill(table, at, frequency, 128 - m);
    }
    fill(table, at, TOTAL - at, 0);
    stream->bank->tables[kind * 513 + row] = table;
    return table;
}
#endif

wf_code wf_make_own(wf_work *work, const wf_table_line *table, wf_own *own, int *has_escape) {
    int64_t root = 0;
    uint64_t squares = 0, before = 0;
    unsigned used = 0, seen = 0, at = 0, i;
    for (i = 0; i <= table->count; i++) {
        root += table->differences[i];
        if (root < 0 || root > LARGEST_ROOT) {
            return wf_fail(work, WF_FORMAT, "a root of a table is out of range; expected 0 to 1023");
        }
        squares += (uint64_t)(root * root);
        used += root > 0;
    }
    *has_escape = root > 0;
    root = 0;
    for (i = 0; i <= table->count && used; i++) {
        unsigned end;
        root += table->differences[i];
        before += (uint64_t)(root * root);
        seen += root > 0;
        end = seen + (unsigned)((TOTAL - used) * before / squares);
        if (end - at > LARGEST_FREQUENCY) used = 0;
        else at = fill(own, at, end - at, i);
    }
    if (used) return WF_OK;
    return wf_fail(work, WF_FORMAT, "a table has a frequency above 4093, or none at all");
}
