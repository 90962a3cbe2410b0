/* Convolutions of each channel by itself, and their gradients, on the CPU.
 *
 * ONNX Runtime copies the windows of each channel and multiplies them by one row. Here a plane of a
 * channel stays in the cache while all windows over it are multiplied. A plane is copied with its
 * padding, its columns sorted by their remainder of the stride, so that what an element of the
 * kernel meets is one run of memory, whatever the stride and the dilation. Each plane, or each
 * channel, is computed by one thread in one order: the bits do not depend on the number of threads.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "operator.h"

typedef float Lanes __attribute__((vector_size(32))); /* floats that are computed together */
typedef float Unaligned __attribute__((vector_size(32), aligned(4), may_alias));

#define UNROLL _Pragma("GCC unroll 16")

enum { HIGH, WIDE, AXES };
enum {
  LANES = 8,
  MOST_ROWS = 8,      /* of a block */
  MOST_SUMS = 12,     /* elements of the kernel whose sums are kept in registers */
  MOST_PARTS = 64,    /* of the work that threads share */
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

static const PlaneLoops *loops = &plane_loops_baseline;

__attribute__((constructor)) static void choose_loops(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) loops = &plane_loops_avx2;
#endif
}

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
  for (size_t i = 0; i < w->kernel[HIGH]; i++)
    for (size_t k = 0; k < w->kernel[WIDE]; k++)
      if (meets(w, HIGH, high, i, &row) && meets(w, WIDE, wide, k, &column))
        taps[count++] = (Tap){
            .element = i * w->kernel[WIDE] + k,
            .at = (size_t)(row + (ptrdiff_t)p->before[HIGH]) * row_length(p) +
                  (size_t)(column + (ptrdiff_t)p->before[WIDE]),
        };
  return count;
}

/* ---- Work ----------------------------------------------------------------------------------- */

enum Way {
  CONVOLVE,
  TRANSPOSE, /* which is the gradient of a convolution's input */
  WEIGHT,  /* of its weight */
};

typedef struct {
  enum Way way;
  Windows windows;
  Padding padding;
  size_t batch, channels, parts;
  const float *first, *second, *bias; /* the inputs of the node */
  float *out;
  atomic_bool failed; /* for want of memory */
} Work;

static size_t area(const size_t size[AXES]) { return size[HIGH] * size[WIDE]; }

/* The inputs' and outputs' planes of one channel of one example. */
static void convolve(const Work *work, size_t plane, float *copy, Tap *taps) {
  const Windows *w = &work->windows;
  const size_t channel = plane % work->channels;
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
  loops->correlate(&grid, copy, work->second + channel * area(w->kernel),
                   work->bias ? work->bias[channel] : 0, work->out + plane * area(w->count));
}

