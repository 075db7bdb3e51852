/* The directory of a file: which tensors there are, how they are coded, where their chunks lie.
 * SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define MOST_AXES 64
#define MOST_RESERVED 1024 /* lines, of which a directory may only say that it has them */
#define MOST_TENSORS INT64_MAX
#define LONGEST_MEASURE 64
#define SPARE_ANGLES ((uint64_t)1 << 20)
#define MOST_KERNEL 4096  /* taps with cosines */
#define MOST_FLIPPED 512  /* taps with angles */
#define LONGEST_ROTATED 1024

static const struct {
    const char *name;
    uint8_t size;
} types[WF_TYPES] = {
    {"float64", 8}, {"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float8_e4m3fn", 1}, {"float8_e5m2", 1},
    {"float8_e4m3fnuz", 1}, {"float8_e5m2fnuz", 1}, {"float8_e8m0fnu", 1}, {"complex32", 4}, {"complex64", 8},
    {"complex128", 16}, {"int8", 1}, {"int16", 2}, {"int32", 4}, {"int64", 8}, {"uint8", 1}, {"uint16", 2},
    {"uint32", 4}, {"uint64", 8}, {"bool", 1}};

const char *wf_type_name(wf_type type) {
    return type < WF_TYPES ? types[type].name : "none";
}

size_t wf_type_size(wf_type type) {
    return type < WF_TYPES ? types[type].size : 0;
}

static int is_text(wf_text text, const char *other) {
    return text.size == strlen(other) && memcmp(text.data, other, text.size) == 0;
}

/* Lists of numbers in the text */

typedef struct bounds {
    int32_t least, most;
} bounds;

/* The next member of a list that has to have one. */
static wf_code member(wf_tree *tree, int *first) {
    int more;
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    return more ? WF_OK : wf_tree_fail(tree, "another member");
}

static wf_code whole_member(wf_tree *tree, int *first, int64_t least, int64_t most, int64_t *value) {
    WF_TRY(member(tree, first));
    return wf_tree_whole(tree, least, most, value);
}

static wf_code small_member(wf_tree *tree, int *first, int32_t least, int32_t most, int32_t *value) {
    int64_t found;
    WF_TRY(whole_member(tree, first, least, most, &found));
    *value = (int32_t)found;
    return WF_OK;
}

static wf_code byte_member(wf_tree *tree, int *first, int32_t least, int32_t most, uint8_t *value) {
    int64_t found;
    WF_TRY(whole_member(tree, first, least, most, &found));
    *value = (uint8_t)found;
    return WF_OK;
}

static wf_code tensor_member(wf_tree *tree, int *first, uint64_t *tensor) {
    int64_t found;
    WF_TRY(whole_member(tree, first, 0, MOST_TENSORS, &found));
    *tensor = (uint64_t)found;
    return WF_OK;
}

static wf_code bool_member(wf_tree *tree, int *first, uint8_t *value) {
    WF_TRY(member(tree, first));
    return wf_tree_bool(tree, value);
}

/* The end of a list that has no more members. */
static wf_code end(wf_tree *tree, int *first) {
    int more;
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    return more ? wf_tree_fail(tree, "no more members") : WF_OK;
}

/* A list of so many numbers in bounds. */
static wf_code numbers(wf_tree *tree, size_t count, const bounds *each, int32_t *values) {
    int first = 1;
    size_t i;
    WF_TRY(wf_tree_open(tree, '['));
    for (i = 0; i < count; i++) {
        WF_TRY(small_member(tree, &first, each[i].least, each[i].most, values + i));
    }
    return end(tree, &first);
}

/* A letter as the first member. */
static wf_code letter(wf_tree *tree, int *first, const char *known, char *found) {
    wf_text text;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(member(tree, first));
    WF_TRY(wf_tree_text(tree, &text));
    if (text.size != 1 || text.data[0] == 0 || strchr(known, text.data[0]) == NULL) {
        return wf_tree_fail(tree, "a known kind");
    }
    *found = text.data[0];
    return WF_OK;
}

/* Lines of the directory */

static const bounds shrink_bounds[3] = {{-64, 64}, {-64, 64}, {-64, 64}};
static const bounds code_bounds[6] = {{-1, 56}, {-1, 56}, {-1, 56}, {-59, 56}, {-59, 56}, {-59, 56}};

/* The lengths of its axes; NULL where it has none. */
static const uint64_t *shape_of(const wf_directory *directory, const wf_entry *entry) {
    return entry->tensor.axes ? WF_ITEMS(directory->lengths, uint64_t) + entry->shape_at : NULL;
}

