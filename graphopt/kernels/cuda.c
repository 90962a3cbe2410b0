/* The update on CUDA: launches of the kernel in update.cu, on the stream of ONNX Runtime.
 *
 * Nothing of CUDA is needed to build or to load this. The driver is opened when it is first needed,
 * and compiles the device code, which is text, for the GPU that it finds.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "device_code.h"
#include "launch.h"
#include "operator.h"

_Static_assert(sizeof(Launch) <= 4096, "older drivers pass no more to a kernel");

/* ---- The driver ----------------------------------------------------------------------------- */

typedef int Result; /* 0 is success */
typedef void *Context, *Module, *Function;

static struct {
  Result (*init)(unsigned flags);
  Result (*device_count)(int *count);
  Result (*current_context)(Context *context);
  Result (*load_module)(Module *module, const void *image);
  Result (*find_function)(Function *function, Module module, const char *name);
  Result (*launch)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   void *stream, void **parameters, void **extra);
  Result (*set_memory)(unsigned long long memory, unsigned char value, size_t count, void *stream);
  Result (*error_text)(Result error, const char **text);
} driver;

static bool has_device; /* and a driver that has all of these */

static void open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return;
  const struct {
    void *function;
    const char *name;
  } wanted[] = {
      {&driver.init, "cuInit"},
      {&driver.device_count, "cuDeviceGetCount"},
      {&driver.current_context, "cuCtxGetCurrent"},
      {&driver.load_module, "cuModuleLoadData"},
      {&driver.find_function, "cuModuleGetFunction"},
      {&driver.launch, "cuLaunchKernel"},
      {&driver.set_memory, "cuMemsetD8Async"},
      {&driver.error_text, "cuGetErrorString"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    void *found = dlsym(library, wanted[i].name);
    if (!found) return;
    memcpy(wanted[i].function, &found, sizeof found);
  }
  int count = 0;
  has_device = !driver.init(0) && !driver.device_count(&count) && count > 0;
}

EXPORT int graphopt_has_cuda(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_driver);
  return has_device;
}

/* ---- The functions of the device, loaded once for each context -------------------------------- */

enum { MAX_CONTEXTS = 64, UPDATES = 6, OTHERS = 3, FUNCTIONS = 2 * UPDATES + OTHERS };

typedef struct {
  Context context;
  Function functions[FUNCTIONS]; /* updates, the same with limited gradients, then the others */
} Loaded;

static int index_of(const Operator *operator) {
  const Variant *v = &operator->variant;
  if (operator->kind == UPDATE)
    return (operator->scale || operator->clip_value) * UPDATES + 3 * v->centered + (int)v->momentum;
  return 2 * UPDATES + (operator->kind == AVERAGE ? 0 : operator->kind == SUM ? 1 : 2);
}

static void name_function(char *name, size_t size, int index) {
  static const char *const others[] = {"average", "sum", "all_finite"};
  const int update = index % UPDATES;
  if (index >= 2 * UPDATES)
    snprintf(name, size, "graphopt_%s", others[index - 2 * UPDATES]);
  else
    snprintf(name, size, "graphopt_%supdate_%d%d", index < UPDATES ? "" : "limited_", update / 3,
             update % 3);
}

static Result load(Context context, Loaded *loaded) {
  Module module;
  Result result = driver.load_module(&module, device_code);
  for (int i = 0; !result && i < FUNCTIONS; i++) {
    char name[40];
    name_function(name, sizeof name, i);
    result = driver.find_function(&loaded->functions[i], module, name);
  }
  if (!result) loaded->context = context;
  return result;
}

static Result find_function(const Operator *operator, Function *function) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static Loaded loaded[MAX_CONTEXTS];
  Context context;
  Result result = driver.current_context(&context);
  if (result) return result;
  pthread_mutex_lock(&mutex);
  int i = 0;
  while (i < MAX_CONTEXTS - 1 && loaded[i].context && loaded[i].context != context) i++;
  if (loaded[i].context != context) result = load(context, &loaded[i]);
  *function = loaded[i].functions[index_of(operator)];
  pthread_mutex_unlock(&mutex);
  return result;
}

/* ---- Launches ------------------------------------------------------------------------------- */

static bool is_in_place(const Call *call) {
  const Operator *operator = call->kernel->operator;
  const size_t n = operator->tensors, outputs = output_count(operator);
  void **old = call->memory, **new = old + input_count(operator);
  if (memcmp(old, new, n * sizeof *old)) return false;
  /* What is in the place of the gradients has no output. */
  return !memcmp(old + 2 * n, new + n, (outputs - n) * sizeof *old);
}

