/* Attention over lists of key blocks on a CPU with AVX-512, in bfloat16 (PAIR=2) or fp32 (PAIR=1).
 *
 * FlashAttention-2's loop: for each tile of queries, scores of some keys at a time, their exponentials relative to the
 * largest so far, and a running sum. Scores, sums and results are fp32 in registers and in the first caches; only the
 * weights are rounded to bfloat16, for the product with the values.
 *
 * Everything is transposed: a vector holds one number of 16 queries. So the softmax needs nothing across a vector, and
 * keys are read as they lie in memory, one 32-bit word for all lanes. A word is one number in fp32 and two neighbours
 * in bfloat16, which `vdpbf16ps` multiplies and adds: two channels of a key in the scores, two keys in the values.
 *
 * Compiled by build.py. Plain C without PyTorch's headers; attend.py has the Python side of `Request`.
 */
#include <immintrin.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
enum {
    LANES = 16,     /* of a vector of 32-bit words */
    GROUPS = 4,     /* vectors of queries in a tile */
    ROWS = LANES * GROUPS,
    STEP = 128,     /* keys whose scores are held at a time; even */
    KEYS = 6,       /* GROUPS * KEYS sums in registers, of 32 */
    CHANNELS = 4,   /* of the values at a time */
    LARGEST_DIM = 256,
};
enum { FINE = 0, NO_MEMORY = 1, BAD_LIST = 2 };
typedef uint32_t word;

#if PAIR == 2
typedef uint16_t number;
typedef __m512bh words;
#define WORDS(x) ((__m512bh)(x))
#define multiply_add(sum, a, b) _mm512_dpbf16_ps(sum, a, b)
#else
typedef float number;
typedef __m512 words;
#define WORDS(x) _mm512_castsi512_ps(x)
#define multiply_add(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#endif

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* OpenMP's GOMP_parallel */

/* One call. Strides count numbers, those of channels are 1. Each block is a range of places, tokens in block order. */
typedef struct {
    const number *q, *k, *v;
    number *out;
    int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3]; /* batch, head, token */
    int64_t batch, heads, dim, q_blocks, k_blocks, width;
    const int32_t *q_starts, *q_sizes, *k_starts, *k_sizes;
    const int64_t *q_tokens, *k_tokens; /* token of each place; NULL where they are the same */
    const int32_t *indices, *counts;    /* [batch, heads, q_blocks, width] and without width; NULL: every key block */
    float scale;
    uint32_t threads;
    Parallel parallel;
} Request;

typedef struct {
    int32_t block, first, rows;
} Tile;

typedef struct {
    const Request *asked;
    Tile *tiles;
    int64_t tile_count;
    int64_t *offsets;  /* of each key block among the packed keys of a head */
    int64_t keys;      /* packed ones of a head: blocks of odd size have one more */
    number *packed_k;  /* [batch * heads, keys, dim] */
    word *packed_v;    /* [batch * heads, keys / PAIR, dim] */
    struct Scratch *scratch;
    atomic_llong next;
    atomic_int threads, fault;
} Job;

/* A thread's own. Rows of queries are innermost everywhere. */
typedef struct Scratch {
    _Alignas(64) word q[LARGEST_DIM / PAIR * ROWS];
    float scores[STEP * ROWS];
    word weights[STEP / PAIR * ROWS];
    float out[LARGEST_DIM * ROWS];
    float largest[ROWS], sum[ROWS];
} Scratch;

/* Some keys of one block, packed. */
typedef struct {
    const word *k, *v;
    int count;
} Piece;

/* Rows to columns, 16 by 16 words. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* 2^x for x <= 0, 0 for -infinity (vscalefps' rule for it): 2^n times a polynomial of the rest. Its error is 4e-5 for
 * bfloat16, to which 2e-3 of rounding follow, and 1e-7 for fp32. */
INLINE __m512 power_of_two(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, n);
#if PAIR == 2
    __m512 y = _mm512_set1_ps(0.009618129f);
