/* Coefficients in another basis turned back into values. SPDX-License-Identifier: MIT */
#include "wf_internal.h"
#include "wf_tables.h"

#define TURN 2048
#define WIDE 16 /* vectors that are turned at a time, side by side */
#define LONGEST 512
#define MOST_AXES 64

typedef struct rotation {
    uint16_t first, second;
    int16_t angle;
} rotation;

static float cosine(int32_t angle) {
    uint32_t a = (uint32_t)angle & (TURN - 1);
    if (a > TURN / 2) a = TURN - a;
    return a <= TURN / 4 ? wf_float_of(wf_cosines[a]) : -wf_float_of(wf_cosines[TURN / 2 - a]);
}

static float sine(int32_t angle) {
    return cosine(angle - TURN / 4);
}

/* What rotations are made: in a list, with the work whose memory it takes. */
typedef struct making {
    wf_work *work;
    wf_list list;
    int is_short; /* whether there was no memory */
} making;

static void add(making *m, unsigned first, unsigned second, int angle) {
    rotation *made = (rotation *)wf_push(m->work, &m->list);
    if (made == NULL) {
        m->is_short = 1;
        return;
    }
    made->first = (uint16_t)first;
    made->second = (uint16_t)second;
    made->angle = (int16_t)angle;
}

/* Cosines */

typedef struct signed_place {
    uint16_t place;
    int8_t sign;
} signed_place;

static void second_kind(making *m, const uint16_t *places, unsigned n, signed_place *found);

/* Rotate all pairs of some places. */
static void all_pairs(making *m, const uint16_t *places, unsigned n, const int16_t *angles, signed_place *found) {
    unsigned i, j;
    for (i = 0; i < n; i++) {
        for (j = i + 1; j < n; j++) add(m, places[i], places[j], *angles++);
        found[i].place = places[i];
        found[i].sign = i % 2 ? -1 : 1;
    }
}

static void fourth_kind(making *m, const uint16_t *places, unsigned n, signed_place *found) {
    static const int16_t three[3] = {206, 69, 206};
    uint16_t us[LONGEST / 4], vs[LONGEST / 4];
    signed_place left[LONGEST / 4], right[LONGEST / 4];
    unsigned h = n / 2, i, r;
    if (n == 1 || n == 3) {
        all_pairs(m, places, n, three, found);
        return;
    }
    for (i = 0; i < h; i++) {
        int angle = (int)((512 * (2 * i + 1) + n) / (2 * n));
        us[i] = places[i % 2 ? n - 1 - i : i];
        vs[i] = places[i % 2 ? i : n - 1 - i];
        add(m, us[i], vs[i], i % 2 ? 512 - angle : angle);
    }
    second_kind(m, us, h, left);
    second_kind(m, vs, h, right);
    found[0] = left[0];
    found[n - 1] = right[0];
    found[n - 1].sign = (int8_t)-right[0].sign;
    for (r = 1; r < h; r++) {
        signed_place one = left[r], other = right[h - r];
        int is_alike = one.sign == other.sign;
        add(m, one.place, other.place, 256);
        other.sign = (int8_t)(is_alike ? -other.sign : other.sign);
        found[2 * r] = is_alike ? one : other;
        found[2 * r - 1] = is_alike ? other : one;
    }
}

static void second_kind(making *m, const uint16_t *places, unsigned n, signed_place *found) {
    static const int16_t sums[3][6] = {{201}, {256, 151, 256}, {256, 201, 126, 362, 200, 256}};
    static const int16_t differences[3][3] = {{0}, {180}, {220, 109, 292}};
    uint16_t others[LONGEST / 2];
    signed_place even[LONGEST / 2 + 1], odd[LONGEST / 2];
    unsigned h = n / 2, i;
    if (n == 1) {
        found[0].place = places[0];
        found[0].sign = 1;
        return;
    }
    for (i = 0; i < h; i++) {
        others[i] = places[n - 1 - i];
        add(m, places[i], others[i], 256);
    }
    if (n % 2) {
        all_pairs(m, places, n - h, sums[(n - 3) / 2], even);
        all_pairs(m, others, h, differences[(n - 3) / 2], odd);
    } else {
        second_kind(m, places, h, even);
        fourth_kind(m, others, h, odd);
    }
    for (i = 0; i < n; i++) {
        found[i] = i % 2 ? odd[i / 2] : even[i / 2];
        if (i % 2) found[i].sign = (int8_t)-found[i].sign;
    }
}

/* The longest block with cosines that is neither above `block` nor above what is left. */
static unsigned block_length(uint64_t left, uint64_t block) {
    static const uint16_t lengths[20] = {512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1};
    unsigned i = 0;
    while (lengths[i] > left || lengths[i] > block) i++;
    return lengths[i];
}

static void cosines_of_block(making *m, const uint16_t *places, unsigned length) {
    signed_place found[LONGEST];
    second_kind(m, places, length, found);
}

