/* The gradient of rows that are taken out of a table, on the CPU.
 *
 * Rows that were taken several times are added up in the order of their indices, each by one
 * thread: the bits do not depend on the number of threads.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

enum {
  ALONE = 32 * 1024, /* elements for which there is one thread */
  FEW = 8,           /* parts; each of them reads all indices */
};

typedef struct {
  Layer layer;
  int64_t rows; /* of the table */
} Gather;

typedef struct {
  const float *dy;
  const int64_t *indices;
  float *dx;
  size_t count, rows, width, parts;
} Work;

/* The row that an index names: one from the end, where it is negative; none beyond the table. */
static size_t row_of(const Work *w, int64_t index) {
  return index < 0 ? (size_t)(index + (int64_t)w->rows) : (size_t)index;
}

static void add_part(void *data, size_t part) {
  const Work *w = data;
  const size_t begin = part * w->rows / w->parts, end = (part + 1) * w->rows / w->parts;
  memset(w->dx + begin * w->width, 0, (end - begin) * w->width * sizeof *w->dx);
  for (size_t i = 0; i < w->count; i++) {
    const size_t row = row_of(w, w->indices[i]);
    if (row < begin || row >= end) continue;
    float *to = w->dx + row * w->width;
    const float *from = w->dy + i * w->width;
    INDEPENDENT
    for (size_t k = 0; k < w->width; k++) to[k] += from[k];
  }
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **kernel) {
  Gather *made = calloc(1, sizeof *made);
  if (!made) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  made->layer = (Layer){api, (const LayerOperator *)op};
  size_t count = 1;
  OrtStatus *status = api->KernelInfoGetAttributeArray_int64(info, "rows", &made->rows, &count);
  if (!status && (count != 1 || made->rows < 0))
    status = wrong_layer(&made->layer, "rows is one size");
  if (status)
    free(made);
  else
    *kernel = made;
  return status;
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Gather *made = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  OrtStatus *status = read_inputs(&made->layer, context, in);
  if (status) return status;
  if (in[0].rank != 2 || in[1].rank != 1 || in[0].dims[0] != in[1].dims[0])
    return wrong_layer(&made->layer, "the shapes of the inputs do not fit each other");
  Work w = {.dy = in[0].data,
            .indices = (const int64_t *)(const void *)in[1].data,
            .count = (size_t)in[0].dims[0],
            .rows = (size_t)made->rows,
            .width = (size_t)in[0].dims[1]};
  for (size_t i = 0; i < w.count; i++)
    if (row_of(&w, w.indices[i]) >= w.rows)
      return wrong_layer(&made->layer, "an index is beyond the table");
  const int64_t dims[] = {made->rows, in[0].dims[1]};
  status = make_output(&made->layer, context, 0, dims, 2, &w.dx);
  if (status || !w.rows || !w.width) return status;
  const bool alone = (w.rows + w.count) * w.width < ALONE;
  w.parts = alone ? 1 : w.rows < FEW ? w.rows : FEW;
  return do_parts(made->layer.api, context, add_part, w.parts, &w);
}

const LayerKind gather_kinds[] = {
    {"GatherGradient", 2, 1, INDICES, create, compute, false},
    {0},
};
