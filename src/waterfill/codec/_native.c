/*
 * The reader in C (decoders/c) as a module of Python: what reads files where there is a compiler, or a wheel.
 *
 * Python parses the directory itself; here tensors are decoded into its memory, without its lock.
 * SPDX-License-Identifier: MIT
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "wf_internal.h"

#include <stdlib.h>

enum { MOST_IDLE = 4 };

typedef struct native_file {
    PyObject_HEAD
    wf_file *file;
    Py_buffer data;  /* all bytes of the file, or nothing */
    PyObject *read;  /* or what reads some */
    Py_ssize_t busy; /* calls that decode at this moment, without the lock */
    wf_kept idle[MOST_IDLE]; /* what calls before have kept of chunks that small tensors share */
    int idle_count;
    int is_closed;
} native_file;

static void *allocate(void *context, size_t size) {
    (void)context;
    return malloc(size);
}

static void release(void *context, void *memory, size_t size) {
    (void)context;
    (void)size;
    free(memory);
}

static const wf_allocator ALLOCATOR = {allocate, release, NULL, 0};

/* Read through Python; its error stays set in this thread, until the lock is taken again for good. */
static int read_some(void *context, uint64_t at, void *to, size_t size) {
    native_file *self = (native_file *)context;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *found = PyObject_CallFunction(self->read, "KK", (unsigned long long)at, (unsigned long long)size);
    int failed = 1;
    if (found != NULL) {
        char *bytes;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(found, &bytes, &length) == 0) {
            if ((size_t)length == size) {
                memcpy(to, bytes, size);
                failed = 0;
            } else {
                PyErr_SetString(PyExc_ValueError, "the file was cut while it was open");
            }
        }
        Py_DECREF(found);
    }
    PyGILState_Release(state);
    return failed;
}

/* Raise what went wrong: an error of reading that Python knows, a lack of memory, or else a ValueError. */
static PyObject *raise_error(wf_code code, const wf_error *error) {
    if (PyErr_Occurred()) return NULL;
    PyErr_SetString(code == WF_MEMORY ? PyExc_MemoryError : PyExc_ValueError, error->message);
    return NULL;
}

static void let_go(native_file *self) {
    while (self->idle_count) wf_forget(self->file, &self->idle[--self->idle_count]);
    wf_close(self->file);
    self->file = NULL;
    if (self->data.obj) PyBuffer_Release(&self->data);
    Py_CLEAR(self->read);
}

/* Whether the file is open, so that a call may begin, which `end` ends. */
static int begin(native_file *self) {
    if (self->is_closed || self->file == NULL) {
        PyErr_SetString(PyExc_ValueError, "the file is closed");
        return 0;
    }
    self->busy++;
    return 1;
}

static void end(native_file *self) {
    self->busy--;
    if (self->busy == 0 && self->is_closed) {
        PyObject *kind, *value, *trace;
        PyErr_Fetch(&kind, &value, &trace);
        let_go(self);
        PyErr_Restore(kind, value, trace);
    }
}

static int file_init(PyObject *object, PyObject *values, PyObject *names) {
    static char *known[] = {"source", "size", NULL};
    native_file *self = (native_file *)object;
    PyObject *source;
    unsigned long long size = 0;
    wf_source from;
    wf_error error;
    wf_code code;
    if (self->file != NULL || self->is_closed || self->busy) {
        PyErr_SetString(PyExc_ValueError, "the file was opened before");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(values, names, "O|K", known, &source, &size)) return -1;
    memset(&from, 0, sizeof from);
    memset(&error, 0, sizeof error);
    if (PyCallable_Check(source)) {
        self->read = source;
        Py_INCREF(source);
        from.read = read_some;
        from.context = self;
        from.size = size;
    } else {
        if (PyObject_GetBuffer(source, &self->data, PyBUF_SIMPLE) != 0) return -1;
        from.data = self->data.buf;
        from.size = (uint64_t)self->data.len;
    }
    self->busy++; /* nothing is let go of meanwhile */
    Py_BEGIN_ALLOW_THREADS
    code = wf_open(&self->file, &from, &ALLOCATOR, 0, &error);
    Py_END_ALLOW_THREADS
    if (code != WF_OK) {
        raise_error(code, &error);
        self->is_closed = 1;
    }
    end(self);
    return code == WF_OK ? 0 : -1;
}

