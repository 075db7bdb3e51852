/* Directories as plain bytes (docs/format.md, "Plain files"), read from left to right. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define MOST_TEMPLATES 64
#define MOST_DEPTH 4
#define FEWEST_VALUES ((uint64_t)1 << 16) /* which any directory may have */
#define VALUES_PER_BYTE 32
#define MOST_VALUES ((uint64_t)1 << 26)

enum { KIND_NULL, KIND_FALSE, KIND_TRUE, KIND_REAL, KIND_WHOLE, KIND_TEXT, KIND_LIST, KIND_ROWS, WHOLE_HOLE, TEXT_HOLE };

wf_code wf_rows_fail(wf_rows *rows, const char *expected) {
    return wf_fail(rows->work, WF_FORMAT, "the directory cannot be read (expected %s)", expected);
}

/* Numbers and bytes at a place */

static wf_code take(wf_rows *rows, wf_bytes *from, uint64_t size, const uint8_t **bytes) {
    *bytes = from->at;
    if (size > (uint64_t)(from->end - from->at)) return wf_rows_fail(rows, "more bytes");
    from->at += size;
    return WF_OK;
}

/* A number from 0 to 2^64 - 1. */
static wf_code number(wf_rows *rows, wf_bytes *from, uint64_t *found) {
    unsigned shift;
    *found = 0;
    for (shift = 0; shift < 64 && from->at < from->end; shift += 7) {
        uint8_t byte = *from->at++;
        if (shift == 63 && byte > 1) break;
        *found |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return byte || !shift ? WF_OK : wf_rows_fail(rows, "a shorter number");
    }
    return wf_rows_fail(rows, "a number");
}

/* How many things of at least a byte follow. */
static wf_code count_of(wf_rows *rows, wf_bytes *from, uint64_t *count) {
    WF_TRY(number(rows, from, count));
    return *count > (uint64_t)(from->end - from->at) ? wf_rows_fail(rows, "more bytes") : WF_OK;
}

static wf_code part(wf_rows *rows, wf_bytes *from, wf_bytes *found) {
    uint64_t size;
    WF_TRY(count_of(rows, from, &size));
    WF_TRY(take(rows, from, size, &found->at));
    found->end = from->at;
    return WF_OK;
}

static wf_code signed_number(wf_rows *rows, wf_bytes *from, int64_t *found) {
    uint64_t code;
    WF_TRY(number(rows, from, &code));
    *found = (int64_t)(code >> 1) ^ -(int64_t)(code & 1);
    return WF_OK;
}

/* Texts */

size_t wf_utf8(const char *text, size_t size) {
    const uint8_t *at = (const uint8_t *)text;
    size_t length, i;
    if (size == 0) return 0;
    length = at[0] < 0x80 ? 1 : at[0] < 0xC2 ? 0 : at[0] < 0xE0 ? 2 : at[0] < 0xF0 ? 3 : at[0] < 0xF5 ? 4 : 0;
    if (length > size) return 0;
    for (i = 1; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80) return 0;
    }
    if (length < 3) return length;
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xF0 && at[1] < 0x90)) return 0; /* longer than they have to be */
    return (at[0] == 0xED && at[1] > 0x9F) || (at[0] == 0xF4 && at[1] > 0x8F) ? 0 : length; /* halves of pairs, none */
}

size_t wf_letters(wf_text text) {
    size_t i, count = 0;
    for (i = 0; i < text.size; i++) count += ((unsigned char)text.data[i] & 0xC0) != 0x80;
    return count;
}

static wf_code check_text(wf_rows *rows, wf_text text) {
    while (text.size) {
        size_t size = wf_utf8(text.data, text.size);
        if (size == 0) return wf_rows_fail(rows, "UTF-8");
        text.data += size;
        text.size -= size;
    }
    return WF_OK;
}

/* One of the texts, by the number at a place. */
static wf_code known_text(wf_rows *rows, wf_bytes *from, wf_text *text) {
    wf_bytes at, bytes;
    uint64_t which;
    WF_TRY(number(rows, from, &which));
    if (which >= rows->texts) return wf_rows_fail(rows, "a text that is there");
    at.at = rows->first + rows->places[which];
    at.end = rows->all.end;
    WF_TRY(part(rows, &at, &bytes));
    text->data = (const char *)bytes.at;
    text->size = (size_t)(bytes.end - bytes.at);
    return WF_OK;
}