#else
    __m512 y = _mm512_set1_ps(0.000154353f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.0013333558f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.009618129f));
#endif
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.05550411f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.24022651f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.69314718f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* PAIR vectors as words: in bfloat16 lane i has a's number i below b's. */
INLINE __m512i as_words(const __m512 *x) {
#if PAIR == 2
    const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(lanes, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
#else
    return _mm512_castps_si512(x[0]);
#endif
}

INLINE words everywhere(const word *x) { return WORDS(_mm512_set1_epi32((int)*x)); }

/* Scores of n keys for g groups of rows. top: the largest of each row so far. */
INLINE void score(const int g, const int n, const word *q, const word *k, int row_words, float *scores, __m512 *top) {
    __m512 sums[KEYS][GROUPS];
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int r = 0; r < g; r++) sums[i][r] = _mm512_setzero_ps();
    for (int j = 0; j < row_words; j++, q += ROWS, k++) {
        words rows[GROUPS];
        UNROLL for (int r = 0; r < g; r++) rows[r] = WORDS(_mm512_load_si512(q + LANES * r));
        UNROLL for (int i = 0; i < n; i++) {
            words key = everywhere(k + i * row_words);
            UNROLL for (int r = 0; r < g; r++) sums[i][r] = multiply_add(sums[i][r], rows[r], key);
        }
    }
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int r = 0; r < g; r++) {
        top[r] = _mm512_max_ps(top[r], sums[i][r]);
        _mm512_store_ps(scores + i * ROWS + LANES * r, sums[i][r]);
    }
}

/* CHANNELS of the result from c on: what they are by now times fade, and the weighted values of the pieces. */
INLINE void gather(const int g, const word *weights, const Piece *pieces, int count, int dim, int c, float *out,
                   const __m512 *fade, int begun) {
    __m512 sums[CHANNELS][GROUPS];
    out += c * ROWS;
    UNROLL for (int i = 0; i < CHANNELS; i++) UNROLL for (int r = 0; r < g; r++) sums[i][r] = _mm512_setzero_ps();
    for (const Piece *piece = pieces; piece < pieces + count; piece++) {
        const word *v = piece->v + c;
        for (int j = 0; j < piece->count; j += PAIR, weights += ROWS, v += dim) {
            words rows[GROUPS];
            UNROLL for (int r = 0; r < g; r++) rows[r] = WORDS(_mm512_load_si512(weights + LANES * r));
            UNROLL for (int i = 0; i < CHANNELS; i++) {
                words value = everywhere(v + i);
                UNROLL for (int r = 0; r < g; r++) sums[i][r] = multiply_add(sums[i][r], rows[r], value);
            }
        }
    }
    UNROLL for (int i = 0; i < CHANNELS; i++) UNROLL for (int r = 0; r < g; r++) {
        float *place = out + i * ROWS + LANES * r; /* added last, so that rounding grows with the steps, not the keys */
        if (begun) sums[i][r] = _mm512_fmadd_ps(_mm512_load_ps(place), fade[r], sums[i][r]);
        _mm512_store_ps(place, sums[i][r]);
    }
}

