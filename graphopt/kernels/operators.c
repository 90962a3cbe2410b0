/* The functions of the update as operators for ONNX Runtime, and their registration.
 *
 * abi.h says why no header of ONNX Runtime is needed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "operator.h"

static const OrtApi *runtime; /* set when the operators are registered */

/* ---- One call of a kernel ------------------------------------------------------------------- */

static const char *input_name(const Operator *operator, size_t index) {
  const size_t tensors = tensor_inputs(operator);
  return index < tensors ? operator->kinds[index / operator->tensors]
                         : operator->scalars[index - tensors];
}

static OrtStatus *wrong(const Operator *operator, size_t index, const char *what) {
  char message[320];
  snprintf(message, sizeof message, "graphopt.%s: input '%s' %s", operator->name,
           input_name(operator, index), what);
  return runtime->CreateStatus(ORT_INVALID_ARGUMENT, message);
}

typedef struct {
  int64_t dims[MAX_DIMS];
  size_t count, size;
} Shape;

static OrtStatus *read_input(const Call *call, const OrtKernelContext *context, size_t index,
                             Shape *shape) {
  const OrtApi *api = call->kernel->api;
  const Operator *operator = call->kernel->operator;
  const OrtValue *value = NULL;
  OrtTensorTypeAndShapeInfo *info;
  OrtStatus *status = api->KernelContext_GetInput(context, index, &value);
  if (status) return status;
  if (!value) return wrong(operator, index, "is missing");
  if ((status = api->GetTensorTypeAndShape(value, &info))) return status;
  status = api->GetTensorShapeElementCount(info, &shape->size);
  if (!status) status = api->GetDimensionsCount(info, &shape->count);
  if (!status && shape->count > MAX_DIMS)
    status = wrong(operator, index, "has more than 32 dimensions");
  if (!status) status = api->GetDimensions(info, shape->dims, shape->count);
  if (!status && call->types && index < tensor_inputs(operator))
    status = api->GetTensorElementType(info, &call->types[index / operator->tensors]);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (status) return status;
  return api->GetTensorMutableData((OrtValue *)value, &call->memory[index]);
}

static OrtStatus *check_size(const Call *call, size_t index, size_t got, size_t expected) {
  const Operator *operator = call->kernel->operator;
  char message[128];
  if (got == expected) return NULL;
  const int n = snprintf(message, sizeof message, "has %zu elements, expected %zu", got, expected);
  if (index < tensor_inputs(operator))
    snprintf(message + n, sizeof message - n, " as '%s' has", operator->kinds[0]);
  else
    snprintf(message + n, sizeof message - n, ", a scalar");
  return wrong(operator, index, message);
}

/* Each new tensor has the shape of the old one. */
static OrtStatus *read_tensor(const Call *call, OrtKernelContext *context, size_t index) {
  const Operator *operator = call->kernel->operator;
  const OrtApi *api = call->kernel->api;
  const size_t n = operator->tensors;
  Shape shape;
  OrtValue *value;
  OrtStatus *status = read_input(call, context, index, &shape);
  if (!status && index < n) call->sizes[index] = shape.size;
  if (!status) status = check_size(call, index, shape.size, call->sizes[index % n]);
  if (status || index / n == GRADIENT) return status;
  const size_t output = output_of(operator, index);
  status = api->KernelContext_GetOutput(context, output, shape.dims, shape.count, &value);
  if (status) return status;
  return api->GetTensorMutableData(value, &call->memory[input_count(operator) + output]);
}

OrtStatus *read_call(const Call *call, OrtKernelContext *context) {
  const Operator *operator = call->kernel->operator;
  OrtStatus *status = NULL;
  Shape shape;
  for (size_t i = 0; !status && i < tensor_inputs(operator); i++)
    status = read_tensor(call, context, i);
  for (size_t i = tensor_inputs(operator); !status && i < input_count(operator); i++) {
    status = read_input(call, context, i, &shape);
    if (!status) status = check_size(call, i, shape.size, 1);
  }
  return status;
}

