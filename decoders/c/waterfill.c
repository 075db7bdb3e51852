/* Opens files and decodes their tensors. SPDX-License-Identifier: MIT */
#include "waterfill.h"

#include "wf_internal.h"
#include "wf_tables.h"

#define HEADER 24
#define MINOR 3
#define LARGEST_DIRECTORY ((uint64_t)1 << 26)
#define SMALL_DIRECTORY ((uint64_t)1 << 20)
#define MOST_EXPANSION 1000
#ifdef WF_SMALL
#define TILE 32
#else
#define TILE 256
#endif
#define LARGEST_KEPT ((uint64_t)1 << 22)

static const uint8_t magic[8] = {0x89, 'W', 'F', 'L', 0x0D, 0x0A, 0x1A, 0x0A};

/* Opening */

/* How many bytes a directory may have when unpacked, or the joined texts of a plain one. */
static uint64_t largest_directory(uint64_t packed) {
    return wf_least(LARGEST_DIRECTORY, SMALL_DIRECTORY + MOST_EXPANSION * packed);
}

static wf_code check_header(wf_work *work, const uint8_t *head, uint64_t file_size) {
    uint64_t packed = wf_le32(head + 12), size = wf_le32(head + 16);
    if (wf_le16(head + 8) != 1 || wf_le16(head + 10) > MINOR) {
        return wf_fail(work, WF_VERSION, "format version %u.%u is unknown; this reader knows versions up to 1.%u",
                       (uint64_t)wf_le16(head + 8), (uint64_t)wf_le16(head + 10), (uint64_t)MINOR);
    }
    if (packed > file_size - HEADER) {
        return wf_fail(work, WF_FORMAT, "the file is cut: %u bytes cannot hold a directory of %u", file_size, packed);
    }
    if (size > largest_directory(packed) || packed > LARGEST_DIRECTORY) {
        return wf_fail(work, WF_FORMAT, "a directory of %u bytes is too large for the %u that it is packed in", size,
                       packed);
    }
    return WF_OK;
}

#ifdef WF_PLAIN
static wf_code unpack(wf_tree *tree, const uint8_t *packed, size_t packed_size, size_t size) {
    (void)packed, (void)packed_size, (void)size;
    return wf_fail(tree->work, WF_VERSION, "the file is compressed with zstandard, which this reader does not have");
}
#else
static wf_code unpack(wf_tree *tree, const uint8_t *packed, size_t packed_size, size_t size) {
    wf_text phrases = {(const char *)wf_phrases, sizeof wf_phrases};
    tree->json.work = tree->work;
    tree->json.size = size;
    tree->json.text = (char *)wf_room(tree->work, size, 1);
    if (tree->json.text == NULL) return WF_MEMORY;
    return wf_unzstd(tree->work, packed, packed_size, phrases, 0, (uint8_t *)tree->json.text, size);
}
#endif

/* Read the directory; gives where the chunks begin. */
static wf_code read_directory(wf_file *file, uint64_t *chunks_at) {
    wf_work *work = &file->work;
    uint8_t head[HEADER];
    const uint8_t *packed;
    size_t packed_size, size, there = (size_t)wf_least(file->source.size, HEADER);
    wf_tree tree;
    WF_TRY(wf_read_at(work, &file->source, 0, head, there));
    if (there < sizeof magic || memcmp(head, magic, sizeof magic) != 0) {
        return wf_fail(work, WF_FORMAT, "not a waterfill file; expected one that `waterfill compress` wrote");
    }
    if (there < HEADER) return wf_fail(work, WF_FORMAT, "the file is cut within its header");
    WF_TRY(check_header(work, head, file->source.size));
    packed_size = wf_le32(head + 12);
    size = wf_le32(head + 16);
    WF_TRY(wf_bytes_at(work, &file->source, HEADER, packed_size, &packed));
    if (wf_crc32(wf_crc32(0, head, HEADER - 4), packed, packed_size) != wf_le32(head + 20)) {
        return wf_fail(work, WF_FORMAT, "the checksum of the directory is wrong: the file is damaged");
    }
    memset(&tree, 0, sizeof tree);
    tree.work = work;
    tree.is_plain = file->is_plain = size == 0;
    if (tree.is_plain) WF_TRY(wf_rows_begin(&tree.rows, work, packed, packed_size, largest_directory(packed_size)));
    else WF_TRY(unpack(&tree, packed, packed_size, size));
    *chunks_at = HEADER + packed_size;
    return wf_read_directory(&tree, &file->directory, wf_le16(head + 10));
}