/* Attend to the keys of some pieces, STEP at most. scale: also turns powers of e into powers of two. */
INLINE void attend_step(const int g, Scratch *own, const Piece *pieces, int count, int dim, float scale, int begun) {
    __m512 top[GROUPS], fade[GROUPS], largest[GROUPS], sum[GROUPS];
    UNROLL for (int r = 0; r < g; r++) top[r] = _mm512_set1_ps(-INFINITY);
    const int row_words = dim / PAIR;
    float *scores = own->scores;
    for (const Piece *piece = pieces; piece < pieces + count; piece++) {
        const word *k = piece->k;
        int left = piece->count;
        for (; left >= KEYS; left -= KEYS, k += KEYS * row_words, scores += KEYS * ROWS)
            score(g, KEYS, own->q, k, row_words, scores, top);
        switch (left) {
        case 5: score(g, 5, own->q, k, row_words, scores, top); break;
        case 4: score(g, 4, own->q, k, row_words, scores, top); break;
        case 3: score(g, 3, own->q, k, row_words, scores, top); break;
        case 2: score(g, 2, own->q, k, row_words, scores, top); break;
        case 1: score(g, 1, own->q, k, row_words, scores, top); break;
        }
        scores += left * ROWS;
        if (piece->count % PAIR) { /* the last word's other key weighs nothing */
            UNROLL for (int r = 0; r < g; r++) _mm512_store_ps(scores + LANES * r, _mm512_set1_ps(-INFINITY));
            scores += ROWS;
        }
    }
    const __m512 factor = _mm512_set1_ps(scale);
    UNROLL for (int r = 0; r < g; r++) {
        __m512 before = _mm512_load_ps(own->largest + LANES * r);
        largest[r] = _mm512_max_ps(before, _mm512_mul_ps(top[r], factor));
        fade[r] = power_of_two(_mm512_sub_ps(before, largest[r]));
        sum[r] = _mm512_setzero_ps();
        _mm512_store_ps(own->largest + LANES * r, largest[r]);
    }
    word *weights = own->weights;
    for (const float *some = own->scores; some < scores; some += PAIR * ROWS, weights += ROWS)
        UNROLL for (int r = 0; r < g; r++) {
            __m512 x[PAIR];
            UNROLL for (int i = 0; i < PAIR; i++) {
                __m512 read = _mm512_load_ps(some + i * ROWS + LANES * r);
                x[i] = power_of_two(_mm512_fmsub_ps(read, factor, largest[r]));
                sum[r] = _mm512_add_ps(sum[r], x[i]);
            }
            _mm512_store_si512(weights + LANES * r, as_words(x));
        }
    UNROLL for (int r = 0; r < g; r++) {
        float *place = own->sum + LANES * r;
        _mm512_store_ps(place, _mm512_fmadd_ps(_mm512_load_ps(place), fade[r], sum[r]));
    }
    for (int c = 0; c < dim; c += CHANNELS) gather(g, own->weights, pieces, count, dim, c, own->out, fade, begun);
}

INLINE int64_t token_at(const int64_t *tokens, int64_t place) { return tokens ? tokens[place] : place; }

