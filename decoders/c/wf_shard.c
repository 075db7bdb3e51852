/* Shards of compressed model directories: safetensors files whose tensors are payloads. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#ifndef WF_PLAIN

#define LARGEST_HEADER 100000000u

static int is_text(wf_text text, const char *other) {
    return text.size == strlen(other) && memcmp(text.data, other, text.size) == 0;
}

/* A list of one or two numbers. */
static wf_code read_numbers(wf_json *json, size_t count, uint64_t *numbers) {
    int first = 1, more;
    size_t i;
    WF_TRY(wf_json_open(json, '['));
    for (i = 0; i <= count; i++) {
        int64_t number;
        WF_TRY(wf_json_more(json, ']', &first, &more));
        if (more != (i < count)) return wf_json_fail(json, "as many numbers as a payload has");
        if (!more) break;
        WF_TRY(wf_json_whole(json, 0, INT64_MAX, &number));
        numbers[i] = (uint64_t)number;
    }
    return WF_OK;
}

/* Texts by their names, which nobody needs. */
static wf_code skip_texts(wf_json *json) {
    int first = 1, more;
    wf_text text;
    WF_TRY(wf_json_open(json, '{'));
    for (;;) {
        WF_TRY(wf_json_more(json, '}', &first, &more));
        if (!more) return WF_OK;
        WF_TRY(wf_json_key(json, &text));
        WF_TRY(wf_json_text(json, &text));
    }
}

/* The number of a name such as waterfill_12. */
static wf_code number_of(wf_json *json, wf_text name, uint64_t *number) {
    static const char prefix[] = "waterfill_";
    size_t at = sizeof prefix - 1;
    *number = 0;
    if (name.size > at && name.size <= at + 18 && memcmp(name.data, prefix, at) == 0) {
        for (; at < name.size && name.data[at] >= '0' && name.data[at] <= '9'; at++) {
            *number = 10 * *number + (uint64_t)(name.data[at] - '0');
        }
        if (at == name.size && at >= sizeof prefix) return WF_OK;
    }
    return wf_fail(json->work, WF_FORMAT, "the shard has the tensor %t; expected payloads waterfill_0, waterfill_1, ...",
                   &name);
}

/* What the header says of a payload; `start` counts from the end of the header. */
static wf_code read_payload(wf_json *json, wf_payload *payload) {
    int first = 1, more, seen = 0;
    uint64_t length = 0, places[2] = {0, 0};
    wf_text key, dtype = {"", 0};
    WF_TRY(wf_json_open(json, '{'));
    for (;;) {
        WF_TRY(wf_json_more(json, '}', &first, &more));
        if (!more) break;
        WF_TRY(wf_json_key(json, &key));
        if (is_text(key, "dtype")) {
            WF_TRY(wf_json_text(json, &dtype));
            seen |= 1;
        } else if (is_text(key, "shape")) {
            WF_TRY(read_numbers(json, 1, &length));
            seen |= 2;
        } else if (is_text(key, "data_offsets")) {
            WF_TRY(read_numbers(json, 2, places));
            seen |= 4;
        } else {
            return wf_json_fail(json, "dtype, shape or data_offsets");
        }
    }
    if (seen != 7 || !is_text(dtype, "U8") || places[1] < places[0] || places[1] - places[0] != length) {
        return wf_json_fail(json, "a payload of type U8 with one axis");
    }
    payload->start = places[0];
    payload->size = length;
    return WF_OK;
}

/* Read a header from its text; `after`: where it ends in the shard, which has `size` bytes. */
static wf_code read_header(wf_json *json, uint64_t after, uint64_t size, wf_payload *payloads, size_t room,
                           size_t *count) {
    int first = 1, more;
    WF_TRY(wf_json_open(json, '{'));
    for (;;) {
        wf_payload payload;
        wf_text name;
        WF_TRY(wf_json_more(json, '}', &first, &more));
        if (!more) return wf_json_end(json);
        WF_TRY(wf_json_key(json, &name));
        if (is_text(name, "__metadata__")) {
            WF_TRY(skip_texts(json));
            continue;
        }
        WF_TRY(number_of(json, name, &payload.number));
        WF_TRY(read_payload(json, &payload));
        if (payload.start > size - after || payload.size > size - after - payload.start) {
            return wf_fail(json->work, WF_FORMAT, "the shard is cut: %u bytes cannot hold the payload %t", size, &name);
        }
        payload.start += after;
        if (*count < room) payloads[*count] = payload;
        ++*count;
    }
}

static wf_code find_payloads(wf_work *work, const wf_source *shard, wf_payload *payloads, size_t room, size_t *count) {
    uint8_t head[8];
    uint64_t size;
    wf_json json;
    if (shard->size < 8) return wf_fail(work, WF_FORMAT, "the shard is cut within its first 8 bytes");
    WF_TRY(wf_read_at(work, shard, 0, head, 8));
    size = wf_le64(head);
    if (size > LARGEST_HEADER || size > shard->size - 8) {
        return wf_fail(work, WF_FORMAT, "a header of %u bytes is too large for a shard of %u", size, shard->size);
    }
    json.work = work;
    json.size = (size_t)size;
    json.at = 0;
    json.text = (char *)wf_take(work, size, 1);
    if (json.text == NULL) return WF_MEMORY;
    WF_TRY(wf_read_at(work, shard, 8, json.text, json.size));
    return read_header(&json, 8 + size, shard->size, payloads, room, count);
}

wf_code wf_payloads(const wf_source *shard, const wf_allocator *allocator, wf_payload *payloads, size_t room,
                    size_t *count, wf_error *error) {
    wf_work work;
    wf_code code;
    *count = 0;
    memset(&work, 0, sizeof work);
    work.allocator = allocator;
    work.error = error;
    code = find_payloads(&work, shard, payloads, room, count);
    wf_give_all(&work);
    return wf_told(&work, code);
}
#endif