static wf_code check_bytes(wf_file *file, uint64_t max_bytes) {
    const wf_entry *entries = wf_entries(file);
    uint64_t size = 0;
    size_t i;
    for (i = 0; i < file->directory.entries.count; i++) {
        if (entries[i].how == '=') continue;
        size = wf_plus(size, wf_times(entries[i].tensor.values, wf_type_size(entries[i].tensor.type)));
    }
    if (max_bytes == 0 || size <= max_bytes) return WF_OK;
    return wf_fail(&file->work, WF_TOO_LARGE, "its tensors take %u bytes, but at most %u are allowed", size, max_bytes);
}

static wf_code place_chunks(wf_file *file, uint64_t at) {
    wf_chunk *chunks = WF_ITEMS(file->directory.chunks, wf_chunk);
    size_t i;
    for (i = 0; i < file->directory.chunks.count; i++) {
        chunks[i].offset = at;
        at = wf_plus(at, chunks[i].size);
        if (chunks[i].size > SIZE_MAX || chunks[i].count > SIZE_MAX / sizeof(int32_t)) {
            return wf_fail(&file->work, WF_MEMORY, "chunk %u is too large for this machine", (uint64_t)i);
        }
    }
    if (at == file->source.size) return WF_OK;
    return wf_fail(&file->work, WF_FORMAT, "the file has %u bytes, but its directory needs %u", file->source.size, at);
}

static void clear(wf_error *error) {
    if (error == NULL) return;
    error->code = WF_OK;
    error->message[0] = 0;
}

static wf_code open_file(wf_file *file, uint64_t max_bytes) {
    uint64_t at = 0;
    WF_TRY(read_directory(file, &at));
    WF_TRY(check_bytes(file, max_bytes));
    WF_TRY(place_chunks(file, at));
    return wf_read_side(file);
}

wf_code wf_open(wf_file **file, const wf_source *source, const wf_allocator *allocator, uint64_t max_bytes,
                wf_error *error) {
    wf_work work;
    wf_file *made;
    wf_code code;
    *file = NULL;
    clear(error);
    memset(&work, 0, sizeof work);
    work.allocator = allocator;
    work.error = error;
    if (source->data == NULL && source->read == NULL && source->size) {
        return wf_told(&work, wf_fail(&work, WF_ARGUMENT, "the source has neither data nor a callback"));
    }
    made = (wf_file *)wf_take(&work, 1, sizeof *made);
    if (made == NULL) return wf_told(&work, WF_MEMORY);
    made->allocator = *allocator;
    made->source = *source;
    made->work = work;
    made->work.blocks = NULL; /* the file itself is apart from what it has */
    made->work.allocator = &made->allocator;
    code = open_file(made, max_bytes);
    made->work.error = NULL;
    if (code == WF_OK) *file = made;
    else wf_close(made);
    return wf_told(&work, code);
}

void wf_close(wf_file *file) {
    wf_work work;
    if (file == NULL) return;
    wf_give_all(&file->work);
    work = file->work;
    work.blocks = (wf_block *)(void *)file - 1;
    {
        wf_allocator allocator = file->allocator;
        work.allocator = &allocator;
        wf_give_all(&work);
    }
}

size_t wf_count(const wf_file *file) {
    return file->directory.entries.count;
}

const wf_tensor *wf_at(const wf_file *file, size_t index) {
    return index < wf_count(file) ? &wf_entries(file)[index].tensor : NULL;
}