static wf_code read_shape(wf_tree *tree, wf_directory *directory, wf_entry *entry) {
    int first = 1, more;
    entry->shape_at = directory->lengths.count;
    WF_TRY(wf_tree_open(tree, '['));
    for (;;) {
        int64_t length;
        uint64_t *place;
        WF_TRY(wf_tree_more(tree, ']', &first, &more));
        if (!more) return WF_OK;
        if (entry->tensor.axes == MOST_AXES) return wf_tree_fail(tree, "at most 64 axes");
        WF_TRY(wf_tree_whole(tree, 0, (int64_t)WF_MOST_VALUES, &length));
        place = (uint64_t *)wf_push(tree->work, &directory->lengths);
        if (place == NULL) return WF_MEMORY;
        *place = (uint64_t)length;
        entry->tensor.axes++;
    }
}

/* The product of lengths. `least`: what each counts as at least. */
static uint64_t product(const uint64_t *lengths, size_t count, uint64_t least) {
    uint64_t found = 1;
    size_t i;
    for (i = 0; i < count; i++) {
        if (lengths[i] == 0 && least == 0) return 0;
        found = wf_times(found, lengths[i] < least ? least : lengths[i]);
    }
    return found;
}

static wf_code impossible(wf_work *work, const wf_entry *entry, const char *what) {
    wf_text name;
    name.data = entry->tensor.name;
    name.size = entry->tensor.name_size;
    return wf_fail(work, WF_FORMAT, "tensor %t has %s", &name, what);
}

/* Check the origin of an entry by itself. */
static int is_possible(wf_entry *entry, const wf_scalar *argument, const uint64_t *shape) {
    int is_number = argument->kind == WF_INTEGER || argument->kind == WF_REAL;
    entry->groups = 1;
    entry->number = argument->value;
    entry->text = argument->text;
    switch (entry->how) {
    case 'q':
        return 1;
    case 't':
        if (argument->kind != WF_INTEGER || !argument->is_whole || entry->tensor.axes < 2) return 0;
        if (argument->whole < 1 || argument->whole > (int64_t)WF_MOST_VALUES) return 0;
        entry->groups = (uint64_t)argument->whole;
        return shape[0] % entry->groups == 0 &&
               wf_times(entry->groups, product(shape + 1, entry->tensor.axes - 1, 1)) <= WF_MOST_VALUES;
    case 'x':
    case '=':
        return argument->kind == WF_TEXT;
    case 'c':
        return is_number && !argument->is_beyond;
    case 'v':
        return is_number && !argument->is_beyond && argument->value >= 0 && entry->tensor.axes == 1;
    case 'm':
        return argument->kind == WF_TEXT && entry->tensor.axes == 1;
    }
    return 0;
}

static wf_code read_entry(wf_tree *tree, wf_directory *directory, wf_entry *entry) {
    int first = 1, more, type;
    wf_text name, kind, how = {"q", 1};
    wf_scalar argument;
    const uint64_t *shape;
    memset(&argument, 0, sizeof argument);
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(member(tree, &first));
    WF_TRY(wf_tree_text(tree, &name));
    WF_TRY(member(tree, &first));
    WF_TRY(wf_tree_text(tree, &kind));
    WF_TRY(member(tree, &first));
    WF_TRY(read_shape(tree, directory, entry));
    WF_TRY(wf_tree_more(tree, ']', &first, &more));
    if (more) {
        WF_TRY(wf_tree_text(tree, &how));
        WF_TRY(wf_tree_more(tree, ']', &first, &more));
    }
    if (more) {
        WF_TRY(wf_tree_scalar(tree, &argument));
        WF_TRY(end(tree, &first));
    }
    entry->tensor.name = name.data;
    entry->tensor.name_size = name.size;
    for (type = 0; type < WF_TYPES && !is_text(kind, types[type].name); type++) continue;
    entry->tensor.type = (wf_type)type;
    shape = shape_of(directory, entry);
    entry->tensor.values = product(shape, entry->tensor.axes, 0);
    if (type == WF_TYPES || product(shape, entry->tensor.axes, 1) > WF_MOST_VALUES) {
        return impossible(tree->work, entry, "an impossible type or shape");
    }
    entry->how = how.size == 1 ? how.data[0] : 0;
    if (!is_possible(entry, &argument, shape)) return impossible(tree->work, entry, "an impossible origin");
    if (entry->how != 'x' && entry->how != '=' && type > WF_BFLOAT16) {
        return impossible(tree->work, entry, "a type that cannot be coded with loss");
    }
    return WF_OK;
}

