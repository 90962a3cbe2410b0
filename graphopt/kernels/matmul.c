/* Products of matrices on processors with AVX-512, with what is added to them.
 *
 * ONNX Runtime reads the left operand where it lies: rows that are a multiple of 4 KiB apart push
 * each other out of the cache, and a transposed one is copied again for each few columns. Here both
 * operands are copied to where they follow each other as they are read, each once for a part of the
 * result. An element of the result is a sum in the order of its terms, in blocks of DEPTH: the bits
 * do not depend on the number of threads. Without AVX-512 there are no such kernels.
 */
#include <stdlib.h>
#include <string.h>

#include "layer.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum {
  ROWS = 12,          /* of a tile in registers */
  COLUMNS = 32,       /* of the same */
  DEPTH = 256,        /* terms that are added at once */
  PITCH = DEPTH + 16, /* between rows; no power of two */
  BLOCK = 96,         /* rows that are packed at once; a multiple of ROWS */
  WIDEST = 512,       /* columns that are packed at once; a multiple of COLUMNS */
  EVEN = 4,           /* of which a part has a multiple of rows */
  LEAST = 128,        /* rows or columns of a part, if it is one of several */
  FEW = 4,            /* parts; more where there are many columns */
  SMALL = 1 << 18,    /* terms of a product that is one part */
};

enum { TRANS_A = 1, TRANS_B = 2, PLUS = 4 }; /* how a kind of product differs */

/* A matrix, or one whose transposed matrix lies there; step is from one of its rows to the next. */
typedef struct {
  const float *data;
  size_t step, outer[2]; /* outer is from the matrix of one product to others, along two axes */
  bool transposed;
} Operand;

/* y = alpha a b + plus */
typedef struct {
  const float *a, *b, *plus; /* plus may be NULL */
  float *y, alpha;
  size_t depth, y_step, plus_step;
} Tile;

#include "matmul_loops.h"

/* What a thread packs. */
static _Thread_local float right[WIDEST * DEPTH] __attribute__((aligned(64)));
static _Thread_local float left[BLOCK * PITCH + 16] __attribute__((aligned(64)));

/* Products y = alpha a b + plus. */
typedef struct {
  Operand a, b, plus; /* plus has no data where nothing is added */
  float *y, alpha;
  size_t y_step, y_outer[2];
  size_t rows, columns, depth, count[2]; /* of a product, and how many there are along each axis */
  size_t row_parts, column_parts;        /* of a product */
} Work;

/* A part of a product: its matrices, and the rows and columns of the result. */
typedef struct {
  Operand a, b, plus;
  float *y;
  size_t row, rows, column, columns;
} Part;

/* The tile at the edge is computed where there is room for all of it. */
static void multiply_edge(const Tile *tile, size_t rows, size_t columns, bool transposed) {
  float room[ROWS * COLUMNS] __attribute__((aligned(64))) = {0};
  Tile whole = *tile;
  whole.y = room, whole.y_step = COLUMNS;
  if (tile->plus) {
    for (size_t i = 0; i < rows; i++)
      memcpy(room + i * COLUMNS, tile->plus + i * tile->plus_step, columns * sizeof *room);
    whole.plus = room, whole.plus_step = COLUMNS;
  }
  (transposed ? multiply_columns : multiply_rows)(&whole, rows);
  for (size_t i = 0; i < rows; i++)
    memcpy(tile->y + i * tile->y_step, room + i * COLUMNS, columns * sizeof *room);
}