size_t wf_find(const wf_file *file, const char *name, size_t name_size) {
    wf_text text;
    text.data = name;
    text.size = name_size;
    return wf_find_entry(&file->directory, text);
}

/* The memory of one call, in addition to that of the file. */
static wf_work begin(const wf_file *file, wf_error *error) {
    wf_work work = file->work;
    work.blocks = NULL;
    work.error = error;
    clear(error);
    return work;
}

wf_code wf_verify(const wf_file *file, wf_error *error) {
    wf_work work = begin(file, error);
    wf_code code = WF_OK;
    size_t i;
    for (i = 0; i < file->directory.chunks.count && code == WF_OK; i++) {
        const uint8_t *data;
        code = wf_read_chunk(&work, file, i, &data);
        wf_give_all(&work);
    }
    return wf_told(&work, code);
}

/* Chunks, one of which may be kept for the next call */

static size_t kept_size(const wf_kept *kept) {
    size_t size = 0, i;
    for (i = 0; i < 2; i++) size += kept->of[i].block ? ((wf_block *)kept->of[i].block)->head.size : 0;
    return size;
}

static void forget(wf_work *work, wf_kept *kept, int is_exact) {
    if (kept->of[is_exact].block) {
        work->blocks = (wf_block *)kept->of[is_exact].block;
        wf_give_all(work);
    }
    memset(&kept->of[is_exact], 0, sizeof kept->of[is_exact]);
}

void wf_forget(const wf_file *file, wf_kept *kept) {
    wf_work work = begin(file, NULL);
    work.used += kept_size(kept);
    forget(&work, kept, 0);
    forget(&work, kept, 1);
}

/* The same during a call. */
static void drop(wf_work *work, wf_kept *kept, int is_exact) {
    wf_work before = *work;
    forget(&before, kept, is_exact);
    work->used = before.used;
}

/*
 * Keep what a chunk holds beyond a call, in the place of another one: its block leaves the memory of that.
 * is_block: whether it is a block of that memory, and not a part of the source.
 */
static void keep(wf_work *work, wf_kept *kept, int is_exact, size_t chunk, const void *data, int is_block) {
    wf_block **place = &work->blocks;
    drop(work, kept, is_exact);
    kept->of[is_exact].chunk = chunk + 1;
    kept->of[is_exact].data = data;
    if (!is_block) return;
    while (*place != (const wf_block *)data - 1) place = &(*place)->head.next;
    kept->of[is_exact].block = *place;
    *place = (*place)->head.next;
    ((wf_block *)kept->of[is_exact].block)->head.next = NULL;
}

static int is_kept(const wf_kept *kept, int is_exact, size_t chunk) {
    return kept && kept->of[is_exact].chunk == chunk + 1;
}

/* The exact bytes of a chunk; `is_block`: whether they are to be given back. */
static wf_code exact_bytes(wf_work *work, const wf_file *file, wf_kept *kept, size_t number, int is_shared,
                           const uint8_t **data, int *is_block) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    *is_block = 0;
    if (is_kept(kept, 1, number)) {
        *data = (const uint8_t *)kept->of[1].data;
        return WF_OK;
    }
    *is_block = !file->is_plain || !file->source.data;
    if (file->is_plain) {
        WF_TRY(wf_read_chunk(work, file, number, data));
    } else {
#ifndef WF_PLAIN
        wf_text nothing = {NULL, 0};
        wf_work own = *work;
        const uint8_t *packed;
        uint8_t *bytes = (uint8_t *)wf_room(work, chunk->count, 1);
        wf_code code;
        if (bytes == NULL) return WF_MEMORY;
        own.blocks = NULL;
        own.used = work->used;
        code = wf_read_chunk(&own, file, number, &packed);
        if (code == WF_OK) {
            code = wf_unzstd(&own, packed, (size_t)chunk->size, nothing, 1, bytes, (size_t)chunk->count);
        }
        wf_give_all(&own);
        WF_TRY(code);
        *data = bytes;
#endif
    }
    if (kept && is_shared && chunk->count <= LARGEST_KEPT) {
        keep(work, kept, 1, number, *data, *is_block);
        *is_block = 0;
    }
    return WF_OK;
}

