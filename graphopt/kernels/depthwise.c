/* Convolutions of each channel by itself, and their gradients, on the CPU.
 *
 * ONNX Runtime copies the windows of each channel and multiplies them by one row. Here a plane of a
 * channel stays in the cache while all windows over it are multiplied. A plane is copied with its
 * padding, its columns sorted by their remainder of the stride, so that what an element of the
 * kernel meets is one run of memory, whatever the stride and the dilation. Each plane, or each
 * channel, is computed by one thread in one order: the bits do not depend on the number of threads.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

enum { HIGH, WIDE, AXES };
enum {
  MOST_ROWS = 8,      /* of a block */
  MOST_SUMS = 12,     /* elements of the kernel whose sums are kept in registers */
  ALONE = 256 * 1024, /* products for which there is one thread */
};

/* An element of the kernel, and how far from the place of an output its operand lies. */
typedef struct {
  size_t element, at;
} Tap;

/* Outputs in rows and columns, each a sum over taps. */
typedef struct {
  const Tap *taps;
  size_t count;             /* of the taps */
  size_t rows, columns;     /* of the outputs */
  size_t operand_row;       /* from the operands of a row to those of the next */
  size_t to_row, to_column; /* from an output to the next */
} Grid;

typedef struct {
  void (*correlate)(const Grid *, const float *padded, const float *kernel, float start,
                    float *out);
  void (*add_products)(const Grid *, const float *padded, const float *dy, double *sums);
} PlaneLoops;

#define LOOPS(name) name##_baseline
#define TARGET
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#include "depthwise_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define MULTIPLY_ADD(a, b, c) ((Lanes)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "depthwise_loops.h"
#endif

CHOOSE_LOOPS(PlaneLoops, plane_loops,
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))

/* ---- Windows -------------------------------------------------------------------------------- */

/* Along each axis, output p of a convolution is the sum over the elements k of the kernel of
 * input[stride p + dilation k - begin] kernel[k]. */
typedef struct {
  size_t kernel[AXES], stride[AXES], dilation[AXES], begin[AXES];
  size_t size[AXES], count[AXES]; /* of the input, and of the output */
} Windows;

static size_t whole(size_t size, size_t step) { return (size + step - 1) / step * step; }

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* A copy of a plane with zeros around it: element i of an axis of the plane lies, with i + before
 * = phases q + r, at q of phase r. Only columns have several phases. */
typedef struct {
  size_t size[AXES];   /* of the plane */
  size_t before[AXES]; /* zeros in front of it */
  size_t rows, width;  /* of the copy; the width is that of one phase */
  size_t phases;
} Padding;

static size_t row_length(const Padding *p) { return p->phases * p->width; }

static void copy_row(const Padding *p, const float *row, float *copy) {
  memset(copy, 0, row_length(p) * sizeof *copy);
  if (!row) return;
  if (p->phases == 1) {
    memcpy(copy + p->before[WIDE], row, least(p->size[WIDE], p->width - p->before[WIDE]) *
                                            sizeof *copy);
    return;
  }
  for (size_t phase = 0; phase < p->phases; phase++) {
    const size_t missing = p->before[WIDE] > phase ? p->before[WIDE] - phase : 0;
    size_t at = (missing + p->phases - 1) / p->phases;
    size_t column = at * p->phases + phase - p->before[WIDE];
    for (; at < p->width && column < p->size[WIDE]; at++, column += p->phases)
      copy[phase * p->width + at] = row[column];
  }
}

static void copy_plane(const Padding *p, const float *plane, float *copy) {
  for (size_t row = 0; row < p->rows; row++) {
    const bool inside = row >= p->before[HIGH] && row - p->before[HIGH] < p->size[HIGH];
    copy_row(p, inside ? plane + (row - p->before[HIGH]) * p->size[WIDE] : NULL,
             copy + row * row_length(p));
  }
}

/* The input of a convolution as its windows read it, for blocks that lie partly behind the last
 * output. */
