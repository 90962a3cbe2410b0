/* Batch normalization's statistics and gradients on the CPU, each in as few passes as possible.
 *
 * A channel is computed by one thread in one order: the bits do not depend on the number of
 * threads. Sums of a plane are floats in lanes, those of planes are doubles.
 */
#include <math.h>
#include <stdlib.h>

#include "layer.h"

/* What is added up of columns. */
enum Column { OF_X, OF_SQUARES, OF_BOTH };

typedef struct {
  double (*sum)(const float *, size_t n);
  double (*sum_squares)(const float *, size_t n, float mean);
  void (*add_sums)(const float *dy, const float *x, size_t n, float mean, double *sum,
                   double *product);
  void (*write_gradient)(const float *dy, const float *x, float *dx, size_t n, float mean, float k,
                         float k1, float k0);
  void (*add_columns)(const float *dy, const float *x, const float *mean, size_t rows,
                      size_t width, size_t channels, double *sum, double *product);
  void (*write_row)(const float *dy, const float *x, float *dx, size_t n, const float *mean,
                    const float *k, const float *k1, const float *k0);
} ChannelLoops;

#define LOOPS(name) name##_baseline
#define TARGET
#include "normalization_loops.h"

#if defined(__x86_64__)
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#include "normalization_loops.h"
#endif

CHOOSE_LOOPS(ChannelLoops, channel_loops, __builtin_cpu_supports("avx2"))

enum {
  ALONE = 32 * 1024, /* elements for which there is one thread */
  COLUMNS = 64,      /* channels whose sums are kept at once, where planes have one element */
  ROWS = 128,        /* that are added up in floats */
};

enum Way {
  STATISTICS, /* x: mean, variance */
  SUMS,       /* dy, x, mean: Σ dy, Σ dy (x - mean) */
  GRADIENTS,   /* dy, x, mean, variance, scale: the gradients of x, scale and bias */
};

/* One in a session. */
typedef struct {
  Layer layer;
  float epsilon; /* of `GRADIENTS` */
} BatchNorm;

/* Of a channel: the gradient of x is k dy - ((x - mean) k1 + k0). */
typedef struct {
  float *k, *k1, *k0;
} Factors;

typedef struct {
  enum Way way;
  float epsilon;
  size_t batch, channels, plane, parts;
  const float *in[MOST_LAYER_INPUTS];
  float *out[3];
  Factors factors; /* where planes have one element */
} Work;

/* The gradients of scale and bias, and what that of x takes of them. */
static void find_factors(const Work *w, size_t channel, double sum, double product, float *k,
                         float *k1, float *k0) {
  const float count = (float)(w->batch * w->plane), d_bias = (float)sum;
  const float inverse = 1.0f / sqrtf(w->in[3][channel] + w->epsilon);
  const float d_scale = (float)product * inverse;
  *k = w->in[4][channel] * inverse;
  *k0 = *k * d_bias / count;
  *k1 = *k * inverse * d_scale / count;
  w->out[1][channel] = d_scale;
  w->out[2][channel] = d_bias;
}

static void find_statistics(const Work *w, size_t channel) {
  const double count = (double)(w->batch * w->plane);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < w->batch; i++)
    sum += loops->sum(w->in[0] + (i * w->channels + channel) * w->plane, w->plane);
  const float mean = (float)(sum / count);
  for (size_t i = 0; i < w->batch; i++)
    squares += loops->sum_squares(w->in[0] + (i * w->channels + channel) * w->plane, w->plane,
                                  mean);
  w->out[0][channel] = mean;
  w->out[1][channel] = (float)(squares / count);
}

static void find_sums(const Work *w, size_t channel) {
  double sum = 0, product = 0;
  float k, k1, k0;
  for (size_t i = 0; i < w->batch; i++) {
    const size_t at = (i * w->channels + channel) * w->plane;
    loops->add_sums(w->in[0] + at, w->in[1] + at, w->plane, w->in[2][channel], &sum, &product);
  }
  if (w->way == SUMS) {
    w->out[0][channel] = (float)sum;
    w->out[1][channel] = (float)product;
    return;
  }
  find_factors(w, channel, sum, product, &k, &k1, &k0);
  for (size_t i = 0; i < w->batch; i++) {
    const size_t at = (i * w->channels + channel) * w->plane;
    loops->write_gradient(w->in[0] + at, w->in[1] + at, w->out[0] + at, w->plane,
                          w->in[2][channel], k, k1, k0);
  }
}

/* ---- Planes of one element ------------------------------------------------------------------ */

/* Of some channels, over all rows; dy and the mean may be NULL. */
static void add_columns(const Work *w, const float *dy, const float *x, const float *mean,
                        size_t first, size_t columns, double *sum, double *product) {
  for (size_t row = 0; row < w->batch; row += ROWS) {
    const size_t at = row * w->channels + first;
    loops->add_columns(dy ? dy + at : NULL, x + at, mean ? mean + first : NULL,
                       w->batch - row < ROWS ? w->batch - row : ROWS, w->channels, columns, sum,
                       product);
  }
}