/* The chunk of a kind that has a unit of it. */
static size_t chunk_of(const wf_file *file, int kind, uint64_t at) {
    const wf_chunk *chunks = wf_chunks(file);
    size_t low = file->directory.kinds[kind], high = file->directory.kinds[kind + 1];
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (chunks[middle].at <= at) low = middle;
        else high = middle;
    }
    return low;
}

#ifdef WF_SMALL
static wf_code read_chunk(wf_work *work, const wf_file *file, size_t number, int32_t *values) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    uint64_t at = 0;
    wf_sequence *sequence;
    WF_TRY(wf_sequence_begin(work, file, number, &sequence));
    while (at < chunk->count) {
        size_t some;
        WF_TRY(wf_sequence_next(sequence, work, chunk->count - at, values + at, &some));
        at += some;
    }
    return WF_OK;
}
#else
#define read_chunk wf_read_symbols
#endif

wf_code wf_symbols(const wf_file *file, size_t number, int32_t *values, size_t count, wf_error *error) {
    wf_work work = begin(file, error);
    const wf_chunk *chunk = number < file->directory.chunks.count ? wf_chunks(file) + number : NULL;
    wf_code code;
    if (chunk == NULL || chunk->kind != 's' || chunk->count != count) {
        code = wf_fail(&work, WF_ARGUMENT, "chunk %u has no %u symbols", (uint64_t)number, (uint64_t)count);
    } else {
        code = read_chunk(&work, file, number, values);
    }
    wf_give_all(&work);
    return wf_told(&work, code);
}

/* Decoding */

/* Where values go: into a matrix of float32, or into a tensor in a type. */
typedef struct target {
    const wf_coded *coded;
    uint64_t groups;
    float *matrix; /* NULL for `out` */
    void *out;
    wf_type own, type;
} target;

/* Elements that follow each other in a stream and are equally far from each other in the tensor. */
typedef struct run {
    uint64_t at, stride, count;
} run;

/* The run that begins where a walk is. */
static run run_of(const target *to, const wf_walk *walk) {
    const uint64_t *axes = to->coded->axes;
    uint64_t taps = axes[2], groups = to->groups && !to->matrix ? to->groups : 0, each = groups ? axes[0] / groups : 0;
    run found;
    if (groups == 0) {
        found.at = (walk->row * axes[1] + walk->channel) * taps + walk->tap;
        found.stride = walk->coded->down ? axes[1] * taps : 1;
        found.count = walk->coded->down ? axes[0] - walk->row : axes[1] * taps - walk->channel * taps - walk->tap;
        return found;
    }
    found.at = ((walk->row / each * axes[1] + walk->channel) * each + walk->row % each) * taps + walk->tap;
    found.stride = walk->coded->down ? taps : taps == 1 ? each : 1;
    found.count = walk->coded->down ? each - walk->row % each : taps == 1 ? axes[1] - walk->channel : taps - walk->tap;
    return found;
}

static void put_symbols(const target *to, const int32_t *symbols, uint64_t at, uint64_t count) {
    float values[TILE];
    while (count) {
        wf_walk walk = wf_walk_from(to->coded, to->coded->steps, at);
        run r = run_of(to, &walk);
        size_t some = (size_t)wf_least(wf_least(count, r.count), TILE), n;
        wf_values(to->coded, symbols, at, some, values);
        if (to->matrix) {
            for (n = 0; n < some; n++) to->matrix[r.at + n * r.stride] = values[n];
        } else {
            wf_put_run(to->out, to->type, to->own, r.at, r.stride, values, some);
        }
        symbols += some;
        at += some;
        count -= some;
    }
}

#ifdef WF_SMALL