OrtStatus *wrong_input(const Call *call, size_t kind, const char *what) {
  const Operator *operator = call->kernel->operator;
  return wrong(operator, kind * operator->tensors, what);
}

OrtStatus *read_values(const Call *call, OrtKernelContext *context) {
  OrtStatus *status = NULL;
  Shape shape;
  for (size_t i = 0; !status && i < call->kernel->operator->tensors; i++) {
    status = read_input(call, context, i, &shape);
    if (!status) call->sizes[i] = shape.size;
  }
  return status;
}

OrtStatus *flag_output(const Kernel *kernel, OrtKernelContext *context, bool **flag) {
  OrtValue *value;
  OrtStatus *status = kernel->api->KernelContext_GetOutput(context, 0, NULL, 0, &value);
  return status ? status : kernel->api->GetTensorMutableData(value, (void **)flag);
}

/* ---- Operators ------------------------------------------------------------------------------ */

/* An attribute, which is a tensor where it is a double. */
static OrtStatus *read_attribute(const OrtApi *api, const OrtKernelInfo *info, enum Type type,
                                 const char *name, double *value) {
  float single = 0.0f;
  OrtAllocator *allocator;
  OrtValue *tensor;
  void *data;
  if (type != OF_FLOAT64) {
    OrtStatus *status = api->KernelInfoGetAttribute_float(info, name, &single);
    *value = single;
    return status;
  }
  OrtStatus *status = api->GetAllocatorWithDefaultOptions(&allocator);
  if (!status) status = api->KernelInfoGetAttribute_tensor(info, name, allocator, &tensor);
  if (status) return status;
  status = api->GetTensorMutableData(tensor, &data);
  if (!status) memcpy(value, data, sizeof *value);
  api->ReleaseValue(tensor);
  return status;
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                         void **out) {
  const Operator *operator = (const Operator *)op;
  Kernel *kernel = calloc(1, sizeof *kernel);
  if (!kernel) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  kernel->api = api;
  kernel->operator = operator;
  Attributes *a = &kernel->attributes;
  const struct {
    bool there;
    const char *name;
    double *value;
  } read[] = {
      {operator->kind == UPDATE || operator->kind == AVERAGE, "decay", &a->decay},
      {operator->kind == UPDATE, "epsilon", &a->epsilon},
      {operator->variant.momentum, "momentum", &a->momentum},
      {operator->variant.unscale, "loss_scale", &a->loss_scale},
      {operator->clip_value, "clip_value", &a->clip_value},
  };
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < sizeof read / sizeof *read; i++)
    if (read[i].there)
      status = read_attribute(api, info, operator->type, read[i].name, read[i].value);
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

/* Each output has the shape of its input. One that is not known must not be set: the runtime would
 * take all its unknown dimensions for the same, and share memory between tensors of different
 * sizes. */
static OrtStatus *infer_shapes(const OrtCustomOp *op, OrtShapeInferContext *context) {
  const Operator *operator = (const Operator *)op;
  OrtStatus *status = NULL;
  if (gives_flag(operator)) return NULL;
  for (size_t i = 0; !status && i < tensor_inputs(operator); i++) {
    OrtTensorTypeAndShapeInfo *info;
    bool known = false;
    if (i / operator->tensors == GRADIENT) continue;
    status = runtime->ShapeInferContext_GetInputTypeShape(context, i, &info);
    if (!status) status = is_known(info, &known);
    if (!status && known)
      status = runtime->ShapeInferContext_SetOutputTypeShape(context, output_of(operator, i), info);
  }
  return status;
}

static const char *get_name(const OrtCustomOp *op) { return ((const Operator *)op)->name; }

static bool is_bool(const char *scalar) { return !strcmp(scalar, "on") || !strcmp(scalar, "gate"); }

static size_t get_input_count(const OrtCustomOp *op) { return input_count((const Operator *)op); }

static size_t get_output_count(const OrtCustomOp *op) { return output_count((const Operator *)op); }

