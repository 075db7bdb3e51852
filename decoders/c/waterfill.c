/* Opens files and decodes their tensors. SPDX-License-Identifier: MIT */
#include "waterfill.h"

#include "wf_internal.h"
#include "wf_tables.h"

#define HEADER 24
#define MINOR 2
#define LARGEST_DIRECTORY ((uint64_t)1 << 26)
#define SMALL_DIRECTORY ((uint64_t)1 << 20)
#define MOST_EXPANSION 1000
#define TILE 256
#define LARGEST_KEPT ((uint64_t)1 << 22)

static const uint8_t magic[8] = {0x89, 'W', 'F', 'L', 0x0D, 0x0A, 0x1A, 0x0A};

/* Opening */

static wf_code check_header(wf_work *work, const uint8_t *head, uint64_t file_size) {
    uint64_t packed = wf_le32(head + 12), size = wf_le32(head + 16);
    if (wf_le16(head + 8) != 1 || wf_le16(head + 10) > MINOR) {
        return wf_fail(work, WF_VERSION, "format version %u.%u is unknown; this reader knows versions up to 1.%u",
                       (uint64_t)wf_le16(head + 8), (uint64_t)wf_le16(head + 10), (uint64_t)MINOR);
    }
    if (packed > file_size - HEADER) {
        return wf_fail(work, WF_FORMAT, "the file is cut: %u bytes cannot hold a directory of %u", file_size, packed);
    }
    if (size > wf_least(LARGEST_DIRECTORY, SMALL_DIRECTORY + MOST_EXPANSION * packed)) {
        return wf_fail(work, WF_FORMAT, "a directory of %u bytes is too large for the %u that it is packed in", size,
                       packed);
    }
    return WF_OK;
}

/* Read the directory; gives where the chunks begin. */
static wf_code read_directory(wf_file *file, uint64_t *chunks_at) {
    wf_work *work = &file->work;
    uint8_t head[HEADER], *packed;
    wf_text phrases = {(const char *)wf_phrases, sizeof wf_phrases};
    size_t packed_size, size;
    char *text;
    wf_code code;
    size_t there = (size_t)wf_least(file->source.size, HEADER);
    WF_TRY(wf_read_at(work, &file->source, 0, head, there));
    if (there < sizeof magic || memcmp(head, magic, sizeof magic) != 0) {
        return wf_fail(work, WF_FORMAT, "not a waterfill file; expected one that `waterfill compress` wrote");
    }
    if (there < HEADER) return wf_fail(work, WF_FORMAT, "the file is cut within its header");
    WF_TRY(check_header(work, head, file->source.size));
    packed_size = wf_le32(head + 12);
    size = wf_le32(head + 16);
    packed = (uint8_t *)wf_room(work, packed_size, 1);
    if (packed == NULL) return WF_MEMORY;
    WF_TRY(wf_read_at(work, &file->source, HEADER, packed, packed_size));
    if (wf_crc32(wf_crc32(0, head, HEADER - 4), packed, packed_size) != wf_le32(head + 20)) {
        return wf_fail(work, WF_FORMAT, "the checksum of the directory is wrong: the file is damaged");
    }
    text = (char *)wf_room(work, size, 1);
    if (text == NULL) return WF_MEMORY;
    code = wf_unzstd(work, packed, packed_size, phrases, 0, (uint8_t *)text, size);
    wf_give(work, packed);
    WF_TRY(code);
    *chunks_at = HEADER + packed_size;
    return wf_read_directory(work, &file->directory, text, size, wf_le16(head + 10));
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
        return wf_fail(&work, WF_ARGUMENT, "the source has neither data nor a callback");
    }
    made = (wf_file *)wf_take(&work, 1, sizeof *made);
    if (made == NULL) return WF_MEMORY;
    made->allocator = *allocator;
    made->source = *source;
    made->work = work;
    made->work.blocks = NULL; /* the file itself is apart from what it has */
    made->work.allocator = &made->allocator;
    code = open_file(made, max_bytes);
    made->work.error = NULL;
    if (code == WF_OK) *file = made;
    else wf_close(made);
    return code;
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
    return code;
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

/* Keep what a chunk holds beyond a call, in the place of another one: its block leaves the memory of that. */
static void keep(wf_work *work, wf_kept *kept, int is_exact, size_t chunk, void *data) {
    wf_block *block = (wf_block *)data - 1, **place = &work->blocks;
    wf_work before = *work;
    forget(&before, kept, is_exact);
    work->used = before.used;
    while (*place != block) place = &(*place)->head.next;
    *place = block->head.next;
    block->head.next = NULL;
    kept->of[is_exact].chunk = chunk + 1;
    kept->of[is_exact].block = block;
    kept->of[is_exact].data = data;
}

