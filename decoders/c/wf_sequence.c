/* Symbols of a chunk, one after the other, in little memory. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#ifdef WF_SMALL /* wf_symbols.c has them all at once */

#define SOME 32

/*
 * A chunk has first, tensor by tensor, what own tables, paths, lanes and adaptive models code; then all other integers,
 * whose runs begin where that ends. So a chunk with such integers is gone through once to find their runs, and to check
 * it, before its first symbol.
 */
struct wf_sequence {
    wf_classes classes; /* of the other integers */
    const wf_file *file;
    uint64_t start, at, stop; /* symbols of all: of the chunk, and the next one */
    size_t first_coded, coded;
    unsigned lanes;
    int has_others, has_own; /* whether there are other integers, own tables */
    int is_finding;          /* whether paths are passed over, as they have none of these */
    wf_stream begin, stream; /* of what comes first: at the beginning, and behind the present tensor */
    wf_integers others;
    wf_piece part; /* of the present tensor */
    uint64_t left; /* of it */
    wf_walk walk;
    wf_run runs[2]; /* of its own tables */
    wf_own own[2];
    size_t tables;
    wf_path path;
    int32_t *values; /* all of a part with lanes or an adaptive model */
};

static int is_direct(const wf_coded *coded) {
    return coded->kind == 'p' || coded->is_adaptive;
}

static void restart(wf_sequence *s) {
    s->stream = s->begin;
    s->at = s->start;
    s->coded = s->first_coded;
    s->left = 0;
}

/* Find the runs of own tables of the present part. */
static wf_code begin_own(wf_sequence *s) {
    const wf_table_lines *lines = s->part.coded->tables;
    uint64_t left = s->part.count, n, escapes;
    int has_escape = 1;
    s->tables = 0;
    while (lines && s->tables < lines->count && has_escape) {
        size_t i = s->tables++;
        wf_table table = wf_table_of(&s->own[i]);
        WF_TRY(wf_make_own(s->stream.work, lines->tables + i, &s->own[i], &has_escape));
        s->runs[i].stream = s->stream;
        s->runs[i].place = 0;
        for (n = escapes = 0; n < left; n++) {
            escapes += wf_pull(&s->stream, n & 7, table) == lines->tables[i].count;
            if (s->stream.is_short) return wf_short(s->stream.work);
        }
        left = escapes;
    }
    return WF_OK;
}

/* Decode the present part, which has lanes or an adaptive model. */
static wf_code read_values(wf_sequence *s) {
    const wf_piece *part = &s->part;
    s->values = (int32_t *)wf_room(s->stream.work, part->count, sizeof *s->values);
    if (s->values == NULL) return WF_MEMORY;
    if (part->coded->is_adaptive) return wf_read_adaptive(&s->stream, part->coded, part->count, s->values);
    return wf_read_lanes(&s->stream, part->coded, part->at, part->count, s->values);
}

static wf_code begin_part(wf_sequence *s) {
    const wf_coded *coded;
    s->part = wf_piece_at(s->file, &s->coded, s->at, s->stop);
    s->left = s->part.count;
    coded = s->part.coded;
    s->walk = wf_walk_from(coded, coded->spreads, s->part.at);
    if (s->is_finding && !s->has_own) return WF_OK;
    if (coded->is_adaptive || coded->lanes) return read_values(s);
    return coded->kind == 'p' ? wf_path_begin(&s->path, &s->stream, coded, s->part.at) : begin_own(s);
}

/* Pass over the rest of the present part, as far as what comes first is concerned. */
static wf_code pass(wf_sequence *s) {
    int is_path = s->part.coded->kind == 'p' && !s->part.coded->lanes && (s->has_own || !s->is_finding);
    int32_t levels[SOME];
    uint64_t count = SOME;
    wf_give(s->stream.work, s->values);
    s->values = NULL;
    s->at += s->left;
    for (; is_path && s->left; s->left -= count) {
        if (count > s->left) count = s->left;
        WF_TRY(wf_path_next(&s->path, count, levels));
    }
    s->left = 0;
    return WF_OK;
}

/* The next symbol of a part that is not decoded at once; or the class of an integer among the others. */
static wf_code next_own(wf_sequence *s, int32_t *value, wf_class *class, int *is_other) {
    const wf_coded *coded = s->part.coded;
    size_t i;
    *is_other = 0;
    *class = wf_class_of(coded->bases[0] + 2 * wf_walk_sum(&s->walk), coded->families[0]);
    wf_walk_next(&s->walk);
    s->at++;
    s->left--;
    for (i = 0; i < s->tables; i++) {
        const wf_table_line *line = coded->tables->tables + i;
        uint32_t symbol = wf_pull(&s->runs[i].stream, s->runs[i].place++ & 7, wf_table_of(&s->own[i]));
        *value = (int32_t)line->first + (int32_t)symbol;
        if (symbol < line->count) return WF_OK;
    }
    *is_other = 1;
    return WF_OK;
}

