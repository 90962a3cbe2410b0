/* LSTMs and their gradients. */
#include <stdlib.h>
#include <string.h>

#include "recurrent.h"

/* One step; [batch, hidden] where nothing else is said. */
typedef struct {
  size_t batch, hidden;
  const float *x, *h; /* x: [batch, 4 hidden], gates i, o, f, g */
  float *c;           /* before the step, then after it */
  float *y, *h_before, *c_before;
  float *gates, *block; /* gates: [batch, 3 hidden], i, o and f; the block is g */
} Step;

/* One step of the gradient, from the last to the first. */
typedef struct {
  size_t batch, hidden;
  const float *dy, *gates, *block, *c_before;
  const float *after; /* dx of the step behind it; NULL for the last one, to which dh comes */
  const float *dh;
  float *dc; /* of the state after the step, then before it */
  float *dx; /* [batch, 4 hidden]; NULL behind the first step, where only dh0 is left to find */
  float *dh0;
} GradientStep;

#define CELL_LOOPS "lstm_loops.h"
#include "recurrent_variants.h"

enum { GATES = 4 };

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  enum { X, R, H, C, INPUTS };
  enum { H_LAST, C_LAST, Y, H_BEFORE, C_BEFORE, KEPT_GATES, BLOCK, OUTPUTS };
  static const size_t extents[OUTPUTS] = {STATE, STATE, 1, 1, 1, 3, 1};
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way == REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[OUTPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  Sizes s;
  if (!find_sizes(&in[X], &in[R], GATES, GATES, &s) ||
      !have_extents(&in[H], &s, (size_t[]){STATE, STATE}, 2))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if ((status = make_extents(layer, context, &s, extents, out))) return status;
  const size_t state = s.batch * s.hidden;
  Step step = {.batch = s.batch, .hidden = s.hidden, .h = in[H].data, .c = out[C_LAST]};
  Recurrent w = {loops, false, in[R].data, GATES, s.hidden, .step = &step};
  memcpy(step.c, in[C].data, state * sizeof(float));
  status = begin_recurrent(layer, context, &w, s.batch);
  for (size_t i = 0; !status && i < s.steps; i++) {
    const size_t at = (reverse ? s.steps - 1 - i : i) * state;
    step.x = in[X].data + GATES * at;
    step.y = out[Y] + at;
    step.h_before = out[H_BEFORE] + at;
    step.c_before = out[C_BEFORE] + at;
    step.gates = out[KEPT_GATES] + 3 * at;
    step.block = out[BLOCK] + at;
    status = do_step(layer, context, &w);
    step.h = step.y;
  }
  memcpy(out[H_LAST], step.h, state * sizeof(float));
  free(w.panels);
  return status;
}

static OrtStatus *compute_gradient(void *kernel, OrtKernelContext *context) {
  enum { DY, DH, DC, KEPT_GATES, BLOCK, C_BEFORE, R, INPUTS };
  enum { DX, DH_FIRST, DC_FIRST, OUTPUTS };
  static const size_t extents[OUTPUTS] = {GATES, STATE, STATE};
  const Layer *layer = kernel;
  const bool reverse = layer->operator->kind->way == REVERSE;
  Tensor in[MOST_LAYER_INPUTS];
  float *out[OUTPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  Sizes s;
  if (!find_sizes(&in[DY], &in[R], 1, GATES, &s) ||
      !have_extents(&in[DH], &s, (size_t[]){STATE, STATE, 3, 1, 1}, 5))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  if ((status = make_extents(layer, context, &s, extents, out))) return status;
  const size_t state = s.batch * s.hidden;
  GradientStep step = {.batch = s.batch,
                       .hidden = s.hidden,
                       .dh = in[DH].data,
                       .dc = out[DC_FIRST],
                       .dh0 = out[DH_FIRST]};
  Recurrent w = {loops, true, in[R].data, GATES, s.hidden, .step = &step};
  memcpy(step.dc, in[DC].data, state * sizeof(float));
  status = begin_recurrent(layer, context, &w, s.batch);
  for (size_t i = s.steps; !status && i-- > 0;) {
    const size_t at = (reverse ? s.steps - 1 - i : i) * state;
    step.dy = in[DY].data + at;
    step.gates = in[KEPT_GATES].data + 3 * at;
    step.block = in[BLOCK].data + at;
    step.c_before = in[C_BEFORE].data + at;
    step.dx = out[DX] + GATES * at;
    status = do_step(layer, context, &w);
    step.after = step.dx;
  }
  step.dx = NULL;
  if (!status) status = do_step(layer, context, &w);
  free(w.panels);
  return status;
}

const LayerKind lstm_kinds[] = {
    {"LstmLayer", 4, 7, FORWARDS, create_layer, compute, false},
    {"LstmLayerReverse", 4, 7, REVERSE, create_layer, compute, false},
    {"LstmLayerGradient", 7, 3, FORWARDS, create_layer, compute_gradient, false},
    {"LstmLayerReverseGradient", 7, 3, REVERSE, create_layer, compute_gradient, false},
    {0},
};
