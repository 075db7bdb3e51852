/* Chunks of symbols, all at once. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#ifndef WF_SMALL /* wf_sequence.c has them one after the other */

#define UNREAD INT32_MIN /* no symbol has this value before a chunk is read */

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
    wf_table table = NULL;
    wf_stream stream = *run->stream; /* a copy stays in registers, for no value that is written can be a part of it */
    wf_class last = UINT32_MAX;
    uint64_t n;
    for (n = 0; n < run->count; n++) {
        uint32_t byte;
        wf_class class = run->classes[n] & 0xFFFF;
        if (class != last) {
            WF_TRY(wf_bank_table(run->stream, WF_WHOLE, 0, class, &table));
            last = class;
        }
        byte = wf_pull(&stream, n & 7, table);
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

static wf_code read_all(wf_stream *stream, const wf_class *classes, uint64_t count, int32_t *values) {
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

/* Chunks */

/* Read what own tables have of a piece. */
static wf_code read_own(wf_stream *stream, const wf_piece *part, int32_t *values) {
    const wf_table_lines *lines = part->coded->tables;
    wf_stream local = *stream; /* in registers, for no value that is written can be a part of it */
    wf_own *own;
    uint64_t n;
    size_t i;
    int has_escape = 1;
    for (n = 0; lines == NULL && n < part->count; n++) values[n] = UNREAD;
    if (lines == NULL) return WF_OK;
    own = (wf_own *)wf_take(stream->work, 1, sizeof *own);
    if (own == NULL) return WF_MEMORY;
    for (i = 0; i < lines->count && has_escape; i++) {
        const wf_table_line *table = lines->tables + i;
        uint32_t count = table->count;
        int32_t first = (int32_t)table->first;
        uint64_t place = 0;
        WF_TRY(wf_make_own(stream->work, table, own, &has_escape));
        for (n = 0; n < part->count; n++) {
            uint32_t symbol;
            if (i && values[n] != UNREAD) continue;
            symbol = wf_pull(&local, place++ & 7, wf_table_of(own));
            if (local.is_short) return wf_short(stream->work);
            values[n] = symbol < count ? first + (int32_t)symbol : UNREAD;
        }
    }
    *stream = local;
    wf_give(stream->work, own);
    return WF_OK;
}

static wf_code read_path(wf_stream *stream, const wf_piece *part, int32_t *values) {
    wf_path path;
    WF_TRY(wf_path_begin(&path, stream, part->coded, part->at));
    WF_TRY(wf_path_next(&path, part->count, values));
    wf_give(stream->work, path.sums);
    return WF_OK;
}

static wf_code read_first(wf_stream *stream, const wf_piece *part, int32_t *values) {
    if (part->coded->is_adaptive) return wf_read_adaptive(stream, part->coded, part->count, values);
    if (part->coded->kind != 'p') return read_own(stream, part, values);
    if (part->coded->lanes) return wf_read_lanes(stream, part->coded, part->at, part->count, values);
    return read_path(stream, part, values);
}

/* Classes of the symbols of a piece that its own tables have not, of all where it has none; returns how many. */
static uint64_t classes_of(const wf_piece *part, const int32_t *values, wf_class *classes) {
    const wf_coded *coded = part->coded;
    wf_walk walk = wf_walk_from(coded, coded->spreads, part->at);
    uint64_t n, count = 0;
    int32_t last = wf_walk_sum(&walk);
    wf_class class = wf_class_of(coded->bases[0] + 2 * last, coded->families[0]);
    if (coded->kind == 'p' || coded->is_adaptive) return 0;
    for (n = 0; coded->tables && n < part->count; n++) { /* few are left */
        if (values[n] != UNREAD) continue;
        walk = wf_walk_from(coded, coded->spreads, part->at + n);
        classes[count++] = wf_class_of(coded->bases[0] + 2 * wf_walk_sum(&walk), coded->families[0]);
    }
    for (n = 0; !coded->tables && n < part->count; n++) {
        int32_t sum = wf_walk_sum(&walk);
        if (sum != last) class = wf_class_of(coded->bases[0] + 2 * sum, coded->families[0]);
        last = sum;
        classes[count++] = class;
        wf_walk_next(&walk);
    }
    return count;
}

/* Read a chunk of integers alone, none of which is in an own table. */
static wf_code read_integers(wf_stream *stream, const wf_file *file, const wf_chunk *chunk, int32_t *values) {
    uint64_t stop = chunk->at + chunk->count, at;
    size_t i = wf_coded_at(file, chunk->at);
    wf_class *classes = (wf_class *)wf_room(stream->work, chunk->count, sizeof *classes);
    wf_piece part;
    if (classes == NULL) return WF_MEMORY;
    for (at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        classes_of(&part, NULL, classes + (at - chunk->at));
    }
    WF_TRY(read_all(stream, classes, chunk->count, values));
    wf_give(stream->work, classes);
    return WF_OK;
}

/* Read all integers of a chunk that are in no own table, and put them where they belong. */
static wf_code read_rest(wf_stream *stream, const wf_file *file, const wf_chunk *chunk, int32_t *values) {
    uint64_t stop = chunk->at + chunk->count, at, count = 0, n;
    size_t first = wf_coded_at(file, chunk->at), i;
    wf_class *classes;
    int32_t *found;
    wf_piece part;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        if (part.coded->kind == 'p' || part.coded->is_adaptive) continue;
        for (n = at - chunk->at; n < at - chunk->at + part.count; n++) count += values[n] == UNREAD;
    }
    classes = (wf_class *)wf_room(stream->work, count, sizeof *classes);
    if (classes == NULL) return WF_MEMORY;
    count = 0;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        count += classes_of(&part, values + (at - chunk->at), classes + count);
    }
    found = (int32_t *)wf_room(stream->work, count, sizeof *found);
    if (found == NULL) return WF_MEMORY;
    WF_TRY(read_all(stream, classes, count, found));
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        if (part.coded->kind == 'p' || part.coded->is_adaptive) continue;
        for (n = at - chunk->at; n < at - chunk->at + part.count; n++) {
            if (values[n] == UNREAD) values[n] = *found++;
        }
    }
    return WF_OK;
}

wf_code wf_read_symbols(wf_work *work, const wf_file *file, size_t number, int32_t *values) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    uint64_t stop = chunk->at + chunk->count, at;
    size_t first = wf_coded_at(file, chunk->at), i;
    unsigned lanes = 8, has_rest = 0, has_others = 0;
    wf_stream stream;
    const uint8_t *data;
    wf_piece part;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        if (part.coded->lanes > lanes) lanes = part.coded->lanes;
        if (part.coded->kind == 'p' || part.coded->is_adaptive) has_others = 1;
        else has_rest = 1;
        has_others |= part.coded->tables != NULL;
    }
    WF_TRY(wf_read_chunk(work, file, number, &data));
    WF_TRY(wf_stream_open(&stream, work, data, (size_t)chunk->size, lanes));
    if (!has_others) WF_TRY(read_integers(&stream, file, chunk, values));
    for (i = first, at = chunk->at; has_others && at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        WF_TRY(read_first(&stream, &part, values + (at - chunk->at)));
    }
    if (has_rest && has_others) WF_TRY(read_rest(&stream, file, chunk, values));
    WF_TRY(wf_stream_end(&stream));
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = wf_piece_at(file, &i, at, stop);
        WF_TRY(wf_check_book(work, part.coded, values + (at - chunk->at), part.count));
    }
    return WF_OK;
}
#endif
