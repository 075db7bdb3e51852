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

/* Lines with fields */

enum { FLAG, STEP, STATES, SPAN, FAMILY, BASE, SHRINK, CODE, SPREAD_CODE, OFFSET, LEAST, MANTISSA, PATTERN, BOOK, FIRST,
       TENSOR, WIDTH, LANES, VALUES, SIZE, CHECKSUM, CHUNK_COUNT, TABLE_FIRST, TABLE_COUNT, TABLE_CODE, AXIS, ROTATED_AXIS, BLOCK,
       DIRECTIONS };

static const struct {
    int64_t least, most;
} ranges[] = {
    [STEP] = {-6000, 6000}, [STATES] = {2, 12}, [SPAN] = {0, 42}, [FAMILY] = {0, 8}, [BASE] = {-400, 256},
    [SHRINK] = {-64, 64}, [CODE] = {-1, 56}, [SPREAD_CODE] = {-59, 56}, [OFFSET] = {-(1 << 30), 1 << 30},
    [LEAST] = {-381, 382}, [MANTISSA] = {0, 23}, [PATTERN] = {-((int64_t)1 << 31), (int64_t)1 << 31},
    [BOOK] = {1, 1 << 16}, [FIRST] = {1 - (1 << 16), 0}, [TENSOR] = {0, MOST_TENSORS}, [WIDTH] = {0, 1 << 16},
    [LANES] = {8, 32}, [VALUES] = {1, (int64_t)WF_MOST_VALUES}, [SIZE] = {0, (int64_t)1 << 50},
    [CHECKSUM] = {0, 0xFFFFFFFF}, [CHUNK_COUNT] = {0, (int64_t)WF_MOST_VALUES}, [TABLE_FIRST] = {-(1 << 30), 1 << 30}, [TABLE_COUNT] = {1, 255},
    [TABLE_CODE] = {0, 120}, [AXIS] = {0, 2}, [ROTATED_AXIS] = {0, 1}, [BLOCK] = {2, 512}, [DIRECTIONS] = {1, 1023},
};

/* A number or a flag of a line, or a list of three or six: within which bounds, where in its record, of which size. */
typedef struct field {
    uint8_t range, size, count;
    uint16_t place;
} field;

#define FIELD(range, type, name) {range, sizeof((type *)NULL)->name, 1, offsetof(type, name)}
#define LIST(range, name, first, count) {range, sizeof((wf_coded *)NULL)->name[0], count, offsetof(wf_coded, name[first])}

static const field uniform_fields[] = {
    FIELD(STEP, wf_coded, step), FIELD(FAMILY, wf_coded, families[0]), FIELD(BASE, wf_coded, bases[0]),
    LIST(SHRINK, shrink, 0, 3), LIST(CODE, codes, 0, 6), FIELD(OFFSET, wf_coded, offset)};
static const field path_fields[] = {
    FIELD(STEP, wf_coded, step), FIELD(STATES, wf_coded, log_states), FIELD(FLAG, wf_coded, zero),
    FIELD(SPAN, wf_coded, log_span), FIELD(FAMILY, wf_coded, families[0]), FIELD(BASE, wf_coded, bases[0]),
    FIELD(FAMILY, wf_coded, families[1]), FIELD(BASE, wf_coded, bases[1]), LIST(SHRINK, shrink, 0, 3),
    LIST(CODE, codes, 0, 6), FIELD(FLAG, wf_coded, down), FIELD(LEAST, wf_coded, least)};
static const field relative_fields[] = {
    FIELD(MANTISSA, wf_coded, mantissa), FIELD(PATTERN, wf_coded, offset), FIELD(FLAG, wf_coded, is_signed),
    FIELD(FAMILY, wf_coded, families[0]), FIELD(BASE, wf_coded, bases[0])};
static const field book_fields[] = {
    FIELD(BOOK, wf_coded, size), FIELD(FIRST, wf_coded, first), FIELD(FAMILY, wf_coded, families[0]),
    FIELD(BASE, wf_coded, bases[0]), LIST(CODE, codes, 3, 3)};
static const field chunk_fields[] = {
    FIELD(SIZE, wf_chunk, size), FIELD(CHECKSUM, wf_chunk, crc), FIELD(CHUNK_COUNT, wf_chunk, count)};
static const field table_fields[] = {
    FIELD(TABLE_FIRST, wf_table_line, first), FIELD(TABLE_COUNT, wf_table_line, count),
    FIELD(TABLE_CODE, wf_table_line, code)};
static const field adaptive_fields[] = {FIELD(TENSOR, wf_numbered, tensor), FIELD(WIDTH, wf_numbered, count)};
static const field lanes_fields[] = {
    FIELD(TENSOR, wf_numbered, tensor), FIELD(LANES, wf_numbered, count), FIELD(VALUES, wf_numbered, number)};
static const field cosines_fields[] = {
    FIELD(TENSOR, wf_basis, tensor), FIELD(AXIS, wf_basis, axis), FIELD(BLOCK, wf_basis, block)};
static const field flips_fields[] = {FIELD(TENSOR, wf_basis, tensor), FIELD(TABLE_CODE, wf_basis, code)};
static const field rotations_fields[] = {
    FIELD(TENSOR, wf_basis, tensor), FIELD(ROTATED_AXIS, wf_basis, axis), FIELD(DIRECTIONS, wf_basis, directions),
    FIELD(TABLE_CODE, wf_basis, code)};