static wf_code read_uniform(wf_tree *tree, int *first, wf_coded *coded) {
    int more, is_path = coded->kind == 'p';
    int64_t offset;
    WF_TRY(small_member(tree, first, -6000, 6000, &coded->step));
    if (is_path) {
        WF_TRY(byte_member(tree, first, 2, 12, &coded->log_states));
        WF_TRY(bool_member(tree, first, &coded->zero));
        WF_TRY(byte_member(tree, first, 0, 42, &coded->log_span));
    }
    WF_TRY(byte_member(tree, first, 0, 8, &coded->families[0]));
    WF_TRY(small_member(tree, first, -400, 256, &coded->bases[0]));
    if (is_path) {
        WF_TRY(byte_member(tree, first, 0, 8, &coded->families[1]));
        WF_TRY(small_member(tree, first, -400, 256, &coded->bases[1]));
    }
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    if (!more) return WF_OK;
    WF_TRY(numbers(tree, 3, shrink_bounds, coded->shrink));
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    if (!more) return WF_OK;
    WF_TRY(numbers(tree, 6, code_bounds, coded->codes));
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    if (!more) return WF_OK;
    if (!is_path) {
        WF_TRY(wf_tree_whole(tree, -((int64_t)1 << 30), (int64_t)1 << 30, &offset));
        coded->offset = offset;
        return end(tree, first);
    }
    WF_TRY(wf_tree_bool(tree, &coded->down));
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    if (!more) return WF_OK;
    WF_TRY(wf_tree_whole(tree, -381, 382, &offset));
    coded->least = (int32_t)offset;
    return end(tree, first);
}

static wf_code read_relative(wf_tree *tree, int *first, wf_coded *coded) {
    WF_TRY(byte_member(tree, first, 0, 23, &coded->mantissa));
    WF_TRY(whole_member(tree, first, -((int64_t)1 << 31), (int64_t)1 << 31, &coded->offset));
    WF_TRY(bool_member(tree, first, &coded->is_signed));
    WF_TRY(byte_member(tree, first, 0, 8, &coded->families[0]));
    WF_TRY(small_member(tree, first, -400, 256, &coded->bases[0]));
    return end(tree, first);
}

static wf_code read_codebook(wf_tree *tree, int *first, wf_coded *coded) {
    int more;
    int64_t size;
    WF_TRY(whole_member(tree, first, 1, 1 << 16, &size));
    coded->size = (uint32_t)size;
    WF_TRY(small_member(tree, first, 1 - (1 << 16), 0, &coded->first));
    WF_TRY(byte_member(tree, first, 0, 8, &coded->families[0]));
    WF_TRY(small_member(tree, first, -400, 256, &coded->bases[0]));
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    if (!more) return WF_OK;
    WF_TRY(numbers(tree, 3, code_bounds, coded->codes + 3));
    return end(tree, first);
}

static wf_code read_coded(wf_tree *tree, wf_directory *directory, wf_coded *coded) {
    int first = 1, i;
    (void)directory;
    for (i = 0; i < 6; i++) coded->codes[i] = -1;
    coded->least = -381;
    WF_TRY(letter(tree, &first, "uprc", &coded->kind));
    if (coded->kind == 'r') return read_relative(tree, &first, coded);
    return coded->kind == 'c' ? read_codebook(tree, &first, coded) : read_uniform(tree, &first, coded);
}

static wf_code read_chunk_line(wf_tree *tree, wf_directory *directory, wf_chunk *chunk) {
    int first = 1;
    int64_t size, crc, count;
    (void)directory;
    WF_TRY(letter(tree, &first, "acsx", &chunk->kind));
    WF_TRY(whole_member(tree, &first, 0, (int64_t)1 << 50, &size));
    WF_TRY(whole_member(tree, &first, 0, 0xFFFFFFFF, &crc));
    WF_TRY(whole_member(tree, &first, 0, (int64_t)WF_MOST_VALUES, &count));
    chunk->size = (uint64_t)size;
    chunk->crc = (uint32_t)crc;
    chunk->count = (uint64_t)count;
    return end(tree, &first);
}

static wf_code read_table(wf_tree *tree, wf_table_line *table) {
    int first = 1;
    int64_t count;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(whole_member(tree, &first, -((int64_t)1 << 30), (int64_t)1 << 30, &table->first));
    WF_TRY(whole_member(tree, &first, 1, 255, &count));
    table->count = (uint32_t)count;
    WF_TRY(byte_member(tree, &first, 0, 120, &table->code));
    return end(tree, &first);
}

