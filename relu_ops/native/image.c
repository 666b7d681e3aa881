/* An image that was read, and what it says. image_reader.c has checked it: here every place is believed. */
#include "image.h"

#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "mapping.h"

void relu_ops_drop_image(Image* image) {
  if (!image) return;
  relu_ops_drop_mapping(image->mapping);
  free(image->shown);
  free(image);
}

const char* relu_ops_image_target(const Image* image) {
  return (const char*)image->bytes + image->header.target.at;
}

uint32_t relu_ops_image_machine(const Image* image) {
  return image->header.machine;
}

size_t relu_ops_image_requirement_count(const Image* image) {
  return image->header.requires_.count;
}

const char* relu_ops_image_requirement(const Image* image, size_t number) {
  if (number >= image->header.requires_.count) return NULL;
  ImageText text;
  memcpy(&text, image->bytes + image->header.requires_.at + number * sizeof(text), sizeof(text));
  return (const char*)image->bytes + text.at;
}

size_t relu_ops_image_operator_count(const Image* image) {
  return image->header.operators.count;
}

ImageOperator relu_ops_image_operator(const Image* image, size_t number) {
  ImageOperator op;
  memcpy(&op, image->bytes + image->header.operators.at + number * sizeof(op), sizeof(op));
  return op;
}

const char* relu_ops_image_operator_name(const Image* image, size_t number) {
  if (number >= image->header.operators.count) return NULL;
  return (const char*)image->bytes + relu_ops_image_operator(image, number).name.at;
}