static void begin_others(wf_classes *classes) {
    restart((wf_sequence *)(void *)classes);
}

static wf_code next_other(wf_classes *classes, wf_class *class, int *is_there) {
    wf_sequence *s = (wf_sequence *)(void *)classes;
    *is_there = 0;
    for (;;) {
        int32_t value;
        if (s->left == 0) {
            if (s->at == s->stop) return WF_OK;
            WF_TRY(begin_part(s));
            if (is_direct(s->part.coded)) WF_TRY(pass(s));
            continue;
        }
        WF_TRY(next_own(s, &value, class, is_there));
        if (*is_there) return WF_OK;
    }
}

/* Go through what comes first, and find the runs of the others behind it. */
static wf_code find_others(wf_sequence *s) {
    wf_stream stream;
    while (s->at < s->stop) {
        WF_TRY(begin_part(s));
        WF_TRY(pass(s));
    }
    stream = s->stream;
    s->is_finding = 1;
    WF_TRY(wf_integers_find(&s->others, &stream, &s->classes));
    s->is_finding = 0;
    restart(s);
    return WF_OK;
}

wf_code wf_sequence_begin(wf_work *work, const wf_file *file, size_t number, wf_sequence **found) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    const uint8_t *all = (const uint8_t *)file->source.data, *data = NULL;
    wf_sequence *s = (wf_sequence *)wf_take(work, wf_plus(sizeof *s, all ? 0 : chunk->size), 1);
    if (s == NULL) return WF_MEMORY;
    *found = s;
    if (all) {
        data = all + file->source.start + chunk->offset;
    } else { /* in one block with the sequence, which may outlive this call */
        uint8_t *bytes = (uint8_t *)(s + 1);
        WF_TRY(wf_read_at(work, &file->source, chunk->offset, bytes, (size_t)chunk->size));
        data = bytes;
    }
    WF_TRY(wf_check_chunk(work, file, number, data));
    s->file = file;
    s->start = chunk->at;
    s->stop = chunk->at + chunk->count;
    s->coded = s->first_coded = wf_coded_at(file, chunk->at);
    s->classes.begin = begin_others;
    s->classes.next = next_other;
    s->lanes = 8;
    for (s->at = s->start; s->at < s->stop; s->at += s->part.count) {
        s->part = wf_piece_at(file, &s->coded, s->at, s->stop);
        if (s->part.coded->lanes > s->lanes) s->lanes = s->part.coded->lanes;
        s->has_others |= !is_direct(s->part.coded);
        s->has_own |= s->part.coded->tables != NULL;
    }
    WF_TRY(wf_stream_open(&s->begin, work, data, (size_t)chunk->size, s->lanes));
    restart(s);
    return s->has_others ? find_others(s) : WF_OK;
}

uint64_t wf_sequence_at(const wf_sequence *sequence) {
    return sequence->at;
}

/* The memory and the errors of a call are its own. */
static void set_work(wf_sequence *s, wf_work *work) {
    size_t i;
    s->begin.work = s->stream.work = s->runs[0].stream.work = s->runs[1].stream.work = work;
    s->others.high.stream.work = s->others.sizes.stream.work = s->others.bytes.stream.work = work;
    for (i = 0; i < 8; i++) s->others.low[i].stream.work = work;
}

/* Decode the next symbols of a part that is not decoded at once. */
static wf_code read_others(wf_sequence *s, size_t count, int32_t *values) {
    size_t n;
    for (n = 0; n < count; n++) {
        wf_class class;
        int is_other;
        WF_TRY(next_own(s, values + n, &class, &is_other));
        if (is_other) WF_TRY(wf_integer(&s->others, class, values + n));
    }
    return wf_check_book(s->stream.work, s->part.coded, values, count);
}

wf_code wf_sequence_next(wf_sequence *s, wf_work *work, uint64_t count, int32_t *values, size_t *some) {
    set_work(s, work);
    if (s->left == 0) WF_TRY(begin_part(s));
    *some = (size_t)wf_least(count, s->left);
    if (!is_direct(s->part.coded)) return read_others(s, *some, values);
    if (s->values) memcpy(values, s->values + (s->part.count - s->left), *some * sizeof *values);
    else WF_TRY(wf_path_next(&s->path, *some, values));
    s->at += *some;
    s->left -= *some;
    if (s->left == 0) WF_TRY(pass(s));
    return s->at == s->stop && !s->has_others ? wf_stream_end(&s->stream) : WF_OK;
}
#endif
