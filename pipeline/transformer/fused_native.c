/* The operations of fused.py on a CPU with AVX-512: each one pass over its tokens, with everything in fp32 between.
 *
 * BF16: products and what is neither residual nor modulation are bfloat16, as `number`; otherwise fp32.
 * Compiled by bsa/native/build.py; fused_native.py has the Python side of `Request`.
 */
#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stddef.h>

enum { LANES = 16, AT_ONCE = 16 /* tokens that a thread takes */ };

#if BF16
typedef uint16_t number;
static inline __m512 read(const number *x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}
static inline void write(number *x, __mmask16 mask, __m512 y) {
    _mm256_mask_storeu_epi16(x, mask, (__m256i)_mm512_cvtneps_pbh(y));
}
#else
typedef float number;
static inline __m512 read(const number *x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
static inline void write(number *x, __mmask16 mask, __m512 y) { _mm512_mask_storeu_ps(x, mask, y); }
#endif

static inline __mmask16 lanes(int64_t left) { return left < LANES ? (__mmask16)((1u << left) - 1) : 0xffff; }

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* OpenMP's GOMP_parallel */

/* One call. Tensors are rows of `width` numbers, one row for each token; strides count numbers. */
typedef struct {
    float *x;            /* the residual */
    number *a;           /* a branch, or what is changed in place */
    const number *b;
    number *out;
    const float *gate, *gain, *shift; /* rows of modulation; NULL: none */
    const float *cosine, *sine;       /* [tokens, width / 2] of a head */
    const int32_t *frames;            /* the row of modulation of each token; NULL: the first for all */
    const int32_t *starts, *sizes;    /* of blocks of tokens */
    const int32_t *cells;             /* the cell of each token of a block; rows of blocks may be one */
    const float *cell_sizes;          /* [blocks, cells of a block] */
    int64_t tokens, width, heads, head_stride, cell_count, cells_stride;
    int64_t x_stride, a_stride, b_stride, out_stride, gate_stride, gain_stride;
    uint32_t threads;
    Parallel parallel;
} Request;

typedef struct {
    const Request *asked;
    void (*work)(const Request *, int64_t);
    atomic_llong next;
} Job;

static void share(void *data) {
    Job *job = data;
    for (int64_t first; (first = (job->next += AT_ONCE) - AT_ONCE) < job->asked->tokens;)
        for (int64_t token = first; token < first + AT_ONCE && token < job->asked->tokens; token++)
            job->work(job->asked, token);
}

static void run(const Request *asked, void (*work)(const Request *, int64_t)) {
    Job job = {.asked = asked, .work = work};
    if (asked->parallel && asked->threads > 1 && asked->tokens > AT_ONCE)
        asked->parallel(share, &job, asked->threads, 0);
    else
        share(&job);
}

/* x += gate * a, and out = layer_norm(x) * gain + shift. */
static void residual_norm_token(const Request *asked, int64_t token) {
    const int64_t width = asked->width, frame = asked->frames ? asked->frames[token] : 0;
    float *x = asked->x + token * asked->x_stride;
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t c = 0; c < width; c += LANES) {
        const __mmask16 mask = lanes(width - c);
        __m512 value = _mm512_maskz_loadu_ps(mask, x + c);
        if (asked->a) {
            __m512 added = read(asked->a + token * asked->a_stride + c, mask);
            if (asked->gate) {
                __m512 gate = _mm512_maskz_loadu_ps(mask, asked->gate + frame * asked->gate_stride + c);
                value = _mm512_fmadd_ps(gate, added, value);
            } else
                value = _mm512_add_ps(value, added);
            _mm512_mask_storeu_ps(x + c, mask, value);
        }
        sum = _mm512_add_ps(sum, value);
    }
    if (!asked->out) return;
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
    for (int64_t c = 0; c < width; c += LANES) { /* x is in the first cache now */
        const __mmask16 mask = lanes(width - c);
        __m512 centred = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + c), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / (float)width;
    const __m512 scale = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(variance + 1e-6f)));
    const float *gain = asked->gain + frame * asked->gain_stride, *shift = asked->shift + frame * asked->gain_stride;
    for (int64_t c = 0; c < width; c += LANES) {
        const __mmask16 mask = lanes(width - c);
        __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + c), mean), scale);
        y = _mm512_fmadd_ps(y, _mm512_maskz_loadu_ps(mask, gain + c), _mm512_maskz_loadu_ps(mask, shift + c));
        write(asked->out + token * asked->out_stride + c, mask, y);
    }
}