static wf_code read_tables(wf_tree *tree, wf_directory *directory, wf_table_lines *lines) {
    int first = 1, inner = 1, more;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(tensor_member(tree, &first, &lines->tensor));
    WF_TRY(member(tree, &first));
    WF_TRY(wf_tree_open(tree, '['));
    for (;;) {
        WF_TRY(wf_tree_more(tree, ']', &inner, &more));
        if (!more) break;
        if (lines->count == 2) return wf_tree_fail(tree, "at most two tables");
        WF_TRY(read_table(tree, &lines->tables[lines->count++]));
    }
    return lines->count ? end(tree, &first) : wf_tree_fail(tree, "a table");
}

static wf_code read_adaptive(wf_tree *tree, wf_directory *directory, wf_numbered *line) {
    int first = 1, more;
    int64_t width = 0;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(tensor_member(tree, &first, &line->tensor));
    WF_TRY(wf_tree_more(tree, ']', &first, &more));
    if (more) {
        WF_TRY(wf_tree_whole(tree, 0, 1 << 16, &width));
        WF_TRY(end(tree, &first));
    }
    line->count = (uint32_t)width;
    return WF_OK;
}

static wf_code read_lanes(wf_tree *tree, wf_directory *directory, wf_numbered *line) {
    int first = 1;
    int64_t count, lines;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(tensor_member(tree, &first, &line->tensor));
    WF_TRY(whole_member(tree, &first, 8, 32, &count));
    if (count != 8 && count != 32) return wf_tree_fail(tree, "8 or 32 lanes");
    WF_TRY(whole_member(tree, &first, 1, (int64_t)WF_MOST_VALUES, &lines));
    line->count = (uint32_t)count;
    line->number = (uint64_t)lines;
    return end(tree, &first);
}

static wf_code read_basis(wf_tree *tree, wf_directory *directory, wf_basis *basis) {
    int first = 1;
    int32_t number = 0;
    (void)directory;
    WF_TRY(letter(tree, &first, "cfrs", &basis->kind));
    WF_TRY(tensor_member(tree, &first, &basis->tensor));
    if (basis->kind == 's') {
        WF_TRY(tensor_member(tree, &first, &basis->of));
        return end(tree, &first);
    }
    basis->axis = 2;
    if (basis->kind != 'f') WF_TRY(byte_member(tree, &first, 0, basis->kind == 'c' ? 2 : 1, &basis->axis));
    if (basis->kind == 'c') {
        WF_TRY(small_member(tree, &first, 2, 512, &number));
        basis->block = (uint32_t)number;
        return end(tree, &first);
    }
    if (basis->kind == 'r') WF_TRY(small_member(tree, &first, 1, 1023, &number));
    basis->directions = (uint32_t)number;
    WF_TRY(byte_member(tree, &first, 0, 120, &basis->code));
    return end(tree, &first);
}

static wf_code read_rate(wf_tree *tree, wf_directory *directory, uint32_t *rate) {
    int64_t value;
    (void)directory;
    (void)rate;
    return wf_tree_whole(tree, -1, 1 << 16, &value);
}

typedef wf_code read_line(wf_tree *tree, wf_directory *directory, void *line);

/* A list of lines. */
static wf_code read_list(wf_tree *tree, wf_directory *directory, wf_list *list, read_line *read) {
    int first = 1, more;
    list->count = 0;
    WF_TRY(wf_tree_open(tree, '['));
    if (wf_tree_left(tree)) {
        WF_TRY(wf_reserve(tree->work, list, (size_t)wf_least(wf_tree_left(tree), MOST_RESERVED)));
    }
    for (;;) {
        void *line;
        WF_TRY(wf_tree_more(tree, ']', &first, &more));
        if (!more) return WF_OK;
        line = wf_push(tree->work, list);
        if (line == NULL) return WF_MEMORY;
        memset(line, 0, list->each);
        WF_TRY(read(tree, directory, line));
    }
}

/* One reader for every type of line, so that none is called through a pointer of another type. */
#define LINES(name, type)                                                                                              \
    static wf_code name##_line(wf_tree *tree, wf_directory *directory, void *line) {                                   \
        return name(tree, directory, (type *)line);                                                                    \
    }
