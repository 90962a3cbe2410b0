/* An operator for ONNX Runtime, and what the execution providers' files compute for it.
 */
#ifndef GRAPHOPT_OPERATOR_H
#define GRAPHOPT_OPERATOR_H

#include "abi.h"
#include "update.h"

/* Parts of names: the first begins that of an operator for several tensors of each kind. */
#define FOREACH "Foreach"
#define AVERAGE_NAME "MovingAverage"
#define SUM_NAME "WeightedSum"
#define READY_NAME "Ready"
#define FINITE_NAME "AllFinite"

/* Element i of an output depends on the elements i of the inputs alone, also where it is their
 * memory; the compiler cannot know. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* The loops of a file: those for AVX2, or what a condition asks for, where the processor has it. */
#if defined(__x86_64__)
#define CHOOSE_LOOPS(Type, name, condition)                           \
  static const Type *loops = &name##_baseline;                        \
  __attribute__((constructor)) static void choose_loops(void) {       \
    __builtin_cpu_init();                                             \
    if (condition) loops = &name##_avx2;                              \
  }
#else
#define CHOOSE_LOOPS(Type, name, condition) static const Type *loops = &name##_baseline;
#endif

enum Kind {
  UPDATE,  /* a function of graphopt.update.core */
  AVERAGE, /* moving averages, each of its value */
  SUM,     /* a x + b y, with a mask where the variant has one */
  READY,   /* true, once all its inputs are there */
  FINITE,  /* whether no element of any input is infinite or NaN */
  KINDS,   /* which read tensors of one size, and scalars */
  LAYER,
};

/* Of what type the tensors are; what is computed is float32 but for that of float64. */
enum Type {
  OF_FLOAT32,
  OF_FLOAT64,
  OF_FLOAT16, /* the parameters, and maybe the gradients; states are float32 */
};

enum {
  MAX_DIMS = 32,
  MAX_FOREACH = 1024, /* tensors of each kind */
  MAX_KINDS = 5,   /* w, g, s, a, m */
  MAX_SCALARS = 5, /* gate, lr, f, k, on; or a, b, on */
};

/* A function of the update as an operator. Its inputs are all w, then all g and so on, a tensor for
 * each parameter, then the scalars; its outputs all w1, then all s1 and so on. */
typedef struct Operator {
  OrtCustomOp op; /* first: the runtime passes a pointer to it */
  enum Kind kind;
  enum Type type;
  Variant variant; /* of an update */
  bool scale, clip_value; /* what it does with gradients first */
  char name[128];
  const char *kinds[MAX_KINDS], *scalars[MAX_SCALARS];
  bool foreach;   /* whether the name says for how many tensors of each kind it is */
  size_t tensors; /* of each kind */
  size_t kind_count, scalar_count;
  bool wanted, added; /* to the domain */
  struct Operator *next;
} Operator;

/* Whether the output is a bool scalar, and the inputs are values alone. */
static inline bool gives_flag(const Operator *o) { return o->kind == READY || o->kind == FINITE; }

static inline size_t tensor_inputs(const Operator *o) { return o->kind_count * o->tensors; }

static inline size_t input_count(const Operator *o) { return tensor_inputs(o) + o->scalar_count; }

enum { GRADIENT = 1 }; /* the place of the kind of input that has no output */

/* The output that is the new value of an input. */
static inline size_t output_of(const Operator *o, size_t input) {
  return input < o->tensors ? input : input - o->tensors;
}

static inline size_t output_count(const Operator *o) {
  return gives_flag(o) ? 1 : (o->kind_count - 1) * o->tensors;
}

/* Those of a node; float holds what it had of a float. */
typedef struct {
  double decay, epsilon, momentum, loss_scale, clip_value;
} Attributes;

/* Those of them that the arithmetic takes; the inputs are 0. */
static inline Scalars scalars_of(const Attributes *a) {
  const Scalars scalars = {.decay = (Real)a->decay,
                           .epsilon = (Real)a->epsilon,
                           .momentum = (Real)a->momentum,
                           .loss_scale = (Real)a->loss_scale};
  return scalars;
}

/* An operator in a session. */
typedef struct {
  const OrtApi *api;
  const Operator *operator;
  Attributes attributes;
} Kernel;

/* One call: the memory of the inputs, then that of the outputs, the size of each parameter, and
 * where that is asked for the type of the last tensor of each kind. */
typedef struct {
  const Kernel *kernel;
  void **memory;
  size_t *sizes;
  int *types;
} Call;

/* Reads the memory and the sizes of the inputs of a `FINITE`. */
OrtStatus *read_values(const Call *call, OrtKernelContext *context);

OrtStatus *read_call(const Call *call, OrtKernelContext *context);

/* An error that names an input: the first of a kind. */
OrtStatus *wrong_input(const Call *call, size_t kind, const char *what);

/* The memory of the output that is a flag. */
OrtStatus *flag_output(const Kernel *kernel, OrtKernelContext *context, bool **flag);

/* The memory of the scalar inputs of an update; NULL for one that it has not. */
typedef struct {
  const Real *rate, *factor, *weight_decay;
  const bool *on;
} ScalarInputs;

static inline ScalarInputs scalar_inputs(const Call *call) {
  const Operator *operator = call->kernel->operator;
  const Variant *v = &operator->variant;
  const bool decays = v->weight_decay != NO_WEIGHT_DECAY;
  void **next = call->memory + input_count(operator) - 1 - operator->scale - decays - v->mask;
  ScalarInputs found = {.rate = *next++};
  if (operator->scale) found.factor = *next++;
  if (decays) found.weight_decay = *next++;
  if (v->mask) found.on = *next;
  return found;
}

/* The same of a sum. */
typedef struct {
  const Real *a, *b;
  const bool *on;
} Weights;

static inline Weights weights(const Call *call) {
  const Operator *operator = call->kernel->operator;
  void **next = call->memory + tensor_inputs(operator);
  Weights found = {.a = next[0], .b = next[1]};
  if (operator->variant.mask) found.on = next[2];
  return found;
}

/* What is called from outside. */
EXPORT const char *graphopt_kernel_name(size_t index);
EXPORT int graphopt_want_kernel(const char *name, int cuda);
EXPORT int graphopt_has_cuda(void);
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

/* The first output may take the memory of the first input. */
size_t first_in_place(int **inputs, int **outputs);

/* Do all parts of some work, which threads share where there are several. */
static inline OrtStatus *do_parts(const OrtApi *api, OrtKernelContext *context,
                                  void (*work)(void *data, size_t part), size_t parts,
                                  void *data) {
  if (parts > 1) return api->KernelContext_ParallelFor(context, work, parts, parts, data);
  if (parts) work(data, 0);
  return NULL;
}

/* What computes a call, by its kind. */
typedef OrtStatus *(*Compute)(void *kernel, OrtKernelContext *context);
typedef Compute Computes[KINDS];

/* cpu.c, cpu_float64.c */
extern const Computes float32_on_cpu, float64_on_cpu;

/* layer.c: the names of what layers compute; NULL behind the last. */
const char *layer_name(size_t index);

/* An operator without what all have in common; NULL where the name, without a number behind it, is
 * not among these. */
Operator *make_layer(const char *name);

/* cuda.c */
OrtStatus *compute_on_cuda(void *kernel, OrtKernelContext *context);
OrtStatus *ready_on_cuda(void *kernel, OrtKernelContext *context);
OrtStatus *finite_on_cuda(void *kernel, OrtKernelContext *context);

#endif
