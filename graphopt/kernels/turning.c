/* The weight of the convolution that is the gradient of a convolution's input, on the CPU: inputs
 * and outputs are swapped, and each kernel is turned around. Where it is written with ONNX's
 * operators, all elements pass through memory three times. */
#include "layer.h"

enum {
  ALONE = 32 * 1024, /* elements for which there is one thread */
  BLOCK = 16,        /* channels that are written together: each is a place where memory is written */
  USUAL = 9,         /* elements of a kernel of 3 by 3 */
};

typedef struct {
  const float *weight;
  float *turned;
  size_t outputs, channels, taps, parts;
} Work;

static inline void turn(const Work *w, size_t first, size_t behind, const size_t taps) {
  for (size_t output = 0; output < w->outputs; output++)
    for (size_t channel = first; channel < behind; channel++) {
      const float *from = w->weight + (output * w->channels + channel) * taps;
      float *to = w->turned + (channel * w->outputs + output) * taps;
      for (size_t i = 0; i < taps; i++) to[i] = from[taps - 1 - i];
    }
}

static size_t units(const Work *w) { return (w->channels + BLOCK - 1) / BLOCK; }

static void turn_part(void *data, size_t part) {
  const Work *w = data;
  for (size_t i = part * units(w) / w->parts; i < (part + 1) * units(w) / w->parts; i++) {
    const size_t first = i * BLOCK, left = w->channels - first;
    const size_t behind = first + (left < BLOCK ? left : BLOCK);
    if (w->taps == USUAL)
      turn(w, first, behind, USUAL);
    else
      turn(w, first, behind, w->taps);
  }
}

/* weight [outputs, channels, ...]: [channels, outputs, ...] */
static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  if (in[0].rank < 3) return wrong_layer(layer, "the weight has less than three axes");
  Work w = {.outputs = (size_t)in[0].dims[0], .channels = (size_t)in[0].dims[1], .taps = 1};
  for (size_t axis = 2; axis < in[0].rank; axis++) w.taps *= (size_t)in[0].dims[axis];
  in[0].dims[0] = (int64_t)w.channels, in[0].dims[1] = (int64_t)w.outputs;
  w.weight = in[0].data;
  status = make_output(layer, context, 0, in[0].dims, in[0].rank, &w.turned);
  if (status) return status;
  w.parts = parts_of(units(&w), w.outputs * w.channels * w.taps < ALONE);
  return do_parts(layer->api, context, turn_part, w.parts, &w);
}

const LayerKind turning_kinds[] = {
    {"TurnedWeight", 1, 1, 0, create_layer, compute, false},
    {0},
};
