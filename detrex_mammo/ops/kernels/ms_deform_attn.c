// Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
//
// Multi-scale deformable attention on the CPU, eq. 3 of https://arxiv.org/abs/2010.04159.
//
// B batch, S tokens of all levels, Q queries, M heads, D channels per head, L levels, P points;
// K = L * P samples per query and head. Compiled once for each (D, L, P): with these known the
// loops below unroll and vectorise. Everything is float32.
//
// Where a query looks is given in one of two forms (Problem.reference_size):
//   0     locations (x, y) in [0, 1] and attention weights;
//   2, 4  reference points (x, y) or (cx, cy, w, h), offsets from them and logits of the weights.
//
// What makes it fast:
// - all K samples of a query find their corners in one branch-free vector loop, before any reading;
// - a head's values are first copied together when many queries read them: 128-byte rows that lie
//   1 KB apart cost a page-table lookup each;
// - large buffers ask for huge pages: touching fresh 4 KB pages takes as long as the arithmetic.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#if !defined(HEAD_DIM) || !defined(NUM_LEVELS) || !defined(NUM_POINTS)
#error "compile with -DHEAD_DIM=D -DNUM_LEVELS=L -DNUM_POINTS=P"
#endif
#define D HEAD_DIM
#define L NUM_LEVELS
#define P NUM_POINTS
#define K (L * P)
#ifndef OFFSET
#define OFFSET int32_t  // int64_t when an image's value has more than 2^31 elements
#endif
// With sizes known, what is inlined is specialised for them.
#define INLINE inline __attribute__((always_inline))
#define HUGE_PAGE ((int64_t)1 << 21)

// The widest vector that divides D; on any processor the compiler splits it as it must.
#if D % 8 == 0
#define LANES 8
#elif D % 4 == 0
#define LANES 4
#elif D % 2 == 0
#define LANES 2
#else
#define LANES 1
#endif
// Rows of value are aligned to one float only; may_alias because they are read as both.
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Mirrored by _Problem in c_kernel.py. Arrays in C order; strides count floats.
typedef struct {
    const float *value;        // (B, S, M, D)
    const int64_t *shapes;     // (L, 2) rows (h, w)
    const float *references;   // (B or 1, Q, L, reference_size)
    const float *places;       // (B, Q, M, K, 2) locations or offsets, as (x, y)
    const float *attention;    // (B, Q, M, K) weights or logits
    const float *grad_output;  // (B, Q, M, D)
    float *output;             // (B, Q, M, D)
    float *grad_value;         // (B, S, M, D); zero at the start of a backward without gather
    float *grad_places;        // (B, Q, M, K, 2)
    float *grad_attention;     // (B, Q, M, K)
    int64_t batch, tokens, queries, heads;
    int64_t reference_size;          // 0, 2 or 4
    int64_t reference_batch_stride;  // 0 when all images share the reference points
    int64_t places_query_stride, attention_query_stride;
    int64_t query_chunks;  // of a head in the forward pass
    int64_t gather;        // whether to copy a head's values together first
    int64_t num_threads;
} Problem;

// The level of each of the K samples, spread out so that one loop handles all of them.
typedef struct {
    float width[K], height[K];
    int32_t columns[K], rows[K];
    OFFSET start[K];
    int32_t box[K];  // of a query's reference points
} Levels;

// The four neighbours of each sample: 0 (x0, y0), 1 (x1, y0), 2 (x0, y1), 3 (x1, y1).
typedef struct {
    OFFSET offset[4][K];  // elements from the head's first one; always inside the level
    float weight[4][K];   // bilinear times attention; 0 outside the level
    float inside[4][K];   // 1 inside the level, else 0
    float dx[K], dy[K];
    int32_t reads[K];  // 0 when all four corners are outside: nothing of value is touched
} Corners;

// One head of one image.
typedef struct {
    const float *value;
    int64_t stride;  // floats from one token to the next
    int64_t image, head;
} Head;

