/* Chunks of symbols. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define UNREAD INT32_MIN /* no symbol has this value before a chunk is read */

uint64_t wf_line_length(const wf_coded *coded) {
    uint64_t length = coded->down ? coded->axes[0] : coded->axes[1] * coded->axes[2];
    return length ? length : 1;
}

uint64_t wf_span(const wf_coded *coded) {
    uint64_t lines = coded->down && coded->axes[0] ? coded->axes[0] : 1;
    if (coded->is_adaptive) return wf_line_length(coded);
    if (coded->kind != 'p') return 1;
    if (coded->lanes) return wf_times(coded->lines, wf_line_length(coded));
    return wf_times(lines, (uint64_t)1 << coded->log_span);
}

size_t wf_coded_at(const wf_file *file, uint64_t at) {
    const wf_coded *coded = wf_all_coded(file);
    size_t low = 0, high = file->directory.coded.count;
    while (high - low > 1) { /* the last one that begins at or before the place has it: those before end there */
        size_t middle = low + (high - low) / 2;
        if (coded[middle].at <= at) low = middle;
        else high = middle;
    }
    return low;
}

wf_walk wf_walk_from(const wf_coded *coded, const int32_t *const *scales, uint64_t at) {
    uint64_t taps = coded->axes[2], columns = coded->axes[1] * taps, column;
    wf_walk walk;
    walk.coded = coded;
    walk.scales = scales;
    if (coded->down) {
        walk.row = at % coded->axes[0];
        column = at / coded->axes[0];
    } else {
        walk.row = at / columns;
        column = at % columns;
    }
    walk.channel = column / taps;
    walk.tap = column % taps;
    return walk;
}

wf_code wf_read_at(wf_work *work, const wf_source *source, uint64_t at, void *to, size_t size) {
    if (source->data) {
        memcpy(to, (const uint8_t *)source->data + source->start + at, size);
        return WF_OK;
    }
    if (source->read(source->context, source->start + at, to, size) == 0) return WF_OK;
    return wf_fail(work, WF_READ, "the file cannot be read at byte %u", at);
}

wf_code wf_read_chunk(wf_work *work, const wf_file *file, size_t number, const uint8_t **data) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    if (file->source.data) {
        *data = (const uint8_t *)file->source.data + file->source.start + chunk->offset;
    } else {
        uint8_t *bytes = (uint8_t *)wf_room(work, chunk->size, 1);
        if (bytes == NULL) return WF_MEMORY;
        WF_TRY(wf_read_at(work, &file->source, chunk->offset, bytes, (size_t)chunk->size));
        *data = bytes;
    }
    if (wf_crc32(0, *data, (size_t)chunk->size) == chunk->crc) return WF_OK;
    return wf_fail(work, WF_FORMAT, "the checksum of chunk %u is wrong: the file is damaged", (uint64_t)number);
}

/* A part of a tensor in a chunk. */
typedef struct piece {
    const wf_coded *coded;
    uint64_t at, count; /* in the tensor */
} piece;

/* The part that begins at a place of all symbols and ends at another one; `n` is its tensor or one before that. */
static piece piece_at(const wf_file *file, size_t *n, uint64_t at, uint64_t stop) {
    const wf_coded *coded = wf_all_coded(file);
    piece found;
    while (coded[*n].at + coded[*n].values <= at) ++*n;
    found.coded = coded + *n;
    found.at = at - found.coded->at;
    found.count = wf_least(stop, found.coded->at + found.coded->values) - at;
    return found;
}

/* Read what own tables have of a piece. */
static wf_code read_own(wf_stream *stream, const piece *part, int32_t *values) {
    const wf_table_lines *lines = part->coded->tables;
    wf_stream local = *stream; /* in registers, for no value that is written can be a part of it */
    wf_slots *slots;
    uint64_t n;
    size_t i;
    int has_escape = 1;
    for (n = 0; lines == NULL && n < part->count; n++) values[n] = UNREAD;
    if (lines == NULL) return WF_OK;
    slots = (wf_slots *)wf_take(stream->work, 1, sizeof *slots);
    if (slots == NULL) return WF_MEMORY;
    for (i = 0; i < lines->count && has_escape; i++) {
        const wf_table_line *table = lines->tables + i;
        uint32_t count = table->count;
        int32_t first = (int32_t)table->first;
        uint64_t place = 0;
        WF_TRY(wf_own_slots(stream->work, table, slots, &has_escape));
        for (n = 0; n < part->count; n++) {
            uint32_t symbol;
            if (i && values[n] != UNREAD) continue;
            symbol = wf_pull(&local, place++ & 7, slots);
            if (local.is_short) return wf_short(stream->work);
            values[n] = symbol < count ? first + (int32_t)symbol : UNREAD;
        }
    }
    *stream = local;
    wf_give(stream->work, slots);
    return WF_OK;
}