static const field line_tensor = FIELD(TENSOR, wf_table_lines, tensor);
static const field shared_fields[] = {FIELD(TENSOR, wf_basis, tensor), FIELD(TENSOR, wf_basis, of)};

/* The next member of a list that has to have one. */
static wf_code member(wf_tree *tree, int *first) {
    int more;
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    return more ? WF_OK : wf_tree_fail(tree, "another member");
}

/* The end of a list that has no more members. */
static wf_code end(wf_tree *tree, int *first) {
    int more;
    WF_TRY(wf_tree_more(tree, ']', first, &more));
    return more ? wf_tree_fail(tree, "no more members") : WF_OK;
}

/* Read number n of a field into a record; the fourth and later ones of a list have the next bounds. */
static wf_code read_number(wf_tree *tree, const field *f, unsigned n, char *record) {
    unsigned range = f->range + (n >= 3);
    int64_t value;
    record += f->place + n * f->size;
    if (f->range == FLAG) return wf_tree_bool(tree, (uint8_t *)record);
    WF_TRY(wf_tree_whole(tree, ranges[range].least, ranges[range].most, &value));
    switch (f->size) {
    case 1:
        *(uint8_t *)record = (uint8_t)value;
        break;
    case 2:
        *(uint16_t *)(void *)record = (uint16_t)value;
        break;
    case 4:
        *(uint32_t *)(void *)record = (uint32_t)value;
        break;
    default:
        *(uint64_t *)(void *)record = (uint64_t)value;
    }
    return WF_OK;
}

/* Read the fields of a line up to its end; those from `required` on may be missing. */
static wf_code read_fields(wf_tree *tree, int *first, const field *fields, size_t count, size_t required, void *record) {
    size_t i;
    for (i = 0; i < count; i++) {
        int more, inner = 1;
        unsigned n;
        WF_TRY(wf_tree_more(tree, ']', first, &more));
        if (!more) return i >= required ? WF_OK : wf_tree_fail(tree, "another member");
        if (fields[i].count > 1) WF_TRY(wf_tree_open(tree, '['));
        for (n = 0; n < fields[i].count; n++) {
            if (fields[i].count > 1) WF_TRY(member(tree, &inner));
            WF_TRY(read_number(tree, fields + i, n, (char *)record));
        }
        if (fields[i].count > 1) WF_TRY(end(tree, &inner));
    }
    return end(tree, first);
}

#define READ_FIELDS(fields, required, record)                                                                          \
    read_fields(tree, &first, fields, sizeof fields / sizeof *fields, required, record)

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

static wf_code read_coded(wf_tree *tree, wf_directory *directory, wf_coded *coded) {
    int first = 1;
    (void)directory;
    memset(coded->codes, -1, sizeof coded->codes);
    coded->least = -381;
    WF_TRY(letter(tree, &first, "uprc", &coded->kind));
    if (coded->kind == 'u') return READ_FIELDS(uniform_fields, 3, coded);
    if (coded->kind == 'p') return READ_FIELDS(path_fields, 8, coded);
    return coded->kind == 'r' ? READ_FIELDS(relative_fields, 5, coded) : READ_FIELDS(book_fields, 4, coded);
}

static wf_code read_chunk_line(wf_tree *tree, wf_directory *directory, wf_chunk *chunk) {
    int first = 1;
    (void)directory;
    WF_TRY(letter(tree, &first, "acsx", &chunk->kind));
    return READ_FIELDS(chunk_fields, 3, chunk);
}

static wf_code read_table(wf_tree *tree, wf_table_line *table) {
    int first = 1;
    WF_TRY(wf_tree_open(tree, '['));
    return READ_FIELDS(table_fields, 3, table);
}

static wf_code read_tables(wf_tree *tree, wf_directory *directory, wf_table_lines *lines) {
    int first = 1, inner = 1, more;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(member(tree, &first));
    WF_TRY(read_number(tree, &line_tensor, 0, (char *)lines));
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
    int first = 1;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    return READ_FIELDS(adaptive_fields, 1, line);
}

static wf_code read_lanes(wf_tree *tree, wf_directory *directory, wf_numbered *line) {
    int first = 1;
    (void)directory;
    WF_TRY(wf_tree_open(tree, '['));
    WF_TRY(READ_FIELDS(lanes_fields, 3, line));
    return line->count == 8 || line->count == 32 ? WF_OK : wf_tree_fail(tree, "8 or 32 lanes");
}

static wf_code read_basis(wf_tree *tree, wf_directory *directory, wf_basis *basis) {
    int first = 1;
    (void)directory;
    WF_TRY(letter(tree, &first, "cfrs", &basis->kind));
    if (basis->kind == 's') return READ_FIELDS(shared_fields, 2, basis);
    if (basis->kind == 'c') return READ_FIELDS(cosines_fields, 3, basis);
    basis->axis = 2;
    return basis->kind == 'f' ? READ_FIELDS(flips_fields, 2, basis) : READ_FIELDS(rotations_fields, 4, basis);
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
    WF_TRY(member(tree, &first));
    WF_TRY(wf_tree_whole(tree, 0, (int64_t)1 << 50, &bits));
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