static INLINE const float *find_reference(const Problem *p, const Head *head, int64_t q) {
    return p->references + head->image * p->reference_batch_stride + q * L * p->reference_size;
}

static void spread_levels(Levels *levels, const Problem *p, int64_t stride) {
    const int64_t *shapes = p->shapes;
    int64_t start = 0;
    for (int l = 0; l < L; ++l) {
        for (int k = l * P; k < (l + 1) * P; ++k) {
            levels->rows[k] = (int32_t)shapes[2 * l];
            levels->columns[k] = (int32_t)shapes[2 * l + 1];
            levels->height[k] = (float)shapes[2 * l];
            levels->width[k] = (float)shapes[2 * l + 1];
            levels->start[k] = (OFFSET)(start * stride);
            levels->box[k] = (int32_t)(l * p->reference_size);
        }
        start += shapes[2 * l] * shapes[2 * l + 1];
    }
}

// e^x for -87 <= x <= 0, to 1e-7 of its value; NaN stays NaN. No branch: vectorises.
static INLINE float exp_negative(float x) {
    const float n = (float)(int32_t)(x * 1.44269504f - 0.5f);  // rounds, as x <= 0
    const float r = x - n * 0.69314718f;
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    union {
        uint32_t bits;
        float power;
    } two = {((uint32_t)(int32_t)n + 127) << 23};
    return e * two.power;
}

// Not inlined: on its own it vectorises.
static __attribute__((noinline)) void softmax(float *restrict weights, const float *restrict logits) {
    float most = logits[0], sum = 0.0f;
    for (int k = 1; k < K; ++k) most = logits[k] > most ? logits[k] : most;
    for (int k = 0; k < K; ++k) {
        weights[k] = logits[k] - most < -87.0f ? -87.0f : logits[k] - most;
    }
    for (int k = 0; k < K; ++k) {
        weights[k] = exp_negative(weights[k]);
        sum += weights[k];
    }
    const float scale = 1.0f / sum;
    for (int k = 0; k < K; ++k) weights[k] *= scale;
}

// Pixels per unit of a place along x (axis 0) or y (axis 1). `size` is Problem.reference_size.
static INLINE float find_scale(const Levels *levels, const float *reference, int k, int axis,
                               const int64_t size) {
    const float pixels = axis ? levels->height[k] : levels->width[k];
    if (size == 0) return pixels;
    return size == 2 ? 1.0f : reference[levels->box[k] + 2 + axis] * pixels * (0.5f / P);
}

// A sample's coordinate in pixels, 0 being the centre of a level's first cell.
static INLINE float find_pixel(const Levels *levels, const float *reference, const float *place,
                               int k, int axis, const int64_t size) {
    const float pixels = axis ? levels->height[k] : levels->width[k];
    const float origin = size ? reference[levels->box[k] + axis] * pixels - 0.5f : -0.5f;
    return origin + place[2 * k + axis] * find_scale(levels, reference, k, axis, size);
}

static INLINE int32_t clamp_index(int32_t i, int32_t size) {
    i = i < 0 ? 0 : i;
    return i > size - 1 ? size - 1 : i;
}

static INLINE int32_t is_inside(int32_t i, int32_t size) {
    return (uint32_t)i < (uint32_t)size;
}

