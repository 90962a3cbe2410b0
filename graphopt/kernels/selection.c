/* Gradients that go to selected elements on the CPU: those of Relu and of MaxPool in 2-D.
 *
 * A plane of a channel is computed by one thread in one order: the bits do not depend on the number
 * of threads.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

typedef struct {
  void (*relu)(const float *dy, const float *y, float *dx, size_t n);
  void (*compare)(const float *x, ptrdiff_t step, int32_t first, float *largest, int32_t *place,
                  size_t n);
} SelectionLoops;

#define LOOPS(name) name##_baseline
#define TARGET
#include "selection_loops.h"

#if defined(__x86_64__)
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#include "selection_loops.h"
#endif

CHOOSE_LOOPS(SelectionLoops, selection_loops, __builtin_cpu_supports("avx2"))

enum {
  ALONE = 32 * 1024, /* elements for which there is one thread */
  UNIT = 4096,       /* elements of Relu that a thread computes at once */
  BLOCK = 256,       /* windows of a row whose largest elements are found at once */
  AXES = 2,
  HIGH = 0,
  WIDE = 1,
  RANK = 4,
};

/* ---- Relu ----------------------------------------------------------------------------------- */

typedef struct {
  const float *dy, *y;
  float *dx;
  size_t size, parts;
} ReluWork;

static size_t units(const ReluWork *w) { return (w->size + UNIT - 1) / UNIT; }

static void relu_part(void *data, size_t part) {
  const ReluWork *w = data;
  const size_t first = part * units(w) / w->parts * UNIT;
  const size_t behind = (part + 1) * units(w) / w->parts * UNIT;
  const size_t end = behind < w->size ? behind : w->size;
  if (first < end) loops->relu(w->dy + first, w->y + first, w->dx + first, end - first);
}

/* dy, y: dy where y > 0, otherwise dy times 0. */
static OrtStatus *compute_relu(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  ReluWork w = {.size = 1};
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  if (in[0].rank != in[1].rank || memcmp(in[0].dims, in[1].dims, in[0].rank * sizeof *in[0].dims))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  for (size_t axis = 0; axis < in[0].rank; axis++) w.size *= (size_t)in[0].dims[axis];
  w.dy = in[0].data, w.y = in[1].data;
  status = make_output(layer, context, 0, in[0].dims, in[0].rank, &w.dx);
  if (status) return status;
  w.parts = parts_of(units(&w), w.size < ALONE);
  return do_parts(layer->api, context, relu_part, w.parts, &w);
}

/* ---- MaxPool -------------------------------------------------------------------------------- */

/* One in a session. */
typedef struct {
  Layer layer;
  int64_t kernel[AXES], strides[AXES], dilations[AXES], pads[2 * AXES];
} MaxPool;

typedef struct {
  const MaxPool *pool;
  const float *x, *dy;
  float *dx;
  size_t planes, size[AXES], count[AXES], parts;
} PoolWork;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first of some numbers from a value in steps that is not below 0. */
static int64_t first_inside(int64_t value, int64_t step) {
  return value < 0 ? (-value + step - 1) / step : 0;
}

/* The largest elements of some windows in a row of them, found element by element of the kernel. */
static void find_block(const PoolWork *w, const float *x, int64_t row, int64_t first, int64_t n,
                       float *largest, int32_t *place) {
  const MaxPool *p = w->pool;
  const int64_t height = (int64_t)w->size[HIGH], width = (int64_t)w->size[WIDE];
  const int64_t stride = p->strides[WIDE];
  for (int64_t i = 0; i < n; i++) largest[i] = -INFINITY, place[i] = -1;
  for (int64_t k = 0; k < p->kernel[HIGH]; k++) {
    const int64_t h = row * p->strides[HIGH] - p->pads[HIGH] + k * p->dilations[HIGH];
    if (h < 0 || h >= height) continue;
    for (int64_t q = 0; q < p->kernel[WIDE]; q++) {
      const int64_t at = first * stride - p->pads[WIDE] + q * p->dilations[WIDE];
      const int64_t begin = first_inside(at, stride);
      const int64_t end = at < width ? least(n, (width - 1 - at) / stride + 1) : 0;
      if (begin >= end) continue;
      const int64_t start = h * width + at + begin * stride;
      loops->compare(x + start, stride, (int32_t)start, largest + begin, place + begin,
                     (size_t)(end - begin));
    }
  }
}