/* The text of a hole: the first bytes of the last one, and one of the texts. */
static wf_code joined_text(wf_rows *rows, wf_text *text) {
    uint64_t shared;
    wf_text rest;
    WF_TRY(number(rows, &rows->all, &shared));
    WF_TRY(known_text(rows, &rows->all, &rest));
    if (shared > rows->held.size) return wf_rows_fail(rows, "a longer text before");
    if (shared > rows->room || rest.size > rows->room - shared) return wf_rows_fail(rows, "shorter texts");
    text->data = rows->joined;
    text->size = (size_t)shared + rest.size;
    if (shared) memcpy(rows->joined, rows->held.data, (size_t)shared);
    if (rest.size) memcpy(rows->joined + shared, rest.data, rest.size);
    rows->joined += text->size;
    rows->room -= text->size;
    rows->held = *text;
    return check_text(rows, *text);
}

/* Values */

/* Where the next value begins: in the template of a row, or where the directory is. */
static wf_bytes *here(wf_rows *rows) {
    return rows->is_row ? &rows->template : &rows->all;
}

static wf_code kind_of(wf_rows *rows, uint8_t *kind) {
    const uint8_t *byte;
    if (rows->left-- == 0) return wf_rows_fail(rows, "fewer values");
    WF_TRY(take(rows, here(rows), 1, &byte));
    *kind = *byte;
    return WF_OK;
}

wf_code wf_rows_scalar(wf_rows *rows, wf_scalar *scalar) {
    uint8_t kind;
    const uint8_t *bytes;
    uint64_t more = 0;
    memset(scalar, 0, sizeof *scalar);
    WF_TRY(kind_of(rows, &kind));
    if (kind == KIND_NULL) return WF_OK;
    if (kind == KIND_TEXT || (kind == TEXT_HOLE && rows->is_row)) {
        scalar->kind = WF_TEXT;
        return kind == KIND_TEXT ? known_text(rows, here(rows), &scalar->text) : joined_text(rows, &scalar->text);
    }
    if (kind == KIND_REAL) {
        uint64_t bits;
        WF_TRY(take(rows, here(rows), 8, &bytes));
        bits = wf_le64(bytes);
        scalar->kind = WF_REAL;
        scalar->is_beyond = (bits >> 52 & 0x7FF) == 0x7FF;
        memcpy(&scalar->value, &bits, sizeof bits);
        return WF_OK;
    }
    if (kind != KIND_WHOLE && (kind != WHOLE_HOLE || !rows->is_row)) return wf_rows_fail(rows, "another value");
    scalar->kind = WF_INTEGER;
    scalar->is_whole = 1;
    WF_TRY(signed_number(rows, here(rows), &scalar->whole));
    if (kind == WHOLE_HOLE) WF_TRY(number(rows, &rows->all, &more));
    if (more > (uint64_t)INT64_MAX - (uint64_t)scalar->whole) return wf_rows_fail(rows, "a smaller number");
    scalar->whole = (int64_t)((uint64_t)scalar->whole + more);
    scalar->value = (double)scalar->whole;
    return WF_OK;
}

wf_code wf_rows_whole(wf_rows *rows, int64_t least, int64_t most, int64_t *value) {
    wf_scalar found;
    WF_TRY(wf_rows_scalar(rows, &found));
    *value = found.whole;
    if (found.kind == WF_INTEGER && found.whole >= least && found.whole <= most) return WF_OK;
    return wf_rows_fail(rows, "a whole number within its bounds");
}

wf_code wf_rows_text(wf_rows *rows, wf_text *text) {
    wf_scalar found;
    WF_TRY(wf_rows_scalar(rows, &found));
    *text = found.text;
    return found.kind == WF_TEXT ? WF_OK : wf_rows_fail(rows, "a text");
}

wf_code wf_rows_key(wf_rows *rows, wf_text *key) {
    return known_text(rows, &rows->all, key);
}

wf_code wf_rows_bool(wf_rows *rows, uint8_t *value) {
    WF_TRY(kind_of(rows, value));
    *value -= KIND_FALSE;
    return *value <= 1 ? WF_OK : wf_rows_fail(rows, "true or false");
}

int wf_rows_is_null(wf_rows *rows) {
    wf_bytes *at = here(rows);
    if (at->at == at->end || *at->at != KIND_NULL || rows->left == 0) return 0;
    rows->left--;
    at->at++;
    return 1;
}

/* Lists */

wf_code wf_rows_open(wf_rows *rows, char bracket) {
    uint8_t kind = KIND_LIST;
    wf_open_list *list = rows->lists + rows->depth;
    wf_bytes one;
    uint64_t i;
    if (bracket == '[') WF_TRY(kind_of(rows, &kind));
    if (rows->depth > MOST_DEPTH || kind < KIND_LIST || kind > KIND_ROWS) return wf_rows_fail(rows, "a list");
    list->is_rows = kind == KIND_ROWS;
    if (list->is_rows) {
        if (rows->depth != 1) return wf_rows_fail(rows, "no rows within a list");
        WF_TRY(count_of(rows, &rows->all, &rows->templates));
        if (rows->templates > MOST_TEMPLATES) return wf_rows_fail(rows, "fewer templates");
        rows->first_template = rows->all.at;
        for (i = 0; i < rows->templates; i++) WF_TRY(part(rows, &rows->all, &one));
    }
    rows->depth++;
    return count_of(rows, here(rows), &list->left);
}