static void input_gradient(const Work *work, size_t plane, float *copy, Tap *taps) {
  const Windows *w = &work->windows;
  const Padding *p = &work->padding;
  float *out = work->out + plane * area(w->size);
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
  float *copy = malloc((copied + more) * sizeof *copy);
  if (!taps || !copy) {
    atomic_store(&work->failed, true);
  } else {
    if (work->way != TRANSPOSE) name_taps(w, &work->padding, taps);
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
  const size_t all = units(work);
  const size_t products = work->batch * work->channels * area(w->kernel) * area(w->count);
  OrtStatus *status = NULL;
  work->parts = products < ALONE ? 1 : least(all, MOST_PARTS);
  if (!all) return NULL;
  if (work->parts == 1)
    compute_part(work, 0);
  else
    status = api->KernelContext_ParallelFor(context, compute_part, work->parts, work->parts, work);
  if (!status && atomic_load(&work->failed))
    status = api->CreateStatus(ORT_FAIL, "graphopt: no memory for the plane of a channel");
  return status;
}

/* ---- Operators ------------------------------------------------------------------------------ */

enum { RANK = 4, MOST_INPUTS = 3 };

typedef struct {
  Operator base; /* first: the runtime passes a pointer to it */
  enum Way way;
  size_t inputs;
} Depthwise;

/* An operator in a session. */
typedef struct {
  const OrtApi *api;
  const Depthwise *operator;
  int64_t kernel[AXES], strides[AXES], dilations[AXES], pads[2 * AXES], more[AXES];
} Layer;

static OrtStatus *wrong(const Layer *layer, const char *what) {
  char message[256];
  snprintf(message, sizeof message, "graphopt.%s: %s", layer->operator->base.name, what);
  return layer->api->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

/* Those of the ONNX operator of which the function is a case. */
static OrtStatus *read_attributes(Layer *layer, const OrtKernelInfo *info) {
  const struct {
    const char *name;
    size_t count;
    int64_t least, *values;
  } read[] = {
      {"kernel_shape", AXES, 1, layer->kernel}, {"strides", AXES, 1, layer->strides},
      {"dilations", AXES, 1, layer->dilations}, {"pads", 2 * AXES, 0, layer->pads},
      {"output_padding", AXES, 0, layer->more}, /* of the transpose alone */
  };
  const size_t count = sizeof read / sizeof *read - (layer->operator->way != TRANSPOSE);
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < count; i++) {
    size_t size = read[i].count;
    status = layer->api->KernelInfoGetAttributeArray_int64(info, read[i].name, read[i].values,
                                                           &size);
    for (size_t k = 0; !status && k < read[i].count; k++)
      if (size != read[i].count || read[i].values[k] < read[i].least)
        status = wrong(layer, "an attribute has another number of values, or one is too small");
  }
  return status;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **out) {
  Layer *layer = calloc(1, sizeof *layer);
  if (!layer) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  layer->api = api;
  layer->operator = (const Depthwise *)op;
  OrtStatus *status = read_attributes(layer, info);
  if (status)
    free(layer);
  else
    *out = layer;
  return status;
}

typedef struct {
  int64_t dims[RANK];
  float *data;
} Tensor;

static OrtStatus *read_tensor(const Layer *layer, const OrtKernelContext *context, size_t index,
                              size_t rank, Tensor *tensor) {
  const OrtApi *api = layer->api;
  const OrtValue *value = NULL;
  OrtTensorTypeAndShapeInfo *info;
  size_t count;
  void *data;
  OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
  if (status) return status;
  if (!value) return wrong(layer, "an input is missing");
  if ((status = api->GetTensorTypeAndShape(value, &info))) return status;
  status = api->GetDimensionsCount(info, &count);
  if (!status && count != rank) status = wrong(layer, "an input has another number of axes");
  if (!status) status = api->GetDimensions(info, tensor->dims, rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (!status) status = api->GetTensorMutableData((OrtValue *)value, &data);
  if (!status) tensor->data = data;
  return status;
}

static size_t reach(const Windows *w, int axis) {
  return (w->kernel[axis] - 1) * w->dilation[axis] + 1;
}

/* The sizes along an axis, of which some are those of the inputs. */
static bool set_sizes(const Layer *layer, const int64_t *images, const int64_t *others, int axis,
                      Windows *w) {
  const enum Way way = layer->operator->way;
  const size_t end = (size_t)layer->pads[AXES + axis];
  w->kernel[axis] = (size_t)layer->kernel[axis];
  w->stride[axis] = (size_t)layer->strides[axis];
  w->dilation[axis] = (size_t)layer->dilations[axis];
  w->begin[axis] = (size_t)layer->pads[axis];
  const size_t image = (size_t)images[axis], other = (size_t)others[axis];
  if (way == TRANSPOSE) {
    const size_t all = (image - 1) * w->stride[axis] + reach(w, axis) + (size_t)layer->more[axis];
    if (!image || other != w->kernel[axis] || all <= w->begin[axis] + end) return false;
    w->count[axis] = image;
    w->size[axis] = all - w->begin[axis] - end;
    return true;
  }
  const size_t all = image + w->begin[axis] + end;
  if (!image || all < reach(w, axis)) return false;
  w->size[axis] = image;
  w->count[axis] = (all - reach(w, axis)) / w->stride[axis] + 1;
  return other == (way == CONVOLVE ? w->kernel[axis] : w->count[axis]);
}

/* The batch and the channels are those of the first input. */
static OrtStatus *prepare(const Layer *layer, const Tensor *in, Work *work) {
  const enum Way way = layer->operator->way;
  const int64_t channels = in[0].dims[1];
  work->way = way;
  work->batch = (size_t)in[0].dims[0];
  work->channels = (size_t)channels;
  bool fits = in[1].dims[0] == (way == WEIGHT ? in[0].dims[0] : channels) &&
              in[1].dims[1] == (way == WEIGHT ? channels : 1);
  for (int axis = 0; axis < AXES; axis++)
    fits = fits && set_sizes(layer, in[0].dims + 2, in[1].dims + 2, axis, &work->windows);
  if (layer->operator->inputs == MOST_INPUTS) fits = fits && in[2].dims[0] == channels;
  return fits ? NULL : wrong(layer, "the shapes of the inputs do not fit each other");
}

static OrtStatus *output_of_layer(const Layer *layer, OrtKernelContext *context, Work *work) {
  const Windows *w = &work->windows;
  const size_t *images = work->way == CONVOLVE            ? w->count
                         : work->way == TRANSPOSE ? w->size
                                                          : w->kernel;
  const bool of_weight = work->way == WEIGHT;
  const int64_t dims[RANK] = {(int64_t)(of_weight ? work->channels : work->batch),
                              (int64_t)(of_weight ? 1 : work->channels), (int64_t)images[HIGH],
                              (int64_t)images[WIDE]};
  OrtValue *value;
  void *data;
  OrtStatus *status = layer->api->KernelContext_GetOutput(context, 0, dims, RANK, &value);
  if (!status) status = layer->api->GetTensorMutableData(value, &data);
  if (!status) work->out = data;
  return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  Tensor in[MOST_INPUTS] = {0};
  Work work = {0};
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < layer->operator->inputs; i++)
    status = read_tensor(layer, context, i, i < 2 ? RANK : 1, &in[i]);
  if (!status) status = prepare(layer, in, &work);
  if (!status) status = output_of_layer(layer, context, &work);
  if (status) return status;
  work.first = in[0].data, work.second = in[1].data, work.bias = in[2].data;
  work.padding = work.way == TRANSPOSE ? padded_gradient(&work.windows)
                                               : padded_input(&work.windows);
  return compute_all(layer->api, context, &work);
}

static size_t get_input_count(const OrtCustomOp *op) { return ((const Depthwise *)op)->inputs; }

static size_t get_output_count(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static int get_type(const OrtCustomOp *op, size_t index) {
  (void)op, (void)index;
  return ORT_FLOAT;
}

static const struct {
  enum Way way;
  size_t inputs;
} kinds[] = {{CONVOLVE, 2}, {CONVOLVE, 3}, {TRANSPOSE, 2}, {WEIGHT, 2}};

const char *const depthwise_names[] = {"DepthwiseConv", "DepthwiseConvBias",
                                       "DepthwiseConvTranspose", "DepthwiseConvWeightGradient",
                                       NULL};

Operator *make_depthwise(const char *name) {
  size_t length = strlen(name), index = 0;
  while (length && name[length - 1] >= '0' && name[length - 1] <= '9') length--;
  while (depthwise_names[index] && (strlen(depthwise_names[index]) != length ||
                                    strncmp(depthwise_names[index], name, length)))
    index++;
  Depthwise *made = depthwise_names[index] ? calloc(1, sizeof *made) : NULL;
  if (!made) return NULL;
  made->way = kinds[index].way;
  made->inputs = kinds[index].inputs;
  made->base.kind = DEPTHWISE;
  snprintf(made->base.name, sizeof made->base.name, "%s", name);
  made->base.op = (OrtCustomOp){
      .GetInputType = get_type,
      .GetInputTypeCount = get_input_count,
      .GetOutputType = get_type,
      .GetOutputTypeCount = get_output_count,
      .CreateKernelV2 = create,
      .KernelComputeV2 = compute,
  };
  return &made->base;
}