static void find_columns(const Work *w, size_t first) {
  const size_t left = w->channels - first, columns = left < COLUMNS ? left : COLUMNS;
  const bool statistics = w->way == STATISTICS;
  const double count = statistics ? (double)w->batch : 1;
  double sum[COLUMNS] = {0}, product[COLUMNS] = {0};
  float *const *out = w->out;
  if (statistics)
    add_columns(w, NULL, w->in[0], NULL, first, columns, sum, product);
  else
    add_columns(w, w->in[0], w->in[1], w->in[2], first, columns, sum, product);
  if (w->way == GRADIENTS) {
    const Factors *f = &w->factors;
    for (size_t i = 0; i < columns; i++)
      find_factors(w, first + i, sum[i], product[i], f->k + first + i, f->k1 + first + i,
                   f->k0 + first + i);
    return;
  }
  for (size_t i = 0; i < columns; i++) out[0][first + i] = (float)(sum[i] / count);
  if (statistics) add_columns(w, NULL, w->in[0], out[0], first, columns, product, NULL);
  for (size_t i = 0; i < columns; i++) out[1][first + i] = (float)(product[i] / count);
}

/* The gradient of x, when the factors of all channels are there. */
static void row_part(void *data, size_t part) {
  const Work *w = data;
  const Factors *f = &w->factors;
  const size_t end = (part + 1) * w->batch / w->parts;
  for (size_t row = part * w->batch / w->parts; row < end; row++) {
    const size_t at = row * w->channels;
    loops->write_row(w->in[0] + at, w->in[1] + at, w->out[0] + at, w->channels, w->in[2], f->k,
                     f->k1, f->k0);
  }
}

/* ---- Work ----------------------------------------------------------------------------------- */

/* What one thread computes at once. */
static size_t units(const Work *w) {
  return w->plane != 1 ? w->channels : (w->channels + COLUMNS - 1) / COLUMNS;
}

static void compute_part(void *data, size_t part) {
  const Work *w = data;
  const size_t first = part * units(w) / w->parts, behind = (part + 1) * units(w) / w->parts;
  if (w->plane == 1) {
    for (size_t i = first; i < behind; i++) find_columns(w, i * COLUMNS);
    return;
  }
  for (size_t channel = first; channel < behind; channel++)
    if (w->way == STATISTICS)
      find_statistics(w, channel);
    else
      find_sums(w, channel);
}

/* Those with the channels' planes have one shape, the others one element for each channel. */
static bool fits(const LayerKind *kind, const Tensor *in) {
  const size_t wide = kind->way == STATISTICS ? 1 : 2;
  if (in[0].rank < 2) return false;
  for (size_t i = 1; i < kind->inputs; i++) {
    if (in[i].rank != (i < wide ? in[0].rank : 1)) return false;
    for (size_t axis = 0; axis < in[i].rank; axis++)
      if (in[i].dims[axis] != in[0].dims[i < wide ? axis : 1]) return false;
  }
  return true;
}

static OrtStatus *compute_all(const OrtApi *api, OrtKernelContext *context, Work *w) {
  const bool alone = w->batch * w->channels * w->plane < ALONE;
  const bool in_rows = w->plane == 1 && w->way == GRADIENTS;
  float *memory = NULL;
  if (in_rows) {
    memory = malloc((w->channels ? w->channels : 1) * 3 * sizeof *memory);
    if (!memory) return api->CreateStatus(ORT_FAIL, "graphopt: no memory for factors of channels");
    w->factors = (Factors){memory, memory + w->channels, memory + 2 * w->channels};
  }
  w->parts = parts_of(units(w), alone);
  OrtStatus *status = do_parts(api, context, compute_part, w->parts, w);
  if (!status && in_rows) {
    w->parts = parts_of(w->batch, alone);
    status = do_parts(api, context, row_part, w->parts, w);
  }
  free(memory);
  return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const BatchNorm *norm = kernel;
  const Layer *layer = &norm->layer;
  const LayerKind *kind = layer->operator->kind;
  Tensor in[MOST_LAYER_INPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  if (!fits(kind, in))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  Work w = {.way = (enum Way)kind->way,
            .epsilon = norm->epsilon,
            .batch = (size_t)in[0].dims[0],
            .channels = (size_t)in[0].dims[1],
            .plane = 1};
  for (size_t axis = 2; axis < in[0].rank; axis++) w.plane *= (size_t)in[0].dims[axis];
  for (size_t i = 0; i < kind->inputs; i++) w.in[i] = in[i].data;
  for (size_t i = 0; !status && i < kind->outputs; i++) {
    const bool is_wide = w.way == GRADIENTS && !i;
    status = make_output(layer, context, i, is_wide ? in[0].dims : in[0].dims + 1,
                         is_wide ? in[0].rank : 1, &w.out[i]);
  }
  return status ? status : compute_all(layer->api, context, &w);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **out) {
  BatchNorm *norm = calloc(1, sizeof *norm);
  if (!norm) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  norm->layer = (Layer){api, (const LayerOperator *)op};
  OrtStatus *status = NULL;
  if (norm->layer.operator->kind->way == GRADIENTS)
    status = api->KernelInfoGetAttribute_float(info, "epsilon", &norm->epsilon);
  if (status)
    free(norm);
  else
    *out = norm;
  return status;
}

const LayerKind normalization_kinds[] = {
    {"BatchNormStatistics", 1, 2, STATISTICS, create, compute, false},
    {"BatchNormSums", 3, 2, SUMS, create, compute, false},
    {"BatchNormGradient", 5, 3, GRADIENTS, create, compute, true},
    {0},
};
