/* Interleaved rANS streams, their tables, and integers of any size. SPDX-License-Identifier: MIT */
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
    stream->bank = (wf_bank *)wf_take(work, 1, sizeof *stream->bank);
    return stream->bank ? WF_OK : WF_MEMORY;
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

/* Give the next `frequency` slots to a symbol. */
static unsigned fill(wf_slots *slots, unsigned at, unsigned frequency, unsigned symbol) {
    memset(slots->of + at, (int)symbol, frequency);
    slots->symbols[symbol] = (uint32_t)frequency << 16 | at;
    return at + frequency;
}

const wf_slots *wf_make_slots(wf_stream *stream, unsigned kind, unsigned row) {
    wf_slots *slots = (wf_slots *)wf_take(stream->work, 1, sizeof *slots);
    const uint8_t *data = bank_row(kind, row);
    unsigned m, at = 0;
    if (slots == NULL) return NULL;
    for (m = 0; m <= data[0]; m++) {
        unsigned frequency = wf_le16(data + 1 + 2 * m);
        at = fill(slots, at, frequency, 128 + m);
        if (kind == WF_HALF) at = fill(slots, at, frequency, 127 - m);
        else if (m) at = fill(slots, at, frequency, 128 - m);
    }
    fill(slots, at, TOTAL - at, 0);
    stream->bank->slots[kind * 513 + row] = slots;
    return slots;
}

wf_code wf_own_slots(wf_work *work, const wf_table_line *table, wf_slots *slots, int *has_escape) {
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
        else at = fill(slots, at, end - at, i);
    }
    if (used) return WF_OK;
    return wf_fail(work, WF_FORMAT, "a table has a frequency above 4093, or none at all");
}

/* Integers */

typedef struct integers {
    wf_stream *stream;
    const wf_class *classes;
    uint64_t count;
    int32_t *values; /* high parts at first */
    uint64_t *rest;  /* low bits; NULL for none */
    uint64_t escapes;
} integers;

static unsigned last_of(wf_class class) {
    return wf_last_magnitude(WF_WHOLE, 0, class & 0xFFFF);
}

static wf_code high_parts(integers *run) {
    const wf_slots *slots = NULL;
    wf_stream stream = *run->stream; /* a copy stays in registers, for no value that is written can be a part of it */
    wf_class last = UINT32_MAX;
    uint64_t n;
    for (n = 0; n < run->count; n++) {
        uint32_t byte;
        wf_class class = run->classes[n] & 0xFFFF;
        if (class != last) {
            slots = wf_slots_of(run->stream, WF_WHOLE, 0, class);
            if (slots == NULL) return WF_MEMORY;
            last = class;
        }
        byte = wf_pull(&stream, n & 7, slots);
        run->values[n] = (int32_t)byte - 128;
        if (byte == 0) {
            run->values[n] = (int32_t)last_of(class) + 1;
            run->escapes++;
        }
        if (stream.is_short) return wf_short(stream.work);
    }
    *run->stream = stream;
    return WF_OK;
}

static wf_code low_bits(integers *run, unsigned most) {
    unsigned from;
    if (most == 0) return WF_OK;
    run->rest = (uint64_t *)wf_take(run->stream->work, run->count, sizeof *run->rest);
    if (run->rest == NULL) return WF_MEMORY;
    for (from = 0; from < most; from += 8) {
        uint64_t n, place = 0;
        for (n = 0; n < run->count; n++) {
            unsigned low = run->classes[n] >> 16, bits = low < from + 8 ? low - from : 8;
            uint64_t some;
            if (low <= from) continue;
            some = wf_pull_uniform(run->stream, place++ & 7, bits);
            if (run->stream->is_short) return wf_short(run->stream->work);
            if (from < 64) run->rest[n] |= some << from;
        }
    }
    return WF_OK;
}

static int is_escape(const integers *run, uint64_t n) {
    return run->values[n] > (int32_t)last_of(run->classes[n]);
}

static wf_code escapes(integers *run) {
    wf_stream *stream = run->stream;
    uint64_t n, place = 0;
    uint8_t *sizes;
    if (run->escapes == 0) return WF_OK;
    sizes = (uint8_t *)wf_take(stream->work, run->escapes, 1);
    if (sizes == NULL) return WF_MEMORY;
    for (n = 0; n < run->escapes; n++) {
        sizes[n] = (uint8_t)(1 + wf_pull_uniform(stream, n & 7, 2));
        if (stream->is_short) return wf_short(stream->work);
    }
    run->escapes = 0;
    for (n = 0; n < run->count; n++) {
        int64_t magnitude;
        uint32_t extra = 0;
        unsigned i;
        if (!is_escape(run, n)) continue;
        for (i = 0; i < sizes[run->escapes]; i++) extra |= wf_pull_uniform(stream, place++ & 7, 8) << (8 * i);
        run->escapes++;
        magnitude = (int64_t)(extra >> 1) + last_of(run->classes[n]) + 1;
        if (magnitude > INT32_MAX) return wf_beyond(stream->work);
        run->values[n] = (int32_t)(extra & 1 ? -magnitude : magnitude);
    }
    wf_give(stream->work, sizes);
    return stream->is_short ? wf_short(stream->work) : WF_OK;
}

/* Join high parts and low bits. */
static wf_code join(integers *run) {
    uint64_t n;
    for (n = 0; n < run->count && run->rest; n++) {
        unsigned low = run->classes[n] >> 16;
        int64_t value = run->values[n];
        if (low == 0) continue;
        if (low > 62 || (low > 32 && value != 0)) return wf_beyond(run->stream->work);
        value = value * ((int64_t)1 << (value ? low : 0)) + (int64_t)run->rest[n] - ((int64_t)1 << (low - 1));
        if (value > INT32_MAX || value < -INT32_MAX) return wf_beyond(run->stream->work);
        run->values[n] = (int32_t)value;
    }
    wf_give(run->stream->work, run->rest);
    return WF_OK;
}

wf_code wf_integers(wf_stream *stream, const wf_class *classes, uint64_t count, int32_t *values) {
    integers run;
    unsigned most = 0;
    uint64_t n;
    memset(&run, 0, sizeof run);
    run.stream = stream;
    run.classes = classes;
    run.count = count;
    run.values = values;
    for (n = 0; n < count; n++) most = classes[n] >> 16 > most ? classes[n] >> 16 : most;
    WF_TRY(high_parts(&run));
    WF_TRY(low_bits(&run, most));
    WF_TRY(escapes(&run));
    return join(&run);
}
