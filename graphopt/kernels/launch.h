/* What one launch of the kernel for CUDA is given; less than 4 KiB, which every driver passes.
 */
#ifndef GRAPHOPT_LAUNCH_H
#define GRAPHOPT_LAUNCH_H

#include "update.h"

enum {
  THREADS = 512,            /* of a block */
  BLOCK_SIZE = 4 * THREADS, /* elements that a block updates: a vector of four a thread */
  MAX_TENSORS = 112,        /* of each kind */
  MAX_POINTERS = 384,
};

/* The pointers are all w, then all g, s, a and m, as far as there are, then all w1, s1, a1 and m1;
 * without the new ones where each is the old one. */
typedef struct {
  float *pointers[MAX_POINTERS];
  unsigned sizes[MAX_TENSORS];
  unsigned first_blocks[MAX_TENSORS + 1]; /* the last one is the number of blocks */
  const float *rate, *weight_decay;
  const bool *on; /* NULL: no mask */
  unsigned tensors;
  bool in_place;
  Variant variant;
  Scalars attributes;
  bool scale, clip_value; /* what is done with gradients first, by */
  float limit;
  const float *factor;
  const float *a, *b; /* of a sum */
  bool *flag;         /* what is told of values */
} Launch;

#endif
