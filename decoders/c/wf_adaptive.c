/* Adaptive models: matrices with many zeros as decisions whose odds are learnt. SPDX-License-Identifier: MIT */
#include "wf_internal.h"
#include "wf_tables.h"

#define SLOWEST 40
#define MOST_BITS 31
#define LEARNT_BITS 8

/* The first parameter of each kind; the last one is the first of those of rows, columns, channels and taps. */
enum { ROWS = 0, COLUMNS = 8, IS_ZERO = 24, NEAR = 25, SIGN = 57, SIZE = 66, SIZES_NEAR = 98, NODES = 130, LINES = 386 };

/* Parameters of a row, a column, a channel and a tap: of zero, sign and magnitude. */
#define PER_LINE 3

typedef struct parameter {
    int64_t theta, weight;
} parameter;

typedef struct model {
    wf_stream *stream;
    parameter *parameters;
    uint64_t columns, taps, width, decisions;
    uint64_t used[8]; /* parameters of the decision at hand */
} model;

/* The quotient, rounded down. */
static int64_t divided(int64_t value, int64_t divisor) {
    int64_t quotient = value / divisor;
    return quotient - (value % divisor < 0);
}

/* Read a decision with so many parameters, and learn from it. */
static unsigned decide(model *m, unsigned count) {
    wf_stream *stream = m->stream;
    unsigned lane = m->decisions++ & 7, i, answer;
    int64_t total = 0, place, p, seen, error;
    uint32_t x = stream->states[lane], slot = x & 4095;
    for (i = 0; i < count; i++) total += m->parameters[m->used[i]].theta;
    place = divided(total, 1024) + 512;
    p = wf_odds[place < 0 ? 0 : place > 1023 ? 1023 : place];
    answer = slot < (uint32_t)p;
    x = answer ? (uint32_t)p * (x >> 12) + slot : (4096 - (uint32_t)p) * (x >> 12) + slot - (uint32_t)p;
    stream->states[lane] = wf_refilled(stream, x);
    seen = p * (4096 - p) / 4096;
    seen = seen < SLOWEST ? SLOWEST : seen;
    error = ((int64_t)answer * 4096 - p) * 65536;
    for (i = 0; i < count; i++) {
        parameter *one = m->parameters + m->used[i];
        one->weight += seen;
        one->theta += divided(error, one->weight);
    }
    return answer;
}

/* Which lines have a value that is not zero, given the three before and the one `width` lines back. */
static wf_code read_flags(model *m, uint8_t *flags, uint64_t count, unsigned first, uint64_t width) {
    unsigned history = 0;
    uint64_t i;
    for (i = 0; i < count; i++) {
        m->used[0] = first + history + (width && width <= i ? 8u * flags[i - width] : 0);
        flags[i] = (uint8_t)decide(m, 1);
        if (m->stream->is_short) return wf_short(m->stream->work);
        history = (history << 1 | flags[i]) & 7;
    }
    return WF_OK;
}

static int64_t value_at(const model *m, const int32_t *line, uint64_t column, uint64_t back) {
    return back <= column && column - back < m->columns ? line[column - back] : 0;
}

static unsigned least3(int64_t value) {
    value = value < 0 ? -value : value;
    return value > 3 ? 3 : (unsigned)value;
}

static unsigned sign_of(int64_t value) {
    return 1 + (value > 0) - (value < 0);
}

/* A value that is not zero: sign, number of bits, bits. The parameters of its lines are used[1..count - 1]. */
static int32_t read_value(model *m, unsigned count, int64_t left, int64_t above) {
    unsigned i, is_negative, bits = 1, k;
    uint32_t found = 1;
    for (i = 1; i < count; i++) m->used[i]++;
    m->used[0] = SIGN + sign_of(left) + 3 * sign_of(above);
    is_negative = decide(m, count);
    for (i = 1; i < count; i++) m->used[i]++;
    m->used[count] = m->used[1];
    while (bits < MOST_BITS) {
        m->used[0] = SIZE + bits;
        m->used[1] = SIZES_NEAR + least3(left) + 4 * least3(above) + 16 * (bits > 1);
        if (!decide(m, count + 1)) break;
        bits++;
    }
    for (k = 1; k < bits; k++) {
        uint32_t node = (1u << (bits - 1)) + found;
        m->used[0] = NODES + (node > 255 ? 255 : node);
        found = found << 1 | decide(m, bits <= LEARNT_BITS);
    }
    return is_negative ? -(int32_t)found : (int32_t)found;
}