/* Put symbols `at` to `end` of all into the tensor that has them. */
static wf_code put_next(wf_work *work, wf_sequence *sequence, const target *to, uint64_t at, uint64_t end) {
    int32_t symbols[TILE];
    while (wf_sequence_at(sequence) < end) {
        uint64_t now = wf_sequence_at(sequence), stop = now < at ? at : end;
        size_t some;
        WF_TRY(wf_sequence_next(sequence, work, wf_least(stop - now, TILE), symbols, &some));
        if (now >= at) put_symbols(to, symbols, now - to->coded->at, some);
    }
    return WF_OK;
}

/* Put the part of a tensor that is in a chunk: symbols `at` to `end` of all. */
static wf_code put_part(wf_work *work, const wf_file *file, wf_kept *kept, const target *to, size_t number, uint64_t at,
                        uint64_t end) {
    wf_sequence *sequence = is_kept(kept, 0, number) ? (wf_sequence *)((wf_block *)kept->of[0].block + 1) : NULL;
    if (sequence && wf_sequence_at(sequence) <= at) {
        wf_code code = put_next(work, sequence, to, at, end);
        if (code != WF_OK) drop(work, kept, 0);
        return code;
    }
    if (kept) drop(work, kept, 0); /* there is no memory for two */
    WF_TRY(wf_sequence_begin(work, file, number, &sequence));
    WF_TRY(put_next(work, sequence, to, at, end));
    if (kept) keep(work, kept, 0, number, sequence, 1);
    else wf_give(work, sequence);
    return WF_OK;
}
#else

/* Put the part of a tensor that is in a chunk: symbols `at` to `end` of all. */
static wf_code put_part(wf_work *work, const wf_file *file, wf_kept *kept, const target *to, size_t number, uint64_t at,
                        uint64_t end) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    const int32_t *symbols = is_kept(kept, 0, number) ? (const int32_t *)kept->of[0].data : NULL;
    int is_shared = end - at < chunk->count, is_new = symbols == NULL;
    if (is_new) {
        int32_t *found = (int32_t *)wf_room(work, chunk->count, sizeof *found);
        wf_work own = *work;
        wf_code code;
        if (found == NULL) return WF_MEMORY;
        own.blocks = NULL;
        code = wf_read_symbols(&own, file, number, found);
        wf_give_all(&own);
        WF_TRY(code);
        symbols = found;
    }
    put_symbols(to, symbols + (at - chunk->at), at - to->coded->at, end - at);
    if (is_new && kept && is_shared && chunk->count <= LARGEST_KEPT) keep(work, kept, 0, number, symbols, 1);
    else if (is_new) wf_give(work, symbols);
    return WF_OK;
}
#endif

/* Decode the symbols of a tensor into a target. */
static wf_code put_coded(wf_work *work, const wf_file *file, wf_kept *kept, const target *to) {
    const wf_chunk *chunks = wf_chunks(file);
    uint64_t at = to->coded->at, stop = at + to->coded->values, end;
    size_t number = at < stop ? chunk_of(file, 2, at) : 0;
    for (; at < stop; number++, at = end) {
        end = wf_least(stop, chunks[number].at + chunks[number].count);
        if (end > at) WF_TRY(put_part(work, file, kept, to, number, at, end));
    }
    return WF_OK;
}

/* The matrix [out, in] of a coded tensor, in its own basis. */
static wf_code put_matrix(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, float *matrix) {
    target to;
    memset(&to, 0, sizeof to);
    to.coded = wf_all_coded(file) + entry->coded;
    to.matrix = matrix;
    WF_TRY(put_coded(work, file, kept, &to));
    return wf_turn_back(work, to.coded, entry, matrix);
}