/* One tile of queries in g groups, from its list of key blocks to its rows of the result. */
INLINE void attend_tile(const int g, Job *job, Scratch *own, int64_t head, Tile tile) {
    const Request *asked = job->asked;
    const int dim = (int)asked->dim, row_words = dim / PAIR;
    const int64_t row = head / asked->heads, column = head % asked->heads;
    const number *q = asked->q + row * asked->q_strides[0] + column * asked->q_strides[1];
    number *out = asked->out + row * asked->out_strides[0] + column * asked->out_strides[1];
    const int64_t start = asked->q_starts[tile.block] + tile.first;
    __m512i square[16];

    for (int r = 0; r < g; r++) {
        for (int c = 0; c < row_words; c += LANES) {
            for (int i = 0; i < LANES; i++) {
                const int n = LANES * r + i;
                square[i] = _mm512_setzero_si512();
                if (n < tile.rows) {
                    const int64_t token = token_at(asked->q_tokens, start + n);
                    square[i] = _mm512_loadu_si512(q + token * asked->q_strides[2] + PAIR * c);
                }
            }
            transpose(square);
            for (int i = 0; i < LANES; i++) _mm512_store_si512(own->q + (c + i) * ROWS + LANES * r, square[i]);
        }
        _mm512_store_ps(own->largest + LANES * r, _mm512_set1_ps(-INFINITY));
        _mm512_store_ps(own->sum + LANES * r, _mm512_setzero_ps());
    }

    const int64_t at = head * asked->q_blocks + tile.block;
    const int32_t *list = asked->indices ? asked->indices + at * asked->width : NULL;
    const int64_t length = list ? asked->counts[at] : asked->k_blocks;
    if (length < 1 || (list && length > asked->width)) {
        job->fault = BAD_LIST;
        return;
    }
    const float scale = asked->scale * 1.44269504f; /* log2(e) */
    Piece pieces[STEP];
    int count = 0, filled = 0, begun = 0;
    for (int64_t i = 0; i < length; i++) {
        const int64_t block = list ? list[i] : i;
        if (block < 0 || block >= asked->k_blocks) {
            job->fault = BAD_LIST;
            return;
        }
        const int size = asked->k_sizes[block];
        const int64_t first = head * job->keys + job->offsets[block];
        for (int done = 0; done < size;) {
            const int room = STEP - filled, some = size - done < room ? size - done : room;
            const int64_t key = first + done; /* even in bfloat16 */
            const word *k = (const word *)(job->packed_k + key * dim), *v = job->packed_v + key / PAIR * dim;
            pieces[count++] = (Piece){k, v, some};
            done += some;
            filled += (some + PAIR - 1) / PAIR * PAIR;
            if (filled == STEP) {
                attend_step(g, own, pieces, count, dim, scale, begun);
                begun = 1;
                count = filled = 0;
            }
        }
    }
    if (count) attend_step(g, own, pieces, count, dim, scale, begun);

    for (int r = 0; r < g; r++) {
        const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(own->sum + LANES * r));
        for (int c = 0; c < row_words; c += LANES) {
            for (int i = 0; i < LANES; i++) {
                __m512 x[PAIR];
                for (int j = 0; j < PAIR; j++)
                    x[j] = _mm512_mul_ps(_mm512_load_ps(own->out + (PAIR * (c + i) + j) * ROWS + LANES * r), share);
                square[i] = as_words(x);
            }
            transpose(square);
            for (int i = 0; i < LANES && LANES * r + i < tile.rows; i++) {
                number *to = out + token_at(asked->q_tokens, start + LANES * r + i) * asked->out_strides[2];
                _mm512_storeu_si512(to + PAIR * c, square[i]);
            }
        }
    }
}

/* Each with its loops unrolled for one number of groups: blocks of 16 queries and less are no slower per pair. */
static void attend_1(Job *job, Scratch *own, int64_t head, Tile tile) { attend_tile(1, job, own, head, tile); }
static void attend_2(Job *job, Scratch *own, int64_t head, Tile tile) { attend_tile(2, job, own, head, tile); }
static void attend_3(Job *job, Scratch *own, int64_t head, Tile tile) { attend_tile(3, job, own, head, tile); }
static void attend_4(Job *job, Scratch *own, int64_t head, Tile tile) { attend_tile(4, job, own, head, tile); }

/* A thread's share of the tiles. */
static void attend(void *data) {
    Job *job = data;
    Scratch *own = job->scratch + job->threads++;
    const int64_t total = job->asked->batch * job->asked->heads * job->tile_count;
    for (int64_t at; (at = job->next++) < total && job->fault == FINE;) {
        const Tile tile = job->tiles[at % job->tile_count];
        const int64_t head = at / job->tile_count;
        switch ((tile.rows + LANES - 1) / LANES) {
        case 1: attend_1(job, own, head, tile); break;
        case 2: attend_2(job, own, head, tile); break;
        case 3: attend_3(job, own, head, tile); break;
        default: attend_4(job, own, head, tile);
        }
    }
}