static wf_code read_first(wf_stream *stream, const piece *part, int32_t *values) {
    if (part->coded->is_adaptive) return wf_read_adaptive(stream, part->coded, part->count, values);
    if (part->coded->kind != 'p') return read_own(stream, part, values);
    if (part->coded->lanes) return wf_read_lanes(stream, part->coded, part->at, part->count, values);
    return wf_read_path(stream, part->coded, part->at, part->count, values);
}

/* Classes of the symbols of a piece that its own tables have not, of all where it has none; returns how many. */
static uint64_t classes_of(const piece *part, const int32_t *values, wf_class *classes) {
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
    piece part;
    if (classes == NULL) return WF_MEMORY;
    for (at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        classes_of(&part, NULL, classes + (at - chunk->at));
    }
    WF_TRY(wf_integers(stream, classes, chunk->count, values));
    wf_give(stream->work, classes);
    return WF_OK;
}

/* Read all integers of a chunk that are in no own table, and put them where they belong. */
static wf_code read_rest(wf_stream *stream, const wf_file *file, const wf_chunk *chunk, int32_t *values) {
    uint64_t stop = chunk->at + chunk->count, at, count = 0, n;
    size_t first = wf_coded_at(file, chunk->at), i;
    wf_class *classes;
    int32_t *found;
    piece part;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        if (part.coded->kind == 'p' || part.coded->is_adaptive) continue;
        for (n = at - chunk->at; n < at - chunk->at + part.count; n++) count += values[n] == UNREAD;
    }
    classes = (wf_class *)wf_room(stream->work, count, sizeof *classes);
    if (classes == NULL) return WF_MEMORY;
    count = 0;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        count += classes_of(&part, values + (at - chunk->at), classes + count);
    }
    found = (int32_t *)wf_room(stream->work, count, sizeof *found);
    if (found == NULL) return WF_MEMORY;
    WF_TRY(wf_integers(stream, classes, count, found));
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        if (part.coded->kind == 'p' || part.coded->is_adaptive) continue;
        for (n = at - chunk->at; n < at - chunk->at + part.count; n++) {
            if (values[n] == UNREAD) values[n] = *found++;
        }
    }
    return WF_OK;
}

static wf_code check_book(wf_work *work, const piece *part, const int32_t *values) {
    uint64_t n;
    if (part->coded->kind != 'c') return WF_OK;
    for (n = 0; n < part->count; n++) {
        int64_t place = (int64_t)values[n] - part->coded->first;
        if (place < 0 || place >= part->coded->size) {
            return wf_fail(work, WF_FORMAT, "a symbol is none of the %u of its codebook", (uint64_t)part->coded->size);
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
    piece part;
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        if (part.coded->lanes > lanes) lanes = part.coded->lanes;
        if (part.coded->kind == 'p' || part.coded->is_adaptive) has_others = 1;
        else has_rest = 1;
        has_others |= part.coded->tables != NULL;
    }
    WF_TRY(wf_read_chunk(work, file, number, &data));
    WF_TRY(wf_stream_open(&stream, work, data, (size_t)chunk->size, lanes));
    if (!has_others) WF_TRY(read_integers(&stream, file, chunk, values));
    for (i = first, at = chunk->at; has_others && at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        WF_TRY(read_first(&stream, &part, values + (at - chunk->at)));
    }
    if (has_rest && has_others) WF_TRY(read_rest(&stream, file, chunk, values));
    WF_TRY(wf_stream_end(&stream));
    for (i = first, at = chunk->at; at < stop; at += part.count) {
        part = piece_at(file, &i, at, stop);
        WF_TRY(check_book(work, &part, values + (at - chunk->at)));
    }
    return WF_OK;
}