static wf_code begin_row(wf_rows *rows) {
    wf_bytes from = {rows->first_template, rows->all.end};
    uint64_t which;
    WF_TRY(number(rows, &rows->all, &which));
    if (which >= rows->templates) return wf_rows_fail(rows, "a template that is there");
    for (which++; which; which--) WF_TRY(part(rows, &from, &rows->template));
    rows->is_row = 1;
    return WF_OK;
}

wf_code wf_rows_more(wf_rows *rows, int *more) {
    wf_open_list *list = rows->lists + rows->depth - 1;
    if (list->is_rows && rows->is_row) {
        rows->is_row = 0;
        if (rows->template.at != rows->template.end) return wf_rows_fail(rows, "one value in a template");
    }
    *more = list->left > 0;
    if (list->left == 0) {
        rows->depth--;
        return WF_OK;
    }
    list->left--;
    return list->is_rows ? begin_row(rows) : WF_OK;
}

wf_code wf_rows_end(wf_rows *rows) {
    return rows->all.at == rows->all.end && rows->room == 0 ? WF_OK : wf_rows_fail(rows, "the end");
}

wf_code wf_rows_begin(wf_rows *rows, wf_work *work, const uint8_t *data, size_t size, uint64_t most) {
    wf_bytes one;
    wf_text text;
    uint64_t i;
    memset(rows, 0, sizeof *rows);
    rows->work = work;
    rows->first = rows->all.at = data;
    rows->all.end = data + size;
    rows->left = wf_least(MOST_VALUES, FEWEST_VALUES + VALUES_PER_BYTE * (uint64_t)size);
    WF_TRY(count_of(rows, &rows->all, &rows->texts));
    rows->places = (uint32_t *)wf_room(work, rows->texts, sizeof *rows->places);
    if (rows->places == NULL) return WF_MEMORY;
    for (i = 0; i < rows->texts; i++) {
        rows->places[i] = (uint32_t)(rows->all.at - data);
        WF_TRY(part(rows, &rows->all, &one));
        text.data = (const char *)one.at;
        text.size = (size_t)(one.end - one.at);
        WF_TRY(check_text(rows, text)); /* once: few bytes may name a long one many times */
    }
    WF_TRY(number(rows, &rows->all, &rows->room));
    if (rows->room > most) return wf_rows_fail(rows, "shorter texts");
    rows->joined = (char *)wf_room(work, rows->room, 1);
    return rows->joined ? WF_OK : WF_MEMORY;
}

/* Either form of a directory */

#ifdef WF_PLAIN
#define READ(name, ...) wf_rows_##name(&tree->rows, __VA_ARGS__)
#define READ_NOTHING(name) wf_rows_##name(&tree->rows)
#else
#define READ(name, ...) (tree->is_plain ? wf_rows_##name(&tree->rows, __VA_ARGS__) : wf_json_##name(&tree->json, __VA_ARGS__))
#define READ_NOTHING(name) (tree->is_plain ? wf_rows_##name(&tree->rows) : wf_json_##name(&tree->json))
#endif

wf_code wf_tree_fail(wf_tree *tree, const char *expected) {
    return READ(fail, expected);
}
wf_code wf_tree_open(wf_tree *tree, char bracket) {
    return READ(open, bracket);
}
wf_code wf_tree_more(wf_tree *tree, char bracket, int *first, int *more) {
#ifndef WF_PLAIN
    if (!tree->is_plain) return wf_json_more(&tree->json, bracket, first, more);
#endif
    (void)bracket;
    (void)first;
    return wf_rows_more(&tree->rows, more);
}
uint64_t wf_tree_left(const wf_tree *tree) {
    return tree->is_plain ? tree->rows.lists[tree->rows.depth - 1].left : 0;
}
wf_code wf_tree_whole(wf_tree *tree, int64_t least, int64_t most, int64_t *value) {
    return READ(whole, least, most, value);
}
wf_code wf_tree_bool(wf_tree *tree, uint8_t *value) {
    return READ(bool, value);
}
wf_code wf_tree_text(wf_tree *tree, wf_text *text) {
    return READ(text, text);
}
wf_code wf_tree_scalar(wf_tree *tree, wf_scalar *scalar) {
    return READ(scalar, scalar);
}
wf_code wf_tree_key(wf_tree *tree, wf_text *key) {
    return READ(key, key);
}
int wf_tree_is_null(wf_tree *tree) {
    return READ_NOTHING(is_null);
}
wf_code wf_tree_end(wf_tree *tree) {
    return READ_NOTHING(end);
}
