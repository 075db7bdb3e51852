/* What the chunks `a` and `c` hold: scales, own tables, angles and codebooks. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define SIDE_FAMILY 5
#define LARGEST_SCALE 127
#define LARGEST_ANGLE 64
#define LARGEST_STEP 7000

/* A vector of integers in the chunks `a`: its exponent and length. */
typedef struct vector {
    int32_t exponent;
    uint64_t length;
} vector;

/* Vector `number` of a coded tensor: scales, own tables, angles; 0 where there are no more. */
static int vector_of(const wf_coded *coded, size_t number, vector *found) {
    size_t tables = coded->tables ? coded->tables->count : 0;
    found->length = 0;
    found->exponent = 0;
    if (number < 6) {
        int32_t code = coded->codes[number];
        if (!wf_is_stored(code)) return 1;
        found->exponent = code >= 0 ? code : -3 - code;
        found->length = coded->axes[number % 3];
        return 1;
    }
    number -= 6;
    if (number < tables) {
        found->exponent = coded->tables->tables[number].code;
        found->length = coded->tables->tables[number].count + 1;
        return 1;
    }
    if (number > tables || !coded->basis || (coded->basis->kind != 'f' && coded->basis->kind != 'r')) return 0;
    found->exponent = coded->basis->code;
    found->length = coded->basis->count;
    return 1;
}

/* A place among the vectors of all tensors, one after the other. */
typedef struct place {
    const wf_file *file;
    size_t coded, number;
    vector now;
    uint64_t done; /* of the present one */
    uint64_t left; /* of the chunk */
} place;

/* The classes of the integers of a chunk, from a place on. */
typedef struct places {
    wf_classes classes;
    place from, at;
} places;

static void begin(wf_classes *classes) {
    places *two = (places *)classes;
    two->at = two->from;
}

/* The class of the next integer. */
static wf_code next(wf_classes *classes, wf_class *found, int *is_there) {
    place *at = &((places *)classes)->at;
    *is_there = at->left > 0;
    if (at->left == 0) return WF_OK;
    at->left--;
    while (at->done == at->now.length) {
        at->done = 0;
        while (!vector_of(wf_all_coded(at->file) + at->coded, at->number++, &at->now)) {
            at->coded++;
            at->number = 0;
        }
    }
    at->done++;
    *found = wf_class_of(at->now.exponent, SIDE_FAMILY);
    return WF_OK;
}

/* Decode a chunk of kind `a`. */
static wf_code read_chunk(wf_work *work, const wf_file *file, size_t number, places *two, int16_t *values) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    wf_integers *integers = (wf_integers *)wf_room(work, 1, sizeof *integers);
    const uint8_t *data;
    wf_stream stream;
    wf_class class;
    int more;
    if (integers == NULL) return WF_MEMORY;
    WF_TRY(wf_read_chunk(work, file, number, &data));
    WF_TRY(wf_stream_open(&stream, work, data, (size_t)chunk->size, 8));
    two->from.left = chunk->count;
    WF_TRY(wf_integers_find(integers, &stream, &two->classes));
    for (begin(&two->classes);;) {
        int32_t value;
        WF_TRY(next(&two->classes, &class, &more));
        if (!more) break;
        WF_TRY(wf_integer(integers, class, &value));
        if (value > INT16_MAX || value < -INT16_MAX) {
            return wf_fail(work, WF_FORMAT, "a scale, root or angle is out of range");
        }
        *values++ = (int16_t)value;
    }
    two->from = two->at;
    return WF_OK;
}

/* Decode all chunks of kind `a`. */
static wf_code read_integers(wf_file *file, int16_t *values) {
    places two;
    size_t i;
    memset(&two, 0, sizeof two);
    two.classes.begin = begin;
    two.classes.next = next;
    two.from.file = file;
    for (i = file->directory.kinds[0]; i < file->directory.kinds[1]; i++) {
        wf_work work = file->work;
        wf_code code;
        work.blocks = NULL;
        code = read_chunk(&work, file, i, &two, values);
        wf_give_all(&work);
        WF_TRY(code);
        values += wf_chunks(file)[i].count;
    }
    return WF_OK;
}

