/* What the module has of XLA's foreign functions. */
#ifndef RELU_OPS_PYTHON_XLA_H_
#define RELU_OPS_PYTHON_XLA_H_

#include "python.h"

/* (number, operator): let XLA's handler find an operator by a number. The operator lives from then on. */
PyObject* relu_ops_xla_register(PyObject* module, PyObject* arguments);

/* (major, minor): the handler as a capsule, which says that it is of that version of XLA's interface. */
PyObject* relu_ops_xla_handler(PyObject* module, PyObject* arguments);

#endif