/* A launch for as many tensors as fit, from the first on; returns how many. */
static size_t fill(const Call *call, size_t first, Launch *launch) {
  const Operator *operator = call->kernel->operator;
  const size_t outputs = launch->in_place ? 0 : operator->kind_count - 1;
  const size_t pointers = operator->kind_count + outputs, left = operator->tensors - first;
  size_t n = MAX_POINTERS / pointers < MAX_TENSORS ? MAX_POINTERS / pointers : MAX_TENSORS;
  if (left < n) n = left;
  void **from = call->memory + first;
  for (size_t kind = 0; kind < pointers; kind++, from += operator->tensors) {
    if (kind == operator->kind_count) from += operator->scalar_count;
    memcpy(launch->pointers + kind * n, from, n * sizeof *from);
  }
  unsigned blocks = 0;
  for (size_t i = 0; i < n; i++) {
    launch->first_blocks[i] = blocks;
    launch->sizes[i] = (unsigned)call->sizes[first + i];
    blocks += (launch->sizes[i] + BLOCK_SIZE - 1) / BLOCK_SIZE;
  }
  launch->first_blocks[n] = blocks;
  launch->tensors = (unsigned)n;
  return n;
}

static OrtStatus *failure(const Kernel *kernel, const char *what, Result result) {
  const char *text = NULL;
  char message[256];
  if (driver.error_text(result, &text) || !text) text = "unknown error";
  snprintf(message, sizeof message, "graphopt.%s: %s: %s (%d)", kernel->operator->name, what, text,
           result);
  return kernel->api->CreateStatus(ORT_FAIL, message);
}

static OrtStatus *check_sizes(const Call *call) {
  for (size_t i = 0; i < call->kernel->operator->tensors; i++)
    if (call->sizes[i] > UINT32_MAX - BLOCK_SIZE)
      return call->kernel->api->CreateStatus(ORT_INVALID_ARGUMENT,
                                             "graphopt: a parameter has 2^32 elements or more");
  return NULL;
}

/* Launches a function for all tensors of a call, as many at once as fit. */
static OrtStatus *launched(const Call *call, Function function, Launch *launch, void *stream) {
  const Kernel *kernel = call->kernel;
  Result result = 0;
  for (size_t first = 0; !result && first < kernel->operator->tensors;) {
    first += fill(call, first, launch);
    void *parameters[] = {launch};
    const unsigned blocks = launch->first_blocks[launch->tensors];
    if (blocks)
      result = driver.launch(function, blocks, 1, 1, THREADS, 1, 1, 0, stream, parameters, NULL);
  }
  return result ? failure(kernel, "cannot launch the kernel", result) : NULL;
}

OrtStatus *compute_on_cuda(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const Operator *operator = kernel->operator;
  void *memory[input_count(operator) + output_count(operator)];
  size_t sizes[operator->tensors];
  const Call call = {kernel, memory, sizes, NULL};
  void *stream;
  Function function;
  OrtStatus *status = read_call(&call, context);
  if (!status) status = check_sizes(&call);
  if (!status) status = kernel->api->KernelContext_GetGPUComputeStream(context, &stream);
  if (status) return status;
  Result result = find_function(operator, &function);
  if (result) return failure(kernel, "cannot load the device code", result);
  const ScalarInputs inputs =
      operator->kind == UPDATE ? scalar_inputs(&call) : (ScalarInputs){0};
  const Weights w = operator->kind == SUM ? weights(&call) : (Weights){0};
  Launch launch = {
      .rate = inputs.rate,
      .weight_decay = inputs.weight_decay,
      .factor = inputs.factor,
      .a = w.a,
      .b = w.b,
      .on = operator->kind == SUM ? w.on : inputs.on,
      .in_place = is_in_place(&call),
      .scale = operator->scale,
      .clip_value = operator->clip_value,
      .limit = (float)kernel->attributes.clip_value,
      .variant = operator->variant,
      .attributes = scalars_of(&kernel->attributes),
  };
  return launched(&call, function, &launch, stream);
}

OrtStatus *finite_on_cuda(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  void *memory[kernel->operator->tensors];
  size_t sizes[kernel->operator->tensors];
  const Call call = {kernel, memory, sizes, NULL};
  Launch launch = {.in_place = true};
  void *stream;
  Function function;
  OrtStatus *status = read_values(&call, context);
  if (!status) status = check_sizes(&call);
  if (!status) status = flag_output(kernel, context, &launch.flag);
  if (!status) status = kernel->api->KernelContext_GetGPUComputeStream(context, &stream);
  if (status) return status;
  Result result = find_function(kernel->operator, &function);
  if (result) return failure(kernel, "cannot load the device code", result);
  result = driver.set_memory((uintptr_t)launch.flag, 1, sizeof *launch.flag, stream);
  if (result) return failure(kernel, "cannot write", result);
  return launched(&call, function, &launch, stream);
}

OrtStatus *ready_on_cuda(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  bool *ready;
  void *stream;
  OrtStatus *status = flag_output(kernel, context, &ready);
  if (!status) status = kernel->api->KernelContext_GetGPUComputeStream(context, &stream);
  if (status) return status;
  const Result result = driver.set_memory((uintptr_t)ready, 1, sizeof *ready, stream);
  return result ? failure(kernel, "cannot write", result) : NULL;
}
