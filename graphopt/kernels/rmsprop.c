/* The update of a bucket as kernels of ONNX Runtime for the CPU: one pass over the memory instead
 * of one for each operator of the ONNX function of the same name, which runs where these do not.
 *
 * abi.h says why no header of ONNX Runtime is needed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "update.h"

#define EXPORT __attribute__((visibility("default")))

/* ---- Loops ---------------------------------------------------------------------------------- */

typedef struct {
  void (*update)(const Variant *, const Tensors *, const Scalars *, size_t n);
  void (*prepare_gradient)(const Variant *, const Tensors *, const Scalars *, float *, size_t n);
  void (*decay_parameter)(const Tensors *, const Scalars *, float *, size_t n);
} Loops;

#define LOOPS(name) name##_baseline
#define TARGET
#include "loops.h"

#if defined(__x86_64__)
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#include "loops.h"
#endif

static const Loops *loops = &loops_baseline;

static void choose_loops(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) loops = &loops_avx2;
#endif
}

/* ---- One call of a kernel ------------------------------------------------------------------- */

enum {
  BLOCK = 1024,      /* elements that are prepared and then updated, in the first-level cache */
  PART = 32 * 1024,  /* elements that a thread takes at once; with fewer there is one thread */
  MAX_DIMS = 32,
  MAX_INPUTS = 8,
};

typedef struct {
  const Variant *variant;
  Tensors tensors;
  Scalars scalars;
  size_t size;
} Call;

static Tensors at(const Tensors *t, size_t i) {
  Tensors moved = {t->w + i, t->g + i, t->s + i, NULL, NULL, t->w1 + i, t->s1 + i, NULL, NULL};
  if (t->a) moved.a = t->a + i, moved.a1 = t->a1 + i;
  if (t->m) moved.m = t->m + i, moved.m1 = t->m1 + i;
  return moved;
}

static void update_range(const Call *call, size_t begin, size_t end) {
  const Variant *v = call->variant;
  float gradient[BLOCK], parameter[BLOCK];
  for (size_t i = begin; i < end; i += BLOCK) {
    const size_t n = end - i < BLOCK ? end - i : BLOCK;
    Tensors t = at(&call->tensors, i);
    if (v->unscale || v->weight_decay == WEIGHT_DECAY) {
      loops->prepare_gradient(v, &t, &call->scalars, gradient, n);
      t.g = gradient;
    }
    if (v->weight_decay == DECOUPLED_WEIGHT_DECAY) {
      loops->decay_parameter(&t, &call->scalars, parameter, n);
      t.w = parameter;
    }
    loops->update(v, &t, &call->scalars, n);
  }
}

static void update_part(void *data, size_t index) {
  const Call *call = data;
  const size_t begin = index * PART, left = call->size - begin;
  update_range(call, begin, begin + (left < PART ? left : PART));
}

static OrtStatus *update_all(const OrtApi *api, OrtKernelContext *context, Call *call) {
  if (call->size < PART) {
    update_range(call, 0, call->size);
    return NULL;
  }
  const size_t parts = (call->size + PART - 1) / PART;
  return api->KernelContext_ParallelFor(context, update_part, parts, parts, call);
}

static void keep(const float *old, float *new, size_t n) {
  if (n && new != old) memcpy(new, old, n * sizeof *old);
}

static void keep_all(const Tensors *t, size_t n) {
  keep(t->w, t->w1, n);
  keep(t->s, t->s1, n);
  if (t->a) keep(t->a, t->a1, n);
  if (t->m) keep(t->m, t->m1, n);
}

/* ---- Operators ------------------------------------------------------------------------------ */

typedef struct {
  OrtCustomOp op; /* first: the runtime passes a pointer to it */
  Variant variant;
  char name[96];
  const char *inputs[MAX_INPUTS]; /* w, g, the states, then the scalars */
  size_t input_count, tensor_count;
  bool wanted, added; /* to the domain */
} Operator;

typedef struct {
  const OrtApi *api;
  const Operator *operator;
  Scalars attributes;
} Kernel;

static const OrtApi *runtime; /* set when the operators are registered */

static size_t output_count(const Operator *operator) { return operator->tensor_count - 1; }