static Padding padded_input(const Windows *w) {
  return (Padding){
      .size = {w->size[HIGH], w->size[WIDE]},
      .before = {w->begin[HIGH], w->begin[WIDE]},
      .rows = (whole(w->count[HIGH], MOST_ROWS) - 1) * w->stride[HIGH] +
              (w->kernel[HIGH] - 1) * w->dilation[HIGH] + 1,
      .width = whole(w->count[WIDE], LANES) + (w->kernel[WIDE] - 1) * w->dilation[WIDE] /
                                                   w->stride[WIDE],
      .phases = w->stride[WIDE],
  };
}

/* Where the elements of the kernel meet the input. */
static void name_taps(const Windows *w, const Padding *p, Tap *taps) {
  for (size_t row = 0; row < w->kernel[HIGH]; row++)
    for (size_t column = 0; column < w->kernel[WIDE]; column++) {
      const size_t to = column * w->dilation[WIDE];
      *taps++ = (Tap){
          .element = row * w->kernel[WIDE] + column,
          .at = row * w->dilation[HIGH] * row_length(p) + to % p->phases * p->width +
                to / p->phases,
      };
    }
}

/* ---- The gradient of the input -------------------------------------------------------------- */

/* Along an axis, element i of the input met output (i + begin - dilation k) / stride of element k
 * of the kernel, where that is an integer. */
static bool meets(const Windows *w, int axis, size_t remainder, size_t element, ptrdiff_t *output) {
  const ptrdiff_t stride = (ptrdiff_t)w->stride[axis];
  const ptrdiff_t at =
      (ptrdiff_t)(remainder + w->begin[axis]) - (ptrdiff_t)(element * w->dilation[axis]);
  *output = at / stride;
  return at % stride == 0;
}

/* How far in front of its first output the gradient is read. */
static size_t before_outputs(const Windows *w, int axis) {
  const size_t reach = (w->kernel[axis] - 1) * w->dilation[axis];
  return reach <= w->begin[axis] ? 0 : (reach - w->begin[axis] + w->stride[axis] - 1) /
                                           w->stride[axis];
}

/* How many elements of the input have a remainder of the stride. */
static size_t with_remainder(const Windows *w, int axis, size_t remainder) {
  return w->size[axis] <= remainder ? 0
                                    : (w->size[axis] - remainder - 1) / w->stride[axis] + 1;
}

static Padding padded_gradient(const Windows *w) {
  Padding p = {.size = {w->count[HIGH], w->count[WIDE]}, .phases = 1};
  size_t most[AXES];
  for (int axis = 0; axis < AXES; axis++) {
    p.before[axis] = before_outputs(w, axis);
    most[axis] = (w->begin[axis] + w->stride[axis] - 1) / w->stride[axis];
  }
  p.rows = p.before[HIGH] + whole(with_remainder(w, HIGH, 0), MOST_ROWS) + most[HIGH];
  p.width = p.before[WIDE] + whole(with_remainder(w, WIDE, 0), LANES) + most[WIDE];
  return p;
}

/* The taps of the inputs with these remainders; returns how many there are. */
static size_t taps_of(const Windows *w, const Padding *p, size_t high, size_t wide, Tap *taps) {
  size_t count = 0;
  ptrdiff_t row, column;
  for (size_t i = 0; i < w->kernel[HIGH]; i++) {
    if (!meets(w, HIGH, high, i, &row)) continue;
    for (size_t k = 0; k < w->kernel[WIDE]; k++)
      if (meets(w, WIDE, wide, k, &column))
        taps[count++] = (Tap){
            .element = i * w->kernel[WIDE] + k,
            .at = (size_t)(row + (ptrdiff_t)p->before[HIGH]) * row_length(p) +
                  (size_t)(column + (ptrdiff_t)p->before[WIDE]),
        };
  }
  return count;
}

/* ---- Work ----------------------------------------------------------------------------------- */