/* Where an element is, and what is zero around it. */
typedef struct element {
    uint64_t row, column;
    int is_last; /* whether it has to be there: its row or its column has nothing else */
} element;

static int32_t read_element(model *m, uint64_t rows, const element *e, const int32_t *line) {
    uint64_t column = e->column, width = m->width;
    int64_t left = value_at(m, line, column, 1), above = width ? value_at(m, line, column, width) : 0;
    uint64_t first_column = LINES + PER_LINE * rows, first_channel = first_column + PER_LINE * m->columns;
    uint64_t first_tap = first_channel + PER_LINE * (m->columns / m->taps);
    unsigned near = (left != 0) + 2 * (value_at(m, line, column, 2) != 0) + 4 * (above != 0), count = 4;
    if (width) near += 8 * (value_at(m, line, column, width + 1) != 0);
    if (width > 1) near += 16 * (value_at(m, line, column, width - 1) != 0);
    m->used[0] = IS_ZERO;
    m->used[1] = LINES + PER_LINE * e->row;
    m->used[2] = first_column + PER_LINE * column;
    m->used[3] = NEAR + near;
    if (m->taps > 1) {
        m->used[4] = first_channel + PER_LINE * (column / m->taps);
        m->used[5] = first_tap + PER_LINE * (column % m->taps);
        count = 6;
    }
    if (!e->is_last && !decide(m, count)) return 0;
    m->used[3] = m->used[4];
    m->used[4] = m->used[5];
    return read_value(m, m->taps > 1 ? 5 : 3, left, above);
}

static void set_weights(parameter *parameters, uint64_t rows, uint64_t count) {
    uint64_t n, first_column = LINES + PER_LINE * rows;
    for (n = 0; n < count; n++) {
        int64_t weight = 1 << 15;
        if (n < LINES) weight = n >= NEAR && n < SIGN ? 1 << 13 : n >= SIGN && n < NODES ? 1 << 11 : 1 << 10;
        else if ((n - LINES) % PER_LINE == 0) weight = n < first_column ? 1 << 13 : 1 << 14;
        parameters[n].weight = weight;
    }
}

/* The last line with a flag; `count` where there is none. */
static uint64_t last_flag(const uint8_t *flags, uint64_t count) {
    uint64_t n = count;
    while (n && !flags[n - 1]) n--;
    return n ? n - 1 : count;
}

static wf_code read_matrix(model *m, uint64_t rows, uint8_t *row_flags, uint8_t *column_flags, uint8_t *filled,
                           int32_t *values) {
    element e;
    uint64_t last_row, last_column;
    WF_TRY(read_flags(m, row_flags, rows, ROWS, 0));
    WF_TRY(read_flags(m, column_flags, m->columns, COLUMNS, m->width));
    last_row = last_flag(row_flags, rows);
    last_column = last_flag(column_flags, m->columns);
    for (e.row = 0; e.row < rows; e.row++) {
        int32_t *line = values + e.row * m->columns;
        int is_none = 1;
        for (e.column = 0; row_flags[e.row] && e.column < m->columns; e.column++) {
            if (!column_flags[e.column]) continue;
            e.is_last = (is_none && e.column == last_column) || (!filled[e.column] && e.row == last_row);
            line[e.column] = read_element(m, rows, &e, line);
            if (m->stream->is_short) return wf_short(m->stream->work);
            if (line[e.column] == 0) continue;
            is_none = 0;
            filled[e.column] = 1;
        }
    }
    return WF_OK;
}

wf_code wf_read_adaptive(wf_stream *stream, const wf_coded *coded, uint64_t count, int32_t *values) {
    wf_work *work = stream->work;
    uint64_t columns = coded->axes[1] * coded->axes[2], rows = count / columns, size;
    uint8_t *flags = (uint8_t *)wf_take(work, rows + 2 * columns, 1);
    model m;
    wf_code code;
    memset(&m, 0, sizeof m);
    m.stream = stream;
    m.columns = columns;
    m.taps = coded->axes[2];
    m.width = coded->width;
    size = LINES + PER_LINE * (rows + columns + coded->axes[1] + coded->axes[2]);
    m.parameters = flags ? (parameter *)wf_take(work, size, sizeof *m.parameters) : NULL;
    if (m.parameters == NULL) return WF_MEMORY;
    set_weights(m.parameters, rows, size);
    memset(values, 0, (size_t)count * sizeof *values);
    code = read_matrix(&m, rows, flags, flags + rows, flags + rows + columns, values);
    wf_give(work, m.parameters);
    wf_give(work, flags);
    return code;
}
