// Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
//
// Multi-scale deformable attention on the CPU, eq. 3 of https://arxiv.org/abs/2010.04159.
//
// B batch, S tokens of all levels, Q queries, M heads, D channels per head, L levels, P points;
// K = L * P samples per query and head. Compiled once for each (D, K): with both known the loops
// below unroll and vectorise. All arrays are float32 in C order:
//   value (B, S, M, D), locations (B, Q, M, K, 2) as (x, y) in [0, 1], weights (B, Q, M, K),
//   output (B, Q, M, D); shapes (L, 2) int64 rows (h, w).
//
// A sample outside the level, at NaN or at infinity contributes nothing and gets no gradient;
// coordinates are clamped before they become integers, so no read is ever out of bounds.

#include <stdint.h>
#include <string.h>

#ifndef HEAD_DIM
#error "compile with -DHEAD_DIM=D"
#endif
#ifndef NUM_SAMPLES
#error "compile with -DNUM_SAMPLES=K"
#endif
#ifndef OFFSET
#define OFFSET int32_t  // int64_t when an image's value has more than 2^31 elements
#endif
#define D HEAD_DIM
#define K NUM_SAMPLES
#define QUERIES_PER_TASK 64

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

// The level of each of the K samples, spread out so that one loop handles all of them.
typedef struct {
    float width[K], height[K];
    int32_t columns[K], rows[K];
    OFFSET start[K];
} Levels;

// The four neighbours of each sample: 0 (x0, y0), 1 (x1, y0), 2 (x0, y1), 3 (x1, y1).
typedef struct {
    OFFSET offset[4][K];  // elements from the head's first one; always inside the level
    float weight[4][K];   // bilinear times attention; 0 outside the level
    float inside[4][K];   // 1 inside the level, else 0
    float dx[K], dy[K];
} Corners;

static void spread_levels(Levels *levels, const int64_t *shapes, int64_t num_levels,
                          int64_t token_stride) {
    const int64_t points = K / num_levels;
    int64_t start = 0;
    for (int64_t l = 0; l < num_levels; ++l) {
        for (int64_t k = l * points; k < (l + 1) * points; ++k) {
            levels->rows[k] = (int32_t)shapes[2 * l];
            levels->columns[k] = (int32_t)shapes[2 * l + 1];
            levels->height[k] = (float)shapes[2 * l];
            levels->width[k] = (float)shapes[2 * l + 1];
            levels->start[k] = (OFFSET)(start * token_stride);
        }
        start += shapes[2 * l] * shapes[2 * l + 1];
    }
}

static inline int32_t clamp_index(int32_t i, int32_t size) {
    i = i < 0 ? 0 : i;
    return i > size - 1 ? size - 1 : i;
}

static inline float is_inside(int32_t i, int32_t size) {
    return (uint32_t)i < (uint32_t)size ? 1.0f : 0.0f;
}

// Where and with which weight the K samples of one query and head read. No branch: vectorises.
static inline void find_corners(Corners *restrict c, const Levels *restrict levels,
                                const float *restrict location, const float *restrict attention,
                                OFFSET token_stride) {
    for (int k = 0; k < K; ++k) {
        const int32_t columns = levels->columns[k], rows = levels->rows[k];
        float x = location[2 * k] * levels->width[k] - 0.5f;
        float y = location[2 * k + 1] * levels->height[k] - 0.5f;
        x = x > -2.0f ? x : -2.0f;  // also catches NaN
        y = y > -2.0f ? y : -2.0f;
        x = x < levels->width[k] ? x : levels->width[k];
        y = y < levels->height[k] ? y : levels->height[k];
        const int32_t x0 = (int32_t)(x + 2.0f) - 2, y0 = (int32_t)(y + 2.0f) - 2;  // floor
        const float dx = x - (float)x0, dy = y - (float)y0;
        const float in_x0 = is_inside(x0, columns), in_x1 = is_inside(x0 + 1, columns);
        const float in_y0 = is_inside(y0, rows), in_y1 = is_inside(y0 + 1, rows);
        const OFFSET left = clamp_index(x0, columns), right = clamp_index(x0 + 1, columns);
        const OFFSET top = levels->start[k] + (OFFSET)clamp_index(y0, rows) * columns * token_stride;
        const OFFSET bottom =
            levels->start[k] + (OFFSET)clamp_index(y0 + 1, rows) * columns * token_stride;
        const float a = attention[k];
        c->offset[0][k] = top + left * token_stride;
        c->offset[1][k] = top + right * token_stride;
        c->offset[2][k] = bottom + left * token_stride;
        c->offset[3][k] = bottom + right * token_stride;
        c->inside[0][k] = in_x0 * in_y0;
        c->inside[1][k] = in_x1 * in_y0;
        c->inside[2][k] = in_x0 * in_y1;
        c->inside[3][k] = in_x1 * in_y1;
        c->weight[0][k] = (1.0f - dx) * (1.0f - dy) * c->inside[0][k] * a;
        c->weight[1][k] = dx * (1.0f - dy) * c->inside[1][k] * a;
        c->weight[2][k] = (1.0f - dx) * dy * c->inside[2][k] * a;
        c->weight[3][k] = dx * dy * c->inside[3][k] * a;
        c->dx[k] = dx;
        c->dy[k] = dy;
    }
}