LINES(read_entry, wf_entry)
LINES(read_coded, wf_coded)
LINES(read_chunk_line, wf_chunk)
LINES(read_tables, wf_table_lines)
LINES(read_adaptive, wf_numbered)
LINES(read_basis, wf_basis)
LINES(read_lanes, wf_numbered)
LINES(read_rate, uint32_t)

static wf_code read_limit(wf_tree *tree, wf_directory *directory) {
    int first = 1;
    int64_t bits;
    wf_text measure;
    directory->has_limit = 0;
    if (wf_tree_is_null(tree)) return WF_OK;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(whole_member(tree, &first, 0, (int64_t)1 << 50, &bits));
    WF_TRY(member(tree, &first));
    WF_TRY(wf_tree_text(tree, &measure));
    if (wf_letters(measure) > LONGEST_MEASURE) return wf_tree_fail(tree, "at most 64 characters");
    WF_TRY(member(tree, &first));
    WF_TRY(read_list(tree, directory, &directory->rates, read_rate_line));
    directory->has_limit = 1;
    return end(tree, &first);
}

static wf_code read_text(wf_tree *tree, wf_directory *directory) {
    static const char *const names[] = {"entries",  "tensors", "chunks", "tables",  "adaptive",
                                        "bases",    "lanes",   "limit",  "producer"};
    static read_line *const readers[7] = {read_entry_line,    read_coded_line, read_chunk_line_line, read_tables_line,
                                          read_adaptive_line, read_basis_line, read_lanes_line};
    wf_list *const lists[7] = {&directory->entries,  &directory->coded, &directory->chunks, &directory->tables,
                               &directory->adaptive, &directory->bases, &directory->lanes};
    int first = 1, more, seen = 0;
    WF_TRY(wf_tree_open(tree, '{'));
    for (;;) {
        wf_text key, text;
        int i;
        WF_TRY(wf_tree_more(tree, '}', &first, &more));
        if (!more) break;
        WF_TRY(wf_tree_key(tree, &key));
        for (i = 0; i < 9 && !is_text(key, names[i]); i++) continue;
        if (i == 9) return wf_fail(tree->work, WF_FORMAT, "its directory has the key %t, which is unknown", &key);
        if (tree->is_plain && seen >> i & 1) return wf_tree_fail(tree, "every key once");
        seen |= 1 << i;
        if (i == 0) directory->lengths.count = 0;
        if (i < 7) WF_TRY(read_list(tree, directory, lists[i], readers[i]));
        else if (i == 7) WF_TRY(read_limit(tree, directory));
        else WF_TRY(wf_tree_text(tree, &text));
    }
    if ((seen & 7) != 7) return wf_tree_fail(tree, "entries, tensors and chunks");
    return wf_tree_end(tree);
}

/* Names */

static int compare(wf_text a, wf_text b) {
    size_t least = a.size < b.size ? a.size : b.size;
    int order = least ? memcmp(a.data, b.data, least) : 0;
    return order ? order : a.size < b.size ? -1 : a.size > b.size;
}

static wf_text name_of(const wf_directory *directory, size_t entry) {
    const wf_tensor *tensor = &WF_ITEMS(directory->entries, const wf_entry)[entry].tensor;
    wf_text name;
    name.data = tensor->name;
    name.size = tensor->name_size;
    return name;
}

/* Let the item at `root` of a heap sink to its place. */
static void sink(const wf_directory *directory, size_t *heap, size_t root, size_t count) {
    size_t child, moved = heap[root];
    wf_text name = name_of(directory, moved);
    for (; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(name_of(directory, heap[child]), name_of(directory, heap[child + 1])) < 0) {
            child++;
        }
        if (compare(name, name_of(directory, heap[child])) >= 0) break;
        heap[root] = heap[child];
    }
    heap[root] = moved;
}

/* Sort the entries by name (heap sort); two of one name are an error. */
static wf_code sort_names(wf_work *work, wf_directory *directory) {
    size_t count = directory->entries.count, i, *heap = (size_t *)wf_take(work, count, sizeof *heap);
    if (heap == NULL) return WF_MEMORY;
    directory->by_name = heap;
    for (i = 0; i < count; i++) heap[i] = i;
    for (i = count / 2; i-- > 0;) sink(directory, heap, i, count);
    for (i = count; i-- > 1;) {
        size_t last = heap[i];
        heap[i] = heap[0];
        heap[0] = last;
        sink(directory, heap, 0, i);
    }
    for (i = 1; i < count; i++) {
        wf_text name = name_of(directory, heap[i]);
        if (compare(name_of(directory, heap[i - 1]), name) == 0) {
            return wf_fail(work, WF_FORMAT, "tensor %t is there twice", &name);
        }
    }
    return WF_OK;
}

