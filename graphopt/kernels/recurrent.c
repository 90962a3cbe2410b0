/* Recurrent layers over all steps, and their gradients, on the CPU.
 *
 * The weights of the hidden state are laid out once as panels for the products of all steps. A
 * thread multiplies the state by the weights of some units' gates and goes on with these units
 * while they are in registers; in the next step all need what all have found. A unit is computed
 * by one thread in one order: the bits do not depend on the number of threads.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

/* One step of an LSTM; [batch, hidden] where nothing else is said. */
typedef struct {
  size_t batch, hidden;
  const float *x, *h;            /* x: [batch, 4 hidden], gates i, o, f, g */
  float *c;                      /* before the step, then after it */
  float *y, *h_before, *c_before, *gates, *block; /* gates: [batch, 3 hidden], i, o and f */
} LstmStep;

/* One step of its gradient, from the last to the first. */
typedef struct {
  size_t batch, hidden;
  const float *dy, *gates, *block, *c_before;
  const float *after; /* dx of the step behind it; NULL for the last one, to which dh comes */
  const float *dh;
  float *dc; /* of the state after the step, then before it */
  float *dx; /* [batch, 4 hidden]; NULL behind the first step, where only dh0 is left to find */
  float *dh0;
} LstmGradientStep;

typedef struct {
  size_t width; /* units of a block; of a gradient, there are twice as many */
  void (*lstm)(const LstmStep *step, const float *panels, size_t block);
  void (*lstm_gradient)(const LstmGradientStep *step, const float *panels, size_t block);
} CellLoops;

#define LOOPS(name) name##_baseline
#define TARGET
#if defined(__aarch64__)
#include <arm_neon.h>
#define WIDTH 4
#define HIGH 8
#define MULTIPLY_ADD(a, b, c) \
  ((WIDE)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#else
#define WIDTH 8
#define HIGH 6
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif
#include "recurrent_loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define WIDTH 8
#define HIGH 6
#define MULTIPLY_ADD(a, b, c) ((WIDE)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "recurrent_loops.h"

#define LOOPS(name) name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define WIDTH 16
#define HIGH 12
#define MULTIPLY_ADD(a, b, c) ((WIDE)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#include "recurrent_loops.h"
#endif

static const CellLoops *loops = &cell_loops_baseline;

#if defined(__x86_64__)
__attribute__((constructor)) static void choose_loops(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f"))
    loops = &cell_loops_avx512;
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    loops = &cell_loops_avx2;
}
#endif

enum {
  ALONE = 256 * 1024, /* products of a step for which there is one thread */
  LSTM_GATES = 4,
};

enum Way {
  FORWARD = 0,
  REVERSE = 1, /* from the last step to the first */
  OF_GRADIENT = 2,
};

typedef struct {
  const float *r; /* [gates hidden, hidden] */
  size_t gates, hidden, blocks, width, parts;
  float *panels;
  bool is_gradient;
  LstmStep step;
  LstmGradientStep gradient;
} Work;

/* ---- Panels --------------------------------------------------------------------------------- */

/* Those of a block: for each pair of gates, of each weight two vectors of units. */
static void pack_gates(const Work *w, size_t block) {
  const size_t n = w->hidden, unit = block * w->width;
  float *panel = w->panels + block * w->gates * w->width * n;
  for (size_t gate = 0; gate < w->gates; gate++)
    for (size_t i = 0; i < w->width; i++) {
      float *to = panel + gate / 2 * 2 * w->width * n + gate % 2 * w->width + i;
      const float *from = unit + i < n ? w->r + (gate * n + unit + i) * n : NULL;
      for (size_t k = 0; k < n; k++) to[k * 2 * w->width] = from ? from[k] : 0.0f;
    }
}

/* Those of the gradient: of each row of weights, two vectors of units. */
static void pack_units(const Work *w, size_t block) {
  const size_t n = w->hidden, wide = 2 * w->width, unit = block * wide;
  const size_t some = n - unit < wide ? n - unit : wide;
  float *panel = w->panels + block * wide * w->gates * n;
  for (size_t k = 0; k < w->gates * n; k++, panel += wide) {
    memcpy(panel, w->r + k * n + unit, some * sizeof *panel);
    memset(panel + some, 0, (wide - some) * sizeof *panel);
  }
}

static void pack_part(void *data, size_t part) {
  const Work *w = data;
  const size_t end = (part + 1) * w->blocks / w->parts;
  for (size_t block = part * w->blocks / w->parts; block < end; block++)
    if (w->is_gradient)
      pack_units(w, block);
    else
      pack_gates(w, block);
}

static void compute_part(void *data, size_t part) {
  const Work *w = data;
  const size_t end = (part + 1) * w->blocks / w->parts;
  for (size_t block = part * w->blocks / w->parts; block < end; block++)
    if (w->is_gradient)
      loops->lstm_gradient(&w->gradient, w->panels, block);
    else
      loops->lstm(&w->step, w->panels, block);
}

/* Lay out the weights; `panels` are to be freed. */
static OrtStatus *begin(const Layer *layer, OrtKernelContext *context, Work *w, size_t batch) {
  const size_t n = w->hidden, wide = w->is_gradient ? 2 * loops->width : loops->width;
  w->width = loops->width;
  w->blocks = (n + wide - 1) / wide;
  w->parts = parts_of(w->blocks, batch * w->gates * n * n < ALONE);
  w->panels = malloc(w->blocks * wide * w->gates * n * sizeof *w->panels + 1);
  if (!w->panels) return wrong_layer(layer, "out of memory");
  return do_parts(layer->api, context, pack_part, w->parts, w);
}

/* ---- LSTM ----------------------------------------------------------------------------------- */

typedef struct {
  size_t steps, batch, hidden;
} Sizes;

static bool has_shape(const Tensor *tensor, const size_t *dims, size_t rank) {
  if (tensor->rank != rank) return false;
  for (size_t axis = 0; axis < rank; axis++)
    if ((size_t)tensor->dims[axis] != dims[axis]) return false;
  return true;
}

/* x [steps, batch, 4 hidden], r, h, c; or dy, dh, dc, gates, block, c_before, r. */
static bool find_sizes(const Tensor *in, bool is_gradient, Sizes *s) {
  const Tensor *r = is_gradient ? &in[6] : &in[1];
  if (in[0].rank != 3 || r->rank != 2) return false;
  *s = (Sizes){(size_t)in[0].dims[0], (size_t)in[0].dims[1], (size_t)r->dims[1]};
  const size_t n = s->hidden, wide[] = {s->steps, s->batch, LSTM_GATES * n};
  const size_t units[] = {s->steps, s->batch, n}, gates[] = {s->steps, s->batch, 3 * n};
  if (!has_shape(r, (size_t[]){LSTM_GATES * n, n}, 2)) return false;
  if (!is_gradient)
    return has_shape(&in[0], wide, 3) && has_shape(&in[2], units + 1, 2) &&
           has_shape(&in[3], units + 1, 2);
  return has_shape(&in[0], units, 3) && has_shape(&in[1], units + 1, 2) &&
         has_shape(&in[2], units + 1, 2) && has_shape(&in[3], gates, 3) &&
         has_shape(&in[4], units, 3) && has_shape(&in[5], units, 3);
}

static OrtStatus *make_outputs(const Layer *layer, OrtKernelContext *context, const Sizes *s,
                               const size_t *widths, float **out) {
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < layer->operator->kind->outputs; i++) {
    const int64_t steps = (int64_t)s->steps, batch = (int64_t)s->batch;
    const int64_t wide = (int64_t)(widths[i] * s->hidden);
    /* 0: a state. */
    const int64_t dims[] = {steps, batch, wide}, state[] = {batch, (int64_t)s->hidden};
    status = widths[i] ? make_output(layer, context, i, dims, 3, &out[i])
                       : make_output(layer, context, i, state, 2, &out[i]);
  }
  return status;
}