/* So many rows of a part, from this one on, which are packed as its columns are. */
static void multiply_packed(const Work *w, const Part *part, size_t row, size_t rows, size_t depth,
                            bool is_first) {
  const size_t step = w->y_step;
  const bool transposed = part->a.transposed;
  for (size_t j = 0; j < part->columns; j += COLUMNS) {
    const size_t columns = part->columns - j < COLUMNS ? part->columns - j : COLUMNS;
    for (size_t i = 0; i < rows; i += ROWS) {
      const size_t high = rows - i < ROWS ? rows - i : ROWS;
      const size_t at_row = row + i, at = part->column + j;
      Tile tile = {.a = left + i * (transposed ? (size_t)DEPTH : (size_t)PITCH),
                   .b = right + j * depth,
                   .y = part->y + at_row * step + at,
                   .alpha = w->alpha,
                   .depth = depth,
                   .y_step = step};
      if (!is_first)
        tile.plus = tile.y, tile.plus_step = step;
      else if (part->plus.data)
        tile.plus = part->plus.data + at_row * part->plus.step + at,
        tile.plus_step = part->plus.step;
      if (columns < COLUMNS)
        multiply_edge(&tile, high, columns, transposed);
      else
        (transposed ? multiply_columns : multiply_rows)(&tile, high);
    }
  }
}

/* Where a part begins, of so many that are about as large. */
static size_t bound(size_t part, size_t parts, size_t size, size_t multiple) {
  const size_t units = (size + multiple - 1) / multiple, begin = part * units / parts * multiple;
  return begin < size ? begin : size;
}

static Operand of_product(const Operand *first, size_t i, size_t j) {
  Operand operand = *first;
  if (operand.data) operand.data += i * operand.outer[0] + j * operand.outer[1];
  return operand;
}

static Part find_part(const Work *w, size_t number) {
  const size_t across = number % w->column_parts, others = number / w->column_parts;
  const size_t down = others % w->row_parts, product = others / w->row_parts;
  const size_t i = product / w->count[1], j = product % w->count[1];
  Part part = {of_product(&w->a, i, j), of_product(&w->b, i, j), of_product(&w->plus, i, j),
               w->y + i * w->y_outer[0] + j * w->y_outer[1],
               bound(down, w->row_parts, w->rows, EVEN), 0,
               bound(across, w->column_parts, w->columns, COLUMNS), 0};
  part.rows = bound(down + 1, w->row_parts, w->rows, EVEN) - part.row;
  part.columns = bound(across + 1, w->column_parts, w->columns, COLUMNS) - part.column;
  return part;
}

static void compute_part(void *data, size_t number) {
  const Work *w = data;
  const Part part = find_part(w, number);
  size_t k = 0;
  do {
    const size_t depth = w->depth - k < DEPTH ? w->depth - k : DEPTH;
    (part.b.transposed ? pack_transposed_right : pack_right)(&part.b, k, depth, part.column,
                                                             part.columns, right);
    for (size_t i = 0; i < part.rows; i += BLOCK) {
      const size_t row = part.row + i, rows = part.rows - i < BLOCK ? part.rows - i : BLOCK;
      (part.a.transposed ? pack_transposed_left : pack_left)(&part.a, row, rows, k, depth, left);
      multiply_packed(w, &part, row, rows, depth, k == 0);
    }
    k += DEPTH;
  } while (k < w->depth);
}

/* Parts are as large as packing is little beside multiplying, and their number is one that two or
 * four threads share evenly. */
static void divide(Work *w) {
  const size_t each = w->rows * w->columns * w->depth;
  w->row_parts = 1;
  w->column_parts = (w->columns + WIDEST - 1) / WIDEST;
  while (each > SMALL && w->row_parts < FEW && w->rows >= 2 * LEAST * w->row_parts)
    w->row_parts *= 2;
  while (each > SMALL && w->row_parts * w->column_parts < FEW &&
         w->columns >= 2 * LEAST * w->column_parts)
    w->column_parts *= 2;
}