// Where and with which weight the K samples of one query and head read. No branch: vectorises.
// A pixel at NaN or infinity is outside; pixels are clamped before they become integers.
static INLINE void find_corners(Corners *restrict c, const Levels *restrict levels,
                                const float *restrict reference, const float *restrict place,
                                const float *restrict attention, OFFSET stride,
                                const int64_t size) {
    for (int k = 0; k < K; ++k) {
        const int32_t columns = levels->columns[k], rows = levels->rows[k];
        float x = find_pixel(levels, reference, place, k, 0, size);
        float y = find_pixel(levels, reference, place, k, 1, size);
        x = x > -2.0f ? x : -2.0f;  // also catches NaN
        y = y > -2.0f ? y : -2.0f;
        x = x < levels->width[k] ? x : levels->width[k];
        y = y < levels->height[k] ? y : levels->height[k];
        const int32_t x0 = (int32_t)(x + 2.0f) - 2, y0 = (int32_t)(y + 2.0f) - 2;  // floor
        const float dx = x - (float)x0, dy = y - (float)y0;
        const int32_t in_x0 = is_inside(x0, columns), in_x1 = is_inside(x0 + 1, columns);
        const int32_t in_y0 = is_inside(y0, rows), in_y1 = is_inside(y0 + 1, rows);
        const OFFSET left = clamp_index(x0, columns), right = clamp_index(x0 + 1, columns);
        const OFFSET top = levels->start[k] + (OFFSET)clamp_index(y0, rows) * columns * stride;
        const OFFSET bottom =
            levels->start[k] + (OFFSET)clamp_index(y0 + 1, rows) * columns * stride;
        const float a = attention[k];
        c->offset[0][k] = top + left * stride;
        c->offset[1][k] = top + right * stride;
        c->offset[2][k] = bottom + left * stride;
        c->offset[3][k] = bottom + right * stride;
        c->inside[0][k] = (float)(in_x0 & in_y0);
        c->inside[1][k] = (float)(in_x1 & in_y0);
        c->inside[2][k] = (float)(in_x0 & in_y1);
        c->inside[3][k] = (float)(in_x1 & in_y1);
        c->weight[0][k] = (1.0f - dx) * (1.0f - dy) * c->inside[0][k] * a;
        c->weight[1][k] = dx * (1.0f - dy) * c->inside[1][k] * a;
        c->weight[2][k] = (1.0f - dx) * dy * c->inside[2][k] * a;
        c->weight[3][k] = dx * dy * c->inside[3][k] * a;
        c->dx[k] = dx;
        c->dy[k] = dy;
        c->reads[k] = (in_x0 | in_x1) & (in_y0 | in_y1);
    }
}

// Everything about one query of a head; `weights` becomes the softmax when there are logits.
static INLINE void plan(Corners *restrict c, float *restrict weights, const Problem *p,
                        const Levels *levels, const Head *head, int64_t q) {
    const int64_t size = p->reference_size, row = head->image * p->queries + q;
    const float *place = p->places + row * p->places_query_stride + head->head * K * 2;
    const float *attention = p->attention + row * p->attention_query_stride + head->head * K;
    const float *reference = find_reference(p, head, q);
    const OFFSET stride = (OFFSET)head->stride;
    if (size == 0) {
        memcpy(weights, attention, sizeof(float) * K);
        find_corners(c, levels, reference, place, weights, stride, 0);
    } else {
        softmax(weights, attention);
        if (size == 2) find_corners(c, levels, reference, place, weights, stride, 2);
        if (size == 4) find_corners(c, levels, reference, place, weights, stride, 4);
    }
}

static INLINE void attend(float *restrict output, const Corners *restrict c,
                          const float *restrict value) {
    Vector sum[D / LANES] = {0};
    for (int k = 0; k < K; ++k) {
        const float w0 = c->weight[0][k], w1 = c->weight[1][k];
        const float w2 = c->weight[2][k], w3 = c->weight[3][k];
        if (!c->reads[k]) {
            for (int d = 0; d < D / LANES; ++d) sum[d] += w0;  // 0, or NaN if the weight is NaN
            continue;
        }
        const Vector *p0 = (const Vector *)(value + c->offset[0][k]);
        const Vector *p1 = (const Vector *)(value + c->offset[1][k]);
        const Vector *p2 = (const Vector *)(value + c->offset[2][k]);
        const Vector *p3 = (const Vector *)(value + c->offset[3][k]);
        for (int d = 0; d < D / LANES; ++d) {
            sum[d] += w0 * p0[d];
            sum[d] += w1 * p1[d];
            sum[d] += w2 * p2[d];
            sum[d] += w3 * p3[d];
        }
    }
    memcpy(output, sum, sizeof sum);
}