static int get_input_type(const OrtCustomOp *op, size_t index) {
  const Operator *operator = (const Operator *)op;
  const bool is_tensor = index < tensor_inputs(operator);
  if (operator->kind == READY) return ORT_ANY;
  if (!is_tensor && is_bool(input_name(operator, index))) return ORT_BOOL;
  if (operator->type == OF_FLOAT64) return ORT_DOUBLE;
  if (operator->type == OF_FLOAT32 || !is_tensor) return ORT_FLOAT;
  const size_t kind = index / operator->tensors;
  return kind == 0 ? ORT_FLOAT16 : kind == GRADIENT ? ORT_ANY : ORT_FLOAT;
}

static int get_output_type(const OrtCustomOp *op, size_t index) {
  const Operator *operator = (const Operator *)op;
  if (gives_flag(operator)) return ORT_BOOL;
  if (operator->type == OF_FLOAT16 && index < operator->tensors) return ORT_FLOAT16;
  return operator->type == OF_FLOAT64 ? ORT_DOUBLE : ORT_FLOAT;
}

static const char *on_cpu(const OrtCustomOp *op) {
  (void)op;
  return "CPUExecutionProvider";
}

static const char *on_cuda(const OrtCustomOp *op) {
  (void)op;
  return "CUDAExecutionProvider";
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

size_t first_in_place(int **inputs, int **outputs) { return in_place(inputs, outputs, 1); }

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

static const char *const type_names[] = {"", "Float64", "Float16"};

static void name_operator(Operator *operator) {
  static const char *const momentum[] = {"", "Momentum", "Nesterov"};
  static const char *const decay[] = {"", "WeightDecay", "DecoupledWeightDecay"};
  const Variant *v = &operator->variant;
  char foreach[32] = "";
  if (operator->foreach) snprintf(foreach, sizeof foreach, FOREACH "%zu", operator->tensors);
  if (operator->kind == READY)
    snprintf(operator->name, sizeof operator->name, READY_NAME "%zu", operator->tensors);
  else if (operator->kind == FINITE)
    snprintf(operator->name, sizeof operator->name, FINITE_NAME "%zu", operator->tensors);
  else if (operator->kind == SUM)
    snprintf(operator->name, sizeof operator->name, SUM_NAME "%s", v->mask ? "Mask" : "");
  else if (operator->kind == AVERAGE)
    snprintf(operator->name, sizeof operator->name, "%s" AVERAGE_NAME, foreach);
  else
    snprintf(operator->name, sizeof operator->name, "%s%s%sRMSProp%s%s%s%s%s%s%s%s", foreach,
             v->chunked ? "Chunked" : "", v->centered ? "Centered" : "", momentum[v->momentum],
             v->epsilon_outside ? "EpsilonOutside" : "", v->rate_outside ? "RateOutside" : "",
             operator->scale ? "Scale" : "", operator->clip_value ? "ClipValue" : "",
             decay[v->weight_decay], v->unscale ? "Unscale" : "", v->mask ? "Mask" : "");
  const size_t length = strlen(operator->name);
  snprintf(operator->name + length, sizeof operator->name - length, "%s",
           type_names[operator->type]);
}

static void name_tensors(Operator *operator) {
  const Variant *v = &operator->variant;
  size_t n = 0;
  if (gives_flag(operator)) {
    operator->kinds[n++] = "value";
  } else if (operator->kind == SUM) {
    operator->kinds[n++] = "x";
    operator->kinds[n++] = "y";
  } else if (operator->kind == AVERAGE) {
    operator->kinds[n++] = "average";
    operator->kinds[n++] = "value";
  } else {
    operator->kinds[n++] = "w";
    operator->kinds[n++] = "g";
    operator->kinds[n++] = "s";
    if (v->centered) operator->kinds[n++] = "a";
    if (v->momentum) operator->kinds[n++] = "m";
  }
  operator->kind_count = n;
}

static void name_scalars(Operator *operator) {
  const Variant *v = &operator->variant;
  size_t n = 0;
  if (operator->foreach && !gives_flag(operator)) operator->scalars[n++] = "gate";
  if (operator->kind == UPDATE) {
    operator->scalars[n++] = "lr";
    if (operator->scale) operator->scalars[n++] = "f";
    if (v->weight_decay) operator->scalars[n++] = "k";
    if (v->mask) operator->scalars[n++] = "on";
  } else if (operator->kind == SUM) {
    operator->scalars[n++] = "a";
    operator->scalars[n++] = "b";
    if (v->mask) operator->scalars[n++] = "on";
  }
  operator->scalar_count = n;
}

static Compute compute_of(const Operator *operator, bool cuda) {
  static const Computes on_cuda = {
      [UPDATE] = compute_on_cuda, [AVERAGE] = compute_on_cuda, [SUM] = compute_on_cuda,
      [READY] = ready_on_cuda,    [FINITE] = finite_on_cuda,
  };
  if (cuda) return on_cuda[operator->kind];
  return (operator->type == OF_FLOAT64 ? float64_on_cpu : float32_on_cpu)[operator->kind];
}

/* What operators have in common. */
static void complete(OrtCustomOp *op, bool cuda) {
  op->version = ORT_API_VERSION;
  op->GetName = get_name;
  op->GetExecutionProviderType = cuda ? on_cuda : on_cpu;
  op->KernelDestroy = free;
  op->GetInputCharacteristic = op->GetOutputCharacteristic = op->GetInputMemoryType = zero;
  op->GetVariadicInputMinArity = op->GetVariadicInputHomogeneity = one;
  op->GetVariadicOutputMinArity = op->GetVariadicOutputHomogeneity = one;
  op->GetStartVersion = one;
  op->GetEndVersion = last_version;
  if (!op->GetMayInplace) op->GetMayInplace = no_alias;
  op->GetAliasMap = no_alias;
  op->ReleaseMayInplace = op->ReleaseAliasMap = release_in_place;
}

/* What it is of is set. Tensors are 0 where its name does not say how many there are: it has
 * one. */
static void make_operator(Operator *operator, size_t tensors, bool cuda) {
  static size_t (*const may_inplace[])(int **, int **) = {first_in_place, two_in_place,
                                                          three_in_place, four_in_place};
  operator->foreach = tensors > 0;
  operator->tensors = tensors ? tensors : 1;
  name_operator(operator);
  name_tensors(operator);
  name_scalars(operator);
  operator->op = (OrtCustomOp){
      .GetInputType = get_input_type,
      .GetInputTypeCount = get_input_count,
      .GetOutputType = get_output_type,
      .GetOutputTypeCount = get_output_count,
      .CreateKernelV2 = create,
      .KernelComputeV2 = compute_of(operator, cuda),
      .InferOutputShapeFn = infer_shapes,
      /* The runtime asks without saying for which operator. */
      .GetMayInplace = tensors ? no_alias : may_inplace[output_count(operator) - 1],
  };
  complete(&operator->op, cuda);
}

/* The flags of a variant are the digits of its index; false where the digits are no variant. */
static bool variant_of(int digits, Operator *operator) {
  Variant *v = &operator->variant;
  *v = (Variant){.momentum = digits % 3, .weight_decay = digits / 3 % 3};
  digits /= 9;
  v->centered = digits & 1;
  v->epsilon_outside = digits >> 1 & 1;
  v->rate_outside = digits >> 2 & 1;
  v->unscale = digits >> 3 & 1;
  v->mask = digits >> 4 & 1;
  v->chunked = digits >> 5 & 1;
  operator->scale = digits >> 6 & 1;
  operator->clip_value = digits >> 7 & 1;
  /* What comes first has taken the loss scale out. */
  const bool unscaled = operator->scale || operator->clip_value;
  return (v->momentum || !v->rate_outside) && !(v->unscale && unscaled);
}

/* The operators of an execution provider. The domain lives as long as the process, and all options
 * share it, so that one who has it already gets what is added later. */
typedef struct {
  const char *key; /* what is left in the options */
  Operator *first;
  OrtCustomOpDomain *domain;
} Provider;

static Provider providers[] = {{.key = "graphopt.kernels"}, {.key = "graphopt.kernels.cuda"}};

static void list(Operator *operator, bool cuda) {
  operator->next = providers[cuda].first;
  providers[cuda].first = operator;
}

static void add_operator(Operator *operator, size_t tensors, bool cuda) {
  make_operator(operator, tensors, cuda);
  list(operator, cuda);
}

static Operator *add_layer(const char *name) {
  Operator *operator = make_layer(name);
  if (!operator) return NULL;
  complete(&operator->op, false);
  list(operator, false);
  return operator;
}

__attribute__((constructor)) static void make_operators(void) {
  /* On the CPU, the half that does not unscale may do two more things first. */
  static Operator operators[VARIANTS / 2 * 5 + VARIANTS + 2];
  size_t count = 0;
  for (int digits = (9 << 8) - 1; digits >= 0; digits--) {
    Operator of = {.kind = UPDATE};
    if (!variant_of(digits, &of)) continue;
    operators[count] = of;
    add_operator(&operators[count++], 0, false);
    if (of.scale || of.clip_value) continue;
    operators[count] = of;
    add_operator(&operators[count++], 0, true);
  }
  for (int mask = 0; mask < 2; mask++) {
    operators[count] = (Operator){.kind = SUM, .variant = {.mask = mask}};
    add_operator(&operators[count++], 0, false);
  }
  for (size_t i = 0; layer_name(i); i++) add_layer(layer_name(i));
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static Operator *find(const char *name, bool cuda) {
  Operator *operator = providers[cuda].first;
  while (operator && strcmp(operator->name, name)) operator = operator->next;
  return operator;
}

/* The number after the beginning of a name, and what follows it; 0 for another name. */
static size_t number_after(const char *beginning, const char *name, char **rest) {
  const size_t length = strlen(beginning);
  return strncmp(name, beginning, length) ? 0 : strtoul(name + length, rest, 10);
}

/* The type that a name ends with, which is cut off; float32 for none. */
static enum Type cut_type(char *name) {
  for (enum Type type = OF_FLOAT64; type <= OF_FLOAT16; type++) {
    const size_t length = strlen(name), end = strlen(type_names[type]);
    if (length <= end || strcmp(name + length - end, type_names[type])) continue;
    name[length - end] = 0;
    return type;
  }
  return OF_FLOAT32;
}

/* The operator of another type than float32, for one tensor of each kind. */
static Operator *make_typed(const char *of_float32, enum Type type, bool cuda) {
  const Operator *known = cuda ? NULL : find(of_float32, false);
  if (!known || known->foreach || known->kind == LAYER) return NULL;
  if (type == OF_FLOAT16 && known->kind != UPDATE) return NULL;
  Operator *operator = calloc(1, sizeof *operator);
  if (!operator) return NULL;
  operator->kind = known->kind;
  operator->variant = known->variant;
  operator->scale = known->scale;
  operator->clip_value = known->clip_value;
  operator->type = type;
  add_operator(operator, 0, cuda);
  return operator;
}

/* The operator whose name says for how many tensors it is, or of which type. */
static Operator *make_named(const char *full_name, bool cuda) {
  char name[sizeof ((Operator *)0)->name];
  if (strlen(full_name) >= sizeof name) return NULL;
  strcpy(name, full_name);
  Operator *layer = cuda ? NULL : add_layer(name);
  if (layer) return layer;
  const enum Type type = cut_type(name);
  Operator *typed = type == OF_FLOAT32 ? NULL : make_typed(name, type, cuda);
  if (typed || type == OF_FLOAT16 || (type == OF_FLOAT64 && cuda)) return typed;
  static const struct {
    const char *name;
    enum Kind kind;
  } flags[] = {{READY_NAME, READY}, {FINITE_NAME, FINITE}};
  Operator of = {0};
  char *rest = NULL;
  size_t tensors = number_after(FOREACH, name, &rest);
  if (tensors > MAX_FOREACH) return NULL;
  if (tensors && !strcmp(rest, AVERAGE_NAME)) {
    of.kind = AVERAGE;
  } else if (tensors) {
    const Operator *of_row = find(rest, cuda);
    if (!of_row || of_row->kind != UPDATE) return NULL;
    of.kind = UPDATE;
    of.variant = of_row->variant;
    of.scale = of_row->scale;
    of.clip_value = of_row->clip_value;
  }
  for (size_t i = 0; !tensors && i < sizeof flags / sizeof *flags; i++) {
    of.kind = flags[i].kind;
    tensors = number_after(flags[i].name, name, &rest);
  }
  if (!tensors || (gives_flag(&of) && *rest) || (of.kind == FINITE && cuda)) return NULL;
  of.type = type;
  Operator *operator = malloc(sizeof *operator);
  if (!operator) return NULL;
  *operator = of;
  add_operator(operator, tensors, cuda);
  return operator;
}

static OrtStatus *add_operators(const OrtApi *api, const Provider *provider) {
  bool all = true;
  for (Operator *o = provider->first; o; o = o->next) all &= !o->wanted;
  for (Operator *o = provider->first; o; o = o->next) {
    if (o->added || !(all || o->wanted)) continue;
    OrtStatus *status = api->CustomOpDomain_Add(provider->domain, &o->op);
    if (status) return status;
    o->added = true;
  }
  return NULL;
}

static OrtStatus *prepare_domain(const OrtApi *api, Provider *provider) {
  if (runtime && runtime != api)
    return api->CreateStatus(ORT_NOT_IMPLEMENTED,
                             "graphopt: another ONNX Runtime of this process has the kernels");
  runtime = api;
  OrtStatus *status =
      provider->domain ? NULL : api->CreateCustomOpDomain("graphopt", &provider->domain);
  return status ? status : add_operators(api, provider);
}

/* With the entry "graphopt.cuda", the kernels are those for CUDA. */
static OrtStatus *register_kernels(const OrtApi *api, OrtSessionOptions *options) {
  int cuda = 0, has = 0, has_others = 0;
  OrtStatus *status = api->HasSessionConfigEntry(options, "graphopt.cuda", &cuda);
  Provider *provider = &providers[cuda];
  if (!status) status = prepare_domain(api, provider);
  if (!status) status = api->HasSessionConfigEntry(options, provider->key, &has);
  if (!status) status = api->HasSessionConfigEntry(options, providers[!cuda].key, &has_others);
  if (!status && has_others)
    status = api->CreateStatus(ORT_NOT_IMPLEMENTED,
                               "graphopt: the options have the kernels of another provider");
  if (status || has) return status; /* a session refuses a domain that its options have twice */
  status = api->AddCustomOpDomain(options, provider->domain);
  if (!status) status = api->AddSessionConfigEntry(options, provider->key, "1");
  return status;
}

/* The name of a kernel for one tensor of each kind by index, NULL after the last. */
EXPORT const char *graphopt_kernel_name(size_t index) {
  const Operator *operator = providers[0].first;
  while (operator && (operator->foreach || index--)) operator = operator->next;
  return operator ? operator->name : NULL;
}

/* Says that the next registration for the provider shall have this kernel; if nobody says so, it
 * has all those for one tensor of each kind. Whenever ONNX Runtime creates a session, it takes a
 * tenth of a millisecond for each. Returns whether there is such a kernel. */
EXPORT int graphopt_want_kernel(const char *name, int cuda) {
  pthread_mutex_lock(&mutex);
  Operator *operator = find(name, cuda);
  if (!operator) operator = make_named(name, cuda);
  if (operator) operator->wanted = true;
  pthread_mutex_unlock(&mutex);
  return operator != NULL;
}

/* What ONNX Runtime calls when the library is registered with options of sessions. */
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