/* A coded tensor in another basis: its matrix first, then its values in their places. */
static wf_code put_turned(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, target *to) {
    const int16_t *nothing[3] = {NULL, NULL, NULL};
    float *matrix = (float *)wf_room(work, to->coded->values, sizeof *matrix);
    wf_coded rows = *to->coded;
    uint64_t at;
    run r;
    if (matrix == NULL) return WF_MEMORY;
    WF_TRY(put_matrix(work, file, kept, entry, matrix));
    rows.down = 0;
    for (at = 0; at < rows.values; at += r.count) {
        wf_walk walk = wf_walk_from(&rows, nothing, at);
        r = run_of(to, &walk);
        wf_put_run(to->out, to->type, to->own, r.at, r.stride, matrix + at, (size_t)r.count);
    }
    return WF_OK;
}

/* Mean or variance of a folded norm. */
static wf_code put_norm(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, const target *to) {
    const wf_entry *scale_entry = entry->how == 'm' ? wf_entries(file) + entry->other : entry;
    uint64_t count = entry->tensor.values, n;
    float *scale = (float *)wf_take(work, count, sizeof *scale), *shift = scale;
    if (scale == NULL) return WF_MEMORY;
    WF_TRY(put_matrix(work, file, kept, scale_entry, scale));
    if (entry->how == 'm') {
        shift = (float *)wf_take(work, count, sizeof *shift);
        if (shift == NULL) return WF_MEMORY;
        WF_TRY(put_matrix(work, file, kept, entry, shift));
    }
    for (n = 0; n < count; n++) {
        double s = scale[n], value;
        if (entry->how == 'm') {
            value = s == 0 ? 0.0 : -(double)shift[n] / s;
        } else {
            value = 1.0 / (s * s) - entry->number;
            if (value < 0) value = 0.0;
        }
        wf_put(to->out, to->type, n, wf_in_type(value, to->own));
    }
    return WF_OK;
}

static int is_little_endian(void) {
    uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 1;
}

void wf_swap(void *values, uint64_t size, wf_type type) {
    size_t each = wf_type_size(type), i;
    uint8_t *data = (uint8_t *)values;
    uint64_t at;
    if (is_little_endian()) return;
    if (type >= WF_COMPLEX32 && type <= WF_COMPLEX128) each /= 2;
    for (at = 0; at < size; at += each) {
        for (i = 0; i < each / 2; i++) {
            uint8_t byte = data[at + i];
            data[at + i] = data[at + each - 1 - i];
            data[at + each - 1 - i] = byte;
        }
    }
}

static wf_code copy_exact(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, uint8_t *out) {
    const wf_chunk *chunks = wf_chunks(file);
    size_t each = wf_type_size(entry->tensor.type);
    uint64_t size = entry->tensor.values * each, at = entry->bytes_at, stop = at + size, n;
    size_t number = size ? chunk_of(file, 3, at) : 0;
    for (; at < stop; number++) {
        uint64_t first = chunks[number].at, end = wf_least(stop, first + chunks[number].count);
        const uint8_t *data;
        int is_block;
        if (end <= at) continue;
        WF_TRY(exact_bytes(work, file, kept, number, end - at < chunks[number].count, &data, &is_block));
        memcpy(out + (at - entry->bytes_at), data + (at - first), (size_t)(end - at));
        if (is_block) wf_give(work, data);
        at = end;
    }
    for (n = 0; entry->tensor.type == WF_BOOL && n < size; n++) {
        if (out[n] > 1) return wf_fail(work, WF_FORMAT, "a tensor of type bool has other bytes than 0 and 1");
    }
    wf_swap(out, size, entry->tensor.type);
    return WF_OK;
}

static double value_at(const void *data, wf_type type, uint64_t at) {
    if (type == WF_FLOAT64) return ((const double *)data)[at];
    if (type == WF_FLOAT32) return ((const float *)data)[at];
    if (type == WF_FLOAT16) return wf_from_float16(((const uint16_t *)data)[at]);
    return wf_from_bfloat16(((const uint16_t *)data)[at]);
}

static wf_code put_exact(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, const target *to) {
    uint64_t n, count = entry->tensor.values;
    void *data;
    if (to->type == to->own) return copy_exact(work, file, kept, entry, (uint8_t *)to->out);
    data = wf_room(work, count, wf_type_size(to->own));
    if (data == NULL) return WF_MEMORY;
    WF_TRY(copy_exact(work, file, kept, entry, (uint8_t *)data));
    for (n = 0; n < count; n++) wf_put(to->out, to->type, n, value_at(data, to->own, n));
    return WF_OK;
}

