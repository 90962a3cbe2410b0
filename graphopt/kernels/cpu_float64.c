/* The update on the CPU in double. */
#define FLOAT64
#include "cpu.c"