/* One of the memory of an input, and how many elements it must have. */
static OrtStatus *read_input(const Kernel *kernel, const OrtKernelContext *context, size_t index,
                             size_t expected, void **data) {
  const OrtApi *api = kernel->api;
  const Operator *operator = kernel->operator;
  const char *name = operator->inputs[index];
  const OrtValue *value = NULL;
  OrtTensorTypeAndShapeInfo *info;
  size_t size;
  char message[256];
  OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
  if (status) return status;
  if (!value) {
    snprintf(message, sizeof message, "graphopt.%s: input '%s' is missing", operator->name, name);
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message);
  }
  if ((status = api->GetTensorTypeAndShape(value, &info))) return status;
  status = api->GetTensorShapeElementCount(info, &size);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  if (size != expected) {
    snprintf(message, sizeof message, "graphopt.%s: input '%s' has %zu elements, expected %zu%s",
             operator->name, name, size, expected,
             index < operator->tensor_count ? " as 'w' has" : ", a scalar");
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message);
  }
  return api->GetTensorMutableData((OrtValue *)value, data);
}

static OrtStatus *read_shape(const Kernel *kernel, const OrtKernelContext *context, int64_t *dims,
                             size_t *count, size_t *size) {
  const OrtApi *api = kernel->api;
  const OrtValue *value = NULL;
  OrtTensorTypeAndShapeInfo *info;
  OrtStatus *status = api->KernelContext_GetInput(context, 0, &value);
  if (status) return status;
  if (!value) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: input 'w' is missing");
  if ((status = api->GetTensorTypeAndShape(value, &info))) return status;
  status = api->GetTensorShapeElementCount(info, size);
  if (!status) status = api->GetDimensionsCount(info, count);
  if (!status && *count > MAX_DIMS)
    status = api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: 'w' has more than 32 dimensions");
  if (!status) status = api->GetDimensions(info, dims, *count);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

static OrtStatus *compute(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const Operator *operator = kernel->operator;
  const Variant *v = &operator->variant;
  const OrtApi *api = kernel->api;
  int64_t dims[MAX_DIMS];
  size_t dim_count, size;
  void *in[MAX_INPUTS], *out[MAX_INPUTS];
  OrtStatus *status = read_shape(kernel, context, dims, &dim_count, &size);
  for (size_t i = 0; !status && i < operator->input_count; i++)
    status = read_input(kernel, context, i, i < operator->tensor_count ? size : 1, &in[i]);
  for (size_t i = 0; !status && i < output_count(operator); i++) {
    OrtValue *value;
    status = api->KernelContext_GetOutput(context, i, dims, dim_count, &value);
    if (!status) status = api->GetTensorMutableData(value, &out[i]);
  }
  if (status) return status;

  Call call = {v, {.w = in[0], .g = in[1], .s = in[2], .w1 = out[0], .s1 = out[1]},
               kernel->attributes, size};
  size_t next = 3;
  if (v->centered) call.tensors.a = in[next], call.tensors.a1 = out[next - 1], next++;
  if (v->momentum) call.tensors.m = in[next], call.tensors.m1 = out[next - 1], next++;
  call.scalars.rate = *(const float *)in[next++];
  if (v->weight_decay) call.scalars.weight_decay = *(const float *)in[next++];
  if (v->mask && !*(const bool *)in[next]) {
    keep_all(&call.tensors, size);
    return NULL;
  }
  return update_all(api, context, &call);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **out) {
  const Operator *operator = (const Operator *)op;
  Kernel *kernel = calloc(1, sizeof *kernel);
  if (!kernel) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  kernel->api = api;
  kernel->operator = operator;
  Scalars *a = &kernel->attributes;
  OrtStatus *status = api->KernelInfoGetAttribute_float(info, "decay", &a->decay);
  if (!status) status = api->KernelInfoGetAttribute_float(info, "epsilon", &a->epsilon);
  if (!status && operator->variant.momentum)
    status = api->KernelInfoGetAttribute_float(info, "momentum", &a->momentum);
  if (!status && operator->variant.unscale)
    status = api->KernelInfoGetAttribute_float(info, "loss_scale", &a->loss_scale);
  if (status)
    free(kernel);
  else
    *out = kernel;
  return status;
}

/* Whether each dimension is a number or has a name. The runtime shows an unknown shape as that of
 * a scalar. */
static OrtStatus *is_known(const OrtTensorTypeAndShapeInfo *info, bool *known) {
  int64_t dims[MAX_DIMS];
  const char *names[MAX_DIMS];
  size_t count;
  *known = false;
  OrtStatus *status = runtime->GetDimensionsCount(info, &count);
  if (status || !count || count > MAX_DIMS) return status;
  status = runtime->GetDimensions(info, dims, count);
  if (!status) status = runtime->GetSymbolicDimensions(info, names, count);
  if (status) return status;
  *known = true;
  for (size_t i = 0; i < count; i++) *known &= dims[i] >= 0 || names[i][0];
  return NULL;
}

/* Outputs have the shape of w. One that is not known must not be set: the runtime would take all
 * its unknown dimensions for the same, and share memory between tensors of different sizes. */
static OrtStatus *infer_shapes(const OrtCustomOp *op, OrtShapeInferContext *context) {
  OrtTensorTypeAndShapeInfo *info;
  bool known = false;
  OrtStatus *status = runtime->ShapeInferContext_GetInputTypeShape(context, 0, &info);
  if (!status) status = is_known(info, &known);
  if (status || !known) return status;
  for (size_t i = 0; !status && i < output_count((const Operator *)op); i++)
    status = runtime->ShapeInferContext_SetOutputTypeShape(context, i, info);
  return status;
}

static const char *get_name(const OrtCustomOp *op) { return ((const Operator *)op)->name; }

static size_t get_input_count(const OrtCustomOp *op) { return ((const Operator *)op)->input_count; }

static size_t get_output_count(const OrtCustomOp *op) { return output_count((const Operator *)op); }

static int get_input_type(const OrtCustomOp *op, size_t index) {
  return strcmp(((const Operator *)op)->inputs[index], "on") ? ORT_FLOAT : ORT_BOOL;
}

static int get_output_type(const OrtCustomOp *op, size_t index) {
  (void)op, (void)index;
  return ORT_FLOAT;
}

static const char *any_provider(const OrtCustomOp *op) {
  (void)op;
  return NULL; /* the CPU */
}

/* Also: a required input or output, and memory of the execution provider. */
static int zero(const OrtCustomOp *op, size_t index) {
  (void)op, (void)index;
  return 0;
}

static int one(const OrtCustomOp *op) {
  (void)op;
  return 1;
}

static int last_version(const OrtCustomOp *op) {
  (void)op;
  return INT32_MAX;
}

/* Each output may take the memory of its own input: w1 of w, s1 of s, and so on. */
static size_t in_place(int **inputs, int **outputs, int count) {
  *inputs = malloc(2 * (size_t)count * sizeof(int));
  if (!*inputs) return 0;
  *outputs = *inputs + count;
  for (int i = 0; i < count; i++) {
    (*inputs)[i] = i ? i + 1 : 0;
    (*outputs)[i] = i;
  }
  return (size_t)count;
}

static size_t two_in_place(int **inputs, int **outputs) { return in_place(inputs, outputs, 2); }

static size_t three_in_place(int **inputs, int **outputs) { return in_place(inputs, outputs, 3); }

static size_t four_in_place(int **inputs, int **outputs) { return in_place(inputs, outputs, 4); }

static void release_in_place(int *inputs, int *outputs) {
  (void)outputs;
  free(inputs);
}

static size_t no_alias(int **inputs, int **outputs) {
  *inputs = *outputs = NULL;
  return 0;
}

/* ---- Registration --------------------------------------------------------------------------- */

static Operator operators[VARIANTS];

static void name_operator(Operator *operator) {
  static const char *const momentum[] = {"", "Momentum", "Nesterov"};
  static const char *const decay[] = {"", "WeightDecay", "DecoupledWeightDecay"};
  const Variant *v = &operator->variant;
  snprintf(operator->name, sizeof operator->name, "%s%sRMSProp%s%s%s%s%s%s",
           v->chunked ? "Chunked" : "", v->centered ? "Centered" : "", momentum[v->momentum],
           v->epsilon_outside ? "EpsilonOutside" : "", v->rate_outside ? "RateOutside" : "",
           decay[v->weight_decay], v->unscale ? "Unscale" : "", v->mask ? "Mask" : "");
}

static void name_inputs(Operator *operator) {
  const Variant *v = &operator->variant;
  size_t n = 0;
  operator->inputs[n++] = "w";
  operator->inputs[n++] = "g";
  operator->inputs[n++] = "s";
  if (v->centered) operator->inputs[n++] = "a";
  if (v->momentum) operator->inputs[n++] = "m";
  operator->tensor_count = n;
  operator->inputs[n++] = "lr";
  if (v->weight_decay) operator->inputs[n++] = "k";
  if (v->mask) operator->inputs[n++] = "on";
  operator->input_count = n;
}

static void make_operator(Operator *operator, Variant variant) {
  static size_t (*const may_inplace[])(int **, int **) = {two_in_place, three_in_place,
                                                          four_in_place};
  operator->variant = variant;
  name_operator(operator);
  name_inputs(operator);
  operator->op = (OrtCustomOp){
      .version = ORT_API_VERSION,
      .GetName = get_name,
      .GetExecutionProviderType = any_provider,
      .GetInputType = get_input_type,
      .GetInputTypeCount = get_input_count,
      .GetOutputType = get_output_type,
      .GetOutputTypeCount = get_output_count,
      .KernelDestroy = free,
      .GetInputCharacteristic = zero,
      .GetOutputCharacteristic = zero,
      .GetInputMemoryType = zero,
      .GetVariadicInputMinArity = one,
      .GetVariadicInputHomogeneity = one,
      .GetVariadicOutputMinArity = one,
      .GetVariadicOutputHomogeneity = one,
      .CreateKernelV2 = create,
      .KernelComputeV2 = compute,
      .InferOutputShapeFn = infer_shapes,
      .GetStartVersion = one,
      .GetEndVersion = last_version,
      .GetMayInplace = may_inplace[output_count(operator) - 2],
      .ReleaseMayInplace = release_in_place,
      .GetAliasMap = no_alias,
      .ReleaseAliasMap = release_in_place,
  };
}

/* The flags of a variant are the digits of its index; false where the digits are no variant. */
static bool variant_of(int digits, Variant *v) {
  *v = (Variant){.momentum = digits % 3, .weight_decay = digits / 3 % 3};
  digits /= 9;
  v->centered = digits & 1;
  v->epsilon_outside = digits >> 1 & 1;
  v->rate_outside = digits >> 2 & 1;
  v->unscale = digits >> 3 & 1;
  v->mask = digits >> 4 & 1;
  v->chunked = digits >> 5 & 1;
  return v->momentum || !v->rate_outside;
}

__attribute__((constructor)) static void make_operators(void) {
  choose_loops();
  size_t count = 0;
  Variant variant;
  for (int digits = 0; digits < 9 << 6; digits++)
    if (variant_of(digits, &variant)) make_operator(&operators[count++], variant);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static OrtStatus *add_operators(const OrtApi *api, OrtCustomOpDomain *domain) {
  bool all = true;
  for (size_t i = 0; i < VARIANTS; i++) all &= !operators[i].wanted;
  for (size_t i = 0; i < VARIANTS; i++) {
    Operator *operator = &operators[i];
    if (operator->added || !(all || operator->wanted)) continue;
    OrtStatus *status = api->CustomOpDomain_Add(domain, &operator->op);
    if (status) return status;
    operator->added = true;
  }
  return NULL;
}

/* The domain with the operators that are wanted. It lives as long as the process, and all options
 * share it, so that one who has it already gets what is added later. */
static OrtStatus *get_domain(const OrtApi *api, OrtCustomOpDomain **domain) {
  static OrtCustomOpDomain *made;
  if (runtime && runtime != api)
    return api->CreateStatus(ORT_NOT_IMPLEMENTED,
                             "graphopt: another ONNX Runtime of this process has the kernels");
  runtime = api;
  OrtStatus *status = made ? NULL : api->CreateCustomOpDomain("graphopt", &made);
  if (!status) status = add_operators(api, made);
  *domain = made;
  return status;
}

static OrtStatus *register_kernels(const OrtApi *api, OrtSessionOptions *options) {
  static const char key[] = "graphopt.kernels";
  OrtCustomOpDomain *domain = NULL;
  int has = 0;
  OrtStatus *status = get_domain(api, &domain);
  if (!status) status = api->HasSessionConfigEntry(options, key, &has);
  if (status || has) return status; /* a session refuses a domain that its options have twice */
  status = api->AddCustomOpDomain(options, domain);
  if (!status) status = api->AddSessionConfigEntry(options, key, "1");
  return status;
}

/* The name of a kernel by index, NULL after the last. */
EXPORT const char *graphopt_kernel_name(size_t index);
EXPORT const char *graphopt_kernel_name(size_t index) {
  return index < VARIANTS ? operators[index].name : NULL;
}

/* Says that the next registration shall have this kernel; if nobody says so, it has them all.
 * Whenever ONNX Runtime creates a session, it takes a tenth of a millisecond for each. */
EXPORT void graphopt_want_kernel(const char *name);
EXPORT void graphopt_want_kernel(const char *name) {
  pthread_mutex_lock(&mutex);
  for (size_t i = 0; i < VARIANTS; i++)
    if (!strcmp(operators[i].name, name)) operators[i].wanted = true;
  pthread_mutex_unlock(&mutex);
}

/* What ONNX Runtime calls when the library is registered with options of sessions. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(ORT_API_VERSION);
  if (!api)
    return base->GetApi(1)->CreateStatus(
        ORT_NOT_IMPLEMENTED, "graphopt: the kernels need ONNX Runtime 1.18 or newer");
  pthread_mutex_lock(&mutex);
  OrtStatus *status = register_kernels(api, options);
  pthread_mutex_unlock(&mutex);
  return status;
}
