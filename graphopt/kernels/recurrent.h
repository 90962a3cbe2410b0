/* Recurrent layers over all steps, and their gradients.
 *
 * The weights of the hidden state are laid out once as panels for the products of all steps. A
 * thread multiplies the state by the weights of some units' gates and goes on with these units
 * while they are in registers; in the next step all need what all have found. A unit is computed
 * by one thread in one order: the bits do not depend on the number of threads.
 */
#ifndef GRAPHOPT_RECURRENT_H
#define GRAPHOPT_RECURRENT_H

#include "layer.h"

enum RecurrentWay {
  FORWARDS = 0,
  REVERSE = 1, /* from the last step to the first */
};

/* One step, for a block of units. */
typedef void (*ComputeBlock)(const void *step, const float *panels, size_t block);

typedef struct {
  size_t width; /* units of a block; of a gradient, there are twice as many */
  ComputeBlock step, gradient;
} CellLoops;

typedef struct {
  size_t steps, batch, hidden;
} Sizes;

/* A layer while it is computed. */
typedef struct {
  const CellLoops *loops;
  bool is_gradient;
  const float *r; /* [gates hidden, hidden] */
  size_t gates, hidden, blocks, parts;
  float *panels; /* to be freed */
  const void *step;
} Recurrent;

/* The extent of a tensor: [batch, hidden], or n for [steps, batch, n hidden]. */
enum { STATE = 0 };

/* From a list of some extent and weights [gates hidden, hidden]; false where they do not fit. */
bool find_sizes(const Tensor *list, const Tensor *r, size_t extent, size_t gates, Sizes *sizes);

/* Whether tensors have these extents. */
bool have_extents(const Tensor *tensors, const Sizes *sizes, const size_t *extents, size_t count);

/* All outputs, of these extents. */
OrtStatus *make_extents(const Layer *layer, OrtKernelContext *context, const Sizes *sizes,
                        const size_t *extents, float **outputs);

/* Lay out the weights. */
OrtStatus *begin_recurrent(const Layer *layer, OrtKernelContext *context, Recurrent *recurrent,
                           size_t batch);

/* Compute the step that `recurrent` points to. */
OrtStatus *do_step(const Layer *layer, OrtKernelContext *context, Recurrent *recurrent);

#endif
