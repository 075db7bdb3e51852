/*
 * Paths with lanes, eight of them at once in vectors of AVX2. A part of wf_paths.c, where a compiler has them; whether
 * the processor has them is asked when a path begins. SPDX-License-Identifier: MIT
 */
#include <immintrin.h>

#define VECTORS __attribute__((target("avx2,popcnt")))
#define WIDTH 8
#define MOST_TABLES ((int32_t)256) /* of 32 KB, in a path that is read in vectors */

/*
 * What codes the elements, in an order for vectors. Sums of scales are counted from the lowest that a piece has.
 *
 * slots: [tables][2][4096], frequency << 20 | offset << 8 | byte.
 * entries: of every sum 8192 times its table, 2 where it has low bits, and 1 where it stands aside; -1 until needed.
 * order: of every mask of lanes, which bytes of the next words each lane takes; 128 for none.
 */
typedef struct vectors {
    uint32_t *slots;
    int32_t *entries, lowest, count;
    uint8_t (*order)[2 * WIDTH];
} vectors;

static int has_vectors(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}

static void range_of(const wf_coded *coded, uint64_t first, uint64_t count, int is_row, int32_t *low, int32_t *high) {
    uint64_t n;
    *low = INT32_MAX;
    *high = INT32_MIN;
    for (n = first; n < first + count; n++) {
        int32_t part = part_of_sum(coded, n, is_row);
        if (part < *low) *low = part;
        if (part > *high) *high = part;
    }
}

/* Room for the tables of a piece; its `count` stays 0 where vectors are not for it. */
static wf_code begin_vectors(vectors *v, const wf_path *p, uint64_t first_line, uint64_t lines, uint64_t length) {
    const wf_coded *coded = p->coded;
    int32_t low[2], high[2], count;
    unsigned mask, lane;
    memset(v, 0, sizeof *v);
    if (!has_vectors()) return WF_OK;
    range_of(coded, first_line, lines, !coded->down, &low[0], &high[0]);
    range_of(coded, 0, length, coded->down, &low[1], &high[1]);
    count = high[0] - low[0] + high[1] - low[1] + 1;
    if (count > MOST_TABLES) return WF_OK;
    v->slots = (uint32_t *)wf_room(p->stream->work, 8192 * (uint64_t)count, sizeof *v->slots);
    v->entries = (int32_t *)wf_room(p->stream->work, (uint64_t)count, sizeof *v->entries);
    v->order = (uint8_t(*)[2 * WIDTH])wf_room(p->stream->work, 256, sizeof *v->order);
    if (v->slots == NULL || v->entries == NULL || v->order == NULL) return WF_MEMORY;
    memset(v->entries, 255, (size_t)count * sizeof *v->entries);
    memset(v->order, 128, 256 * sizeof *v->order);
    for (mask = 0; mask < 256; mask++) {
        uint8_t next = 0;
        for (lane = 0; lane < WIDTH; lane++) {
            if (!(mask >> lane & 1)) continue;
            v->order[mask][2 * lane] = next++;
            v->order[mask][2 * lane + 1] = next++;
        }
    }
    v->lowest = low[0] + low[1];
    v->count = count;
    return WF_OK;
}

static void end_vectors(vectors *v, wf_stream *stream) {
    wf_give(stream->work, v->order);
    wf_give(stream->work, v->entries);
    wf_give(stream->work, v->slots);
}

/* The entry of a sum, whose table is made when it is first needed; -1 after a failure. */
static int32_t entry_of(const vectors *v, const wf_path *p, int32_t sum) {
    int32_t number = sum - v->lowest, *entry = v->entries + number;
    const wf_pair *found;
    unsigned q, slot;
    if (*entry >= 0) return *entry;
    found = pair_of(p, sum);
    if (found == NULL) return -1;
    for (q = 0; q < 2; q++) {
        uint32_t *to = v->slots + 8192 * (size_t)number + 4096 * q;
        for (slot = 0; slot < 4096; slot++) {
            uint32_t byte = found->of[q]->of[slot], info = found->of[q]->symbols[byte];
            to[slot] = info >> 16 << 20 | (slot - (info & 0xFFFF)) << 8 | byte;
        }
    }
    *entry = number * 8192 + 2 * ((found->low[0] | found->low[1]) != 0) + !found->is_coded;
    return *entry;
}

/* Eight lanes one by one, with all that they need. */
static void one_by_one(wf_path *p, const int32_t *sums, int32_t within, unsigned lane, unsigned *states, int32_t *levels) {
    unsigned i;
    for (i = 0; i < WIDTH; i++) levels[i] = next_level(p, lane + i, states + lane + i, pair_of(p, sums[lane + i] + within));
}