/* Whether the shapes of a and b fit, and those of plus; what the result has is its shape. */
static bool find_work(const Tensor *a, const Tensor *b, const Tensor *plus, int way, Work *w,
                      int64_t *dims) {
  const size_t rank = a->rank;
  const bool is_matrix = b->rank == 2 && !(way & TRANS_A);
  if (rank < 2 || !(is_matrix || b->rank == rank)) return false;
  const size_t outer = is_matrix ? 0 : rank - 2; /* axes of products that have both operands */
  if (memcmp(a->dims, b->dims, outer * sizeof *dims)) return false;
  const size_t a_last = (size_t)a->dims[rank - 1], b_last = (size_t)b->dims[b->rank - 1];
  const size_t a_rows = product_of(a->dims + outer, rank - 1 - outer);
  const size_t b_rows = (size_t)b->dims[b->rank - 2];
  w->rows = way & TRANS_A ? a_last : a_rows;
  w->depth = way & TRANS_A ? a_rows : a_last;
  w->columns = way & TRANS_B ? b_rows : b_last;
  if (w->depth != (way & TRANS_B ? b_last : b_rows)) return false;
  w->count[0] = 1, w->count[1] = product_of(a->dims, outer);
  w->a = (Operand){a->data, a_last, {0, w->rows * w->depth}, way & TRANS_A};
  w->b = (Operand){b->data, b_last, {0, w->columns * w->depth}, way & TRANS_B};
  w->y_step = w->columns, w->y_outer[1] = w->rows * w->columns;
  memcpy(dims, a->dims, rank * sizeof *dims);
  if (way & TRANS_A) dims[rank - 2] = (int64_t)w->rows;
  dims[rank - 1] = (int64_t)w->columns;
  if (!plus) return true;
  const bool is_row = plus->rank == 1 && (size_t)plus->dims[0] == w->columns;
  w->plus = (Operand){plus->data, is_row ? 0 : w->columns, {0, is_row ? 0 : w->y_outer[1]}, false};
  return is_row || (plus->rank == rank && !memcmp(plus->dims, dims, rank * sizeof *dims));
}

static OrtStatus *multiply(const Layer *layer, OrtKernelContext *context, Work *w,
                           const int64_t *dims, size_t rank) {
  OrtStatus *status = make_output(layer, context, 0, dims, rank, &w->y);
  if (status || !w->rows || !w->columns) return status;
  divide(w);
  const size_t parts = w->count[0] * w->count[1] * w->row_parts * w->column_parts;
  return do_parts(layer->api, context, compute_part, parts, w);
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  const Layer *layer = kernel;
  const int way = layer->operator->kind->way;
  Tensor in[MOST_LAYER_INPUTS];
  Work w = {.alpha = 1};
  int64_t dims[MOST_LAYER_DIMS];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  const Tensor *operands = way & PLUS ? in + 1 : in;
  if (!find_work(&operands[0], &operands[1], way & PLUS ? in : NULL, way, &w, dims))
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  return multiply(layer, context, &w, dims, operands[0].rank);
}

/* ---- Products whose axes lie in another order ----------------------------------------------- */

enum { AXES = 4, ROW = 2, COLUMN = 3 };

/* Axis i of an operand of the product is its axis a[i] or b[i]; of the result, that of the product
 * is y[i]. */
typedef struct {
  Layer layer;
  int64_t a[AXES], b[AXES], y[AXES];
  float alpha;
} AxesLayer;

static bool is_order(const int64_t *order) {
  unsigned found = 0;
  for (size_t i = 0; i < AXES; i++)
    if (order[i] >= 0 && order[i] < AXES) found |= 1u << order[i];
  return found == (1u << AXES) - 1;
}

/* One of the axes of a matrix is that along which elements follow each other. */
static bool are_orders(const AxesLayer *made) {
  return is_order(made->a) && is_order(made->b) && is_order(made->y) && made->a[0] != COLUMN &&
         made->a[1] != COLUMN && made->b[0] != COLUMN && made->b[1] != COLUMN &&
         made->y[COLUMN] == COLUMN;
}