size_t wf_find_entry(const wf_directory *directory, wf_text name) {
    size_t low = 0, high = directory->entries.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare(name_of(directory, directory->by_name[middle]), name);
        if (order == 0) return directory->by_name[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return directory->entries.count;
}

/* Entries against each other */

static int is_alike(const wf_tensor *a, const wf_tensor *b) {
    return a->axes == b->axes && (a->axes == 0 || memcmp(a->shape, b->shape, a->axes * sizeof *a->shape) == 0);
}

static wf_code join_entries(wf_work *work, wf_directory *directory) {
    wf_entry *entries = WF_ITEMS(directory->entries, wf_entry);
    size_t i, count = directory->entries.count;
    for (i = 0; i < count; i++) {
        entries[i].tensor.shape = shape_of(directory, &entries[i]);
        entries[i].tensor.tied_to = i;
    }
    for (i = 0; i < count; i++) {
        wf_entry *entry = entries + i, *other;
        size_t found;
        if (entry->how != '=' && entry->how != 'm') continue;
        found = wf_find_entry(directory, entry->text);
        if (found == count) return impossible(work, entry, "the name of a tensor that is not there");
        other = entries + found;
        if (!is_alike(&entry->tensor, &other->tensor)) return impossible(work, entry, "another shape than the one it names");
        if (entry->how == 'm') {
            if (other->how != 'v') return impossible(work, entry, "a scale that is none");
            entry->other = found;
        } else {
            if (found >= i || other->how == '=' || other->tensor.type != entry->tensor.type) {
                return impossible(work, entry, "a tie to a later tensor, a tied one or one of another type");
            }
            entry->tensor.tied_to = found;
        }
    }
    return WF_OK;
}

static void set_axes(wf_coded *coded, const wf_entry *entry) {
    const uint64_t *shape = entry->tensor.shape;
    size_t axes = entry->tensor.axes;
    coded->values = entry->tensor.values;
    coded->axes[0] = coded->axes[2] = 1;
    coded->axes[1] = coded->values;
    if (axes < 2) return;
    coded->axes[0] = shape[0];
    coded->axes[1] = shape[1];
    coded->axes[2] = product(shape + 2, axes - 2, 0);
    if (entry->how == 't') {
        coded->axes[0] = shape[1] * entry->groups;
        coded->axes[1] = shape[0] / entry->groups;
    }
}

/* Number the coded entries and count their symbols, exact bytes and constant values. */
static wf_code number_entries(wf_work *work, wf_directory *directory) {
    wf_entry *entries = WF_ITEMS(directory->entries, wf_entry);
    wf_coded *coded = WF_ITEMS(directory->coded, wf_coded);
    uint64_t constant = 0, matrices = 0;
    size_t i, count = 0;
    for (i = 0; i < directory->entries.count; i++) {
        wf_entry *entry = entries + i;
        if (entry->how == 'c') constant = wf_plus(constant, entry->tensor.values);
        if (entry->how == 'x') {
            entry->bytes_at = directory->needed[3];
            directory->needed[3] =
                wf_plus(directory->needed[3], wf_times(entry->tensor.values, wf_type_size(entry->tensor.type)));
        }
        if (strchr("qtvm", entry->how) == NULL) continue;
        if (count < directory->coded.count) {
            entry->coded = count;
            coded[count].entry = i;
            set_axes(coded + count, entry);
            coded[count].at = directory->needed[2];
            directory->needed[2] = wf_plus(directory->needed[2], coded[count].values);
        }
        matrices += entry->tensor.axes >= 2;
        count++;
    }
    if (count != directory->coded.count) {
        return wf_fail(work, WF_FORMAT, "%u tensors are coded, but %u are described", (uint64_t)count,
                       (uint64_t)directory->coded.count);
    }
    if (constant > directory->needed[2]) {
        return wf_fail(work, WF_FORMAT, "%u values are constant, more than the %u that are coded", constant,
                       directory->needed[2]);
    }
    if (directory->has_limit && directory->rates.count != matrices) {
        return wf_fail(work, WF_FORMAT, "%u matrices are coded, but there are limits for %u", matrices,
                       (uint64_t)directory->rates.count);
    }
    return WF_OK;
}

/* Give the lines of own tables, adaptive models, bases and lanes to their tensors */

static wf_code check_order(wf_work *work, const char *what, uint64_t tensor, uint64_t *next, uint64_t count) {
    if (tensor < *next || tensor >= count) {
        return wf_fail(work, WF_FORMAT, "%s are not in order, or of more than %u tensors", what, count);
    }
    *next = tensor + 1;
    return WF_OK;
}

static wf_code give_lines(wf_work *work, wf_directory *directory) {
    wf_coded *coded = WF_ITEMS(directory->coded, wf_coded);
    const wf_table_lines *tables = WF_ITEMS(directory->tables, const wf_table_lines);
    const wf_numbered *adaptive = WF_ITEMS(directory->adaptive, const wf_numbered);
    const wf_numbered *lanes = WF_ITEMS(directory->lanes, const wf_numbered);
    const wf_basis *bases = WF_ITEMS(directory->bases, const wf_basis);
    uint64_t count = directory->coded.count, next[4] = {0, 0, 0, 0};
    size_t i;
    for (i = 0; i < directory->tables.count; i++) {
        WF_TRY(check_order(work, "tables", tables[i].tensor, &next[0], count));
        coded[tables[i].tensor].tables = tables + i;
    }
    for (i = 0; i < directory->adaptive.count; i++) {
        WF_TRY(check_order(work, "adaptive models", adaptive[i].tensor, &next[1], count));
        coded[adaptive[i].tensor].is_adaptive = 1;
        coded[adaptive[i].tensor].width = adaptive[i].count;
    }
    for (i = 0; i < directory->bases.count; i++) {
        WF_TRY(check_order(work, "bases", bases[i].tensor, &next[2], count));
        coded[bases[i].tensor].basis = bases + i;
    }
    for (i = 0; i < directory->lanes.count; i++) {
        wf_coded *one;
        WF_TRY(check_order(work, "lanes", lanes[i].tensor, &next[3], count));
        one = coded + lanes[i].tensor;
        if (one->kind != 'p' || one->log_span != 0) {
            return wf_fail(work, WF_FORMAT, "a tensor has lanes without a path, or both lanes and a span");
        }
        one->lanes = (uint8_t)lanes[i].count;
        one->lines = lanes[i].number;
    }
    return WF_OK;
}

wf_code wf_angles_of(wf_work *work, const wf_basis *basis, const wf_coded *coded, const wf_entry *entry,
                     uint64_t *count) {
    uint64_t taps = coded->axes[2], length, squares = 1;
    size_t i;
    *count = 0;
    if (basis->kind == 'c') {
        if (basis->axis == 2 && taps > MOST_KERNEL) {
            return wf_fail(work, WF_FORMAT, "a basis is of %u taps; expected at most 4096", taps);
        }
    } else if (basis->kind == 'f') {
        if (taps > MOST_FLIPPED) {
            return wf_fail(work, WF_FORMAT, "a basis has angles for %u taps; expected at most 512", taps);
        }
        if (taps == 0) return WF_OK;
        for (i = 2; i < entry->tensor.axes; i++) {
            uint64_t half = entry->tensor.shape[i] / 2, rest = entry->tensor.shape[i] - half;
            squares *= half * half + rest * rest; /* of the classes, summed */
        }
        *count = (squares - taps) / 2;
    } else {
        length = coded->axes[basis->axis];
        if (basis->directions >= length || length > LONGEST_ROTATED) {
            return wf_fail(work, WF_FORMAT, "%u of %u coordinates are rotated; expected fewer of at most 1024",
                           (uint64_t)basis->directions, length);
        }
        *count = basis->directions * length - (uint64_t)basis->directions * (basis->directions + 1) / 2;
    }
    return WF_OK;
}

/* Count the integers of chunks `a`, the values of codebooks and the angles that tensors are turned by. */
static wf_code count_side(wf_work *work, wf_directory *directory) {
    wf_coded *coded = WF_ITEMS(directory->coded, wf_coded);
    const wf_entry *entries = WF_ITEMS(directory->entries, const wf_entry);
    wf_basis *bases = WF_ITEMS(directory->bases, wf_basis);
    size_t i, j;
    for (i = 0; i < directory->coded.count; i++) {
        uint64_t side = 0;
        for (j = 0; j < 6; j++) side += wf_is_stored(coded[i].codes[j]) ? coded[i].axes[j % 3] : 0;
        for (j = 0; coded[i].tables && j < coded[i].tables->count; j++) side += coded[i].tables->tables[j].count + 1;
        if (coded[i].basis) {
            wf_basis *basis = bases + (coded[i].basis - bases);
            if (basis->kind == 's') {
                const wf_basis *of = basis->of < i ? coded[basis->of].basis : NULL;
                basis->count = of ? of->count : 0;
            } else {
                WF_TRY(wf_angles_of(work, basis, coded + i, entries + coded[i].entry, &basis->count));
                side += basis->count;
            }
            directory->angles = wf_plus(directory->angles, basis->count);
        }
        directory->needed[0] = wf_plus(directory->needed[0], side);
        directory->needed[1] += coded[i].kind == 'c' ? coded[i].size : 0;
    }
    if (directory->angles > wf_plus(directory->needed[2], SPARE_ANGLES)) {
        return wf_fail(work, WF_FORMAT, "tensors are turned by %u angles, too many for the %u values that are coded",
                       directory->angles, directory->needed[2]);
    }
    return WF_OK;
}

/* Chunks */

static const char kinds[] = "acsx";

static int can_hold(const wf_chunk *chunk, int is_plain) {
    unsigned log = chunk->kind == 'x' ? 15 : 13;
    if (chunk->size == 0) return 0;
    if (chunk->kind == 'c') return chunk->count <= chunk->size && chunk->size == 4 * chunk->count;
    if (chunk->kind == 'x' && is_plain) return chunk->count == chunk->size;
    return chunk->count <= wf_times(chunk->size, (uint64_t)1 << log);
}

static wf_code check_chunks(wf_work *work, wf_directory *directory, int is_plain) {
    wf_chunk *chunks = WF_ITEMS(directory->chunks, wf_chunk);
    uint64_t found[4] = {0, 0, 0, 0};
    size_t i, kind = 0;
    for (i = 0; i < directory->chunks.count; i++) {
        size_t which = (size_t)(strchr(kinds, chunks[i].kind) - kinds);
        if (!can_hold(chunks + i, is_plain)) {
            return wf_fail(work, WF_FORMAT, "chunk %u cannot hold %u units in %u bytes", (uint64_t)i, chunks[i].count,
                           chunks[i].size);
        }
        if (which < kind) {
            return wf_fail(work, WF_FORMAT, "the chunks are not in the order scales, codebooks, symbols, exact bytes");
        }
        while (kind < which) directory->kinds[++kind] = i;
        chunks[i].at = found[which];
        found[which] = wf_plus(found[which], chunks[i].count);
    }
    while (kind < 4) directory->kinds[++kind] = i;
    for (kind = 0; kind < 4; kind++) {
        char letters[2] = {0, 0};
        letters[0] = kinds[kind];
        if (found[kind] != directory->needed[kind] || found[kind] == WF_NEVER) {
            return wf_fail(work, WF_FORMAT, "the chunks of kind '%s' hold %u units, but the tensors need %u", letters,
                           found[kind], directory->needed[kind]);
        }
    }
    return WF_OK;
}

static wf_code check_minor(wf_work *work, const wf_directory *directory, unsigned minor, int is_plain) {
    int has_lanes = directory->lanes.count > 0 && minor < 2, has_bases = directory->bases.count > 0 && minor < 1;
    is_plain = is_plain && minor < 3;
    if (!has_lanes && !has_bases && !is_plain) return WF_OK;
    return wf_fail(work, WF_FORMAT, "the directory has %s, which format version 1.%u has not",
                   is_plain    ? "plain bytes"
                   : has_lanes ? "lanes"
                               : "bases",
                   (uint64_t)minor);
}

wf_code wf_read_directory(wf_tree *tree, wf_directory *directory, unsigned minor) {
    wf_work *work = tree->work;
    memset(directory, 0, sizeof *directory);
    directory->entries.each = sizeof(wf_entry);
    directory->lengths.each = sizeof(uint64_t);
    directory->coded.each = sizeof(wf_coded);
    directory->chunks.each = sizeof(wf_chunk);
    directory->tables.each = sizeof(wf_table_lines);
    directory->adaptive.each = directory->lanes.each = sizeof(wf_numbered);
    directory->bases.each = sizeof(wf_basis);
    directory->rates.each = sizeof(uint32_t);
    WF_TRY(read_text(tree, directory));
    WF_TRY(check_minor(work, directory, minor, tree->is_plain));
    WF_TRY(sort_names(work, directory));
    WF_TRY(join_entries(work, directory));
    WF_TRY(number_entries(work, directory));
    WF_TRY(give_lines(work, directory));
    WF_TRY(count_side(work, directory));
    return check_chunks(work, directory, tree->is_plain);
}