/* A thread's share of the key blocks: copies keys and values next to each other, bfloat16 values by pairs of keys. */
static void pack(void *data) {
    Job *job = data;
    const Request *asked = job->asked;
    const int64_t total = asked->batch * asked->heads * asked->k_blocks, dim = asked->dim;
    for (int64_t at; (at = job->next++) < total;) {
        const int64_t block = at % asked->k_blocks, head = at / asked->k_blocks;
        const int64_t row = head / asked->heads, column = head % asked->heads;
        const number *k = asked->k + row * asked->k_strides[0] + column * asked->k_strides[1];
        const number *v = asked->v + row * asked->v_strides[0] + column * asked->v_strides[1];
        number *to_k = job->packed_k + (head * job->keys + job->offsets[block]) * dim;
        word *to_v = job->packed_v + (head * job->keys + job->offsets[block]) / PAIR * dim;
        const int64_t first = asked->k_starts[block], end = first + asked->k_sizes[block];
        for (int64_t place = first; place < end; place += PAIR, to_k += PAIR * dim, to_v += dim) {
            const int64_t token = token_at(asked->k_tokens, place);
            memcpy(to_k, k + token * asked->k_strides[2], sizeof(number) * dim);
#if PAIR == 1
            memcpy(to_v, v + token * asked->v_strides[2], sizeof(number) * dim);
#else
            const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                                 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
            const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            const int both = place + 1 < end;
            const int64_t other = both ? token_at(asked->k_tokens, place + 1) : token;
            if (both) memcpy(to_k + dim, k + other * asked->k_strides[2], sizeof(number) * dim);
            for (int64_t c = 0; c < dim; c += 2 * LANES) {
                __m512i a = _mm512_loadu_si512(v + token * asked->v_strides[2] + c);
                __m512i b = _mm512_setzero_si512(); /* nothing times anything would be NaN */
                if (both) b = _mm512_loadu_si512(v + other * asked->v_strides[2] + c);
                _mm512_storeu_si512(to_v + c, _mm512_permutex2var_epi16(a, low, b));
                _mm512_storeu_si512(to_v + c + LANES, _mm512_permutex2var_epi16(a, high, b));
            }
#endif
        }
    }
}

static void run(const Request *asked, void (*work)(void *), Job *job) {
    job->next = 0;
    if (asked->parallel && asked->threads > 1)
        asked->parallel(work, job, asked->threads, 0);
    else
        work(job);
}

static void *lines(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }

/* Write the attention of every query to asked->out. Returns FINE, NO_MEMORY, or BAD_LIST for a list that has no block,
 * or one that there is not; the result is unspecified then. dim is a multiple of 32 up to LARGEST_DIM. */
int attend_blocks(const Request *asked) {
    Job job = {.asked = asked};
    int64_t tiles = 0;
    for (int64_t i = 0; i < asked->q_blocks; i++) tiles += (asked->q_sizes[i] + ROWS - 1) / ROWS;
    job.offsets = malloc(sizeof(int64_t) * (asked->k_blocks + 1));
    job.tiles = malloc(sizeof(Tile) * (tiles + 1));
    job.scratch = lines(sizeof(Scratch) * (asked->threads ? asked->threads : 1));
    if (job.offsets && job.tiles) {
        for (int64_t i = 0; i < asked->k_blocks; i++) {
            job.offsets[i] = job.keys;
            job.keys += (asked->k_sizes[i] + PAIR - 1) / PAIR * PAIR;
        }
        for (int32_t i = 0; i < asked->q_blocks; i++)
            for (int32_t first = 0; first < asked->q_sizes[i]; first += ROWS) {
                const int32_t left = asked->q_sizes[i] - first;
                job.tiles[job.tile_count++] = (Tile){i, first, left < ROWS ? left : ROWS};
            }
        const size_t bytes = sizeof(number) * asked->batch * asked->heads * job.keys * asked->dim;
        job.packed_k = lines(bytes);
        job.packed_v = lines(bytes);
    }
    const int ready = job.packed_k && job.packed_v && job.scratch;
    if (ready) {
        run(asked, pack, &job);
        run(asked, attend, &job);
    }
    free(job.offsets);
    free(job.tiles);
    free(job.scratch);
    free(job.packed_k);
    free(job.packed_v);
    return ready ? job.fault : NO_MEMORY;
}
