/* Operators of layers of a network: their inputs and outputs are float32 tensors, but for indices. */
#ifndef GRAPHOPT_LAYER_H
#define GRAPHOPT_LAYER_H

#include "operator.h"

enum { MOST_PARTS = 64 };

/* How many parts work has: one for a thread alone, otherwise some units each. */
static inline size_t parts_of(size_t units, bool alone) {
  return units && alone ? 1 : units < MOST_PARTS ? units : MOST_PARTS;
}

enum { MOST_LAYER_INPUTS = 7, MOST_LAYER_DIMS = MAX_DIMS };

typedef struct {
  int64_t dims[MOST_LAYER_DIMS];
  size_t rank;
  float *data;
} Tensor;

enum { INDICES = 1 << 16 }; /* added to a way: the second input is int64 */

/* What a name stands for; a file has a table of them. */
typedef struct {
  const char *name; /* NULL behind the last */
  size_t inputs, outputs;
  int way; /* which of those of its file */
  OrtStatus *(*create)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                       void **kernel);
  Compute compute;
  bool in_place; /* whether the first output may take the memory of the first input */
} LayerKind;

extern const LayerKind depthwise_kinds[], gather_kinds[], gru_kinds[], lstm_kinds[],
    normalization_kinds[], row_kinds[], selection_kinds[], turning_kinds[];
extern LayerKind matmul_kinds[]; /* which the processor may lack */

typedef struct {
  Operator base; /* first: the runtime passes a pointer to it */
  const LayerKind *kind;
} LayerOperator;

/* A layer in a session, with what the file that computes it adds. */
typedef struct {
  const OrtApi *api;
  const LayerOperator *operator;
} Layer;

/* Of one without attributes. */
OrtStatus *create_layer(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                        void **kernel);

OrtStatus *wrong_layer(const Layer *layer, const char *what);

/* All inputs of a node. */
OrtStatus *read_inputs(const Layer *layer, const OrtKernelContext *context, Tensor *inputs);

/* The memory of an output with this shape. */
OrtStatus *make_output(const Layer *layer, OrtKernelContext *context, size_t index,
                       const int64_t *dims, size_t rank, float **data);

static inline size_t product_of(const int64_t *dims, size_t rank) {
  size_t size = 1;
  for (size_t i = 0; i < rank; i++) size *= (size_t)dims[i];
  return size;
}

typedef float Lanes __attribute__((vector_size(32))); /* floats that are computed together */
typedef float Unaligned __attribute__((vector_size(32), aligned(4), may_alias));
enum { LANES = 8 };

#define UNROLL _Pragma("GCC unroll 16")

#endif
