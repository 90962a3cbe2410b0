/* What the operators of layers have in common. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer.h"

OrtStatus *create_layer(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                        void **kernel) {
  (void)info;
  Layer *layer = malloc(sizeof *layer);
  if (!layer) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  *layer = (Layer){api, (const LayerOperator *)op};
  *kernel = layer;
  return NULL;
}

OrtStatus *wrong_layer(const Layer *layer, const char *what) {
  char message[256];
  snprintf(message, sizeof message, "graphopt.%s: %s", layer->operator->base.name, what);
  return layer->api->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_input(const Layer *layer, const OrtKernelContext *context, size_t index,
                             Tensor *tensor) {
  const OrtApi *api = layer->api;
  const OrtValue *value = NULL;
  OrtTensorTypeAndShapeInfo *info;
  void *data;
  OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
  if (status) return status;
  if (!value) return wrong_layer(layer, "an input is missing");
  if ((status = api->GetTensorTypeAndShape(value, &info))) return status;
  status = api->GetDimensionsCount(info, &tensor->rank);
  if (!status && tensor->rank > MOST_LAYER_DIMS)
    status = wrong_layer(layer, "an input has more than 32 axes");
  if (!status) status = api->GetDimensions(info, tensor->dims, tensor->rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (!status) status = api->GetTensorMutableData((OrtValue *)value, &data);
  if (!status) tensor->data = data;
  return status;
}

OrtStatus *read_inputs(const Layer *layer, const OrtKernelContext *context, Tensor *inputs) {
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < layer->operator->kind->inputs; i++)
    status = read_input(layer, context, i, &inputs[i]);
  return status;
}

OrtStatus *make_output(const Layer *layer, OrtKernelContext *context, size_t index,
                       const int64_t *dims, size_t rank, float **data) {
  OrtValue *value;
  void *memory;
  OrtStatus *status = layer->api->KernelContext_GetOutput(context, index, dims, rank, &value);
  if (!status) status = layer->api->GetTensorMutableData(value, &memory);
  if (!status) *data = memory;
  return status;
}

/* ---- Operators ------------------------------------------------------------------------------ */

static size_t get_input_count(const OrtCustomOp *op) {
  return ((const LayerOperator *)op)->kind->inputs;
}

static size_t get_output_count(const OrtCustomOp *op) {
  return ((const LayerOperator *)op)->kind->outputs;
}

static int get_input_type(const OrtCustomOp *op, size_t index) {
  const bool has_indices = ((const LayerOperator *)op)->kind->way & INDICES;
  return has_indices && index == 1 ? ORT_INT64 : ORT_FLOAT;
}

static int get_output_type(const OrtCustomOp *op, size_t index) {
  (void)op, (void)index;
  return ORT_FLOAT;
}

static const LayerKind *const tables[] = {depthwise_kinds, gather_kinds, gru_kinds, lstm_kinds,
                                         matmul_kinds, normalization_kinds, row_kinds,
                                         selection_kinds, turning_kinds};

static const LayerKind *kind_at(size_t index) {
  for (size_t table = 0; table < sizeof tables / sizeof *tables; table++)
    for (const LayerKind *kind = tables[table]; kind->name; kind++)
      if (!index--) return kind;
  return NULL;
}

const char *layer_name(size_t index) {
  const LayerKind *kind = kind_at(index);
  return kind ? kind->name : NULL;
}

Operator *make_layer(const char *name) {
  const LayerKind *kind;
  size_t length = strlen(name);
  while (length && name[length - 1] >= '0' && name[length - 1] <= '9') length--;
  for (size_t i = 0; (kind = kind_at(i)); i++)
    if (strlen(kind->name) == length && !strncmp(kind->name, name, length)) break;
  LayerOperator *made = kind ? calloc(1, sizeof *made) : NULL;
  if (!made) return NULL;
  made->kind = kind;
  made->base.kind = LAYER;
  snprintf(made->base.name, sizeof made->base.name, "%s", name);
  made->base.op = (OrtCustomOp){
      .GetInputType = get_input_type,
      .GetInputTypeCount = get_input_count,
      .GetOutputType = get_output_type,
      .GetOutputTypeCount = get_output_count,
      .CreateKernelV2 = kind->create,
      .KernelComputeV2 = kind->compute,
      .GetMayInplace = kind->in_place ? first_in_place : NULL,
  };
  return &made->base;
}