/* Each head of a: root mean square norm with a gain, and the rotary embedding, in which neighbours are pairs. */
static void head_norm_token(const Request *asked, int64_t token) {
    const int64_t width = asked->width;
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (int64_t head = 0; head < asked->heads; head++) {
        number *a = asked->a + token * asked->a_stride + head * asked->head_stride;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < width; c += LANES) {
            __m512 value = read(a + c, lanes(width - c));
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / (float)width;
        const __m512 scale = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(mean + 1e-6f)));
        for (int64_t c = 0; c < width; c += LANES) {
            const __mmask16 mask = lanes(width - c);
            __m512 value = _mm512_mul_ps(read(a + c, mask), scale);
            value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, asked->gain + c));
            if (asked->cosine) {
                const __mmask8 half = (__mmask8)lanes((width - c) / 2);
                const int64_t at = token * (width / 2) + c / 2;
                __m512 cosine = _mm512_castps256_ps512(_mm256_maskz_loadu_ps(half, asked->cosine + at));
                __m512 sine = _mm512_castps256_ps512(_mm256_maskz_loadu_ps(half, asked->sine + at));
                cosine = _mm512_permutexvar_ps(twice, cosine);
                sine = _mm512_permutexvar_ps(twice, sine);
                __m512 swapped = _mm512_permute_ps(value, 0xb1);
                value = _mm512_fmaddsub_ps(value, cosine, _mm512_mul_ps(swapped, sine));
            }
            write(a + c, mask, value);
        }
    }
}

/* x[head, block] = the mean of the block's tokens of a. What is shared are blocks, as `tokens`. */
static void block_means_block(const Request *asked, int64_t block) {
    const int64_t width = asked->width, first = asked->starts[block], end = first + asked->sizes[block];
    const __m512 share = _mm512_set1_ps(1.0f / (float)asked->sizes[block]);
    for (int64_t head = 0; head < asked->heads; head++)
        for (int64_t c = 0; c < width; c += LANES) {
            const __mmask16 mask = lanes(width - c);
            __m512 sum = _mm512_setzero_ps();
            for (int64_t token = first; token < end; token++) {
                const number *a = asked->a + token * asked->a_stride + head * asked->head_stride;
                sum = _mm512_add_ps(sum, read(a + c, mask));
            }
            float *mean = asked->x + (head * asked->tokens + block) * width;
            _mm512_mask_storeu_ps(mean + c, mask, _mm512_mul_ps(sum, share));
        }
}

/* x[head, block, cell] = the mean of the cell's tokens of a, 0 for a cell without any. */
static void cell_means_block(const Request *asked, int64_t block) {
    const int64_t width = asked->width, count = asked->cell_count, first = asked->starts[block];
    const int32_t *cells = asked->cells + block * asked->cells_stride;
    for (int64_t head = 0; head < asked->heads; head++) {
        float *means = asked->x + (head * asked->tokens + block) * count * width;
        for (int64_t i = 0; i < count * width; i++) means[i] = 0;
        for (int64_t token = 0; token < asked->sizes[block]; token++) {
            const number *a = asked->a + (first + token) * asked->a_stride + head * asked->head_stride;
            float *mean = means + cells[token] * width;
            for (int64_t c = 0; c < width; c += LANES) {
                const __mmask16 mask = lanes(width - c);
                __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, mean + c), read(a + c, mask));
                _mm512_mask_storeu_ps(mean + c, mask, sum);
            }
        }
        for (int64_t cell = 0; cell < count; cell++) {
            const float size = asked->cell_sizes[block * count + cell], share = size > 0 ? 1.0f / size : 0.0f;
            for (int64_t c = 0; c < width; c++) means[cell * width + c] *= share;
        }
    }
}

/* e^x by 2^n times a polynomial; its error is a few times 2^-24. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(0.000154353f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.0013333558f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.009618129f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.05550411f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.24022651f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.69314718f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* a = a / (1 + e^-a) * b */
static void swiglu_token(const Request *asked, int64_t token) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t c = 0; c < asked->width; c += LANES) {
        const __mmask16 mask = lanes(asked->width - c);
        number *place = asked->a + token * asked->a_stride + c;
        __m512 a = read(place, mask), b = read(asked->b + token * asked->b_stride + c, mask);
        __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), a)));
        write(place, mask, _mm512_mul_ps(_mm512_div_ps(a, below), b));
    }
}

void residual_norm(const Request *asked) { run(asked, residual_norm_token); }
void head_norm(const Request *asked) { run(asked, head_norm_token); }
void block_means(const Request *asked) { run(asked, block_means_block); }
void cell_means(const Request *asked) { run(asked, cell_means_block); }
void swiglu(const Request *asked) { run(asked, swiglu_token); }