enum Way {
  CONVOLVE,
  TRANSPOSE, /* which is the gradient of a convolution's input */
  WEIGHT,    /* the gradient of its weight */
};

typedef struct {
  enum Way way;
  Windows windows;
  Padding padding;
  size_t batch, channels, parts;
  const float *first, *second, *bias; /* the inputs of the node */
  float *out;
  bool direct;        /* without copies of planes */
  atomic_bool failed; /* for want of memory */
} Work;

static size_t area(const size_t size[AXES]) { return size[HIGH] * size[WIDE]; }

/* ---- Few outputs ---------------------------------------------------------------------------- */

/* Whether the products themselves take less time than blocks, of which most would be left. In
 * products of LANES: blocks multiply that many at once, but write those of a stride one by one. */
static bool is_direct(const Work *work) {
  const Windows *w = &work->windows;
  if (work->way != TRANSPOSE) return area(w->count) <= LANES;
  const size_t blocks = whole(with_remainder(w, HIGH, 0), MOST_ROWS) *
                        whole(with_remainder(w, WIDE, 0), LANES) / LANES;
  const size_t written = w->stride[WIDE] > 1 ? area(w->size) : 0;
  const size_t wide = w->kernel[WIDE];
  const size_t row = w->dilation[WIDE] == 1 && wide >= LANES ? wide / 4 + 4 : wide;
  const size_t products = area(w->count) * w->kernel[HIGH] * row + area(w->size) / LANES;
  return 2 * products <= blocks * area(w->kernel) + written;
}

/* The elements of the kernel, along an axis, that meet the input for an output. */
static void meeting(const Windows *w, int axis, size_t output, size_t *first, size_t *end) {
  const ptrdiff_t dilation = (ptrdiff_t)w->dilation[axis], size = (ptrdiff_t)w->size[axis];
  const ptrdiff_t start = (ptrdiff_t)(output * w->stride[axis]) - (ptrdiff_t)w->begin[axis];
  *first = start < 0 ? (size_t)((dilation - 1 - start) / dilation) : 0;
  *end = start < size ? least(w->kernel[axis], (size_t)((size - start - 1) / dilation + 1)) : 0;
}

/* Σ kernel x. */
static float dot(const float *kernel, const float *x, size_t n, size_t step) {
  Lanes sum = {0};
  float rest = 0;
  size_t i = 0;
  if (step == 1)
    for (; i + LANES <= n; i += LANES)
      sum += *(const Unaligned *)(kernel + i) * *(const Unaligned *)(x + i);
  for (; i < n; i++) rest += kernel[i] * x[i * step];
  for (size_t lane = 0; lane < LANES; lane++) rest += sum[lane];
  return rest;
}

static void add_row(const float *kernel, float dy, float *dx, size_t n, size_t step) {
  if (step == 1)
    for (size_t i = 0; i < n; i++) dx[i] += kernel[i] * dy;
  else
    for (size_t i = 0; i < n; i++) dx[i * step] += kernel[i] * dy;
}

/* What one row of the kernel adds for an output; `at` is that of its first element in the input,
 * `of_kernel` in the kernel, `of_output` the place of the output. */
static void meet(const Work *work, size_t channel, size_t plane, size_t at, size_t of_kernel,
                 size_t of_output, size_t n, double *sums) {
  const Windows *w = &work->windows;
  const size_t step = w->dilation[WIDE];
  const float *kernel = work->second + channel * area(w->kernel) + of_kernel;
  const size_t input = plane * area(w->size) + at, output = plane * area(w->count) + of_output;
  if (work->way == CONVOLVE)
    work->out[output] += dot(kernel, work->first + input, n, step);
  else if (work->way == TRANSPOSE)
    add_row(kernel, work->first[output], work->out + input, n, step);
  else
    for (size_t i = 0; i < n; i++)
      sums[of_kernel + i] += (double)work->second[output] * (double)work->first[input + i * step];
}