/* Put scales less those of the steps into a vector, or the negative of these where there is none. */
static wf_code less_steps(wf_work *work, const int16_t *steps, uint64_t length, int16_t **values) {
    uint64_t n;
    if (steps == NULL) {
        return wf_fail(work, WF_FORMAT, "the spreads of an axis are relative to its steps, and these have no scales");
    }
    if (*values == NULL) *values = (int16_t *)wf_take(work, length, sizeof **values);
    if (*values == NULL) return WF_MEMORY;
    for (n = 0; n < length; n++) {
        int32_t value = (*values)[n] - steps[n];
        if (value > LARGEST_SCALE || value < -LARGEST_SCALE) {
            return wf_fail(work, WF_FORMAT, "a scale is out of range; expected -127 to 127");
        }
        (*values)[n] = (int16_t)value;
    }
    return WF_OK;
}

static wf_code check_bounds(wf_work *work, const int16_t *values, uint64_t count, int32_t most, const char *what) {
    uint64_t n;
    for (n = 0; n < count; n++) {
        if (values[n] > most || values[n] < -most) {
            return wf_fail(work, WF_FORMAT, "%s is out of range; expected -%u to %u", what, (uint64_t)most,
                           (uint64_t)most);
        }
    }
    return WF_OK;
}

/* The scales of a tensor, from what is stored; `values` moves on. */
static wf_code read_scales(wf_work *work, wf_coded *coded, int16_t **values) {
    int32_t range = coded->step < 0 ? -coded->step : coded->step;
    size_t i;
    for (i = 0; i < 6; i++) {
        uint64_t length = coded->axes[i % 3], n;
        int32_t code = coded->codes[i], most = 0;
        int16_t *found = wf_is_stored(code) ? *values : NULL;
        if (found) *values += length;
        if (code < -1) {
            WF_TRY(less_steps(work, coded->steps[i - 3], length, &found));
        } else if (found) {
            WF_TRY(check_bounds(work, found, length, LARGEST_SCALE, "a scale"));
        }
        if (i >= 3) {
            coded->spreads[i - 3] = found;
            continue;
        }
        coded->steps[i] = found;
        for (n = 0; found && n < length; n++) {
            int32_t size = found[n] < 0 ? -found[n] : found[n];
            most = size > most ? size : most;
        }
        range += 16 * most;
    }
    if (coded->kind != 'c' && coded->kind != 'r' && range > LARGEST_STEP) {
        return wf_fail(work, WF_FORMAT, "the steps of a tensor are out of range");
    }
    return WF_OK;
}

static wf_code read_tables(wf_work *work, wf_file *file, const wf_coded *coded, int16_t **values) {
    wf_table_lines *all = WF_ITEMS(file->directory.tables, wf_table_lines), *lines;
    wf_own *own;
    size_t i;
    int has_escape;
    if (coded->tables == NULL) return WF_OK;
    lines = all + (coded->tables - all);
    own = (wf_own *)wf_take(work, 1, sizeof *own);
    if (own == NULL) return WF_MEMORY;
    for (i = 0; i < lines->count; i++) {
        lines->tables[i].differences = *values;
        *values += lines->tables[i].count + 1;
        WF_TRY(wf_make_own(work, lines->tables + i, own, &has_escape));
    }
    wf_give(work, own);
    return coded->kind == 'p' ? wf_fail(work, WF_FORMAT, "a tensor has both a trellis and tables of its own") : WF_OK;
}

/* The angles of a tensor: its own, or those that it shares with an earlier one. */
static wf_code read_angles(wf_work *work, wf_file *file, const wf_coded *coded, int16_t **values) {
    wf_basis *all = WF_ITEMS(file->directory.bases, wf_basis), *basis;
    const wf_basis *of;
    uint64_t number = (uint64_t)(coded - wf_all_coded(file)), count;
    if (coded->basis == NULL || coded->basis->kind == 'c') return WF_OK;
    basis = all + (coded->basis - all);
    if (basis->kind != 's') {
        basis->angles = *values;
        *values += basis->count;
        return check_bounds(work, basis->angles, basis->count, LARGEST_ANGLE, "an angle of a basis");
    }
    of = basis->of < number ? wf_all_coded(file)[basis->of].basis : NULL;
    if (of == NULL || of->kind == 'c') {
        return wf_fail(work, WF_FORMAT, "tensor %u shares the angles of tensor %u, which has none before it", number,
                       basis->of);
    }
    WF_TRY(wf_angles_of(work, of, coded, wf_entries(file) + coded->entry, &count));
    if (count != of->count) {
        return wf_fail(work, WF_FORMAT, "tensor %u needs %u angles; tensor %u has %u", number, count, basis->of,
                       of->count);
    }
    basis->kind = of->kind;
    basis->axis = of->axis;
    basis->directions = of->directions;
    basis->count = of->count;
    basis->angles = of->angles;
    return WF_OK;
}