void ms_deform_attn_forward(const float *restrict value, const int64_t *shapes,
                            const float *restrict locations, const float *restrict weights,
                            float *restrict output, int64_t batch, int64_t tokens, int64_t queries,
                            int64_t heads, int64_t num_levels, int num_threads) {
    const int64_t token_stride = heads * D;
    const int64_t blocks = (queries + QUERIES_PER_TASK - 1) / QUERIES_PER_TASK;
    Levels levels;
    spread_levels(&levels, shapes, num_levels, token_stride);
    (void)num_threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (int64_t task = 0; task < batch * blocks; ++task) {
        const int64_t b = task / blocks, first = (task % blocks) * QUERIES_PER_TASK;
        const int64_t last = first + QUERIES_PER_TASK < queries ? first + QUERIES_PER_TASK : queries;
        for (int64_t m = 0; m < heads; ++m) {
            const float *head = value + b * tokens * token_stride + m * D;
            for (int64_t q = first; q < last; ++q) {
                const int64_t row = (b * queries + q) * heads + m;
                Corners c;
                find_corners(&c, &levels, locations + row * K * 2, weights + row * K,
                             (OFFSET)token_stride);
                Vector sum[D / LANES] = {0};
                for (int k = 0; k < K; ++k) {
                    const Vector *p0 = (const Vector *)(head + c.offset[0][k]);
                    const Vector *p1 = (const Vector *)(head + c.offset[1][k]);
                    const Vector *p2 = (const Vector *)(head + c.offset[2][k]);
                    const Vector *p3 = (const Vector *)(head + c.offset[3][k]);
                    const float w0 = c.weight[0][k], w1 = c.weight[1][k];
                    const float w2 = c.weight[2][k], w3 = c.weight[3][k];
                    for (int d = 0; d < D / LANES; ++d) {
                        sum[d] += w0 * p0[d];
                        sum[d] += w1 * p1[d];
                        sum[d] += w2 * p2[d];
                        sum[d] += w3 * p3[d];
                    }
                }
                memcpy(output + row * D, sum, sizeof sum);
            }
        }
    }
}

// One task owns one (image, head): no two tasks write the same gradient, so there are no atomics
// and the sums have the same order, and the same bits, for any number of threads.
void ms_deform_attn_backward(const float *restrict value, const int64_t *shapes,
                             const float *restrict locations, const float *restrict weights,
                             const float *restrict grad_output, float *restrict grad_value,
                             float *restrict grad_locations, float *restrict grad_weights,
                             int64_t batch, int64_t tokens, int64_t queries, int64_t heads,
                             int64_t num_levels, int num_threads) {
    const int64_t token_stride = heads * D;
    Levels levels;
    spread_levels(&levels, shapes, num_levels, token_stride);
    (void)num_threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (int64_t task = 0; task < batch * heads; ++task) {
        const int64_t b = task / heads, m = task % heads;
        const float *head = value + b * tokens * token_stride + m * D;
        float *grad_head = grad_value + b * tokens * token_stride + m * D;
        for (int64_t q = 0; q < queries; ++q) {
            const int64_t row = (b * queries + q) * heads + m;
            const float *attention = weights + row * K;
            Corners c;
            find_corners(&c, &levels, locations + row * K * 2, attention, (OFFSET)token_stride);
            float g[D], dot[4][K];
            memcpy(g, grad_output + row * D, sizeof g);
            for (int k = 0; k < K; ++k) {
                const float *p0 = head + c.offset[0][k], *p1 = head + c.offset[1][k];
                const float *p2 = head + c.offset[2][k], *p3 = head + c.offset[3][k];
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
                    const float w = c.weight[corner][k];
                    float *target = grad_head + c.offset[corner][k];
                    for (int d = 0; d < D; ++d) target[d] += w * g[d];
                }
            }
            float *restrict gl = grad_locations + row * K * 2, *restrict gw = grad_weights + row * K;
            for (int k = 0; k < K; ++k) {
                const float s0 = dot[0][k] * c.inside[0][k], s1 = dot[1][k] * c.inside[1][k];
                const float s2 = dot[2][k] * c.inside[2][k], s3 = dot[3][k] * c.inside[3][k];
                const float dx = c.dx[k], dy = c.dy[k], ex = 1.0f - dx, ey = 1.0f - dy;
                gw[k] = ex * ey * s0 + dx * ey * s1 + ex * dy * s2 + dx * dy * s3;
                gl[2 * k] = attention[k] * levels.width[k] * (ey * (s1 - s0) + dy * (s3 - s2));
                gl[2 * k + 1] = attention[k] * levels.height[k] * (ex * (s2 - s0) + dx * (s3 - s1));
            }
        }
    }
}