static wf_code put_tensor(wf_work *work, const wf_file *file, wf_kept *kept, const wf_entry *entry, target *to) {
    uint64_t n;
    switch (entry->how) {
    case 'x':
        return put_exact(work, file, kept, entry, to);
    case 'c':
        for (n = 0; n < entry->tensor.values; n++) wf_put(to->out, to->type, n, wf_in_type(entry->number, to->own));
        return WF_OK;
    case 'v':
    case 'm':
        return put_norm(work, file, kept, entry, to);
    }
    to->coded = wf_all_coded(file) + entry->coded;
    to->groups = entry->how == 't' ? entry->groups : 0;
    return to->coded->basis ? put_turned(work, file, kept, entry, to) : put_coded(work, file, kept, to);
}

/* The bytes of a tensor in a type, after what is asked for is checked. */
static wf_code checked_size(wf_work *work, const wf_file *file, size_t index, wf_type *type, size_t *size) {
    const wf_tensor *tensor = wf_at(file, index);
    uint64_t bytes;
    if (tensor == NULL) {
        return wf_fail(work, WF_ARGUMENT, "there is no tensor %u; the file has %u", (uint64_t)index,
                       (uint64_t)wf_count(file));
    }
    if (*type == WF_OWN) *type = tensor->type;
    if (*type != tensor->type && (*type > WF_BFLOAT16 || tensor->type > WF_BFLOAT16)) {
        return wf_fail(work, WF_ARGUMENT, "a tensor of type %s cannot be decoded as %s; ask for its own type",
                       wf_type_name(tensor->type), wf_type_name(*type));
    }
    bytes = wf_times(tensor->values, wf_type_size(*type));
    if (bytes > SIZE_MAX) return wf_fail(work, WF_MEMORY, "a tensor of %u bytes is too large for this machine", bytes);
    *size = (size_t)bytes;
    return WF_OK;
}

size_t wf_size(const wf_file *file, size_t index, wf_type type, wf_error *error) {
    wf_work work = begin(file, error);
    size_t size = 0;
    return wf_told(&work, checked_size(&work, file, index, &type, &size)) == WF_OK ? size : 0;
}

static wf_code decode(wf_work *work, const wf_file *file, wf_kept *kept, size_t index, wf_type type, void *out,
                      size_t size) {
    const wf_entry *entry;
    size_t needed = 0;
    target to;
    WF_TRY(checked_size(work, file, index, &type, &needed));
    if (size < needed) {
        return wf_fail(work, WF_ARGUMENT, "a tensor of %u bytes does not fit into %u", (uint64_t)needed, (uint64_t)size);
    }
    if (kept) work->used += kept_size(kept);
    memset(&to, 0, sizeof to);
    entry = wf_entries(file) + wf_at(file, index)->tied_to;
    to.out = out;
    to.own = entry->tensor.type;
    to.type = type;
    return put_tensor(work, file, kept, entry, &to);
}

wf_code wf_decode(const wf_file *file, wf_kept *kept, size_t index, wf_type type, void *out, size_t size,
                  wf_error *error) {
    wf_work work = begin(file, error);
    wf_code code = decode(&work, file, kept, index, type, out, size);
    wf_give_all(&work);
    return wf_told(&work, code);
}

wf_code wf_decode_all(const wf_file *file, wf_type type, void *const *outs, const size_t *sizes, wf_error *error) {
    wf_kept kept;
    wf_code code = WF_OK;
    size_t i;
    memset(&kept, 0, sizeof kept);
    for (i = 0; i < wf_count(file) && code == WF_OK; i++) {
        if (outs[i]) code = wf_decode(file, &kept, i, type, outs[i], sizes[i], error);
    }
    wf_forget(file, &kept);
    return code;
}
