/* The part of ONNX Runtime's C interface that the kernels need.
 *
 * No header of ONNX Runtime is needed, and nothing is linked against it: the runtime hands its
 * functions to RegisterCustomOps as a table of pointers that is append-only. A function keeps its
 * place and its signature in every later version, and a structure that the runtime reads begins
 * with the version of its layout. So the places below are all there is to know, and one binary
 * runs on ONNX Runtime 1.18, which has all of them, and later.
 */
#ifndef GRAPHOPT_ABI_H
#define GRAPHOPT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#define ORT_API_VERSION 18 /* ONNX Runtime 1.18, the first that reads GetMayInplace */

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_NOT_IMPLEMENTED = 9 };
enum { ORT_ANY = 0, ORT_FLOAT = 1, ORT_INT64 = 7, ORT_BOOL = 9, ORT_FLOAT16 = 10, ORT_DOUBLE = 11 };

/* What the runtime only lends, by pointer. */
typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtCustomOp OrtCustomOp;
typedef struct OrtAllocator OrtAllocator;

/* The functions, each at its place in the table; NULL as a status is success. */
typedef struct {
  OrtStatus *(*CreateStatus)(int code, const char *message);
  void *from_1[25];
  OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **domain);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const OrtCustomOp *op);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
  void *from_29[22];
  OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);
  void *from_52[8];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, int *type);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dims, size_t count);
  OrtStatus *(*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo *info, const char **names,
                                      size_t count);
  OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count);
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info);
  void *from_66[12];
  OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **allocator);
  void *from_79[6];
  OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name,
                                             float *value);
  void *from_86[4];
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index,
                                       const OrtValue **value);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index,
                                        const int64_t *dims, size_t count, OrtValue **value);
  void *from_92[1];
  void (*ReleaseStatus)(OrtStatus *status);
  void *from_94[2];
  void (*ReleaseValue)(OrtValue *value);
  void *from_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);
  void *from_100[30];
  OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *options, const char *key,
                                      const char *value);
  void *from_131[32];
  OrtStatus *(*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo *info, const char *name,
                                                  int64_t *values, size_t *size);
  void *from_164[29];
  OrtStatus *(*KernelContext_GetGPUComputeStream)(const OrtKernelContext *context, void **stream);
  void *from_194[42];
  OrtStatus *(*KernelInfoGetAttribute_tensor)(const OrtKernelInfo *info, const char *name,
                                              OrtAllocator *allocator, OrtValue **value);
  OrtStatus *(*HasSessionConfigEntry)(const OrtSessionOptions *options, const char *key, int *has);
  void *from_238[30];
  OrtStatus *(*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext *context,
                                                    size_t index, OrtTensorTypeAndShapeInfo **info);
  void *from_269[1];
  OrtStatus *(*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext *context,
                                                     size_t index,
                                                     const OrtTensorTypeAndShapeInfo *info);
  void *from_271[3];
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context,
                                          void (*work)(void *data, size_t index), size_t total,
                                          size_t batches, void *data);
} OrtApi;

#define AT_PLACE(function, place)                                      \
  _Static_assert(offsetof(OrtApi, function) == place * sizeof(void *), \
                 #function " is not at its place")
AT_PLACE(CreateStatus, 0);
AT_PLACE(CreateCustomOpDomain, 26);
AT_PLACE(GetTensorMutableData, 51);
AT_PLACE(GetTensorElementType, 60);
AT_PLACE(GetDimensionsCount, 61);
AT_PLACE(GetTensorShapeElementCount, 64);
AT_PLACE(GetAllocatorWithDefaultOptions, 78);
AT_PLACE(KernelInfoGetAttribute_float, 85);
AT_PLACE(KernelContext_GetInput, 90);
AT_PLACE(ReleaseStatus, 93);
AT_PLACE(ReleaseValue, 96);
AT_PLACE(ReleaseTensorTypeAndShapeInfo, 99);
AT_PLACE(AddSessionConfigEntry, 130);
AT_PLACE(KernelInfoGetAttributeArray_int64, 163);
AT_PLACE(KernelContext_GetGPUComputeStream, 193);
AT_PLACE(KernelInfoGetAttribute_tensor, 236);
AT_PLACE(HasSessionConfigEntry, 237);
AT_PLACE(ShapeInferContext_GetInputTypeShape, 268);
AT_PLACE(ShapeInferContext_SetOutputTypeShape, 270);
AT_PLACE(KernelContext_ParallelFor, 274);
#undef AT_PLACE

typedef struct {
  const OrtApi *(*GetApi)(uint32_t version); /* NULL where the runtime is older */
  const char *(*GetVersionString)(void);
} OrtApiBase;

/* An operator, as of version 18. */
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
  const char *(*GetName)(const OrtCustomOp *op);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
  int (*GetInputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp *op);
  int (*GetOutputType)(const OrtCustomOp *op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
  void (*KernelCompute)(void *kernel, OrtKernelContext *context);
  void (*KernelDestroy)(void *kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                               void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, OrtShapeInferContext *context);
  int (*GetStartVersion)(const OrtCustomOp *op);
  int (*GetEndVersion)(const OrtCustomOp *op);
  size_t (*GetMayInplace)(int **inputs, int **outputs);
  void (*ReleaseMayInplace)(int *inputs, int *outputs);
  size_t (*GetAliasMap)(int **inputs, int **outputs);
  void (*ReleaseAliasMap)(int *inputs, int *outputs);
};

#endif