static void pool_plane(const PoolWork *w, size_t plane) {
  const size_t size = w->size[HIGH] * w->size[WIDE];
  const float *x = w->x + plane * size, *dy = w->dy + plane * w->count[HIGH] * w->count[WIDE];
  float *dx = w->dx + plane * size, largest[BLOCK];
  int32_t place[BLOCK];
  memset(dx, 0, size * sizeof *dx);
  for (size_t row = 0; row < w->count[HIGH]; row++)
    for (size_t first = 0; first < w->count[WIDE]; first += BLOCK) {
      const size_t left = w->count[WIDE] - first, n = left < BLOCK ? left : BLOCK;
      find_block(w, x, (int64_t)row, (int64_t)first, (int64_t)n, largest, place);
      for (size_t i = 0; i < n; i++)
        if (place[i] >= 0) dx[place[i]] += dy[row * w->count[WIDE] + first + i];
    }
}

static void pool_part(void *data, size_t part) {
  const PoolWork *w = data;
  for (size_t i = part * w->planes / w->parts; i < (part + 1) * w->planes / w->parts; i++)
    pool_plane(w, i);
}

static OrtStatus *read_attributes(MaxPool *p, const OrtKernelInfo *info) {
  const struct {
    const char *name;
    size_t count;
    int64_t least, *values;
  } read[] = {
      {"kernel_shape", AXES, 1, p->kernel},
      {"strides", AXES, 1, p->strides},
      {"dilations", AXES, 1, p->dilations},
      {"pads", 2 * AXES, 0, p->pads},
  };
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < sizeof read / sizeof *read; i++) {
    size_t size = read[i].count;
    status = p->layer.api->KernelInfoGetAttributeArray_int64(info, read[i].name, read[i].values,
                                                             &size);
    for (size_t k = 0; !status && k < read[i].count; k++)
      if (size != read[i].count || read[i].values[k] < read[i].least)
        status = wrong_layer(&p->layer, "an attribute has another number of values, or one is too small");
  }
  return status;
}

static OrtStatus *create_pool(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                              void **out) {
  MaxPool *p = calloc(1, sizeof *p);
  if (!p) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  p->layer = (Layer){api, (const LayerOperator *)op};
  OrtStatus *status = read_attributes(p, info);
  if (status)
    free(p);
  else
    *out = p;
  return status;
}

/* x, dy: to the first of the largest elements of each window. */
static OrtStatus *compute_pool(void *kernel, OrtKernelContext *context) {
  const MaxPool *p = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  PoolWork w = {.pool = p};
  OrtStatus *status = read_inputs(&p->layer, context, in);
  if (status) return status;
  if (in[0].rank != RANK || in[1].rank != RANK || in[0].dims[0] != in[1].dims[0] ||
      in[0].dims[1] != in[1].dims[1])
    return wrong_layer(&p->layer, "the shapes of the inputs do not fit each other");
  if (in[0].dims[2] && in[0].dims[3] > INT32_MAX / in[0].dims[2])
    return wrong_layer(&p->layer, "a plane has more than 2147483647 elements");
  w.planes = (size_t)(in[0].dims[0] * in[0].dims[1]);
  for (int axis = 0; axis < AXES; axis++) {
    w.size[axis] = (size_t)in[0].dims[2 + axis];
    w.count[axis] = (size_t)in[1].dims[2 + axis];
  }
  w.x = in[0].data, w.dy = in[1].data;
  status = make_output(&p->layer, context, 0, in[0].dims, RANK, &w.dx);
  if (status) return status;
  w.parts = parts_of(w.planes, w.planes * w.size[HIGH] * w.size[WIDE] < ALONE);
  return do_parts(p->layer.api, context, pool_part, w.parts, &w);
}

const LayerKind selection_kinds[] = {
    {"ReluGradient", 2, 1, 0, create_layer, compute_relu, true},
    {"MaxPoolGradient", 2, 1, 0, create_pool, compute_pool, false},
    {0},
};