static OrtStatus *compute_lstm(void *kernel, OrtKernelContext *context) {
  static const size_t widths[] = {0, 0, 1, 1, 1, 3, 1}; /* h, c, y, h_before, c_before, gates, block */
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way & REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[7];
  Sizes s;
  OrtStatus *status = read_inputs(layer, context, in);
  if (!status && !find_sizes(in, false, &s))
    status = wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if (!status) status = make_outputs(layer, context, &s, widths, out);
  if (status) return status;
  const size_t n = s.hidden, state = s.batch * n;
  Work w = {.r = in[1].data, .gates = LSTM_GATES, .hidden = n};
  w.step = (LstmStep){.batch = s.batch, .hidden = n, .h = in[2].data, .c = out[1]};
  memcpy(out[1], in[3].data, state * sizeof(float));
  status = begin(layer, context, &w, s.batch);
  for (size_t step = 0; !status && step < s.steps; step++) {
    const size_t at = (reverse ? s.steps - 1 - step : step) * state;
    w.step.x = in[0].data + 4 * at;
    w.step.y = out[2] + at;
    w.step.h_before = out[3] + at;
    w.step.c_before = out[4] + at;
    w.step.gates = out[5] + 3 * at;
    w.step.block = out[6] + at;
    status = do_parts(layer->api, context, compute_part, w.parts, &w);
    w.step.h = w.step.y;
  }
  memcpy(out[0], w.step.h, state * sizeof(float));
  free(w.panels);
  return status;
}

static OrtStatus *compute_lstm_gradient(void *kernel, OrtKernelContext *context) {
  static const size_t widths[] = {4, 0, 0}; /* dx, dh, dc */
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way & REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[3];
  Sizes s;
  OrtStatus *status = read_inputs(layer, context, in);
  if (!status && !find_sizes(in, true, &s))
    status = wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if (!status) status = make_outputs(layer, context, &s, widths, out);
  if (status) return status;
  const size_t n = s.hidden, state = s.batch * n;
  Work w = {.r = in[6].data, .gates = LSTM_GATES, .hidden = n, .is_gradient = true};
  LstmGradientStep *g = &w.gradient;
  *g = (LstmGradientStep){
      .batch = s.batch, .hidden = n, .dh = in[1].data, .dc = out[2], .dh0 = out[1]};
  memcpy(out[2], in[2].data, state * sizeof(float));
  status = begin(layer, context, &w, s.batch);
  for (size_t step = s.steps; !status && step-- > 0;) {
    const size_t at = (reverse ? s.steps - 1 - step : step) * state;
    g->dy = in[0].data + at;
    g->gates = in[3].data + 3 * at;
    g->block = in[4].data + at;
    g->c_before = in[5].data + at;
    g->dx = out[0] + 4 * at;
    status = do_parts(layer->api, context, compute_part, w.parts, &w);
    g->after = g->dx;
  }
  g->dx = NULL;
  if (!status) status = do_parts(layer->api, context, compute_part, w.parts, &w);
  free(w.panels);
  return status;
}

const LayerKind recurrent_kinds[] = {
    {"LstmLayer", 4, 7, FORWARD, create_layer, compute_lstm, false},
    {"LstmLayerReverse", 4, 7, REVERSE, create_layer, compute_lstm, false},
    {"LstmLayerGradient", 7, 3, OF_GRADIENT, create_layer, compute_lstm_gradient, false},
    {"LstmLayerReverseGradient", 7, 3, OF_GRADIENT | REVERSE, create_layer, compute_lstm_gradient,
     false},
    {0},
};
