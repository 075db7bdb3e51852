/* Chunks, their parts, and where elements are. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

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

wf_walk wf_walk_from(const wf_coded *coded, const int16_t *const *scales, uint64_t at) {
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

wf_code wf_bytes_at(wf_work *work, const wf_source *source, uint64_t at, uint64_t size, const uint8_t **data) {
    uint8_t *bytes;
    if (source->data) {
        *data = (const uint8_t *)source->data + source->start + at;
        return WF_OK;
    }
    bytes = (uint8_t *)wf_room(work, size, 1);
    *data = bytes;
    return bytes ? wf_read_at(work, source, at, bytes, (size_t)size) : WF_MEMORY;
}

wf_code wf_check_chunk(wf_work *work, const wf_file *file, size_t number, const uint8_t *data) {
    const wf_chunk *chunk = wf_chunks(file) + number;
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* fuzzers do not find checksums */
    return WF_OK;
#endif
    if (wf_crc32(0, data, (size_t)chunk->size) == chunk->crc) return WF_OK;
    return wf_fail(work, WF_FORMAT, "the checksum of chunk %u is wrong: the file is damaged", (uint64_t)number);
}

wf_code wf_read_chunk(wf_work *work, const wf_file *file, size_t number, const uint8_t **data) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    WF_TRY(wf_bytes_at(work, &file->source, chunk->offset, chunk->size, data));
    return wf_check_chunk(work, file, number, *data);
}

wf_piece wf_piece_at(const wf_file *file, size_t *n, uint64_t at, uint64_t stop) {
    const wf_coded *coded = wf_all_coded(file);
    wf_piece found;
    while (coded[*n].at + coded[*n].values <= at) ++*n;
    found.coded = coded + *n;
    found.at = at - found.coded->at;
    found.count = wf_least(stop, found.coded->at + found.coded->values) - at;
    return found;
}

wf_code wf_check_book(wf_work *work, const wf_coded *coded, const int32_t *values, uint64_t count) {
    uint64_t n;
    for (n = 0; coded->kind == 'c' && n < count; n++) {
        int64_t place = (int64_t)values[n] - coded->first;
        if (place < 0 || place >= coded->size) {
            return wf_fail(work, WF_FORMAT, "a symbol is none of the %u of its codebook", (uint64_t)coded->size);
        }
    }
    return WF_OK;
}