/* A plane, product by product: added to the output, or to the sums. */
static void meet_all(const Work *work, size_t plane, double *sums) {
  const Windows *w = &work->windows;
  size_t top, bottom, left, right;
  for (size_t p = 0; p < w->count[HIGH]; p++) {
    meeting(w, HIGH, p, &top, &bottom);
    for (size_t q = 0; q < w->count[WIDE]; q++) {
      meeting(w, WIDE, q, &left, &right);
      for (size_t i = top; i < bottom && left < right; i++) {
        const size_t row = p * w->stride[HIGH] + i * w->dilation[HIGH] - w->begin[HIGH];
        const size_t column = q * w->stride[WIDE] + left * w->dilation[WIDE] - w->begin[WIDE];
        meet(work, plane % work->channels, plane, row * w->size[WIDE] + column,
             i * w->kernel[WIDE] + left, p * w->count[WIDE] + q, right - left, sums);
      }
    }
  }
}

/* ---- Planes and channels -------------------------------------------------------------------- */

/* The inputs' and outputs' planes of one channel of one example. */
static void convolve(const Work *work, size_t plane, float *copy, Tap *taps) {
  const Windows *w = &work->windows;
  const size_t channel = plane % work->channels;
  const float start = work->bias ? work->bias[channel] : 0;
  if (work->direct) {
    for (size_t i = 0; i < area(w->count); i++) work->out[plane * area(w->count) + i] = start;
    meet_all(work, plane, NULL);
    return;
  }
  const Grid grid = {
      .taps = taps,
      .count = area(w->kernel),
      .rows = w->count[HIGH],
      .columns = w->count[WIDE],
      .operand_row = w->stride[HIGH] * row_length(&work->padding),
      .to_row = w->count[WIDE],
      .to_column = 1,
  };
  copy_plane(&work->padding, work->first + plane * area(w->size), copy);
  loops->correlate(&grid, copy, work->second + channel * area(w->kernel), start,
                   work->out + plane * area(w->count));
}

static void input_gradient(const Work *work, size_t plane, float *copy, Tap *taps) {
  const Windows *w = &work->windows;
  const Padding *p = &work->padding;
  float *out = work->out + plane * area(w->size);
  if (work->direct) {
    memset(out, 0, area(w->size) * sizeof *out);
    meet_all(work, plane, NULL);
    return;
  }
  copy_plane(p, work->first + plane * area(w->count), copy);
  for (size_t high = 0; high < least(w->stride[HIGH], w->size[HIGH]); high++)
    for (size_t wide = 0; wide < least(w->stride[WIDE], w->size[WIDE]); wide++) {
      const Grid grid = {
          .taps = taps,
          .count = taps_of(w, p, high, wide, taps),
          .rows = with_remainder(w, HIGH, high),
          .columns = with_remainder(w, WIDE, wide),
          .operand_row = row_length(p),
          .to_row = w->stride[HIGH] * w->size[WIDE],
          .to_column = w->stride[WIDE],
      };
      loops->correlate(&grid, copy, work->second + plane % work->channels * area(w->kernel), 0,
                       out + high * w->size[WIDE] + wide);
    }
}

/* Of one channel, over all examples; the sums are in double from plane to plane. */
static void weight_gradient(const Work *work, size_t channel, float *copy, Tap *taps) {
  const Windows *w = &work->windows;
  const Padding outputs = {.size = {w->count[HIGH], w->count[WIDE]},
                           .rows = w->count[HIGH],
                           .width = whole(w->count[WIDE], LANES),
                           .phases = 1};
  const size_t elements = area(w->kernel);
  float *dy = copy + work->padding.rows * row_length(&work->padding);
  double *sums = (double *)(void *)(taps + elements);
  const Grid grid = {
      .taps = taps,
      .count = elements,
      .rows = w->count[HIGH],
      .columns = w->count[WIDE],
      .operand_row = w->stride[HIGH] * row_length(&work->padding),
      .to_row = outputs.width,
  };
  memset(sums, 0, elements * sizeof *sums);
  for (size_t example = 0; example < work->batch; example++) {
    const size_t plane = example * work->channels + channel;
    if (work->direct) {
      meet_all(work, plane, sums);
      continue;
    }
    copy_plane(&work->padding, work->first + plane * area(w->size), copy);
    copy_plane(&outputs, work->second + plane * area(w->count), dy);
    loops->add_products(&grid, copy, dy, sums);
  }
  for (size_t i = 0; i < elements; i++) work->out[channel * elements + i] = (float)sums[i];
}

