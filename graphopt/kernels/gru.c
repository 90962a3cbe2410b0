/* GRUs, whose reset gate is applied to products, and their gradients. */
#include <stdlib.h>
#include <string.h>

#include "recurrent.h"

/* One step; [batch, hidden] where nothing else is said. */
typedef struct {
  size_t batch, hidden;
  const float *x, *bias, *h; /* x: [batch, 3 hidden], gates z, r, n; the bias: [hidden], of n */
  float *y, *h_before;
  float *gates, *new, *inner; /* gates: [batch, 2 hidden], z and r; inner: what r multiplies */
} Step;

/* One step of the gradient, from the last to the first. */
typedef struct {
  size_t batch, hidden;
  const float *dy, *gates, *new, *inner, *h_before;
  const float *after; /* d_sums of the step behind it; NULL for the last one */
  float *dh; /* of the state after the step, then before it, both without products */
  float *dx, *d_sums; /* [batch, 3 hidden]; NULL behind the first step, where dh gets the products */
} GradientStep;

#define CELL_LOOPS "gru_loops.h"
#include "recurrent_variants.h"

enum { GATES = 3 };

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  enum { X, R, BIAS, H, INPUTS };
  enum { H_LAST, Y, H_BEFORE, KEPT_GATES, NEW, INNER, OUTPUTS };
  static const size_t extents[OUTPUTS] = {STATE, 1, 1, 2, 1, 1};
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way == REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[OUTPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  Sizes s;
  if (!find_sizes(&in[X], &in[R], GATES, GATES, &s) || in[BIAS].rank != 1 ||
      (size_t)in[BIAS].dims[0] != s.hidden || !have_extents(&in[H], &s, (size_t[]){STATE}, 1))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if ((status = make_extents(layer, context, &s, extents, out))) return status;
  const size_t state = s.batch * s.hidden;
  Step step = {.batch = s.batch, .hidden = s.hidden, .bias = in[BIAS].data, .h = in[H].data};
  Recurrent w = {loops, false, in[R].data, GATES, s.hidden, .step = &step};
  status = begin_recurrent(layer, context, &w, s.batch);
  for (size_t i = 0; !status && i < s.steps; i++) {
    const size_t at = (reverse ? s.steps - 1 - i : i) * state;
    step.x = in[X].data + GATES * at;
    step.y = out[Y] + at;
    step.h_before = out[H_BEFORE] + at;
    step.gates = out[KEPT_GATES] + 2 * at;
    step.new = out[NEW] + at;
    step.inner = out[INNER] + at;
    status = do_step(layer, context, &w);
    step.h = step.y;
  }
  memcpy(out[H_LAST], step.h, state * sizeof(float));
  free(w.panels);
  return status;
}

static OrtStatus *compute_gradient(void *kernel, OrtKernelContext *context) {
  enum { DY, DH, KEPT_GATES, NEW, INNER, H_BEFORE, R, INPUTS };
  enum { DX, DH_FIRST, D_SUMS, OUTPUTS };
  static const size_t extents[OUTPUTS] = {GATES, STATE, GATES};
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way == REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[OUTPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  Sizes s;
  if (!find_sizes(&in[DY], &in[R], 1, GATES, &s) ||
      !have_extents(&in[DH], &s, (size_t[]){STATE, 2, 1, 1, 1}, 5))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if ((status = make_extents(layer, context, &s, extents, out))) return status;
  const size_t state = s.batch * s.hidden;
  GradientStep step = {.batch = s.batch, .hidden = s.hidden, .dh = out[DH_FIRST]};
  Recurrent w = {loops, true, in[R].data, GATES, s.hidden, .step = &step};
  memcpy(step.dh, in[DH].data, state * sizeof(float));
  status = begin_recurrent(layer, context, &w, s.batch);
  for (size_t i = s.steps; !status && i-- > 0;) {
    const size_t at = (reverse ? s.steps - 1 - i : i) * state;
    step.dy = in[DY].data + at;
    step.gates = in[KEPT_GATES].data + 2 * at;
    step.new = in[NEW].data + at;
    step.inner = in[INNER].data + at;
    step.h_before = in[H_BEFORE].data + at;
    step.dx = out[DX] + GATES * at;
    step.d_sums = out[D_SUMS] + GATES * at;
    status = do_step(layer, context, &w);
    step.after = step.d_sums;
  }
  step.dx = step.d_sums = NULL;
  if (!status) status = do_step(layer, context, &w);
  free(w.panels);
  return status;
}

const LayerKind gru_kinds[] = {
    {"GruLayer", 4, 6, FORWARDS, create_layer, compute, false},
    {"GruLayerReverse", 4, 6, REVERSE, create_layer, compute, false},
    {"GruLayerGradient", 7, 3, FORWARDS, create_layer, compute_gradient, false},
    {"GruLayerReverseGradient", 7, 3, REVERSE, create_layer, compute_gradient, false},
    {0},
};