static OrtStatus *create_axes(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                              void **kernel) {
  AxesLayer *made = calloc(1, sizeof *made);
  if (!made) return api->CreateStatus(ORT_INVALID_ARGUMENT, "graphopt: out of memory");
  made->layer = (Layer){api, (const LayerOperator *)op};
  const struct {
    const char *name;
    int64_t *values;
  } read[] = {{"a_perm", made->a}, {"b_perm", made->b}, {"y_perm", made->y}};
  OrtStatus *status = api->KernelInfoGetAttribute_float(info, "alpha", &made->alpha);
  for (size_t i = 0; !status && i < sizeof read / sizeof *read; i++) {
    size_t count = AXES;
    status = api->KernelInfoGetAttributeArray_int64(info, read[i].name, read[i].values, &count);
    if (!status && count != AXES) status = wrong_layer(&made->layer, "it has four axes");
  }
  if (!status && !are_orders(made))
    status = wrong_layer(&made->layer, "no order of axes for which there is a kernel");
  if (status)
    free(made);
  else
    *kernel = made;
  return status;
}

/* From each element to the next along each axis. */
static void find_steps(const int64_t *dims, size_t *steps) {
  size_t size = 1;
  for (size_t i = AXES; i--;) steps[i] = size, size *= (size_t)dims[i];
}

static Operand find_operand(const Tensor *tensor, const int64_t *order, size_t *sizes) {
  size_t steps[AXES];
  find_steps(tensor->dims, steps);
  for (size_t i = 0; i < AXES; i++) sizes[i] = (size_t)tensor->dims[order[i]];
  const bool transposed = order[COLUMN] != COLUMN;
  return (Operand){tensor->data, steps[order[transposed ? COLUMN : ROW]],
                   {steps[order[0]], steps[order[1]]}, transposed};
}

static OrtStatus *compute_axes(void *kernel, OrtKernelContext *context) {
  const AxesLayer *made = kernel;
  const Layer *layer = kernel;
  Tensor in[MOST_LAYER_INPUTS];
  Work w = {.alpha = made->alpha};
  size_t a[AXES], b[AXES], steps[AXES];
  OrtStatus *status = read_inputs(layer, context, in);
  if (status) return status;
  if (in[0].rank != AXES || in[1].rank != AXES)
    return wrong_layer(layer, "the inputs have four axes each");
  w.a = find_operand(&in[0], made->a, a);
  w.b = find_operand(&in[1], made->b, b);
  if (a[0] != b[0] || a[1] != b[1] || a[COLUMN] != b[ROW])
    return wrong_layer(layer, "the shapes of the inputs do not fit each other");
  w.count[0] = a[0], w.count[1] = a[1];
  w.rows = a[ROW], w.depth = a[COLUMN], w.columns = b[COLUMN];
  const size_t sizes[AXES] = {w.count[0], w.count[1], w.rows, w.columns};
  int64_t dims[AXES];
  for (size_t i = 0; i < AXES; i++) dims[i] = (int64_t)sizes[made->y[i]];
  find_steps(dims, steps);
  for (size_t i = 0; i < AXES; i++) {
    if (made->y[i] == ROW)
      w.y_step = steps[i];
    else if (made->y[i] != COLUMN)
      w.y_outer[made->y[i]] = steps[i];
  }
  return multiply(layer, context, &w, dims, AXES);
}

LayerKind matmul_kinds[] = {
    {"MatMul", 2, 1, 0, create_layer, compute, false},
    {"MatMulTransA", 2, 1, TRANS_A, create_layer, compute, false},
    {"MatMulTransB", 2, 1, TRANS_B, create_layer, compute, false},
    {"MatMulAdd", 3, 1, PLUS, create_layer, compute, true},
    {"MatMulTransAAdd", 3, 1, TRANS_A | PLUS, create_layer, compute, true},
    {"MatMulTransBAdd", 3, 1, TRANS_B | PLUS, create_layer, compute, true},
    {"MatMulAxes", 2, 1, 0, create_axes, compute_axes, false},
    {0},
};

/* There are none where the processor has not what they are made of. */
__attribute__((constructor)) static void choose_kinds(void) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("fma"))
    matmul_kinds[0].name = NULL;
}

#else
LayerKind matmul_kinds[] = {{0}};
#endif