/* Kernels */

static uint64_t stride_of(const wf_tensor *tensor, size_t axis) {
    uint64_t stride = 1;
    size_t i;
    for (i = axis + 1; i < tensor->axes; i++) stride *= tensor->shape[i];
    return stride;
}

/* Cosines along every axis of a kernel, one after the other. */
static void cosines_of_kernel(making *m, const wf_tensor *tensor, uint64_t taps, uint64_t block) {
    uint16_t places[LONGEST];
    size_t axis;
    for (axis = 2; axis < tensor->axes; axis++) {
        uint64_t length = tensor->shape[axis], stride = stride_of(tensor, axis), tap;
        for (tap = 0; tap < taps; tap++) {
            uint64_t at = 0;
            if (tap / stride % length != 0) continue;
            while (at < length) {
                unsigned some = block_length(length - at, block), i;
                for (i = 0; i < some; i++) places[i] = (uint16_t)(tap + (at + i) * stride);
                cosines_of_block(m, places, some);
                at += some;
            }
        }
    }
}

/* Sums and differences of the taps that are opposite along an axis, axis by axis. */
static void opposite(making *m, const wf_tensor *tensor, uint64_t taps) {
    size_t axis;
    for (axis = 2; axis < tensor->axes; axis++) {
        uint64_t length = tensor->shape[axis], stride = stride_of(tensor, axis), tap;
        for (tap = 0; tap < taps; tap++) {
            uint64_t index = tap / stride % length;
            if (index < length / 2) add(m, (unsigned)tap, (unsigned)(tap + (length - 1 - 2 * index) * stride), 256);
        }
    }
}

/* By which axes longer than 1 a tap is in the second half, the last axis in the lowest bit. */
static unsigned class_of(const wf_tensor *tensor, uint64_t tap) {
    unsigned found = 0;
    size_t axis;
    for (axis = 2; axis < tensor->axes; axis++) {
        uint64_t length = tensor->shape[axis];
        if (length > 1) found = found << 1 | (tap / stride_of(tensor, axis) % length >= (length + 1) / 2);
    }
    return found;
}

static void flips(making *m, const wf_tensor *tensor, uint64_t taps, const wf_basis *basis) {
    uint16_t classes[LONGEST], some[LONGEST];
    const int16_t *angles = basis->angles;
    unsigned class, most = 0, i, j, count;
    opposite(m, tensor, taps);
    for (i = 0; i < taps; i++) {
        classes[i] = (uint16_t)class_of(tensor, i);
        most = classes[i] > most ? classes[i] : most;
    }
    for (class = 0; class <= most; class++) {
        for (i = 0, count = 0; i < taps; i++) {
            if (classes[i] == class) some[count++] = (uint16_t)i;
        }
        for (i = 0; i < count; i++) {
            for (j = i + 1; j < count; j++) add(m, some[i], some[j], 8 * *angles++);
        }
    }
}

/* Vectors along an axis of a matrix [out, channels, taps] */

typedef struct vectors {
    float *values;
    uint64_t count, length, after; /* of vectors, of a vector, values from coordinate to coordinate */
    uint64_t whole;                /* coordinates of the axis */
} vectors;

static vectors along(const wf_coded *coded, unsigned axis, float *matrix) {
    vectors found;
    size_t i;
    found.values = matrix;
    found.length = found.whole = coded->axes[axis];
    found.after = 1;
    for (i = axis + 1; i < 3; i++) found.after *= coded->axes[i];
    found.count = coded->values / found.length;
    return found;
}

static float *first_of(const vectors *v, uint64_t number) {
    return v->values + number / v->after * v->whole * v->after + number % v->after;
}

/* Copy up to WIDE vectors into a tile [length, WIDE], or back, where what is no number becomes 0. */
static void load(const vectors *v, uint64_t start, unsigned some, float *tile) {
    unsigned k;
    uint64_t place;
    for (k = 0; k < some; k++) {
        const float *from = first_of(v, start + k);
        for (place = 0; place < v->length; place++) tile[place * WIDE + k] = from[place * v->after];
    }
}

static void store(const vectors *v, uint64_t start, unsigned some, const float *tile) {
    unsigned k;
    uint64_t place;
    for (k = 0; k < some; k++) {
        float *to = first_of(v, start + k);
        for (place = 0; place < v->length; place++) {
            float value = tile[place * WIDE + k];
            to[place * v->after] = value == value ? value : 0.0f;
        }
    }
}

static void rotate(float *tile, const rotation *r, int32_t angle) {
    double c = cosine(angle), s = sine(angle);
    float *one = tile + (size_t)r->first * WIDE, *other = tile + (size_t)r->second * WIDE;
    unsigned k;
    for (k = 0; k < WIDE; k++) {
        double x = one[k], y = other[k];
        one[k] = (float)(c * x + s * y);
        other[k] = (float)(c * y - s * x);
    }
}

