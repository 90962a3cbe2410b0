/* Gradients of what is computed row by row, or element by element, on the CPU, each in one pass.
 *
 * A row, or a column of sums, is computed by one thread in one order: the bits do not depend on the
 * number of threads.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

typedef int32_t IntLanes __attribute__((vector_size(32)));

typedef struct {
  void (*softmax)(const float *dy, const float *y, float *dx, size_t n);
  void (*layer_norm)(const float *dy, const float *x, const float *scale, float *dx, size_t n,
                     float mean, float inverse);
  void (*add_columns)(const float *dy, const float *x, const float *mean, const float *inverse,
                      size_t rows, size_t width, size_t columns, double *product, double *sum);
  void (*gelu)(const float *dy, const float *x, float *dx, size_t n);
  void (*swish)(const float *dy, const float *x, float *dx, size_t n);
  void (*cross_entropy)(const float *y, size_t label, float share, float *dx, size_t n);
  void (*rms_norm)(const float *dy, const float *x, float *dx, size_t n, float inverse);
} RowLoops;

#define LOOPS(name) name##_baseline
#define TARGET
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#include "rows_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define MULTIPLY_ADD(a, b, c) ((Lanes)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "rows_loops.h"
#endif

CHOOSE_LOOPS(RowLoops, row_loops,
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))

enum {
  ALONE = 32 * 1024, /* elements for which there is one thread */
  COLUMNS = 64,      /* whose sums are kept at once */
  ROWS = 128,        /* that are added up in floats */
};

enum Way {
  SOFTMAX,    /* dy, y */
  LAYER_NORM, /* dy, x, mean, inverse, scale; also what scale and bias get */
  GELU,       /* dy, x */
  SWISH,      /* dy, x */
  RMS_NORM,   /* dy, x, inverse */
};

typedef struct {
  enum Way way;
  size_t rows, width, parts;
  const float *in[MOST_LAYER_INPUTS];
  float *out[3];
} Work;

/* Of Σ dy n and Σ dy over the rows. */
static void sum_columns(const Work *w, size_t first) {
  const size_t columns = w->width - first < COLUMNS ? w->width - first : COLUMNS;
  double product[COLUMNS] = {0}, sum[COLUMNS] = {0};
  for (size_t row = 0; row < w->rows; row += ROWS) {
    const size_t at = row * w->width + first;
    loops->add_columns(w->in[0] + at, w->in[1] + at, w->in[2] + row, w->in[3] + row,
                       w->rows - row < ROWS ? w->rows - row : ROWS, w->width, columns, product,
                       sum);
  }
  for (size_t i = 0; i < columns; i++) {
    w->out[1][first + i] = (float)product[i];
    w->out[2][first + i] = (float)sum[i];
  }
}

static void compute_rows(const Work *w, size_t row, size_t end) {
  const size_t n = w->width;
  if (w->way == GELU || w->way == SWISH) {
    (w->way == GELU ? loops->gelu : loops->swish)(w->in[0] + row * n, w->in[1] + row * n,
                                                  w->out[0] + row * n, (end - row) * n);
    return;
  }
  for (; row < end; row++) {
    const float *dy = w->in[0] + row * n, *x = w->in[1] + row * n;
    if (w->way == SOFTMAX)
      loops->softmax(dy, x, w->out[0] + row * n, n);
    else if (w->way == RMS_NORM)
      loops->rms_norm(dy, x, w->out[0] + row * n, n, w->in[2][row]);
    else
      loops->layer_norm(dy, x, w->in[4], w->out[0] + row * n, n, w->in[2][row], w->in[3][row]);
  }
}

static void compute_part(void *data, size_t part) {
  const Work *w = data;
  compute_rows(w, part * w->rows / w->parts, (part + 1) * w->rows / w->parts);
}

static size_t column_groups(const Work *w) { return (w->width + COLUMNS - 1) / COLUMNS; }

static void sum_part(void *data, size_t part) {
  const Work *w = data;
  const size_t groups = column_groups(w), end = (part + 1) * groups / w->parts;
  for (size_t i = part * groups / w->parts; i < end; i++) sum_columns(w, i * COLUMNS);
}

static bool equal(const Tensor *tensor, const int64_t *dims, size_t rank) {
  return tensor->rank == rank && !memcmp(tensor->dims, dims, rank * sizeof *dims);
}