/* The symbols or exact bytes of a chunk: decoded, or kept from the last time. */
static wf_code units_of(wf_work *work, const wf_file *file, wf_kept *kept, size_t number, int is_shared, void **data) {
    const wf_chunk *chunk = wf_chunks(file) + number;
    int is_exact = chunk->kind == 'x';
    size_t each = is_exact ? 1 : sizeof(int32_t);
    wf_work own;
    wf_code code;
    if (kept && kept->of[is_exact].chunk == number + 1) {
        *data = kept->of[is_exact].data;
        return WF_OK;
    }
    *data = wf_room(work, chunk->count, each);
    if (*data == NULL) return WF_MEMORY;
    own = *work;
    own.blocks = NULL;
    if (is_exact) {
        const uint8_t *packed;
        wf_text nothing = {NULL, 0};
        code = wf_read_chunk(&own, file, number, &packed);
        if (code == WF_OK) {
            code = wf_unzstd(&own, packed, (size_t)chunk->size, nothing, 1, (uint8_t *)*data, (size_t)chunk->count);
        }
    } else {
        code = wf_read_symbols(&own, file, number, (int32_t *)*data);
    }
    wf_give_all(&own);
    if (code == WF_OK && kept && is_shared && chunk->count <= LARGEST_KEPT) keep(work, kept, is_exact, number, *data);
    return code;
}

wf_code wf_symbols(const wf_file *file, size_t number, int32_t *values, size_t count, wf_error *error) {
    wf_work work = begin(file, error);
    const wf_chunk *chunk = wf_chunks(file) + number;
    wf_code code;
    if (number >= file->directory.chunks.count || chunk->kind != 's' || chunk->count != count) {
        return wf_fail(&work, WF_ARGUMENT, "chunk %u has no %u symbols", (uint64_t)number, (uint64_t)count);
    }
    code = wf_read_symbols(&work, file, number, values);
    wf_give_all(&work);
    return code;
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

/* Decode the symbols of a tensor into a target. */
static wf_code put_coded(wf_work *work, const wf_file *file, wf_kept *kept, const target *to) {
    const wf_coded *coded = to->coded;
    const wf_chunk *chunks = wf_chunks(file);
    uint64_t at = coded->at, stop = at + coded->values;
    size_t number = at < stop ? chunk_of(file, 2, at) : 0;
    for (; at < stop; number++) {
        uint64_t first = chunks[number].at, end = wf_least(stop, first + chunks[number].count);
        int is_shared = first < coded->at || first + chunks[number].count > stop;
        void *data;
        if (end <= at) continue;
        WF_TRY(units_of(work, file, kept, number, is_shared, &data));
        put_symbols(to, (const int32_t *)data + (at - first), at - coded->at, end - at);
        if (!kept || data != kept->of[0].data) wf_give(work, data);
        at = end;
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
    const int32_t *nothing[3] = {NULL, NULL, NULL};
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

/* Exact bytes to values of the machine. */
static void swap_bytes(uint8_t *data, uint64_t size, size_t each) {
    uint64_t at;
    size_t i;
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
        int is_shared = first < entry->bytes_at || first + chunks[number].count > stop;
        void *data;
        if (end <= at) continue;
        WF_TRY(units_of(work, file, kept, number, is_shared, &data));
        memcpy(out + (at - entry->bytes_at), (const uint8_t *)data + (at - first), (size_t)(end - at));
        if (!kept || data != kept->of[1].data) wf_give(work, data);
        at = end;
    }
    for (n = 0; entry->tensor.type == WF_BOOL && n < size; n++) {
        if (out[n] > 1) return wf_fail(work, WF_FORMAT, "a tensor of type bool has other bytes than 0 and 1");
    }
    if (!is_little_endian()) {
        int is_complex = entry->tensor.type >= WF_COMPLEX32 && entry->tensor.type <= WF_COMPLEX128;
        swap_bytes(out, size, is_complex ? each / 2 : each);
    }
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
    return checked_size(&work, file, index, &type, &size) == WF_OK ? size : 0;
}

wf_code wf_decode(const wf_file *file, wf_kept *kept, size_t index, wf_type type, void *out, size_t size,
                  wf_error *error) {
    wf_work work = begin(file, error);
    const wf_entry *entry;
    size_t needed = 0;
    target to;
    wf_code code;
    WF_TRY(checked_size(&work, file, index, &type, &needed));
    if (size < needed) {
        return wf_fail(&work, WF_ARGUMENT, "a tensor of %u bytes does not fit into %u", (uint64_t)needed, (uint64_t)size);
    }
    if (kept) work.used += kept_size(kept);
    memset(&to, 0, sizeof to);
    entry = wf_entries(file) + wf_at(file, index)->tied_to;
    to.out = out;
    to.own = entry->tensor.type;
    to.type = type;
    code = put_tensor(&work, file, kept, entry, &to);
    wf_give_all(&work);
    return code;
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
