/* Shapes, and how they broadcast: for what checks arrays and what plans loops over them. */
#ifndef RELU_OPS_SHAPE_H_
#define RELU_OPS_SHAPE_H_

#include <string.h>

#include "core.h"

typedef struct {
  int32_t rank;
  int64_t extent[MAX_RANK];
} Shape;

typedef enum { TOGETHER, APART, TOO_MANY_DIMENSIONS } Broadcast;

static const Seen AS_IT_IS = {0, 0, 1};

/* Broadcast a shape with that of an array in a view. */
static inline Broadcast broadcast_into(Shape* to, int32_t rank, const int64_t* dims, Seen seen) {
  int32_t whole = rank + seen.trailing;
  if (whole > MAX_RANK) return TOO_MANY_DIMENSIONS;
  while (to->rank < whole) {
    memmove(to->extent + 1, to->extent, sizeof(int64_t) * (size_t)to->rank);
    to->extent[0] = 1;
    to->rank++;
  }
  for (int32_t d = 0; d < rank; ++d) {
    int64_t *extent = &to->extent[to->rank - whole + d], dim = dims[d];
    if (whole - 1 - d == seen.axis && __builtin_mul_overflow(dim, seen.block, &dim)) return APART;
    if (dim == 1 || dim == *extent) continue;
    if (*extent != 1) return APART;
    *extent = dim;
  }
  return TOGETHER;
}

/* The broadcast of some inputs and constant shapes, each in its view. */
static inline Broadcast broadcast_terms(Shape* shape, Terms terms, const DLTensor* inputs) {
  shape->rank = 0;
  for (int32_t k = 0; k < terms.count; ++k) {
    const Term* term = &terms.terms[k];
    const DLTensor* x = term->input < 0 ? NULL : &inputs[term->input];
    Broadcast found =
        broadcast_into(shape, x ? x->ndim : term->rank, x ? x->shape : term->dims, term->seen);
    if (found != TOGETHER) return found;
  }
  return TOGETHER;
}

static inline bool same_extents(int32_t rank, const int64_t* a, const int64_t* b) {
  for (int32_t d = 0; d < rank; ++d)
    if (a[d] != b[d]) return false;
  return true;
}

/* Whether two arrays have one shape; of what no array may have as one, they have not. */
static inline bool same_shape(const DLTensor* x, const DLTensor* y) {
  if (x->ndim != y->ndim || x->ndim < 0 || x->ndim > MAX_RANK) return false;
  return x->ndim == 0 || (x->shape && y->shape && same_extents(x->ndim, x->shape, y->shape));
}

/* Whether an array in a view broadcasts into a shape, leading unit dimensions aside. */
static inline bool fits(int32_t rank, const int64_t* dims, Seen seen, const Shape* into) {
  while (rank > 0 && rank + seen.trailing > into->rank && dims[0] == 1) --rank, ++dims;
  Shape both = *into;
  return rank + seen.trailing <= into->rank && broadcast_into(&both, rank, dims, seen) == TOGETHER &&
         same_extents(into->rank, both.extent, into->extent);
}

static inline bool is_empty(int32_t rank, const int64_t* extents) {
  for (int32_t d = 0; d < rank; ++d)
    if (extents[d] == 0) return true;
  return false;
}

#endif
