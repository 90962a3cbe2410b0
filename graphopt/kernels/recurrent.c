/* What recurrent layers have in common: panels of weights, steps, shapes. */
#include "recurrent.h"

#include <stdlib.h>
#include <string.h>

enum { ALONE = 256 * 1024 }; /* products of a step for which there is one thread */

/* Those of a block: of each pair of gates, for each weight two vectors of units; then one of each
 * for a last gate without another. */
static void pack_gates(const Recurrent *w, size_t block) {
  const size_t n = w->hidden, width = w->loops->width, unit = block * width;
  for (size_t gate = 0; gate < w->gates; gate++) {
    const size_t first = gate / 2 * 2, wide = w->gates - first < 2 ? width : 2 * width;
    float *panel = w->panels + (block * w->gates + first) * width * n + (gate - first) * width;
    for (size_t i = 0; i < width; i++) {
      const float *from = unit + i < n ? w->r + (gate * n + unit + i) * n : NULL;
      for (size_t k = 0; k < n; k++) panel[k * wide + i] = from ? from[k] : 0.0f;
    }
  }
}

/* Those of the gradient: of each row of weights, two vectors of units. */
static void pack_units(const Recurrent *w, size_t block) {
  const size_t n = w->hidden, wide = 2 * w->loops->width, unit = block * wide;
  const size_t some = n - unit < wide ? n - unit : wide;
  float *panel = w->panels + block * wide * w->gates * n;
  for (size_t k = 0; k < w->gates * n; k++, panel += wide) {
    memcpy(panel, w->r + k * n + unit, some * sizeof *panel);
    memset(panel + some, 0, (wide - some) * sizeof *panel);
  }
}

static void pack_part(void *data, size_t part) {
  const Recurrent *w = data;
  const size_t end = (part + 1) * w->blocks / w->parts;
  for (size_t block = part * w->blocks / w->parts; block < end; block++)
    if (w->is_gradient)
      pack_units(w, block);
    else
      pack_gates(w, block);
}

OrtStatus *begin_recurrent(const Layer *layer, OrtKernelContext *context, Recurrent *w,
                           size_t batch) {
  const size_t n = w->hidden, wide = w->is_gradient ? 2 * w->loops->width : w->loops->width;
  w->blocks = (n + wide - 1) / wide;
  w->parts = parts_of(w->blocks, batch * w->gates * n * n < ALONE);
  w->panels = malloc(w->blocks * wide * w->gates * n * sizeof *w->panels + 1);
  if (!w->panels) return wrong_layer(layer, "out of memory");
  return do_parts(layer->api, context, pack_part, w->parts, w);
}

static void compute_part(void *data, size_t part) {
  const Recurrent *w = data;
  const ComputeBlock compute = w->is_gradient ? w->loops->gradient : w->loops->step;
  const size_t end = (part + 1) * w->blocks / w->parts;
  for (size_t block = part * w->blocks / w->parts; block < end; block++)
    compute(w->step, w->panels, block);
}

OrtStatus *do_step(const Layer *layer, OrtKernelContext *context, Recurrent *w) {
  return do_parts(layer->api, context, compute_part, w->parts, w);
}

/* ---- Shapes --------------------------------------------------------------------------------- */

static size_t dims_of(const Sizes *s, size_t extent, int64_t *dims) {
  if (extent == STATE) {
    dims[0] = (int64_t)s->batch;
    dims[1] = (int64_t)s->hidden;
    return 2;
  }
  dims[0] = (int64_t)s->steps;
  dims[1] = (int64_t)s->batch;
  dims[2] = (int64_t)(extent * s->hidden);
  return 3;
}

bool find_sizes(const Tensor *list, const Tensor *r, size_t extent, size_t gates, Sizes *s) {
  if (list->rank != 3 || r->rank != 2) return false;
  *s = (Sizes){(size_t)list->dims[0], (size_t)list->dims[1], (size_t)r->dims[1]};
  return r->dims[0] == (int64_t)(gates * s->hidden) && have_extents(list, s, &extent, 1);
}

bool have_extents(const Tensor *tensors, const Sizes *s, const size_t *extents, size_t count) {
  int64_t dims[3];
  for (size_t i = 0; i < count; i++) {
    const size_t rank = dims_of(s, extents[i], dims);
    if (tensors[i].rank != rank || memcmp(tensors[i].dims, dims, rank * sizeof *dims)) return false;
  }
  return true;
}

OrtStatus *make_extents(const Layer *layer, OrtKernelContext *context, const Sizes *s,
                        const size_t *extents, float **outputs) {
  OrtStatus *status = NULL;
  int64_t dims[3];
  for (size_t i = 0; !status && i < layer->operator->kind->outputs; i++) {
    const size_t rank = dims_of(s, extents[i], dims);
    status = make_output(layer, context, i, dims, rank, &outputs[i]);
  }
  return status;
}