/* The rows of a layer normalization are as large as its scale. */
static bool find_rows(const LayerKind *kind, const Tensor *in, Work *w) {
  const int64_t *dims = in[0].dims;
  const size_t rank = in[0].rank, size = product_of(dims, rank);
  if (!equal(&in[1], dims, rank)) return false;
  const bool is_row = kind->way == SOFTMAX || kind->way == RMS_NORM;
  w->width = rank && is_row ? (size_t)dims[rank - 1] : 1;
  if (kind->way == RMS_NORM) {
    const bool fits = rank && in[2].rank == rank && in[2].dims[rank - 1] == 1 &&
                      !memcmp(in[2].dims, dims, (rank - 1) * sizeof *dims);
    if (!fits) return false;
  }
  if (kind->way == LAYER_NORM) {
    int64_t of_mean[MOST_LAYER_DIMS];
    const size_t inner = in[4].rank;
    if (!inner || inner > rank || !equal(&in[4], dims + rank - inner, inner)) return false;
    for (size_t i = 0; i < rank; i++) of_mean[i] = i < rank - inner ? dims[i] : 1;
    if (!equal(&in[2], of_mean, rank) || !equal(&in[3], of_mean, rank)) return false;
    w->width = product_of(in[4].dims, inner);
  }
  w->rows = size ? size / w->width : 0;
  return true;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  const LayerKind *kind = layer->operator->kind;
  Tensor in[MOST_LAYER_INPUTS];
  Work w = {.way = (enum Way)kind->way};
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  if (!find_rows(kind, in, &w))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  for (size_t i = 0; i < kind->inputs; i++) w.in[i] = in[i].data;
  for (size_t i = 0; !status && i < kind->outputs; i++) {
    const Tensor *like = &in[i ? 4 : 0];
    status = make_output(layer, context, i, like->dims, like->rank, &w.out[i]);
  }
  const bool alone = w.rows * w.width < ALONE;
  if (!status && w.way == LAYER_NORM) {
    /* These come first: what the rows get may lie where their gradient is. */
    w.parts = parts_of(column_groups(&w), alone);
    status = do_parts(layer->api, context, sum_part, w.parts, &w);
  }
  if (status) return status;
  w.parts = parts_of(w.rows, alone);
  return do_parts(layer->api, context, compute_part, w.parts, &w);
}

/* ---- Cross entropy -------------------------------------------------------------------------- */

typedef struct {
  const float *y, *share;
  const int64_t *labels;
  float *dx;
  size_t rows, width, share_step, parts;
} Entropy;

static void entropy_part(void *data, size_t part) {
  const Entropy *e = data;
  const size_t end = (part + 1) * e->rows / e->parts;
  for (size_t row = part * e->rows / e->parts; row < end; row++) {
    const int64_t label = e->labels[row], first = label < 0 ? (int64_t)e->width : 0;
    loops->cross_entropy(e->y + row * e->width, (size_t)(label + first),
                         e->share[row * e->share_step], e->dx + row * e->width, e->width);
  }
}

static OrtStatus *compute_entropy(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  const Tensor *y = &in[0], *labels = &in[1], *share = &in[2];
  const bool is_scalar = share->rank == 0;
  if (y->rank != 2 || !equal(labels, y->dims, 1) ||
      !(is_scalar || equal(share, (const int64_t[]){y->dims[0], 1}, 2)))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  Entropy e = {.y = y->data,
               .share = share->data,
               .labels = (const int64_t *)(const void *)labels->data,
               .rows = (size_t)y->dims[0],
               .width = (size_t)y->dims[1],
               .share_step = !is_scalar};
  if ((status = make_output(layer, context, 0, y->dims, 2, &e.dx))) return status;
  e.parts = parts_of(e.rows, e.rows * e.width < ALONE);
  return do_parts(layer->api, context, entropy_part, e.parts, &e);
}

const LayerKind row_kinds[] = {
    {"SoftmaxGradient", 2, 1, SOFTMAX, create_layer, compute, true},
    {"LayerNormGradient", 5, 3, LAYER_NORM, create_layer, compute, true},
    {"GeluGradient", 2, 1, GELU, create_layer, compute, true},
    {"SwishGradient", 2, 1, SWISH, create_layer, compute, true},
    {"RmsNormGradient", 3, 1, RMS_NORM, create_layer, compute, true},
    {"CrossEntropyGradient", 3, 1, INDICES, create_layer, compute_entropy, true},
    {0},
};