/* What one thread computes at once: planes, or of the weight channels. */
static size_t units(const Work *work) {
  return work->way == WEIGHT ? work->channels : work->batch * work->channels;
}

static void compute_part(void *data, size_t part) {
  Work *work = data;
  const Windows *w = &work->windows;
  const size_t elements = area(w->kernel), copied = work->padding.rows * row_length(&work->padding);
  const size_t more =
      work->way == WEIGHT ? w->count[HIGH] * whole(w->count[WIDE], LANES) : 0;
  Tap *taps = malloc(elements * (sizeof *taps + sizeof(double)));
  float *copy = work->direct ? NULL : malloc((copied + more) * sizeof *copy);
  if (!taps || !(copy || work->direct)) {
    atomic_store(&work->failed, true);
  } else {
    if (work->way != TRANSPOSE && !work->direct) name_taps(w, &work->padding, taps);
    const size_t all = units(work);
    for (size_t i = part * all / work->parts; i < (part + 1) * all / work->parts; i++)
      if (work->way == CONVOLVE)
        convolve(work, i, copy, taps);
      else if (work->way == TRANSPOSE)
        input_gradient(work, i, copy, taps);
      else
        weight_gradient(work, i, copy, taps);
  }
  free(taps);
  free(copy);
}

static OrtStatus *compute_all(const OrtApi *api, OrtKernelContext *context, Work *work) {
  const Windows *w = &work->windows;
  const size_t products = work->batch * work->channels * area(w->kernel) * area(w->count);
  work->parts = parts_of(units(work), products < ALONE);
  OrtStatus *status = do_parts(api, context, compute_part, work->parts, work);
  if (!status && atomic_load(&work->failed))
    status = api->CreateStatus(ORT_FAIL, "graphopt: no memory for the plane of a channel");
  return status;
}

/* ---- Operators ------------------------------------------------------------------------------ */

enum { RANK = 4 };

/* One in a session. */
typedef struct {
  Layer layer;
  int64_t kernel[AXES], strides[AXES], dilations[AXES], pads[2 * AXES], more[AXES];
} Depthwise;

static enum Way way_of(const Depthwise *d) { return (enum Way)d->layer.operator->kind->way; }

/* Those of the ONNX operator of which the function is a case. */
static OrtStatus *read_attributes(Depthwise *d, const OrtKernelInfo *info) {
  const struct {
    const char *name;
    size_t count;
    int64_t least, *values;
  } read[] = {
      {"kernel_shape", AXES, 1, d->kernel}, {"strides", AXES, 1, d->strides},
      {"dilations", AXES, 1, d->dilations}, {"pads", 2 * AXES, 0, d->pads},
      {"output_padding", AXES, 0, d->more}, /* of the transpose alone */
  };
  const size_t count = sizeof read / sizeof *read - (way_of(d) != TRANSPOSE);
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < count; i++) {
    size_t size = read[i].count;
    status = d->layer.api->KernelInfoGetAttributeArray_int64(info, read[i].name, read[i].values,
                                                             &size);
    for (size_t k = 0; !status && k < read[i].count; k++)
      if (size != read[i].count || read[i].values[k] < read[i].least)
        status = wrong_layer(&d->layer, "an attribute has another number of values, or one is too small");
  }
  return status;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **out) {
  Depthwise *d = calloc(1, sizeof *d);
  if (!d) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  d->layer = (Layer){api, (const LayerOperator *)op};
  OrtStatus *status = read_attributes(d, info);
  if (status)
    free(d);
  else
    *out = d;
  return status;
}