// Adds to the value's gradient; leaves <value at corner, gradient> in `dot`.
static INLINE void scatter(float *restrict grad_value, float dot[4][K], const Corners *restrict c,
                           const float *restrict value, const float *restrict grad_output) {
    float g[D];
    memcpy(g, grad_output, sizeof g);
    for (int k = 0; k < K; ++k) {
        dot[0][k] = dot[1][k] = dot[2][k] = dot[3][k] = 0.0f;
        if (!c->reads[k]) continue;
        const float *p0 = value + c->offset[0][k], *p1 = value + c->offset[1][k];
        const float *p2 = value + c->offset[2][k], *p3 = value + c->offset[3][k];
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        for (int d = 0; d < D; ++d) {
            s0 += g[d] * p0[d];
            s1 += g[d] * p1[d];
            s2 += g[d] * p2[d];
            s3 += g[d] * p3[d];
        }
        dot[0][k] = s0;
        dot[1][k] = s1;
        dot[2][k] = s2;
        dot[3][k] = s3;
        for (int corner = 0; corner < 4; ++corner) {
            const float w = c->weight[corner][k];
            float *target = grad_value + c->offset[corner][k];
            for (int d = 0; d < D; ++d) target[d] += w * g[d];
        }
    }
}

// Gradients of places and attention from the dots of their corners.
static INLINE void small_gradients(float *restrict grad_place, float *restrict grad_attention,
                                   float dot[4][K], const Corners *restrict c,
                                   const Levels *restrict levels,
                                   const float *restrict reference, const float *restrict weights,
                                   const int64_t size) {
    float mean = 0.0f;
    for (int k = 0; k < K; ++k) {
        const float s0 = dot[0][k] * c->inside[0][k], s1 = dot[1][k] * c->inside[1][k];
        const float s2 = dot[2][k] * c->inside[2][k], s3 = dot[3][k] * c->inside[3][k];
        const float dx = c->dx[k], dy = c->dy[k], ex = 1.0f - dx, ey = 1.0f - dy;
        const float grad = ex * ey * s0 + dx * ey * s1 + ex * dy * s2 + dx * dy * s3;
        const float x = weights[k] * find_scale(levels, reference, k, 0, size);
        const float y = weights[k] * find_scale(levels, reference, k, 1, size);
        grad_attention[k] = grad;
        grad_place[2 * k] = x * (ey * (s1 - s0) + dy * (s3 - s2));
        grad_place[2 * k + 1] = y * (ex * (s2 - s0) + dx * (s3 - s1));
        mean += weights[k] * grad;
    }
    if (size == 0) return;
    for (int k = 0; k < K; ++k) grad_attention[k] = weights[k] * (grad_attention[k] - mean);
}

static void ask_for_huge_pages(void *start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t first = ((uintptr_t)start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uintptr_t end = ((uintptr_t)start + (uintptr_t)bytes) / HUGE_PAGE * HUGE_PAGE;
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);  // only advice
#else
    (void)start, (void)bytes;
#endif
}

// Room for one head's tokens; NULL when there is no memory for it.
static float *head_buffer(const Problem *p) {
    const int64_t bytes = p->tokens * D * (int64_t)sizeof(float);
    void *buffer = NULL;
    if (!p->gather || posix_memalign(&buffer, (size_t)HUGE_PAGE, (size_t)bytes)) return NULL;
    ask_for_huge_pages(buffer, bytes);
    return buffer;
}

static Head find_head(const Problem *p, int64_t index, float *buffer) {
    const int64_t image = index / p->heads, head = index % p->heads, stride = p->heads * D;
    const float *value = p->value + image * p->tokens * stride + head * D;
    if (!buffer) return (Head){value, stride, image, head};
    for (int64_t s = 0; s < p->tokens; ++s) {
        memcpy(buffer + s * D, value + s * stride, sizeof(float) * D);
    }
    return (Head){buffer, D, image, head};
}