/* Undo rotations of all vectors, the last one first. */
static wf_code undo(making *m, const vectors *v) {
    const rotation *rotations = WF_ITEMS(m->list, const rotation);
    uint64_t start;
    float *tile;
    if (m->is_short) return WF_MEMORY;
    tile = (float *)wf_take(m->work, v->length * WIDE, sizeof *tile);
    if (tile == NULL) return WF_MEMORY;
    for (start = 0; start < v->count; start += WIDE) {
        unsigned some = (unsigned)wf_least(WIDE, v->count - start);
        size_t n;
        load(v, start, some, tile);
        for (n = m->list.count; n-- > 0;) rotate(tile, rotations + n, -rotations[n].angle);
        store(v, start, some, tile);
    }
    wf_give(m->work, tile);
    return WF_OK;
}

/* Cosines along an axis, block after block. */
static wf_code undo_cosines(making *m, const vectors *all, uint64_t block) {
    uint16_t places[LONGEST];
    uint64_t at = 0, last = 0;
    unsigned i;
    for (i = 0; i < LONGEST; i++) places[i] = (uint16_t)i;
    while (at < all->whole) {
        vectors part = *all;
        part.length = block_length(all->whole - at, block);
        part.values += at * all->after;
        if (part.length != last) {
            m->list.count = 0;
            cosines_of_block(m, places, (unsigned)part.length);
            last = part.length;
        }
        if (part.length > 1) WF_TRY(undo(m, &part));
        at += part.length;
    }
    return WF_OK;
}

/* Rotated unit vectors: row j of `units` [n, n] is the one with a one in place j. */
static wf_code rotated_units(wf_work *work, const wf_basis *basis, uint64_t n, float *units) {
    float *tile = (float *)wf_take(work, n * WIDE, sizeof *tile);
    vectors v;
    uint64_t start, i;
    if (tile == NULL) return WF_MEMORY;
    for (i = 0; i < n; i++) units[i * n + i] = 1.0f;
    v.values = units;
    v.count = v.length = v.whole = n;
    v.after = 1;
    for (start = 0; start < n; start += WIDE) {
        unsigned some = (unsigned)wf_least(WIDE, n - start), p, q;
        const int16_t *angles = basis->angles;
        load(&v, start, some, tile);
        for (p = 0; p < basis->directions; p++) {
            for (q = p + 1; q < n; q++) {
                rotation r;
                r.first = (uint16_t)p;
                r.second = (uint16_t)q;
                r.angle = 0;
                rotate(tile, &r, 8 * *angles++);
            }
        }
        store(&v, start, some, tile);
    }
    wf_give(work, tile);
    return WF_OK;
}

/* Multiply vectors with the matrix of rotations, in double precision. */
static wf_code multiply(wf_work *work, const wf_basis *basis, const vectors *v) {
    uint64_t n = v->length, start, i, j;
    float *units = (float *)wf_take(work, n * n, sizeof *units), *tile, *made;
    double sums[WIDE];
    unsigned k;
    if (units == NULL) return WF_MEMORY;
    WF_TRY(rotated_units(work, basis, n, units));
    tile = (float *)wf_take(work, n * WIDE, sizeof *tile);
    made = (float *)wf_take(work, n * WIDE, sizeof *made);
    if (tile == NULL || made == NULL) return WF_MEMORY;
    for (start = 0; start < v->count; start += WIDE) {
        unsigned some = (unsigned)wf_least(WIDE, v->count - start);
        load(v, start, some, tile);
        for (j = 0; j < n; j++) {
            for (k = 0; k < WIDE; k++) sums[k] = 0.0;
            for (i = 0; i < n; i++) {
                double factor = units[j * n + i];
                for (k = 0; k < WIDE; k++) sums[k] += factor * (double)tile[i * WIDE + k];
            }
            for (k = 0; k < WIDE; k++) made[j * WIDE + k] = (float)sums[k];
        }
        store(v, start, some, made);
    }
    wf_give(work, made);
    wf_give(work, tile);
    wf_give(work, units);
    return WF_OK;
}

wf_code wf_turn_back(wf_work *work, const wf_coded *coded, const wf_entry *entry, float *matrix) {
    const wf_basis *basis = coded->basis;
    uint64_t taps = coded->axes[2];
    wf_code code;
    vectors v;
    making m;
    if (basis == NULL || coded->values == 0) return WF_OK;
    memset(&m, 0, sizeof m);
    m.work = work;
    m.list.each = sizeof(rotation);
    v = along(coded, basis->axis, matrix);
    if (basis->kind == 'r') return multiply(work, basis, &v);
    if (basis->kind == 'c' && basis->axis != 2) {
        code = undo_cosines(&m, &v, basis->block);
    } else {
        if (basis->kind == 'c') cosines_of_kernel(&m, &entry->tensor, taps, basis->block);
        else flips(&m, &entry->tensor, taps, basis);
        code = undo(&m, &v);
    }
    wf_give(work, m.list.items);
    return code;
}