static size_t reach(const Windows *w, int axis) {
  return (w->kernel[axis] - 1) * w->dilation[axis] + 1;
}

/* The sizes along an axis, of which some are those of the inputs. */
static bool set_sizes(const Depthwise *d, const Tensor *in, int axis, Windows *w) {
  const size_t image = (size_t)in[0].dims[2 + axis], other = (size_t)in[1].dims[2 + axis];
  const size_t begin = (size_t)d->pads[axis], end = (size_t)d->pads[AXES + axis];
  w->kernel[axis] = (size_t)d->kernel[axis];
  w->stride[axis] = (size_t)d->strides[axis];
  w->dilation[axis] = (size_t)d->dilations[axis];
  w->begin[axis] = begin;
  if (way_of(d) == TRANSPOSE) {
    const size_t all = (image - 1) * w->stride[axis] + reach(w, axis) + (size_t)d->more[axis];
    if (!image || other != w->kernel[axis] || all <= begin + end) return false;
    w->count[axis] = image;
    w->size[axis] = all - begin - end;
    return true;
  }
  const size_t all = image + begin + end;
  if (!image || all < reach(w, axis)) return false;
  w->size[axis] = image;
  w->count[axis] = (all - reach(w, axis)) / w->stride[axis] + 1;
  return other == (way_of(d) == CONVOLVE ? w->kernel[axis] : w->count[axis]);
}

/* The batch and the channels are those of the first input. */
static OrtStatus *prepare(const Depthwise *d, const Tensor *in, Work *work) {
  const bool of_weight = way_of(d) == WEIGHT, has_bias = d->layer.operator->kind->inputs > 2;
  const int64_t batch = in[0].dims[0], channels = in[0].dims[1];
  bool fits = in[0].rank == RANK && in[1].rank == RANK &&
              in[1].dims[0] == (of_weight ? batch : channels) &&
              in[1].dims[1] == (of_weight ? channels : 1) &&
              (!has_bias || (in[2].rank == 1 && in[2].dims[0] == channels));
  for (int axis = 0; axis < AXES; axis++) fits = fits && set_sizes(d, in, axis, &work->windows);
  if (!fits) return wrong_layer(&d->layer, "the shapes of the inputs do not fit each other");
  work->way = way_of(d);
  work->batch = (size_t)batch, work->channels = (size_t)channels;
  work->first = in[0].data, work->second = in[1].data, work->bias = has_bias ? in[2].data : NULL;
  work->direct = is_direct(work);
  if (work->direct) return NULL;
  work->padding = work->way == TRANSPOSE ? padded_gradient(&work->windows)
                                         : padded_input(&work->windows);
  return NULL;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Depthwise *d = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  Work work = {0};
  OrtStatus *status = read_inputs(&d->layer, context, in);
  if (!status) status = prepare(d, in, &work);
  if (status) return status;
  const Windows *w = &work.windows;
  const size_t *last = work.way == CONVOLVE ? w->count : work.way == TRANSPOSE ? w->size : w->kernel;
  const bool of_weight = work.way == WEIGHT;
  const int64_t dims[RANK] = {(int64_t)(of_weight ? work.channels : work.batch),
                              (int64_t)(of_weight ? 1 : work.channels), (int64_t)last[HIGH],
                              (int64_t)last[WIDE]};
  status = make_output(&d->layer, context, 0, dims, RANK, &work.out);
  return status ? status : compute_all(d->layer.api, context, &work);
}

const LayerKind depthwise_kinds[] = {
    {"DepthwiseConv", 2, 1, CONVOLVE, create, compute, false},
    {"DepthwiseConvBias", 3, 1, CONVOLVE, create, compute, false},
    {"DepthwiseConvTranspose", 2, 1, TRANSPOSE, create, compute, false},
    {"DepthwiseConvWeightGradient", 2, 1, WEIGHT, create, compute, false},
    {0},
};