int ms_deform_attn_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// Tasks first to last - 1 of B * M * query_chunks.
void ms_deform_attn_forward(const Problem *p, int64_t first, int64_t last) {
    const int64_t chunk = (p->queries + p->query_chunks - 1) / p->query_chunks;
    ask_for_huge_pages(p->output, p->batch * p->queries * p->heads * D * (int64_t)sizeof(float));
#pragma omp parallel num_threads(p->num_threads)
    {
        float *buffer = head_buffer(p);
        Levels levels;
        spread_levels(&levels, p, buffer ? D : p->heads * D);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = first; task < last; ++task) {
            const Head head = find_head(p, task / p->query_chunks, buffer);
            const int64_t begin = task % p->query_chunks * chunk;
            const int64_t end = begin + chunk < p->queries ? begin + chunk : p->queries;
            Corners corners[2];
            float weights[K];
            if (begin < end) plan(&corners[0], weights, p, &levels, &head, begin);
            for (int64_t q = begin; q < end; ++q) {
                // The next query's arithmetic hides behind the reading for this one.
                if (q + 1 < end) {
                    plan(&corners[(q + 1 - begin) % 2], weights, p, &levels, &head, q + 1);
                }
                const int64_t row = (head.image * p->queries + q) * p->heads + head.head;
                attend(p->output + row * D, &corners[(q - begin) % 2], head.value);
            }
        }
        free(buffer);
    }
}

// Tasks first to last - 1 of B * M. One task owns one (image, head): no two tasks write the same
// gradient, so there are no atomics, and the sums have the same bits for any number of threads.
void ms_deform_attn_backward(const Problem *p, int64_t first, int64_t last) {
    const int64_t rows = p->batch * p->queries * p->heads, size = (int64_t)sizeof(float);
    ask_for_huge_pages(p->grad_value, p->batch * p->tokens * p->heads * D * size);
    ask_for_huge_pages(p->grad_places, rows * K * 2 * size);
    ask_for_huge_pages(p->grad_attention, rows * K * size);
#pragma omp parallel num_threads(p->num_threads)
    {
        float *buffer = head_buffer(p), *grad_buffer = buffer ? head_buffer(p) : NULL;
        if (!grad_buffer) {
            free(buffer);
            buffer = NULL;
        }
        Levels levels;
        spread_levels(&levels, p, buffer ? D : p->heads * D);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = first; task < last; ++task) {
            const Head head = find_head(p, task, buffer);
            float *grad_head =
                p->grad_value + head.image * p->tokens * p->heads * D + head.head * D;
            float *grad_value = grad_buffer ? grad_buffer : grad_head;
            if (grad_buffer) memset(grad_buffer, 0, (size_t)(p->tokens * D * size));
            for (int64_t s = 0; p->gather && !grad_buffer && s < p->tokens; ++s) {
                memset(grad_head + s * p->heads * D, 0, sizeof(float) * D);  // no memory to gather
            }
            for (int64_t q = 0; q < p->queries; ++q) {
                const int64_t row = (head.image * p->queries + q) * p->heads + head.head;
                Corners c;
                float weights[K], dot[4][K];
                plan(&c, weights, p, &levels, &head, q);
                scatter(grad_value, dot, &c, head.value, p->grad_output + row * D);
                float *gp = p->grad_places + row * K * 2, *ga = p->grad_attention + row * K;
                const float *reference = find_reference(p, &head, q);
                switch (p->reference_size) {
                    case 0: small_gradients(gp, ga, dot, &c, &levels, reference, weights, 0); break;
                    case 2: small_gradients(gp, ga, dot, &c, &levels, reference, weights, 2); break;
                    case 4: small_gradients(gp, ga, dot, &c, &levels, reference, weights, 4); break;
                }
            }
            for (int64_t s = 0; grad_buffer && s < p->tokens; ++s) {
                memcpy(grad_head + s * p->heads * D, grad_buffer + s * D, sizeof(float) * D);
            }
        }
        free(grad_buffer);
        free(buffer);
    }
}
