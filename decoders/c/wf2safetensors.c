/* wf2safetensors IN OUT: decode a .wf file into a safetensors file, one tensor at a time.
 * SPDX-License-Identifier: MIT */
#include "program.h"
#include "wf_internal.h"

#include <stdlib.h>
#include <string.h>

/* Names of types in safetensors; NULL for those that it does not have. */
static const char *const types[WF_TYPES] = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ",
                                            "F8_E5M2FNUZ", NULL, NULL, "C64", NULL, "I8", "I16", "I32", "I64", "U8",
                                            "U16", "U32", "U64", "BOOL"};

/* A text that grows. */
typedef struct text {
    char *data;
    size_t size, room;
} text;

static void append(text *to, const char *some, size_t size) {
    if (size > to->room - to->size) {
        to->room = 2 * to->room + size;
        to->data = (char *)realloc(to->data, to->room);
        if (to->data == NULL) fail("memory", "there is not enough for the header");
    }
    memcpy(to->data + to->size, some, size);
    to->size += size;
}

static void append_text(text *to, const char *some) {
    append(to, some, strlen(some));
}

static void append_number(text *to, uint64_t number) {
    char digits[21];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    append(to, digits + at, sizeof digits - at);
}

/* A name as a string of JSON. */
static void append_name(text *to, const wf_tensor *tensor) {
    static const char hexadecimal[] = "0123456789abcdef";
    size_t i;
    append(to, "\"", 1);
    for (i = 0; i < tensor->name_size; i++) {
        char c = tensor->name[i];
        if (c == '"' || c == '\\') {
            append(to, "\\", 1);
            append(to, &c, 1);
        } else if ((unsigned char)c < 0x20) {
            append_text(to, "\\u00");
            append(to, hexadecimal + (c >> 4), 1);
            append(to, hexadecimal + (c & 15), 1);
        } else {
            append(to, &c, 1);
        }
    }
    append(to, "\"", 1);
}

/* The order of the data: large types first, so that all are aligned. */
static const wf_file *sorted_file;

static int by_size(const void *a, const void *b) {
    size_t one = *(const size_t *)a, other = *(const size_t *)b;
    size_t first = wf_type_size(wf_at(sorted_file, one)->type), second = wf_type_size(wf_at(sorted_file, other)->type);
    if (first != second) return first > second ? -1 : 1;
    return one < other ? -1 : one > other;
}

static text header_of(const wf_file *file, const size_t *order, const char *path) {
    text header = {NULL, 0, 0};
    uint64_t at = 0;
    size_t n, axis;
    append_text(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (n = 0; n < wf_count(file); n++) {
        const wf_tensor *tensor = wf_at(file, order[n]);
        wf_error error;
        uint64_t size = wf_size(file, order[n], WF_OWN, &error);
        if (error.code != WF_OK) fail(path, error.message);
        if (types[tensor->type] == NULL) fail(path, "a tensor has a type that safetensors does not know");
        append_text(&header, ",");
        append_name(&header, tensor);
        append_text(&header, ":{\"dtype\":\"");
        append_text(&header, types[tensor->type]);
        append_text(&header, "\",\"shape\":[");
        for (axis = 0; axis < tensor->axes; axis++) {
            if (axis) append_text(&header, ",");
            append_number(&header, tensor->shape[axis]);
        }
        append_text(&header, "],\"data_offsets\":[");
        append_number(&header, at);
        append_text(&header, ",");
        append_number(&header, at += size);
        append_text(&header, "]}");
    }
    append_text(&header, "}");
    while (header.size % 8) append_text(&header, " ");
    return header;
}

static void write_tensors(const wf_file *file, const size_t *order, const char *path, output *to) {
    wf_kept kept;
    size_t n;
    memset(&kept, 0, sizeof kept);
    for (n = 0; n < wf_count(file); n++) {
        wf_error error;
        size_t size = wf_size(file, order[n], WF_OWN, &error);
        void *data = take(size);
        if (wf_decode(file, &kept, order[n], WF_OWN, data, size, &error) != WF_OK) fail(path, error.message);
        wf_swap(data, size, wf_at(file, order[n])->type);
        write_bytes(to, data, size);
        free(data);
    }
    wf_forget(file, &kept);
}

int main(int count, char **arguments) {
    FILE *input;
    wf_file *file;
    size_t *order, n;
    text header;
    output to;
    uint8_t length[8];
    if (count != 3) {
        fprintf(stderr, "Usage: wf2safetensors IN.wf OUT.safetensors\n");
        return 2;
    }
    file = open_input(arguments[1], &input);
    order = (size_t *)take(wf_count(file) * sizeof *order);
    for (n = 0; n < wf_count(file); n++) order[n] = n;
    sorted_file = file;
    qsort(order, wf_count(file), sizeof *order, by_size);
    header = header_of(file, order, arguments[1]);
    open_output(&to, arguments[2]);
    for (n = 0; n < 8; n++) length[n] = (uint8_t)((uint64_t)header.size >> (8 * n));
    write_bytes(&to, length, 8);
    write_bytes(&to, header.data, header.size);
    write_tensors(file, order, arguments[1], &to);
    close_output(&to);
    free(header.data);
    free(order);
    wf_close(file);
    fclose(input);
    return 0;
}