static void file_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    freefunc give = (freefunc)PyType_GetSlot(type, Py_tp_free);
    let_go((native_file *)object);
    give(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(close_doc, "close()\n--\n\nLet go of the file, after the calls that are under way.");

static PyObject *file_close(PyObject *object, PyObject *nothing) {
    native_file *self = (native_file *)object;
    (void)nothing;
    if (!self->is_closed) {
        self->is_closed = 1;
        if (self->busy == 0) let_go(self);
    }
    Py_RETURN_NONE;
}

/* What this call keeps, and the next one that begins after it. */
static wf_kept taken(native_file *self) {
    wf_kept kept;
    memset(&kept, 0, sizeof kept);
    return self->idle_count ? self->idle[--self->idle_count] : kept;
}

static void given_back(native_file *self, wf_kept *kept) {
    if (self->idle_count < MOST_IDLE) self->idle[self->idle_count++] = *kept;
    else wf_forget(self->file, kept);
}

/* Decode tensors one after the other, in their own types; the lock is not held. */
static wf_code decode_some(const wf_file *file, wf_kept *kept, const size_t *numbers, const Py_buffer *outs,
                           Py_ssize_t count, wf_error *error) {
    wf_code code = WF_OK;
    Py_ssize_t i;
    for (i = 0; i < count && code == WF_OK; i++) {
        code = wf_decode(file, kept, numbers[i], WF_OWN, outs[i].buf, (size_t)outs[i].len, error);
    }
    return code;
}

PyDoc_STRVAR(decode_doc, "decode(numbers, outs)\n--\n\n"
                         "Decode tensors in their own types, one after the other, into writable buffers.\n\n"
                         "Raises:\n    ValueError: the file is damaged.");

static PyObject *file_decode(PyObject *object, PyObject *values) {
    native_file *self = (native_file *)object;
    PyObject *numbers, *outs;
    Py_ssize_t count, i, ready = 0;
    size_t *at;
    Py_buffer *buffers;
    wf_error error;
    wf_code code = WF_OK;
    if (!PyArg_ParseTuple(values, "O!O!", &PyList_Type, &numbers, &PyList_Type, &outs)) return NULL;
    count = PyList_Size(numbers);
    if (PyList_Size(outs) != count) {
        PyErr_SetString(PyExc_ValueError, "there are not as many buffers as numbers of tensors");
        return NULL;
    }
    memset(&error, 0, sizeof error);
    at = (size_t *)PyMem_Calloc((size_t)count + 1, sizeof *at);
    buffers = (Py_buffer *)PyMem_Calloc((size_t)count + 1, sizeof *buffers);
    if (at == NULL || buffers == NULL) PyErr_NoMemory();
    for (i = 0; i < count && !PyErr_Occurred(); i++) {
        at[i] = PyLong_AsSize_t(PyList_GetItem(numbers, i));
        if (PyErr_Occurred()) break;
        if (PyObject_GetBuffer(PyList_GetItem(outs, i), &buffers[i], PyBUF_WRITABLE) == 0) ready++;
    }
    if (!PyErr_Occurred() && begin(self)) {
        wf_kept kept = taken(self);
        Py_BEGIN_ALLOW_THREADS
        code = decode_some(self->file, &kept, at, buffers, count, &error);
        Py_END_ALLOW_THREADS
        given_back(self, &kept);
        end(self);
    }
    for (i = 0; i < ready; i++) PyBuffer_Release(&buffers[i]);
    PyMem_Free(buffers);
    PyMem_Free(at);
    if (PyErr_Occurred()) return NULL;
    if (code != WF_OK) return raise_error(code, &error);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(symbols_doc, "symbols(chunk, out)\n--\n\n"
                          "Decode the symbols of a chunk, line by line, into a buffer of int32.\n\n"
                          "Raises:\n    ValueError: the file is damaged.");

static PyObject *file_symbols(PyObject *object, PyObject *values) {
    native_file *self = (native_file *)object;
    unsigned long long number;
    PyObject *out;
    Py_buffer buffer;
    wf_error error;
    wf_code code = WF_OK;
    if (!PyArg_ParseTuple(values, "KO", &number, &out)) return NULL;
    if (PyObject_GetBuffer(out, &buffer, PyBUF_WRITABLE) != 0) return NULL;
    memset(&error, 0, sizeof error);
    if (begin(self)) {
        Py_BEGIN_ALLOW_THREADS
        code = wf_symbols(self->file, (size_t)number, (int32_t *)buffer.buf, (size_t)buffer.len / 4, &error);
        Py_END_ALLOW_THREADS
        end(self);
    }
    PyBuffer_Release(&buffer);
    if (PyErr_Occurred()) return NULL;
    if (code != WF_OK) return raise_error(code, &error);
    Py_RETURN_NONE;
}

static PyMethodDef file_methods[] = {
    {"close", file_close, METH_NOARGS, close_doc},
    {"decode", file_decode, METH_VARARGS, decode_doc},
    {"symbols", file_symbols, METH_VARARGS, symbols_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(file_doc, "File(source, size=0)\n--\n\n"
                       "An open file: a buffer, or a callable that reads (start, size) of so many bytes.\n\n"
                       "Raises:\n    ValueError: it is damaged, or no such file.");

static PyType_Slot file_slots[] = {
    {Py_tp_doc, (void *)file_doc},
    {Py_tp_init, (void *)file_init},
    {Py_tp_dealloc, (void *)file_dealloc},
    {Py_tp_methods, file_methods},
    {0, NULL},
};

static PyType_Spec file_spec = {"waterfill.codec._native.File", sizeof(native_file), 0, Py_TPFLAGS_DEFAULT, file_slots};

/* Bits of paths */

typedef struct path_model {
    const uint16_t *classes, *entries;
    const uint8_t *aside, *lows;
    const double *bits;   /* [2 * classes, 256] */
    const int64_t *last;  /* [2 * classes] */
    int64_t span;
    int is_centred;
} path_model;

/* The code length of levels, as `path_kernels.code_length` adds it up; negative where they are no path. */
static double path_bits(const path_model *model, const int32_t *levels, size_t count) {
    double total = 0;
    int64_t entry = 0, left = model->span;
    size_t i;
    for (i = 0; i < count; i++) {
        int64_t level = levels[i], k, subset, high, magnitude, row, low, is_middle, is_wrong;
        int stays = model->aside[model->classes[i]];
        if (left == 0) {
            entry = 0;
            left = model->span;
        }
        left--;
        subset = stays ? 0 : entry & 1;
        if (subset == 0) {
            is_wrong = level & 1;
            k = level >> 1;
        } else if (model->is_centred) {
            is_wrong = (level & 1) ^ (level != 0);
            k = (level + (level > 0)) >> 1;
        } else {
            is_wrong = (level & 1) ^ 1;
            k = level >> 1;
        }
        if (is_wrong) return -1;
        row = 2 * (int64_t)model->classes[i] + subset;
        low = model->lows[row];
        is_middle = subset == 0 || model->is_centred;
        high = (k + (is_middle ? ((int64_t)1 << low) >> 1 : 0)) >> low;
        magnitude = high >= 0 ? high : is_middle ? -high : -high - 1;
        total += (double)low;
        if (magnitude <= model->last[row]) {
            total += model->bits[row * 256 + high + 128];
        } else {
            int64_t extra = 2 * (magnitude - model->last[row] - 1) + (high < 0), octets = 1;
            while (octets < 4 && extra >> (8 * octets)) octets++;
            total += model->bits[row * 256] + 2 + 8 * (double)octets;
        }
        if (!stays) entry = model->entries[(entry & ~(int64_t)1) | (k & 1)];
    }
    return total;
}

PyDoc_STRVAR(path_bits_doc, "path_bits(levels, classes, aside, entries, bits, lows, last, centred, span)\n--\n\n"
                            "Code length of the levels of a path, in bits; negative where they are none.\n\n"
                            "levels: int32 [n]; classes: uint16 [n]; the others are those of\n"
                            "`path_kernels.walk` and `path_kernels.code_length`, bits as float64.");

static PyObject *module_path_bits(PyObject *module, PyObject *values) {
    static const Py_ssize_t sizes[7] = {4, 2, 1, 2, 8, 1, 8};
    PyObject *arrays[7];
    Py_buffer buffers[7];
    path_model model;
    double total = 0;
    int i, ready;
    (void)module;
    if (!PyArg_ParseTuple(values, "OOOOOOOpL", &arrays[0], &arrays[1], &arrays[2], &arrays[3], &arrays[4], &arrays[5],
                          &arrays[6], &model.is_centred, &model.span)) {
        return NULL;
    }
    for (ready = 0; ready < 7; ready++) {
        if (PyObject_GetBuffer(arrays[ready], &buffers[ready], PyBUF_SIMPLE) != 0) break;
    }
    if (ready == 7) {
        Py_ssize_t classes = buffers[2].len, count = buffers[0].len / sizes[0];
        if (buffers[1].len / sizes[1] != count || buffers[4].len / sizes[4] != 512 * classes ||
            buffers[5].len != 2 * classes || buffers[6].len / sizes[6] != 2 * classes || model.span < 1) {
            PyErr_SetString(PyExc_ValueError, "sizes of arrays differ");
        } else {
            model.classes = (const uint16_t *)buffers[1].buf;
            model.aside = (const uint8_t *)buffers[2].buf;
            model.entries = (const uint16_t *)buffers[3].buf;
            model.bits = (const double *)buffers[4].buf;
            model.lows = (const uint8_t *)buffers[5].buf;
            model.last = (const int64_t *)buffers[6].buf;
            Py_BEGIN_ALLOW_THREADS
            total = path_bits(&model, (const int32_t *)buffers[0].buf, (size_t)count);
            Py_END_ALLOW_THREADS
        }
    }
    for (i = 0; i < ready; i++) PyBuffer_Release(&buffers[i]);
    return PyErr_Occurred() ? NULL : PyFloat_FromDouble(total);
}

static PyMethodDef module_methods[] = {
    {"path_bits", module_path_bits, METH_VARARGS, path_bits_doc},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module) {
    PyObject *type = PyType_FromSpec(&file_spec);
    int failed;
    if (type == NULL) return -1;
    failed = PyModule_AddObjectRef(module, "File", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "_native", "The reader in C.", 0, module_methods, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    return PyModuleDef_Init(&module_def);
}