/* Put eight levels of eight lanes, as they were read, one line after the other. */
static VECTORS void put_square(const int32_t (*square)[WIDTH], int32_t *levels, uint64_t apart) {
    __m256i a[8], b[8];
    int i;
    for (i = 0; i < 8; i++) a[i] = _mm256_loadu_si256((const __m256i *)square[i]);
    for (i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)(levels + i * apart), _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
        _mm256_storeu_si256((__m256i *)(levels + (i + 4) * apart), _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
}

/* What a step needs and does not change. */
typedef struct plan {
    const int *slots;
    const uint8_t (*order)[2 * WIDTH];
    const uint8_t *words;
    size_t end;
    __m256i flips, picks;
    int is_half;
} plan;

/* A step of eight lanes; returns 0 where one has an escape or low bits, or few words are left, and nothing is changed. */
static inline VECTORS int step(const plan *s, __m256i entry, uint32_t *states, unsigned *trellises, size_t *at,
                               int32_t *levels) {
    const __m256i none = _mm256_setzero_si256(), one = _mm256_set1_epi32(1), most = _mm256_set1_epi32(4095);
    __m256i x = _mm256_loadu_si256((const __m256i *)states), state = _mm256_loadu_si256((const __m256i *)trellises);
    __m256i subset = _mm256_and_si256(_mm256_andnot_si256(entry, state), one), slot, byte, low, words, k, moved;
    __m256i place = _mm256_add_epi32(_mm256_andnot_si256(_mm256_set1_epi32(3), entry), _mm256_slli_epi32(subset, 12));
    unsigned mask;
    if (s->end < *at + WIDTH) return 0;
    slot = _mm256_i32gather_epi32(s->slots, _mm256_add_epi32(place, _mm256_and_si256(x, most)), 4);
    byte = _mm256_and_si256(slot, _mm256_set1_epi32(255));
    moved = _mm256_or_si256(_mm256_cmpeq_epi32(byte, none), _mm256_slli_epi32(entry, 30));
    if (_mm256_movemask_ps(_mm256_castsi256_ps(moved))) return 0;
    x = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(slot, 20), _mm256_srli_epi32(x, 12)),
                         _mm256_and_si256(_mm256_srli_epi32(slot, 8), most));
    low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), none);
    mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));
    words = _mm256_cvtepu16_epi32(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(s->words + 2 * *at)),
                                                   _mm_loadu_si128((const __m128i *)s->order[mask])));
    x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), low);
    _mm256_storeu_si256((__m256i *)states, x);
    *at += (unsigned)__builtin_popcount(mask);
    moved = _mm256_and_si256(_mm256_sub_epi32(none, _mm256_and_si256(byte, one)), s->picks);
    moved = _mm256_xor_si256(moved, _mm256_and_si256(_mm256_sub_epi32(none, subset), s->flips));
    moved = _mm256_xor_si256(moved, _mm256_srli_epi32(state, 1));
    moved = _mm256_blendv_epi8(moved, state, _mm256_cmpeq_epi32(_mm256_and_si256(entry, one), one));
    _mm256_storeu_si256((__m256i *)trellises, moved);
    k = _mm256_sub_epi32(byte, _mm256_set1_epi32(128));
    if (!s->is_half) subset = _mm256_sign_epi32(_mm256_sub_epi32(none, subset), k);
    _mm256_storeu_si256((__m256i *)levels, _mm256_add_epi32(_mm256_add_epi32(k, k), subset));
    return 1;
}

/*
 * Decode a line of each of the first `many` lanes, a multiple of eight.
 * sums: what the line of each lane has of the sums of scales.
 */
static VECTORS wf_code read_lines(const vectors *v, wf_path *p, const int32_t *sums, unsigned many, unsigned *states,
                                  uint64_t length, int32_t *levels, uint64_t apart) {
    int32_t squares[4][WIDTH][WIDTH], entries[32], last = 0;
    wf_stream *stream = p->stream;
    plan s;
    size_t at = stream->at;
    uint64_t place;
    unsigned lane, is_known = 0;
    s.slots = (const int *)v->slots;
    s.order = (const uint8_t(*)[2 * WIDTH])v->order;
    s.words = stream->words;
    s.end = stream->end;
    s.flips = _mm256_set1_epi32((int)p->flips);
    s.picks = _mm256_set1_epi32((int)p->picks);
    s.is_half = p->is_half;
    for (place = 0; place < length; place++) {
        int32_t within = part_of_sum(p->coded, place, p->coded->down);
        for (lane = 0; lane < many && !(is_known && within == last); lane++) {
            entries[lane] = entry_of(v, p, sums[lane] + within);
            if (entries[lane] < 0) return WF_MEMORY;
        }
        is_known = 1;
        last = within;
        for (lane = 0; lane < many; lane += WIDTH) {
            int32_t *found = squares[lane / WIDTH][place % WIDTH];
            __m256i entry = _mm256_loadu_si256((const __m256i *)(entries + lane));
            if (step(&s, entry, stream->states + lane, states + lane, &at, found)) continue;
            stream->at = at;
            one_by_one(p, sums, within, lane, states, found);
            at = stream->at;
        }
        if (stream->is_short | p->is_beyond) return check(p);
        if (place % WIDTH == WIDTH - 1) {
            for (lane = 0; lane < many; lane += WIDTH) {
                put_square((const int32_t(*)[WIDTH])squares[lane / WIDTH], levels + lane * apart + place + 1 - WIDTH, apart);
            }
        }
    }
    for (lane = 0; lane < many; lane++) {
        for (place = length - length % WIDTH; place < length; place++) {
            levels[lane * apart + place] = squares[lane / WIDTH][place % WIDTH][lane % WIDTH];
        }
    }
    stream->at = at;
    return WF_OK;
}