static wf_code read_books(wf_work *work, wf_file *file) {
    wf_coded *coded = WF_ITEMS(file->directory.coded, wf_coded);
    const wf_chunk *chunks = wf_chunks(file);
    float *books = (float *)wf_take(work, file->directory.needed[1], sizeof *books), *to = books;
    size_t i;
    if (books == NULL) return WF_MEMORY;
    for (i = file->directory.kinds[1]; i < file->directory.kinds[2]; i++) {
        wf_work own = *work;
        const uint8_t *data;
        uint64_t n;
        wf_code code;
        own.blocks = NULL;
        code = wf_read_chunk(&own, file, i, &data);
        for (n = 0; code == WF_OK && n < chunks[i].count; n++) *to++ = wf_float_of(wf_le32(data + 4 * n));
        wf_give_all(&own);
        WF_TRY(code);
    }
    for (i = 0; i < file->directory.coded.count; i++) {
        uint32_t n;
        int is_wrong;
        if (coded[i].kind != 'c') continue;
        is_wrong = coded[i].first + (int64_t)coded[i].size <= 0;
        coded[i].book = books;
        for (n = 0; n < coded[i].size; n++) is_wrong |= (wf_bits_of(*books++) & 0x7F800000) == 0x7F800000;
        if (is_wrong) {
            return wf_fail(work, WF_FORMAT, "a codebook has no value for the symbol 0, or one that is not finite");
        }
    }
    return WF_OK;
}

/* Check that no chunk begins in the middle of a path or of a row of an adaptive model, or has too many rows. */
static wf_code check_pieces(wf_work *work, const wf_file *file) {
    const wf_chunk *chunks = wf_chunks(file);
    const wf_coded *coded = wf_all_coded(file);
    size_t i;
    for (i = file->directory.kinds[2]; i < file->directory.kinds[3]; i++) {
        uint64_t at = chunks[i].at, stop = at + chunks[i].count;
        size_t n = at < stop ? wf_coded_at(file, at) : 0;
        for (; at < stop; n++) {
            uint64_t end = wf_least(stop, coded[n].at + coded[n].values);
            if ((coded[n].kind == 'p' || coded[n].is_adaptive) && (at - coded[n].at) % wf_span(coded + n)) {
                return wf_fail(work, WF_FORMAT, "chunk %u begins in the middle of a path or row of a tensor", (uint64_t)i);
            }
            if (coded[n].is_adaptive && end - at > (uint64_t)1 << 22) {
                return wf_fail(work, WF_FORMAT, "chunk %u has %u elements of a tensor, too many to adapt to", (uint64_t)i,
                               end - at);
            }
            at = end > at ? end : at;
        }
    }
    return WF_OK;
}

wf_code wf_read_side(wf_file *file) {
    wf_work *work = &file->work;
    wf_coded *coded = WF_ITEMS(file->directory.coded, wf_coded);
    int16_t *values = (int16_t *)wf_room(work, file->directory.needed[0], sizeof *values);
    size_t i, j;
    if (values == NULL) return WF_MEMORY;
    WF_TRY(read_integers(file, values));
    for (i = 0; i < file->directory.coded.count; i++) {
        WF_TRY(read_scales(work, coded + i, &values));
        WF_TRY(read_tables(work, file, coded + i, &values));
        WF_TRY(read_angles(work, file, coded + i, &values));
        for (j = 0; coded[i].is_adaptive && j < 3; j++) {
            if (coded[i].spreads[j] == NULL && coded[i].tables == NULL && coded[i].kind != 'p') continue;
            return wf_fail(work, WF_FORMAT, "a tensor has both an adaptive model and scales, tables or a trellis");
        }
    }
    WF_TRY(read_books(work, file));
    return check_pieces(work, file);
}
