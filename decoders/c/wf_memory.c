/* Memory, errors and checksums. SPDX-License-Identifier: MIT */
#include "wf_internal.h"
#include "wf_tables.h"

#ifdef WF_SMALL
wf_code wf_told(const wf_work *work, wf_code code) {
    static const char texts[7][16] = {"", "damaged", "unknown version", "no memory", "not read", "wrong call", "too large"};
    if (work->error && code != WF_OK) {
        work->error->code = code;
        memcpy(work->error->message, texts[code], sizeof texts[code]);
    }
    return code;
}
#else
#include <stdarg.h>

#define LONGEST_NAME 60 /* bytes of a name in a message */

static size_t put_bytes(char *to, size_t at, size_t room, const char *data, size_t size) {
    size_t i;
    for (i = 0; i < size && at + 1 < room; i++) {
        unsigned char byte = (unsigned char)data[i];
        to[at++] = byte < 32 || byte == 127 ? '?' : (char)byte;
    }
    return at;
}

static size_t put_number(char *to, size_t at, size_t room, uint64_t number) {
    char digits[20];
    size_t n = sizeof digits;
    do {
        digits[--n] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    return put_bytes(to, at, room, digits + n, sizeof digits - n);
}

/* A name, cut between characters where it is long. */
static size_t put_name(char *to, size_t at, size_t room, const wf_text *name) {
    size_t size = name->size;
    if (size > LONGEST_NAME) {
        size = LONGEST_NAME;
        while (size && ((unsigned char)name->data[size] & 0xC0) == 0x80) size--;
    }
    at = put_bytes(to, at, room, "'", 1);
    at = put_bytes(to, at, room, name->data, size);
    return size < name->size ? put_bytes(to, at, room, "...'", 4) : put_bytes(to, at, room, "'", 1);
}

wf_code wf_fail(wf_work *work, wf_code code, const char *text, ...) {
    wf_error *error = work->error;
    va_list values;
    size_t at = 0, room;
    if (error == NULL) return code;
    error->code = code;
    room = sizeof error->message;
    va_start(values, text);
    for (; *text; text++) {
        if (*text != '%') {
            at = put_bytes(error->message, at, room, text, 1);
            continue;
        }
        text++;
        if (*text == 's') {
            const char *some = va_arg(values, const char *);
            at = put_bytes(error->message, at, room, some, strlen(some));
        } else if (*text == 't') {
            at = put_name(error->message, at, room, va_arg(values, const wf_text *));
        } else {
            at = put_number(error->message, at, room, va_arg(values, uint64_t));
        }
    }
    va_end(values);
    error->message[at] = 0;
    return code;
}
#endif

void *wf_room(wf_work *work, uint64_t count, size_t each) {
    uint64_t size = wf_plus(wf_times(count, each), sizeof(wf_block));
    size_t limit = work->allocator->limit;
    wf_block *block = NULL;
    if (size <= SIZE_MAX && (limit == 0 || (work->used <= limit && size <= limit - work->used))) {
        block = (wf_block *)work->allocator->allocate(work->allocator->context, (size_t)size);
    }
    if (block == NULL) {
        if (limit) {
            (void)wf_fail(work, WF_MEMORY, "%u bytes more are needed, and %u of %u are in use; give the reader more memory",
                    size, (uint64_t)work->used, (uint64_t)limit);
        } else {
            (void)wf_fail(work, WF_MEMORY, "%u bytes more are needed, which the allocator does not have", size);
        }
        return NULL;
    }
    block->head.size = (size_t)size;
    block->head.next = work->blocks;
    work->blocks = block;
    work->used += (size_t)size;
    return block + 1;
}

void *wf_take(wf_work *work, uint64_t count, size_t each) {
    void *memory = wf_room(work, count, each);
    if (memory) memset(memory, 0, (size_t)count * each);
    return memory;
}

void wf_give(wf_work *work, const void *memory) {
    wf_block **place = &work->blocks, *block;
    if (memory == NULL) return;
    while (*place != (const wf_block *)memory - 1) place = &(*place)->head.next;
    block = *place;
    *place = block->head.next;
    work->used -= block->head.size;
    work->allocator->release(work->allocator->context, block, block->head.size);
}

void wf_give_all(wf_work *work) {
    while (work->blocks) wf_give(work, work->blocks + 1);
}

wf_code wf_reserve(wf_work *work, wf_list *list, size_t count) {
    void *items = wf_take(work, count, list->each);
    if (items == NULL) return WF_MEMORY;
    if (list->count) memcpy(items, list->items, list->count * list->each);
    wf_give(work, list->items);
    list->items = items;
    list->room = count;
    return WF_OK;
}

void *wf_push(wf_work *work, wf_list *list) {
    if (list->count == list->room) {
        size_t room = list->room < 8 ? 8 : list->room + list->room / 2;
        if (wf_reserve(work, list, room) != WF_OK) return NULL;
    }
    return (char *)list->items + list->count++ * list->each;
}

uint32_t wf_crc32(uint32_t crc, const uint8_t *data, size_t size) {
    size_t i;
    crc = ~crc;
#ifndef WF_SMALL
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low = wf_le32(data) ^ crc, high = wf_le32(data + 4);
        crc = 0;
        for (i = 0; i < 4; i++) {
            crc ^= wf_crc_ahead[256 * (6 - i) + (low >> 8 * i & 255)];
            crc ^= i < 3 ? wf_crc_ahead[256 * (2 - i) + (high >> 8 * i & 255)] : wf_crc[high >> 24];
        }
    }
#endif
    for (i = 0; i < size; i++) crc = crc >> 8 ^ wf_crc[(crc ^ data[i]) & 255];
    return ~crc;
}
